"""The heat maps: the test metric over lr × λ, a panel per optimizer on one colour scale."""

from dataclasses import dataclass
from math import log10
from typing import Literal, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from weightdecay.display.figure import ABSENT, BLACK, FAINT, PAPER, WHITE, Canvas, Margins, Picture, headline, picture
from weightdecay.display.numbers import setting
from weightdecay.sweeps.report.comparison import Judgement
from weightdecay.sweeps.report.results_grid import Cell, Grid, Sweep
from weightdecay.sweeps.report.verdict import Verdict

__all__ = ["heat_maps"]

T = TypeVar("T")

_DIVERGED = "#6b7280"
_GAP = 0.45
_WIDTH, _HEIGHT = 3.45, 2.75
_MARGINS = Margins(left=0.78, right=0.2, top=0.4, bottom=0.8, strip=0.75)
# More cells than this are drawn into a bitmap: as paths they would make the SVG heavy.
_MOST_PATHS = 1200


@dataclass(frozen=True)
class Scale:
    """How cells are drawn: the brightest is the best, be it the largest or the smallest; a crowd goes into a bitmap."""

    norm: Normalize
    colours: Colormap
    factor: float
    extend: Literal["neither", "min", "max"]
    crowded: bool

    @classmethod
    def of(cls, sweep: Sweep) -> "Scale":
        """Span four times the distance from the best cell to the better quarter, or less if there is no more.

        Settings that hardly learn would otherwise take all the colours.
        """
        cells = [cell for grid in sweep.grids for cell in grid if cell.state == "done"]
        merits = sorted(sweep.sign * cell.estimate("test").mean for cell in cells) or [0.0]
        quarter = merits[-1 - len(merits) // 4]
        worst = max(merits[0], merits[-1] - 4 * (merits[-1] - quarter)) if quarter < merits[-1] else merits[0]
        # Equal cells still need a scale.
        ends = sorted((sweep.sign * merits[-1], sweep.sign * min(worst, merits[-1] - 1e-3 * (abs(merits[-1]) or 1))))
        factor = 100 if sweep.units.percent else 1
        return cls(
            norm=Normalize(factor * ends[0], factor * ends[1]),
            colours=matplotlib.colormaps["viridis" if sweep.sign > 0 else "viridis_r"],
            factor=factor,
            extend="neither" if worst <= merits[0] else "min" if sweep.sign > 0 else "max",
            crowded=sum(len(grid.cells) for grid in sweep.grids) > _MOST_PATHS,
        )

    def shade(self, cell: Cell) -> tuple[float, float, float, float]:
        """Return the colour of a cell, nothing for one that has not run."""
        if cell.state == "missing":
            return (0.0, 0.0, 0.0, 0.0)
        if cell.state == "diverged":
            return to_rgba(_DIVERGED)
        red, green, blue, alpha = self.colours(float(self.norm(self.factor * cell.estimate("test").mean)))
        return (red, green, blue, alpha)


def heat_maps(found: Verdict) -> Picture:
    """Draw the test metric of every cell, with the best cell and the best λ of each learning rate marked."""

    def draw() -> Canvas:
        canvas = Canvas(len(found.judgements), _WIDTH, _HEIGHT, _MARGINS, strips=2)
        scale = Scale.of(found.sweep)
        for panel, judgement in zip(canvas.panels, found.judgements, strict=True):
            _cells(panel, judgement.grid, scale)
            _marks(panel, judgement)
            _axes(panel, judgement.grid)
            reached = f"best {found.sweep.units.level(judgement.best.estimate('test'))}" if judgement.best else ""
            headline(panel, judgement.grid.name, reached, 1.035)
        _colour_bar(canvas, scale, found.sweep.units.heading(f"test {found.sweep.metric}"))
        _legend(canvas, found.sweep)
        return canvas

    return picture("heat-maps", draw, _alt(found))


def _cells(panel: Axes, grid: Grid, scale: Scale) -> None:
    places = _places(grid)
    panel.set_facecolor(ABSENT)
    panel.patch.set_hatch("////")
    rows = np.arange(len(grid.lrs) + 1) - 0.5
    blocks = [block for block in ([d for d in grid.decays if d == 0], [d for d in grid.decays if d > 0]) if block]
    for block in blocks:
        panel.pcolormesh(
            [places[decay] - 0.5 for decay in block] + [places[block[-1]] + 0.5],
            rows,
            np.array([[scale.shade(grid.cells[lr, decay]) for decay in block] for lr in grid.lrs]),
            edgecolors=PAPER,
            linewidth=0.5,
            rasterized=scale.crowded,
        )
    if len(blocks) > 1:
        panel.axvspan(0.5, 0.5 + _GAP, color=PAPER, zorder=2)
    lost = [cell for cell in grid if cell.state == "diverged"]
    x, y = [places[cell.decay] for cell in lost], [grid.lrs.index(cell.lr) for cell in lost]
    panel.scatter(x, y, marker="x", s=16, linewidths=0.9, color=WHITE, zorder=2)


def _places(grid: Grid) -> dict[float, float]:
    """Return where each λ stands: λ = 0 apart from the others, which are even steps of a logarithmic axis."""
    apart = _GAP if grid.decays[0] == 0 else 0.0
    return {decay: k + (apart if decay > 0 else 0.0) for k, decay in enumerate(grid.decays)}


def _marks(panel: Axes, judgement: Judgement) -> None:
    grid, places = judgement.grid, _places(judgement.grid)
    steps = [(log10(decay), place) for decay, place in places.items() if decay > 0]

    def across(decay: float) -> float:
        return float(np.interp(log10(decay), [power for power, _ in steps], [place for _, place in steps]))

    height = {lr: k for k, lr in enumerate(grid.lrs)}
    clear = {height[row.lr]: across(row.centre) for row in judgement.rows if row.standing == "clear" and row.centre}
    unclear = {
        height[row.lr]: places[row.best.decay]
        for row in judgement.rows
        if row.best and row.standing not in ("clear", "untrained")
    }
    panel.scatter([*unclear.values()], [*unclear], s=18, color=BLACK, edgecolors=WHITE, linewidths=0.9, zorder=4)
    # A line joins neighbouring learning rates only: nothing is known of those between others.
    joined = [clear.get(k, np.nan) for k in height.values()]
    for width, colour in ((2.6, BLACK), (1.2, WHITE)):
        panel.plot(joined, [*height.values()], color=colour, linewidth=width, zorder=3)
    panel.scatter([*clear.values()], [*clear], s=30, color=WHITE, edgecolors=BLACK, linewidths=0.9, zorder=4)
    if best := judgement.best:
        x, y = [places[best.decay]], [height[best.lr]]
        panel.scatter(x, y, marker="*", s=190, color=WHITE, edgecolors=BLACK, zorder=5)


def _axes(panel: Axes, grid: Grid) -> None:
    places, lrs = _places(grid), list(enumerate(grid.lrs))
    decays = _some(list(places.items()))
    labels = [setting(decay) for decay, _ in decays]
    panel.set_xticks([at for _, at in decays], labels, rotation=40, ha="right", rotation_mode="anchor", size=8)
    panel.set_yticks([k for k, _ in _some(lrs)], [setting(lr) for _, lr in _some(lrs)], size=8)
    panel.tick_params(length=2.5)
    panel.set_xlim(min(places.values()) - 0.5, max(places.values()) + 0.5)
    panel.set_ylim(-0.5, len(grid.lrs) - 0.5)
    panel.set_xlabel("weight decay λ", labelpad=2)
    panel.set_ylabel("learning rate", labelpad=3)
    panel.spines[:].set_visible(False)


def _some(items: list[T]) -> list[T]:
    """Return at most twelve evenly spaced items, to label."""
    return items[:: -(-len(items) // 12)]


def _colour_bar(canvas: Canvas, scale: Scale, title: str) -> None:
    left, lower = canvas.strips[0]
    bar = canvas.axes(left + _MARGINS.left, lower + 0.35, _WIDTH, 0.13)
    mappable = ScalarMappable(scale.norm, scale.colours)
    drawn = canvas.figure.colorbar(mappable, cax=bar, orientation="horizontal", extend=scale.extend)
    drawn.outline.set_visible(False)
    bar.xaxis.set_major_locator(MaxNLocator(5))
    bar.tick_params(length=2.5, labelsize=8)
    bar.set_title(title[:60], loc="left", size=8.5, color=FAINT, pad=3)


def _legend(canvas: Canvas, sweep: Sweep) -> None:
    left, lower = canvas.strips[-1]
    handles: list[Line2D | Patch] = [
        _mark("*", 12, WHITE, BLACK, "best cell"),
        _mark("o", 5.5, WHITE, BLACK, "best λ at an lr, smoothed"),
        _mark("o", 5, BLACK, WHITE, "best λ, but not clearly"),
    ]
    states = {cell.state for grid in sweep.grids for cell in grid}
    if "diverged" in states:
        handles.append(Patch(facecolor=_DIVERGED, label="diverged"))
    if "missing" in states:
        handles.append(Patch(facecolor=ABSENT, hatch="////", label="not run"))
    canvas.figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=((left + _MARGINS.left - 0.1) / canvas.across, (lower + 0.1) / canvas.down),
        ncols=2,
        columnspacing=1.1,
        handletextpad=0.3,
        borderpad=0,
        borderaxespad=0,
    )


def _mark(marker: str, size: float, fill: str, edge: str, label: str) -> Line2D:
    line = Line2D([], [], linestyle="none", marker=marker, markersize=size, label=label)
    line.set(markerfacecolor=fill, markeredgecolor=edge)
    return line


def _alt(found: Verdict) -> str:
    """Say what the picture shows."""
    sweep = found.sweep
    axes = "the learning rate upward, λ to the right and λ = 0 in a column apart"
    seen = [f"Heat maps of the mean test {sweep.metric}, a panel for each optimizer, {axes}."]
    for judgement in found.judgements:
        best = judgement.best
        if best is None:
            seen.append(f"{judgement.grid.name}: no cell to show.")
            continue
        level = sweep.units.level(best.estimate("test"))
        text = f"{judgement.grid.name}: the best cell has {level}, at lr {setting(best.lr)} and λ {setting(best.decay)}"
        clear = [(row.lr, row.centre) for row in judgement.rows if row.standing == "clear" and row.centre]
        if len(clear) > 1:
            ends = [f"{setting(centre)} at lr {setting(lr)}" for lr, centre in (clear[0], clear[-1])]
            text += f"; the best λ goes from {ends[0]} to {ends[1]}"
        seen.append(f"{text}.")
    return " ".join(seen)
