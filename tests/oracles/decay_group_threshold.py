"""Yuan & Lin 2006, each tensor a group: w ← argmin_x ½‖x − y‖² + ηλ‖x‖₂ at y = w − ηu, without the group lasso's √d.

By Moreau's decomposition the proximal point is what is left of a point without its projection on the ball of radius ηλ.
"""

import numpy as np

SETTINGS = ({},)


def weights(w, updates, lrs, *, lam):
    found = []
    for update, lr in zip(updates, lrs, strict=True):
        stepped, radius = w - lr * update, lr * lam
        length = np.sqrt(np.sum(stepped**2))
        w = stepped - (stepped if length <= radius else stepped / length * radius)
        found.append(w)
    return np.array(found)
