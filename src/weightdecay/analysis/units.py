"""λ in its units: from one convention to another, to a half-life and a timescale, to what a run leaves, to another run.

Each number here is a shrink s in other words: the share of itself that a weight with a zero gradient loses in one step. The
shrinks are those of the rules that run, computed on fractions, so that no digit of a small one is lost.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from weightdecay.display.record import Record
from weightdecay.update_rules.equation import Equation, step_on_floats
from weightdecay.update_rules.registry import REGISTRY
from weightdecay.update_rules.traits import at_rest, steps_to_halve
from weightdecay.validation import choice, number, whole

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


def share(left: float, digits: int = 3) -> str:
    """Return a share that is left in words, with as many digits as it takes to see that something is missing.

    >>> share(0.86071), share(0.9997), share(1.0), share(1 - 2e-13)
    ('0.861', '0.9997', '1', '1')
    """
    missing = 1 - left
    if float(f"{left:.{digits}g}") != 1 or abs(missing) < 1e-9:
        return f"{left:.{digits}g}"
    return f"{left:.{-math.floor(math.log10(abs(missing)))}f}"


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
    return convert_named(
        "value", value, source, target, lr=lr, momentum=momentum, dampening=dampening, steps=steps, lrs=lrs, samples=samples,
        loss=loss,
    )  # fmt: skip


def convert_named(name: str, value: float, source: str, target: str, **given: Any) -> float:
    """Convert what the user has passed under this name."""
    between = choice("source", source, UNITS), choice("target", target, UNITS)
    amount = number(name, value, _DOMAINS.get(source, "[0, inf)"))
    settings = Settings(between, **checked(given))
    settings.check()
    if source == target:
        return amount
    if {*between} <= {*_TIED}:
        found = settings.from_torch(target, settings.to_torch(source, amount))
    else:
        shrink = settings.to_shrink(source, amount)
        if shrink >= 1:
            at = "" if settings.lr is None else f" at lr={settings.lr:g}"
            raise ValueError(
                f"{name}={amount:g} in the unit {source!r}{at} takes {shrink:g} of a weight in one step; it has to be below 1"
            )
        found = settings.from_shrink(target, shrink)
    if not math.isfinite(found) and target != "half_life":
        raise ValueError(f"{name}={amount:g} in the unit {source!r} is beyond what a float holds in the unit {target!r}")
    settings.refuse_swinging(f"{name}={amount:g}", {source: amount, target: found})
    return found


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments of `convert` that are not None, each checked by itself, with the peak that `lrs` has."""
    found = {name: _CHECKS[name](name, value) for name, value in given.items() if value is not None}
    rates, lr = found.get("lrs"), found.get("lr")
    if rates is not None and lr is not None and lr < max(rates):
        raise ValueError(f"lr={lr:g} is not the peak: lrs goes up to {max(rates):g}")
    return found if rates is None else {"lr": max(rates), **found}


@dataclass(frozen=True)
class Settings:
    """The arguments of `convert`, each valid by itself, and the way from each unit to the shrink of a step and back."""

    between: tuple[str, str]
    lr: float | None = None
    momentum: float = 0.0
    dampening: float = 0.0
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
        if self.dampening != 0 and self.momentum == 0:
            raise ValueError(f"dampening={self.dampening:g} does nothing while momentum=0: give a momentum or drop it")

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


_UNSET = Settings(("torch", "torch"))


def swings(lr: float, coupled: float, momentum: float, dampening: float = 0.0) -> bool:
    """Return whether SGD with this L2 (λ of ½λ‖w‖²) and momentum takes a weight through zero instead of shrinking it.

    A step without a gradient is linear in the weight and the buffer: they shrink if that matrix has two positive roots.

    >>> swings(0.1, 5e-4, 0.9), swings(0.1, 0.05, 0.9)
    (False, True)
    """
    equation = Equation.of("sgd", penalty="l2")
    eta, lam, mu, less = (Fraction(x) for x in (lr, coupled, momentum, dampening))
    numbers: dict[str, dict[str, Any]] = {
        "penalty": {"lam": lam},
        "direction": {"t": 2, "mu": mu, "dampening": less, "nesterov": False},
        "decay": {"eta": eta},
    }
    starts = [{"w": Fraction(1 - buffer), "g": 0, "m": Fraction(buffer)} for buffer in (0, 1)]
    (a, (c,)), (b, (d,)) = (step_on_floats(equation, numbers, values) for values in starts)
    trace, determinant = a + d, a * d - b * c
    return bool(trace < 0 or trace * trace < 4 * determinant)


def _shrink(decay: str, lam: float, lr: float | None) -> float:
    """Return what a decay takes of a weight in one step at the peak lr."""
    assert lr is not None
    return at_rest(REGISTRY["decay", decay], {"eta": lr, "eta_max": lr, "lam": lam})


# Half-life and timescale --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timescale(Record):
    """Over how long the weights average their own updates; prints as a sentence."""

    steps: float
    epochs: float | None

    def __str__(self) -> str:
        if math.isinf(self.steps):
            return "Without decay the weights sum up their updates and forget none."
        return f"The weights average their updates over about {in_steps(self.steps, self.epochs)}."


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
    return convert_named("weight_decay", weight_decay, lambda_unit("source", source), "half_life", **given)


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
    shrink = convert_named("weight_decay", weight_decay, lambda_unit("source", source), "shrink", **given)
    epoch = None if steps_per_epoch is None else number("steps_per_epoch", steps_per_epoch, "(0, inf)")
    steps = 1 / shrink if shrink else math.inf
    return Timescale(steps, None if epoch is None else steps / epoch)


# Numbers that users pass --------------------------------------------------------------------------------------------------


def lambda_unit(name: str, unit: str) -> str:
    """Return the unit of a λ that an optimizer is given, or refuse it by the argument's name."""
    return choice(name, unit, ("torch", "independent", "coupled"))


def _rates(name: str, lrs: Iterable[float]) -> tuple[float, ...]:
    rates = tuple(number(f"{name}[{place}]", rate, "[0, inf)") for place, rate in enumerate(lrs))
    if not any(rates):
        raise ValueError(f"{name} has {len(rates)} learning rates, and none is above 0")
    return rates


def in_steps(steps: float, epochs: float | None = None) -> str:
    count = f"{steps:,.0f}" if steps >= 100 else f"{steps:.3g}"
    return f"{count} steps" + ("" if epochs is None else f" ({epochs:,.3g} epochs)")


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "lr": lambda name, value: number(name, value, "(0, inf)"),
    "momentum": lambda name, value: number(name, value, "[0, 1)"),
    "dampening": lambda name, value: number(name, value, "[0, 1)"),
    "steps": whole,
    "lrs": _rates,
    "samples": lambda name, value: number(name, value, "(0, inf)"),
    "loss": lambda name, value: choice(name, value, LOSSES),
}
"""What an argument of `convert` has to be."""
