"""L1: the sum of the absolute weights, λΣ|w|. The lasso."""

from weightdecay.update_rules import penalty
from weightdecay.update_rules.ops import sign


@penalty(source="Tibshirani 1996")
def l1(w, *, lam):
    """Pull every weight to zero with the same force, and leave it at zero.

    This is the subgradient: weights come near zero, exact zeros take a proximal step.

    >>> l1(-2.0, lam=0.5)
    -0.5
    """
    return lam * sign(w)
