"""RMSprop: the gradient over the root of the mean of its square, with momentum and centring if asked for."""

from weightdecay.update_rules import direction
from weightdecay.update_rules.ops import maximum, sqrt, where


def has_a_variance(*, alpha: float, centered: float, **_: object) -> None:
    """Refuse a standard deviation of one gradient alone, which is 0."""
    if centered and alpha == 0:
        raise ValueError(
            "alpha=0 with centered=True divides every gradient by its own standard deviation, which is 0, and so by eps alone: "
            "give an alpha above 0, such as 0.99, or centered=False"
        )


@direction(
    source="Tieleman & Hinton 2012; Graves 2013, arXiv:1308.0850 (centred), as in torch.optim.RMSprop",
    state={"v": "square_avg", "mean": "grad_avg", "m": "momentum_buffer"},
    optional={"mean": "centered", "m": "mu"},
    domain={"alpha": "[0, 1]", "eps": "[0, inf)", "mu": "[0, inf)", "centered": "[0, 1]"},
    check=has_a_variance,
)
def rmsprop(g, v, mean, m, *, t, alpha=0.99, eps=1e-8, mu=0.0, centered=False):
    """Divide the gradient by its root mean square, or by its standard deviation if centred, and add that up.

    The variance v − mean² of gradients that are nearly alike is a small difference of two large numbers: where rounding leaves
    less than 0 of it, of which torch's root is NaN, it is 0, and the gradient is divided by eps.

    >>> u, v, mean, m = rmsprop(2.0, 0.0, 0.0, 0.0, t=1, alpha=0.0, eps=0.0)
    >>> u, v
    (1.0, 4.0)
    """
    v = alpha * v + (1 - alpha) * g * g
    mean = alpha * mean + (1 - alpha) * g
    scale = sqrt(where(centered, maximum(v - mean * mean, 0), v)) + eps
    m = mu * m + g / scale
    return m, v, mean, m
