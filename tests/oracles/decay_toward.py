"""Li, Grandvalet & Davoine 2018, arXiv:1802.01483, L2-SP, decoupled: w − w0 decays as w does in AdamW.

So w_T = w_0 − Σ_i η_i·u_i·Π_{j>i} (1 − η_jλ), with λ times the learning rate, and ½λ‖w − w0‖² as what the decay descends.
"""

import numpy as np

SETTINGS = ({},)


def weights(w, updates, lrs, *, lam):
    kept = 1 - lrs * lam
    moved = [[np.prod(kept[i + 1 : t]) * lrs[i] for i in range(t)] @ updates[:t] for t in range(1, len(lrs) + 1)]
    return w - np.array(moved)
