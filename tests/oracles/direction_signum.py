"""Bernstein et al. 2018, arXiv:1802.04434, algorithm 2: m_t = μ·m_{t−1} + (1 − μ)·g_t, and the step is its sign.

With μ = 0 it is signSGD.
"""

import numpy as np

from .moving import average

SETTINGS = ({}, {"momentum": 0.0}, {"momentum": 0.5}, {"momentum": 0.99})


def updates(gradients, *, momentum=0.9):
    return np.sign(average(gradients, momentum))
