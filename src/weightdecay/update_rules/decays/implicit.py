"""Implicit decay: divide by 1 + ηλ, so that no λ is too large."""

from weightdecay.update_rules import decay


@decay(source="Zhuang et al. 2022, arXiv:2202.00089")
def implicit(w, u, *, eta, lam):
    """Step by −η·u, then divide by 1 + ηλ. λ is per unit of learning rate.

    >>> implicit(1.0, 0.5, eta=0.5, lam=2.0)
    0.375
    """
    return (w - eta * u) / (1 + eta * lam)
