"""D6: the optimizer holds the wrong tensors: none of the model's, one twice, or what no gradient reaches.

Source: KellerJordan/Muon #54, iamwangyabin/S-Prompts #2, marin-community/marin #7783.
"""

from collections import Counter
from collections.abc import Iterator

from weightdecay.audit.doctor.cure import Cure
from weightdecay.audit.doctor.findings import Finding
from weightdecay.audit.doctor.fix_code import filtered, made, said
from weightdecay.audit.doctor.setup import Case, names
from weightdecay.optim.saved_state import known_names

ID, TITLE = "D6", "the wrong set of parameters"


def check(case: Case) -> Iterator[Finding]:
    """Yield what is missing, strange, doubled, frozen or never reached by a gradient, and decays."""
    held = Counter(id(each.tensor) for each in case.members)
    strange = [each for each in case.members if not each.in_model]
    if case.is_first and not all(map(_is_of_another, case.all)):
        yield from _missing(case)
    if _is_of_another(case):
        yield Finding(
            ID,
            "error",
            "no tensor of the optimizer is this model's: it was made for another, or before the tensors were replaced",
            names(strange),
            {"in_the_optimizer": len(strange), "in_the_model": len(case.params)},
            "the model does not train, unless these are master copies that are written back to it (then ignore D6)",
            *_commented("# after the model is built, wrapped, sharded and moved:", made(case, anew=True)),
        )
        return
    if strange:
        yield Finding(
            ID,
            "warning",
            "the optimizer steps tensors that are not the model's",
            names(strange),
            {"tensors": len(strange), "decaying": sum(each.lam > 0 for each in strange)},
            "what they are of may be right; this model does not see them",
            "# if they are to be trained, let the doctor see what they are of, too:\nmodel = torch.nn.ModuleList([model, ...])",
        )
    elsewhere = {id(each.tensor) for other in case.all[: case.all.index(case)] for each in other.members}
    shared = [each for each in case.members if id(each.tensor) in elsewhere]
    if shared:
        yield Finding(
            ID,
            "error",
            "tensors are in another optimizer, too, and are stepped and decayed by both",
            names(shared),
            {"tensors": len(shared), "weight_decay": sorted({each.lam for each in shared})},
            "each step of the one undoes what the other's state knows of them",
            _without(case),
        )
    twice = {each.name: each for each in case.members if held[id(each.tensor)] > 1}
    if twice:
        yield Finding(
            ID,
            "error",
            "a tensor is in the optimizer more than once, and is stepped and decayed each time",
            tuple(twice),
            {"times": max(held.values())},
            "twice the lr and twice the λ, and one state for both",
            "seen = set()  # each parameter once\n" + filtered(case, "not (param in seen or seen.add(param))"),
        )
    yield from _without_gradient(case)


def _is_of_another(case: Case) -> bool:
    """Return whether the optimizer holds tensors, and none of them is the model's."""
    return bool(case.members) and not any(each.in_model for each in case.members)


def _missing(case: Case) -> Iterator[Finding]:
    """Yield what none of the optimizers trains."""
    held = {id(each.tensor) for one in case.all for each in one.members}
    missing = [each for each in case.params if each.tensor.requires_grad and id(each.tensor) not in held]
    if not missing:
        return
    values, of = (sum(each.tensor.numel() for each in some) for some in (missing, case.params))
    several = bool(case.everywhere)
    yield Finding(
        ID,
        "warning",
        f"parameters that ask for gradients are in no group{' of any optimizer' if several else ''}",
        tuple(each.name for each in missing),
        {"tensors": len(missing), "values": values, "share_of_the_model": values / of if of else 0.0},
        "they stay as they are" + ("" if several else ", unless another optimizer trains them: then pass both, as a list"),
        *_added(case.all[-1]),
        optimizer=case.everywhere,
    )


def _commented(comment: str, cure: Cure) -> Cure:
    return cure._replace(fix=f"{comment}\n{cure.fix}")


def _added(case: Case) -> Cure:
    """Return code that gives an optimizer what no optimizer has, with the λ of the weights that it has, or that another has."""
    lams = {each.group: each.lam for each in case.members if each.decays and each.lam > 0}
    index, wanted = max(lams.items(), key=lambda item: item[1], default=(0, 0.0))
    wanted = wanted or max((each.lam for one in case.all for each in one.members if each.decays), default=0.0)
    lam, left = wanted, None
    if wanted and case.runs:
        lam, run = case.tempered(index, wanted, now=case.runs[index].left if lams else 1.0)
        left = run.left
    named = any(map(known_names, case.groups))
    each, param = ("pair", "pair[1]") if named else ("param", "param")
    every = case.name if len(case.all) == 1 else "one"
    of_all = "" if len(case.all) == 1 else " for one in optimizers"
    code = (
        "import weightdecay as wd\n"
        f'held = {{param{of_all} for group in {every}.param_groups for param in group["params"]}}\n'
        f"for group in wd.param_groups(model, weight_decay={lam:g}{'' if named else ', names=False'}):\n"
        f'    if params := [{each} for {each} in group["params"] if {param} not in held]:\n'
        f'        {case.name}.add_param_group({{**group, "params": params}})'
    )
    return said(case, code, left, wanted, lam)


def _without(case: Case) -> str:
    """Return code that takes out of an optimizer what those before it have."""
    before = case.all.index(case)
    held = f'held = {{param for one in optimizers[:{before}] for group in one.param_groups for param in group["params"]}}\n'
    return held + filtered(case, "param not in held")


def _without_gradient(case: Case) -> Iterator[Finding]:
    decaying = [each for each in case.decaying if each.in_model]
    moving = [each for each in decaying if case.laws[each.group].moves_without_gradient and each.tensor.grad is None]
    frozen = [each for each in decaying if not each.tensor.requires_grad]
    pulled = [each for each in frozen if each in moving or each.tensor.grad is not None]
    if pulled:
        yield Finding(
            ID,
            "error",
            "frozen tensors decay",
            names(pulled),
            {"weight_decay": sorted({each.lam for each in pulled})},
            case.left_in_words([each.group for each in pulled]),
            "for param in model.parameters():\n    if not param.requires_grad:\n        param.grad = None\n"
            + filtered(case, "param.requires_grad"),
        )
    reached = [each for each in decaying if each.tensor.requires_grad and each.tensor.grad is not None]
    idle = [each for each in reached if not each.tensor.grad.any()]  # type: ignore[union-attr]
    if idle and len(idle) < len(reached):
        yield Finding(
            ID,
            "warning",
            "tensors decay whose gradient is zero",
            names(idle),
            {"gradients_of_zero": len(idle), "gradients": len(reached)},
            "if it stays so, " + case.left_in_words([each.group for each in idle]),
            f"{case.name}.zero_grad(set_to_none=True)  # a tensor without a gradient is neither stepped nor decayed",
        )
    unreached = [each for each in moving if each.tensor.requires_grad]
    if unreached and reached:
        yield Finding(
            ID,
            "error",
            f"{type(case.optimizer).__name__} decays tensors that have no gradient",
            names(unreached),
            {"without_gradient": len(unreached), "with_gradient": len(reached)},
            case.left_in_words([each.group for each in unreached]),
            filtered(case, "param.grad is not None"),
        )
