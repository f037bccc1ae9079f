"""Names of parameters without what wrappers put before them: DDP, FSDP, torch.compile, activation checkpointing."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from torch import nn

__all__ = ["some", "unwrapped", "without_wrappers"]

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


def some(names: Iterable[str]) -> str:
    """Return up to three names, quoted, and how many more there are.

    >>> some(["a", "b", "c", "d"])
    "'a', 'b', 'c' and 1 more"
    """
    first, *others = [f"'{name}'" for name in names]
    return ", ".join([first, *others[:2]]) + (f" and {len(others) - 2} more" if len(others) > 2 else "")
