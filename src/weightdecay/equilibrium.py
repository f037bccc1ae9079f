"""The norm at which the random walk of the steps and the decay balance.

Gradients that point anywhere let ‖w‖² grow by the square of what each of them moves the weights by, in all the steps in which
the momentum holds it; the decay takes 2s‖w‖² per step. The norm settles where both are equal.
"""

import math


def adam(count: int, *, eta: float, shrink: float) -> float:
    """Return √(η²·C/(2s)) for C weights: Adam's m̂/√v̂ has size 1 in every coordinate, whatever the gradient.

    With decoupled decay, s = ηλ, it is √(ηC/(2λ)).

    >>> adam(10_000, eta=1e-3, shrink=1e-4)
    7.0710678118654755

    Source: Kosson et al. 2024, arXiv:2305.17212.
    """
    return eta * math.sqrt(count / (2 * shrink))


def lion(count: int, *, eta: float, shrink: float, beta1: float, beta2: float) -> float:
    """Return √(η²·C/(πks)) with k = (1 − β₁)² + β₁²(1 − β₂)/(1 + β₂), as long as s is far below 1 − β₂.

    >>> round(lion(10_000, eta=1e-4, shrink=1e-4, beta1=0.9, beta2=0.99), 4)
    4.7563

    Source: Kosson et al. 2024, arXiv:2305.17212.
    """
    k = (1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2)
    return eta * math.sqrt(count / (math.pi * k * shrink))


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
