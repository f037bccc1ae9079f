"""The runs of a sweep where they lie: a `Cell` per (lr, λ), a `Grid` of cells per optimizer, a `Sweep` of grids.

What a manifest or a row says is untrusted: here texts lose their control characters, and numbers that are not finite
become None.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from numbers import Real
from statistics import fmean, median
from typing import Any, Literal

from weightdecay.sweeps.report.estimate import Estimate
from weightdecay.sweeps.report.metric_format import Units

__all__ = ["Cell", "Grid", "Row", "Run", "Sweep", "typical_error"]

Split = Literal["valid", "test"]
Row = Mapping[str, Any]
# Beyond this a square is not finite in float64, and float32 runs end at 3e38 anyway.
_LARGEST = 1e150


@dataclass(frozen=True)
class Run:
    """One finished training run; a number that it lost on the way is None."""

    diverged: bool
    valid: float | None
    test: float | None
    valid_loss: float | None
    train_loss: float | None
    weight_norm: float | None
    initial_weight_norm: float | None
    history: Mapping[str, Sequence[float | None]]

    @classmethod
    def of(cls, row: Row, metric: str) -> "Run":
        """Read a row of `results.jsonl`."""
        valid, test = finite(row.get(f"valid_{metric}")), finite(row.get(f"test_{metric}"))
        history = row["history"] if isinstance(row.get("history"), Mapping) else {}
        return cls(
            diverged=bool(row.get("diverged")) or valid is None or test is None,
            valid=valid,
            test=test,
            valid_loss=finite(row.get("valid_loss")),
            train_loss=finite(row.get("train_loss")),
            weight_norm=finite(row.get("weight_norm")),
            initial_weight_norm=finite(row.get("initial_weight_norm")),
            history={name: [finite(x) for x in values] for name, values in history.items() if isinstance(values, Sequence)},
        )

    @property
    def learned(self) -> float | None:
        """Return how far the training loss fell from step 0, None if the run does not say."""
        start = next(iter(self.history.get("train_loss", ())), None)
        return None if start is None or self.train_loss is None else start - self.train_loss


@dataclass(frozen=True, eq=False)
class Cell:
    """One setting of lr and λ and the runs that finished there, by seed."""

    lr: float
    decay: float
    runs: Mapping[int, Run]

    @property
    def state(self) -> Literal["missing", "diverged", "done"]:
        """Say whether the cell holds no run, a run that diverged, or only sound ones."""
        if not self.runs:
            return "missing"
        return "diverged" if any(run.diverged for run in self.runs.values()) else "done"

    def scores(self, split: Split) -> dict[int, float]:
        """Return the metric of each seed that has one."""
        values = {seed: run.valid if split == "valid" else run.test for seed, run in self.runs.items()}
        return {seed: value for seed, value in values.items() if value is not None}

    def estimate(self, split: Split) -> Estimate:
        """Return the mean of the metric over seeds."""
        return Estimate.of(self.scores(split).values())

    def mean(self, quantity: Callable[[Run], float | None]) -> float | None:
        """Return the mean over seeds of another number of the runs, None if no run has it."""
        return mean(quantity(run) for run in self.runs.values())


@dataclass(frozen=True, eq=False)
class Grid:
    """One optimizer's cells, every lr with every λ; `sign` is 1 where a larger metric is better, −1 where a smaller one is."""

    name: str
    rule: str
    kind: str
    lr_tied: bool
    """Whether its decay takes the share lr × λ from every weight at every step; not every decoupled one does."""
    lrs: tuple[float, ...]
    decays: tuple[float, ...]
    seeds: tuple[int, ...]
    sign: int
    cells: Mapping[tuple[float, float], Cell]

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells.values())

    def row(self, lr: float) -> list[Cell]:
        """Return the cells of one learning rate, from the smallest λ to the largest."""
        return [self.cells[lr, decay] for decay in self.decays]

    @cached_property
    def candidates(self) -> tuple[Cell, ...]:
        """Return the cells that can be compared: none of their runs diverged, and they have enough seeds.

        A full sweep asks for every seed. An interrupted one asks for the number of seeds that keeps the most runs, so that
        a cell does not win by having met a single lucky seed.
        """
        done = [cell for cell in self if cell.state == "done"]
        enough = max(range(1, len(self.seeds) + 1), key=lambda n: n * sum(len(cell.runs) >= n for cell in done), default=1)
        return tuple(cell for cell in done if len(cell.runs) >= enough)

    @cached_property
    def _eligible(self) -> frozenset[Cell]:
        return frozenset(self.candidates)

    def best(self, cells: Iterable[Cell], seeds: Iterable[int] | None = None) -> Cell | None:
        """Return the candidate of `cells` with the best mean validation metric over `seeds` (all of them unless told).

        Equal means are common for an accuracy: the lower validation loss decides, then the smaller λ and the smaller lr.
        """
        among = set(self.seeds if seeds is None else seeds)
        eligible = [cell for cell in cells if cell in self._eligible and among & cell.runs.keys()]

        def merit(cell: Cell) -> tuple[float, float, float, float]:
            scores, runs = cell.scores("valid"), [cell.runs[seed] for seed in among & cell.runs.keys()]
            loss = mean(run.valid_loss for run in runs)
            score = fmean(scores[seed] for seed in among & scores.keys())
            return self.sign * score, -loss if loss is not None else 0.0, -cell.decay, -cell.lr

        return max(eligible, key=merit, default=None)

    def gain(self, cell: Cell, other: Cell, split: Split, seeds: Iterable[int] | None = None) -> Estimate | None:
        """Return by how much `cell` is better than `other`, paired over those of `seeds` that both have, if any."""
        ours, theirs = cell.scores(split), other.scores(split)
        shared = [seed for seed in (self.seeds if seeds is None else seeds) if seed in ours and seed in theirs]
        return Estimate.of([self.sign * (ours[seed] - theirs[seed]) for seed in shared]) if shared else None

    @cached_property
    def noise(self) -> float | None:
        """Return the typical standard error of a test difference among the better quarter of the candidates."""
        best = self.best(self)
        if best is None:
            return None
        ranked = sorted(self.candidates, key=lambda cell: -self.sign * cell.estimate("valid").mean)
        return typical_error(self, ranked[: max(4, len(ranked) // 4)], best, "test")

    @cached_property
    def _deepest(self) -> float | None:
        falls = [fall for cell in self.candidates if (fall := cell.mean(lambda run: run.learned)) is not None]
        return max(falls, default=None)

    def trains(self, lr: float) -> bool:
        """Say whether at this lr some cell's training loss falls at least half as far as anywhere in the grid.

        Without a history there is no telling, and any lr that does not diverge counts.
        """
        cells = [cell for cell in self.row(lr) if cell in self._eligible]
        if self._deepest is None:
            return bool(cells)
        falls = [fall for cell in cells if (fall := cell.mean(lambda run: run.learned)) is not None]
        return self._deepest > 0 and max(falls, default=0.0) >= self._deepest / 2


def typical_error(grid: Grid, cells: Iterable[Cell], best: Cell, split: Split) -> float | None:
    """Return the median standard error of the paired differences between `best` and the other cells.

    Three seeds tell one difference's own standard error badly. A median over neighbours is much steadier, and a cell that
    has collapsed does not move it.
    """
    gains = [grid.gain(best, cell, split) for cell in cells if cell is not best and cell.state == "done"]
    errors = [gain.error for gain in gains if gain is not None and gain.error is not None]
    return median(errors) if errors else None


@dataclass(frozen=True)
class Sweep:
    """Everything that a sweep left: what it was, and a grid for each optimizer."""

    task: str
    description: str
    metric: str
    sign: int
    seeds: tuple[int, ...]
    steps: int | None
    decay_unit: str
    machine: str
    created: str
    command: str | None
    versions: Mapping[str, str]
    grids: tuple[Grid, ...]
    strays: int

    @classmethod
    def of(cls, rows: Iterable[Row], manifest: Row) -> "Sweep":
        """Lay the rows on the manifest's grid; a later row for the same run replaces an earlier one."""
        metric, sign = str(manifest["metric"]), {"max": 1, "min": -1}[manifest["goal"]]
        runs: dict[tuple[str, float, float, int], Run] = {}
        for row in rows:
            key = (str(row["optimizer"]), nominal(row["lr"]), nominal(row["weight_decay"]), int(row["seed"]))
            runs[key] = Run.of(row, metric)
        seeds = tuple(dict.fromkeys(int(seed) for seed in manifest["seeds"]))
        grids = tuple(_grid(entry, manifest["grid"][entry["name"]], runs, seeds, sign) for entry in manifest["optimizers"])
        steps = manifest.get("steps")
        return cls(
            task=printable(manifest.get("task", "")),
            description=printable(manifest.get("description", "")),
            metric=printable(metric),
            sign=sign,
            seeds=seeds,
            steps=None if steps is None else int(steps),
            decay_unit=printable(manifest.get("decay_unit", "")),
            machine=printable(manifest.get("machine", "")),
            created=printable(manifest.get("created", "")),
            command=printable(manifest["command"]) if manifest.get("command") else None,
            versions={printable(name): printable(version) for name, version in (manifest.get("versions") or {}).items()},
            grids=grids,
            strays=len(runs) - sum(len(cell.runs) for grid in grids for cell in grid),
        )

    @property
    def expected(self) -> int:
        """Return how many runs the manifest asks for."""
        return sum(len(grid.cells) for grid in self.grids) * len(self.seeds)

    @property
    def finished(self) -> int:
        """Return how many of them are here."""
        return sum(len(cell.runs) for grid in self.grids for cell in grid)

    @property
    def diverged(self) -> int:
        """Return how many of those diverged."""
        return sum(run.diverged for grid in self.grids for cell in grid for run in cell.runs.values())

    @cached_property
    def units(self) -> Units:
        """Return how to print the metric: an accuracy between 0 and 1 in percent, anything else as it is."""
        values = [score for grid in self.grids for cell in grid for score in cell.scores("test").values()]
        return Units("accuracy" in self.metric.lower() and all(0 <= value <= 1 for value in values))


def _grid(entry: Row, axes: Row, runs: Mapping[tuple[str, float, float, int], Run], seeds: tuple[int, ...], sign: int) -> Grid:
    name = str(entry["name"])
    lrs = tuple(sorted({nominal(lr) for lr in axes["lr"]}))
    decays = tuple(sorted({nominal(decay) for decay in axes["weight_decay"]}))
    cells = {
        (lr, decay): Cell(lr, decay, {seed: runs[name, lr, decay, seed] for seed in seeds if (name, lr, decay, seed) in runs})
        for lr in lrs
        for decay in decays
    }
    rule, kind = printable(entry.get("rule", "")), printable(entry.get("kind", ""))
    return Grid(printable(name), rule, kind, bool(entry.get("lr_tied", True)), lrs, decays, seeds, sign, cells)


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there, None if there are none."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def finite(value: Any) -> float | None:
    """Return a number that arithmetic can be done with, else None."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond any float
        return None
    return number if isfinite(number) and abs(number) <= _LARGEST else None


def nominal(value: float) -> float:
    """Return a grid value to nine digits, so that 0.1 from one writer meets 0.1 from another.

    >>> nominal(0.1 + 0.2)
    0.3
    """
    return float(f"{value:.9g}")


def printable(text: object) -> str:
    """Return a text from outside with what is not printable (control and direction characters) made visible as �."""
    return "".join(character if character.isprintable() else "�" for character in str(text))
