"""Signum: the sign of the mean gradient."""

from weightdecay.update_rules import direction
from weightdecay.update_rules.ops import sign


@direction(
    source="Bernstein et al. 2018, arXiv:1802.04434",
    state={"m": "momentum_buffer"},
    domain={"mu": "[0, 1)"},
)
def signum(g, m, *, t, mu=0.9):
    """Take the sign of the mean gradient; with momentum 0 it is signSGD.

    >>> signum(1.0, -0.5, t=1, mu=0.5)
    (1.0, 0.25)
    """
    m = mu * m + (1 - mu) * g
    return sign(m), m
