"""What users ask for by a pattern of names or by a role, checked before anything is grouped."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from weightdecay import validation
from weightdecay.display import near_names
from weightdecay.display.table import some
from weightdecay.groups.params import Param
from weightdecay.groups.roles import ROLES

__all__ = ["Overrides", "Settings", "by_pattern", "by_role", "checked_number", "marked"]

Overrides = Mapping[str, Any] | Iterable[tuple[str, Any]]
Settings = dict[str, Any]


def by_role(roles: Mapping[str, Any]) -> dict[str, tuple[str, Settings]]:
    """Return {role: (who sets it, overrides)}; an exact name goes before one that means several roles.

    >>> by_role({"lora": 0.5, "lora.b": {"lr": 1e-2}})
    {'lora.a': ("role 'lora'", {'weight_decay': 0.5}), 'lora.b': ("role 'lora.b'", {'lr': 0.01})}
    """
    if not isinstance(roles, Mapping):
        raise TypeError(f"roles must be {{role: overrides}}, got {roles!r}.")
    families = {name.rpartition(".")[0] for name in (role.name for role in ROLES)} - {""}
    found: dict[str, tuple[str, Settings]] = {}
    for name in sorted(roles, key=len):
        validation.choice("role", name, dict.fromkeys([*(role.name for role in ROLES), *sorted(families)]))
        who = f"role '{name}'"
        overrides = _settings(roles[name], who)
        found.update(dict.fromkeys(ROLES.named(name), (who, overrides)))
    return found


def by_pattern(patterns: Overrides, params: Sequence[Param], kept: set[str]) -> dict[str, tuple[str, Settings]]:
    """Return {name: (who sets it, overrides)} of the first pattern that matches each tensor; each has to match some."""
    matches: dict[str, tuple[str, Settings]] = {}
    for pattern, overrides in map(_pattern, patterns.items() if isinstance(patterns, Mapping) else patterns):
        matching = [param.name for param in params if any(re.search(pattern, name) for name in param.names)]
        claimed = kept.intersection(matching) - matches.keys()
        if not claimed:
            taken = {name: matches[name][0].removeprefix("pattern ") for name in matching if name in matches}
            raise ValueError(f"Pattern '{pattern}' {_why_no_match(pattern, matching, taken, params)}")
        matches.update(dict.fromkeys(claimed, (f"pattern '{pattern}'", overrides)))
    return matches


def marked(names: Iterable[str], params: Sequence[Param]) -> None:
    """Mark the tensors of these names as scale-invariant, or refuse a name that is none's."""
    if isinstance(names, str):
        raise TypeError(f"scale_invariant must be a collection of names, got {names!r}. Pass [{names!r}].")
    known = {name: param for param in params for name in param.names}
    for name in names:
        if name not in known:
            nearest = near_names.nearest(name, known, most=3, cutoff=0)
            raise ValueError(f"scale_invariant names {name!r}, which is no parameter; the nearest are {some(nearest)}.")
        known[name].scale_invariant = True


def checked_number(value: object, name: str) -> float | Tensor:
    """Return a λ or a learning rate as it is, or refuse what is no finite number from 0 on."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name} must be a number or a one-element tensor, got {value!r}. Pass a float such as 0.1.")
    if not 0 <= float(number) < math.inf:
        raise ValueError(f"{name} must be finite and ≥ 0, got {value!r}. Pass a float such as 0.1, or 0 for none.")
    return value if isinstance(value, Tensor) else float(number)


def _settings(overrides: object, where: str) -> Settings:
    settings = dict(overrides) if isinstance(overrides, Mapping) else {"weight_decay": overrides}
    if reserved := settings.keys() & {"params", "param_names"}:
        raise ValueError(f"{where[0].upper()}{where[1:]} sets {min(reserved)!r}. Set hyper-parameters only.")
    for name in settings.keys() & {"weight_decay", "lr"}:
        settings[name] = checked_number(settings[name], f"{name} of {where}")
    return settings


def _pattern(pair: object) -> tuple[str, Settings]:
    match pair:
        case (str() as pattern, overrides):
            pass
        case _:
            raise TypeError(f"patterns must be {{pattern: overrides}} or a list of such pairs, got {pair!r} in it.")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"Pattern '{pattern}' is invalid: {error.msg} at position {error.pos}.") from None
    return pattern, _settings(overrides, f"pattern '{pattern}'")


def _why_no_match(pattern: str, matching: Sequence[str], taken: Mapping[str, str], params: Sequence[Param]) -> str:
    if taken:
        earlier = ", ".join(dict.fromkeys(taken.values()))
        return f"comes too late: {some(taken)} went to {earlier}, and the first match wins. Put it before, or drop it."
    if matching:
        return f"matches only what is frozen: {some(matching)}. Unfreeze it, pass frozen=True, or drop the pattern."
    names = [name for param in params for name in param.names]
    nearest = near_names.nearest(pattern, names, most=3, cutoff=0)
    return f"matches no parameter; the nearest are {some(nearest)}. Correct it after the names that the table shows."
