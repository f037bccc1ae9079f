"""The words a rule may use besides operators, here on plain floats: the reference every backend answers to.

A backend gives the same names another meaning (torch operations, SymPy expressions, machine code); the rule stays as typed.
On floats the words follow IEEE 754 where Python does not: the root of a negative number is NaN, and no word raises, because
`where` computes both of its sides.
"""

import math

__all__ = ["ULPS", "WORDS", "absolute", "debias", "exp", "log", "maximum", "minimum", "power", "sign", "sqrt", "where"]


def absolute(x: float) -> float:
    """Return |x|."""
    return abs(x)


def sign(x: float) -> float:
    """Return −1, 0 or 1, the sign of x."""
    return x if math.isnan(x) else float((x > 0) - (x < 0))


def sqrt(x: float) -> float:
    """Return √x."""
    return math.sqrt(x) if x >= 0 else math.nan


def exp(x: float) -> float:
    """Return eˣ."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def log(x: float) -> float:
    """Return the natural logarithm of x."""
    if x > 0:
        return math.log(x)
    return -math.inf if x == 0 else math.nan


def power(x: float, exponent: float) -> float:
    """Return x to the exponent, for x ≥ 0 (`**` is not a word: not every backend has it)."""
    if x == 0 and exponent < 0:
        return math.inf
    try:
        return math.pow(x, exponent)
    except OverflowError:
        return math.inf
    except ValueError:
        return math.nan


def maximum(x: float, y: float) -> float:
    """Return the larger of x and y, or NaN if either is."""
    return x if x >= y or math.isnan(x) else y


def minimum(x: float, y: float) -> float:
    """Return the smaller of x and y, or NaN if either is."""
    return x if x <= y or math.isnan(x) else y


def where(condition: bool, x: float, y: float) -> float:
    """Return x where the condition holds and y elsewhere; both are computed."""
    return x if condition else y


def debias(beta: float, t: float) -> float:
    """Return 1 − βᵗ, the weight that t steps of a moving average with factor β have gathered.

    A word of its own because 1 − βᵗ loses digits while βᵗ is near 1, in float32 nearly all: backends compute −expm1(t·log β).
    """
    return -math.expm1(t * math.log(beta)) if beta > 0 else 1 - power(beta, t)


WORDS = tuple(name for name in __all__ if name not in ("ULPS", "WORDS"))
ULPS = {
    "absolute": 0.0,
    "sign": 0.0,
    "sqrt": 1.0,
    "exp": 2.0,
    "log": 2.0,
    "power": 2.0,
    "maximum": 0.0,
    "minimum": 0.0,
    "where": 0.0,
    "debias": 2.0,
}
"""How far the result of each word may be from the exact one in any backend, in units in the last place; half a unit is the
nearest number, which `+ - * /` give. Those of debias are units of 1, since what is left of 1 − βᵗ is as exact as βᵗ.

The libraries behind torch's operations choose their own way on every processor: a square root is not the nearest number
everywhere. What a backend makes of a rule is judged by a bound that these add up to, and not by what another one makes."""
