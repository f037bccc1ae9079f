"""Numbers as a reader wants them: as many digits as their error deserves, accuracies in percent, a true minus sign."""

from dataclasses import dataclass
from math import floor, log10

from weightdecay.report.estimate import Estimate

__all__ = ["Units", "fixed", "plus_minus", "setting"]

_MOST = 6


def setting(value: float) -> str:
    """Print a learning rate or a λ to three digits.

    >>> setting(0.000316227766), setting(1e-05), setting(30.0)
    ('3.16e-4', '1e-5', '30')
    """
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


@dataclass(frozen=True)
class Units:
    """How a metric is printed: in percent, with differences in points, or as it is."""

    percent: bool

    def number(self, estimate: Estimate, *, signed: bool = False) -> str:
        """Print a metric or a difference without its unit.

        >>> Units(percent=True).number(Estimate(0.9784, 0.0021, 3)), Units(percent=False).number(Estimate(0.4512, None, 1))
        ('97.8 ± 0.2', '0.451')
        """
        if not self.percent:
            return plus_minus(estimate.mean, estimate.error, signed=signed)
        percent = estimate.times(100)
        if percent.error is None:
            return fixed(percent.mean, 1, signed=signed)
        return plus_minus(percent.mean, percent.error, signed=signed, decimals=(1, 2))

    def level(self, estimate: Estimate) -> str:
        """Print a metric."""
        return f"{self.number(estimate)}{' %' if self.percent else ''}"

    def change(self, estimate: Estimate) -> str:
        """Print a difference with its sign."""
        return f"{self.number(estimate, signed=True)}{' points' if self.percent else ''}"

    def size(self, estimate: Estimate) -> str:
        """Print how large a difference is, whatever its sign.

        >>> Units(percent=True).size(Estimate(-0.0162, 0.0031, 3))
        '1.6 ± 0.3 points'
        """
        size = self.number(estimate.times(-1 if estimate.mean < 0 else 1))
        return f"{size}{' points' if self.percent else ''}"

    def heading(self, name: str, *, difference: bool = False) -> str:
        """Name a column or an axis with its unit."""
        return f"{name}, {'points' if difference else '%'}" if self.percent else name
