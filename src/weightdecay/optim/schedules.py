"""Schedules: how large a learning rate or a λ is at a step, in shares of what it was given as.

A schedule is plain data, {"name": "cosine", "steps": 1000, "warmup": 0, "final": 0.0}, so that it can be saved, compared and
sent anywhere. Its step is the number of steps that were done before. The numbers may be tensors: a captured step computes its
share from a tensor that counts.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from weightdecay.validation import choice, number, whole

SCHEDULES = ("constant", "linear", "cosine")
"""Those that `share_of_peak` knows."""


def cosine(step: Any, steps: int) -> Any:
    """Return the share of the peak learning rate at a step, counted from 0: half a cosine from 1 down to 0.

    >>> cosine(0, 10), round(cosine(5, 10), 3)
    (1.0, 0.5)
    """
    angle = math.pi * step / steps
    return 0.5 * (1 + (torch.cos(angle) if isinstance(angle, Tensor) else math.cos(angle)))


# By the step --------------------------------------------------------------------------------------------------------------


def _constant(step: Any, *, warmup: int = 0) -> Any:
    return _warmed(step, warmup, 1.0)


def _linear(step: Any, *, steps: int, warmup: int = 0, final: float = 0.0) -> Any:
    falling = steps - warmup
    return _warmed(step, warmup, final + (1 - final) * (1 - _within(step - warmup, falling) / falling))


def _cosine(step: Any, *, steps: int, warmup: int = 0, final: float = 0.0) -> Any:
    falling = steps - warmup
    return _warmed(step, warmup, final + (1 - final) * cosine(_within(step - warmup, falling), falling))


def _step(step: Any, *, every: int, factor: float = 0.1) -> Any:
    return factor ** (step // every)


def _inverse_time(step: Any, *, steps: int) -> Any:
    return steps / (steps + step)


def _warmed(step: Any, warmup: int, share: Any) -> Any:
    """Return the share after a warm-up that rises in equal parts, the last of them to the peak."""
    if not warmup:
        return share
    if isinstance(step, Tensor):
        return torch.where(step < warmup, (step + 1) / warmup, share)
    return (step + 1) / warmup if step < warmup else share


def _within(step: Any, steps: int) -> Any:
    return step.clamp(0, steps) if isinstance(step, Tensor) else min(max(step, 0), steps)


# By the learning rate -----------------------------------------------------------------------------------------------------

_MOST = 2.0**100


def _constant_timescale(lr: Any, peak: Any) -> Any:
    """Return η_max/η, with which ηλ stays; 0 where η is 0, and a step has to leave the weights as they are."""
    if isinstance(lr, Tensor):
        return torch.where(lr > 0, (peak / torch.where(lr > 0, lr, 1.0)).clamp(max=_MOST), 0.0)
    return min(peak / lr, _MOST) if lr > 0 else 0.0


def _follow_lr(lr: Any, peak: Any) -> Any:
    return lr / peak


# As plain data ------------------------------------------------------------------------------------------------------------

_BY_STEP: Mapping[str, Callable[..., Any]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "step": _step,
    "inverse_time": _inverse_time,
}
_BY_LR: Mapping[str, Callable[[Any, Any], Any]] = {"constant_timescale": _constant_timescale, "follow_lr": _follow_lr}
NAMES = (*_BY_STEP, *_BY_LR)
_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "steps": whole,
    "every": whole,
    "warmup": lambda name, value: whole(name, value, least=0),
    "final": lambda name, value: number(name, value, "[0, inf)"),
    "factor": lambda name, value: number(name, value, "[0, inf)"),
}
_TAKES = {name: dict(inspect.signature(share).parameters) for name, share in _BY_STEP.items()}


def checked(what: str, schedule: Any, numbers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a schedule with all its numbers, or refuse it.

    Args:
        what: what the user calls it.
        schedule: a name, or a dict with a "name" and numbers.
        numbers: more of them.

    >>> checked("weight_decay_schedule", "linear", {"steps": 10})
    {'name': 'linear', 'steps': 10, 'warmup': 0, 'final': 0.0}
    """
    given = {"name": schedule} if isinstance(schedule, str) else schedule
    if not isinstance(given, Mapping):
        hint = "; a function cannot be saved there: weightdecay.WeightDecayScheduler takes one" if callable(given) else ""
        raise TypeError(f'{what}={schedule!r} is not a schedule such as {{"name": "cosine", "steps": 1000}}{hint}')
    try:
        return _filled({**given, **(numbers or {})})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}") from None


