"""What the pictures share: a style, panels at fixed places, and bytes in PNG and SVG.

A picture is a `Figure` without pyplot and its state, with everything placed in inches, so that nothing is laid out twice.
Its background is light in any theme, so that it looks the same in a page, a README and print.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from weightdecay.files import write

__all__ = ["FAINT", "Canvas", "Margins", "Picture", "headline", "picture", "save"]

_INK, FAINT = "#1f2430", "#5b6472"
_STYLE: Mapping[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#9aa1ac",
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e5e7eb",
    "hatch.color": "#c2c7cf",
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "weightdecay",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}
_POINTS = 72
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
    column.
    """

    def __init__(self, count: int, width: float, height: float, margins: Margins, strips: int) -> None:
        columns, self.column = min(max(count, 1), 2), margins.left + width + margins.right
        line = margins.top + height + margins.bottom
        rows, strip_rows = ceil(count / columns), ceil(strips / columns)
        self.across, self.down = columns * self.column, rows * line + strip_rows * margins.strip
        self.figure = Figure(figsize=(self.across, self.down), facecolor="white")
        corners = [(n % columns * self.column, n // columns * line) for n in range(count)]
        below = [(n % columns * self.column, rows * line + n // columns * margins.strip) for n in range(strips)]
        self.panels = [self.axes(x + margins.left, self.down - y - margins.top - height, width, height) for x, y in corners]
        self.strips = [(x, self.down - y - margins.strip) for x, y in below]
        self._boxes = [(*corner, line) for corner in corners] + [(*corner, margins.strip) for corner in below]

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
        return buffer.getvalue()

    def stacked(self, svg: str) -> str:
        """Return an SVG that shows the panels and strips of this figure's SVG below each other, each cut out of the whole.

        It costs no second drawing, which takes most of the time of a report.
        """
        opening, body = re.split(r"(?<=>)", svg[svg.index("<svg") :], maxsplit=1)
        width, height = _POINTS * self.column, _POINTS * sum(tall for _, _, tall in self._boxes)
        windows, top = [], 0.0
        for x, y, tall in self._boxes:
            view = f"{_POINTS * x:g} {_POINTS * y:g} {width:g} {_POINTS * tall:g}"
            size = f'y="{top:g}" width="{width:g}" height="{_POINTS * tall:g}"'
            windows.append(f'<svg {size} viewBox="{view}"><use href="#whole"/></svg>')
            top += _POINTS * tall
        namespaces = " ".join(re.findall(r'xmlns(?::\w+)?="[^"]*"', opening))
        return (
            f'<svg {namespaces} width="{width:g}pt" height="{height:g}pt" viewBox="0 0 {width:g} {height:g}">'
            f'<defs><g id="whole">{body.rstrip().removesuffix("</svg>")}</g></defs>{"".join(windows)}</svg>'
        )


def headline(panel: Axes, name: str, remark: str, height: float) -> None:
    """Write a name above a panel, and a remark at its right end."""
    short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    panel.text(0, height, short, transform=panel.transAxes, weight="bold", size=11)
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
