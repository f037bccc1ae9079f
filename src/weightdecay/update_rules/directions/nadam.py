"""NAdam: Adam with Nesterov's look-ahead, and a momentum that warms up."""

from weightdecay.update_rules import direction
from weightdecay.update_rules.ops import debias, power, sqrt


@direction(
    source="Dozat 2016, as in torch.optim.NAdam",
    state={"m": "exp_avg", "v": "exp_avg_sq"},
    memory={"mu_product": ("mu_product", 1.0)},
    domain={"beta1": "[0, 1)", "beta2": "[0, 1)", "eps": "[0, inf)", "momentum_decay": "[0, inf)"},
)
def nadam(g, m, v, *, t, mu_product, beta1=0.9, beta2=0.999, eps=1e-8, momentum_decay=4e-3):
    """Divide a mean of this gradient and the mean gradient, each with its own correction, by the root mean square.

    >>> u, m, v, mu_product = nadam(2.0, 0.0, 0.0, t=1, mu_product=1.0, beta1=0.0, beta2=0.5, eps=0.0)
    >>> u, m, v, mu_product
    (1.0, 2.0, 2.0, 0.0)
    """
    mu = beta1 * (1 - 0.5 * power(0.96, t * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * power(0.96, (t + 1) * momentum_decay))
    mu_product = mu_product * mu
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    ahead = mu_next * m / (1 - mu_product * mu_next) + (1 - mu) * g / (1 - mu_product)
    v_hat = v / debias(beta2, t)
    return ahead / (sqrt(v_hat) + eps), m, v, mu_product
