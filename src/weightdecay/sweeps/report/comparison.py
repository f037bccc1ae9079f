"""What a sweep says about weight decay, in numbers: with decay against without, coupled against decoupled."""

from dataclasses import dataclass
from typing import Any

from weightdecay.sweeps.report.best_decay import BestDecay, Trend, best_decays, decay_pair, fit
from weightdecay.sweeps.report.paired_comparison import Contrast, Pair, contrast
from weightdecay.sweeps.report.results_grid import Cell, Grid, Sweep

__all__ = ["Comparison", "Judgement", "compare", "judge"]


@dataclass(frozen=True)
class Judgement:
    """What one optimizer's grid says about decay.

    `decay` sets the best cell with λ > 0 against the best with λ = 0, each at its own lr. The other two contrasts hold the lr
    fixed: `one_lr` at the lr that gains most on validation, `larger_lrs` averaged over the larger half of those that train.
    `rescued` are the learning rates at which λ = 0 diverges and some λ > 0 trains.
    """

    grid: Grid
    best: Cell | None
    with_decay: Cell | None
    without: Cell | None
    decay: Contrast | None
    one_lr: Contrast | None
    larger_lrs: Contrast | None
    rescued: tuple[float, ...]
    rows: tuple[BestDecay, ...]
    trend: Trend | None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON can hold them."""
        return {
            "optimizer": self.grid.name,
            "kind": self.grid.kind,
            "best": _cell(self.best),
            "with_decay": _cell(self.with_decay),
            "without_decay": _cell(self.without),
            "difference": _contrast(self.decay),
            "difference_at_one_lr": _contrast(self.one_lr),
            "difference_over_larger_lrs": _contrast(self.larger_lrs),
            "rescued_lrs": list(self.rescued),
            "best_weight_decay_per_lr": [row.to_dict() for row in self.rows],
            "trend": self.trend.to_dict() if self.trend else None,
        }


@dataclass(frozen=True)
class Comparison:
    """A coupled and a decoupled optimizer, each at its best; the contrast is positive where the decoupled one is better."""

    coupled: Judgement
    decoupled: Judgement
    contrast: Contrast | None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON can hold them."""
        return {
            "coupled": self.coupled.grid.name,
            "decoupled": self.decoupled.grid.name,
            "difference": _contrast(self.contrast),
        }


def judge(grid: Grid) -> Judgement:
    """Weigh one optimizer's grid."""
    with_decay = [cell for cell in grid if cell.decay > 0]
    without = [cell for cell in grid if cell.decay == 0]
    training = [lr for lr in grid.lrs if grid.trains(lr)]
    comparable = [lr for lr in training if decay_pair(grid, lr, grid.seeds)]
    larger = comparable[len(comparable) // 2 :]

    def best_of_each(seeds: tuple[int, ...]) -> list[Pair]:
        ours, theirs = grid.best(with_decay, seeds), grid.best(without, seeds)
        return [(ours, theirs)] if ours and theirs else []

    def where_decay_gains_most(seeds: tuple[int, ...]) -> list[Pair]:
        pairs = [pair for lr in training for pair in decay_pair(grid, lr, seeds)]
        gains = [(gain.mean, pair) for pair in pairs if (gain := grid.gain(*pair, "valid", seeds))]
        return [max(gains, key=lambda gain: gain[0])[1]] if gains else []

    def at_each_larger_lr(seeds: tuple[int, ...]) -> list[Pair]:
        return [pair for lr in larger for pair in decay_pair(grid, lr, seeds)]

    rows = tuple(best_decays(grid))
    return Judgement(
        grid=grid,
        best=grid.best(grid),
        with_decay=grid.best(with_decay),
        without=grid.best(without),
        decay=contrast(best_of_each, grid.seeds, grid.sign, grid.noise),
        one_lr=contrast(where_decay_gains_most, grid.seeds, grid.sign, grid.noise),
        larger_lrs=contrast(at_each_larger_lr, grid.seeds, grid.sign, grid.noise),
        rescued=tuple(lr for lr in training if any(cell.decay == 0 and cell.state == "diverged" for cell in grid.row(lr))),
        rows=rows,
        trend=fit(grid, rows),
    )


def compare(sweep: Sweep, judgements: tuple[Judgement, ...]) -> tuple[Comparison, ...]:
    """Set each coupled optimizer against the decoupled ones that share its name, as in Adam and AdamW.

    Where no names meet, the best coupled optimizer meets the best decoupled one.
    """
    coupled = [judgement for judgement in judgements if judgement.grid.kind == "coupled"]
    decoupled = [judgement for judgement in judgements if judgement.grid.kind == "decoupled"]
    pairs = [(ours, theirs) for ours in coupled for theirs in decoupled if _related(ours.grid.name, theirs.grid.name)]
    if not pairs and coupled and decoupled:
        pairs = [(_leader(coupled, sweep), _leader(decoupled, sweep))]
    return tuple(_compare(sweep, *pair) for pair in pairs)


def _compare(sweep: Sweep, coupled: Judgement, decoupled: Judgement) -> Comparison:
    def best_of_each(seeds: tuple[int, ...]) -> list[Pair]:
        ours = decoupled.grid.best(decoupled.grid, seeds)
        theirs = coupled.grid.best(coupled.grid, seeds)
        return [(ours, theirs)] if ours and theirs else []

    noises = [noise for noise in (coupled.grid.noise, decoupled.grid.noise) if noise is not None]
    return Comparison(coupled, decoupled, contrast(best_of_each, sweep.seeds, sweep.sign, max(noises, default=None)))


def _related(name: str, other: str) -> bool:
    shorter, longer = sorted((name.casefold(), other.casefold()), key=len)
    return longer.startswith(shorter)


def _leader(judgements: list[Judgement], sweep: Sweep) -> Judgement:
    def merit(judgement: Judgement) -> float:
        return sweep.sign * judgement.best.estimate("valid").mean if judgement.best else float("-inf")

    return max(judgements, key=merit)


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    scores = {split: cell.estimate(split).to_dict() for split in ("valid", "test")}
    return {"lr": cell.lr, "weight_decay": cell.decay, **scores}


def _contrast(difference: Contrast | None) -> dict[str, Any] | None:
    return difference.to_dict() if difference else None
