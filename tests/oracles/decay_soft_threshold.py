"""Daubechies, Defrise & De Mol 2004; Beck & Teboulle 2009, ISTA: w ← prox of ηλ|·| at w − ηu.

By Moreau's decomposition the proximal point is what is left of a point without its projection on [−ηλ, ηλ].
"""

import numpy as np

SETTINGS = ({},)


def weights(w, updates, lrs, *, lam):
    found = []
    for update, lr in zip(updates, lrs, strict=True):
        stepped = w - lr * update
        w = stepped - np.clip(stepped, -lr * lam, lr * lam)
        found.append(w)
    return np.array(found)
