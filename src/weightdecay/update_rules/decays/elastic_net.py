"""Elastic net, proximal: a soft threshold for the share r of λ, and division for the rest."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import absolute, sign, where


@decay(source="Zou & Hastie 2005", domain={"l1_ratio": "[0, 1]"})
def elastic_net(w, u, *, eta, lam, l1_ratio=0.5):
    """Step by −η·u, move ηλr towards zero, divide by 1 + ηλ(1 − r). λ is per unit of learning rate.

    >>> elastic_net(2.0, 0.0, eta=1.0, lam=1.0, l1_ratio=0.5)
    1.0
    """
    y = w - eta * u
    tau = eta * lam * l1_ratio
    return where(absolute(y) > tau, y - tau * sign(y), 0 * y) / (1 + eta * lam * (1 - l1_ratio))
