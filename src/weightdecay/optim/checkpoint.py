"""What an optimizer's checkpoint holds, and how it is loaded: whole or not at all, with moments in their own precision."""

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightdecay.display.table import some
from weightdecay.display.user_warning import warn
from weightdecay.groups.names import differences, without_wrappers
from weightdecay.optim import saved_state
from weightdecay.optim.hyperparameters import SCHEDULES
from weightdecay.optim.saved_state import moment_dtype, name_of
from weightdecay.update_rules.equation import Equation
from weightdecay.update_rules.rule import KINDS
from weightdecay.update_rules.state import Kept

_OURS = ("foreach", "fused", "differentiable")
"""The flags that say how a step is computed, not which: a checkpoint's are not taken over."""


class Chosen(dict[str, Any]):
    """A state dict whose λ and learning rates somebody has chosen: `migrate` asks for them, so they are not news."""

    def copy(self) -> "Chosen":
        """Return a copy of which they are chosen, too: torch hands one to the hooks of a load."""
        return Chosen(self)


class Checkpointed(torch.optim.Optimizer):
    """Loads and saves what an optimizer needs to go on, its own or that of torch's optimizer of the same name."""

    backend: str

    @abstractmethod
    def equation(self, group: Mapping[str, Any]) -> Equation:
        """Return the rules that a parameter group is trained with."""

    @abstractmethod
    def _one_at_a_time(self) -> AbstractContextManager[Any]: ...

    @abstractmethod
    def _complete(self, group: dict[str, Any], where: str, *, is_loaded: bool = False) -> None:
        """Fill in what the group's rules take and refuse what cannot be meant."""

    @abstractmethod
    def _kept(self, group: Mapping[str, Any]) -> tuple[Kept, ...]:
        """Return what the group's rules keep in the state at its hyper-parameters."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer or of torch's optimizer of the same name; it is refused whole or loaded whole.

        Moments keep their precision (torch would cast them to the parameter's). The state is copied, never shared.

        Where both have names (`param_names`), these have to agree, but for the prefixes of wrappers: torch pairs parameters
        by their places. `weightdecay.migrate` moves a state into other groups.

        A number outside its domain loads if it is finite, as somebody may have written it after the last step before saving
        (torch's OneCycleLR ends at a tiny negative lr); the next step refuses it, if it is still there.

        Raises:
            TypeError: this is no state dict of an optimizer, or a value in it is of another kind.
            ValueError: the groups or the names do not match, a value cannot be meant, or the moments are another optimizer's.
                Nothing has changed then.

        Warns:
            UserWarning: the λ or the lr that the checkpoint was trained with is another than this optimizer was made with.
                What schedulers have made of one and the same number is not meant.
        """
        if not isinstance(state_dict, Mapping):  # what is in it, a hook may have to bring yet
            saved_state.refuse_others(state_dict)
        news: list[str] = []
        handle = self.register_load_state_dict_pre_hook(lambda _, final: self._sealed(final, news))  # after all of the user's
        try:
            with self._one_at_a_time():  # another thread may be in a step
                super().load_state_dict(state_dict)
        finally:
            handle.remove()
        if not isinstance(state_dict, Chosen):
            warn_of_news(news)

    def _sealed(self, state_dict: Any, news: list[str]) -> dict[str, Any]:
        """Make all that is loaded, or refuse it; what belongs to a parameter is wrapped so that torch leaves it as it is."""
        groups, state = saved_state.parts(state_dict)
        _refuse_other_groups(groups, self.param_groups)
        entries, owners = dict(state), dict[Any, Tensor]()
        passed = chosen(self, [key for key in ("weight_decay", "penalty_weight", "lr") if key in self.defaults])
        for index, (saved, live) in enumerate(zip(groups, self.param_groups, strict=True)):
            where = f"param_groups[{index}] of the loaded state"
            group = self._merged(saved, live)
            for kind in KINDS:
                if kind in live and not (isinstance(group[kind], str | None) and live[kind] == group[kind]):
                    raise ValueError(
                        f"{where} was trained with {kind}={group[kind]!r}, and this optimizer has {live[kind]!r}: make it with "
                        "the same rules"
                    )
            self._complete(group, where, is_loaded=True)
            news += overridden(saved, live, [key for key in passed if key in saved], f"param_groups[{index}]")
            news += _rescheduled(group, live, f"param_groups[{index}]")
            rules = _Rules.of(self.equation(group), self._kept(group))
            for place, (key, param) in enumerate(zip(saved["params"], live["params"], strict=True)):
                if owners.setdefault(key, param) is not param:
                    raise ValueError(f"{where} has the parameter {key!r} twice, for two of this optimizer")
                if key in state:
                    name = name_of(live, index, place)
                    entries[key] = _Sealed(rules.restored(state[key], param, name, on_device=group["capturable"]))
        return {**state_dict, "state": entries, "param_groups": [dict(group) for group in groups]}

    def _merged(self, saved: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
        """Return a loaded group; what it lacks (being older, or torch's) and which implementation runs come from ours."""
        names = {"param_names": live["param_names"]} if "param_names" in live else {}  # ours, with the prefixes of today
        return {**live, **saved, "params": live["params"], **names, **{flag: live[flag] for flag in _OURS}}

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and deepcopy keep: torch's three entries and the backend."""
        return {**super().__getstate__(), "backend": self.backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickled or a loaded state; keys that an older version did not have get their defaults."""
        live = self.__dict__.get("param_groups")
        if live is None:
            super().__setstate__(state)
            self._complete_all(self.param_groups)
            return
        groups = [self._merged(s, g) for s, g in zip(state["param_groups"], live, strict=True)]
        self._complete_all(groups)
        entries = state["state"]
        for key, entry in entries.items():
            if isinstance(entry, _Sealed):
                entries[key] = entry.content
        super().__setstate__({**state, "param_groups": groups})

    def _complete_all(self, groups: Sequence[dict[str, Any]]) -> None:
        for index, group in enumerate(groups):
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            self._complete(group, f"param_groups[{index}]", is_loaded=True)


def _refuse_other_groups(saved: Sequence[Mapping[str, Any]], live: Sequence[Mapping[str, Any]]) -> None:
    """Refuse groups of other sizes than the live ones, or with other names, place by place, where all have names."""
    sizes = [[len(group["params"]) for group in groups] for groups in (saved, live)]
    named = [all(len(group.get("param_names") or ()) == len(group["params"]) for group in groups) for groups in (saved, live)]
    if all(named):
        theirs, ours = (
            without_wrappers([name for group in groups for name in group.get("param_names") or ()]) for groups in (saved, live)
        )
        if ours == theirs and sizes[0] == sizes[1]:
            return
        what = differences(ours, theirs)
        if what:
            raise ValueError(
                "the loaded state has other parameters or another order, and moments would go to whatever stands in their "
                f"place:\n{what}\nIf the parameters were grouped anew, weightdecay.migrate(optimizer, state_dict, "
                "weight_decay=…, lr=…) moves the state by name."
            )
    elif sizes[0] == sizes[1]:
        return
    given = ["weight_decay=…", "lr=…"]
    given += ["model=model"] * (not named[1]) + ["saved=[[name, …], …]"] * (not named[0])
    names = "" if named[0] else "; saved= is the names in each group of the checkpoint, which has none"
    raise ValueError(
        "the loaded state has other groups than this optimizer, and moments would go to whatever stands in their place:\n"
        f"{_grouping('in the checkpoint', saved)}\n{_grouping('in the optimizer', live)}\n"
        f"weightdecay.migrate(optimizer, state_dict, {', '.join(given)}) moves the state by name{names}."
    )


def _grouping(where: str, groups: Sequence[Mapping[str, Any]], most: int = 6) -> str:
    """Return in lines how many parameters each group has, and which, as far as they have names."""
    lines = [f"  {where}: {len(groups)} group{'s' * (len(groups) != 1)}"]
    for index, group in enumerate(groups[:most]):
        count, names = len(group["params"]), group.get("param_names")
        called = f" ({some(names)})" if names else ""
        lines.append(f"    {index}: {count} parameter{'s' * (count != 1)}{called}")
    return "\n".join(lines + [f"    and {len(groups) - most} more"] * (len(groups) > most))


def chosen(optimizer: torch.optim.Optimizer, keys: Sequence[str]) -> list[str]:
    """Return which of these numbers of the groups were passed: of the others, any group has what it has without."""
    usual = inspect.signature(type(optimizer)).parameters
    return [
        key for key in keys if key not in usual or any(usual[key].default != group[key] for group in optimizer.param_groups)
    ]


def warn_of_news(news: Sequence[str]) -> None:
    """Say in one warning which λ and lr loading has changed, if any."""
    if news:
        warn(
            "loading has replaced what this optimizer was made with by what the checkpoint was trained with:\n"
            f"{_lines(news)}\nTo keep the former, load with weightdecay.migrate(optimizer, state_dict, "
            'weight_decay="live", lr="live"), or write it into the groups afterwards.'
        )


def overridden(saved: Mapping[str, Any], live: Mapping[str, Any], keys: Sequence[str], where: str) -> list[str]:
    """Return in words which λ and lr a loaded group has that its optimizer was not made with."""
    found = []
    for key in keys:
        theirs, ours = _starts(saved, key), _starts(live, key)
        if any(math.isclose(a, b, rel_tol=1e-6) for a in theirs for b in ours):
            continue
        if key == "lr" and not _noted(saved, key) and theirs[0] < ours[0]:
            continue  # a training loop that writes lr by itself has come this far
        if key == "lr" and saved.get("max_lr") is not None and not _noted(live, key):
            continue  # OneCycleLR and CyclicLR replace the lr that an optimizer is made with, and are made later here
        found.append(f"{key} of {where}: {ours[0]:g} → {theirs[0]:g}")
    return found


def _rescheduled(group: Mapping[str, Any], live: Mapping[str, Any], where: str) -> list[str]:
    """Return in words which schedules of λ a loaded group has that its optimizer was not made with."""
    found = []
    for key in SCHEDULES.values():
        before, after = ({k: v for k, v in (each.get(key) or {}).items() if k != "step"} for each in (live, group))
        if before and before != after:
            found.append(f"{key} of {where}: {before} → {after or None}")
    return found


def _starts(group: Mapping[str, Any], key: str) -> list[float]:
    """Return what the λ or lr of a group may have been when its optimizer was made."""
    return [float(value) for value in _noted(group, key) or [group[key]]]


def _noted(group: Mapping[str, Any], key: str) -> list[Any]:
    """Return what schedulers, and rules that need the peak, have noted of it."""
    keys = [f"initial_{key}", *(["lr_at_start", "max_lr"] if key == "lr" else [])]
    return [group[each] for each in keys if group.get(each) is not None]


def _lines(texts: Sequence[str], most: int = 10) -> str:
    return "\n".join([f"  {text}" for text in texts[:most]] + [f"  and {len(texts) - most} more"] * (len(texts) > most))


class _Sealed:
    """What a checkpoint holds for one parameter, kept from torch's casts."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content


@dataclass(frozen=True)
class _Rules:
    """What the state of a group's parameters has to be, for its rules to go on from."""

    equation: Equation
    known: Mapping[str, Kept]
    """All that these rules ever keep, by its key."""
    needed: tuple[Kept, ...]
    """What they keep at the group's hyper-parameters."""

    @classmethod
    def of(cls, equation: Equation, needed: tuple[Kept, ...]) -> "_Rules":
        """Return what these rules keep."""
        return cls(equation, {each.key: each for rule in equation.rules for each in rule.keeps}, needed)

    def restored(self, saved: Any, param: Tensor, name: str, *, on_device: bool) -> dict[str, Any]:
        """Return a copy of what a checkpoint holds for a parameter, as the optimizer keeps it, or refuse it.

        Step and numbers become tensors, and moments keep their own dtype, not the parameter's. `on_device` says where steps
        are counted.
        """
        if not isinstance(saved, Mapping):
            raise ValueError(f"the loaded state of {name} is {saved_state.kind(saved)}, not a dict")
        self._refuse_foreign(saved, param, name)
        found = {}
        for key, value in saved.items():
            what, each = f"the loaded {key} of {name}", self.known.get(key)
            shape = None if each is None else each.shape_of(param.shape)
            if key == "step":
                count, device = saved_state.step_count(value, what), param.device if on_device else "cpu"
                found[key] = torch.tensor(count, dtype=torch.float32, device=device)
            elif key == "compensation":
                if value is not None and saved_state.tensor(value, what, param.shape).dtype == torch.int16:
                    found[key] = saved_state.copied(value, what, param)  # another dtype: an optimizer took it for a moment
            elif each is None or shape is None:
                is_moment = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
                found[key] = saved_state.copied(value, what, param, moment_dtype(param) if is_moment else None)
            elif value is None:
                continue  # as in torch's SGD without momentum
            elif each.per_element:
                found[key] = saved_state.moment(value, what, shape, param, moment_dtype(param))
            else:
                found[key] = torch.tensor(saved_state.number(value, what), dtype=torch.float64, device=param.device)
        return found

    def _refuse_foreign(self, saved: Mapping[str, Any], param: Tensor, name: str) -> None:
        """Refuse the state of another optimizer."""
        there = {key for key, value in saved.items() if (value is not None if key in self.known else isinstance(value, Tensor))}
        held = there - {"step", "compensation"}
        missing = [each.key for each in self.needed if each.key not in held and each.shape_of(param.shape) is not None]
        if (missing and (held or "step" in saved)) or (held and not held & set(self.known)):
            raise ValueError(
                f"the loaded state of {name} has {', '.join(sorted(map(str, held))) or 'a step count'} but no "
                f"{', '.join(missing or self.known) or 'need of it'}: it comes from another optimizer than {self.equation}"
            )
