"""Duchi, Hazan & Singer 2011, from the box of torch.optim.Adagrad: g_t/(√(τ + Σ_{i≤t} g_i²) + ε), over 1 + (t − 1)·lr_decay.

τ = initial_accumulator_value is what the sum starts from, once.
"""

import numpy as np

SETTINGS = (
    {},
    {"lr_decay": 0.1},
    {"initial_accumulator_value": 0.5},
    {"eps": 1e-2, "lr_decay": 1.0, "initial_accumulator_value": 10.0},
    {"eps": 0.0},
)


def updates(gradients, *, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
    total = initial_accumulator_value + np.cumsum(gradients**2, axis=0)
    slower = 1 + lr_decay * np.arange(len(gradients))
    return gradients / (np.sqrt(total) + eps) / slower[:, None]
