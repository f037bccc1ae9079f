"""Chen et al. 2025, arXiv:2510.12402, algorithm 1: x_{t+1} ← x_t − η_t·(u_t + λ·1[u_t ⊙ x_t ≥ 0] ⊙ x_t).

The indicator is that of real numbers: where the two signs differ the weight is left alone, however small both numbers are.
"""

import numpy as np

SETTINGS = ({},)


def weights(w, updates, lrs, *, lam):
    found = []
    for update, lr in zip(updates, lrs, strict=True):
        opposed = ((update > 0) & (w < 0)) | ((update < 0) & (w > 0))
        w = w - lr * (update + lam * np.where(opposed, 0.0, w))
        found.append(w)
    return np.array(found)
