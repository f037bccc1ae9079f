"""p-norm decay: the step of λ|w|^p, with the weight as a reweighted L2. For p < 1 it makes weights vanish."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import absolute, power, where


@decay(source="Outmezguine & Levi 2024, arXiv:2404.10824", domain={"p": "(0, inf)"})
def pnorm(w, u, *, eta, lam, p=0.8):
    """Step by −η·u, then divide by 1 + ηλp·|w|^(p−2), with the old weight. λ is per unit of learning rate, without a ½.

    With p < 2 a weight at zero stays there, so weights that start at zero never learn.

    >>> pnorm(1.0, 0.5, eta=0.5, lam=1.0, p=2.0)
    0.375
    """
    pull = eta * lam * p * power(absolute(w), p - 2)
    return where(eta * lam > 0, 1 / (1 + pull), 1) * (w - eta * u)
