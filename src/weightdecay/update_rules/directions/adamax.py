"""Adamax: Adam with the largest recent gradient in place of the root mean square."""

from weightdecay.update_rules import direction
from weightdecay.update_rules.ops import absolute, debias, maximum


@direction(
    source="Kingma & Ba 2015, arXiv:1412.6980, algorithm 2, as in torch.optim.Adamax",
    state={"m": "exp_avg", "largest": "exp_inf"},
    domain={"beta1": "[0, 1)", "beta2": "[0, 1)", "eps": "[0, inf)"},
)
def adamax(g, m, largest, *, t, beta1=0.9, beta2=0.999, eps=1e-8):
    """Divide the corrected mean gradient by a maximum of |g| that fades.

    With beta2 = 0 the maximum is |g| + eps of this step alone. A gradient near zero then divides a mean that is not, and u may
    be as large as |m̂|/eps, in which float32 has no correct digits: the formula has no better bound.

    >>> u, m, largest = adamax(2.0, 0.0, 0.0, t=1, beta1=0.5, eps=0.0)
    >>> u, m, largest
    (1.0, 1.0, 2.0)
    """
    m = beta1 * m + (1 - beta1) * g
    largest = maximum(beta2 * largest, absolute(g) + eps)
    return m / debias(beta1, t) / largest, m, largest
