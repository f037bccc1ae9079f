"""The norm of a tensor, un-squared: λ(Σ|w|^n)^(1/n). With n = 2 it is a group lasso (Yuan & Lin 2006) of one group."""

SETTINGS = ({}, {"n": 1.0}, {"n": 1.5}, {"n": 3.0}, {"n": 6.0})


def value(w, *, lam, n=2.0):
    return lam * sum(abs(x) ** n for x in w) ** (1 / n)
