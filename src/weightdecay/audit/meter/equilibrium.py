"""The norm at which the random walk of the steps and the decay balance.

Gradients that point anywhere let ‖w‖² grow by the square of what each of them moves the weights by, in all the steps in which
the momentum holds it; the decay takes 2s‖w‖² per step. The norm settles where both are equal.
"""

import math
from functools import cache


def adam(count: int, *, eta: float, shrink: float, beta1: float) -> float:
    """Return ηU·√((1 + αβ₁)/((1 − α²)(1 − αβ₁))) for C weights, with U² = C(1 − β₁)/(1 + β₁) and α = 1 − s.

    Adam's m̂/√v̂ has the same size in every coordinate, whatever the gradient. For s far below 1 − β₁ it is √(η²·C/(2s)): with
    decoupled decay, s = ηλ, that is √(ηC/(2λ)).

    >>> round(adam(10_000, eta=1e-3, shrink=1e-4, beta1=0.9), 3)
    7.068
    >>> round(math.sqrt(1e-3 * 10_000 / (2 * 0.1)), 3)
    7.071

    Source: Kosson et al. 2024, arXiv:2305.17212; the sum of the geometric series.
    """
    kept = 1 - shrink
    growth = (1 - beta1) / (1 + beta1) * (1 + kept * beta1) / (1 - kept * beta1)
    return eta * math.sqrt(count * growth / (shrink * (1 + kept)))


def lion(count: int, *, eta: float, shrink: float, beta1: float, beta2: float) -> float:
    """Return η·√(C/(1 − α²)·(1 + 2Σₙαⁿ(2/π)arcsin ρₙ)) with α = 1 − s and ρₙ how alike Lion's means are n steps apart.

    For s far below 1 − β₂ it is nearly √(η²·C/(πks)) with k = (1 − β₁)² + β₁²(1 − β₂)/(1 + β₂).

    >>> round(lion(10_000, eta=1e-4, shrink=1e-4, beta1=0.9, beta2=0.99), 2)
    4.77

    Source: Kosson et al. 2024, arXiv:2305.17212; the arcsine law of the signs of two normal numbers.
    """
    return eta * math.sqrt(count * _alike(shrink, beta1, beta2) / (shrink * (2 - shrink)))


@cache
def _alike(shrink: float, beta1: float, beta2: float) -> float:
    """Return 1 + 2Σₙαⁿ(2/π)arcsin ρₙ."""
    fresh, held = (1 - beta1) * beta1 * (1 - beta2), beta1**2 * (1 - beta2) / (1 + beta2)
    k = (1 - beta1) ** 2 + held
    terms = range(1, 2 + math.ceil(-30 / math.log((1 - shrink) * beta2))) if beta2 > 0 else (1,)
    powers = ((1 - shrink) ** n * math.asin((fresh * beta2 ** (n - 1) + held * beta2**n) / k) for n in terms)
    return 1 + 4 / math.pi * math.fsum(powers)


def sgd(gradient: float, *, eta: float, shrink: float, gain: float) -> float:
    """Return (η²·gain²·E‖g̃‖²/(2s))^¼ for a weight whose length does not change the loss; g̃ is its gradient at length 1.

    Args:
        gradient: √E‖g̃‖², which is ‖g‖·‖w‖ at any length.
        eta: the learning rate.
        shrink: s, of the long run: ηλ·gain with L2, ηλ with decoupled decay.
        gain: how often a gradient is applied in all, 1/(1 − momentum).

    >>> sgd(2.0, eta=0.1, shrink=0.0005, gain=1.0)
    2.514866859365871

    Source: Kosson et al. 2024, arXiv:2305.17212 (L2); the same balance with s = ηλ (decoupled).
    """
    return math.sqrt(eta * gain * gradient / math.sqrt(2 * shrink))
