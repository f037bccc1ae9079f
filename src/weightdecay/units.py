"""λ in its units: from one convention to another, to a half-life and a timescale, to what a run leaves, to another run.

Each number here is a shrink s in other words: the share of itself that a weight with a zero gradient loses in one step. The
shrinks are those of the rules that run, computed on fractions, so that no digit of a small one is lost.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from itertools import accumulate
from numbers import Real
from operator import mul
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from weightdecay.decomposition import as_ours
from weightdecay.interval import Interval
from weightdecay.optimizer import Optimizer
from weightdecay.rule import REGISTRY
from weightdecay.shrink import steps_to_halve
from weightdecay.step import Equation, step
from weightdecay.sweeps.task import cosine

UNITS = {
    "torch": "λ per unit of lr, beside the step: s = lr·λ",
    "independent": "λ per step at the peak lr, beside the step: s = λ",
    "coupled": "λ of L2 in SGD: s ≈ lr·λ·(1 − dampening)/(1 − momentum)",
    "sklearn": "α of Ridge's ‖y − Xw‖² + α‖w‖²",
    "half_life": "steps at the peak lr in which a weight halves",
    "shrink": "s, per step at the peak lr",
    "total_shrink": "the share that all the steps together take",
}
"""What `convert` converts between, with the shrink s that each means."""
_TIED = ("torch", "coupled", "sklearn")
"""The units that speak per unit of learning rate."""
_DOMAINS = {"half_life": "(0, inf]", "shrink": "[0, 1)", "total_shrink": "[0, 1)"}
_READERS = {
    "momentum": ("coupled", "sklearn"),
    "dampening": ("coupled", "sklearn"),
    "samples": ("sklearn",),
    "loss": ("sklearn",),
    "steps": ("total_shrink",),
    "lrs": ("total_shrink",),
}
"""Which units read an argument of `convert`; λ in torch's unit and per step take the lr between them."""
LOSSES = {"half_mean": (0.5, True), "mean": (1.0, True), "half_sum": (0.5, False), "sum": (1.0, False)}
"""By the name of a loss of squared errors: its factor, and whether it is divided by their number."""


