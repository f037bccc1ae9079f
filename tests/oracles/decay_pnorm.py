"""Outmezguine & Levi 2024, arXiv:2404.10824, pWD: w_{t+1} = (w_t − γ·u_t)/(1 + γλp·|w_t|^{p−2}), with the old weights below.

A weight of zero stays there if p < 2, as the divisor is infinite.
"""

import numpy as np

SETTINGS = ({}, {"p": 0.5}, {"p": 1.0}, {"p": 1.5}, {"p": 2.0}, {"p": 3.0})


def weights(w, updates, lrs, *, lam, p=0.8):
    found = []
    for update, lr in zip(updates, lrs, strict=True):
        with np.errstate(divide="ignore", over="ignore"):
            divisor = 1 + lr * lam * p * np.abs(w) ** (p - 2.0)
        w = (w - lr * update) / divisor
        found.append(w)
    return np.array(found)
