"""D7: a resume or a regrouping has left a stale λ, a stale learning rate, or the state of another tensor.

Source: NVIDIA/Megatron-LM #7468, NVIDIA-NeMo/Automodel #3882; torch.optim.Optimizer.load_state_dict matches by position.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sized
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from weightdecay.audit.doctor.cure import Cure
from weightdecay.audit.doctor.decay_law import plain
from weightdecay.audit.doctor.findings import Finding
from weightdecay.audit.doctor.fix_code import said
from weightdecay.audit.doctor.setup import Case
from weightdecay.groups.names import without_wrappers
from weightdecay.optim.attach import Attachment
from weightdecay.optim.saved_state import known_names, of_another_shape

ID, TITLE = "D7", "damage of a resume or a regrouping"


def check(case: Case) -> Iterator[Finding]:
    """Yield what does not belong together: names, shapes, λ, learning rates, schedulers."""
    yield from _names(case)
    yield from _shapes(case)
    yield from _stale_decay(case)
    yield from _schedulers(case)


def _names(case: Case) -> Iterator[Finding]:
    """Torch keeps the names of the checkpoint beside the tensors that it put the state to by position.

    Names alone are no damage: without a state nothing was loaded, and the names of a part of the model lack what stands before
    them in the whole.
    """
    if not steps_made(case):
        return
    live = {id(param.tensor): param.names for param in case.params}
    wrong = {}
    for group in case.groups:
        for tensor, name in zip(group["params"], without_wrappers(known_names(group)), strict=False):
            own = live.get(id(tensor), [name])
            if name not in own and not any(_is_of_a_part(each, name) for each in own):
                wrong[own[0]] = name
    if wrong:
        known = {name for names in live.values() for name in names}
        yield Finding(
            ID,
            "error" if known.intersection(wrong.values()) else "warning",
            "tensors have the state of others: their param_names are not what the model calls them",
            tuple(wrong),
            {"state_of": wrong if len(wrong) <= 6 else dict(list(wrong.items())[:6]), "tensors": len(wrong)},
            "moments, λ and lr of one tensor are used for another",
            "# an optimizer that was made anew loads by name\n" + _migrated(case),
        )


def _is_of_a_part(own: str, name: str) -> bool:
    """Tell whether a name is the model's without what stands before it, as model.backbone's own are; or the reverse.

    >>> _is_of_a_part("net.weight", "weight"), _is_of_a_part("b.weight", "a.weight")
    (True, False)
    """
    return own.endswith(f".{name}") or name.endswith(f".{own}")


def _shapes(case: Case) -> Iterator[Finding]:
    wrong = {}
    for each in case.members:
        for key, held in of_another_shape(case.optimizer, case.optimizer.state.get(each.tensor), each.tensor.shape).items():
            wrong[each.name] = f"{key} {tuple(held.shape)} for {tuple(each.tensor.shape)}"
    if wrong:
        yield Finding(
            ID,
            "error",
            "buffers have another shape than their tensor",
            tuple(wrong),
            {"shapes": dict(list(wrong.items())[:6])},
            "the step fails, or broadcasts",
            f"{case.name}.state.clear()  # or, from the checkpoint:\n" + _migrated(case),
        )


def _migrated(case: Case) -> str:
    """Return code that loads an optimizer's state by name."""
    given = 'checkpoint["optimizer"], weight_decay="live", lr="checkpoint", model=model'
    return f"import weightdecay as wd\nwd.migrate({case.name}, {given})"


def _stale_decay(case: Case) -> Iterator[Finding]:
    """A λ that was passed, and is in no group of an optimizer that has made steps: a checkpoint has overwritten it."""
    passed = passed_decay(case)
    if passed is None or not (steps := steps_made(case)):
        return
    live = sorted({each.lam for each in case.members})
    yield Finding(
        ID,
        "warning",  # a schedule of λ of the user's own would look the same
        f"λ = {passed:g} was passed, and no group has it after {steps:,} steps: a checkpoint has put its own in its place?",
        tuple(each.name for each in case.members if each.lam > 0),
        {"passed": passed, "live": live, "steps_made": steps},
        case.left_in_words(range(len(case.groups))),
        *_passed(case, passed),
    )


