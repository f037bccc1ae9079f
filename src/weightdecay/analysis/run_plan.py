"""What the decay of a planned run will do, before it starts: `weightdecay plan` prints it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import torch

from weightdecay.analysis.units import UNITS, Settings, Timescale, lambda_unit, share, swings
from weightdecay.display.numbers import setting
from weightdecay.display.record import Record
from weightdecay.display.table import aligned
from weightdecay.optim.schedules import share_of_peak
from weightdecay.update_rules.traits import rounded_away
from weightdecay.validation import choice, number, whole

LITTLE, MUCH = 0.01, 0.1
CONVENTIONS = {"torch": "lr·λ", "independent": "λ at the peak lr", "coupled": "lr·λ/(1 − momentum)"}
"""What a step takes at the peak, by what λ means."""
_PICTURE = 48
_PARTLY = ("sklearn", "total_shrink")
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Plan(Record):
    """What the decay of a planned run does to a weight without a gradient. Prints as `weightdecay plan` does."""

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
        heights = (min(abs(share), 1.0) if math.isfinite(share) else 1.0 for share in self.path)
        return "".join(_BARS[max(0, math.ceil(8 * height) - 1)] for height in heights)

    def __str__(self) -> str:
        warnings = [f"warning: {text}" for text in self.warnings.values()]
        return "\n\n".join([self.run(), *("\n".join(aligned(table)) for table in (self.facts(), self.same())), *warnings])

    def run(self) -> str:
        """Return the run in a sentence: its length, lr, schedule and λ."""
        rises = f" after {self.warmup:,} steps of warm-up" if self.warmup else ""
        ends = f" to {self.final:g} of it" if self.schedule != "constant" and self.final else ""
        return (
            f"{self._length(self.steps)} at lr {setting(self.lr)}, {self.schedule}{ends}{rises}; "
            f"λ {setting(self.weight_decay)} (a step takes {CONVENTIONS[self.convention]})"
        )

    def facts(self) -> list[tuple[str, str]]:
        """Return what the decay does, as a table without a header."""
        peak = " at the peak lr" if self.schedule != "constant" or self.warmup else ""
        runs = f"; {self.runs:.3g} × the run" if math.isfinite(self.runs) else ""
        rows = [
            ("shrink per step", f"{setting(self.shrink)}{peak}"),
            ("half-life", f"{self._length(self.half_life)}{peak}"),
            ("timescale", f"{self._length(self.timescale.steps)}{peak}{runs}"),
            ("left at the end", f"{share(self.remaining, 4)} of a weight"),
            ("", self.picture()),
        ]
        if self.lost:
            lost = ", ".join(f"{share:.0%} in {dtype}" for dtype, share in self.lost.items() if share >= 0.005)
            rows.append(("lost if rounded to nearest", lost or "nothing"))
        return rows

    def same(self) -> list[tuple[str, str, str]]:
        """Return the same decay in every unit, as a table with a header."""
        rows = [("the same decay as", "value", "which is")]
        for unit, value in self.units.items():
            if value is not None:
                rows.append((unit, setting(value) if math.isfinite(value) else "never", UNITS[unit]))
            elif unit == "coupled":
                swings = f"with momentum {self.momentum:g} no L2 shrinks a weight so fast: it would swing"
                rows.append((unit, "none", swings))
        return rows

    def _length(self, steps: float) -> str:
        if not math.isfinite(steps):
            return "none"
        count = f"{steps:,.0f}" if steps >= 100 else f"{steps:.3g}"
        epochs = f", {steps / self.steps_per_epoch:,.3g} epochs" if self.steps_per_epoch else ""
        return f"{count} step{'' if count == '1' else 's'}{epochs}"


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
    """Compute what the decay of a planned run will do. Prints as `weightdecay plan` does, and `.to_dict()` is plain data.

    Args:
        lr: the learning rate, at its peak.
        weight_decay: λ in the unit `convention`.
        steps: the length of the run. Beyond 65,536 the steps of a schedule are summed in blocks, to about nine digits.
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
    >>> print(plan(1e-3, 0.1, steps=10_000).run())
    10,000 steps at lr 0.001, constant; λ 0.1 (a step takes lr·λ)

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
    share = share_of_peak(count, schedule, warmup, final)
    blocks = [Block(first, many, shrink * share(middle)) for first, many, middle in _blocks(count, int(warmup))]
    kept = _kept(blocks)
    steps_of = 1 / shrink if shrink else math.inf
    units: dict[str, float | None] = {unit: given.from_shrink(unit, shrink) for unit in UNITS if unit not in _PARTLY}
    units["sklearn"] = None if samples is None else given.from_shrink("sklearn", shrink)
    left = kept[count]
    together = math.fsum(block.steps * math.log1p(-block.shrink) for block in blocks) if shrink < 1 else 0.0
    units["total_shrink"] = 1 - left if shrink >= 1 else abs(math.expm1(together))
    swinging = given.momentum > 0 and swings(rate, given.from_shrink("coupled", shrink), given.momentum)
    if swinging and convention != "coupled":
        units["coupled"] = units["sklearn"] = None
    found = Plan(
        rate, lam, convention, given.momentum, count, epoch, schedule, int(warmup), float(final), shrink,
        given.from_shrink("half_life", shrink), Timescale(steps_of, None if epoch is None else steps_of / epoch),
        steps_of / count, left, tuple(kept[moment] for moment in _moments(count)),
        {unit: units[unit] for unit in UNITS}, {} if convention == "coupled" else _lost(blocks), {},
    )  # fmt: skip
    swung = swinging and convention == "coupled"
    exponent = math.fsum(block.total for block in blocks)
    return replace(found, warnings=_warnings(found, choice("dtype", dtype, _LOSING), exponent, swung))


