"""Tian, Huang & Kira 2024, arXiv:2411.01713, SPD: after the step θ̃, a tensor with c = −⟨g_t, θ_{t−1} − θ_0⟩ < 0 is projected.

θ_t = θ̃ − λ·r·(θ̃ − θ_0) with r = clip((‖θ̃ − θ_0‖ − ‖θ_{t−1} − θ_0‖)/‖θ̃ − θ_0‖, 0, 1). λ is not multiplied by the learning rate:
with λ = 1 the tensor is put back at the distance that it had. The gradients are those of the loss, as are plain SGD's updates.
"""

import numpy as np

SETTINGS = ({},)


def weights(w, updates, lrs, *, lam, gradients=None):
    start = w
    found = []
    for update, gradient, lr in zip(updates, updates if gradients is None else gradients, lrs, strict=True):
        before, after = w - start, w - lr * update - start
        near, far = np.linalg.norm(before), np.linalg.norm(after)
        if np.sum(gradient * before) > 0 and far > near:
            # In terms of the distance: a λ-th of the way from the new one back to the old one.
            after = after / far * (far - lam * (far - near))
        w = start + after
        found.append(w)
    return np.array(found)
