"""No decay: take the step and leave the weight as it was."""

from weightdecay.update_rules import decay


@decay(source="Robbins & Monro 1951")
def none(w, u, *, eta):
    """Step by −η·u.

    >>> none(1.0, 0.5, eta=0.1)
    0.95
    """
    return w - eta * u
