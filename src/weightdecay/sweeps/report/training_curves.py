"""Training as it went, at each optimizer's best learning rate: without decay, with the best λ, and with a larger one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log10
from statistics import fmean
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from weightdecay.display.figure import AMBER, BLUE, FAINT, Canvas, Margins, Picture, headline, picture
from weightdecay.display.numbers import setting
from weightdecay.sweeps.report.comparison import Judgement
from weightdecay.sweeps.report.results_grid import Cell
from weightdecay.sweeps.report.verdict import Verdict

__all__ = ["curves", "norms"]

Dashes = Literal["-", "--"]

# Told apart by the colour-blind, and by their dashes in print.
_ZERO, _BEST, _LARGER = FAINT, BLUE, AMBER
_WIDTH, _HEIGHT = 3.45, 2.3
_MARGINS = Margins(left=0.72, right=0.26, top=0.66, bottom=0.52, strip=0.3)
# A norm that a large λ takes to nothing would leave the others no room.
_SPAN = 1e3


@dataclass(frozen=True)
class Trace:
    """A cell whose runs are drawn, and how."""

    cell: Cell
    label: str
    colour: str


@dataclass(frozen=True)
class Series:
    """A quantity of a cell's runs over the steps: mean, smallest and largest over seeds."""

    steps: Sequence[int]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]

    @classmethod
    def of(cls, cell: Cell, quantity: str) -> "Series":
        """Gather what the runs recorded; a value that a run does not have is left out of the step."""
        values: dict[float, list[float]] = {}
        for run in cell.runs.values():
            for step, value in zip(run.history.get("step", ()), run.history.get(quantity, ()), strict=False):
                if step is not None and value is not None:
                    values.setdefault(step, []).append(value)
        steps = sorted(values)
        return cls(
            [int(step) for step in steps],
            [fmean(values[step]) for step in steps],
            [min(values[step]) for step in steps],
            [max(values[step]) for step in steps],
        )


def traces(found: Judgement) -> list[Trace]:
    """Choose what to draw at the best lr: λ = 0, the best λ > 0, and the first larger λ that does worse than λ = 0.

    Where no larger λ does worse than λ = 0, the largest stands in for it.
    """
    if found.best is None:
        return []
    grid = found.grid
    row = [cell for cell in grid.row(found.best.lr) if cell.state == "done"]
    zero = next((cell for cell in row if cell.decay == 0), None)
    best = grid.best(cell for cell in row if cell.decay > 0)
    chosen = [Trace(zero, "λ = 0", _ZERO)] if zero else []
    if best is None:
        return chosen
    chosen.append(Trace(best, f"λ = {setting(best.decay)}, best", _BEST))
    larger = [cell for cell in row if cell.decay > best.decay]
    worse = [cell for cell in larger if zero and (gain := grid.gain(zero, cell, "valid")) and gain.mean > 0]
    if worse:
        chosen.append(Trace(worse[0], f"λ = {setting(worse[0].decay)}, too large", _LARGER))
    elif larger:
        chosen.append(Trace(larger[-1], f"λ = {setting(larger[-1].decay)}, larger", _LARGER))
    return chosen


def curves(found: Verdict) -> Picture:
    """Draw training and validation loss."""
    lines: list[tuple[str, Dashes]] = [("valid_loss", "-"), ("train_loss", "--")]
    key: list[tuple[Dashes, str]] = [("-", "validation"), ("--", "training")]
    alt = _alt(found, "Training and validation loss", "valid_loss", "validation loss")
    return picture("curves", lambda: _draw(found, lines, "loss", key), alt)


def norms(found: Verdict) -> Picture:
    """Draw the norm of the weights."""
    key: list[tuple[Dashes, str]] = [("-", "mean over seeds; the band is their range")]
    alt = _alt(found, "The norm of the weights", "weight_norm", "norm")
    return picture("norms", lambda: _draw(found, [("weight_norm", "-")], "norm of the weights", key), alt)


