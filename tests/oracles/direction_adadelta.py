"""Zeiler 2012, arXiv:1212.5701, algorithm 1: Δx_t = RMS[Δx]_{t−1}/RMS[g]_t·g_t, RMS[x]_t = √(E[x²]_t + ε), ε in the root.

The first RMS[Δx] is √ε; each average is Σ (1 − ρ)·ρ^{t−i}·x_i², of the updates that have been made so far.
"""

import numpy as np

from .moving import average

SETTINGS = ({}, {"rho": 0.5}, {"rho": 0.99, "eps": 1e-3}, {"rho": 0.0, "eps": 1e-2}, {"eps": 1.0})


def updates(gradients, *, rho=0.9, eps=1e-6):
    below = np.sqrt(average(gradients**2, rho) + eps)
    found = np.zeros_like(gradients)
    for t in range(len(gradients)):
        past = average(found[:t] ** 2, rho)[-1] if t else 0.0
        found[t] = np.sqrt(past + eps) / below[t] * gradients[t]
    return found
