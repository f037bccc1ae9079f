"""The shrink of a step: the share of itself that a weight without a gradient loses."""

import math
from collections.abc import Mapping
from fractions import Fraction

import torch

from weightdecay.rule import Rule


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


def at_rest(decay: Rule, numbers: Mapping[str, float]) -> float:
    """Return what a decay takes of a weight whose u is 0, to the last digit: the rule is run on fractions.

    `numbers` are those of the decay, by its own names for them; others are not looked at.

    >>> from weightdecay.rule import REGISTRY
    >>> at_rest(REGISTRY["decay", "decoupled"], {"eta": 1e-3, "lam": 1e-20})
    1e-23
    """
    given = {name: numbers[name] for name in decay.numbers}
    if not all(map(math.isfinite, given.values())):
        return math.inf
    kept = decay.function(Fraction(1), Fraction(0), **{name: Fraction(value) for name, value in given.items()})
    try:
        return float(1 - kept)
    except OverflowError:
        return math.inf


def rounded_away(dtype: torch.dtype) -> float:
    """Return the largest shrink that changes no weight of a dtype where w·(1 − s) is rounded to nearest.

    >>> rounded_away(torch.bfloat16) == 2**-9
    True
    """
    return torch.finfo(dtype).eps / 4
