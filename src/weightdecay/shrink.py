"""The shrink of a step: the share of itself that a weight without a gradient loses."""

import math


def steps_to_halve(shrink: float) -> float:
    """Return in how many such steps a weight halves in size: infinity where it does not, NaN of NaN.

    >>> round(steps_to_halve(0.01), 1), steps_to_halve(0.5), steps_to_halve(3.0)
    (69.0, 1.0, inf)
    """
    if math.isnan(shrink):
        return math.nan
    if not 0 < shrink < 2:  # what is more than doubled back grows
        return math.inf
    if shrink == 1:
        return 1.0
    return -math.log(2) / (math.log1p(-shrink) if shrink < 1 else math.log(shrink - 1))
