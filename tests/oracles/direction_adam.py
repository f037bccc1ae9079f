"""Kingma & Ba 2015, arXiv:1412.6980: algorithm 1, with the moments as the sums they are, v_t = (1 − β2) Σ β2^{t−i}·g_i²."""

import numpy as np

SETTINGS = ({}, {"betas": (0.5, 0.9)}, {"betas": (0.0, 0.99), "eps": 1e-3}, {"betas": (0.9, 0.0)}, {"eps": 0.0})


def updates(gradients, *, betas=(0.9, 0.999), eps=1e-8):
    first, second = (averages(powers, beta) for powers, beta in zip((gradients, gradients**2), betas, strict=True))
    return first / (np.sqrt(second) + eps)


def averages(values, beta):
    """Return the bias-corrected moving averages: the weights (1 − β)·β^{t−i} add up to 1 − βᵗ, by which they are divided."""
    found = []
    for t in range(1, len(values) + 1):
        weight = beta ** np.arange(t - 1, -1, -1.0)
        found.append(weight @ values[:t] / weight.sum())
    return np.array(found)
