"""Steps of a running optimizer on copies of pieces of its tensors."""

import copy
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer as TorchOptimizer

from weightdecay.analysis.remaining import copied
from weightdecay.optim.attach import LAMBDA, PENDING, Attachment, attach
from weightdecay.optim.hyperparameters import SCHEDULES

_SIDE = 64
"""How long the axes of a piece are at most."""
_VALUES = 256
"""How many values a piece has at least: rounding at random moves some of so many."""
_PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class Step:
    """One step of a copy, on pieces of a tensor: where it started, where it went, and whether the state took note."""

    before: Tensor
    after: Tensor
    remembers: bool
    """Whether a buffer that has the piece's shape is not zero, or an attached decay has kept what it could not write."""

    @property
    def moved(self) -> float:
        """Return the share of the values that changed a bit, of those that are not zero."""
        nonzero = self.before != 0
        return (self.before != self.after)[nonzero].float().mean().item() if nonzero.any() else 0.0

    @property
    def length(self) -> float:
        """Return the step's length over the length of the start."""
        size = self.before.double().norm().item()
        return (self.after.double() - self.before.double()).norm().item() / size if size else math.nan


def piece_of(tensor: Tensor) -> Tensor:
    """Return a copy of a corner of a tensor, on the CPU, and of a small one several on top of each other."""
    local = tensor.detach()
    local = local.to_local() if hasattr(local, "to_local") else local
    for axis, length in enumerate(local.shape):
        local = local.narrow(axis, 0, min(length, _SIDE))
    times = math.ceil(_VALUES / local.numel()) if local.ndim and local.numel() else 1
    return torch.cat([local] * times).to("cpu", copy=True) if times > 1 else local.to("cpu", copy=True)


def replay(optimizer: TorchOptimizer, group: Mapping[str, Any], tensor: Tensor, gradient: float, **changes: Any) -> Step | None:
    """Do a first step of the same optimizer on a piece of a tensor, or return None where a copy of it does not run.

    Args:
        optimizer: what is copied, its state aside.
        group: the parameter group of the tensor.
        gradient: what every value of the gradient is.
        changes: other numbers for the group, such as lr. A weight_decay is λ wherever the group has it, and no schedule
            changes it.
    """
    if tensor.is_meta or tensor.is_complex() or not tensor.numel():
        return None
    try:
        before = piece_of(tensor)
        param = nn.Parameter(before.clone())
        param.grad = torch.full_like(before, gradient)
        twin = _twin(optimizer, group, param, changes)
        twin.step()
    except Exception:  # whatever somebody's tensor or optimizer raises says that this copy does not run
        return None
    state = twin.state.get(param, {})
    held = [each for each in state.values() if isinstance(each, Tensor) and each.shape == before.shape]
    return Step(before, param.detach(), bool(state.get(PENDING)) or any(bool(each.any()) for each in held))


def _twin(optimizer: TorchOptimizer, group: Mapping[str, Any], param: Tensor, changes: Mapping[str, Any]) -> TorchOptimizer:
    """Return a copy of an optimizer, without state, that trains one tensor with the numbers of a group."""
    settings = {key: copied(value) for key, value in group.items() if key not in ("params", "param_names")}
    settings.update(changes)
    for key in ("capturable", "fused", "foreach"):
        if settings.get(key):
            settings[key] = False if key == "capturable" else None
    attachment = Attachment.of(optimizer)
    if "weight_decay" in changes:
        settings = {key: value for key, value in settings.items() if key not in SCHEDULES.values()}
        if attachment is not None:
            settings |= {LAMBDA: changes["weight_decay"], "weight_decay": 0.0}
    twin = _empty(optimizer, {**settings, "params": [param]})
    if attachment is not None:
        attach(twin, attachment.decay.name, rounding=attachment.rounding, seed=attachment.seed, **attachment.numbers)
    return twin


def _empty(optimizer: TorchOptimizer, group: dict[str, Any]) -> TorchOptimizer:
    """Return an optimizer of the same class with this one group and no state, as unpickling would make it."""
    twin = object.__new__(type(optimizer))
    own = {key: value for key, value in vars(optimizer).items() if isinstance(value, _PLAIN)}
    twin.__dict__.update(own)
    twin.__setstate__(
        {**own, "defaults": copy.deepcopy(dict(optimizer.defaults)), "state": defaultdict(dict), "param_groups": [group]}
    )
    return twin
