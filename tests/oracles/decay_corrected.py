"""Defazio 2025, arXiv:2506.02285, AdamC: AdamW whose λ_t is λ·γ_t/γ_max, so that a weight keeps 1 − γ_t²·λ/γ_max of itself.

As a weighted sum of the updates: w_T = Π_t k_t·w_0 − Σ_i γ_i·u_i·Π_{j>i} k_j with k_t = 1 − γ_t²λ/γ_max.
"""

import numpy as np

SETTINGS = ({},)


def weights(w, updates, lrs, *, lam):
    kept = 1 - lam * np.square(lrs) / max(lrs)
    found = []
    for t in range(1, len(lrs) + 1):
        since = np.array([np.prod(kept[i + 1 : t]) for i in range(t)])
        found.append(np.prod(kept[:t]) * w - (since * lrs[:t]) @ updates[:t])
    return np.array(found)
