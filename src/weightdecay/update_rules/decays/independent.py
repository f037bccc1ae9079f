"""Independent decay: the original AdamW and SGDW, whose λ does not know the learning rate, only its schedule."""

from weightdecay.update_rules import decay


@decay(source="Loshchilov & Hutter 2019, arXiv:1711.05101, algorithms 1 and 2")
def independent(w, u, *, eta, eta_max, lam):
    """Multiply w by 1 − (η/η_max)·λ, then step by −η·u. λ is per step at the peak learning rate.

    >>> independent(1.0, 0.5, eta=0.125, eta_max=0.5, lam=0.5)
    0.8125
    """
    return (1 - eta / eta_max * lam) * w - eta * u
