"""D4: λ enters the gradient where it was meant to stand beside it, or is something else altogether.

Source: Loshchilov & Hutter 2019, arXiv:1711.05101; jettify/pytorch-optimizer #454, bitsandbytes #1992, DeepSpeed #668.
"""

import re
from collections.abc import Iterator

from weightdecay.audit.doctor.findings import Finding
from weightdecay.audit.doctor.fix_code import decoupled
from weightdecay.audit.doctor.setup import Case, Member, by_group, names

ID, TITLE = "D4", "coupled where decoupled was meant"
_OF_ADAMW = 1e-2
"""λ of AdamW starts about here; an L2 penalty's ends below."""
_SIGNS = re.compile(r"lion|sign", re.IGNORECASE)
_CALLS_ITSELF_DECOUPLED = re.compile(r"(Adam|SGD|Lion|RMSprop)W(?![a-z])|[Dd]ecoupled")


def check(case: Case) -> Iterator[Finding]:
    """Yield the groups whose decay is not what the optimizer's name or the size of λ says."""
    for index, members in by_group(case.decaying).items():
        law = case.laws[index]
        sample = case.sample(members)
        assert sample is not None
        if law.kind == "constant":
            yield _constant(case, members)
        elif law.kind == "unknown":
            yield Finding(
                ID, "info", f"what λ does here is not known: {law.text}", names(members), {"weight_decay": members[0].lam}
            )
        elif law.kind == "coupled":
            yield from _coupled(case, members, sample)


def _constant(case: Case, members: list[Member]) -> Finding:
    lr, lam = case.runs[members[0].group].peak, members[0].lam
    return Finding(
        ID,
        "error",
        "the decay subtracts the same number from every weight, whatever its size and sign",
        names(members),
        {"weight_decay": lam, "peak_lr": lr, "law": case.laws[members[0].group].text},
        f"every weight drifts below zero: by up to {lr * lam * case.steps:.3g} over {case.horizon}",
        *decoupled(case),
    )


def _coupled(case: Case, members: list[Member], sample: Member) -> Iterator[Finding]:
    name, lam, run = type(case.optimizer).__name__, sample.lam, case.runs[sample.group]
    misnamed = _CALLS_ITSELF_DECOUPLED.search(name) is not None
    large = lam >= _OF_ADAMW or (_SIGNS.search(name) is not None and lam > 0)
    if not misnamed and not (large and is_scale_free(case, sample)):
        return
    step = case.replay(sample, lr=run.peak)
    evidence = {"weight_decay": lam, "peak_lr": run.peak, "a_decoupled_decay_would_take": run.peak * lam}
    if step is not None:
        evidence["a_first_step_without_gradient_takes"] = step.length
    but = "though its name says otherwise" if misnamed else f"and λ = {lam:g} is of AdamW's size"
    yield Finding(
        ID,
        "error" if misnamed else "warning",
        f"{name} adds λ·w to the gradient, {but}",
        names(members),
        evidence,
        "L2 is divided by the size of the gradient: a weight with a small gradient moves towards zero by about lr a step, "
        "whatever λ is, and one with a large gradient hardly decays",
        *decoupled(case),
    )


def is_scale_free(case: Case, sample: Member) -> bool:
    """Return whether a hundred times the gradient leads to less than ten times the step, as where it is divided by its size."""
    steps = [case.replay(sample, gradient, lr=1e-3, weight_decay=0.0) for gradient in (0.01, 1.0)]
    small, large = (None if each is None else each.length for each in steps)
    return small is not None and large is not None and 0 < large < 10 * small
