"""Kingma & Ba 2015, arXiv:1412.6980, algorithm 2, with the ε of the box of torch.optim.Adamax, beside |g| in the maximum.

u_t = max(β2·u_{t−1}, |g_t| + ε) is the largest β2^{t−i}·(|g_i| + ε) of the past; only the mean is bias-corrected.
"""

import numpy as np

from .moving import average, debias

SETTINGS = ({}, {"betas": (0.5, 0.9)}, {"betas": (0.0, 0.99), "eps": 1e-3}, {"betas": (0.9, 0.0)}, {"eps": 0.0})


def updates(gradients, *, betas=(0.9, 0.999), eps=1e-8):
    steps = len(gradients)
    mean = average(gradients, betas[0]) / debias(steps, betas[0])
    sizes = np.abs(gradients) + eps
    largest = [np.max([betas[1] ** (t - i) * sizes[i] for i in range(t + 1)], axis=0) for t in range(steps)]
    return mean / np.array(largest)
