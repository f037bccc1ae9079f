"""Group threshold: the proximal step of λ‖W‖, each tensor a group. Whole tensors become zero."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import where


@decay(source="Yuan & Lin 2006")
def group_threshold(w, u, *, eta, lam, norm_y):
    """Step by −η·u, then shorten the tensor by ηλ, to zero at most. λ is per unit of learning rate.

    Without the √d that the penalty `group_norm` has: for the same pull on tensors of all sizes, give λ per parameter group.

    >>> group_threshold(3.0, 0.0, eta=1.0, lam=2.5, norm_y=5.0)
    1.5
    """
    y = w - eta * u
    tau = eta * lam
    return where(norm_y > tau, 1 - tau / where(norm_y > 0, norm_y, 1), 0) * y
