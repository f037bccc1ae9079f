"""Log: λΣlog(1 + |w|/s), which pulls hardest at small weights: a concave penalty, between L1 and a count."""

from weightdecay.update_rules import penalty
from weightdecay.update_rules.ops import absolute, sign


@penalty(source="Candès, Wakin & Boyd 2008", domain={"scale": "(0, inf)"})
def log(w, *, lam, scale=0.1):
    """Pull every weight to zero with the force λ/(|w| + s), and leave it at zero.

    >>> log(-1.0, lam=0.5, scale=1.0)
    -0.25
    """
    return lam * sign(w) / (absolute(w) + scale)
