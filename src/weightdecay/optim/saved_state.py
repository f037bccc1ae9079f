"""What a state dict holds, read with care: its groups, their names, and each parameter's step count, numbers and moments.

A checkpoint may come from another version, another optimizer or a broken file. What cannot be gone on from is refused here,
with the place, before anything is put into an optimizer.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from weightdecay.backends import eager
from weightdecay.display.table import some
from weightdecay.update_rules.registry import REGISTRY

_LARGEST = torch.finfo(torch.float32).max
_ORDINARY = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def refuse_others(state_dict: Any) -> None:
    """Refuse what is no state dict of an optimizer, with what it is."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        found = f"has {some(map(str, state_dict))}" if isinstance(state_dict, Mapping) else f"is {kind(state_dict)}"
        raise TypeError(
            f"state_dict {found}, not the 'state' and 'param_groups' of an optimizer; pass its part of the checkpoint"
        )


def parts(state_dict: Any) -> tuple[list[Mapping[str, Any]], Mapping[Any, Any]]:
    """Return the groups and the state of an optimizer's state dict, or refuse what is none.

    Raises:
        TypeError: it is no state dict of an optimizer.
        ValueError: a group is malformed.
    """
    refuse_others(state_dict)
    groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, list | tuple):
        raise ValueError(f"the param_groups of the loaded state are {kind(groups)}, not a list")
    if not isinstance(state, Mapping):
        raise ValueError(f"the 'state' of the loaded state is {kind(state)}, not a dict")
    for index, group in enumerate(groups):
        _check_group(group, f"param_groups[{index}] of the loaded state")
    return list(groups), state


def _check_group(group: Any, where: str) -> None:
    if not isinstance(group, Mapping):
        raise ValueError(f"{where} is {kind(group)}, not a dict")
    if "params" not in group:
        raise ValueError(f"{where} has no 'params'")
    keys = group["params"]
    if not isinstance(keys, list | tuple):
        raise ValueError(f"the 'params' of {where} are {kind(keys)}, not a list")
    for key in keys:
        if not isinstance(key, int | str) or isinstance(key, bool):
            raise ValueError(f"the 'params' of {where} hold {kind(key)}, not numbers or names of parameters")
    for key, value in group.items():
        if not isinstance(key, str):
            raise ValueError(f"{where} has the key {key!r}, which is no name of a hyper-parameter")
        for each in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Tensor) and (why := _why_no_values(each)):
                raise ValueError(f"{key} in {where} {why}: load the checkpoint with map_location='cpu'")
    if isinstance(group.get("lr"), Tensor) and group["lr"].numel() != 1:
        raise ValueError(f"lr in {where} is {kind(group['lr'])}, not one number")
    names_of(group, where)


def names_of(group: Mapping[str, Any], where: str) -> list[str]:
    """Return the names of a group's parameters, in their order; none if it has none.

    Those of a state dict by torch's get_optimizer_state_dict stand in 'params', too. There they are more than in
    'param_names' where a flat parameter stands for several.
    """
    names, keys = group.get("param_names"), group["params"]
    keyed = [key for key in keys if isinstance(key, str)]
    if names is None or (isinstance(names, Sequence) and not names):
        return keyed if len(keyed) == len(keys) else []
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"the 'param_names' of {where} are {kind(names)}, not a list of names")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"the 'param_names' of {where} hold {kind(name)}, not names")
    if len(names) != len(keys):
        if len(keyed) == len(keys):
            return keyed
        return []  # somebody appended to a group; torch pairs parameters by place
    return list(names)


def kind(value: Any) -> str:
    """Return what a value is, for a message.

    >>> kind(None), kind([1]), kind(2.5), kind(torch.ones(2))
    ('None', 'a list', '2.5', 'a torch.float32 tensor of shape (2,)')
    """
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def step_count(value: Any, what: str) -> float:
    """Return how many steps a checkpoint counts: one finite whole number from 0 on, whatever holds it.

    >>> step_count(torch.tensor([3.0]), "the loaded step of 'w'"), step_count(2, "…")
    (3.0, 2.0)
    """
    found = _real(value)
    if found is None or not 0 <= found <= _LARGEST or found != math.floor(found):
        is_number = isinstance(value, Tensor) and value.numel() == 1 and found is not None
        raise ValueError(f"{what} is {found if is_number else kind(value)}, not one whole number of steps from 0 on")
    return found


def number(value: Any, what: str) -> float:
    """Return the one real number that a value is, infinite or NaN too: a run that has diverged may be saved."""
    found = _real(value)
    if found is None:
        raise ValueError(f"{what} is {kind(value)}, not one real number")
    return found


def _real(value: Any) -> float | None:
    """Return a Python or NumPy number, or that of a tensor of one element, as a float; None if it is none."""
    if isinstance(value, Tensor):
        if (
            value.numel() != 1
            or value.is_complex()
            or value.dtype == torch.bool
            or not _is_dense(value)
            or _why_no_values(value)
        ):
            return None
        value = value.detach().to("cpu", torch.float64).item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def tensor(value: Any, what: str, shape: Sequence[int] | None = None) -> Tensor:
    """Return a value if it is a dense tensor, of this shape, or refuse it."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} is {kind(value)}, not a tensor")
    if shape is not None and value.shape != torch.Size(shape):
        raise ValueError(f"{what} has shape {tuple(value.shape)}, not {tuple(shape)}")
    if not _is_dense(value):
        raise ValueError(f"{what} is {'quantized' if value.is_quantized else value.layout}, not a dense tensor")
    return value


def moment(value: Any, what: str, shape: Sequence[int], param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of what a checkpoint holds for every element, on the parameter's device and in the moments' dtype."""
    found = tensor(value, what, shape)
    if found.is_complex() != dtype.is_complex:
        raise ValueError(f"{what} is a {found.dtype} tensor, and the parameter's moments are {dtype}")
    copy_: Tensor = copied(found, what, param, dtype)
    return copy_


