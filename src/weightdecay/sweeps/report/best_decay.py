"""The best λ at each learning rate, and how it moves from one to the next."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log10, sqrt
from statistics import fmean, linear_regression
from typing import Any, Literal

from weightdecay.sweeps.report.estimate import student_quantile
from weightdecay.sweeps.report.paired_comparison import Contrast, Pair, contrast
from weightdecay.sweeps.report.results_grid import Cell, Grid, typical_error

__all__ = ["BestDecay", "Standing", "Trend", "best_decays", "decay_pair", "fit"]

Standing = Literal["clear", "edge", "flat", "untrained", "diverged", "missing"]

_FEWEST = 3


@dataclass(frozen=True)
class BestDecay:
    """What one learning rate says about λ.

    `centre` is the mean of log λ over the cells whose validation metric is within one typical standard error of the best
    one, weighted by how far within: 1 for the best cell, 0 at one standard error. It moves smoothly where the best cell
    alone would jump from column to column; `span` is from the first such cell to the last. `standing` tells whether to
    trust it:

    clear      λ = 0 is not within that standard error, or diverged, and the span ends inside the grid
    edge       the span reaches the edge of the grid: the best λ may lie outside
    flat       λ = 0 is within that standard error
    untrained  the learning rate does not train (see `Grid.trains`)
    diverged   every λ > 0 diverged
    missing    a cell of this learning rate has not run, or the grid has no λ = 0 or no λ > 0
    """

    lr: float
    zero: Cell | None
    best: Cell | None
    centre: float | None
    span: tuple[float, float] | None
    standing: Standing
    contrast: Contrast | None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON can hold them."""
        return {
            "lr": self.lr,
            "weight_decay": self.best.decay if self.best else None,
            "centre": self.centre,
            "span": self.span,
            "standing": self.standing,
            "test": self.best.estimate("test").to_dict() if self.best else None,
            "test_without": self.zero.estimate("test").to_dict() if self.zero else None,
            "contrast": self.contrast.to_dict() if self.contrast else None,
        }


def best_decays(grid: Grid) -> list[BestDecay]:
    """Find the best λ > 0 at each learning rate of a grid."""
    return [_best_decay(grid, lr) for lr in grid.lrs]


def _best_decay(grid: Grid, lr: float) -> BestDecay:
    row = grid.row(lr)
    zero = grid.best(cell for cell in row if cell.decay == 0)
    decayed = [cell for cell in row if cell.decay > 0]
    best = grid.best(decayed)
    if best is None:
        diverged = bool(decayed) and all(cell.state == "diverged" for cell in decayed)
        return BestDecay(lr, zero, None, None, None, "diverged" if diverged else "missing", None)
    error = typical_error(grid, row, best, "valid") or 0.0
    plateau = [(cell, weight) for cell in decayed if (weight := _weight(grid, cell, best, error)) > 0]
    centre = 10 ** (sum(log10(cell.decay) * weight for cell, weight in plateau) / sum(weight for _, weight in plateau))
    span = plateau[0][0].decay, plateau[-1][0].decay
    against_zero = contrast(lambda seeds: decay_pair(grid, lr, seeds), grid.seeds, grid.sign, grid.noise)
    return BestDecay(lr, zero, best, centre, span, _standing(grid, lr, zero, best, span, error), against_zero)


def _weight(grid: Grid, cell: Cell, best: Cell, error: float) -> float:
    """Return 1 for the best cell, 0 for one that is a standard error worse or cannot be compared."""
    if cell is best:
        return 1.0
    behind = grid.gain(best, cell, "valid") if cell in grid.candidates else None
    if behind is None or behind.mean >= error:
        return 0.0
    return 1 - max(0.0, behind.mean) / error


def decay_pair(grid: Grid, lr: float, seeds: tuple[int, ...]) -> list[Pair]:
    """Return the best λ > 0 of a learning rate, as `seeds` see it, beside λ = 0; nothing if either is not there."""
    row = grid.row(lr)
    best = grid.best((cell for cell in row if cell.decay > 0), seeds)
    zero = grid.best((cell for cell in row if cell.decay == 0), seeds)
    return [(best, zero)] if best and zero else []


def _standing(grid: Grid, lr: float, zero: Cell | None, best: Cell, span: tuple[float, float], error: float) -> Standing:
    row = grid.row(lr)
    if row[0].decay > 0 or any(cell.state != "diverged" and cell not in grid.candidates for cell in row):
        return "missing"
    if not grid.trains(lr):
        return "untrained"
    gain = grid.gain(best, zero, "valid") if zero else None
    if gain is not None and gain.mean <= error:
        return "flat"
    decays = [cell.decay for cell in row if cell.decay > 0]
    return "edge" if span[0] == decays[0] or span[1] == decays[-1] else "clear"


@dataclass(frozen=True)
class Trend:
    """The line through log λ against log lr over the learning rates whose best λ is clear: λ ∝ lr^slope.

    `error` is the slope's standard error from the scatter about the line, taken as no smaller than what the grid's own spacing
    leaves open (a column stands for all λ nearer to it than to its neighbours). `interval` holds the slope with 95 % by
    Student's t.
    """

    points: tuple[tuple[float, float], ...]
    slope: float
    error: float
    interval: tuple[float, float]

    def admits(self, slope: float) -> bool:
        """Say whether a slope lies in the interval."""
        return self.interval[0] <= slope <= self.interval[1]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON can hold them."""
        return asdict(self)


def fit(grid: Grid, best: Sequence[BestDecay]) -> Trend | None:
    """Fit the line by least squares; None with fewer than three clear points, which any line would fit."""
    points = tuple((row.lr, row.centre) for row in best if row.standing == "clear" and row.centre is not None)
    if len(points) < _FEWEST:
        return None
    x, y = [log10(lr) for lr, _ in points], [log10(decay) for _, decay in points]
    slope, intercept = linear_regression(x, y)
    freedom = len(points) - 2
    scatter = sum((b - slope * a - intercept) ** 2 for a, b in zip(x, y, strict=True)) / freedom
    spread = sum((a - fmean(x)) ** 2 for a in x)
    error = sqrt(max(scatter, _spacing(grid) ** 2 / 12) / spread)
    reach = student_quantile(freedom) * error
    return Trend(points, slope, error, (slope - reach, slope + reach))


def _spacing(grid: Grid) -> float:
    """Return the mean distance between neighbouring λ > 0 in powers of ten."""
    decays = [decay for decay in grid.decays if decay > 0]
    return (log10(decays[-1]) - log10(decays[0])) / (len(decays) - 1)
