"""Krogh & Hertz 1991: E(w) = E_0(w) + ½λ Σ w²; Hoerl & Kennard 1970 without the half."""

SETTINGS = ({},)


def value(w, *, lam):
    return lam * sum(x**2 for x in w) / 2
