"""RMSprop: the gradient over the root of the mean of its square, with momentum and centring if asked for."""

from weightdecay.rule import direction
from weightdecay.words import sqrt, where


@direction(
    source="Tieleman & Hinton 2012; Graves 2013, arXiv:1308.0850 (centred), as in torch.optim.RMSprop",
    state={"v": "square_avg", "mean": "grad_avg", "m": "momentum_buffer"},
    optional={"mean": "centered", "m": "mu"},
    domain={"alpha": "[0, 1]", "eps": "[0, inf)", "mu": "[0, inf)", "centered": "[0, 1]"},
)
def rmsprop(g, v, mean, m, *, t, alpha=0.99, eps=1e-8, mu=0.0, centered=False):
    """Divide the gradient by its root mean square, or by its standard deviation if centred, and add that up.

    >>> u, v, mean, m = rmsprop(2.0, 0.0, 0.0, 0.0, t=1, alpha=0.0, eps=0.0)
    >>> u, v
    (1.0, 4.0)
    """
    v = alpha * v + (1 - alpha) * g * g
    mean = alpha * mean + (1 - alpha) * g
    scale = sqrt(where(centered, v - mean * mean, v)) + eps
    m = mu * m + g / scale
    return m, v, mean, m
