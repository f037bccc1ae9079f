"""Adadelta: Adagrad that forgets, in units of its own past steps."""

from weightdecay.update_rules import direction
from weightdecay.update_rules.ops import sqrt


@direction(
    source="Zeiler 2012, arXiv:1212.5701, as in torch.optim.Adadelta",
    state={"v": "square_avg", "steps": "acc_delta"},
    domain={"rho": "[0, 1]", "eps": "[0, inf)"},
)
def adadelta(g, v, steps, *, t, rho=0.9, eps=1e-6):
    """Multiply the gradient by the root mean square of past steps over that of gradients.

    >>> u, v, steps = adadelta(1.0, 0.0, 0.0, t=1, rho=0.0, eps=1.0)
    >>> v, round(steps, 12)
    (1.0, 0.5)
    """
    v = rho * v + (1 - rho) * g * g
    u = sqrt(steps + eps) / sqrt(v + eps) * g
    steps = rho * steps + (1 - rho) * u * u
    return u, v, steps
