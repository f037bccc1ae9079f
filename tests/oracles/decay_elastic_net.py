"""Zou & Hastie 2005 with scikit-learn's weights: w ← argmin_x ½(x − y)² + ηλ(r|x| + ½(1 − r)x²) at y = w − ηu.

Where x > 0 the slope x − y + ηλ(r + (1 − r)x) vanishes at one point, where x < 0 at one other; with neither on its side, x = 0.
"""

import numpy as np

SETTINGS = ({}, {"l1_ratio": 0.0}, {"l1_ratio": 0.2}, {"l1_ratio": 1.0})


def weights(w, updates, lrs, *, lam, l1_ratio=0.5):
    found = []
    for update, lr in zip(updates, lrs, strict=True):
        stepped, tau = w - lr * update, lr * lam
        above = (stepped - tau * l1_ratio) / (1 + tau * (1 - l1_ratio))
        below = (stepped + tau * l1_ratio) / (1 + tau * (1 - l1_ratio))
        w = np.where(above > 0, above, np.where(below < 0, below, 0.0))
        found.append(w)
    return np.array(found)