def copied(value: Any, what: str, param: Tensor, dtype: torch.dtype | None = None) -> Any:
    """Return a copy on the parameter's device, of a tensor in this dtype."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    refuse_without_values(value, what, param)
    return value.detach().to(param.device, dtype or value.dtype, copy=True)


def refuse_without_values(value: Tensor, what: str, param: Tensor) -> None:
    """Refuse a tensor that is on the meta device, where its parameter is not, or whose memory has been freed."""
    if why := _why_no_values(value, param):
        raise ValueError(f"{what} {why}: load the checkpoint with map_location='cpu'")


def _is_dense(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_quantized


def _why_no_values(value: Tensor, param: Tensor | None = None) -> str | None:
    """Return why a tensor's values cannot be read; None if they can, or if those of the parameter cannot either."""
    if value.device.type == "meta":
        return None if param is not None and param.device.type == "meta" else "is on the meta device and has no values"
    if type(value) in _ORDINARY and value.layout == torch.strided and value.numel():
        last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        if (value.storage_offset() + last + 1) * value.itemsize > value.untyped_storage().nbytes():
            return "has had its memory freed"
    return None


def moment_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype in which a parameter's moments are kept: that of the computation."""
    return param.dtype if param.is_complex() else eager.compute_dtype(param.dtype)


def name_of(group: Mapping[str, Any], index: int, place: int) -> str:
    """Return what to call a parameter in a message: its name where the group knows it."""
    known = known_name(group, place)
    return f"param_groups[{index}]['params'][{place}]" if known is None else repr(known)


def known_name(group: Mapping[str, Any], place: int) -> str | None:
    """Return the name of a parameter that stands in its group; None if there is none, whatever else stands there."""
    names = group.get("param_names")
    if not isinstance(names, Sequence) or isinstance(names, str) or place >= len(names):
        return None
    return str(names[place])


def known_names(group: Mapping[str, Any]) -> list[str]:
    """Return the names of a group's parameters, in their order; none if what stands there does not fit them."""
    names = group.get("param_names")
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != len(group["params"]):
        return []
    return list(map(str, names))


def count_in(state: Any) -> float | None:
    """Return how many steps the state of a parameter counts; None where no count stands there, whatever else does."""
    value = state.get("step") if isinstance(state, Mapping) else None
    if isinstance(value, Tensor):
        value = None if value.numel() != 1 or value.is_meta or value.is_complex() else value.item()
    count = float(value) if isinstance(value, int | float) else math.nan
    return count if math.isfinite(count) and count >= 0 else None


def of_another_shape(optimizer: torch.optim.Optimizer, state: Any, shape: Sequence[int]) -> dict[str, Tensor]:
    """Return which tensors of a parameter's state, by their keys, belong to a parameter of another shape.

    A tensor has the shape that a rule declares for its key (Adafactor's row and column means have their own), or else
    that of the parameter; single numbers aside. Other people's optimizers may keep anything: of theirs only the keys that
    rules declare are compared. LBFGS keeps what is of all parameters together.
    """
    if not isinstance(state, Mapping) or isinstance(optimizer, torch.optim.LBFGS):
        return {}
    size = tuple(shape)
    declared = _declared_shapes(size)
    wrong = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or key in {"step", *numbers()}:
            continue
        if key in declared:
            fits = tuple(value.shape) in declared[key] or (not declared[key] and value.ndim == 0)
        else:
            fits = value.ndim == 0 or tuple(value.shape) == size or not is_known(optimizer)
        if not fits:
            wrong[key] = value
    return wrong


def _declared_shapes(size: tuple[int, ...]) -> dict[str, set[tuple[int, ...]]]:
    """Return the shapes that rules declare for a parameter's state, by key; none where it would not be kept at all."""
    declared: dict[str, set[tuple[int, ...]]] = {}
    for rule in REGISTRY.values():
        for each in rule.keeps:
            if each.per_element:
                shapes = declared.setdefault(each.key, set())
                if (shape := each.shape_of(size)) is not None:
                    shapes.add(shape)
    return declared


def moments() -> set[str]:
    """Return the keys under which rules keep a value for every element of a parameter, in the parameter's shape."""
    return {each.key for rule in REGISTRY.values() for each in rule.keeps if each.per_element and each.shape is None}


def numbers() -> set[str]:
    """Return the keys under which rules keep one number for a parameter."""
    return {each.key for rule in REGISTRY.values() for each in rule.keeps if not each.per_element}


def is_known(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer is one of torch's or of this package, or a subclass of one."""
    classes = (cls.__module__ for cls in type(optimizer).__mro__ if cls not in (torch.optim.Optimizer, object))
    return any(module.startswith(("torch.optim.", "weightdecay.")) for module in classes)