def _draw(found: Verdict, lines: Iterable[tuple[str, Dashes]], name: str, key: Iterable[tuple[Dashes, str]]) -> Canvas:
    canvas = Canvas(len(found.judgements), _WIDTH, _HEIGHT, _MARGINS, strips=1)
    for panel, judgement in zip(canvas.panels, found.judgements, strict=True):
        chosen = traces(judgement)
        for trace in chosen:
            for quantity, dashes in lines:
                _line(panel, Series.of(trace.cell, quantity), trace.colour, dashes)
        _name(panel, judgement, chosen)
        panel.set_ylabel(name, labelpad=3)
    _scale(canvas.panels)
    _key(canvas, key)
    return canvas


def _line(panel: Axes, series: Series, colour: str, dashes: Dashes) -> None:
    width = 1.8 if dashes == "-" else 1.2
    panel.plot(series.steps, series.means, color=colour, linestyle=dashes, linewidth=width)
    if dashes == "-":
        panel.fill_between(series.steps, series.lows, series.highs, color=colour, alpha=0.18, linewidth=0)


def _name(panel: Axes, judgement: Judgement, chosen: Sequence[Trace]) -> None:
    """Give a panel its heading and the names of its lines."""
    headline(panel, judgement.grid.name, f"lr {setting(judgement.best.lr)}" if judgement.best else "", 1.16)
    if not any(np.size(line.get_xdata()) for line in panel.lines):
        panel.text(0.5, 0.5, "nothing recorded", transform=panel.transAxes, ha="center", va="center", color=FAINT)
    panel.legend(
        handles=[Line2D([], [], color=trace.colour, linewidth=2, label=trace.label) for trace in chosen],
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        ncols=3,
        borderpad=0,
        borderaxespad=0,
        columnspacing=1,
        handlelength=1.2,
        handletextpad=0.4,
    )


def _scale(axes: Sequence[Axes]) -> None:
    """Give all panels one scale, to compare optimizers by: logarithmic, down to a thousandth of the largest value."""
    drawn = [float(value) for panel in axes for line in panel.lines for value in np.asarray(line.get_ydata())]
    for panel in axes:
        if drawn and min(drawn) >= 0 and max(drawn) > 0:
            lowest = max(min(value for value in drawn if value > 0), max(drawn) / _SPAN)
            panel.set_yscale("log")
            panel.set_ylim(lowest / 1.15, max(drawn) * 1.15)
            panel.yaxis.set_major_locator(LogLocator(subs=_steps(log10(max(drawn) / lowest))))
            panel.yaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: setting(value)))
        elif drawn and min(drawn) < max(drawn):
            panel.set_ylim(min(drawn), max(drawn))
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.set_xlabel("step", labelpad=2)
        panel.tick_params(length=2.5, labelsize=8)
        panel.grid(True, linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)


def _steps(decades: float) -> tuple[float, ...]:
    """Return the multiples of a power of ten to label, the fewer the more powers there are."""
    return (1,) if decades > 2 else (1, 2, 5) if decades > 0.7 else (1, 1.5, 2, 3, 5, 7)


def _key(canvas: Canvas, entries: Iterable[tuple[Dashes, str]]) -> None:
    left, lower = canvas.strips[0]
    handles = [Line2D([], [], color=FAINT, linestyle=dashes, label=label) for dashes, label in entries]
    place = ((left + _MARGINS.left) / canvas.across, (lower + 0.1) / canvas.down)
    canvas.figure.legend(handles=handles, loc="lower left", bbox_to_anchor=place, ncols=2, borderpad=0, borderaxespad=0)


def _alt(found: Verdict, title: str, quantity: str, name: str) -> str:
    """Say what a picture shows."""
    seen = [f"{title} over the steps, a panel for each optimizer at its best learning rate."]
    for judgement in found.judgements:
        ends = [
            f"{trace.label} from {series.means[0]:.3g} to {series.means[-1]:.3g}"
            for trace in traces(judgement)
            if (series := Series.of(trace.cell, quantity)).steps
        ]
        if judgement.best and ends:
            seen.append(f"{judgement.grid.name} at lr {setting(judgement.best.lr)}, {name}: {'; '.join(ends)}.")
        else:
            seen.append(f"{judgement.grid.name}: nothing recorded.")
    return " ".join(seen)
