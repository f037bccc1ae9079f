"""Half threshold: the proximal step of λΣ|w|^½, which leaves large weights nearly alone and zeroes small ones."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import absolute, power, sqrt, where


@decay(source="Xu, Chang, Xu & Zhang 2012")
def half_threshold(w, u, *, eta, lam):
    """Step by −η·u, then take the x that is nearest in ½(x − y)² + ηλ|x|^½. λ is per unit of learning rate.

    With x = |y|·q² the optimum solves q³ − q + ηλ/(2|y|^1.5) = 0. Newton's method comes from q = 1 to the last digit of
    the largest root in five steps; the paper writes that root with a cosine.

    >>> half_threshold(1.0, 0.0, eta=1.0, lam=0.8)
    0.0
    """
    y = w - eta * u
    tau = eta * lam
    size = absolute(y)
    held = where(size > 1.5 * power(tau, 2 / 3), size, 1)
    c = where(size > 1.5 * power(tau, 2 / 3), tau / 2 / held / sqrt(held), 0)
    q1 = 1 - c / 2
    q2 = q1 - (q1 * q1 * q1 - q1 + c) / (3 * q1 * q1 - 1)
    q3 = q2 - (q2 * q2 * q2 - q2 + c) / (3 * q2 * q2 - 1)
    q4 = q3 - (q3 * q3 * q3 - q3 + c) / (3 * q3 * q3 - 1)
    q5 = q4 - (q4 * q4 * q4 - q4 + c) / (3 * q4 * q4 - 1)
    return where(size > 1.5 * power(tau, 2 / 3), y * q5 * q5, 0 * y)
