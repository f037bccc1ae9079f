"""Wang & Aitchison 2024, arXiv:2405.13698, and Bergsma et al. 2025, arXiv:2502.15938: AdamW as a weighted sum of its updates.

With λ times the learning rate, w_T = Π_t (1 − η_tλ)·w_0 − Σ_i η_i·u_i·Π_{j>i} (1 − η_jλ).
"""

import numpy as np

SETTINGS = ({},)


def weights(w, updates, lrs, *, lam):
    kept = 1 - lrs * lam
    found = []
    for t in range(1, len(lrs) + 1):
        since = np.array([np.prod(kept[i + 1 : t]) for i in range(t)])
        found.append(np.prod(kept[:t]) * w - (since * lrs[:t]) @ updates[:t])
    return np.array(found)
