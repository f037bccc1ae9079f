"""Soft threshold: the proximal step of λΣ|w|. The lasso, with zeros that are exact."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import absolute, sign, where


@decay(source="Daubechies, Defrise & De Mol 2004; Beck & Teboulle 2009")
def soft_threshold(w, u, *, eta, lam):
    """Step by −η·u, then move ηλ towards zero and stop there. λ is per unit of learning rate.

    >>> soft_threshold(1.0, 0.5, eta=0.5, lam=0.5)
    0.5
    """
    y = w - eta * u
    tau = eta * lam
    return where(absolute(y) > tau, y - tau * sign(y), 0 * y)
