"""The spread of the shrink in each tensor: Adam with L2 against the one number of decoupled decay."""

from collections.abc import Sequence

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from weightdecay.analysis.split import Summary
from weightdecay.display.figure import BLUE, FAINT, RED, Canvas, Margins, Picture, headline, picture

__all__ = ["spread"]

_LINE = 0.24
_MARGINS = Margins(left=2.4, right=0.35, top=0.5, bottom=0.55, strip=0.62)
_MOST = 60
_LONGEST = 32


def spread(title: str, tensors: Sequence["Summary"], decoupled: Sequence[float]) -> Picture:
    """Draw the shrinks of each tensor on one line, from the weakest to the strongest, and what decoupled decay would do."""
    shown = [(each, number) for each, number in zip(tensors, decoupled, strict=True) if each.strongest > 0]
    left_out = len(shown) - _MOST
    if left_out > 0:
        shown = sorted(shown, key=lambda pair: -pair[0].ratio)[:_MOST]
    widest = max((each.ratio for each, _ in shown), default=1.0)
    return picture(
        "spread",
        lambda: _draw(title, shown, left_out),
        f"{title}: the share that each weight loses in the next step, a line per tensor; within one tensor the strongest "
        f"decay is up to {widest:.3g} times the weakest. A red mark shows what decoupled decay would do to every weight.",
    )


def _draw(title: str, shown: Sequence[tuple["Summary", float]], left_out: int) -> Canvas:
    canvas = Canvas(1, 5.2, max(1, len(shown)) * _LINE + 0.2, _MARGINS, 1)
    (panel,) = canvas.panels
    remark = f"the {_MOST} widest of {len(shown) + left_out}" if left_out > 0 else ""
    headline(panel, title, remark, 1 + 0.12 / (len(shown) * _LINE + 0.2))
    for place, (each, number) in enumerate(shown):
        low = max(each.weakest, each.strongest / each.ratio)
        panel.plot([low, each.strongest], [place, place], color=BLUE, linewidth=1, solid_capstyle="butt")
        if each.high > 0:
            panel.plot(
                [max(each.low, low), each.high], [place, place], color=BLUE, linewidth=5, alpha=0.45, solid_capstyle="butt"
            )
        panel.plot(max(each.median, low), place, "o", color=BLUE, markersize=4)
        if number > 0:  # NaN is no number to show
            panel.plot(number, place, "|", color=RED, markersize=10, markeredgewidth=1.8)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    low, high = panel.get_xlim()
    panel.set_xlim(min(low, high / 30), max(high, low * 30))
    panel.set_ylim(len(shown) - 0.4, -0.6)
    panel.set_yticks(range(len(shown)), [_short(each.name) for each, _ in shown], fontsize=8)
    panel.grid(axis="x")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("share of a weight that the next step takes away, 1 − g")
    _key(canvas)
    return canvas


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _key(canvas: Canvas) -> None:
    x, y = canvas.strips[0]
    axes = canvas.axes(x, y, canvas.column, _MARGINS.strip)
    axes.axis("off")
    marks = [
        Line2D([], [], color=BLUE, linewidth=1, label="weakest to strongest"),
        Line2D([], [], color=BLUE, linewidth=5, alpha=0.45, label="nine weights in ten"),
        Line2D([], [], color=BLUE, marker="o", markersize=4, linestyle="", label="median"),
        Line2D([], [], color=RED, marker="|", markersize=10, markeredgewidth=1.8, linestyle="", label="decoupled: lr × λ"),
    ]
    axes.legend(handles=marks, loc="center", ncols=4, labelcolor=FAINT, handlelength=1.4, columnspacing=1.2)
