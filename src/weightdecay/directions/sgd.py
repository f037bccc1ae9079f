"""Stochastic gradient descent with momentum, dampening and Nesterov's look-ahead, as in torch.optim.SGD."""

from weightdecay.rule import direction
from weightdecay.words import where


def momentum_is_used(*, mu: float, dampening: float, nesterov: float) -> None:
    """Refuse settings that would be without effect."""
    if mu == 0 and (dampening != 0 or nesterov):
        raise ValueError(
            f"dampening={dampening} and nesterov={bool(nesterov)} do nothing while momentum=0: give a momentum or drop them"
        )
    if nesterov and dampening != 0:
        raise ValueError(f"nesterov=True needs dampening=0, not {dampening}")


@direction(
    source="Polyak 1964; Sutskever et al. 2013 (Nesterov)",
    state={"m": "momentum_buffer"},
    optional={"m": "mu"},
    domain={"mu": "[0, inf)", "dampening": "[0, inf)", "nesterov": "[0, 1]"},
    check=momentum_is_used,
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
