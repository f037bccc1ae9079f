"""Chen et al. 2023, arXiv:2302.06675, algorithm 2: u_t = sign(β1·m_{t−1} + (1 − β1)·g_t), then m_t = β2·m_{t−1} + (1 − β2)·g_t.

Under the sign stands (1 − β1)·g_t + β1·Σ_{i<t} (1 − β2)·β2^{t−1−i}·g_i.
"""

import numpy as np

from .moving import average

SETTINGS = ({}, {"betas": (0.95, 0.98)}, {"betas": (0.5, 0.5)}, {"betas": (0.0, 0.9)}, {"betas": (0.9, 0.0)})


def updates(gradients, *, betas=(0.9, 0.99)):
    before = np.vstack([np.zeros_like(gradients[:1]), average(gradients, betas[1])[:-1]])
    return np.sign((1 - betas[0]) * gradients + betas[0] * before)
