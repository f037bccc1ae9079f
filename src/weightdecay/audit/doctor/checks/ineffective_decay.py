"""D8: a λ that nobody reads, that does nothing, that acts twice, or that is no number.

Source: tinygrad #17709 (a decay computed and thrown away), huggingface/llama-cookbook #197, dholzmueller/pytabkit #40.
"""

import math
from collections.abc import Collection, Iterator

from weightdecay.audit.doctor.checks.resume import passed_decay, steps_made
from weightdecay.audit.doctor.cure import Cure
from weightdecay.audit.doctor.decay_law import DECOUPLED, decay_of, plain
from weightdecay.audit.doctor.findings import Finding
from weightdecay.audit.doctor.fix_code import decoupled, made, said, written
from weightdecay.audit.doctor.setup import Case, names
from weightdecay.display.near_names import nearest
from weightdecay.optim.attach import DECAY, LAMBDA, TAKEN_OVER, Attachment
from weightdecay.update_rules.registry import REGISTRY

ID, TITLE = "D8", "a λ that does nothing or acts twice"
_OTHER_NAMES = ("wd", "l2", "l2_reg", "weightdecay", "decay", "lambda", "reg")


def check(case: Case) -> Iterator[Finding]:
    """Yield the numbers that do something else than they say."""
    dead = [each for each in case.members if each.lam > 0 and case.laws[each.group].kind == "none"]
    if dead:
        yield Finding(
            ID,
            "error",
            f"λ does nothing: {case.laws[dead[0].group].text}",
            names(dead),
            {"weight_decay": sorted({each.lam for each in dead}), "told_by": case.laws[dead[0].group].source},
            f"nothing decays in {case.horizon}",
            *decoupled(case),
        )
    for index, group in enumerate(case.groups):
        tensors = names([each for each in case.members if each.group == index])
        for key in ("weight_decay", "penalty_weight", LAMBDA):
            value = plain(group.get(key, 0.0))
            if not math.isfinite(value) or value < 0:
                yield Finding(
                    ID,
                    "error",
                    f"{key} of param_groups[{index}] is {group[key]!r}: torch checks the constructor's, and not a group's",
                    tensors,
                    {key: str(group[key])},
                    "the weights grow" if value < 0 and math.isfinite(value) else "the step fails, or makes weights NaN",
                    *_positive(case, index, key, value),
                )
        yield from _rate(case, index, tensors)
        yield from _misspelt(case, index, tensors)
        yield from _attached(case, index, tensors)
    passed = passed_decay(case)
    if passed is not None and not steps_made(case):
        yield Finding(
            ID,
            "warning",
            f"the λ that was passed to the constructor, {passed:g}, is in no group: each has its own",
            (),
            {"passed": passed, "of_the_groups": sorted({plain(group.get("weight_decay")) for group in case.groups})},
            case.left_in_words(range(len(case.groups))),
            *_as_it_is(case, passed),
        )
    twice = [
        each
        for each in case.decaying
        if plain(case.groups[each.group].get("penalty_weight", 0.0)) > 0 < plain(case.groups[each.group].get("weight_decay"))
    ]
    if twice:
        group = case.groups[twice[0].group]
        yield Finding(
            ID,
            "warning",
            "a penalty in the gradient and a decay beside it act on the same tensors",
            names(twice),
            {"penalty_weight": plain(group["penalty_weight"]), "weight_decay": plain(group["weight_decay"])},
            "each shrinks the weights by its own amount",
            *_without_penalty(case, {each.group for each in twice}),
        )
    scaled = {index: plain(group["lr_scale"]) for index, group in enumerate(case.groups) if "lr_scale" in group}
    reads = any(type(each).__module__.startswith("timm") for each in case.schedulers)
    if any(scale != 1 for scale in scaled.values()) and case.schedulers and not reads:
        yield Finding(
            ID,
            "warning",
            "lr_scale is in the groups, and only timm's schedulers read it",
            tuple(each.name for each in case.members if each.group in scaled),
            {"lr_scale": sorted(set(scaled.values())), "schedulers": [type(each).__name__ for each in case.schedulers]},
            "all layers train with the same lr, and so with the same lr·λ",
            f'for group in {case.name}.param_groups:  # before the scheduler is made\n    group["lr"] *= group.pop("lr_scale")',
        )


def _rate(case: Case, index: int, tensors: tuple[str, ...]) -> Iterator[Finding]:
    """A learning rate that is none takes the decay with it."""
    group = case.groups[index]
    lr = plain(group.get("lr"))
    if 0 <= lr < math.inf or "lr" not in {*group, *case.optimizer.defaults}:
        return
    yield Finding(
        ID,
        "error",
        f"lr of param_groups[{index}] is {group['lr']!r}" if "lr" in group else f"param_groups[{index}] has no lr",
        tensors,
        {"lr": str(group.get("lr"))},
        "the steps climb, and the decay makes the weights grow" if lr < 0 else "the step fails, or makes weights NaN",
        *_rate_of(case, index, lr),
    )


