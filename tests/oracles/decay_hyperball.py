"""Wen et al. 2026, arXiv:2606.16899: W ← R·Normalize(W − ηR·Normalize(u)), with the first Frobenius norm R = ‖W_0‖ for ever.

There is no λ: what is given for it is ignored. Normalize(0) is 0.
"""

import numpy as np

SETTINGS = ({},)


def weights(w, updates, lrs, *, lam=None):
    radius = np.linalg.norm(w)
    found = []
    for update, lr in zip(updates, lrs, strict=True):
        w = radius * normalized(w - lr * radius * normalized(update))
        found.append(w)
    return np.array(found)


def normalized(x):
    length = np.linalg.norm(x)
    return x / length if length > 0 else x
