"""Tables in plain text."""

import re
from collections.abc import Iterable, Sequence
from textwrap import wrap


def aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table, its columns aligned.

    >>> aligned([("group", "decay"), ("0", "0.1")])
    ['group  decay', '0      0.1']
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]


def fitted(text: str, width: int) -> str:
    """Return a text, tables included, whose lines are at most so wide: what does not fit goes on below, indented.

    A line of a table goes on below the last of its columns that starts in the left half, and any other line below its start.
    A bar is drawn again with fewer blocks.

    >>> print(fitted("0  0.weight  a matrix of the model", 24))
    0  0.weight  a matrix of
       the model
    >>> fitted("      ████▆▆▄▄▂▂", 12)
    '   ████▆▄▄▂▂'
    """
    return "\n".join(part for line in text.split("\n") for part in _parts(line, width))


def _parts(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    start = len(line) - len(line.lstrip())
    if set(line.strip()) <= _BLOCKS:
        indent = min(start, width // 4)
        return [" " * indent + _resampled(line.strip(), width - indent)]
    columns = [match.end() for match in re.finditer(r"\S {2,}(?=\S)", line) if match.end() <= width // 2]
    is_table = re.search(r"\S {2,}\S", line) is not None
    below = " " * (columns[-1] if columns else min(start + 4 * is_table, width // 2))
    return [part.rstrip() for part in wrap(line, width, subsequent_indent=below, break_on_hyphens=False)]


_BLOCKS = set("▁▂▃▄▅▆▇█")


def _resampled(bar: str, width: int) -> str:
    """Return a bar with so many of its blocks, evenly apart, the first and the last among them."""
    places = (round(k * (len(bar) - 1) / max(width - 1, 1)) for k in range(width))
    return "".join(bar[place] for place in places)


def some(names: Iterable[str], most: int = 3) -> str:
    """Return the first names, quoted, and how many more there are.

    >>> some(["a", "b", "c", "d"])
    "'a', 'b', 'c' and 1 more"
    """
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most} more" if len(quoted) > most else "")
