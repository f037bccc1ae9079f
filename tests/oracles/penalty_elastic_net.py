"""The objective of sklearn.linear_model.ElasticNet (User Guide 1.1.5), with alpha = λ: α·ρ‖w‖₁ + ½α(1 − ρ)‖w‖₂²."""

SETTINGS = ({}, {"l1_ratio": 0.0}, {"l1_ratio": 0.2}, {"l1_ratio": 1.0})


def value(w, *, lam, l1_ratio=0.5):
    lasso = sum(abs(x) for x in w)
    ridge = sum(x**2 for x in w)
    return lam * l1_ratio * lasso + lam * (1 - l1_ratio) * ridge / 2