_LOSING = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


_ONE_BY_ONE, _MANY = 1 << 16, 1 << 13
"""Runs up to the one length are counted step by step, and longer ones in about the other number of blocks of steps."""


@dataclass(frozen=True)
class Block:
    """Steps in a row, which take the same share of a weight, or nearly."""

    first: int
    steps: int
    shrink: float
    """What each takes, as it is in the middle."""

    @property
    def total(self) -> float:
        return self.steps * self.shrink

    @property
    def keeps(self) -> float:
        """Return what all of them leave of a weight."""
        if self.steps == 1:
            return 1 - self.shrink
        if self.shrink < 1:  # nothing of a tiny shrink is lost in a logarithm
            return math.exp(self.steps * math.log1p(-self.shrink))
        try:
            return float((1 - self.shrink) ** self.steps)
        except OverflowError:
            return -math.inf if self.steps % 2 else math.inf


def _moments(count: int) -> list[int]:
    """Return the steps at which the path is looked at: evenly spaced, the first and the last among them."""
    return [round(Fraction(place * count, _PICTURE)) for place in range(_PICTURE + 1)]


def _blocks(count: int, warmup: int) -> Iterator[tuple[int, int, float]]:
    """Yield the first step, the length and the middle of blocks that cover a run; each is of one step in a run of few.

    A block ends where the path is looked at and where the warm-up does. What a block's middle step takes, times its length,
    is what they take together up to a share of (length / run)², since schedules are smooth.
    """
    edges = sorted({*_moments(count), warmup})
    longest = 1 if count <= _ONE_BY_ONE else -(-count // _MANY)
    for start, end in pairwise(edges):
        parts = -(-(end - start) // longest)
        for part in range(parts):
            first, after = start + part * (end - start) // parts, start + (part + 1) * (end - start) // parts
            yield first, after - first, first + (after - first - 1) / 2


def _kept(blocks: Sequence[Block]) -> dict[int, float]:
    """Return what is left of a weight before the first step of each block, and after the last."""
    kept, left = {0: 1.0}, 1.0
    for block in blocks:
        left *= block.keeps
        kept[block.first + block.steps] = left
    return kept


def _lost(blocks: Sequence[Block]) -> dict[str, float]:
    """Return which share of the decay is lost because w·(1 − s), rounded to nearest, is w: for s up to a quarter of eps."""
    every = math.fsum(block.total for block in blocks) or 1.0
    edges = {name: rounded_away(dtype) for name, dtype in _LOSING.items()}
    return {name: math.fsum(block.total for block in blocks if block.shrink <= edge) / every for name, edge in edges.items()}


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
