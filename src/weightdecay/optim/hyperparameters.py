"""From what users write (`lr`, `weight_decay`, `betas`, `momentum`) to what rules write (`eta`, `lam`, `beta1`, `mu`),
and back.

The one file that knows both spellings, and the one that says which values are allowed.
"""

import math
import numbers as number_types
import re
from collections.abc import Iterable, Mapping, Set, Sized
from typing import Any

import torch
from torch import Tensor

from weightdecay.display.near_names import hint, nearest
from weightdecay.display.user_warning import warn
from weightdecay.optim import schedules
from weightdecay.update_rules.equation import Equation
from weightdecay.update_rules.registry import REGISTRY
from weightdecay.update_rules.rule import CONTEXT, Rule
from weightdecay.validation import Choice, Interval, unboxed

_USER_NAMES = {"eta": "lr", "eta_max": "lr_max", "mu": "momentum"}
_DOMAINS = {
    name: Interval("[0, inf)")
    for name in ("lr", "weight_decay", "penalty_weight", "lr_max", "lr_at_start", "largest_lr", "seed")
}
_ANY = Interval("(-inf, inf)")
_FLAGS = ("maximize", "capturable", "differentiable", "nesterov", "centered", "amsgrad", "decoupled_weight_decay")
_FLAGS_OR_NONE = ("foreach", "fused")
_OTHERS = ("params", "param_names", "betas", "rounding", "direction", "penalty", "decay")
SCHEDULES = {key: f"{key}_schedule" for key in ("weight_decay", "penalty_weight")}
"""By the key of a λ, that of its schedule; a group without one has no such key."""
ROUNDINGS = ("auto", "nearest", "stochastic", "compensated")
_WRITTEN_BY_SCHEDULERS = (
    *("initial_lr", "max_lr", "min_lr", "base_lr", "base_momentum", "max_momentum", "swa_lr"),
    *("initial_weight_decay", "initial_penalty_weight"),
)


def defaults(rules: Iterable[Rule]) -> dict[str, Any]:
    """Return the rules' hyper-parameters under their users' names, with their defaults.

    >>> from weightdecay.update_rules.registry import REGISTRY
    >>> defaults([REGISTRY["direction", "adam"]])
    {'betas': (0.9, 0.999), 'eps': 1e-08}
    """
    found: dict[str, Any] = {}
    for rule in rules:
        for name, value in rule.defaults.items():
            if re.fullmatch(r"beta\d", name):
                found["betas"] = (*found.get("betas", ())[: int(name[4:]) - 1], value)
            else:
                found.setdefault(_USER_NAMES.get(name, name), value)
    return found


def numbers(rule: Rule, group: Mapping[str, Any], *, lam: str, t: Any) -> dict[str, Any]:
    """Return what stands right of the rule's `*`, reductions and memory aside, taken from a parameter group.

    `lam` names the group's key for λ, and t is the number of the step.
    """
    found = {}
    for name in rule.numbers:
        if name in rule.reductions or name in rule.memory:
            continue
        if name == "t":
            found[name] = t
        elif name == "lam":
            found[name] = scheduled(group, lam)
        elif name == "eta_max":
            found[name] = peak_lr(group)
        else:
            found[name] = _value(name, group)
    return rule.counting(found)


def peak_lr(group: Mapping[str, Any]) -> Any:
    """Return the peak learning rate: the one that is named in the group, or the largest that it has had, if that is larger.

    Named is `lr_max` as passed, else `max_lr` (OneCycleLR), `initial_lr` (any scheduler) or the first `lr`. What would divide
    by it is η, or 0 with η: where all of them are 0 the answer is 1.

    With an lr that requires a gradient the peak is lr times a number, unless `lr_max` or `max_lr` is the peak: a schedule
    is a shape times one size, and the gradient is that of the size.
    """
    key, peak = _named_peak(group)
    seen = [group[name] for name in ("largest_lr", "lr") if group.get(name) is not None]
    if not any(isinstance(value, Tensor) for value in (peak, *seen)):
        return max(peak, *seen) or 1.0
    lr = group["lr"]
    if not (isinstance(lr, Tensor) and lr.requires_grad and torch.is_grad_enabled()):
        return _positive(_largest(peak, *seen))
    given = peak if key in ("lr_max", "max_lr") else 0.0
    now = lr.detach()
    own = _positive(_largest(peak, *seen)).detach() * torch.where(now == 0, 1.0, lr / torch.where(now == 0, 1.0, now))
    return torch.where(own > given, own, given)


