"""LAMB's decay: λw joins the step, and the sum is scaled to the length of the tensor itself."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import where


@decay(source="You et al. 2020, arXiv:1904.00962 (LAMB), with φ the identity as in optax.lamb")
def trust_ratio(w, u, *, eta, lam, norm_w, norm_r):
    """Step by −η‖w‖ along r = u + λw, or by −η·r where the tensor w is zero. λ is per unit of u: it weighs w against the step.

    The step has the length η‖w‖ whatever λ is: without a gradient any λ > 0 takes the share η of every weight, and at λ = 0
    the step is still scaled. With direction="adam" this is LAMB.

    >>> trust_ratio(3.0, 0.0, eta=0.25, lam=0.5, norm_w=4.0, norm_r=2.0)
    2.25
    """
    r = u + lam * w
    unit = r / where(norm_r > 0, norm_r, 1)
    return w - eta * where(norm_w > 0, norm_w * unit, r)
