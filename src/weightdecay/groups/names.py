"""Names of parameters without what wrappers put before them: DDP, FSDP, torch.compile, activation checkpointing."""

from collections.abc import Iterator, Sequence

from torch import nn

from weightdecay.display.table import some

__all__ = ["WRAPPERS", "differences", "some", "unwrapped", "without_wrappers"]

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_Tree = dict[str, "_Tree"]
"""What stands under each part of names, down to their ends."""


def without_wrappers(names: Sequence[str]) -> list[str]:
    """Drop the parts of wrappers, wherever all names with one beginning go through that one part.

    A wrapper is the only way to what it holds, so no two names become equal without it.

    >>> without_wrappers(["module.0._orig_mod.weight", "module.1.weight"])
    ['0.weight', '1.weight']
    >>> without_wrappers(["module.weight", "gate.weight"])
    ['module.weight', 'gate.weight']
    """
    paths = [name.split(".") for name in names]
    if WRAPPERS.isdisjoint(part for path in paths for part in path):
        return list(names)
    root: _Tree = {}
    for path in paths:
        node = root
        for part in path:
            node = node.setdefault(part, {})

    def staying(path: list[str]) -> Iterator[str]:
        node = root
        for part in path[:-1]:
            if part not in WRAPPERS or len(node) > 1:
                yield part
            node = node[part]
        yield path[-1]

    return [".".join(staying(path)) for path in paths]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that a wrapper, or several, hold.

    >>> bare = nn.Linear(2, 2)
    >>> unwrapped(nn.ModuleDict({"module": bare})) is bare
    True
    """
    while len(children := dict(model.named_children())) == 1 and not list(model.named_parameters(recurse=False)):
        ((name, child),) = children.items()
        if name not in WRAPPERS:
            break
        model = child
    return model


def differences(live: Sequence[str], saved: Sequence[str]) -> str:
    """Return in lines which names only one of an optimizer and a checkpoint has, or where their orders part.

    >>> print(differences(["a", "b", "new"], ["b", "a", "old"]))
      only in the optimizer: 'new'
      only in the checkpoint: 'old'
    >>> print(differences(["a", "b"], ["b", "a"]))
      place 0: 'a' in the optimizer, 'b' in the checkpoint
      place 1: 'b' in the optimizer, 'a' in the checkpoint
    """
    ours, theirs = set(live), set(saved)
    missing = [name for name in live if name not in theirs]
    unexpected = [name for name in saved if name not in ours]
    if missing or unexpected:
        found = {"only in the optimizer": missing, "only in the checkpoint": unexpected}
        return "\n".join(f"  {where}: {some(names, 10)}" for where, names in found.items() if names)
    places = [place for place, (mine, other) in enumerate(zip(live, saved, strict=False)) if mine != other]
    lines = [f"  place {place}: '{live[place]}' in the optimizer, '{saved[place]}' in the checkpoint" for place in places[:10]]
    return "\n".join(lines + [f"  and {len(places) - 10} more"] * (len(places) > 10))
