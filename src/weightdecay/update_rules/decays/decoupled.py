"""Decoupled decay: the weight shrinks by ηλ beside the step, as torch's AdamW does it."""

from weightdecay.update_rules import decay


@decay(source="Loshchilov & Hutter 2019, arXiv:1711.05101, with λ multiplied by the learning rate as in torch.optim.AdamW")
def decoupled(w, u, *, eta, lam):
    """Multiply w by 1 − ηλ, then step by −η·u. λ is per unit of learning rate.

    >>> decoupled(1.0, 0.5, eta=0.125, lam=0.5)
    0.875
    """
    return (1 - eta * lam) * w - eta * u
