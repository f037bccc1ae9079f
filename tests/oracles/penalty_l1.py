"""Tibshirani 1996, the lasso as scikit-learn states it: λ‖w‖₁."""

SETTINGS = ({},)


def value(w, *, lam):
    return lam * sum(abs(x) for x in w)
