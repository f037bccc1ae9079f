"""What is left of a weight: the decay of a running optimizer, under its scheduler, over the steps to come."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from weightdecay.analysis.units import share
from weightdecay.display.record import Record
from weightdecay.optim import hyperparameters, saved_state
from weightdecay.optim.as_ours import as_ours
from weightdecay.optim.optimizer import Optimizer
from weightdecay.optim.unwrap import bare, innermost
from weightdecay.update_rules.equation import Equation, step_on_floats
from weightdecay.validation import whole


@dataclass(frozen=True)
class Remaining(Record):
    """The share of a weight that the decay leaves, by parameter group; prints as a sentence."""

    steps: int
    groups: tuple[float, ...]
    """For each parameter group, the product of what its next steps keep."""

    def __str__(self) -> str:
        left = ", ".join(f"{share(each)} in group {index}" for index, each in enumerate(self.groups))
        return f"In the next {self.steps:,} steps the decay alone leaves, of a weight: {left}."


def remaining(optimizer: TorchOptimizer, scheduler: Any = None, steps: int = 1, *, every: int = 1) -> Remaining:
    """Compute what the decay alone leaves of a weight over the next steps, and change nothing.

    A copy of the scheduler is driven as a training loop would, on copies of the parameter groups: optimizer, scheduler, and so
    on. What is left is the product of 1 − s over the steps, each from the rule that runs. A cautious decay is taken to act in
    every step, the most that it can. SGD with L2 is taken to start with an empty momentum buffer.

    Args:
        optimizer: any of this package's, or torch.optim's of the same names, bare or as accelerate and Lightning wrap it. λ and
            lr are read in its own units.
        scheduler: the scheduler, several in the order in which they are stepped, or None for numbers that stay.
        steps: how many steps are to come.
        every: after how many steps of the optimizer the scheduler is stepped, such as the number of batches where that is done
            once an epoch.

    Raises:
        TypeError: an optimizer or scheduler that cannot be foreseen: ReduceLROnPlateau waits for losses.
        ValueError: the scheduler is of another optimizer; a decay is attached; a group whose weights do not all lose the same
            share (Adam with L2, L1).

    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = torch.optim.AdamW([w], lr=0.5, weight_decay=0.5)
    >>> scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    >>> remaining(optimizer, scheduler, steps=2).groups  # 0.75 · 0.875
    (0.65625,)
    >>> optimizer.param_groups[0]["lr"]
    0.5

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101; Bergsma et al. 2025, arXiv:2502.15938 (the same product).
    """
    steps, every = whole("steps", steps), whole("every", every)
    ours = as_ours(optimizer)
    walks: list[_Walk] = []
    for groups in ahead(optimizer, scheduler, steps, every=every, start=ours):
        walks = walks or [_Walk(ours, group, index) for index, group in enumerate(groups)]
        for walk in walks:
            walk.go()
    return Remaining(steps, tuple(walk.left() for walk in walks))


def ahead(
    optimizer: TorchOptimizer, scheduler: Any, steps: int, *, every: int = 1, start: TorchOptimizer | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Yield what the parameter groups will be at each of the next steps: copies, the same dicts every time.

    Args:
        optimizer: what the scheduler writes into; it is only read.
        scheduler: as in `remaining`.
        steps, every: as in `remaining`.
        start: an optimizer with the same groups, where they are to be copied from there.

    Raises:
        TypeError, ValueError: as in `remaining`.

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    >>> scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    >>> [group["lr"] for (group,) in ahead(optimizer, scheduler, 3)]
    [0.5, 0.25, 0.125]
    """
    optimizer = innermost(optimizer)
    stand_in = _StandIn(start or optimizer)
    schedulers = _copied(scheduler, optimizer, stand_in)
    for done in range(1, steps + 1):
        yield stand_in.param_groups
        if done % every == 0 and done < steps:
            for each in schedulers:
                each.step()


def copied(value: Any) -> Any:
    """Return a copy of what stands in a parameter group; what cannot be copied, such as a lock, no schedule writes to."""
    try:
        return copy.deepcopy(value)
    except Exception:  # whatever somebody's class raises
        return value


