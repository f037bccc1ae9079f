"""Stable weight decay, AdamS's: λ over the root mean square of all gradients, so that it has the unit of Adam's steps."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import sqrt, where


@decay(source="Xie, Xu, Zhang, Sato & Sugiyama 2023, arXiv:2011.11152, without the ε in the root, as in the authors' code")
def stable(w, u, *, eta, lam, mean_v_hat):
    """Multiply w by 1 − ηλ/√v̄, then step by −η·u; v̄ is the mean of v̂ over every weight of the optimizer, this step's.

    λ is per unit of learning rate and of gradient: λ/√v̄ is the λ of decoupled decay. Without any gradient, v̄ = 0, nothing
    decays. Every tensor that has a gradient and a v̂ counts, of any group and dtype and whatever its own decay is.

    The authors report test errors of 4.91 % (AdamW 5.08, SGD with momentum 5.01) to 21.05 % (21.29, 21.21) on four image tasks;
    nobody else's numbers are known here. Their SGDS, with the shrink ηλ(1 − dampening)/(1 − μ), is decoupled decay beside SGD
    with momentum in another unit of λ, and no rule of its own.

    >>> stable(1.0, 0.5, eta=0.5, lam=1.0, mean_v_hat=4.0)
    0.5
    """
    root = sqrt(where(mean_v_hat > 0, mean_v_hat, 1))
    return (1 - where(mean_v_hat > 0, eta * lam / root, 0)) * w - eta * u
