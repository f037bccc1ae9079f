"""Momentum as one sum over the past, from the algorithm box of torch.optim.SGD (Sutskever et al. 2013 for Nesterov).

b_1 = g_1 and b_t = μ·b_{t−1} + (1 − τ)·g_t give b_t = μ^{t−1}·g_1 + (1 − τ) Σ_{i=2..t} μ^{t−i}·g_i.
"""

import numpy as np

SETTINGS = (
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.75, "nesterov": True},
    {"momentum": 1.0},
)


def updates(gradients, *, momentum=0.0, dampening=0.0, nesterov=False):
    found = []
    for t in range(len(gradients)):
        weight = np.array([(1 - dampening if i else 1) * momentum ** (t - i) for i in range(t + 1)])
        buffer = weight @ gradients[: t + 1]
        found.append(gradients[t] + momentum * buffer if nesterov else buffer)
    return np.array(found)
