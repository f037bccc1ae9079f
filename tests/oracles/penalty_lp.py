"""Frank & Friedman 1993, bridge regression: λ Σ|w|^p, without a half and without a root."""

SETTINGS = ({}, {"p": 0.5}, {"p": 1.0}, {"p": 2.0}, {"p": 3.25})


def value(w, *, lam, p=1.5):
    return lam * sum(abs(x) ** p for x in w)
