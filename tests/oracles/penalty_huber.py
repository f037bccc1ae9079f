"""Huber 1964, with Guo & Fan 2025, arXiv:2511.14721: λ Σ H_δ(w), H_δ(a) = ½a² for |a| ≤ δ and δ|a| − ½δ² beyond."""

SETTINGS = ({}, {"delta": 0.05}, {"delta": 0.5}, {"delta": 4.0})


def value(w, *, lam, delta=1.0):
    return lam * sum(x**2 / 2 if abs(x) <= delta else delta * (abs(x) - delta / 2) for x in w)
