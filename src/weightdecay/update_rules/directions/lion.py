"""Lion: the sign of a mean of the gradient, with a longer memory behind it."""

from weightdecay.update_rules import direction
from weightdecay.update_rules.ops import sign


@direction(
    source="Chen et al. 2023, arXiv:2302.06675",
    state={"m": "exp_avg"},
    domain={"beta1": "[0, 1)", "beta2": "[0, 1)"},
)
def lion(g, m, *, t, beta1=0.9, beta2=0.99):
    """Take the sign of the mean gradient, in which this gradient counts more than it will later.

    >>> lion(1.0, -0.5, t=1, beta1=0.5, beta2=0.5)
    (1.0, 0.25)
    """
    u = sign(beta1 * m + (1 - beta1) * g)
    m = beta2 * m + (1 - beta2) * g
    return u, m
