"""Adagrad: the gradient over the root of the sum of all its squares."""

from weightdecay.update_rules import direction
from weightdecay.update_rules.ops import sqrt


@direction(
    source="Duchi, Hazan & Singer 2011, as in torch.optim.Adagrad",
    state={"total": "sum"},
    start={"total": "initial_accumulator_value"},
    domain={"lr_decay": "[0, inf)", "initial_accumulator_value": "[0, inf)", "eps": "[0, inf)"},
)
def adagrad(g, total, *, t, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
    """Divide the gradient by the root of the sum of squares, and by 1 + (t − 1)·lr_decay.

    >>> adagrad(2.0, 0.0, t=1, eps=0.0)
    (1.0, 4.0)
    """
    total = total + g * g
    return g / (1 + (t - 1) * lr_decay) / (sqrt(total) + eps), total
