"""You et al. 2020, arXiv:1904.00962, algorithm 2 (LAMB) from line 8 on, φ the identity: x ← x − η (‖x‖/‖r + λx‖)·(r + λx).

As in optax.lamb the ratio is 1 where either norm is 0. The step is built from its length and its direction.
"""

import numpy as np

SETTINGS = ({},)


def weights(w, updates, lrs, *, lam):
    found = []
    for update, lr in zip(updates, lrs, strict=True):
        decayed = np.add(update, np.multiply(lam, w))
        length, size = np.sqrt(np.sum(decayed**2)), np.sqrt(np.sum(w**2))
        step = decayed if 0 in (length, size) else decayed / length * size
        w = w - lr * step
        found.append(w)
    return np.array(found)