def _named_peak(group: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the peak learning rate that a group names, after the key under which it does; 0 if it names none above 0."""
    for key in ("lr_max", "max_lr", "initial_lr", "lr_at_start"):
        peak = group.get(key)
        if isinstance(peak, Tensor) or peak:
            return key, peak
    return "lr", 0.0


def _largest(first: Any, *others: Any) -> Any:
    """Return the largest of numbers and tensors of one element, without a look at what stands in a tensor."""
    for other in others:
        if isinstance(first, Tensor) or isinstance(other, Tensor):
            first = torch.where(other > first, other, first)
        else:
            first = max(first, other)
    return first


def _positive(value: Tensor) -> Tensor:
    return value.where(value > 0, 1.0)


def remember_lr(group: dict[str, Any]) -> None:
    """Keep the lr of a step in the group where it is above the peak that stands there: a schedule goes on from it."""
    lr, before = group["lr"], group.get("largest_lr", 0.0)
    if isinstance(lr, Tensor):
        now = lr.detach()
        if not isinstance(before, Tensor):
            group["largest_lr"] = before = torch.full_like(now, before)
        before.copy_(torch.where(now > _largest(_named_peak(group)[1], before), now, before))
    elif lr > _largest(_named_peak(group)[1], before):
        group["largest_lr"] = lr


def warn_above_peak(groups: Iterable[tuple[str, Mapping[str, Any]]], what: str) -> None:
    """Say once that the lr has gone above the peak that was named; a warning is given before `remember_lr` is called.

    An lr that is a tensor on another device than the CPU is not read, and nothing is said of it.

    Args:
        groups: what to call each, and the group.
        what: asks for the peak.
    """
    found = None
    for where, group in groups:
        key, peak = _named_peak(group)
        values = [peak, group["lr"], group.get("largest_lr", 0.0)]
        if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in values):
            continue
        peak, lr, before = (value.item() if isinstance(value, Tensor) else value for value in values)
        allowed = peak * (1 + 1e-6)  # a schedule's own rounding is no higher peak
        if peak == 0:
            continue  # none was named: a run that starts at lr 0
        if before > allowed:
            return  # said before
        if found is None and lr > allowed:
            found = (
                f"lr={lr:.6g} in {where} is above {key}={peak:.6g}, which {what} takes for the peak of the learning rate, by "
                "which λ is scaled. From now on the peak is the largest lr so far; earlier steps were scaled by a lower one: "
                "pass the largest lr of the schedule as lr_max"
            )
    if found is not None:
        warn(found)


def scheduled(group: Mapping[str, Any], key: str) -> Any:
    """Return λ at the group's next step: what stands under its key, times the share of its schedule."""
    schedule = group.get(f"{key}_schedule")
    if schedule is None:
        return group[key]
    if schedules.by_lr(schedule):
        return group[key] * schedules.share(schedule, lr=group["lr"], peak=peak_lr(group))
    return group[key] * schedules.share(schedule, step=schedule["step"])


def counts(group: Mapping[str, Any]) -> bool:
    """Return whether a λ of the group changes from step to step by itself."""
    return any("step" in (group.get(key) or ()) for key in SCHEDULES.values())


def count(group: dict[str, Any]) -> None:
    """Count a step in the group's schedules, and remember its lr where a rule or a schedule asks for the peak."""
    if "lr_at_start" in group:
        remember_lr(group)
    for key in SCHEDULES.values():
        if "step" in (group.get(key) or ()):
            group[key] = schedules.advanced(group[key])


def looks_at_lr(group: Mapping[str, Any]) -> bool:
    """Return whether a λ of the group follows the learning rate."""
    return any(schedules.by_lr(group.get(key)) for key in SCHEDULES.values())


def _value(name: str, group: Mapping[str, Any]) -> Any:
    if re.fullmatch(r"beta\d", name):
        return group["betas"][int(name[4:]) - 1]
    return group[_USER_NAMES.get(name, name)]


def unify(group: dict[str, Any], equation: Equation) -> None:
    """Write each of the group's values in one form, as far as they have it: nothing is refused.

    Numbers of NumPy's become Python's, flags become bools, and several numbers a tuple, whatever sequence they stand in. A
    tensor stays a tensor; of one with several numbers each becomes a tensor of its own.
    """
    for key, form in _forms(equation).items():
        value = group.get(key)
        if form is bool:
            plain = unboxed(value)
            if isinstance(plain, number_types.Integral) and plain in (0, 1):
                group[key] = bool(plain)
        elif form is tuple:
            if key in group:
                group[key] = unified(value)
        elif value is not None:
            group[key] = _plain(value)


def unified(value: Any) -> Any:
    """Return a number, or several in whatever sequence, in Python's form, and anything else as it is.

    >>> import collections
    >>> unified(collections.deque([0.9, None])), unified("auto")
    ((0.9, None), 'auto')
    """
    several = _several(value)
    return _plain(value) if several is None else tuple(map(_plain, several))


def _forms(equation: Equation) -> dict[str, type]:
    """Return by key of a group what its value is: one number (float), several (tuple) or a flag (bool)."""
    forms: dict[str, type] = dict.fromkeys(_DOMAINS, float)
    for rule in equation.rules:
        for name, default in rule.defaults.items():
            forms[user_name(name)] = type(default) if isinstance(default, bool | tuple) else float
    return {**forms, "betas": tuple, **dict.fromkeys((*_FLAGS, *_FLAGS_OR_NONE), bool)}


def _several(value: Any) -> tuple[Any, ...] | None:
    """Return the elements of any kind of sequence; None if it is none."""
    if isinstance(value, Tensor):
        return value.unbind() if value.ndim == 1 else None
    if isinstance(value, str | bytes | Mapping | Set) or not (isinstance(value, Sized) and isinstance(value, Iterable)):
        return None
    return None if getattr(value, "ndim", 1) == 0 else tuple(value)


def _plain(value: Any) -> Any:
    """Return a real number as Python's int or float, and anything else as it is."""
    value = unboxed(value)
    if isinstance(value, bool) or not isinstance(value, number_types.Real):
        return value
    return int(value) if isinstance(value, number_types.Integral) else float(value)


def check(group: dict[str, Any], equation: Equation, where: str, *, is_new: bool = False, is_loaded: bool = False) -> None:
    """Refuse a group whose hyper-parameters cannot be meant, and write each in one form, as `unify` does.

    Combinations that a rule's own check refuses are looked at in a new group only: later, schedules write number by number.

    A group that `is_loaded` may have any finite numbers: somebody may have written them after the last step, before it was
    saved, and others may be written before the next, which looks at them again.

    Raise:
        TypeError: a value is not a number, or a flag not a bool.
        ValueError: a number is NaN, infinite or outside its domain, or a key looks like a misspelt hyper-parameter.
    """
    unify(group, equation)
    domains, tuples = _domains(equation)
    flags = [key for key, form in _forms(equation).items() if form is bool]
    for flag in flags:
        domains.pop(flag, None)
        if flag in group and not isinstance(group[flag], bool) and not (flag in _FLAGS_OR_NONE and group[flag] is None):
            raise TypeError(f"{flag}={group[flag]!r} in {where} is not True or False")
    if is_loaded:
        domains |= {key: _ANY for key, domain in domains.items() if isinstance(domain, Interval) and key != "seed"}
        for key in ("initial_lr", "max_lr", "initial_weight_decay", "initial_penalty_weight"):  # what schedulers go by
            if group.get(key) is not None:
                _number(key, group[key], _ANY, where)
    if "betas" in group:
        group["betas"] = _betas(group["betas"], equation, domains, where)
    for key in list(group):
        if key in domains and not (key in ("lr_max", "lr_at_start") and group[key] is None):
            group[key] = _setting(key, group[key], domains[key], tuples.get(key), where)
    if not isinstance(group["rounding"], str) or group["rounding"] not in ROUNDINGS:
        raise ValueError(f"rounding={group['rounding']!r} in {where} is unknown: {hint(group['rounding'], ROUNDINGS)}")
    if int(group["seed"]) != group["seed"]:
        raise ValueError(f"seed={group['seed']!r} in {where} is not a whole number")
    group["seed"] = int(group["seed"])
    _check_schedules(group, equation, where)
    _refuse_misspelt(group, {*domains, *flags, *_OTHERS, *SCHEDULES.values()}, where)
    _refuse_shared(equation, where)
    for rule in equation.rules:
        if is_new and rule.check is not None:
            try:
                rule.check(**{name: _value(name, group) for name in rule.defaults})
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None


def check_filled(group: Mapping[str, Any], keys: Iterable[str], equation: Equation, where: str) -> None:
    """Refuse a number of a group, under one of these keys, that is a tensor and was filled with what cannot be meant.

    A tensor on another device than the CPU is not read: the step would wait for the device.
    """
    domains, tuples = _domains(equation)
    for key in keys:
        value = group[key]
        if not all(map(_is_readable, value if isinstance(value, tuple) else (value,))):
            continue
        if key == "betas":
            _betas(value, equation, domains, where)
        elif key in domains:
            _setting(key, value, domains[key], tuples.get(key), where)


def _is_readable(value: Any) -> bool:
    """Return whether a value can be read without waiting for a device: it is no tensor, or an ordinary one on the CPU."""
    return not isinstance(value, Tensor) or (type(value) in (Tensor, torch.nn.Parameter) and value.device.type == "cpu")


def _domains(equation: Equation) -> tuple[dict[str, Interval | Choice], dict[str, tuple[Any, ...]]]:
    """Return by key of a group what its value may be, and the default of those that are several numbers."""
    domains: dict[str, Interval | Choice] = dict(_DOMAINS)
    tuples: dict[str, tuple[Any, ...]] = {}
    for rule in equation.rules:
        for name, default in rule.defaults.items():
            domains.setdefault(user_name(name), rule.domain.get(name, _ANY))
            if isinstance(default, tuple):
                tuples[user_name(name)] = default
    return domains, tuples


def _check_schedules(group: dict[str, Any], equation: Equation, where: str) -> None:
    """Refuse a schedule that cannot be meant; the others get all their numbers."""
    for key in SCHEDULES.values():
        if group.get(key) is None:
            continue
        first = next(iter(group["params"]), None)
        param = first[1] if isinstance(first, tuple) else first
        device = param.device if group["capturable"] and param is not None else None
        group[key] = schedules.counting(f"{key} in {where}", group[key], device)
        if key == SCHEDULES["weight_decay"]:
            refuse_following_twice(f"{key}={group[key]['name']!r} in {where}", group[key], equation.decay)


def refuse_following_twice(what: str, schedule: Any, decay: Rule) -> None:
    """Refuse a schedule that looks at the lr for the λ of a decay that looks at it, too: λ would fall with its square."""
    if schedules.by_lr(schedule) and {"eta_max", "lam"} <= set(decay.numbers):
        raise ValueError(f"{what}: the decay {decay.name} follows the lr by itself; with decay='decoupled' the schedule does")


def _refuse_shared(equation: Equation, where: str) -> None:
    """Refuse rules that call different numbers by one name: a group holds one value for it."""
    taken: dict[str, tuple[Rule, Any, Interval | Choice | None]] = {}
    for rule in equation.rules:
        for name, default in rule.defaults.items():
            other, value, domain = taken.setdefault(name, (rule, default, rule.domain.get(name)))
            if (value, domain) != (default, rule.domain.get(name)):
                raise ValueError(
                    f"{where}: the {other.kind} {other.name} and the {rule.kind} {rule.name} both have a number called "
                    f"{_USER_NAMES.get(name, name)} and mean different things by it; they cannot be used together"
                )
    held: dict[tuple[str, str], Rule] = {}
    for rule in equation.rules:
        for kept in rule.keeps:
            for way in (("name", kept.name), ("key", kept.key)) if kept.changes else ():
                other = held.setdefault(way, rule)
                if other is not rule:
                    raise ValueError(
                        f"{where}: the {other.kind} {other.name} and the {rule.kind} {rule.name} both keep something from "
                        f"step to step under the {way[0]} {way[1]!r}; they cannot be used together"
                    )


def _betas(betas: Any, equation: Equation, domains: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    names = [name for rule in equation.rules for name in rule.defaults if re.fullmatch(r"beta\d", name)]
    if not isinstance(betas, tuple) or (names and len(betas) != len(names)):
        raise ValueError(f"betas={betas!r} in {where} should be {len(names)} numbers, as in betas=(0.9, 0.999)")
    fallback = _ANY if domains["lr"] is _ANY else Interval("[0, 1)")
    return tuple(_number(f"betas[{i}]", beta, domains.get(f"beta{i + 1}", fallback), where) for i, beta in enumerate(betas))


def _setting(key: str, value: Any, allowed: Interval | Choice, default: tuple[Any, ...] | None, where: str) -> Any:
    """Return a hyper-parameter if it can be meant: a number, one of a few words, or as many numbers as its default has."""
    if isinstance(allowed, Choice):
        if value not in allowed:
            raise ValueError(f"{key}={value!r} in {where} is not one of {allowed}")
        return value
    if default is None:
        return _number(key, value, allowed, where)
    if not isinstance(value, tuple) or len(value) != len(default):
        raise ValueError(f"{key}={value!r} in {where} should be {len(default)} numbers, as in {key}={default}")
    return tuple(
        None if each is None and usual is None else _number(f"{key}[{place}]", each, allowed, where)
        for place, (each, usual) in enumerate(zip(value, default, strict=True))
    )


def check_number(key: str, value: Any, where: str, *, is_loaded: bool = False) -> Any:
    """Refuse a value of a number that every optimizer has (`lr`, a λ) if it cannot be meant, and return it as Python's."""
    return _number(key, _plain(value), _ANY if is_loaded else _DOMAINS[key], where)


def _number(key: str, value: Any, domain: Interval, where: str) -> Any:
    """Return the value if it is a number in its domain: Python's, or a tensor of one element."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{key} in {where} is a tensor of {value.numel()} elements; a Tensor {key} must be 1-element")
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{key} in {where} is a {value.dtype} tensor, not a real number")
        plain = value.item()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        plain = value
    else:
        raise TypeError(f"{key}={value!r} in {where} is not a number; give a float such as {key}=0.1")
    if not _is_finite(plain) or plain not in domain:
        raise ValueError(f"{key}={plain!r} in {where} is not a finite number in {domain}")
    return value


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond any float
        return False


def refuse_unknown(given: Iterable[str], known: Iterable[str], owner: object) -> None:
    """Refuse a keyword that no rule of this optimizer takes, and name the nearest that one does."""
    known = sorted(known)
    for name in given:
        if name in known:
            continue
        if re.fullmatch(r"beta\d", name):
            raise TypeError(f"{name} is written betas=(beta1, beta2, …)")
        if name in CONTEXT or name in _USER_NAMES:
            meant = {"lam": "weight_decay or penalty_weight"}.get(name, _USER_NAMES.get(name, "counted by the optimizer"))
            raise TypeError(f"{name} is the rules' own name: users write {meant}")
        close = nearest(name, known)
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known) or 'no numbers'}"
        raise TypeError(f"{owner} takes no {name!r}: {hint}")


def refuse_unused(given: Iterable[str], takes: set[str], equation: Equation, where: str) -> None:
    """Refuse a group's key that is some rule's number, or chooses rules, and would do nothing here."""
    every = {*defaults(REGISTRY.values()), "lr_max", "penalty_weight", "direction", "penalty", "decay", *SCHEDULES.values()}
    for key in given:
        if key in every and key not in takes:
            raise ValueError(f"{key!r} in {where} would be ignored: {equation} takes {', '.join(sorted(takes & every))}")


def _refuse_misspelt(group: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in group:
        if key not in known and key not in _WRITTEN_BY_SCHEDULERS:
            close = nearest(key, sorted(known), cutoff=0.85)
            if close:
                raise ValueError(f"{key!r} in {where} would be ignored: did you mean {close[0]!r}?")


def user_name(name: str) -> str:
    """Return what users call a rule's number.

    >>> user_name("mu")
    'momentum'
    """
    return _USER_NAMES.get(name, name)


def given(name: str, settings: Mapping[str, Any]) -> Any:
    """Return the value that a user's settings have for a rule's number, or None.

    >>> given("beta2", {"betas": (0.9, 0.99)}), given("mu", {"momentum": 0.5}), given("eps", {})
    (0.99, 0.5, None)
    """
    betas = re.fullmatch(r"beta(\d)", name)
    if betas is None:
        return settings.get(_USER_NAMES.get(name, name))
    values = settings.get("betas", ())
    return values[int(betas[1]) - 1] if len(values) >= int(betas[1]) else None
