"""Candès, Wakin & Boyd 2008: the log-sum penalty Σ log(|x| + ε), less its value at zero: λ Σ log(1 + |w|/ε), with ε = scale."""

import mpmath

SETTINGS = ({}, {"scale": 1e-3}, {"scale": 1.0}, {"scale": 8.0})


def value(w, *, lam, scale=0.1):
    return lam * sum(mpmath.log(1 + abs(x) / scale) for x in w)
