"""The n-norm itself, un-squared: λ‖W‖_n with ‖W‖_n = (Σ|w|^n)^(1/n), over each tensor. With n = 1 it is `l1`."""

from weightdecay.update_rules import penalty
from weightdecay.update_rules.ops import absolute, power, sign, where


@penalty(source="Yuan & Lin 2006 (n = 2, each tensor a group)", domain={"n": "[1, inf)"})
def norm(w, *, lam, norm_n_w, n=2.0):
    """Pull the tensor to zero with a force of constant size, shared out by (|w|/‖W‖_n)^(n−1), and leave it at zero.

    >>> norm(-3.0, lam=0.5, norm_n_w=5.0, n=2.0)
    -0.3
    """
    share = absolute(w) / where(norm_n_w > 0, norm_n_w, 1)
    return lam * power(share, n - 1) * sign(w)
