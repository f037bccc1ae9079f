"""D5: λ is in the wrong unit for the learning rate: the decay destroys, forgets, or cannot matter.

Source: Wang & Aitchison 2024, arXiv:2405.13698 (the timescale 1/s); mosaicml/composer #1334.
"""

import math
from collections.abc import Iterator

from weightdecay.analysis.run_plan import LITTLE
from weightdecay.audit.doctor.cure import Cure, Run, destroys, forgets, two_digits
from weightdecay.audit.doctor.decay_law import decay_of
from weightdecay.audit.doctor.findings import Finding
from weightdecay.audit.doctor.fix_code import written
from weightdecay.audit.doctor.setup import Case, Member, by_group, names
from weightdecay.update_rules.traits import steps_to_halve

ID, TITLE = "D5", "λ in the wrong unit for the learning rate"
_INDEPENDENT = 1e-3
"""A share per step from which packages warn whose λ does not scale with the lr (Composer, optimi)."""


def check(case: Case) -> Iterator[Finding]:
    """Yield the groups whose share per step, over the learning rates to come, is too large or too small, or not one."""
    yield from _no_rate(case)
    for index, members in by_group(case.decaying).items():
        run = case.runs[index]
        if run.shares is not None and run.largest > 0:
            yield from _of(case, members, run)


def _no_rate(case: Case) -> Iterator[Finding]:
    """Yield the first learning rate to come that is none, of those that start as one."""
    for index, run in enumerate(case.runs):
        at = next((step for step, lr in enumerate(run.lrs) if not 0 <= lr < math.inf), 0)
        if at > 0:
            yield Finding(
                ID,
                "error",
                f"the scheduler makes lr {run.lrs[at]:.3g} after {at:,} steps",
                names([each for each in case.members if each.group == index]),
                {"lr": run.lrs[at], "after_steps": at, "steps": case.steps},
                "the steps climb, and the decay makes the weights grow" if run.lrs[at] < 0 else "the weights become NaN",
                "# what goes on after its end has to stay there, as in:\nlr_lambda = lambda step: max(0.0, 1 - step / steps)",
            )
            return


def _of(case: Case, members: list[Member], run: Run) -> Iterator[Finding]:
    assert run.shares is not None
    share, lam = run.largest, members[0].lam
    at = run.lrs[run.shares.index(share)]
    total = math.fsum(run.shares)
    evidence = {
        "weight_decay": lam,
        "lr": at,
        "share_per_step": share,
        "half_life_in_steps": steps_to_halve(share),
        "timescale_in_steps": 1 / share,
        "sum_over_the_run": total,
    }
    independent = case.laws[members[0].group].kind == "independent"
    group, mean = members[0].group, run.mean
    if destroys(run):
        what = f"multiplies a weight by {1 - share:.3g}" if share >= 1 else f"takes {share:.0%} of every weight"
        yield Finding(
            ID, "error", f"a step {what}: the decay destroys the weights", names(members), evidence,
            f"what was learnt {max(1, round(1 / share))} steps ago is gone", *_with(case, group, 1 / (case.steps * mean)),
        )  # fmt: skip
    elif independent and share >= _INDEPENDENT:
        yield Finding(
            ID, "warning", "λ is not multiplied by the learning rate here, and is of the size of one that is",
            names(members), evidence, f"a weight without a gradient halves in {steps_to_halve(share):,.0f} steps",
            *_with(case, group, at),
        )  # fmt: skip
    elif case.told_steps and forgets(run):
        yield Finding(
            ID, "warning", "the weights forget within a hundredth of the run", names(members), evidence,
            f"the timescale is {1 / share:,.0f} steps of {case.steps:,}", *_with(case, group, 1 / (case.steps * mean)),
        )  # fmt: skip
    elif case.told_steps and total < LITTLE:
        yield Finding(
            ID, "info", "this λ cannot matter over the run", names(members), evidence,
            case.left_in_words([group]), *_stronger(case, group, 1 / (case.steps * mean)),
        )  # fmt: skip


def _with(case: Case, group: int, factor: float) -> Cure:
    """Return code with λ of a group multiplied by a factor below 1."""
    return written(case, group, two_digits(factor * decay_of(case.groups[group])))


def _stronger(case: Case, group: int, factor: float) -> Cure:
    """Return code with a λ that matters, where that is known to harm nothing: weights that were trained before lose by it."""
    return _with(case, group, factor) if case.pretrained is False else Cure("")
