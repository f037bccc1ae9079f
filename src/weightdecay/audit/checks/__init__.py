"""The checks of the doctor, one in each file: an ID, a TITLE, and a function of a case that yields findings."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

from weightdecay.audit.case import Case
from weightdecay.audit.checks import (
    coupling,
    exemptions,
    knobs,
    members,
    norms_decayed,
    resumed,
    rounding,
    sharding,
    special_tensors,
    units,
)
from weightdecay.audit.findings import Finding

__all__ = ["CHECKS", "Check"]


@dataclass(frozen=True)
class Check:
    """One check."""

    id: str
    title: str
    run: Callable[[Case], Iterable[Finding]]


def _check(module: ModuleType) -> Check:
    return Check(module.ID, module.TITLE, module.check)


CHECKS = {
    each.ID: _check(each)
    for each in (
        norms_decayed, exemptions, rounding, coupling, units, members, resumed, knobs, special_tensors, sharding
    )
}  # fmt: skip
"""The checks by their ids."""
