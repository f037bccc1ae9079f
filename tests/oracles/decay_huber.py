"""Guo & Fan 2025, arXiv:2511.14721, AdamHD: w ← argmin_x ½(x − y)² + ηλ·H_δ(x) at y = w − ηu.

Its slope x − y + ηλ·clip(x, −δ, δ) vanishes at y − ηλ·clip(y/(1 + ηλ), −δ, δ). Here δ is a
number; the paper's follows the sizes of the weights.
"""

import numpy as np

SETTINGS = ({}, {"delta": 0.05}, {"delta": 0.5}, {"delta": 100.0})


def weights(w, updates, lrs, *, lam, delta=1.0):
    found = []
    for update, lr in zip(updates, lrs, strict=True):
        stepped = w - lr * update
        w = stepped - lr * lam * np.clip(stepped / (1 + lr * lam), -delta, delta)
        found.append(w)
    return np.array(found)
