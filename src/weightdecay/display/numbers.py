"""Numbers in text."""

import math
from math import floor, log10

_MOST = 6


def setting(value: float) -> str:
    """Print a learning rate or a λ to three digits.

    >>> setting(0.000316227766), setting(1e-05), setting(30.0)
    ('3.16e-4', '1e-5', '30')
    """
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def plus_minus(mean: float, error: float | None, *, signed: bool = False, decimals: tuple[int, int] = (0, _MOST)) -> str:
    """Print a mean and its standard error to the error's first digit, or its second where the first is 1.

    `decimals` are the fewest and the most to print.

    >>> plus_minus(1.6234, 0.312), plus_minus(-0.0071, 0.0142, signed=True), plus_minus(0.25, None)
    ('1.6 ± 0.3', '−0.007 ± 0.014', '0.25')
    """
    sign = "+" if signed else ""
    if error is None:
        return _minus(f"{mean:{sign}.3g}")
    deserved = _decimals(error)
    if deserved > _MOST or abs(mean) >= 10**_MOST:
        return _minus(f"{mean:{sign}.3g} ± {error:.2g}")
    few, most = decimals
    digits = min(max(deserved, few), most)
    return f"{fixed(mean, digits, signed=signed)} ± {error:.{digits}f}"


def fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    """Print a number with so many decimals, and never a minus before a zero.

    >>> fixed(-0.04, 1), fixed(-0.06, 1), fixed(2.0, 1, signed=True)
    ('0.0', '−0.1', '+2.0')
    """
    return _minus(f"{round(value, decimals) + 0.0:{'+' if signed else ''}.{decimals}f}")


def _decimals(error: float) -> int:
    """Return how many decimals an error deserves."""
    if error == 0:
        return 3
    exponent = floor(log10(error))
    return -exponent + (error / 10.0**exponent < 1.95)


def _minus(text: str) -> str:
    return "−" + text[1:] if text.startswith("-") else text
