"""Group norm: λ√d·‖W‖, each tensor of d weights a group. A group lasso, whose force does not fade near zero."""

from weightdecay.update_rules import penalty
from weightdecay.update_rules.ops import sqrt, where


@penalty(source="Yuan & Lin 2006")
def group_norm(w, *, lam, norm_w, numel):
    """Pull the tensor to zero with a force of constant size, which grows with the root of the number of weights.

    The penalty `norm` and the decay `group_threshold` are without that root.

    >>> group_norm(3.0, lam=0.5, norm_w=5.0, numel=4.0)
    0.6
    """
    return lam * sqrt(numel) * (w / where(norm_w > 0, norm_w, 1))
