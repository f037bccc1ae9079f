"""A second opinion on every rule, from its paper or from another package: `<kind>_<rule>.py`, plain Python or NumPy.

An oracle spells its rule differently, so that no slip can be made twice: a penalty by its value, of which the rule has to be
the gradient, a direction by its whole past in one sum, a decay by the weights it leads to. Each file holds

    SETTINGS                                         hyper-parameters to try, under their users' names
    value(w, *, lam, …)                              penalty: the number that is added to the loss
    updates(gradients, …)                            direction: u_1 … u_T from g_1 … g_T, both of shape (T, weights)
    weights(w, gradients, lrs, …), SHAPES, TOLERANCE direction of whole tensors: w_1 … w_T, without a decay
    weights(w, updates, lrs, *, lam)                 decay: w_1 … w_T from w_0 and u_1 … u_T, with one learning rate per step
"""

from importlib import import_module
from importlib.util import find_spec


def oracle(rule):
    """Return the module with the second opinion on a rule, or None."""
    path = f"{__name__}.{rule.kind}_{rule.name}"
    return import_module(path) if find_spec(path) else None
