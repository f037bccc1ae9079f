"""What an optimizer's checkpoint holds, and how it is loaded: whole or not at all, with moments in their own precision."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from weightdecay.names import differences, without_wrappers
from weightdecay.readers import eager
from weightdecay.rule import KINDS, Kept
from weightdecay.step import Equation

_OURS = ("foreach", "fused", "differentiable")
"""The flags that say how a step is computed, not which: a checkpoint's are not taken over."""


class Checkpointed(torch.optim.Optimizer):
    """Loads and saves what an optimizer needs to go on, its own or that of torch's optimizer of the same name."""

    reader: str

    @abstractmethod
    def equation(self, group: Mapping[str, Any]) -> Equation:
        """Return the rules that a parameter group is trained with."""

    @abstractmethod
    def _complete(self, group: dict[str, Any], where: str) -> None:
        """Fill in what the group's rules take and refuse what cannot be meant."""

    @abstractmethod
    def _kept(self, group: Mapping[str, Any]) -> tuple[Kept, ...]:
        """Return what the group's rules keep in the state at its hyper-parameters."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer or of torch's optimizer of the same name; it is refused whole or loaded whole.

        Moments keep their precision (torch would cast them to the parameter's). The state is copied, never shared.

        Where both have names (`param_names`), these have to agree, but for the prefixes of wrappers: torch pairs parameters
        by their places. `weightdecay.migrate` moves a state into other groups.

        Raises:
            ValueError: the groups or the names do not match, a value cannot be meant, or the moments are another optimizer's.
        """
        handle = self.register_load_state_dict_pre_hook(lambda _, final: self._sealed(final))  # after all hooks of the user's
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def _sealed(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Refuse a state that would not fit, and wrap what belongs to a parameter so that torch cannot cast it."""
        groups = state_dict["param_groups"]
        _refuse_other_names(groups, self.param_groups)
        if [len(g["params"]) for g in groups] == [len(g["params"]) for g in self.param_groups]:  # else torch says what is wrong
            for index, (saved, live) in enumerate(zip(groups, self.param_groups, strict=True)):
                group = self._merged(saved, live)
                for kind in KINDS:
                    if kind in live and live[kind] != group[kind]:
                        raise ValueError(
                            f"param_groups[{index}] of the loaded state was trained with {kind}={group[kind]!r}, and this "
                            f"optimizer has {live[kind]!r}: make it with the same rules"
                        )
                self._complete(group, f"param_groups[{index}] of the loaded state")
                for place, (key, param) in enumerate(zip(saved["params"], live["params"], strict=True)):
                    self._check_state(group, state_dict["state"].get(key, {}), param, name_of(live, index, place))
        return {**state_dict, "state": {key: _Sealed(entry) for key, entry in state_dict["state"].items()}}

    def _check_state(self, group: Mapping[str, Any], state: Mapping[str, Any], param: Tensor, name: str) -> None:
        """Refuse a loaded state that this group's rules could not go on from."""
        equation, kept = self.equation(group), self._kept(group)
        known = {each.key: each for rule in equation.rules for each in rule.keeps}
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and key != "step"}
        held = set(tensors) - {"compensation"}
        missing = [each.key for each in kept if each.key not in held and each.shape_of(param.shape) is not None]
        if (missing and (held or "step" in state)) or (held and not held & set(known)):
            raise ValueError(
                f"the loaded state of {name} has {', '.join(sorted(held)) or 'a step count'} but no "
                f"{', '.join(missing or known) or 'need of it'}: "
                f"it comes from another optimizer than {equation}"
            )
        for key in {*known, "compensation"} & set(tensors):
            shape = param.shape if key == "compensation" else known[key].shape_of(param.shape)
            if shape is not None and tensors[key].shape != shape:
                raise ValueError(f"the loaded {key} of {name} has shape {tuple(tensors[key].shape)}, not {tuple(shape)}")

    def _merged(self, saved: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
        """Return a loaded group; what it lacks (being older, or torch's) and which implementation runs come from ours."""
        names = {"param_names": live["param_names"]} if "param_names" in live else {}  # ours, with the prefixes of today
        return {**live, **saved, "params": live["params"], **names, **{flag: live[flag] for flag in _OURS}}

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and deepcopy keep: torch's three entries and the reader."""
        return {**super().__getstate__(), "reader": self.reader}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickled or a loaded state; keys that an older version did not have get their defaults."""
        live = self.__dict__.get("param_groups")
        if live is not None:
            state["param_groups"] = [self._merged(s, g) for s, g in zip(state["param_groups"], live, strict=True)]
        super().__setstate__(state)
        for index, group in enumerate(self.param_groups):
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            self._complete(group, f"param_groups[{index}]")
            for param in group["params"]:
                entry = self.state.get(param)
                if isinstance(entry, _Sealed):
                    numbers = {each.key for each in self._kept(group) if not each.per_element}
                    self.state[param] = _restored(entry.content, param, numbers, on_device=group["capturable"])
        for other, entry in list(self.state.items()):
            if isinstance(entry, _Sealed):  # not a parameter's: torch keeps it as it is
                self.state[other] = entry.content


def _refuse_other_names(saved: list[dict[str, Any]], live: list[dict[str, Any]]) -> None:
    """Refuse groups whose names are not those of the live ones, place by place, where all have names."""
    if not all(len(group.get("param_names", ())) == len(group["params"]) for group in (*saved, *live)):
        return
    theirs, ours = (without_wrappers([name for group in groups for name in group["param_names"]]) for groups in (saved, live))
    sizes = [[len(group["params"]) for group in groups] for groups in (saved, live)]
    if ours == theirs and sizes[0] == sizes[1]:
        return
    what = differences(ours, theirs) or f"  groups of {sizes[1]} parameters in the optimizer, of {sizes[0]} in the checkpoint"
    raise ValueError(
        "the loaded state has other parameters or another order, and moments would go to whatever stands in their place:\n"
        f"{what}\nIf the parameters were grouped anew, weightdecay.migrate(optimizer, state_dict, weight_decay=…, lr=…) moves "
        "the state by name."
    )


class _Sealed:
    """What a checkpoint holds for one parameter, kept from torch's casts."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content


def _restored(content: Mapping[str, Any], param: Tensor, numbers: set[str], *, on_device: bool) -> dict[str, Any]:
    """Return a copy of a loaded state as the optimizer keeps it: step and numbers as tensors, moments in their own dtype."""
    state = dict(content)
    for key, value in content.items():
        if key == "step":
            device = param.device if on_device else "cpu"
            step = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
            state[key] = step.to(device, torch.float32, copy=True)
        elif key in numbers:
            state[key] = torch.as_tensor(value, dtype=torch.float64, device=param.device).clone()
        elif key == "compensation" and value.dtype != torch.int16:
            del state[key]  # it went through an optimizer that took it for a moment, and cast it
        elif isinstance(value, Tensor):
            floating = value.is_floating_point() or value.is_complex()
            state[key] = value.detach().to(param.device, moment_dtype(param) if floating else value.dtype, copy=True)
    return state


def moment_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype in which a parameter's moments are kept: that of the computation."""
    return param.dtype if param.is_complex() else eager.compute_dtype(param.dtype)


def name_of(group: Mapping[str, Any], index: int, place: int) -> str:
    """Return what to call a parameter in a message: its name where the group knows it."""
    names = group.get("param_names")
    return f"{names[place]!r}" if names else f"param_groups[{index}]['params'][{place}]"
