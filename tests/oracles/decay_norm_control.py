"""Loshchilov 2023, arXiv:2311.11446, weight norm control: θ ← θ − k·(1 − r·‖θ_0‖/‖θ‖)·θ beside the step, with k = ηλ.

So a k-th of the way from its norm to r·‖θ_0‖, along its own direction, which a tensor of zeros does not have.
"""

import numpy as np

SETTINGS = ({}, {"ratio": 0.0}, {"ratio": 0.5}, {"ratio": 3.0})


def weights(w, updates, lrs, *, lam, ratio=1.0):
    target = ratio * np.linalg.norm(w)
    found = []
    for update, lr in zip(updates, lrs, strict=True):
        norm = np.linalg.norm(w)
        along = w / norm if norm > 0 else w
        w = ((1 - lr * lam) * norm + lr * lam * target) * along - lr * update
        found.append(w)
    return np.array(found)