def _rate_of(case: Case, index: int, lr: float) -> Cure:
    """Return code with the learning rate without its sign, or that of the constructor."""
    told = plain(case.optimizer.defaults.get("lr"))
    meant = -lr if -math.inf < lr < 0 else told if 0 < told < math.inf else 1e-3
    left = case.with_lambda(index, decay_of(case.groups[index]), lr=meant).left
    return said(case, f'{case.name}.param_groups[{index}]["lr"] = {meant:g}  # or what was meant', left)


def _positive(case: Case, index: int, key: str, value: float) -> Cure:
    """Return code with λ without its sign."""
    wanted = -value if math.isfinite(value) else 0.0
    lam, run = case.tempered(index, wanted)
    left = run.left if lam else 1.0
    return said(case, f'{case.name}.param_groups[{index}]["{key}"] = {lam:g}', left, wanted, lam)


def _as_it_is(case: Case, passed: float) -> Cure:
    """Return code that says no λ that is in no group."""
    found = made(case)
    return found._replace(fix=f"# the λ of the groups holds; if {passed:g} is meant, give it to them\n{found.fix}")


def _without_penalty(case: Case, groups: Collection[int]) -> Cure:
    left = min((each for index in groups if (each := case.runs[index].left) is not None), default=None)
    return said(case, f'for group in {case.name}.param_groups:\n    group["penalty_weight"] = 0.0', left)


def _misspelt(case: Case, index: int, tensors: tuple[str, ...]) -> Iterator[Finding]:
    """Torch keeps any key of a group, and says nothing of those that it does not read."""
    own = {*case.optimizer.defaults, "params", "param_names", "initial_weight_decay", LAMBDA, f"initial_{LAMBDA}", TAKEN_OVER}
    for key, value in case.groups[index].items():
        near = nearest(key, ["weight_decay"], cutoff=0.8) or (key.lower() in _OTHER_NAMES)
        if key not in own and near and "weight_decay" in own and math.isfinite(plain(value)):
            yield Finding(
                ID,
                "error",
                f"{key}={plain(value):g} in param_groups[{index}] is read by nobody: the key is weight_decay",
                tensors,
                {key: plain(value), "weight_decay": plain(case.groups[index].get("weight_decay"))},
                f"the group decays with weight_decay={plain(case.groups[index].get('weight_decay')):g}; "
                + case.left_in_words([index]),
                *_spelt(case, index, key, plain(value)),
            )


def _spelt(case: Case, index: int, key: str, value: float) -> Cure:
    """Return code that reads a misspelt λ, unless it would take too much: then the λ that the group has stays."""
    found = written(case, index, max(value, 0.0), case.runs[index].left)
    now = plain(case.groups[index].get("weight_decay"))
    return found._replace(fix=f'del {case.name}.param_groups[{index}]["{key}"]  # that is all if {now:g} is meant\n{found.fix}')


def _attached(case: Case, index: int, tensors: tuple[str, ...]) -> Iterator[Finding]:
    """A λ of `weightdecay.attach` that a checkpoint brought to an optimizer to which nothing is attached, or a second λ."""
    group, attachment = case.groups[index], Attachment.of(case.optimizer)
    attached, own = plain(group.get(LAMBDA, 0.0)), plain(group.get("weight_decay", 0.0))
    if attachment is None and attached > 0:
        yield Finding(
            ID,
            "error",
            f"{LAMBDA}={attached:g} in param_groups[{index}] is read by nobody: no decay is attached to this optimizer",
            tensors,
            {LAMBDA: attached, "weight_decay": own},
            "a new process attaches again, before it loads the optimizer's state or after; without that, no weight decays",
            *_again(case, index, group.get(DECAY, "decoupled"), attached),
        )
    if attachment is not None and LAMBDA in group and own > 0:
        yield Finding(
            ID,
            "error",
            f"weight_decay={own:g} in param_groups[{index}] would decay a second time beside the decay that is attached",
            tensors,
            {LAMBDA: attached, "weight_decay": own},
            "the next step is refused",
            *said(case, f'{case.name}.param_groups[{index}]["weight_decay"] = 0.0', case.runs[index].left),
        )


def _again(case: Case, index: int, decay: str, lam: float) -> Cure:
    """Return code that attaches again what was attached when the state was saved: the run goes on as it was."""
    rule = REGISTRY.find("decay", decay) if decay in REGISTRY.of("decay") else None
    left = case.with_lambda(index, lam, DECOUPLED).left if rule is not None and rule.name == "decoupled" else None
    return said(case, f'import weightdecay as wd\nwd.attach({case.name}, "{decay}")', left)