@dataclass(frozen=True)
class _Record:
    """A result of several numbers."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data; what never ends is None."""
        return {key: _jsonable(value) for key, value in asdict(self).items()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# From one unit to another --------------------------------------------------------------------------------------------------


def convert(
    value: float,
    *,
    source: str,
    target: str,
    lr: float | None = None,
    momentum: float = 0.0,
    dampening: float = 0.0,
    steps: int | None = None,
    lrs: Iterable[float] | None = None,
    samples: float | None = None,
    loss: str = "half_mean",
) -> float:
    """Convert a weight decay from one unit to another.

    The units, each with the shrink s of a step that it means:

    * "torch": λ per unit of lr, as in torch's AdamW and `weightdecay.AdamW`, `SGDW`; s = lr·λ.
    * "independent": λ per step at the peak lr, as in the AdamW paper and the decay `independent`; s = λ. Exact beside "torch",
      at every step of every schedule.
    * "coupled": λ of the penalty ½λ‖w‖² in the gradient of SGD, as in torch's SGD. Without momentum s = lr·λ, exactly. With
      momentum the long-run shrink is s = lr·λ·(1 − dampening)/(1 − momentum) to first order only: a weight really loses
      more by a share of about s·momentum/(1 − momentum), and at most twice as much. Nesterov's momentum is the same to first
      order. Adam with L2 has no such number: there √v̂ divides the penalty.
    * "sklearn": Ridge's α in ‖y − Xw‖² + α‖w‖². The minimum is that of SGD with L2 whatever the momentum, exactly, and that of
      SGDW.
    * "half_life": steps at the peak lr; infinite for no decay.
    * "shrink": s itself, per step at the peak lr.
    * "total_shrink": the share in [0, 1) that a weight loses in all of `steps` steps at a constant lr, or over `lrs`.

    Args:
        value: what is to be converted, in the unit `source`.
        source, target: two of the units.
        lr: the learning rate, at its peak under a schedule; without it, the largest of `lrs`.
        momentum, dampening: SGD's, in [0, 1), for "coupled" and "sklearn".
        steps: the number of steps, for "total_shrink".
        lrs: instead of `steps`, the learning rate of each step.
        samples: over how many squared errors the loss is a mean: the N examples, times the outputs where there are several.
        loss: the loss beside the penalty, for "sklearn": "half_mean" (Σe²/2N, for which α = N·λ), "mean" (torch's MSELoss),
            "half_sum" or "sum"; sums are over all examples in each step.

    Raises:
        TypeError: an argument is missing for these units (it is named), or is not a number.
        ValueError: a value is NaN, negative or out of range; a step would take a whole weight or more; the momentum makes the
            weight swing through zero; an argument that none of the two units reads.

    >>> convert(0.01, source="torch", target="independent", lr=1e-3)
    1e-05
    >>> round(convert(5e-4, source="coupled", target="torch", momentum=0.9), 6)
    0.005
    >>> convert(0.5, source="sklearn", target="coupled", samples=100)
    0.005
    >>> round(convert(0.1, source="torch", target="half_life", lr=3e-4))
    23105

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101 (proposition 1); scikit-learn's user guide for Ridge.
    """
    return _convert(
        "value", value, source, target, lr=lr, momentum=momentum, dampening=dampening, steps=steps, lrs=lrs, samples=samples,
        loss=loss,
    )  # fmt: skip


def _convert(
    name: str,
    value: float,
    source: str,
    target: str,
    *,
    lr: float | None = None,
    momentum: float = 0.0,
    dampening: float = 0.0,
    steps: int | None = None,
    lrs: Iterable[float] | None = None,
    samples: float | None = None,
    loss: str = "half_mean",
) -> float:
    """Convert what the user has passed under this name."""
    between = _choice("source", source, UNITS), _choice("target", target, UNITS)
    number = _number(name, value, _DOMAINS.get(source, "[0, inf)"))
    rates = None if lrs is None else _rates(lrs)
    settings = _Settings(
        between,
        lr=_peak(None if lr is None else _number("lr", lr, "(0, inf)"), rates),
        momentum=_number("momentum", momentum, "[0, 1)"),
        dampening=_number("dampening", dampening, "[0, 1)"),
        steps=None if steps is None else _whole("steps", steps),
        lrs=rates,
        samples=None if samples is None else _number("samples", samples, "(0, inf)"),
        loss=_choice("loss", loss, LOSSES),
    )
    settings.check()
    if source == target:
        return number
    if {*between} <= {*_TIED}:
        found = settings.from_torch(target, settings.to_torch(source, number))
    else:
        shrink = settings.to_shrink(source, number)
        if shrink >= 1:
            at = "" if settings.lr is None else f" at lr={settings.lr:g}"
            raise ValueError(
                f"{name}={number:g} in the unit {source!r}{at} takes {shrink:g} of a weight in one step; it has to be below 1"
            )
        found = settings.from_shrink(target, shrink)
    if not math.isfinite(found) and target != "half_life":
        raise ValueError(f"{name}={number:g} in the unit {source!r} is beyond what a float holds in the unit {target!r}")
    settings.refuse_swinging(f"{name}={number:g}", {source: number, target: found})
    return found


@dataclass(frozen=True)
class _Settings:
    """The arguments of `convert`, each valid by itself, and the way from each unit to the shrink of a step and back."""

    between: tuple[str, str]
    lr: float | None
    momentum: float
    dampening: float
    steps: int | None = None
    lrs: tuple[float, ...] | None = None
    samples: float | None = None
    loss: str = "half_mean"

    def check(self) -> None:
        """Refuse what is missing, what would do nothing and what contradicts itself."""
        pair = f"{self.between[0]} to {self.between[1]}"
        missing = self._missing() if self.between[0] != self.between[1] else None
        if missing is not None:
            raise TypeError(f"from {pair} convert needs {missing}")
        if self.steps is not None and self.lrs is not None:
            raise ValueError(f"steps={self.steps} beside {len(self.lrs)} lrs: give one of the two")
        if self.samples is not None and not LOSSES[self.loss][1]:
            raise ValueError(f"samples={self.samples:g} does nothing for loss={self.loss!r}, which is a sum")
        for name, units in _READERS.items():
            if getattr(self, name) != getattr(_UNSET, name) and not set(units) & set(self.between):
                value = getattr(self, name)
                shown = f"{len(value)} lrs" if name == "lrs" else f"{name}={value!r}"
                reads = "reads" if len(units) == 1 else "read"
                raise ValueError(f"{shown} would do nothing from {pair}: only {' and '.join(units)} {reads} it")
        sgd = REGISTRY["direction", "sgd"]
        assert sgd.check is not None
        sgd.check(mu=self.momentum, dampening=self.dampening, nesterov=False)

    def _missing(self) -> str | None:
        if self.lr is None and len({unit in _TIED for unit in self.between}) == 2:
            return "lr=…, the learning rate (its peak, under a schedule)"
        if "total_shrink" in self.between and self.steps is None and self.lrs is None:
            return "steps=…, how many there are, or lrs=…, the learning rate of each"
        if "sklearn" in self.between and LOSSES[self.loss][1] and self.samples is None:
            return f"samples=…, over how many squared errors loss={self.loss!r} is a mean"
        return None

    def to_torch(self, unit: str, value: float) -> float:
        """Return λ per unit of lr."""
        if unit == "sklearn":
            unit, value = "coupled", value / self._alpha()
        return value * self._coupled() if unit == "coupled" else value

    def from_torch(self, unit: str, lam: float) -> float:
        """Return λ per unit of lr in another unit that is tied to the lr."""
        if unit == "torch":
            return lam
        coupled = lam / self._coupled()
        return coupled * self._alpha() if unit == "sklearn" else coupled

    def to_shrink(self, unit: str, value: float) -> float:
        """Return what a step at the peak lr takes, in whatever unit it is said."""
        if unit in _TIED:
            return _shrink("decoupled", self.to_torch(unit, value), self.lr)
        if unit == "independent":
            return _shrink("independent", value, 1.0)
        if unit == "half_life":
            return -math.expm1(-math.log(2) / value)
        return self._spread(value) if unit == "total_shrink" else value

    def from_shrink(self, unit: str, shrink: float) -> float:
        """Return what a step at the peak lr takes in another unit."""
        if unit in _TIED:
            return self.from_torch(unit, shrink / _shrink("decoupled", 1.0, self.lr))
        if unit == "independent":
            return shrink / _shrink("independent", 1.0, 1.0)
        if unit == "half_life":
            return steps_to_halve(shrink)
        return self._gathered(shrink) if unit == "total_shrink" else shrink

    def refuse_swinging(self, passed: str, found: dict[str, float]) -> None:
        """Refuse an L2 with a momentum under which no weight settles into a shrink."""
        of_minima = "sklearn" in found and set(found) <= set(_TIED)  # which a swinging weight reaches, too
        if self.lr is None or self.momentum == 0 or of_minima or not set(found) & {"coupled", "sklearn"}:
            return
        unit = "coupled" if "coupled" in found else "sklearn"
        lam = found[unit] if unit == "coupled" else found[unit] / self._alpha()
        if swings(self.lr, lam, self.momentum, self.dampening):
            raise ValueError(
                f"{passed} is an L2 of λ={lam:g}, which at lr={self.lr:g} and momentum={self.momentum:g} swings a weight "
                "through zero instead of shrinking it: no other unit describes it"
            )

    def _coupled(self) -> float:
        """Return λ per unit of lr over the λ of an L2 penalty: u over the penalty's pull, once the momentum has settled."""
        sgd, l2 = REGISTRY["direction", "sgd"].function, REGISTRY["penalty", "l2"].function
        pull = l2(Fraction(1), lam=Fraction(1))
        given = {"t": 2, "mu": Fraction(self.momentum), "dampening": Fraction(self.dampening)}
        _, empty = sgd(pull, Fraction(0), **given)
        _, full = sgd(pull, Fraction(1), **given)
        settled = empty / (1 - (full - empty))
        return float(sgd(pull, settled, **given)[0])

    def _alpha(self) -> float:
        """Return Ridge's α over the λ of ½λ‖w‖² beside this loss: the loss is Σe²·factor, and the penalty goes with it."""
        factor, is_mean = LOSSES[self.loss]
        return 0.5 / factor * (self.samples if is_mean and self.samples is not None else 1.0)

    def _gathered(self, shrink: float) -> float:
        """Return what all the steps take together."""
        return abs(math.expm1(self._logarithm(shrink)))

    def _logarithm(self, shrink: float) -> float:
        if self.lrs is None:
            assert self.steps is not None
            return self.steps * math.log1p(-shrink)
        return math.fsum(math.log1p(-shrink * share) for share in self._shares())

    def _shares(self) -> tuple[float, ...]:
        assert self.lrs is not None
        assert self.lr is not None
        return tuple(rate / self.lr for rate in self.lrs)

    def _spread(self, total: float) -> float:
        """Return the shrink at the peak lr with which all the steps together take this share."""
        wanted = math.log1p(-total)
        if self.lrs is None:
            assert self.steps is not None
            return -math.expm1(wanted / self.steps)
        # The logarithm is concave and falls: Newton's steps from a shrink that is too large come down to the root.
        shares = [share for share in self._shares() if share > 0]
        most = (1 - 2.0**-50) / max(shares)
        shrink = min(-wanted / math.fsum(shares), most)
        for _ in range(200):
            slope = math.fsum(share / (1 - shrink * share) for share in shares)
            better = min(shrink + (self._logarithm(shrink) - wanted) / slope, most)
            if abs(better - shrink) <= 2.0**-52 * shrink:
                break
            shrink = better
        return shrink


_UNSET = _Settings(("torch", "torch"), None, 0.0, 0.0)


def swings(lr: float, coupled: float, momentum: float, dampening: float = 0.0) -> bool:
    """Return whether SGD with this L2 (λ of ½λ‖w‖²) and momentum takes a weight through zero instead of shrinking it.

    A step without a gradient is linear in the weight and the buffer: they shrink if that matrix has two positive roots.

    >>> swings(0.1, 5e-4, 0.9), swings(0.1, 0.05, 0.9)
    (False, True)
    """
    equation = Equation(REGISTRY["penalty", "l2"], REGISTRY["direction", "sgd"], REGISTRY["decay", "none"])
    eta, lam, mu, less = (Fraction(x) for x in (lr, coupled, momentum, dampening))
    numbers = {
        "penalty": {"lam": lam},
        "direction": {"t": 2, "mu": mu, "dampening": less, "nesterov": False},
        "decay": {"eta": eta},
    }
    columns = [_float_step(equation, numbers, Fraction(1 - buffer), [Fraction(buffer)]) for buffer in (0, 1)]
    (a, (c,)), (b, (d,)) = columns
    trace, determinant = a + d, a * d - b * c
    return bool(trace < 0 or trace * trace < 4 * determinant)


def _float_step(equation: Equation, numbers: Mapping[str, Any], w: Any, state: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return the weight and the state after a step without a gradient, from the rules as they are typed."""
    values = {"w": w, "g": 0, **dict(zip(equation.direction.state, state, strict=True))}
    w, kept = step(equation, numbers, values, bind=lambda rule: rule, reduce=lambda *_: math.nan)
    return w, tuple(kept[name] for name in equation.direction.state)


def _shrink(decay: str, lam: float, lr: float | None) -> float:
    """Return what a decay takes of a weight in one step at the peak lr, to the last digit."""
    assert lr is not None
    if math.isinf(lam):
        return math.inf
    rule = REGISTRY["decay", decay]
    given = {"eta": Fraction(lr), "eta_max": Fraction(lr), "lam": Fraction(lam)}
    kept = rule.function(Fraction(1), Fraction(0), **{name: given[name] for name in rule.numbers})
    try:
        return float(1 - kept)
    except OverflowError:
        return math.inf


# Half-life and timescale --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timescale(_Record):
    """Over how long the weights average their own updates; prints as a sentence."""

    steps: float
    epochs: float | None

    def __str__(self) -> str:
        if math.isinf(self.steps):
            return "Without decay the weights sum up their updates and forget none."
        return f"The weights average their updates over about {_steps(self.steps, self.epochs)}."


def half_life(lr: float, weight_decay: float, *, source: str = "torch", momentum: float = 0.0, dampening: float = 0.0) -> float:
    """Return in how many steps a weight without a gradient halves.

    Args:
        lr: the learning rate, at which all these steps are done.
        weight_decay: λ in the unit `source`: per unit of lr unless you say otherwise.
        source: "torch", "independent" or "coupled", as in `convert`.
        momentum, dampening: SGD's, where the λ is coupled; the half-life is then one to first order.

    Raises:
        TypeError, ValueError: as `convert`.

    >>> round(half_life(1e-3, 0.1))
    6931
    >>> half_life(1e-3, 0.0)
    inf

    Source: a geometric series.
    """
    given = {"lr": lr, "momentum": momentum, "dampening": dampening}
    return _convert("weight_decay", weight_decay, _lambda("source", source), "half_life", **given)  # type: ignore[arg-type]


def timescale(
    lr: float,
    weight_decay: float,
    steps_per_epoch: float | None = None,
    *,
    source: str = "torch",
    momentum: float = 0.0,
    dampening: float = 0.0,
) -> Timescale:
    """Return τ = 1/s, over how many steps the weights average their updates: AdamW is a moving average of −u/λ.

    Good values were between one epoch and the whole run, over many sizes of model and data (Wang & Aitchison).

    Args:
        lr: the learning rate, at its peak under a schedule.
        weight_decay: λ in the unit `source`: per unit of lr unless you say otherwise.
        steps_per_epoch: to know τ in epochs as well.
        source, momentum, dampening: as in `half_life`.

    Raises:
        TypeError, ValueError: as `convert`.

    >>> print(timescale(3e-4, 0.1, steps_per_epoch=10_000))
    The weights average their updates over about 33,333 steps (3.33 epochs).

    Source: Wang & Aitchison 2024, arXiv:2405.13698.
    """
    given = {"lr": lr, "momentum": momentum, "dampening": dampening}
    shrink = _convert("weight_decay", weight_decay, _lambda("source", source), "shrink", **given)  # type: ignore[arg-type]
    epoch = None if steps_per_epoch is None else _number("steps_per_epoch", steps_per_epoch, "(0, inf)")
    steps = 1 / shrink if shrink else math.inf
    return Timescale(steps, None if epoch is None else steps / epoch)


# What a run leaves --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remaining(_Record):
    """The share of a weight that the decay leaves, by parameter group; prints as a sentence."""

    steps: int
    groups: tuple[float, ...]
    """For each parameter group, the product of what its next steps keep."""

    def __str__(self) -> str:
        left = ", ".join(f"{share:.3g} in group {index}" for index, share in enumerate(self.groups))
        return f"In the next {self.steps:,} steps the decay alone leaves, of a weight: {left}."


def remaining(optimizer: TorchOptimizer, scheduler: Any = None, steps: int = 1, *, every: int = 1) -> Remaining:
    """Compute what the decay alone leaves of a weight over the next steps, and change nothing.

    A copy of the scheduler is driven as a training loop would, on copies of the parameter groups: optimizer, scheduler, and so
    on. What is left is the product of 1 − s over the steps, each from the rule that runs. A cautious decay is taken to act in
    every step, the most that it can. SGD with L2 is taken to start with an empty momentum buffer.

    Args:
        optimizer: any of this package's, or torch.optim's SGD, Adam or AdamW. λ and lr are read in its own units.
        scheduler: the scheduler, several in the order in which they are stepped, or None for numbers that stay.
        steps: how many steps are to come.
        every: after how many steps of the optimizer the scheduler is stepped, such as the number of batches where that is done
            once an epoch.

    Raises:
        TypeError: an optimizer or scheduler that cannot be foreseen: ReduceLROnPlateau waits for losses.
        ValueError: the scheduler is of another optimizer; a group whose weights do not all lose the same share (Adam with L2,
            L1).

    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = torch.optim.AdamW([w], lr=0.5, weight_decay=0.5)
    >>> scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    >>> remaining(optimizer, scheduler, steps=2).groups  # 0.75 · 0.875
    (0.65625,)
    >>> optimizer.param_groups[0]["lr"]
    0.5

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101; Bergsma et al. 2025, arXiv:2502.15938 (the same product).
    """
    steps, every = _whole("steps", steps), _whole("every", every)
    ours = as_ours(optimizer)
    stand_in = _StandIn(ours)
    schedulers = _copied(scheduler, optimizer, stand_in)
    walks = [_Walk(ours, group, index) for index, group in enumerate(stand_in.param_groups)]
    for done in range(1, steps + 1):
        for walk in walks:
            walk.go()
        if done % every == 0 and done < steps:
            for each in schedulers:
                each.step()
    return Remaining(steps, tuple(walk.left() for walk in walks))


class _StandIn(TorchOptimizer):
    """Copies of the groups of an optimizer for a scheduler to write into; the tensors are not copied."""

    _opt_called = True

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__([torch.zeros(0)], {})
        self.defaults = dict(optimizer.defaults)
        self.param_groups = [
            {key: value if key == "params" else copy.deepcopy(value) for key, value in group.items()}
            for group in optimizer.param_groups
        ]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


_StandIn.step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # the mark by which torch knows that steps are counted


def _copied(scheduler: Any, optimizer: TorchOptimizer, stand_in: _StandIn) -> list[Any]:
    """Return copies of schedulers that write into the stand-in."""
    several = [] if scheduler is None else list(scheduler) if isinstance(scheduler, list | tuple) else [scheduler]
    for each in several:
        if isinstance(each, ReduceLROnPlateau):
            raise TypeError("ReduceLROnPlateau waits for losses that are not known yet: what it leaves cannot be foreseen")
        if not isinstance(each, LRScheduler) and not callable(getattr(each, "step", None)):
            raise TypeError(f"scheduler is a {type(each).__name__}, which has no step(): pass a scheduler of torch's kind")
        if getattr(each, "optimizer", None) is not optimizer:
            raise ValueError(f"the {type(each).__name__} is of another optimizer: pass the two that belong together")
    groups = zip(optimizer.param_groups, stand_in.param_groups, strict=True)
    memo: dict[int, Any] = {id(optimizer): stand_in, id(optimizer.param_groups): stand_in.param_groups}
    memo |= {id(group): twin for group, twin in groups}
    memo |= {id(param): param for group in optimizer.param_groups for param in group["params"]}
    return copy.deepcopy(several, memo)


class _Walk:
    """The weights of a group without a gradient, step by step: one of size 1 and others that have to stay in proportion."""

    _starts = (1.0, 2.0, -1.0)

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], index: int) -> None:
        self._optimizer, self._group, self._index = optimizer, group, index
        counts = (optimizer.state.get(param, {}).get("step") for param in group["params"])
        self._before = int(next((count for count in counts if count is not None), 0))
        self._weights = list(self._starts)
        zeros = (0.0,) * len(optimizer.equation(group).direction.state)
        self._states: list[tuple[Any, ...]] = [zeros] * len(self._starts)
        self._done = 0

    def go(self) -> None:
        """Do a step at the group's present numbers."""
        equation, _, _ = self._optimizer.way(self._group)
        coupled = equation.penalty is not None
        self._done += 1
        found = self._optimizer.numbers(self._group, self._done + (0 if coupled else self._before))
        numbers = {kind: {name: _plain(x) for name, x in given.items()} for kind, given in found.items()}
        if not coupled and numbers["decay"].get("lam") == 0:
            return
        asks = any(rule.reductions for rule in (equation.rules if coupled else [equation.decay]))
        if asks or len(equation.decay.elements) > 2 or (coupled and equation.direction.whole):
            self._refuse(equation)
        for place, w in enumerate(self._weights):
            if coupled:
                self._weights[place], self._states[place] = _float_step(equation, numbers, w, self._states[place])
            else:  # no gradient to direct: u is 0, whatever the direction
                self._weights[place] = equation.decay.function(w, 0.0, **numbers["decay"])

    def left(self) -> float:
        """Return what is left of a weight of 1."""
        left = self._weights[0]
        for start, w in zip(self._starts, self._weights, strict=True):
            if not math.isclose(w, start * left, rel_tol=1e-9, abs_tol=1e-290):
                self._refuse(self._optimizer.equation(self._group))
        return left

    def _refuse(self, equation: Equation) -> None:
        raise ValueError(
            f"param_groups[{self._index}] is trained with {equation}, which does not take the same share of every weight: no "
            "one number says what is left (weightdecay.decompose shows the next step weight by weight)"
        )


# To another run -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Normalized(_Record):
    """A λ and its normalised value, for a run of so many steps; prints as a sentence."""

    lambda_norm: float
    weight_decay: float
    """Per step at the peak lr: "independent" in `convert`."""
    steps: float

    def __str__(self) -> str:
        return (
            f"λ_norm {self.lambda_norm:.4g} is λ {self.weight_decay:.4g} per step at the peak lr, "
            f"in a run of {_steps(self.steps)}."
        )


def normalized(
    lambda_norm: float | None,
    batch_size: float,
    dataset_size: float,
    epochs: float,
    *,
    weight_decay: float | None = None,
) -> Normalized:
    """Scale a λ by the length of the run, λ = λ_norm·√(b/(B·T)) = λ_norm/√steps, or back.

    Args:
        lambda_norm: λ_norm, which has no unit; 0.025 to 0.05 did well for SGDW and AdamW on CIFAR-10 and ImageNet32x32. None to
            compute it from `weight_decay`.
        batch_size: b, in examples.
        dataset_size: B, the number of training examples.
        epochs: T, of the run, or of one cycle with warm restarts.
        weight_decay: instead of `lambda_norm`, λ per step at the peak lr: "independent" in `convert`, which makes torch's λ
            of it.

    Raises:
        TypeError: both or none of `lambda_norm` and `weight_decay`, or something that is not a number.
        ValueError: a number that is negative, zero where it may not be, or not finite.

    >>> print(normalized(0.05, batch_size=128, dataset_size=50_000, epochs=100))
    λ_norm 0.05 is λ 0.000253 per step at the peak lr, in a run of 39,062 steps.
    >>> normalized(None, batch_size=1, dataset_size=100, epochs=4, weight_decay=0.01).lambda_norm
    0.2

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, appendix B.1.
    """
    if (lambda_norm is None) == (weight_decay is None):
        raise TypeError("normalized needs lambda_norm, or None and weight_decay=… to compute it from: one of the two")
    sizes = {"batch_size": batch_size, "dataset_size": dataset_size, "epochs": epochs}
    batch, data, passes = (_number(name, value, "(0, inf)") for name, value in sizes.items())
    steps = data * passes / batch
    scale = math.sqrt(steps)
    if lambda_norm is not None:
        norm = _number("lambda_norm", lambda_norm, "[0, inf)")
        return Normalized(norm, norm / scale, steps)
    lam = _number("weight_decay", weight_decay, "[0, inf)")
    return Normalized(lam * scale, lam, steps)


_LAWS = {
    "epochs": (
        "the timescale in epochs, batch_size/(lr·λ·dataset_size), stays: the shrink of a step ∝ batch_size/dataset_size",
        "Wang & Aitchison 2024, arXiv:2405.13698",
    ),
    "run": (
        "the timescale as a fraction of the run stays: the shrink of a step ∝ batch_size/(dataset_size·epochs)",
        "Bergsma et al. 2025, arXiv:2505.13738",
    ),
    "normalized": (
        "λ_norm stays: the shrink of a step ∝ √(batch_size/(dataset_size·epochs))",
        "Loshchilov & Hutter 2019, arXiv:1711.05101",
    ),
}
_WIDTH = (
    "across widths lr ∝ 1/width and λ ∝ width, so that the shrink stays (hidden matrices under muP)",
    "Wang & Aitchison 2024, arXiv:2405.13698; Kosson et al. 2025, arXiv:2510.19093",
)


@dataclass(frozen=True)
class Transfer(_Record):
    """The λ and the lr of another run, with the law that gave them; prints as a sentence."""

    weight_decay: float
    """Per unit of lr."""
    lr: float
    weight_decay_before: float
    lr_before: float
    law: str
    source: str

    def __str__(self) -> str:
        return (
            f"λ {self.weight_decay_before:.4g} at lr {self.lr_before:.4g} becomes "
            f"λ {self.weight_decay:.4g} at lr {self.lr:.4g}: {self.law} ({self.source})."
        )


def transfer(
    weight_decay: float,
    lr: float,
    *,
    batch_size: tuple[float, float] | None = None,
    dataset_size: tuple[float, float] | None = None,
    epochs: tuple[float, float] | None = None,
    width: tuple[float, float] | None = None,
    new_lr: float | None = None,
    keep: str = "epochs",
) -> Transfer:
    """Carry a λ that was good in one run over to another.

    The law sets the shrink lr·λ of a step; λ then follows from the new lr. Each pair is (old, new), and what is not given
    stays the same.

    Args:
        weight_decay: the old λ, per unit of lr (torch's AdamW).
        lr: the old learning rate, at its peak.
        batch_size: examples or tokens per step.
        dataset_size: examples or tokens per epoch, in the same unit.
        epochs: passes over the data.
        width: of the hidden layers. lr falls as 1/width and λ rises as width, unless `new_lr` is given.
        new_lr: the new learning rate, where you choose it yourself; λ makes up for it.
        keep: what stays. "epochs": the timescale in epochs, for which the length of the run does not matter. "run": the
            timescale as a fraction of the run, which was best kept at equal tokens per parameter. "normalized": λ_norm of
            `normalized`.

    Raises:
        TypeError: nothing that changes is given, or something is not a number or not a pair.
        ValueError: a number that is negative, zero where it may not be, or not finite; a `keep` that is unknown; a step that
            would take a whole weight or more.

    >>> print(transfer(0.1, 3e-4, batch_size=(256, 512)))
    λ 0.1 at lr 0.0003 becomes λ 0.2 at lr 0.0003: the timescale in epochs, batch_size/(lr·λ·dataset_size), stays: the shrink of
    a step ∝ batch_size/dataset_size (Wang & Aitchison 2024, arXiv:2405.13698).
    >>> wider = transfer(0.1, 3e-4, width=(256, 1024))
    >>> wider.lr, wider.weight_decay
    (7.5e-05, 0.4)

    Source: Wang & Aitchison 2024, arXiv:2405.13698 ("epochs", width); Bergsma et al. 2025, arXiv:2505.13738 ("run");
    Loshchilov & Hutter 2019, arXiv:1711.05101 ("normalized"); Kosson et al. 2025, arXiv:2510.19093 (width).
    """
    law, source = _LAWS[_choice("keep", keep, _LAWS)]
    pairs = {"batch_size": batch_size, "dataset_size": dataset_size, "epochs": epochs, "width": width}
    if new_lr is None and not any(pair is not None for pair in pairs.values()):
        raise TypeError(f"transfer needs what changes: one of {', '.join(pairs)} as (old, new), or new_lr=…")
    ratio = {name: _ratio(name, pair) for name, pair in pairs.items()}
    shrink = _convert("weight_decay", weight_decay, "torch", "shrink", lr=lr)
    old_lr = _number("lr", lr, "(0, inf)")
    rate = old_lr / ratio["width"] if new_lr is None else _number("new_lr", new_lr, "(0, inf)")
    per_data = ratio["batch_size"] / ratio["dataset_size"]
    factors = {
        "epochs": per_data,
        "run": per_data / ratio["epochs"],
        "normalized": math.sqrt(per_data / ratio["epochs"]),
    }
    shrunk = shrink * factors[keep]
    if shrunk >= 1:
        raise ValueError(f"weight_decay={weight_decay!r} becomes a shrink of {shrunk:g} per step: it has to be less than 1")
    found = convert(shrunk, source="shrink", target="torch", lr=rate)
    if width is not None:
        law, source = f"{law}; {_WIDTH[0]}", "; ".join(dict.fromkeys([*source.split("; "), *_WIDTH[1].split("; ")]))
    return Transfer(found, rate, _number("weight_decay", weight_decay, "[0, inf)"), old_lr, law, source)


# A planned run ------------------------------------------------------------------------------------------------------------

SCHEDULES = ("constant", "linear", "cosine")
_LITTLE, _MUCH = 0.01, 0.1
_PICTURE = 48
_PARTLY = ("sklearn", "total_shrink")
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Plan(_Record):
    """What the decay of a planned run does to a weight without a gradient."""

    lr: float
    weight_decay: float
    """In the unit `convention`."""
    convention: str
    momentum: float
    steps: int
    steps_per_epoch: float | None
    schedule: str
    warmup: int
    final: float
    shrink: float
    """Per step at the peak lr."""
    half_life: float
    """In steps at the peak lr."""
    timescale: Timescale
    """At the peak lr."""
    runs: float
    """The timescale in runs of this length."""
    remaining: float
    """The share of a weight that is left at the end."""
    path: tuple[float, ...]
    """The share that is left at evenly spaced moments from the start to the end."""
    units: dict[str, float | None]
    """The same decay in every unit of `convert`; None where there is none."""
    lost: dict[str, float]
    """By dtype, the share of the decay that falls into steps in which rounding to nearest leaves every weight as it was."""
    warnings: dict[str, str]

    def picture(self) -> str:
        """Return the path as a row of bars: a full one is a whole weight.

        >>> plan(0.1, 0.5, steps=20).picture()
        '███████▇▇▇▇▇▇▇▆▆▆▆▆▆▆▆▆▅▅▅▅▅▅▅▅▅▅▄▄▄▄▄▄▄▄▄▄▄▄▄▄▃▃'
        """
        return "".join(_BARS[min(7, max(0, math.ceil(8 * abs(share)) - 1))] for share in self.path)


def plan(
    lr: float,
    weight_decay: float,
    steps: int,
    *,
    convention: str = "torch",
    momentum: float = 0.0,
    steps_per_epoch: float | None = None,
    schedule: str = "constant",
    warmup: int = 0,
    final: float = 0.0,
    samples: float | None = None,
    dtype: str = "float32",
) -> Plan:
    """Compute what the decay of a planned run will do: `weightdecay plan` prints it.

    Args:
        lr: the learning rate, at its peak.
        weight_decay: λ in the unit `convention`.
        steps: the length of the run.
        convention: "torch" (per unit of lr), "independent" (per step at the peak lr) or "coupled" (L2 in SGD).
        momentum: SGD's, for the coupled λ.
        steps_per_epoch: to know the timescale in epochs.
        schedule: "constant", or "linear" or "cosine" down from the peak after the warm-up.
        warmup: steps of a linear warm-up, the last of them at the peak.
        final: the share of the peak lr that a schedule comes down to, at the step after the last.
        samples: N of the mean loss ½e², to know Ridge's α.
        dtype: of the weights: "float32", "bfloat16" or "float16"; whether it loses the decay.

    Raises:
        TypeError, ValueError: a number or a word that cannot be meant.

    >>> found = plan(3e-4, 0.1, steps=10_000, schedule="cosine")
    >>> round(found.remaining, 3), round(found.half_life), sorted(found.warnings)
    (0.861, 23105, [])

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101; Wang & Aitchison 2024, arXiv:2405.13698.
    """
    rate, count = _number("lr", lr, "(0, inf)"), _whole("steps", steps)
    lam = _number("weight_decay", weight_decay, "[0, inf)")
    epoch = None if steps_per_epoch is None else _number("steps_per_epoch", steps_per_epoch, "(0, inf)")
    given = _Settings(
        between=("coupled", "sklearn"),
        lr=rate,
        momentum=_number("momentum", momentum, "[0, 1)"),
        dampening=0.0,
        steps=count,
        samples=None if samples is None else _number("samples", samples, "(0, inf)"),
    )
    shrink = given.to_shrink(_lambda("convention", convention), lam)
    shares = shares_of_peak(count, schedule, warmup, final)
    shrinks = [shrink * share for share in shares]
    kept = list(accumulate((1 - each for each in shrinks), mul, initial=1.0))
    steps_of = 1 / shrink if shrink else math.inf
    units: dict[str, float | None] = {unit: given.from_shrink(unit, shrink) for unit in UNITS if unit not in _PARTLY}
    units["sklearn"] = None if samples is None else given.from_shrink("sklearn", shrink)
    units["total_shrink"] = 1 - kept[-1] if shrink >= 1 else abs(math.expm1(math.fsum(math.log1p(-each) for each in shrinks)))
    swinging = given.momentum > 0 and swings(rate, given.from_shrink("coupled", shrink), given.momentum)
    if swinging and convention != "coupled":
        units["coupled"] = units["sklearn"] = None
    found = Plan(
        rate, lam, convention, given.momentum, count, epoch, schedule, int(warmup), float(final), shrink,
        given.from_shrink("half_life", shrink), Timescale(steps_of, None if epoch is None else steps_of / epoch),
        steps_of / count, kept[-1], tuple(kept[round(place * count / _PICTURE)] for place in range(_PICTURE + 1)),
        {unit: units[unit] for unit in UNITS}, {} if convention == "coupled" else _lost(shrinks), {},
    )  # fmt: skip
    swung = swinging and convention == "coupled"
    return replace(found, warnings=_warnings(found, _choice("dtype", dtype, _LOSING), math.fsum(shrinks), swung))


def shares_of_peak(steps: int, schedule: str = "constant", warmup: int = 0, final: float = 0.0) -> tuple[float, ...]:
    """Return the learning rate of each step, in shares of its peak.

    >>> shares_of_peak(5, "linear", warmup=2)
    (0.5, 1.0, 1.0, 0.6666666666666667, 0.33333333333333337)
    """
    _choice("schedule", schedule, SCHEDULES)
    count, rising = _whole("steps", steps), _whole("warmup", warmup, least=0)
    low = _number("final", final, "[0, 1]")
    if rising >= count:
        raise ValueError(f"warmup={rising} is not shorter than the run of {count} steps")
    falling = count - rising
    down: dict[str, Callable[[int], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda place: 1 - place / falling,
        "cosine": lambda place: cosine(place, falling),
    }
    return (
        *((place + 1) / rising for place in range(rising)),
        *(low + (1 - low) * down[schedule](place) for place in range(falling)),
    )


_LOSING = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _lost(shrinks: Sequence[float]) -> dict[str, float]:
    """Return which share of the decay is lost because w·(1 − s), rounded to nearest, is w: for s up to a quarter of eps."""
    every = math.fsum(shrinks) or 1.0
    edges = {name: torch.finfo(dtype).eps / 4 for name, dtype in _LOSING.items()}
    return {name: math.fsum(shrink for shrink in shrinks if shrink <= edge) / every for name, edge in edges.items()}


def _warnings(found: Plan, dtype: str, exponent: float, swings: bool) -> dict[str, str]:
    warnings = {}
    if found.shrink >= 1:
        what = "multiplies a weight by " + f"{1 - found.shrink:.3g}".replace("-", "−")
        warnings["destroys"] = f"a step at the peak lr {what}: the decay destroys the weights, whatever they learn"
    elif found.shrink >= _MUCH:
        warnings["destroys"] = (
            f"a step at the peak lr takes {found.shrink:.0%} of every weight: what was learnt {_MUCH**-1:.0f} steps ago is gone"
        )
    elif found.timescale.epochs is not None and found.timescale.epochs < 1:
        warnings["forgets"] = (
            f"the timescale is {found.timescale.epochs:.2g} epochs: the weights forget an example before they see it again"
        )
    if found.weight_decay == 0:
        warnings["no effect"] = "λ is 0: there is no decay"
    elif exponent < _LITTLE:
        warnings["no effect"] = (
            f"all {found.steps:,} steps together take {found.units['total_shrink']:.2g} of a weight: this λ cannot matter"
        )
    if swings:
        warnings["swings"] = (
            f"L2 with λ {found.weight_decay:g} swings the weights through zero at lr {found.lr:g} and momentum "
            f"{found.momentum:g}: the numbers here do not hold"
        )
    if found.lost.get(dtype, 0) >= _LITTLE:
        warnings["lost"] = f"{dtype} weights that are rounded to nearest lose {found.lost[dtype]:.0%} of the decay; " + (
            "only float64 would keep it" if dtype == "float32" else "this package's optimizers round stochastically and keep it"
        )
    return warnings


# Numbers that users pass --------------------------------------------------------------------------------------------------


def _number(name: str, value: Any, allowed: str) -> float:
    """Return a number as a float, or refuse it by its name."""
    plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise TypeError(f"{name}={value!r} is not a number; give a float such as {name}=0.1")
    try:
        number = float(plain)
    except OverflowError:
        number = math.nan
    if number not in Interval(allowed):
        raise ValueError(f"{name}={plain!r} is not a number in {allowed}")
    return number


def _whole(name: str, value: Any, least: int = 1) -> int:
    number = _number(name, value, "(-inf, inf)")
    if number != int(number) or number < least:
        raise ValueError(f"{name}={value!r} is not a whole number from {least} on")
    return int(number)


def _choice(name: str, value: Any, known: Iterable[str]) -> str:
    names = list(known)
    if value in names:
        return str(value)
    close = get_close_matches(str(value), names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
    raise ValueError(f"{name}={value!r} is unknown: {hint}")


def _lambda(name: str, unit: str) -> str:
    return _choice(name, unit, ("torch", "independent", "coupled"))


def _ratio(name: str, pair: Any) -> float:
    if pair is None:
        return 1.0
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise TypeError(f"{name}={pair!r} is not a pair: give {name}=(old, new)")
    old, new = (_number(name, value, "(0, inf)") for value in pair)
    return new / old


def _rates(lrs: Iterable[float]) -> tuple[float, ...]:
    rates = tuple(_number(f"lrs[{place}]", rate, "[0, inf)") for place, rate in enumerate(lrs))
    if not any(rates):
        raise ValueError(f"lrs has {len(rates)} learning rates, and none is above 0")
    return rates


def _peak(lr: float | None, lrs: tuple[float, ...] | None) -> float | None:
    if lrs is None:
        return lr
    if lr is not None and lr < max(lrs):
        raise ValueError(f"lr={lr:g} is not the peak: lrs goes up to {max(lrs):g}")
    return max(lrs) if lr is None else lr


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _steps(steps: float, epochs: float | None = None) -> str:
    count = f"{steps:,.0f}" if steps >= 100 else f"{steps:.3g}"
    return f"{count} steps" + ("" if epochs is None else f" ({epochs:,.3g} epochs)")
