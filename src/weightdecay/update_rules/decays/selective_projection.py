"""Selective projection decay: pull back towards the start only where the gradient would take the tensor back too."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import maximum, minimum, where


@decay(
    source="Tian, Huang & Kira 2024, arXiv:2411.01713",
    reference={"w_0": "reference"},
)
def selective_projection(w, u, w_0, *, eta, lam, dot_gd, distance_w, distance_y):
    """Step by −η·u; where Σg·(w − w₀) > 0 and the distance grew, take back the share λ of what it grew by.

    λ is per step, not per unit of learning rate; λ = 1 projects onto the old distance.

    >>> selective_projection(2.0, -1.0, 0.0, eta=1.0, lam=1.0, dot_gd=1.0, distance_w=2.0, distance_y=3.0)
    2.0
    """
    y = w - eta * u
    grown = (distance_y - distance_w) / where(distance_y > 0, distance_y, 1)
    share = where(dot_gd > 0, lam * minimum(maximum(grown, 0), 1), 0)
    return where(share > 0, y - share * (y - w_0), y)
