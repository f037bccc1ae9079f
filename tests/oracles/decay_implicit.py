"""Zhuang et al. 2022, arXiv:2202.00089, AdamProx: w ← argmin_x ½‖x − (w − ηu)‖² + ½ηλ‖x‖² = (w − ηu)/(1 + ηλ).

As a weighted sum of the updates, a step is divided by its own 1 + ηλ, too: w_T = w_0/Π_t d_t − Σ_i η_i·u_i/Π_{j≥i} d_j.
"""

import numpy as np

SETTINGS = ({},)


def weights(w, updates, lrs, *, lam):
    divisor = 1 + lrs * lam
    found = []
    for t in range(1, len(lrs) + 1):
        since = np.array([1 / np.prod(divisor[i:t]) for i in range(t)])
        found.append(w / np.prod(divisor[:t]) - (since * lrs[:t]) @ updates[:t])
    return np.array(found)
