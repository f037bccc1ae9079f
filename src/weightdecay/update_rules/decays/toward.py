"""Decay towards the start: what training began with pulls, not zero. L2-SP, decoupled."""

from weightdecay.update_rules import decay


@decay(
    source="Li, Grandvalet & Davoine 2018, arXiv:1802.01483, decoupled as in arXiv:1711.05101", reference={"w_0": "reference"}
)
def toward(w, u, w_0, *, eta, lam):
    """Move w by ηλ of its distance to its value before the first step, and by −η·u. λ is per unit of learning rate.

    >>> toward(2.0, 0.0, 1.0, eta=0.5, lam=0.5)
    1.75
    """
    return w - eta * lam * (w - w_0) - eta * u
