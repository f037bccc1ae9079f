"""Lines of a table that differ in the numbers of their names alone, as one: `layers.{0…31}.mlp.weight × 32`."""

from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby

__all__ = ["folded"]

_FEWEST = 3
"""How many numbers a part of a name has to take before it is written as a set: a model of two layers is shown as it is."""
_Box = tuple[frozenset[int], ...]


def folded(names: Sequence[str], alike: Sequence[Hashable]) -> list[tuple[str, list[int]]]:
    """Return the names, those of one kind that differ in numbers alone as one, each with the places of what it stands for.

    Args:
        names: dotted names; a part that is a whole number is one of its numbers.
        alike: of each name, what has to be the same in those that become one.

    >>> folded(["l.0.w", "l.0.b", "l.1.w", "l.1.b", "l.2.w", "l.2.b", "head.w"], "wbwbwbw")
    [('l.{0…2}.w × 3', [0, 2, 4]), ('l.{0…2}.b × 3', [1, 3, 5]), ('head.w', [6])]
    """
    kinds: dict[Hashable, dict[tuple[int, ...], int]] = {}
    for place, (name, kind) in enumerate(zip(names, alike, strict=True)):
        parts = name.split(".")
        numbers = tuple(int(part) for part in parts if _is_number(part))
        template = ".".join("" if _is_number(part) else part or "." for part in parts)
        kinds.setdefault((template, kind), {})[numbers] = place
    found = []
    for places in kinds.values():
        for box in _boxes(places):
            held = sorted(
                place for numbers, place in places.items() if all(n in ns for n, ns in zip(numbers, box, strict=True))
            )
            found.append((_written(names[held[0]], box, len(held)), held))
    return sorted(found, key=lambda each: each[1][0])


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and part == str(int(part)) if len(part) < 19 else False


def _boxes(points: Iterable[tuple[int, ...]]) -> list[_Box]:
    """Return sets of numbers, one for each part of a name, whose combinations are the points, each once."""
    boxes: list[_Box] = [tuple(frozenset([number]) for number in point) for point in points]
    for axis in reversed(range(len(boxes[0]))):
        together: dict[_Box, list[_Box]] = {}
        for box in boxes:
            together.setdefault((*box[:axis], *box[axis + 1 :]), []).append(box)
        boxes = []
        for same in together.values():
            numbers = frozenset().union(*(box[axis] for box in same))
            boxes += [(*same[0][:axis], numbers, *same[0][axis + 1 :])] if len(numbers) >= _FEWEST else same
    return boxes


def _written(name: str, box: _Box, count: int) -> str:
    sets = iter(box)
    parts = [_set(next(sets), part) if _is_number(part) else part for part in name.split(".")]
    return ".".join(parts) + (f" × {count}" if count > 1 else "")


def _set(numbers: frozenset[int], alone: str) -> str:
    """Return numbers in braces, those in a row by their ends.

    >>> _set(frozenset([0, 1, 2, 5, 7, 8]), "0"), _set(frozenset([4]), "4")
    ('{0…2,5,7,8}', '4')
    """
    if len(numbers) == 1:
        return alone
    rows = [[n for _, n in row] for _, row in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])]
    return "{" + ",".join(f"{row[0]}…{row[-1]}" if len(row) > 2 else ",".join(map(str, row)) for row in rows) + "}"
