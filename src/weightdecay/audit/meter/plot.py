"""What a meter has measured over the steps of a run: norm, shrink, angle, and decay against update."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from weightdecay.display.figure import (
    AMBER,
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    PINK,
    PURPLE,
    RED,
    TEAL,
    Canvas,
    Margins,
    Picture,
    headline,
    logarithmic,
    picture,
    shortened,
)

if TYPE_CHECKING:  # which draws with this module, when asked to
    from weightdecay.audit.meter.metrics import Reading, Sample

__all__ = ["course"]

_COLOURS = (BLUE, RED, GREEN, PURPLE, AMBER, TEAL, PINK, GREY, INK)
_OF_ROLES: Mapping[str, str] = {
    "weight": BLUE, "bias": RED, "norm": GREEN, "norm.around_one": GREEN, "embedding": PURPLE, "embedding.tied": PURPLE,
    "position": AMBER, "token": PINK, "expert": TEAL, "scale_invariant": TEAL, "lora.a": TEAL, "lora.b": PINK,
    "weight_norm.gain": GREEN, "weight_norm.direction": TEAL, "state_space": AMBER, "scalar": GREY, "vector": INK,
    "logit_scale": INK,
}  # fmt: skip
"""The colour of a role, the same in every picture. Two that share one are seldom in one model."""
_OF_OTHERS = (TEAL, PINK, GREY, INK)
"""Of a user's own roles: what the usual ones leave."""
_IN_A_LINE = 4
_POINTS = 40
"""So few samples are shown as points, too."""
_WIDTH, _HEIGHT = 3.3, 1.9
_LEFT, _RIGHT, _ABOVE, _BELOW, _LINE = 0.75, 0.25, 0.45, 0.55, 0.22

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


def colours(labels: Sequence[str]) -> dict[str, str]:
    """Return a colour for each role or group. It belongs to the name: other labels, and their order, do not change it.

    Only where two labels share a colour the one later in the alphabet takes another that is free.

    >>> colours(["bias", "weight"])["weight"] == colours(["weight"])["weight"]
    True
    """
    found: dict[str, str] = {}
    for label in sorted(labels, key=lambda label: (label not in _OF_ROLES, label)):
        number = label.removeprefix("group")
        if number.isdecimal():
            own = _COLOURS[int(number) % len(_COLOURS)]
        else:
            own = _OF_ROLES.get(label, _OF_OTHERS[zlib.crc32(label.encode()) % len(_OF_OTHERS)])
        free = [colour for colour in _COLOURS if colour not in found.values()]
        found[label] = own if own in free or not free else free[0]
    return found


def course(samples: Sequence["Sample"]) -> Picture:
    """Draw the samples, a line for each role, or for each group where there are no roles."""
    labels = list(dict.fromkeys(label for sample in samples for label in sample.readings))
    roles = [label for label in labels if not samples[0].is_group(label)]
    shown = (roles or labels)[: len(_COLOURS)]
    left_out = len(roles or labels) - len(shown)
    steps = f"steps {samples[0].step:,} to {samples[-1].step:,}"
    return picture(
        "course",
        lambda: _draw(samples, shown, left_out),
        f"Over {steps}, for {', '.join(shown)}: the norm of the weights and the norm at equilibrium, the realised and the "
        "intended shrink per step, the angle by which a step turns the weights, and the size of decay over that of update.",
    )


def _draw(samples: Sequence["Sample"], labels: Sequence[str], left_out: int) -> Canvas:
    entries = len(labels) + (left_out > 0)
    margins = Margins(_LEFT, _RIGHT, _ABOVE, _BELOW, strip=0.15 + _LINE * math.ceil(entries / _IN_A_LINE))
    canvas, coloured = Canvas(len(_PANELS), _WIDTH, _HEIGHT, margins, 2), colours(labels)
    for panel, (title, remark, value, beside) in zip(canvas.panels, _PANELS, strict=True):
        headline(panel, title, remark, 1 + 0.12 / _HEIGHT)
        for label in labels:
            _line(panel, samples, label, value, color=coloured[label])
            if beside is not None:
                _line(panel, samples, label, beside, color=coloured[label], dashed=True)
        logarithmic(panel)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.grid(axis="y")
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel("step")
    x, y = canvas.strips[0]
    axes = canvas.axes(x, y, 2 * canvas.column, margins.strip)
    axes.axis("off")
    marks = [Line2D([], [], color=coloured[label], label=shortened(label)) for label in labels]
    if left_out:
        marks.append(Line2D([], [], linestyle="none", label=f"and {left_out} more"))
    columns = min(len(marks), _IN_A_LINE)
    axes.legend(handles=marks, loc="center", ncols=columns, labelcolor=FAINT, handlelength=1.4, columnspacing=1.2)
    return canvas


def _line(panel: Axes, samples: Sequence["Sample"], label: str, value: Value, *, color: str, dashed: bool = False) -> None:
    """Draw what is known of a label and has a logarithm."""
    found = [(sample.step, value(sample.readings[label])) for sample in samples if label in sample.readings]
    points = [(step, y) for step, y in found if math.isfinite(y) and y > 0]
    if points:
        style = {"linestyle": "--", "linewidth": 1.0} if dashed else {"linewidth": 1.5}
        marker = None if len(points) > _POINTS or (dashed and len(points) > 1) else "o"
        panel.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=2.5, **style)
