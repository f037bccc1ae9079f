"""Corrected decay, AdamC's: λ times η/η_max, so that normalised layers keep their balance while η falls."""

from weightdecay.update_rules import decay


@decay(source="Defazio 2025, arXiv:2506.02285")
def corrected(w, u, *, eta, eta_max, lam):
    """Multiply w by 1 − η²λ/η_max, then step by −η·u. λ is per unit of learning rate at the peak.

    For weights that a normalisation follows, whose size the loss does not see. The gain is contested: arXiv:2512.08217 finds
    76.98 ± 0.10 against AdamW's 76.92 ± 0.13 on ImageNet.

    >>> corrected(1.0, 0.5, eta=0.25, eta_max=0.5, lam=1.0)
    0.75
    """
    return (1 - eta * eta / eta_max * lam) * w - eta * u
