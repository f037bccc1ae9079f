"""Tables in plain text."""

from collections.abc import Sequence


def aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table, its columns aligned.

    >>> aligned([("group", "decay"), ("0", "0.1")])
    ['group  decay', '0      0.1']
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
