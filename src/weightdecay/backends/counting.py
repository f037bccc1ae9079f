"""How a step is counted in the float32 that torch keeps, written once for all backends in the words of `rounding`.

From 2²⁴ on a float32 has no t + 1: a count of torch's stands still there. Ours moves on, because random bits are drawn from it.
"""

import ctypes
from typing import Any

from weightdecay.backends.rounding import number, pattern, value, where, whole
from weightdecay.update_rules import ops
from weightdecay.update_rules.rule import bind

EXACT = 2.0**24
"""Up to here float32 has every whole number."""


def following(t: Any) -> Any:
    """Return the count after t, a float32: t + 1 below 2²⁴, and the next larger float from there on.

    The last float below a power of two is followed by the previous power: a count beyond 2²⁴ stays within a factor of 2 of
    where torch's stands. It is another one at each of 2²³ steps, which is what random bits ask of it.

    >>> following_of_host(7.0), following_of_host(2.0**24), following_of_host(2.0**25 - 2)
    (8.0, 16777218.0, 16777216.0)
    """
    bits = pattern(t)
    return where(t < EXACT, t + 1, value((bits & ~0x7FFFFF) + ((bits + 1) & 0x7FFFFF)))


def drawn_from(t: Any) -> Any:
    """Return of a count what `rounding.keys` takes: the whole number, or from 2²⁴ on its bits, which fit into 32 of any count.

    >>> drawn_from_of_host(7.0), hex(drawn_from_of_host(2.0**55))
    (7, '0x5b000000')
    """
    counts = t < EXACT
    return where(counts, whole(where(counts, t, 0.0)), pattern(number(t)))


def _pattern(x: float) -> int:
    return ctypes.c_int32.from_buffer(ctypes.c_float(x)).value


def _value(pattern: int) -> float:
    return ctypes.c_float.from_buffer(ctypes.c_int32(pattern)).value


_OF_HOST = {"pattern": _pattern, "value": _value, "number": float, "where": ops.where, "whole": int}
following_of_host = bind(following, _OF_HOST)
drawn_from_of_host = bind(drawn_from, _OF_HOST)
