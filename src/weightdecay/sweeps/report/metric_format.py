"""Numbers as a reader wants them: as many digits as their error deserves, accuracies in percent, a true minus sign."""

from dataclasses import dataclass

from weightdecay.display.numbers import fixed, plus_minus, setting
from weightdecay.sweeps.report.estimate import Estimate

__all__ = ["Units", "fixed", "plus_minus", "setting"]


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
