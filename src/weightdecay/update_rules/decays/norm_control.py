"""Weight norm control: decay towards a share r of the norm that the tensor started with, not towards zero."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import where


@decay(source="Loshchilov 2023, arXiv:2311.11446", reference={"norm_w_0": "norm_at_start"}, domain={"ratio": "[0, inf)"})
def norm_control(w, u, *, eta, lam, norm_w, norm_w_0, ratio=1.0):
    """Multiply w by 1 − ηλ(1 − r‖W₀‖/‖W‖), then step by −η·u. λ is per unit of learning rate.

    >>> norm_control(1.0, 0.0, eta=0.5, lam=1.0, norm_w=2.0, norm_w_0=1.0)
    0.75
    """
    above = 1 - ratio * norm_w_0 / where(norm_w > 0, norm_w, 1)
    return where(eta * lam * norm_w > 0, 1 - eta * lam * above, 1) * w - eta * u
