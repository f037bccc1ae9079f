"""What a meter has measured over the steps of a run: norm, shrink, angle, and decay against update."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from weightdecay.report.canvas import FAINT, Canvas, Margins, Picture, headline, picture

if TYPE_CHECKING:  # which draws with this module, when asked to
    from weightdecay.audit.readings import Reading, Sample

__all__ = ["course"]

_COLOURS = ("#2563a8", "#b3372f", "#2f7d4f", "#8a5bb0", "#b7791f", "#4a8a99", "#9aa1ac", "#1f2430")
_MARGINS = Margins(left=0.75, right=0.25, top=0.45, bottom=0.55, strip=0.35)
_WIDTH, _HEIGHT = 3.3, 1.9

Value = Callable[["Reading"], float]
_PANELS: Sequence[tuple[str, str, Value, Value | None]] = (
    ("norm", "dashed: at equilibrium", lambda each: each.norm, lambda each: each.equilibrium),
    (
        "shrink per step",
        "dashed: intended",
        lambda each: each.realised if each.shrink > 0 else math.nan,
        lambda each: each.shrink,
    ),
    ("angle per step", "radians", lambda each: each.angle, None),
    ("decay against update", "‖(1 − g)·w‖/‖η·h‖", lambda each: each.decay_to_update, None),
)


def course(samples: Sequence["Sample"]) -> Picture:
    """Draw the samples, a line for each role, or for each group where there are no roles."""
    labels = list(dict.fromkeys(label for sample in samples for label in sample.readings))
    shown = ([label for label in labels if not samples[0].is_group(label)] or labels)[: len(_COLOURS)]
    steps = f"steps {samples[0].step:,} to {samples[-1].step:,}"
    return picture(
        "course",
        lambda: _draw(samples, shown),
        f"Over {steps}, for {', '.join(shown)}: the norm of the weights and the norm at equilibrium, the realised and the "
        "intended shrink per step, the angle by which a step turns the weights, and the size of decay over that of update.",
    )


def _draw(samples: Sequence["Sample"], labels: Sequence[str]) -> Canvas:
    canvas = Canvas(len(_PANELS), _WIDTH, _HEIGHT, _MARGINS, 2)
    for panel, (title, remark, value, beside) in zip(canvas.panels, _PANELS, strict=True):
        headline(panel, title, remark, 1 + 0.12 / _HEIGHT)
        for label, colour in zip(labels, _COLOURS, strict=False):
            _line(panel, samples, label, value, color=colour)
            if beside is not None:
                _line(panel, samples, label, beside, color=colour, dashed=True)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(axis="y")
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel("step")
    x, y = canvas.strips[0]
    axes = canvas.axes(x, y, 2 * canvas.column, _MARGINS.strip)
    axes.axis("off")
    marks = [Line2D([], [], color=colour, label=label) for label, colour in zip(labels, _COLOURS, strict=False)]
    axes.legend(handles=marks, loc="center", ncols=len(marks), labelcolor=FAINT, handlelength=1.4, columnspacing=1.2)
    return canvas


def _line(panel: Axes, samples: Sequence["Sample"], label: str, value: Value, *, color: str, dashed: bool = False) -> None:
    """Draw what is known of a label and has a logarithm."""
    found = [(sample.step, value(sample.readings[label])) for sample in samples if label in sample.readings]
    points = [(step, y) for step, y in found if math.isfinite(y) and y > 0]
    if points:
        style = {"linestyle": "--", "linewidth": 1.0} if dashed else {"linewidth": 1.5}
        marker = "o" if len(points) == 1 else None
        panel.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=3, **style)
