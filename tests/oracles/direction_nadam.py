"""Dozat 2016, as the algorithm box of torch.optim.NAdam has it: Nesterov's look-ahead with a momentum μ_t of its own schedule.

μ_t = β1·(1 − ½·0.96^{ψt}), and m̂_t = μ_{t+1}·m_t/(1 − Π_{i≤t+1} μ_i) + (1 − μ_t)·g_t/(1 − Π_{i≤t} μ_i), ψ = momentum_decay.
"""

import numpy as np

from .moving import average, debias

SETTINGS = (
    {},
    {"betas": (0.5, 0.9)},
    {"betas": (0.0, 0.99), "eps": 1e-3},
    {"betas": (0.95, 0.0)},
    {"momentum_decay": 0.0},
    {"momentum_decay": 0.5, "eps": 0.0},
)


def updates(gradients, *, betas=(0.9, 0.999), eps=1e-8, momentum_decay=4e-3):
    steps = len(gradients)
    mu = betas[0] * (1 - 0.5 * 0.96 ** (momentum_decay * np.arange(1, steps + 2)))[:, None]
    left = 1 - np.cumprod(mu, axis=0)
    ahead = mu[1:] / left[1:] * average(gradients, betas[0]) + (1 - mu[:-1]) / left[:-1] * gradients
    return ahead / (np.sqrt(average(gradients**2, betas[1]) / debias(steps, betas[1])) + eps)
