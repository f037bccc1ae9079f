"""Half threshold: the proximal step of λΣ|w|^½, which leaves large weights nearly alone and zeroes small ones."""

from weightdecay.rule import decay
from weightdecay.words import absolute, maximum, power, sign, sqrt, where


@decay(source="Xu, Chang, Xu & Zhang 2012")
def half_threshold(w, u, *, eta, lam):
    """Step by −η·u, then take the x that is nearest in ½(x − y)² + ηλ|x|^½. λ is per unit of learning rate.

    The root s of x solves s³ − |y|s + ηλ/2 = 0. Newton's method finds it from √|y|, above it, in five steps to the last
    digit; the paper writes the same root with a cosine.

    >>> half_threshold(1.0, 0.0, eta=1.0, lam=0.8)
    0.0
    """
    y = w - eta * u
    tau = eta * lam
    size = absolute(y)
    s = sqrt(size)
    safe = where(size > 0, size, 1)
    s = s - (s * s * s - size * s + tau / 2) / maximum(3 * s * s - size, safe)
    s = s - (s * s * s - size * s + tau / 2) / maximum(3 * s * s - size, safe / 4)
    s = s - (s * s * s - size * s + tau / 2) / maximum(3 * s * s - size, safe / 4)
    s = s - (s * s * s - size * s + tau / 2) / maximum(3 * s * s - size, safe / 4)
    s = s - (s * s * s - size * s + tau / 2) / maximum(3 * s * s - size, safe / 4)
    shrunk = where(size > 1.5 * power(tau, 2 / 3), sign(y) * s * s, 0 * y)
    return where(tau > 0, shrunk, y)
