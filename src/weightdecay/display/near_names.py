"""What a user meant by a name that nobody has: the one look-up of near names, for rules, optimizers, tasks, words, options."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["hint", "nearest"]


def nearest(name: object, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the known names that are nearest to this one, upper and lower case aside, the nearest first.

    Args:
        name: what was asked for.
        known: what there is.
        most: how many names to return at most.
        cutoff: how near a name has to be: 1 is equal, 0 is any.

    >>> nearest("adamw", ["Adam", "AdamW", "RAdamW"]), nearest("AdmaW", ["AdamaxW", "AdamW"])
    (['AdamW'], ['AdamW'])
    >>> nearest("cosin", ["constant", "cosine"]), nearest("nonsense", ["constant", "cosine"])
    (['cosine'], [])
    """
    names: dict[str, list[str]] = {}
    for each in known:
        names.setdefault(each.casefold(), []).append(each)
    asked = str(name).casefold()
    close = get_close_matches(asked, names, max(most, _LIKE), cutoff)
    return [each for key in sorted(close, key=lambda key: _slips(asked, key)) for each in names[key]][:most]


_LIKE = 10
"""How many names that share letters are looked at for the one with the fewest slips."""


def _slips(typed: str, meant: str) -> int:
    """Return how many letters are too many, too few, wrong or in the place of their neighbour."""
    before: list[int] = []
    row = list(range(len(meant) + 1))
    for i, letter in enumerate(typed):
        older, before, row = before, row, [i + 1]
        for j, other in enumerate(meant):
            fewest = min(before[j + 1] + 1, row[j] + 1, before[j] + (letter != other))
            if i and j and letter == meant[j - 1] and typed[i - 1] == other:
                fewest = min(fewest, older[j - 1] + 1)
            row.append(fewest)
    return row[-1]


def hint(name: object, known: Iterable[str], *, otherwise: str = "") -> str:
    """Return the end of an error's sentence: the name that is near, else all names, or what to say `otherwise`.

    >>> hint("cosin", ["constant", "cosine"]), hint("x", ["constant", "cosine"])
    ("did you mean 'cosine'?", 'there are constant, cosine')
    """
    names = list(known)
    near = nearest(name, names)
    return f"did you mean {near[0]!r}?" if near else otherwise or f"there are {', '.join(names)}"
