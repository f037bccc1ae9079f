"""Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2: θ_t ← θ_{t−1} − η_t·(α·m̂_t/(√v̂_t + ε) + λ·θ_{t−1}).

α is the peak of the learning rate and η_t the schedule, a multiplier: λ is never multiplied by α.
"""

import numpy as np

SETTINGS = ({},)


def weights(w, updates, lrs, *, lam):
    alpha = max(lrs)
    found = []
    for update, lr in zip(updates, lrs, strict=True):
        schedule = lr / alpha
        w = w - schedule * (alpha * update + lam * w)
        found.append(w)
    return np.array(found)
