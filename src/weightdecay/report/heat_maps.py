"""The heat maps: the test metric over lr × λ, a panel per optimizer on one colour scale."""

from collections.abc import Sequence
from math import log10
from statistics import quantiles

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from weightdecay.report.canvas import FAINT, Canvas, Margins, Picture, picture
from weightdecay.report.grid import Grid, Sweep
from weightdecay.report.judge import Judgement
from weightdecay.report.numerals import setting
from weightdecay.report.verdict import Verdict

__all__ = ["heat_maps"]

_DIVERGED, _ABSENT = "#6b7280", "#f1f3f5"
_GAP = 0.45
_WIDTH, _HEIGHT = 3.45, 2.75
_MARGINS = Margins(left=0.78, right=0.2, top=0.4, bottom=0.8, strip=0.75)
# More cells than this are drawn into a bitmap: as paths they would make the SVG heavy.
_MOST_PATHS = 1500


def heat_maps(found: Verdict) -> Picture:
    """Draw the test metric of every cell, with the best cell and the best λ of each learning rate marked."""

    def draw() -> Canvas:
        canvas = Canvas(len(found.judgements), _WIDTH, _HEIGHT, _MARGINS, strips=2)
        worst, best = _range(found.sweep)
        factor = 100 if found.sweep.units.percent else 1
        norm = Normalize(factor * min(worst, best), factor * max(worst, best))
        colours = matplotlib.colormaps["viridis" if found.sweep.sign > 0 else "viridis_r"]
        for panel, judgement in zip(canvas.panels, found.judgements, strict=True):
            _panel(panel, found.sweep, judgement, norm, colours, factor)
        _scale(canvas, found.sweep, norm, colours)
        _legend(canvas, found.sweep)
        return canvas

    return picture("heat-maps", draw, _alt(found))


def _range(sweep: Sweep) -> tuple[float, float]:
    """Return the metric at which the colours end and the best one.

    They span four times the distance from the best cell to the better quarter: settings that hardly learn would otherwise take all
    the colours.
    """
    done = [cell for grid in sweep.grids for cell in grid if cell.state == "done"]
    means = sorted(sweep.sign * cell.estimate("test").mean for cell in done)
    if not means:
        return 0.0, 1.0
    quartile = quantiles(means, n=4, method="inclusive")[2] if len(means) > 1 else means[0]
    worst = max(means[0], means[-1] - 4 * (means[-1] - quartile)) if quartile < means[-1] else means[0]
    # Equal cells still need a scale.
    worst = min(worst, means[-1] - 1e-3 * (abs(means[-1]) or 1))
    return sweep.sign * worst, sweep.sign * means[-1]


def _panel(
    panel: Axes, sweep: Sweep, judgement: Judgement, norm: Normalize, colours: Colormap, factor: float
) -> None:
    grid = judgement.grid
    places = _places(grid)
    panel.set_facecolor(_ABSENT)
    panel.patch.set_hatch("////")
    for columns in _blocks(grid):
        edges = np.append(places[columns] - 0.5, places[columns][-1] + 0.5)
        rows = np.arange(len(grid.lrs) + 1) - 0.5
        shades = [[_shade(grid, lr, grid.decays[k], norm, colours, factor) for k in columns] for lr in grid.lrs]
        panel.pcolormesh(edges, rows, np.array(shades), edgecolors="white", linewidth=0.5, rasterized=len(grid.cells) > _MOST_PATHS)
    if len(_blocks(grid)) > 1:
        panel.axvspan(0.5, 0.5 + _GAP, color="white", zorder=2)
    crosses = [
        (places[grid.decays.index(cell.decay)], grid.lrs.index(cell.lr)) for cell in grid if cell.state == "diverged"
    ]
    if crosses:
        panel.scatter(*zip(*crosses, strict=True), marker="x", s=16, linewidths=0.9, color="white", zorder=2)
    _marks(panel, judgement, places)
    _axes(panel, grid, places)
    panel.text(0, 1.035, grid.name[:32], transform=panel.transAxes, weight="bold", size=11)
    if judgement.best:
        reached = f"best {sweep.units.level(judgement.best.estimate('test'))}"
        panel.text(1, 1.035, reached, transform=panel.transAxes, size=8.5, ha="right", color=FAINT)


