"""What the decay of a planned run will do, before it starts: `weightdecay plan` prints it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul

import torch

from weightdecay.arguments import choice, number, whole
from weightdecay.schedules import shares_of_peak
from weightdecay.shrink import rounded_away
from weightdecay.units import UNITS, Record, Settings, Timescale, lambda_unit, swings

LITTLE, MUCH = 0.01, 0.1
_PICTURE = 48
_PARTLY = ("sklearn", "total_shrink")
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Plan(Record):
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
    rate, count = number("lr", lr, "(0, inf)"), whole("steps", steps)
    lam = number("weight_decay", weight_decay, "[0, inf)")
    epoch = None if steps_per_epoch is None else number("steps_per_epoch", steps_per_epoch, "(0, inf)")
    given = Settings(
        between=("coupled", "sklearn"),
        lr=rate,
        momentum=number("momentum", momentum, "[0, 1)"),
        dampening=0.0,
        steps=count,
        samples=None if samples is None else number("samples", samples, "(0, inf)"),
    )
    shrink = given.to_shrink(lambda_unit("convention", convention), lam)
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
    return replace(found, warnings=_warnings(found, choice("dtype", dtype, _LOSING), math.fsum(shrinks), swung))


_LOSING = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _lost(shrinks: Sequence[float]) -> dict[str, float]:
    """Return which share of the decay is lost because w·(1 − s), rounded to nearest, is w: for s up to a quarter of eps."""
    every = math.fsum(shrinks) or 1.0
    edges = {name: rounded_away(dtype) for name, dtype in _LOSING.items()}
    return {name: math.fsum(shrink for shrink in shrinks if shrink <= edge) / every for name, edge in edges.items()}


def _warnings(found: Plan, dtype: str, exponent: float, swings: bool) -> dict[str, str]:
    warnings = {}
    if found.shrink >= 1:
        what = "multiplies a weight by " + f"{1 - found.shrink:.3g}".replace("-", "−")
        warnings["destroys"] = f"a step at the peak lr {what}: the decay destroys the weights, whatever they learn"
    elif found.shrink >= MUCH:
        warnings["destroys"] = (
            f"a step at the peak lr takes {found.shrink:.0%} of every weight: what was learnt {MUCH**-1:.0f} steps ago is gone"
        )
    elif found.timescale.epochs is not None and found.timescale.epochs < 1:
        warnings["forgets"] = (
            f"the timescale is {found.timescale.epochs:.2g} epochs: the weights forget an example before they see it again"
        )
    if found.weight_decay == 0:
        warnings["no effect"] = "λ is 0: there is no decay"
    elif exponent < LITTLE:
        warnings["no effect"] = (
            f"all {found.steps:,} steps together take {found.units['total_shrink']:.2g} of a weight: this λ cannot matter"
        )
    if swings:
        warnings["swings"] = (
            f"L2 with λ {found.weight_decay:g} swings the weights through zero at lr {found.lr:g} and momentum "
            f"{found.momentum:g}: the numbers here do not hold"
        )
    if found.lost.get(dtype, 0) >= LITTLE:
        warnings["lost"] = f"{dtype} weights that are rounded to nearest lose {found.lost[dtype]:.0%} of the decay; " + (
            "only float64 would keep it" if dtype == "float32" else "this package's optimizers round stochastically and keep it"
        )
    return warnings
