"""The checks of the doctor, one in each file: an ID, a TITLE, and a function of a case that yields findings."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

from weightdecay.audit.doctor.checks import (
    coupled,
    exemptions,
    ineffective_decay,
    norms_decayed,
    parameter_set,
    resume,
    rounding,
    sharding,
    special_tensors,
    units,
)
from weightdecay.audit.doctor.findings import Finding
from weightdecay.audit.doctor.setup import Case

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
        norms_decayed, exemptions, rounding, coupled, units, parameter_set, resume, ineffective_decay, special_tensors, sharding
    )
}  # fmt: skip
"""The checks by their ids."""