def _places(grid: Grid) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Return where each λ stands: λ = 0 apart from the others, which are even steps of a logarithmic axis."""
    first = _GAP if grid.decays[0] == 0 and len(grid.decays) > 1 else 0.0
    return np.array([k + (first if decay > 0 else 0.0) for k, decay in enumerate(grid.decays)])


def _blocks(grid: Grid) -> list[list[int]]:
    """Return the column of λ = 0 and those of λ > 0, without an empty one."""
    zero = [k for k, decay in enumerate(grid.decays) if decay == 0]
    rest = [k for k, decay in enumerate(grid.decays) if decay > 0]
    return [block for block in (zero, rest) if block]


def _shade(
    grid: Grid, lr: float, decay: float, norm: Normalize, colours: Colormap, factor: float
) -> tuple[float, float, float, float]:
    cell = grid.cells[lr, decay]
    if cell.state == "missing":
        return (0.0, 0.0, 0.0, 0.0)
    if cell.state == "diverged":
        return to_rgba(_DIVERGED)
    red, green, blue, alpha = colours(float(norm(factor * cell.estimate("test").mean)))
    return (red, green, blue, alpha)


def _marks(panel: Axes, judgement: Judgement, places: Sequence[float]) -> None:
    grid = judgement.grid
    decays = [decay for decay in grid.decays if decay > 0]
    columns = places[-len(decays) :] if decays else []

    def across(decay: float) -> float:
        return float(np.interp(log10(decay), [log10(each) for each in decays], columns))

    clear = {grid.lrs.index(row.lr): across(row.centre) for row in judgement.rows if row.standing == "clear" and row.centre}
    unclear = {
        grid.lrs.index(row.lr): across(row.best.decay)
        for row in judgement.rows
        if row.best and row.standing not in ("clear", "untrained")
    }
    panel.scatter([*unclear.values()], [*unclear], s=18, color="black", edgecolors="white", linewidths=0.9, zorder=4)
    # A line joins neighbouring learning rates only: nothing is known of those between others.
    height = range(len(grid.lrs))
    for width, colour in ((2.6, "black"), (1.2, "white")):
        panel.plot([clear.get(k, np.nan) for k in height], height, color=colour, linewidth=width, zorder=3)
    panel.scatter([*clear.values()], [*clear], s=30, color="white", edgecolors="black", linewidths=0.9, zorder=4)
    if judgement.best:
        column = places[grid.decays.index(judgement.best.decay)]
        panel.scatter(
            [column], [grid.lrs.index(judgement.best.lr)], marker="*", s=190, color="white", edgecolors="black", zorder=5
        )


def _axes(panel: Axes, grid: Grid, places: Sequence[float]) -> None:
    columns, rows = _some(len(grid.decays)), _some(len(grid.lrs))
    labels = [setting(grid.decays[k]) for k in columns]
    panel.set_xticks([places[k] for k in columns], labels, rotation=40, ha="right", rotation_mode="anchor", size=8)
    panel.set_yticks(rows, [setting(grid.lrs[k]) for k in rows], size=8)
    panel.tick_params(length=2.5)
    panel.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    panel.set_ylim(-0.5, len(grid.lrs) - 0.5)
    panel.set_xlabel("weight decay λ", labelpad=2)
    panel.set_ylabel("learning rate", labelpad=3)
    panel.spines[:].set_visible(False)


def _some(count: int) -> list[int]:
    """Return at most twelve evenly spaced indices to label."""
    return list(range(0, count, -(-count // 12)))


def _scale(canvas: Canvas, sweep: Sweep, norm: Normalize, colours: Colormap) -> None:
    left, lower = canvas.strips[0]
    bar = canvas.axes(left + _MARGINS.left, lower + 0.35, _WIDTH, 0.13)
    means = [cell.estimate("test").mean for grid in sweep.grids for cell in grid if cell.state == "done"]
    factor = 100 if sweep.units.percent else 1
    beyond = any(factor * mean < (norm.vmin or 0.0) or factor * mean > (norm.vmax or 0.0) for mean in means)
    extend = ("min" if sweep.sign > 0 else "max") if beyond else "neither"
    colorbar = canvas.figure.colorbar(ScalarMappable(norm, colours), cax=bar, orientation="horizontal", extend=extend)
    colorbar.outline.set_visible(False)
    bar.xaxis.set_major_locator(MaxNLocator(5))
    bar.tick_params(length=2.5, labelsize=8)
    bar.set_title(sweep.units.heading(f"test {sweep.metric}"[:60]), loc="left", size=8.5, color=FAINT, pad=3)


def _legend(canvas: Canvas, sweep: Sweep) -> None:
    left, lower = canvas.strips[-1]
    handles: list[Line2D | Patch] = [
        _mark("*", 12, "white", "black", "best cell"),
        _mark("o", 5.5, "white", "black", "best λ at an lr"),
        _mark("o", 5, "black", "white", "the same, not clear"),
    ]
    states = {cell.state for grid in sweep.grids for cell in grid}
    if "diverged" in states:
        handles.append(Patch(facecolor=_DIVERGED, label="diverged"))
    if "missing" in states:
        handles.append(Patch(facecolor=_ABSENT, hatch="////", label="not run"))
    canvas.figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=((left + _MARGINS.left - 0.1) / canvas.across, (lower + 0.2) / canvas.down),
        ncols=3,
        columnspacing=1.1,
        handletextpad=0.3,
        borderpad=0,
        borderaxespad=0,
    )


def _mark(marker: str, size: float, fill: str, edge: str, label: str) -> Line2D:
    return Line2D(
        [], [], marker=marker, markersize=size, markerfacecolor=fill, markeredgecolor=edge, color="none", label=label
    )


def _alt(found: Verdict) -> str:
    """Say what the picture shows."""
    sweep = found.sweep
    seen = [
        f"Heat maps of the mean test {sweep.metric}, a panel for each optimizer, the learning rate upward, λ to the right and λ = 0 "
        "in a column apart."
    ]
    for judgement in found.judgements:
        best = judgement.best
        if best is None:
            seen.append(f"{judgement.grid.name}: no cell to show.")
            continue
        level = sweep.units.level(best.estimate("test"))
        text = f"{judgement.grid.name}: the best cell has {level}, at lr {setting(best.lr)} and λ {setting(best.decay)}"
        clear = [row for row in judgement.rows if row.standing == "clear" and row.centre]
        if len(clear) > 1:
            (first, *_, last) = clear
            text += (
                f"; the best λ goes from {setting(first.centre or 0)} at lr {setting(first.lr)} "
                f"to {setting(last.centre or 0)} at lr {setting(last.lr)}"
            )
        seen.append(f"{text}.")
    return " ".join(seen)
