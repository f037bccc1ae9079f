"""Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 and 5, with the whole past in one sum and with sums in place of means.

V̂_ij = R_i·C_j / ΣR with R_i and C_j sums over a row and a column: the factors of the paper, whose weights of the past are
Π(1 − s^c) for the later steps s. ε₁ stands where torch.optim.Adafactor has it: under the root, squared.
"""

import numpy as np

SHAPES = ((4, 3), (2, 3, 4), (6,))
SETTINGS = ({}, {"beta2_decay": -0.5, "d": 1.5}, {"eps": (None, 2.0)})
TOLERANCE = 1e-12


def weights(w, gradients, lrs, *, beta2_decay=-0.8, d=1.0, eps=(None, 1e-3)):
    tiny = np.finfo(float).eps
    found = []
    for t, (g, lr) in enumerate(zip(gradients, lrs, strict=True), start=1):
        fresh = np.arange(1.0, t + 1) ** beta2_decay
        past = fresh * np.concatenate([np.cumprod((1 - fresh)[:0:-1])[::-1], [1.0]])
        square = np.tensordot(past, gradients[:t] ** 2, axes=1)
        if square.ndim > 1:
            rows, columns, total = square.sum(-1), square.sum(-2), square.sum((-2, -1))
            square = np.einsum("...i,...j->...ij", rows, columns) / total[..., None, None]
        u = g / np.maximum(np.sqrt(square), tiny)
        u = u / max(1.0, root_mean_square(u) / d)
        w = w - max(eps[1], root_mean_square(w)) * min(lr, t**-0.5) * u
        found.append(w)
    return np.array(found)


def root_mean_square(x):
    return np.sqrt((x**2).mean())
