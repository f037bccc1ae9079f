"""Fixes as code: optimizers that are made anew, numbers that are written into groups, and what is left of the weights."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from weightdecay.analysis.units import share
from weightdecay.audit.doctor.cure import MOST, Cure, Run, two_digits
from weightdecay.audit.doctor.decay_law import DECOUPLED, Law, decay_of, lambda_key, plain
from weightdecay.audit.doctor.setup import Case, Member
from weightdecay.optim import hyperparameters, presets
from weightdecay.optim.attach import Attachment
from weightdecay.optim.optimizer import Optimizer, holds_tensor
from weightdecay.optim.presets.preset import Options
from weightdecay.optim.saved_state import known_names
from weightdecay.optim.unwrap import calls_hooks

__all__ = ["attached", "decoupled", "filtered", "made", "said", "without_decay", "written"]


def said(case: Case, code: str, left: float | None, wanted: float | None = None, lam: float | None = None) -> Cure:
    """Return code with what it leaves of the weights, and why λ is not the one that was wanted."""
    lines = []
    if wanted is not None and lam is not None and lam < wanted:
        unless = "" if case.pretrained is False else ": pass pretrained=False (--from-scratch) if they are trained from scratch"
        lines.append(f"# {wanted:.3g} would take too much of the weights{unless}")
    if left is not None:
        if left < 1 - MOST and case.pretrained is False and case.told_pretrained is None:
            lines.append("# assumes training from scratch, as no norm has moved: pass pretrained=True (--pretrained) otherwise")
        lines.append(f"# leaves {share(left)} of a weight that decays, without a gradient, over {case.horizon}")
    return Cure("\n".join([*lines, code]), left)


def written(case: Case, index: int, wanted: float, now: float | None = None) -> Cure:
    """Return code that writes a λ into a group; `now` is what the run leaves as it is."""
    group = case.groups[index]
    key = lambda_key(group) or "weight_decay"
    lam, run = case.tempered(index, wanted, now=now) if case.runs else (wanted, Run((), (), None))
    if lam == decay_of(group) and lam < wanted:
        return Cure("")  # what is there takes as much as may be taken
    before = "  # before the scheduler of λ is made" if f"initial_{key}" in group else ""
    return said(case, f'{case.name}.param_groups[{index}]["{key}"] = {lam:g}{before}', run.left if lam else 1.0, wanted, lam)


def without_decay(case: Case, indices: Collection[int]) -> Cure:
    """Return code that takes λ out of groups."""
    lines = [f'{case.name}.param_groups[{index}]["{lambda_key(case.groups[index])}"] = 0.0' for index in dict.fromkeys(indices)]
    return said(case, "\n".join(lines), 1.0)


def made(
    case: Case,
    lam: float | None = None,
    *,
    options: str = "",
    call: str = "",
    anew: bool = False,
    extends: bool = False,
    lost: bool = False,
    **more: Any,
) -> Cure:
    """Return code that makes the optimizer anew, with the numbers that it has now and the class takes.

    What decays by its role keeps its λ, and nothing else decays. Where groups differ in more than that, they are made of
    those that there are.

    Args:
        case: the optimizer, and what it trains.
        lam: λ of all that decays; by default what it is now.
        options: more arguments of `param_groups`, as code.
        call: another class, whose decay is decoupled: of torch.optim or of this package's.
        anew: whether what the optimizer holds now says nothing of what it is to hold.
        extends: whether what decays by its role, and does not now, is to have the λ of the others.
        lost: whether the decay of the run as it is does not reach the weights.
        more: other keywords.
    """
    law = DECOUPLED if call else None
    weights = [each for each in case.members if each.decays and not each.param.asked and (each.in_model or anew)]
    lams = {each.lam for each in weights if each.lam > 0}
    most = max(0.0, *(lams or {each.lam for each in case.members}))
    extends = extends or anew or (bool(weights) and not lams)  # where no weight decays the groups were swapped
    if not case.runs:
        return Cure(f"import weightdecay as wd\n{_constructed(case, _by_role(most, options), call, more)}")
    if anew or (len(case.all) == 1 and _is_one_setting(case, lams, weights, extends)):
        wanted = most if lam is None else lam
        allowed, run = case.tempered(0, wanted, law, 1.0 if lost else _left_now(case, weights))
        params, before = _by_role(allowed, options), ""
        if len(case.all) > 1:
            params, before = "groups", f"groups = {params}  # of these, what it is to train\n"
        code = f"import weightdecay as wd\n{before}{_constructed(case, params, call, more)}"
        return said(case, code, run.left, wanted, allowed)
    return _of_own_groups(case, lam, most if extends else 0.0, options, call, law, more, lost=lost)


def decoupled(case: Case) -> Cure:
    """Return code with the same direction and a decay that stands beside the step."""
    cls, name = type(case.optimizer), type(case.optimizer).__name__
    if cls is Optimizer:
        return made(case, call="wd.Optimizer", penalty=None, decay="decoupled")
    if cls is torch.optim.Adam or not calls_hooks(case.optimizer):
        return made(case, call="torch.optim.AdamW")
    if cls.__module__.startswith(("torch.optim.", "weightdecay.")) and hasattr(presets, f"{name}W"):
        return made(case, call=f"wd.{name}W")
    return attached(case)


def attached(case: Case) -> Cure:
    """Return code that attaches a decoupled decay to an optimizer, whatever makes its steps, in place of its own."""
    lams = {each.group: each.lam for each in case.members if each.lam > 0}
    factor, left = _factor(case, lams, DECOUPLED, dict.fromkeys(lams))
    less = f'for group in {case.name}.param_groups:\n    group["weight_decay"] *= {factor:g}\n' if factor < 1 else ""
    code = f'import weightdecay as wd\n{less}wd.attach({case.name}, "decoupled")'
    most = max(lams.values(), default=0.0)
    return said(case, code, left, most, factor * most)


def filtered(case: Case, condition: str) -> str:
    """Return code that keeps those parameters of the groups of which a condition on `param` holds, and their names."""
    return (
        f"for group in {case.name}.param_groups:  # or better where they are made\n"
        f'    kept = [place for place, param in enumerate(group["params"]) if {condition}]\n'
        '    for key in {"params", "param_names"} & group.keys():\n'
        "        group[key] = [group[key][place] for place in kept]"
    )


# Groups -----------------------------------------------------------------------------------------------------------------------


def _by_role(lam: float, options: str) -> str:
    return f"wd.param_groups(model, weight_decay={lam:g}{options})"


def _left_now(case: Case, weights: list[Member]) -> float:
    """Return the least that the run leaves, as it is, of what decays by its role; all of it where that is not known."""
    left = (case.runs[each.group].left for each in weights if each.lam > 0)
    return min((1.0 if each is None else each for each in left), default=1.0)


def _is_one_setting(case: Case, lams: Collection[float], weights: list[Member], extends: bool) -> bool:
    """Return whether groups by role with one λ are what the optimizer has, but for what a fix is to change."""
    exempt = any(each.lam == 0 for each in weights)
    keys = {lambda_key(group) for group in case.groups}
    return not _differing(case) and len(lams) <= 1 and (extends or not exempt) and "penalty_weight" not in keys


def _differing(case: Case) -> list[str]:
    """Return the numbers, λ aside, that are not the same in all groups and that the class takes."""
    takes = _keywords(type(case.optimizer)).keys() - {"params", "weight_decay", "penalty_weight"}
    keys = dict.fromkeys(key for group in case.groups for key in group if key in takes)
    return [key for key in keys if len({repr(_at_start(group, key)) for group in case.groups}) > 1]


def _at_start(group: Mapping[str, Any], key: str) -> Any:
    """Return a number of a group as the constructor was told it: a scheduler may have written another since."""
    return group.get(f"initial_{key}", group.get(key))


def _of_own_groups(
    case: Case,
    lam: float | None,
    instead: float,
    options: str,
    call: str,
    law: Law | None,
    changes: Mapping[str, Any],
    *,
    lost: bool,
) -> Cure:
    """Return code that splits the groups that there are into what decays by its role and what does not.

    `instead` is the λ of what decays by its role and has none now; 0 leaves it so.
    """
    key = next((found for group in case.groups if (found := lambda_key(group))), "weight_decay")
    target = key if key == "penalty_weight" and not call else "weight_decay"
    lams, now = {}, {}
    for index in sorted({each.group for each in case.members if each.decays}):
        own = decay_of(case.groups[index])
        if (wanted := lam if lam is not None else own or instead) > 0:
            lams[index], now[index] = wanted, case.runs[index].left if own and law is None and not lost else 1.0
    factor, left = _factor(case, lams, law, now)
    value = f'group["{key}"]' if not instead else f'(group["{key}"] or {instead:g})'
    value = f"{lam:g}" if lam is not None else value
    value = f"{factor:g} * {value}" if factor < 1 else value
    differing = [each for each in _differing(case) if not call or each in _keywords(_class_of(call))]
    kept = "".join(f', "{each}": {_code_of(case, each)}' for each in differing)
    named = all(map(known_names, case.groups))
    each, param, held = ("pair", "pair[1]", 'zip(group["param_names"], group["params"])') if named else (
        "param", "param", 'group["params"]'
    )  # fmt: skip
    made_of = (
        "import weightdecay as wd\n"
        f"by_role = wd.param_groups(model, weight_decay=1.0, frozen=True, names=False{options})\n"
        'decaying = {param for group in by_role if group["weight_decay"] for param in group["params"]}\n'
        "groups = [\n"
        f'    {{"params": some{kept}, "{target}": {value} * decays}}\n'
        f"    for group in {case.name}.param_groups\n"
        "    for decays in (True, False)\n"
        f"    if (some := [{each} for {each} in {held} if ({param} in decaying) is decays])\n"
        "]\n"
    )
    code = _constructed(case, "groups", call, changes, without=differing)
    most = max(lams.values(), default=0.0)
    return said(case, made_of + code, left, most, factor * most)


def _factor(
    case: Case, lams: Mapping[int, float], law: Law | None, now: Mapping[int, float | None]
) -> tuple[float, float | None]:
    """Return by what λ of every group has to be multiplied so that none takes too much, and the least that is left then."""
    factor = min((case.tempered(index, lam, law, now[index])[0] / lam for index, lam in lams.items()), default=1.0)
    factor = two_digits(factor) if factor < 1 else 1.0
    left = [case.with_lambda(index, factor * lam, law).left for index, lam in lams.items()]
    return factor, min((each for each in left if each is not None), default=None)


def _code_of(case: Case, key: str) -> str:
    if any(f"initial_{key}" in group for group in case.groups):
        return f'group.get("initial_{key}", group["{key}"])'
    return f'group["{key}"]'


# Constructors -----------------------------------------------------------------------------------------------------------------


def _constructed(case: Case, params: str, call: str, changes: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """Return code that constructs the optimizer of these parameters, and attaches again what is attached."""
    settings = {key: value for key, value in _settings(case).items() if key not in without or key == "lr"}
    if call:
        takes = _keywords(_class_of(call))
        not_theirs = {"foreach", "fused"} if call.startswith("wd.") else set()
        settings = {key: value for key, value in settings.items() if key in takes and key not in not_theirs}
    given = "".join(f", {key}={value!r}" for key, value in {**settings, **changes}.items())
    code = f"{case.name} = {call or _call(type(case.optimizer))}({params}{given})"
    attachment = Attachment.of(case.optimizer)
    if attachment is not None and not call:
        of_decay = {} if attachment.rounding in ("auto", "nearest") else {"rounding": attachment.rounding}
        given = "".join(f", {key}={value!r}" for key, value in {**of_decay, **attachment.numbers}.items())
        code += f'\nwd.attach({case.name}, "{attachment.decay.name}"{given})'
    return code


def _call(cls: type) -> str:
    """Return an optimizer's class as code."""
    if cls.__module__.startswith("torch.optim"):
        return f"torch.optim.{cls.__name__}"
    return f"wd.{cls.__name__}" if cls.__module__.startswith("weightdecay") else cls.__name__


def _class_of(call: str) -> Callable[..., Any]:
    module, _, name = call.rpartition(".")
    found: Callable[..., Any] = (
        Optimizer if call == "wd.Optimizer" else getattr(presets if module == "wd" else torch.optim, name)
    )
    return found


def _settings(case: Case) -> dict[str, Any]:
    """Return lr and what else the first group has otherwise than the class's defaults, λ aside."""
    group = case.groups[0]
    lr = plain(_at_start(group, "lr"))
    found: dict[str, Any] = {"lr": lr} if math.isfinite(lr) else {}
    for key, parameter in _keywords(type(case.optimizer)).items():
        value = hyperparameters.unified(group.get(key))
        differs = key in group and not holds_tensor(value) and value != parameter.default
        if differs and key not in ("lr", "params", "weight_decay", "penalty_weight"):
            found[key] = value
    return found


def _keywords(cls: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return what a class takes by name; this package's presets take the options of all, too."""
    try:
        found = dict(inspect.signature(cls).parameters)
    except (TypeError, ValueError):  # a class of compiled code
        return {}
    if isinstance(cls, type) and issubclass(cls, presets.Preset):
        general = inspect.signature(Optimizer).parameters
        found |= {name: general[name] for name in Options.__annotations__}
    return found
