"""Constrained parameter regularisation: a multiplier per tensor that grows while Σw² is above κ, and shrinks the tensor."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import maximum, minimum, where


@decay(
    source="Franke, Hefenbrock, Koehler & Hutter 2023, arXiv:2311.09058 (AdamCPR)",
    memory={"multiplier": ("multiplier", 0.0)},
    domain={"kappa": "[0, inf)", "kappa_update": "(0, inf)"},
)
def constrained(w, u, *, eta, multiplier, norm_y, numel, kappa=1.0, kappa_update=1.0):
    """Step by −η·u to y, move the multiplier μ by (‖y‖² − κ)·kappa_update/d, not below 0, and multiply y by 1 − 2μ.

    There is no λ. κ bounds the tensor's sum of squares; neither is multiplied by the learning rate, but nothing moves at
    η = 0. Where the paper's step would turn weights round, from 2μ = 1 on, it ends at zero.

    >>> constrained(2.0, 0.0, eta=1.0, multiplier=0.0, norm_y=2.0, numel=1.0, kappa=3.75)
    (1.0, 0.25)
    """
    moved = maximum(0, multiplier + kappa_update / numel * (norm_y * norm_y - kappa))
    multiplier = where(eta > 0, moved, multiplier)
    return where(eta > 0, 1 - minimum(2 * multiplier, 1), 1) * (w - eta * u), multiplier
