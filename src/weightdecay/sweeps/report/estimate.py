"""A mean over seeds, how far to trust it, and Student's t for the few seeds that a sweep has."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import atan2, cos, inf, pi, sin, sqrt
from statistics import fmean, stdev
from typing import Any

__all__ = ["Estimate", "student_p", "student_quantile"]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error over `count` seeds; one seed has no standard error."""

    mean: float
    error: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Estimate":
        """Estimate the mean of one value per seed."""
        values = list(values)
        error = stdev(values) / sqrt(len(values)) if len(values) > 1 else None
        return cls(fmean(values), error, len(values))

    @property
    def p(self) -> float | None:
        """Return the two-sided p of Student's t against a mean of 0, None for one seed."""
        if self.error is None:
            return None
        if self.mean == 0:
            return 1.0
        return student_p(abs(self.mean) / self.error if self.error else inf, self.count - 1)

    def times(self, factor: float) -> "Estimate":
        """Return the estimate in another unit, or of the opposite difference."""
        return Estimate(factor * self.mean, None if self.error is None else abs(factor) * self.error, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON can hold them."""
        return {**asdict(self), "p": self.p}


def student_p(t: float, freedom: int) -> float:
    """Return the probability that |Student's t| with a whole number of degrees of freedom exceeds t ≥ 0.

    The finite series of Abramowitz & Stegun 26.7.3 (odd) and 26.7.4 (even), so that it needs no SciPy.

    >>> round(student_p(4.3027, 2), 4)
    0.05
    """
    angle = atan2(t, sqrt(freedom))
    term = cos(angle) if freedom % 2 else 1.0
    series = 0.0
    for k in range(freedom % 2, freedom - 1, 2):
        series += term
        term *= cos(angle) ** 2 * (k + 1) / (k + 2)
    inside = 2 / pi * (angle + sin(angle) * series) if freedom % 2 else sin(angle) * series
    return max(0.0, 1 - inside)


def student_quantile(freedom: int, p: float = 0.05) -> float:
    """Return the t that |Student's t| exceeds with probability p, to ten digits.

    >>> round(student_quantile(2), 3)
    4.303
    """
    low, high = 0.0, 1.0
    while student_p(high, freedom) > p:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, freedom) > p else (low, middle)
    return high
