"""Liu et al. 2020, arXiv:1908.03265, algorithm 2, with the threshold and the ε of the box of torch.optim.RAdam.

ρ_t is the length of the simple moving average with the centre of mass of the weights β2^{t−i}: twice their mean age, less one.
Where ρ_t > 5 the step is √(rectification)·m̂·√(1 − β2ᵗ)/(√v + ε), else m̂. The paper has ρ_t > 4 and no ε.
"""

import numpy as np

from .moving import average, debias

SETTINGS = (
    {},
    {"betas": (0.5, 0.9)},
    {"betas": (0.0, 0.99), "eps": 1e-3},
    {"betas": (0.9, 0.8), "eps": 0.0},
    {"betas": (0.9, 0.6)},  # ρ_∞ is 4: never rectified, and the formula for it would divide by zero
    {"betas": (0.9, 0.5)},
    {"betas": (0.9, 0.0)},
)


def updates(gradients, *, betas=(0.9, 0.999), eps=1e-8):
    steps, (beta1, beta2) = len(gradients), betas
    mean = average(gradients, beta1) / debias(steps, beta1)
    square = average(gradients**2, beta2)
    limit = 2 / (1 - beta2) - 1
    found = []
    for t in range(1, steps + 1):
        weight = beta2 ** np.arange(t)
        length = 2 * (np.arange(1, t + 1) @ weight) / weight.sum() - 1
        if length > 5:
            rectified = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
            factor = np.sqrt(rectified * (1 - beta2**t)) / (np.sqrt(square[t - 1]) + eps)
        else:
            factor = 1.0
        found.append(mean[t - 1] * factor)
    return np.array(found)
