"""Adam: the mean of the gradient over the root of the mean of its square."""

from weightdecay.update_rules import direction
from weightdecay.update_rules.ops import debias, sqrt


@direction(
    source="Kingma & Ba 2015, arXiv:1412.6980, algorithm 1",
    state={"m": "exp_avg", "v": "exp_avg_sq"},
    domain={"beta1": "[0, 1)", "beta2": "[0, 1)", "eps": "[0, inf)"},
)
def adam(g, m, v, *, t, beta1=0.9, beta2=0.999, eps=1e-8):
    """Divide the bias-corrected mean gradient by its bias-corrected root mean square.

    >>> u, m, v = adam(2.0, 0.0, 0.0, t=1, beta1=0.5, beta2=0.5, eps=0.0)
    >>> u, m, v
    (1.0, 1.0, 2.0)
    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = m / debias(beta1, t)
    v_hat = v / debias(beta2, t)
    return m_hat / (sqrt(v_hat) + eps), m, v
