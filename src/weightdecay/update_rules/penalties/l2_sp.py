"""L2-SP: half the squared distance from where training started, ½λ‖w − w₀‖². Fine-tuning that keeps what was learnt."""

from weightdecay.update_rules import penalty


@penalty(source="Li, Grandvalet & Davoine 2018, arXiv:1802.01483", reference={"w_0": "reference"})
def l2_sp(w, w_0, *, lam):
    """Pull every weight back to its value before the first step, in proportion to the distance.

    >>> l2_sp(2.0, 1.0, lam=0.5)
    0.5
    """
    return lam * (w - w_0)
