"""Huber decay, proximal: shrinks in proportion within δ, by a constant beyond."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import absolute, sign, where


@decay(source="arXiv:2511.14721 (AdamHD); Huber 1964", domain={"delta": "(0, inf)"})
def huber(w, u, *, eta, lam, delta=1.0):
    """Step by −η·u; divide by 1 + ηλ where that is within (1 + ηλ)δ, and move ηλδ towards zero elsewhere.

    λ is per unit of learning rate.

    >>> huber(3.0, 0.0, eta=0.5, lam=2.0, delta=1.0)
    2.0
    """
    y = w - eta * u
    tau = eta * lam
    return where(absolute(y) > (1 + tau) * delta, y - tau * delta * sign(y), y / (1 + tau))
