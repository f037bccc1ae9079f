"""RAdam: Adam that is momentum until the variance of its root mean square is known well enough."""

from weightdecay.update_rules import direction
from weightdecay.update_rules.ops import debias, power, sqrt, where


@direction(
    source="Liu et al. 2020, arXiv:1908.03265, as in torch.optim.RAdam",
    state={"m": "exp_avg", "v": "exp_avg_sq"},
    domain={"beta1": "[0, 1)", "beta2": "[0, 1)", "eps": "[0, inf)"},
)
def radam(g, m, v, *, t, beta1=0.9, beta2=0.999, eps=1e-8):
    """Divide the corrected mean gradient by the rectified root mean square, or by nothing in the first steps.

    >>> u, m, v = radam(2.0, 0.0, 0.0, t=1, beta1=0.5, beta2=0.5)
    >>> u, m, v
    (2.0, 1.0, 2.0)
    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = m / debias(beta1, t)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * power(beta2, t) / debias(beta2, t)
    below = where(length > 5, (longest - 4) * (longest - 2) * length, 1)
    known = (length - 4) * (length - 2) * longest / below
    return where(length > 5, m_hat * sqrt(known) * sqrt(debias(beta2, t)) / (sqrt(v) + eps), m_hat), m, v
