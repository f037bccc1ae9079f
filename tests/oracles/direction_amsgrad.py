"""Reddi, Kale & Kumar 2018, arXiv:1904.09237, algorithm 2, bias-corrected as the box of torch.optim.Adam says.

v_max is the largest v_t so far, before the correction, which is that of the current step.
"""

import numpy as np

SETTINGS = ({}, {"betas": (0.5, 0.9)}, {"betas": (0.0, 0.5), "eps": 1e-3}, {"betas": (0.9, 0.0)})


def updates(gradients, *, betas=(0.9, 0.999), eps=1e-8):
    m, v, found = 0.0, [np.zeros_like(gradients[0])], []
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v.append(betas[1] * v[-1] + (1 - betas[1]) * np.square(g))
        largest = np.max(v, axis=0) / (1 - betas[1] ** t)
        found.append(m / (1 - betas[0] ** t) / (np.sqrt(largest) + eps))
    return np.array(found)
