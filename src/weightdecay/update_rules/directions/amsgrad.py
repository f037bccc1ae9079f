"""AMSGrad: Adam whose second moment never falls, so that no step is larger than its past allows."""

from weightdecay.update_rules import direction
from weightdecay.update_rules.ops import debias, maximum, sqrt


@direction(
    source="Reddi, Kale & Kumar 2018, arXiv:1904.09237, bias-corrected as in torch.optim.Adam(amsgrad=True)",
    state={"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"},
    domain={"beta1": "[0, 1)", "beta2": "[0, 1)", "eps": "[0, inf)"},
)
def amsgrad(g, m, v, v_max, *, t, beta1=0.9, beta2=0.999, eps=1e-8):
    """Divide the bias-corrected mean gradient by the largest root mean square seen so far.

    >>> u, m, v, v_max = amsgrad(2.0, 0.0, 0.0, 8.0, t=1, beta1=0.5, beta2=0.5, eps=0.0)
    >>> u, m, v, v_max
    (0.5, 1.0, 2.0, 8.0)
    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    v_max = maximum(v_max, v)
    m_hat = m / debias(beta1, t)
    v_hat = v_max / debias(beta2, t)
    return m_hat / (sqrt(v_hat) + eps), m, v, v_max
