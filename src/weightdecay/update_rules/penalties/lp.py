"""Lp, also called bridge: λΣ|w|^p. With p = 1 it is `l1`, with p = 2 twice `l2`."""

from weightdecay.update_rules import penalty
from weightdecay.update_rules.ops import absolute, power, sign, where


@penalty(source="Frank & Friedman 1993", domain={"p": "(0, inf)"})
def lp(w, *, lam, p=1.5):
    """Pull every weight to zero with the force λ·p·|w|^(p−1), and leave it at zero.

    >>> lp(-2.0, lam=0.5, p=2.0)
    -2.0
    """
    size = where(w == 0, 1, absolute(w))
    return lam * p * power(size, p - 1) * sign(w)
