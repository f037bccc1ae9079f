"""The lines of the tables, as text: one per learning rate for the best λ, one per cell for everything."""

from collections.abc import Iterator
from dataclasses import dataclass

from weightdecay.display.numbers import setting
from weightdecay.sweeps.report.best_decay import BestDecay, Standing
from weightdecay.sweeps.report.comparison import Judgement
from weightdecay.sweeps.report.results_grid import Cell, Grid, Sweep

__all__ = ["BestLine", "CellLine", "best_lines", "cell_lines"]

_NOTES: dict[Standing, str] = {
    "clear": "",
    "edge": "edge of grid",
    "flat": "λ = 0 as good",
    "untrained": "learns little",
    "diverged": "diverges",
    "missing": "cells missing",
}
_NOTHING = "–"


@dataclass(frozen=True)
class BestLine:
    """What the best λ > 0 of one learning rate gives; `chosen` marks the learning rate of the best setting with decay."""

    lr: str
    decay: str
    product: str
    test: str
    without: str
    change: str
    note: str
    chosen: bool


def best_lines(sweep: Sweep, found: Judgement) -> Iterator[BestLine]:
    """Put one optimizer's best λ per learning rate into words."""
    for row in found.rows:
        yield BestLine(
            lr=setting(row.lr),
            decay=setting(row.best.decay) if row.best else _NOTHING,
            product=setting(row.lr * row.best.decay) if row.best else _NOTHING,
            test=_level(sweep, row.best),
            without=_level(sweep, row.zero) if row.zero else _absence(found.grid, row),
            change=sweep.units.number(row.contrast.gain.times(sweep.sign), signed=True) if row.contrast else _NOTHING,
            note=_NOTES[row.standing],
            chosen=row.best is not None and row.best is found.with_decay,
        )


@dataclass(frozen=True)
class CellLine:
    """What one cell of the grid gave."""

    lr: str
    decay: str
    state: str
    seeds: str
    valid: str
    test: str
    train_loss: str
    norm: str


def cell_lines(sweep: Sweep, grid: Grid) -> Iterator[CellLine]:
    """Put every cell of one optimizer into words."""
    for cell in grid:
        loss, norm = cell.mean(lambda run: run.train_loss), cell.mean(lambda run: run.weight_norm)
        yield CellLine(
            lr=setting(cell.lr),
            decay=setting(cell.decay),
            state=cell.state,
            seeds=f"{len(cell.runs)} of {len(grid.seeds)}",
            valid=sweep.units.number(cell.estimate("valid")) if cell.state == "done" else _NOTHING,
            test=_level(sweep, cell if cell.state == "done" else None),
            train_loss=_NOTHING if loss is None else f"{loss:.3g}",
            norm=_NOTHING if norm is None else f"{norm:.3g}",
        )


def _level(sweep: Sweep, cell: Cell | None) -> str:
    return sweep.units.number(cell.estimate("test")) if cell else _NOTHING


def _absence(grid: Grid, row: BestDecay) -> str:
    """Say why there is nothing at λ = 0."""
    zero = grid.cells.get((row.lr, 0.0))
    return "diverged" if zero and zero.state == "diverged" else _NOTHING
