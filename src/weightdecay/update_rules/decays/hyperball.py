"""Hyperball: no decay, but a constant norm. Every step goes along the sphere on which the tensor started."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import sqrt, where


@decay(
    source="Wen et al. 2026, arXiv:2606.16899",
    reference={"norm_w_0": "norm_at_start"},
)
def hyperball(w, u, *, eta, norm_w, norm_u, dot_wu, norm_w_0):
    """Step by −η times the starting norm along u's direction, then scale the tensor back to that norm.

    There is no λ: the norm is held whatever the size of u.

    >>> hyperball(3.0, 4.0, eta=0.0, norm_w=5.0, norm_u=4.0, dot_wu=12.0, norm_w_0=5.0)
    3.0
    """
    far = eta * norm_w_0 / where(norm_u > 0, norm_u, 1)
    norm_y = sqrt(norm_w * norm_w - 2 * far * dot_wu + far * far * norm_u * norm_u)
    held = norm_w_0 / where(norm_y > 0, norm_y, 1) * (w - far * u)
    return where(eta > 0, held, w)
