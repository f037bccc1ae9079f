"""Moving averages as the sums they are, for the oracles of directions."""

import numpy as np


def average(values, beta):
    """Return m_1 … m_T of m_t = β·m_{t−1} + (1 − β)·x_t from m_0 = 0: each is Σ (1 − β)·β^{t−i}·x_i, not bias-corrected."""
    steps = len(values)
    weight = np.array([[(1 - beta) * beta ** (t - i) if i <= t else 0.0 for i in range(steps)] for t in range(steps)])
    return weight @ values


def debias(steps, beta):
    """Return 1 − βᵗ for t = 1 … T as a column: the weights of an average add up to it."""
    return (1 - beta ** np.arange(1.0, steps + 1))[:, None]
