"""Franke et al. 2024, arXiv:2311.09058, CPR with R(w) = Σw²: keep R(w) ≤ κ by an augmented Lagrangian for each tensor.

After the step, y = w − ηu, its multiplier moves: l ← max(0, l + (μ/d)·(R(y) − κ)); then w = y − l·∇R(y) = (1 − 2l)·y. κ bounds
the sum of d squares and μ = kappa_update, as in pytorch_cpr.AdamCPR. There is no λ: what is given for it is ignored.
"""

import numpy as np

SETTINGS = ({}, {"kappa_update": 0.1}, {"kappa": 5.0}, {"kappa": 2.0, "kappa_update": 0.01})


def weights(w, updates, lrs, *, lam=None, kappa=1.0, kappa_update=1.0):
    multiplier = 0.0
    found = []
    for update, lr in zip(updates, lrs, strict=True):
        stepped = w - lr * update
        multiplier = max(0.0, multiplier + kappa_update * (np.sum(stepped**2) - kappa) / stepped.size)
        w = (1 - 2 * multiplier) * stepped
        found.append(w)
    return np.array(found)