def _filled(given: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule's name and all its numbers."""
    if "name" not in given:
        raise TypeError(f"a schedule has a name: one of {', '.join(NAMES)}")
    name = choice("name", given.pop("name"), NAMES)
    takes = {key: of.default for key, of in _TAKES.get(name, {}).items() if key != "step"}
    for key in given:
        if key not in takes:
            raise TypeError(f"{name} takes no {key!r}: it takes {', '.join(takes) or 'no numbers'}")
    found: dict[str, Any] = {"name": name}
    for key, default in takes.items():
        if key not in given and default is inspect.Parameter.empty:
            raise TypeError(f"{name} needs {key}=…")
        found[key] = _CHECKS[key](key, given.get(key, default))
    if found.get("warmup", 0) >= found.get("steps", math.inf):
        raise ValueError(f"warmup={found['warmup']} is not shorter than steps={found['steps']}")
    return found


def counting(what: str, schedule: Any, device: torch.device | None = None) -> dict[str, Any]:
    """Return a schedule that keeps its own step, as a parameter group holds it, or refuse it.

    With a device the step is a tensor there. A schedule that looks at the learning rate has no step.

    >>> counting("weight_decay_schedule", {"name": "inverse_time", "steps": 100, "step": 7})
    {'name': 'inverse_time', 'steps': 100, 'step': 7}
    """
    given = dict(schedule) if isinstance(schedule, Mapping) else schedule
    step = given.pop("step", 0) if isinstance(given, dict) else 0
    found = checked(what, given)
    if by_lr(found):
        return found
    if device is None:
        return {**found, "step": whole(f"{what}'s step", step, least=0)}
    if not isinstance(step, Tensor):
        step = torch.tensor(whole(f"{what}'s step", step, least=0))
    return {**found, "step": step.to(device)}


def advanced(schedule: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule one step later: another dict, since a saved state may hold the old one."""
    if isinstance(schedule["step"], Tensor):
        schedule["step"].add_(1)
        return schedule
    return {**schedule, "step": schedule["step"] + 1}


def by_lr(schedule: Any) -> bool:
    """Return whether a schedule, checked or not, looks at the learning rate; the others look at the step."""
    name = schedule.get("name") if isinstance(schedule, Mapping) else schedule
    return isinstance(name, str) and name in _BY_LR


def share(schedule: Mapping[str, Any], *, step: Any = None, lr: Any = None, peak: Any = None) -> Any:
    """Return by what a schedule multiplies: at a step, or, if it looks at that, at a learning rate and its peak.

    >>> share({"name": "inverse_time", "steps": 100}, step=300), share({"name": "follow_lr"}, lr=0.125, peak=0.5)
    (0.25, 0.25)
    """
    if by_lr(schedule):
        return _BY_LR[schedule["name"]](lr, peak)
    return _BY_STEP[schedule["name"]](step, **{key: schedule[key] for key in _TAKES[schedule["name"]] if key != "step"})


def share_of_peak(steps: int, schedule: str = "constant", warmup: int = 0, final: float = 0.0) -> Callable[[float], float]:
    """Return what tells the learning rate of a step, counted from 0, in shares of its peak.

    >>> [share_of_peak(5, "linear", warmup=2)(step) for step in range(5)]
    [0.5, 1.0, 1.0, 0.6666666666666667, 0.33333333333333337]
    """
    name = choice("schedule", schedule, SCHEDULES)
    count, rising = whole("steps", steps), whole("warmup", warmup, least=0)
    low = number("final", final, "[0, 1]")
    if rising >= count:
        raise ValueError(f"warmup={rising} is not shorter than the run of {count} steps")
    numbers = {"steps": count, "warmup": rising, "final": low}
    given = {"name": name, **{key: value for key, value in numbers.items() if key in _TAKES[name]}}
    return lambda step: float(share(given, step=step))
