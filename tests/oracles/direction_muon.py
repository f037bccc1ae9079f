"""Jordan et al. 2024: Newton–Schulz is a polynomial p(s) = a·s + b·s³ + c·s⁵, applied five times to every singular value.

The matrix enters with Frobenius norm 1. torch and this package do it in bfloat16, so that u agrees to some hundredths only.
"""

import numpy as np

from .moving import average

SHAPES = ((4, 3), (3, 7))
SETTINGS = ({}, {"momentum": 0.5, "nesterov": False}, {"adjust_lr_fn": "match_rms_adamw"})
TOLERANCE = 0.05


def updates(gradients, *, momentum=0.95, nesterov=True, adjust_lr_fn="original", **_):
    flat = gradients.reshape(len(gradients), -1)
    mean = average(flat, momentum)
    ahead = (momentum * mean + (1 - momentum) * flat if nesterov else mean).reshape(gradients.shape)
    rows, columns = gradients.shape[1:]
    scale = max(1.0, rows / columns) ** 0.5 if adjust_lr_fn == "original" else 0.2 * max(rows, columns) ** 0.5
    return np.array([scale * orthogonal(matrix, (3.4445, -4.775, 2.0315), 5) for matrix in ahead])


def orthogonal(matrix, coefficients, steps):
    left, sizes, right = np.linalg.svd(matrix / np.linalg.norm(matrix), full_matrices=False)
    for _ in range(steps):
        sizes = sum(weight * sizes**power for weight, power in zip(coefficients, (1, 3, 5), strict=True))
    return left @ np.diag(sizes) @ right


def weights(w, gradients, lrs, **setting):
    return w - (lrs[:, None, None] * updates(gradients, **setting)).cumsum(axis=0)