def _passed(case: Case, passed: float) -> Cure:
    """Return code that writes the λ that was passed into the groups that decay."""
    lams = {each.group: each.lam for each in case.members if each.lam > 0}
    found = [(case.tempered(index, passed, now=case.runs[index].left), lam) for index, lam in lams.items()]
    # Where what was passed would take too much, no less than what the run has.
    lam = min((max(allowed, min(lam, passed)) for (allowed, _), lam in found), default=passed)
    left = [case.with_lambda(index, lam).left for index in lams]
    code = f'for group in {case.name}.param_groups:\n    if group["weight_decay"] > 0:\n        group["weight_decay"] = {lam:g}'
    return said(case, code, min((each for each in left if each is not None), default=None), passed, lam)


def passed_decay(case: Case) -> float | None:
    """Return λ as the constructor was told it, if that is not its default and no group has it."""
    default = case.optimizer.defaults.get("weight_decay")
    try:
        parameter: Any = inspect.signature(type(case.optimizer)).parameters.get("weight_decay")
    except (TypeError, ValueError):
        return None
    told = plain(default)
    if Attachment.of(case.optimizer) is not None:  # what was passed is not what decays
        return None
    if parameter is None or not math.isfinite(told) or told == 0 or told == plain(parameter.default):
        return None
    live = {plain(group.get("weight_decay")) for group in case.groups}
    return None if told in live or any("initial_weight_decay" in group for group in case.groups) else told


def steps_made(case: Case) -> int:
    """Return how many steps the optimizer counts."""
    states = [state for state in case.optimizer.state.values() if isinstance(state, Sized)]
    counts = [plain(state.get("step"), 0.0) for state in states if isinstance(state, Mapping)]
    return int(max(filter(math.isfinite, counts), default=0.0)) or int(any(map(len, states)))


def _schedulers(case: Case) -> Iterator[Finding]:
    for each in case.schedulers:
        if not case.is_mine(each):
            yield Finding(
                ID,
                "error",
                f"the {type(each).__name__} writes into another optimizer",
                (),
                {"its_lr": _rates(getattr(each.optimizer, "param_groups", [])), "lr_of_this_one": _rates(case.groups)},
                "lr never changes here, and nor does what lr·λ takes",
                f"scheduler = {type(each).__name__}({case.name}, ...)  # made anew, after the optimizer\n"
                'scheduler.load_state_dict(checkpoint["scheduler"])',
            )
    last = case.schedulers[-1] if case.schedulers else None
    if not isinstance(last, LRScheduler) or not case.is_mine(last):
        return
    written = [plain(lr) for lr in getattr(last, "_last_lr", [])]
    live = _rates(case.groups)
    if written and len(written) != len(live):
        yield Finding(
            ID, "error", "the scheduler was made before a group was added", (),
            {"groups_of_the_scheduler": len(written), "groups": len(live)}, "its next step fails, or leaves a group behind",
            f"scheduler = {type(last).__name__}({case.name}, ...)  # after the last add_param_group",
        )  # fmt: skip
    elif len(case.schedulers) == 1 and any(not math.isclose(a, b, rel_tol=1e-6) for a, b in zip(written, live, strict=False)):
        yield Finding(
            ID, "warning", "lr is not what the scheduler wrote last: one of the two was loaded, or changed, without the other",
            (), {"written": written, "live": live, "scheduler_at": int(last.last_epoch)},
            "the decay of a step, lr·λ, is another than planned until the scheduler writes again, or for good",
            f"{case.name}.load_state_dict(checkpoint[\"optimizer\"])\nscheduler.load_state_dict(checkpoint[\"scheduler\"])",
        )  # fmt: skip


def _rates(groups: list[dict[str, Any]]) -> list[float]:
    return [plain(group.get("lr")) for group in groups]
