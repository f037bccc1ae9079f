"""The parameters of a model as roles and styles see them: each tensor once, with all its names and its owners."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from weightdecay.groups.names import WRAPPERS, unwrapped, without_wrappers

__all__ = ["Param", "params_of", "unheard"]

PARAMETRISED = re.compile(r"(?:^|\.)parametrizations\.([^.]+)\.original\d*$")


@dataclass(eq=False)
class Param:
    """One tensor as roles and styles see it."""

    names: list[str]  # in model order; more than one if the tensor is tied
    tensor: Tensor
    modules: list[nn.Module]  # its owners; none where only names are known
    siblings: Mapping[str, Tensor]  # what stands beside the first name, itself too, by the last part of the name
    above: tuple[nn.Module, ...] = ()  # the modules on the way to the first name, the model itself not among them
    asked: str | None = None  # who asks that it shall not decay: a flag on the tensor, or a method of a module
    asked_by_model: bool = False  # whether the method of the model itself asks, and of no module inside it
    scale_invariant: bool = False

    @property
    def name(self) -> str:
        return self.names[0]

    @cached_property
    def path(self) -> list[str]:
        return self.name.split(".")

    @cached_property
    def leaf(self) -> str:
        """Return the last part of the name; a part of a parametrised tensor goes by the name of what it makes."""
        made = PARAMETRISED.search(self.name)
        return made[1] if made else self.path[-1]

    @property
    def ndim(self) -> int:
        """Return the number of axes; a part of a parametrised tensor has those of what it makes."""
        parts = self.siblings.values() if PARAMETRISED.search(self.name) else [self.tensor]
        return max(part.ndim for part in parts)

    @property
    def one_vector(self) -> bool:
        """Tell whether at most one axis is longer than 1, as in the shapes (n,), (1, 1, n) and (1, n, 1, 1)."""
        return sum(length > 1 for length in self.tensor.shape) <= 1


def params_of(model: nn.Module | Iterable[tuple[str, Tensor]]) -> list[Param]:
    """Return every tensor of a model, or of (name, parameter) pairs, once and in model order.

    Raises:
        TypeError: the model is neither.
        ValueError: a parameter is lazy, a name is given twice, or FSDP1 has flattened the parameters.

    >>> [param.names for param in params_of(nn.Linear(2, 2))]
    [['weight'], ['bias']]
    """
    if isinstance(model, nn.Module):
        _refuse_flattened(model)
        model = unwrapped(model)
        modules = dict(model.named_modules(remove_duplicate=False))
        found = list(_walk(modules))
        requests = list(_requests(modules))
    else:
        modules, requests, found = {}, [], list(_pairs(model))
    beside: dict[str, dict[str, Tensor]] = defaultdict(dict)
    params: dict[int, Param] = {}
    for name, (raw, tensor, owners) in zip(without_wrappers([name for name, _, _ in found]), found, strict=True):
        path, _, leaf = name.rpartition(".")
        if is_lazy(tensor):
            raise ValueError(f"'{name}' is lazy and has no shape yet. Run the model once, then build the groups.")
        if leaf in beside[path]:
            raise ValueError(f"'{name}' is given twice. Pass each name once, as model.named_parameters() does.")
        beside[path][leaf] = tensor
        param = params.get(id(tensor))
        if param is None:
            param = params[id(tensor)] = Param([], tensor, [], beside[path], _above(raw, modules))
            param.asked = "its _no_weight_decay" if getattr(tensor, "_no_weight_decay", False) else None
        param.names.append(name)
        param.modules.extend(owners)
        for request in requests:
            if request.holds(raw):
                param.asked = param.asked or request.who
                param.asked_by_model |= request.path == "" and len(param.names) == 1
    return list(params.values())


@dataclass(frozen=True)
class _Request:
    """What the no_weight_decay() of a module returns: names inside it, or patterns of names as in *.pos_embed."""

    path: str
    who: str
    patterns: tuple[str, ...]

    def holds(self, name: str) -> bool:
        if self.path and not name.startswith(f"{self.path}."):
            return False
        inside = name.removeprefix(f"{self.path}.") if self.path else name
        bare = ".".join(part for part in inside.split(".") if part not in WRAPPERS)
        return any(fnmatchcase(spelling, pattern) for spelling in {inside, bare} for pattern in self.patterns)


def _requests(modules: Mapping[str, nn.Module]) -> Iterator[_Request]:
    for path, module in modules.items():
        method = getattr(module, "no_weight_decay", None)
        if callable(method):
            asking = getattr(method, "__self__", module)  # a compiled module hands on the method of the one that it holds
            who = f"{type(asking).__name__}.no_weight_decay()"
            names = method()
            if isinstance(names, str) or not isinstance(names, Iterable) or not all(isinstance(n, str) for n in names):
                raise TypeError(f"{who} must return a collection of names, got {names!r}.")
            yield _Request(path, who, tuple(names))


def unheard(model: nn.Module) -> list[tuple[str, tuple[str, ...]]]:
    """Return who names parameters that shall not decay, and the names, where not one of them is a parameter's.

    >>> class Old(nn.Linear):
    ...     def no_weight_decay(self):
    ...         return {"pos_embed"}
    >>> unheard(Old(2, 2))
    [('Old.no_weight_decay()', ('pos_embed',))]
    """
    modules = dict(unwrapped(model).named_modules(remove_duplicate=False))
    raw = [name for name, _, _ in _walk(modules)]
    requests = [each for each in _requests(modules) if each.patterns]
    return [(each.who, each.patterns) for each in requests if not any(map(each.holds, raw))]


def _refuse_flattened(model: nn.Module) -> None:
    if any(getattr(module, "_flat_param", None) is not None for module in model.modules()):
        raise ValueError(
            "FullyShardedDataParallel has flattened the parameters, so their shapes are gone. Use fully_shard, or "
            "build the groups before wrapping (with use_orig_params=True the parameters stay the same objects)."
        )


def _above(name: str, modules: Mapping[str, nn.Module]) -> tuple[nn.Module, ...]:
    parts = name.split(".")
    paths = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    return tuple(modules[path] for path in paths if path in modules)


def _walk(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor, list[nn.Module]]]:
    for path, module in modules.items():
        made_by = path.rpartition("parametrizations.")[0].removesuffix(".")
        owner = modules[made_by] if isinstance(module, ParametrizationList) else module
        for leaf, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            yield f"{path}.{leaf}" if path else leaf, tensor, [owner]


def _pairs(pairs: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor, list[nn.Module]]]:
    for pair in pairs if isinstance(pairs, Iterable) else [pairs]:
        match pair:
            case (str() as name, Tensor() as tensor):
                yield name, tensor, []
            case _:
                got = type(pair).__name__
                raise TypeError(f"model must be a module or (name, parameter) pairs, got {got}. Pass the model itself.")
