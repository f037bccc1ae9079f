"""Names of parameters without what wrappers put before them: DDP, FSDP, torch.compile, activation checkpointing."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from torch import nn

__all__ = ["WRAPPERS", "differences", "some", "unwrapped", "without_wrappers"]

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def without_wrappers(names: Sequence[str]) -> list[str]:
    """Drop the parts of wrappers, wherever all names with one beginning go through that one part.

    A wrapper is the only way to what it holds, so no two names become equal without it.

    >>> without_wrappers(["module.0._orig_mod.weight", "module.1.weight"])
    ['0.weight', '1.weight']
    >>> without_wrappers(["module.weight", "gate.weight"])
    ['module.weight', 'gate.weight']
    """
    paths = [tuple(name.split(".")) for name in names]
    beside: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in paths:
        for depth, part in enumerate(path):
            beside[path[:depth]].add(part)

    def stays(path: tuple[str, ...], depth: int) -> bool:
        return path[depth] not in WRAPPERS or depth + 1 == len(path) or len(beside[path[:depth]]) > 1

    return [".".join(part for depth, part in enumerate(path) if stays(path, depth)) for path in paths]


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


def some(names: Iterable[str], most: int = 3) -> str:
    """Return the first names, quoted, and how many more there are.

    >>> some(["a", "b", "c", "d"])
    "'a', 'b', 'c' and 1 more"
    """
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most} more" if len(quoted) > most else "")


def differences(live: Sequence[str], saved: Sequence[str]) -> str:
    """Return in lines which names only one of an optimizer and a checkpoint has, or where their orders part.

    >>> print(differences(["a", "b", "new"], ["b", "a", "old"]))
      only in the optimizer: 'new'
      only in the checkpoint: 'old'
    >>> print(differences(["a", "b"], ["b", "a"]))
      place 0: 'a' in the optimizer, 'b' in the checkpoint
      place 1: 'b' in the optimizer, 'a' in the checkpoint
    """
    missing = [name for name in live if name not in set(saved)]
    unexpected = [name for name in saved if name not in set(live)]
    if missing or unexpected:
        found = {"only in the optimizer": missing, "only in the checkpoint": unexpected}
        return "\n".join(f"  {where}: {some(names, 10)}" for where, names in found.items() if names)
    places = [place for place, (ours, theirs) in enumerate(zip(live, saved, strict=False)) if ours != theirs]
    lines = [f"  place {place}: '{live[place]}' in the optimizer, '{saved[place]}' in the checkpoint" for place in places[:10]]
    return "\n".join(lines + [f"  and {len(places) - 10} more"] * (len(places) > 10))
