"""Huber: quadratic within δ, as L2, and linear beyond, as L1: λΣ½w² for |w| ≤ δ, λΣδ(|w| − δ/2) for the rest."""

from weightdecay.update_rules import penalty
from weightdecay.update_rules.ops import maximum, minimum


@penalty(source="Huber 1964; on weights arXiv:2511.14721", domain={"delta": "(0, inf)"})
def huber(w, *, lam, delta=1.0):
    """Pull a weight to zero in proportion to itself, and never more than λδ.

    >>> huber(3.0, lam=0.5, delta=2.0)
    1.0
    """
    return lam * minimum(maximum(w, -delta), delta)
