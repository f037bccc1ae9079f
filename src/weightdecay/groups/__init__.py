"""Which parameters decay, and why: roles, the parameter groups made from them, and how other code would have chosen."""

from weightdecay.groups.param_groups import param_groups
from weightdecay.groups.roles import ROLES, Role, Roles
from weightdecay.groups.scale_invariance import Invariance, scale_invariant
from weightdecay.groups.table import Difference, Differences, ParamGroups

__all__ = [
    "ROLES",
    "Difference",
    "Differences",
    "Invariance",
    "ParamGroups",
    "Role",
    "Roles",
    "param_groups",
    "scale_invariant",
]