class _StandIn(TorchOptimizer):
    """Copies of the groups of an optimizer for a scheduler to write into; the tensors are not copied."""

    _opt_called = True

    def __init__(self, optimizer: TorchOptimizer) -> None:
        super().__init__([torch.zeros(0)], {})
        self.defaults = dict(optimizer.defaults)
        self.param_groups = [
            {key: value if key == "params" else copied(value) for key, value in group.items()}
            for group in optimizer.param_groups
        ]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


_StandIn.step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # the mark by which torch knows that steps are counted


def _copied(scheduler: Any, optimizer: TorchOptimizer, stand_in: _StandIn) -> list[Any]:
    """Return copies of schedulers that write into the stand-in."""
    given = [] if scheduler is None else list(scheduler) if isinstance(scheduler, list | tuple) else [scheduler]
    several = [bare(each) for each in given]
    targets = [getattr(each, "optimizer", None) for each in several]
    for each, target in zip(several, targets, strict=True):
        if isinstance(each, ReduceLROnPlateau):
            raise TypeError("ReduceLROnPlateau waits for losses that are not known yet: what it leaves cannot be foreseen")
        if not isinstance(each, LRScheduler) and not callable(getattr(each, "step", None)):
            raise TypeError(f"scheduler is a {type(each).__name__}, which has no step(): pass a scheduler of torch's kind")
        if innermost(target) is not optimizer:
            raise ValueError(f"the {type(each).__name__} is of another optimizer: pass the two that belong together")
    groups = zip(optimizer.param_groups, stand_in.param_groups, strict=True)
    memo: dict[int, Any] = {id(optimizer): stand_in, id(optimizer.param_groups): stand_in.param_groups}
    memo |= {id(target): stand_in for target in targets}  # some hold what is wrapped around it
    memo |= {id(group): twin for group, twin in groups}
    memo |= {id(param): param for group in optimizer.param_groups for param in group["params"]}
    return copy.deepcopy(several, memo)


class _Walk:
    """The weights of a group without a gradient, step by step: one of size 1 and others that have to stay in proportion."""

    _starts = (1.0, 2.0, -1.0)

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], index: int) -> None:
        self._optimizer, self._group, self._index = optimizer, group, index
        counts = (saved_state.count_in(optimizer.state.get(param)) for param in group["params"])
        self._before = int(next((count for count in counts if count is not None), 0))
        self._weights = list(self._starts)
        zeros = (0.0,) * len(optimizer.equation(group).direction.state)
        self._states: list[tuple[Any, ...]] = [zeros] * len(self._starts)
        self._done = 0

    def go(self) -> None:
        """Do a step at the group's present numbers, and count it in the group's schedules; an empty group has no weights."""
        if self._group["params"]:
            self._step()
        hyperparameters.count(self._group)

    def _step(self) -> None:
        equation, _, _ = self._optimizer.way(self._group)
        coupled = equation.penalty is not None
        self._done += 1
        found = self._optimizer.numbers(self._group, self._done + (0 if coupled else self._before))
        numbers = {kind: {name: _plain(x) for name, x in given.items()} for kind, given in found.items()}
        if not coupled and numbers["decay"].get("lam") == 0:
            return
        asks = any(rule.reductions for rule in (equation.rules if coupled else [equation.decay]))
        keeps = equation.decay.keeps or (
            coupled and (equation.direction.memory or (equation.penalty and equation.penalty.keeps))
        )
        if asks or keeps or (coupled and equation.direction.whole):
            self._refuse(equation)
        for place, w in enumerate(self._weights):
            if coupled:
                values = {"w": w, "g": 0, **dict(zip(equation.direction.state, self._states[place], strict=True))}
                self._weights[place], self._states[place] = step_on_floats(equation, numbers, values)
            else:  # no gradient to direct: u is 0, whatever the direction
                self._weights[place] = equation.decay.function(w, 0.0, **numbers["decay"])

    def left(self) -> float:
        """Return what is left of a weight of 1."""
        left = self._weights[0]
        if math.isnan(left):
            return left
        for start, w in zip(self._starts, self._weights, strict=True):
            if not math.isclose(w, start * left, rel_tol=1e-9, abs_tol=1e-290):
                self._refuse(self._optimizer.equation(self._group))
        return left

    def _refuse(self, equation: Equation) -> None:
        raise ValueError(
            f"param_groups[{self._index}] is trained with {equation}, which does not take the same share of every weight: no "
            "one number says what is left (weightdecay.decompose shows the next step weight by weight)"
        )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
