"""Checks of what users pass to a function: a number in an interval, a whole number, one of a few words."""

import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from weightdecay.display.near_names import hint


def _is_tensor(value: Any) -> bool:
    """Return whether a value is one of torch's tensors, without importing torch for it: the command line is quick without."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def unboxed(value: Any) -> Any:
    """Return the Python number in a NumPy scalar or an array of no dimensions, and anything else as it is.

    >>> import numpy
    >>> unboxed(numpy.array(0.5)), unboxed(numpy.bool_(True)), unboxed(0.5)
    (0.5, True, 0.5)
    """
    is_boxed = not _is_tensor(value) and getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None))
    return value.item() if is_boxed else value


def number(name: str, value: Any, allowed: str) -> float:
    """Return a number as a float, or refuse it by its name."""
    plain = value.item() if _is_tensor(value) and value.numel() == 1 else unboxed(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise TypeError(f"{name}={value!r} is not a number; give a float such as {name}=0.1")
    try:
        found = float(plain)
    except OverflowError:
        found = math.nan
    if found not in Interval(allowed):
        raise ValueError(f"{name}={plain!r} is not a number in {allowed}")
    return found


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number as an int, or refuse it by its name."""
    found = number(name, value, "(-inf, inf)")
    if found != int(found) or found < least:
        raise ValueError(f"{name}={value!r} is not a whole number from {least} on")
    return int(found)


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """Return one of the words that are known, or refuse it and name the nearest."""
    names = list(known)
    if value in names:
        return str(value)
    raise ValueError(f"{name}={value!r} is unknown: {hint(value, names)}")


@dataclass(frozen=True)
class Interval:
    """All numbers between two ends, as in "[0, 1)": a square bracket takes its end in, a round one leaves it out.

    In braces, as in "{0, …, 9}", the whole numbers between them, with both ends.

    >>> 0 in Interval("[0, 1)"), 1 in Interval("[0, 1)"), 1 in Interval("{0, …, 9}"), 0.5 in Interval("{0, …, 9}")
    (True, False, True, False)
    """

    text: str
    low: float = field(init=False, repr=False)
    high: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        number = r"\s*([-+\w.]+)\s*"
        forms = rf"[\[(]{number},{number}[\])]|\{{{number},\s*…\s*,{number}\}}"
        found = re.fullmatch(forms, self.text) if isinstance(self.text, str) else None
        try:
            low, high = (float(end) for end in found.groups() if end is not None) if found else (1.0, 0.0)
        except ValueError:
            low, high = 1.0, 0.0
        if not low <= high:
            raise ValueError(f'{self.text!r} is not an interval such as "[0, 1)" or "(0, inf)"')
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def __contains__(self, value: float) -> bool:
        if self.text[0] == "{" and value % 1 != 0:
            return False
        above = value >= self.low if self.text[0] in "[{" else value > self.low
        below = value <= self.high if self.text[-1] in "]}" else value < self.high
        return above and below

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Choice:
    """A few words, of which one is allowed; None stands for a word that is not given.

    >>> "up" in Choice(("up", "down")), str(Choice(("up", "down", None)))
    (True, '{up, down}')
    """

    words: tuple[str | None, ...]

    def __contains__(self, value: object) -> bool:
        return any(value is word or (isinstance(value, str) and value == word) for word in self.words)

    def __str__(self) -> str:
        return f"{{{', '.join(word for word in self.words if word is not None)}}}"


def geometric(first: float, last: float, count: int) -> tuple[float, ...]:
    """Return `count` numbers in equal ratios, rounded to three digits as a person would write them.

    >>> geometric(1e-3, 1e-1, 3)
    (0.001, 0.01, 0.1)
    """
    ratio = (last / first) ** (1 / max(count - 1, 1))
    return tuple(float(f"{first * ratio**i:.3g}") for i in range(count))
