"""What the pictures share: colours, a style, panels at fixed places, and bytes in PNG and SVG.

A picture is a `Figure` without pyplot and its state, with everything placed in inches, so that nothing is laid out twice.
It is drawn in the colours of a light theme. An SVG has those of a dark one beside them, which a browser takes where the reader
has asked for dark pages; a PNG stays light.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import ceil, log10
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from weightdecay.display.files import write
from weightdecay.display.numbers import setting

__all__ = [
    *("ABSENT", "AMBER", "BLACK", "BLUE", "DARK", "FAINT", "GREEN", "GREY", "INK", "PAPER", "PINK", "PURPLE", "RED", "TEAL"),
    *("WHITE", "Canvas", "Margins", "Picture", "headline", "logarithmic", "picture", "save", "shortened"),
]

PAPER, INK, FAINT, GREY, ABSENT = "#ffffff", "#1f2430", "#5b6472", "#7a828e", "#f1f3f5"
BLUE, RED, GREEN, PURPLE = "#2563a8", "#b3372f", "#2f7d4f", "#8a5bb0"
AMBER, TEAL, PINK = "#a86a0d", "#2e7d8c", "#b53a7c"
_AXIS, _GRID, _HATCH = "#9aa1ac", "#e5e7eb", "#c2c7cf"
WHITE, BLACK = "#fefefe", "#010101"
"""Of marks that stand on other colours, and stay what they are in any theme."""
DARK: Mapping[str, str] = {
    PAPER: "#1c2026", INK: "#e6e9ed", FAINT: "#a3adb9", GREY: "#8d96a3", ABSENT: "#2b313a",
    BLUE: "#6cabee", RED: "#f0877d", GREEN: "#5fbf87", PURPLE: "#bd97e0", AMBER: "#dba64c", TEAL: "#68bccb", PINK: "#ea86b8",
    _AXIS: "#5f6875", _GRID: "#333a44", _HATCH: "#4d5560",
}  # fmt: skip
"""What the colours are in a dark theme."""
_STYLE: Mapping[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": _AXIS,
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "figure.facecolor": PAPER,
    "grid.color": _GRID,
    "hatch.color": _HATCH,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "weightdecay",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}
_POINTS = 72
"""To the inch."""
_LONGEST = 22


@dataclass(frozen=True)
class Picture:
    """A picture as an SVG, a PNG, and a narrow SVG with its panels in one column, with what it shows in words."""

    name: str
    svg: str
    png: bytes
    narrow: str
    alt: str


@dataclass(frozen=True)
class Margins:
    """The room around a panel, and the height of a strip below all panels, in inches."""

    left: float
    right: float
    top: float
    bottom: float
    strip: float


class Canvas:
    """A figure with `count` panels of a given size in inches, in two columns if there are two, above one or two strips.

    `strips` holds the left and lower ends of the strips, where a colour scale or a legend can go; each is as wide as a
    column. `boxes` holds the left and upper ends and the heights of the panels with their margins, and of the strips.
    """

    def __init__(self, count: int, width: float, height: float, margins: Margins, strips: int) -> None:
        columns, self.column = min(max(count, 1), 2), margins.left + width + margins.right
        line = margins.top + height + margins.bottom
        rows, strip_rows = ceil(count / columns), ceil(strips / columns)
        self.across, self.down = columns * self.column, rows * line + strip_rows * margins.strip
        self.figure = Figure(figsize=(self.across, self.down), facecolor=PAPER)
        corners = [(n % columns * self.column, n // columns * line) for n in range(count)]
        below = [(n % columns * self.column, rows * line + n // columns * margins.strip) for n in range(strips)]
        self.panels = [self.axes(x + margins.left, self.down - y - margins.top - height, width, height) for x, y in corners]
        self.strips = [(x, self.down - y - margins.strip) for x, y in below]
        self.boxes = [(*corner, line) for corner in corners] + [(*corner, margins.strip) for corner in below]

    def axes(self, left: float, lower: float, width: float, height: float) -> Axes:
        """Add axes at a place in inches from the lower left corner."""
        return self.figure.add_axes((left / self.across, lower / self.down, width / self.across, height / self.down))

    def encode(self, kind: Literal["png", "svg"]) -> bytes:
        """Return the figure as the bytes of a file."""
        buffer = BytesIO()
        if kind == "png":
            self.figure.savefig(buffer, format=kind, dpi=144, pil_kwargs={"compress_level": 3})
        else:
            # A date in the file would make equal sweeps give unequal pictures.
            self.figure.savefig(buffer, format=kind, metadata={"Date": None})
            return _themed(buffer.getvalue().decode()).encode()
        return buffer.getvalue()

    def stacked(self, svg: str) -> str:
        """Return an SVG that shows the panels and strips of this figure's SVG below each other, each cut out of the whole.

        It costs no second drawing, which takes most of the time of a report.
        """
        opening, body = re.split(r"(?<=>)", svg[svg.index("<svg") :], maxsplit=1)
        width, height = _POINTS * self.column, _POINTS * sum(tall for _, _, tall in self.boxes)
        windows, top = [], 0.0
        for x, y, tall in self.boxes:
            view = f"{_POINTS * x:g} {_POINTS * y:g} {width:g} {_POINTS * tall:g}"
            size = f'y="{top:g}" width="{width:g}" height="{_POINTS * tall:g}"'
            windows.append(f'<svg {size} viewBox="{view}"><use href="#whole"/></svg>')
            top += _POINTS * tall
        namespaces = " ".join(re.findall(r'xmlns(?::\w+)?="[^"]*"', opening))
        return (
            f'<svg {namespaces} width="{width:g}pt" height="{height:g}pt" viewBox="0 0 {width:g} {height:g}">'
            f'<defs><g id="whole">{body.rstrip().removesuffix("</svg>")}</g></defs>{"".join(windows)}</svg>'
        )


def _themed(svg: str) -> str:
    """Return an SVG with the colours of a dark theme in a style sheet, which whoever knows no style sheets leaves aside."""
    rules = [
        f"{found}{{{what}:{dark}!important}}"
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
        for found, text in ((f'[style*="{what}: {light}"]', f"{what}: {light}"), (f'[{what}="{light}"]', f'{what}="{light}"'))
        if text in svg  # the second is a hatched ground
    ]
    opening = re.search(r"<svg[^>]*>", svg)
    assert opening is not None
    sheet = f"<style>@media (prefers-color-scheme: dark){{{''.join(rules)}}}</style>"
    return f"{svg[: opening.end()]}\n {sheet}{svg[opening.end() :]}"


def shortened(name: str) -> str:
    """Return a name that fits above a panel or into a legend.

    >>> shortened("weight"), shortened("a_role_with_a_very_long_name")
    ('weight', 'a_role_with_a_very_lo…')
    """
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def logarithmic(panel: Axes) -> None:
    """Give a panel a logarithmic axis upward that has a few numbers beside it, however little of a decade it spans."""
    drawn = [float(y) for line in panel.lines for y in np.asarray(line.get_ydata())]
    if not drawn:  # no line at all says no number
        panel.set_yticks([])
        return
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    decades = log10(high / low)
    # At powers of ten and some multiples of them; the fewer powers there are, the more multiples.
    subs = (1,) if decades > 2 else (1, 2, 5) if decades > 0.9 else None
    panel.yaxis.set_major_locator(MaxNLocator(4) if subs is None else LogLocator(subs=subs, numticks=8))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: setting(y)))


def headline(panel: Axes, name: str, remark: str, height: float) -> None:
    """Write a name above a panel, and a remark at its right end."""
    panel.text(0, height, shortened(name), transform=panel.transAxes, weight="bold", size=11)
    panel.text(1, height, remark, transform=panel.transAxes, ha="right", size=8.5, color=FAINT)


def picture(name: str, draw: Callable[[], Canvas], alt: str) -> Picture:
    """Draw a picture in our own style, whatever the user's matplotlibrc says."""
    # matplotlib warns of a character that its font lacks; a name may hold any.
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        canvas = draw()
        svg = canvas.encode("svg").decode()
        return Picture(name, svg, canvas.encode("png"), canvas.stacked(svg), alt)


def save(path: str | Path, draw: Callable[[], Picture]) -> None:
    """Draw a picture into a .png or a .svg, after a look at whether it can be written there.

    Raises:
        ValueError: the path is neither.
        FileNotFoundError: there is no such folder.
    """
    kind, folder = Path(path).suffix.lower(), Path(path).parent
    if kind not in (".png", ".svg"):
        raise ValueError(f"path={str(path)!r} is neither a .png nor a .svg")
    if not folder.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: there is no folder {str(folder)!r}")
    found = draw()
    write(Path(path), found.png if kind == ".png" else found.svg.encode())
