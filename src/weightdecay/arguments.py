"""Checks of what users pass to a function: a number in an interval, a whole number, one of a few words."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from torch import Tensor

from weightdecay.interval import Interval
from weightdecay.near import hint


def unboxed(value: Any) -> Any:
    """Return the Python number in a NumPy scalar or an array of no dimensions, and anything else as it is.

    >>> import numpy
    >>> unboxed(numpy.array(0.5)), unboxed(numpy.bool_(True)), unboxed(0.5)
    (0.5, True, 0.5)
    """
    is_boxed = not isinstance(value, Tensor) and getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None))
    return value.item() if is_boxed else value


def number(name: str, value: Any, allowed: str) -> float:
    """Return a number as a float, or refuse it by its name."""
    plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else unboxed(value)
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
