"""Xie et al. 2023, arXiv:2011.11152 (AdamS), of Adam on one tensor: θ ← (1 − ηλ/√v̄)θ − η m̂/(√v̂ + ε), v̄ the mean of v̂.

`updates` are the gradients. The paper has an ε in the root, the authors' code has none; where all of v̂ is 0, nothing decays.
"""

import numpy as np

from .direction_adam import averages, updates

SETTINGS = ({}, {"betas": (0.5, 0.9)})


def weights(w, gradients, lrs, *, lam, **setting):
    steps = updates(gradients, **setting)
    size = np.sqrt(averages(gradients**2, setting.get("betas", (0.9, 0.999))[1]).mean(axis=1))
    decayed = lrs * lam / size
    found = []
    for step, lr, share in zip(steps, lrs, decayed, strict=True):
        w = w - share * w - lr * step
        found.append(w)
    return np.array(found)
