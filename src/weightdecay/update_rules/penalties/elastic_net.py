"""Elastic net: λ(r·Σ|w| + ½(1 − r)·‖w‖²), the lasso and ridge in one, as scikit-learn weighs them."""

from weightdecay.update_rules import penalty
from weightdecay.update_rules.ops import sign


@penalty(source="Zou & Hastie 2005", domain={"l1_ratio": "[0, 1]"})
def elastic_net(w, *, lam, l1_ratio=0.5):
    """Pull every weight to zero, a share r with constant force and the rest in proportion to itself.

    >>> elastic_net(3.0, lam=0.5, l1_ratio=0.25)
    1.25
    """
    return lam * (l1_ratio * sign(w) + (1 - l1_ratio) * w)
