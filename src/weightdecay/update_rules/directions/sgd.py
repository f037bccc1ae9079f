"""Stochastic gradient descent with momentum, dampening and Nesterov's look-ahead, as in torch.optim.SGD."""

from weightdecay.update_rules import direction
from weightdecay.update_rules.ops import where


def looks_along_a_momentum(*, mu: float, dampening: float, nesterov: float) -> None:
    """Refuse a look-ahead without a momentum, or along a dampened one, as torch does."""
    if nesterov and mu == 0:
        raise ValueError("nesterov=True does nothing while momentum=0: give a momentum or drop it")
    if nesterov and dampening != 0:
        raise ValueError(f"nesterov=True needs dampening=0, not {dampening}")


@direction(
    source="Polyak 1964; Sutskever et al. 2013 (Nesterov)",
    state={"m": "momentum_buffer"},
    optional={"m": "mu"},
    beside={"dampening": "mu"},
    domain={"mu": "[0, inf)", "dampening": "[0, inf)", "nesterov": "[0, 1]"},
    check=looks_along_a_momentum,
)
def sgd(g, m, *, t, mu=0.0, dampening=0.0, nesterov=False):
    """Add the gradient to the momentum buffer, which starts as the first gradient.

    >>> sgd(1.0, 2.0, t=2, mu=0.5)
    (2.0, 2.0)
    >>> sgd(1.0, 2.0, t=2, mu=0.5, nesterov=True)
    (2.0, 2.0)
    """
    m = where(t > 1, mu * m + (1 - dampening) * g, g)
    return where(nesterov, g + mu * m, m), m
