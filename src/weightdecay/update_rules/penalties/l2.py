"""L2: half the squared length of the weights, ½λ‖w‖². Ridge regression, and the weight_decay of torch's SGD and Adam."""

from weightdecay.update_rules import penalty


@penalty(source="Hoerl & Kennard 1970; Krogh & Hertz 1991")
def l2(w, *, lam):
    """Pull every weight to zero in proportion to itself.

    >>> l2(2.0, lam=0.5)
    1.0
    """
    return lam * w
