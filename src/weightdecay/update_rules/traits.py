"""The shrink of a step: the share of itself that a weight without a gradient loses."""

import ast
import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from functools import cache, lru_cache

import torch

from weightdecay.update_rules.rule import Rule


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

    >>> from weightdecay.update_rules.registry import REGISTRY
    >>> at_rest(REGISTRY["decay", "decoupled"], {"eta": 1e-3, "lam": 1e-20})
    1e-23
    """
    return _at_rest(decay, tuple(numbers[name] for name in decay.numbers))


@lru_cache(maxsize=4096)  # groups have few numbers between them, and fractions are slow
def _at_rest(decay: Rule, values: tuple[float, ...]) -> float:
    given = dict(zip(decay.numbers, values, strict=True))
    if not all(map(math.isfinite, values)):
        return math.inf
    kept = decay.function(Fraction(1), Fraction(0), **{name: Fraction(value) for name, value in given.items()})
    try:
        return float(1 - kept)
    except OverflowError:
        return math.inf


@cache
def is_uniform(decay: Rule) -> bool:
    """Tell whether all that a decay does is multiply every old weight by one number: w becomes (1 − s)·w − η·u.

    Then s is `at_rest`, and neither u nor the old weight has to be known. Asked of the rule, on fractions.

    >>> from weightdecay.update_rules.registry import REGISTRY
    >>> is_uniform(REGISTRY["decay", "decoupled"]), is_uniform(REGISTRY["decay", "cautious"])
    (True, False)
    """
    if decay.reductions or decay.keeps or "eta" not in decay.numbers or "t" in decay.numbers or _bends(decay):
        return False
    for size, usual in itertools.product((Fraction(1, 2), Fraction(1, 64)), (decay.defaults, {})):
        numbers = {**dict.fromkeys(decay.numbers, size), **{name: Fraction(x) for name, x in usual.items()}}
        factor = decay.function(Fraction(1), Fraction(0), **numbers)
        for w, u in itertools.product(map(Fraction, (-40, -1.5, 0, 0.25, 1e-3)), map(Fraction, (-3, 0, 0.5))):
            if decay.function(w, u, **numbers) != factor * w - numbers["eta"] * u:
                return False
    return True


def _bends(decay: Rule) -> bool:
    """Tell whether a decay hands w, u or what it makes of them to a word or a comparison: no few values settle such a one."""
    moving = set(decay.elements)

    def touches(node: ast.AST) -> bool:
        return any(isinstance(each, ast.Name) and each.id in moving for each in ast.walk(node))

    for statement in decay.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Call | ast.Compare) and touches(node):
                return True
        if isinstance(statement, ast.Assign) and touches(statement.value):
            moving |= {each.id for target in statement.targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return False


def rounded_away(dtype: torch.dtype) -> float:
    """Return the largest shrink that changes no weight of a dtype where w·(1 − s) is rounded to nearest.

    >>> rounded_away(torch.bfloat16) == 2**-9
    True
    """
    return torch.finfo(dtype).eps / 4
