"""Cautious decay: shrink a weight only while the step also shrinks it."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import sign, where


@decay(source="Chen et al. 2025, arXiv:2510.12402")
def cautious(w, u, *, eta, lam):
    """Multiply w by 1 − ηλ where w and u agree in sign, leave it elsewhere, then step. λ is per unit of learning rate.

    Where half the weights agree, it does half of what decoupled decay does: a comparison at equal λ compares two λ.

    >>> cautious(1.0, -0.5, eta=0.1, lam=1.0)
    1.05
    """
    return where(sign(w) * sign(u) >= 0, (1 - eta * lam) * w, w) - eta * u
