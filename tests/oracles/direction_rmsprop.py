"""Tieleman & Hinton 2012, and Graves 2013, arXiv:1308.0850, for the centred one, from the box of torch.optim.RMSprop.

v_t = Σ (1 − α)·α^{t−i}·g_i², without bias correction, less the square of the same average of g if centred; ε outside the root.
The momentum's buffer holds the quotients: u_t = Σ μ^{t−i}·g_i/(√v_i + ε).
"""

import numpy as np

from .moving import average

SETTINGS = (
    {},
    {"alpha": 0.5},
    {"alpha": 0.9, "eps": 1e-2},
    {"momentum": 0.9},
    {"centered": True},
    {"alpha": 0.75, "eps": 1e-3, "momentum": 0.5, "centered": True},
    {"alpha": 0.0},
)


def updates(gradients, *, alpha=0.99, eps=1e-8, momentum=0.0, centered=False):
    spread = average(gradients**2, alpha)
    if centered:
        spread = spread - average(gradients, alpha) ** 2
    quotients = gradients / (np.sqrt(spread) + eps)
    return np.array([momentum ** np.arange(t, -1.0, -1.0) @ quotients[: t + 1] for t in range(len(gradients))])
