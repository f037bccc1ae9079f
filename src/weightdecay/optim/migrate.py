"""An optimizer's state moved by the names of its parameters: into other groups, another order, another wrapper, another λ."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor, nn

from weightdecay import validation
from weightdecay.display.table import aligned, some
from weightdecay.groups.names import differences, without_wrappers
from weightdecay.groups.params import params_of
from weightdecay.optim import saved_state
from weightdecay.optim.attach import DECAY, LAMBDA, TAKEN_OVER
from weightdecay.optim.checkpoint import Chosen
from weightdecay.optim.hyperparameters import SCHEDULES
from weightdecay.update_rules.registry import REGISTRY

__all__ = ["Migration", "Moved", "migrate"]

FAMILIES = {
    "weight_decay": (
        *("weight_decay", "penalty_weight", LAMBDA),
        *("initial_weight_decay", "initial_penalty_weight", f"initial_{LAMBDA}", *SCHEDULES.values()),
    ),
    "lr": ("lr", "initial_lr", "max_lr", "min_lr", "base_lr", "swa_lr", "lr_max", "lr_at_start", "largest_lr"),
}
"""What follows the policy of a hyper-parameter: what schedulers, schedules and rules keep of it, too."""
POLICIES = ("live", "checkpoint")


@dataclass(frozen=True)
class Moved:
    """What became of one parameter."""

    name: str
    group: int
    group_in_checkpoint: int | None
    weight_decay: float | None
    weight_decay_in_checkpoint: float | None
    lr: float | None
    lr_in_checkpoint: float | None
    has_state: bool


@dataclass(frozen=True)
class Migration:
    """What `migrate` did; prints as a table of which groups went where.

    `missing` are the optimizer's parameters that the checkpoint does not have, and that start afresh; `unexpected` are the
    checkpoint's that the optimizer does not have, whose state was dropped; `reshaped` are those that both have in different
    shapes, and that start afresh, too.
    """

    moved: tuple[Moved, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...] = ()

    def __str__(self) -> str:
        header = ("from group", "to group", "tensors", "weight_decay", "lr")
        ways = Counter(
            (
                "-" if each.group_in_checkpoint is None else str(each.group_in_checkpoint),
                str(each.group),
                _change(each.weight_decay_in_checkpoint, each.weight_decay),
                _change(each.lr_in_checkpoint, each.lr),
            )
            for each in self.moved
        )
        table = [header, *((old, new, str(count), decay, lr) for (old, new, decay, lr), count in ways.items())]
        lines = aligned(table)
        came = sum(each.group_in_checkpoint is not None for each in self.moved)
        lines += ["", f"{came} of {len(self.moved)} parameters were found in the checkpoint by name."]
        lines += [f"new, without a state: {some(self.missing, 10)}"] * bool(self.missing)
        lines += [f"another shape than in the checkpoint, so without a state: {some(self.reshaped, 10)}"] * bool(self.reshaped)
        lines += [f"left behind: {some(self.unexpected, 10)}"] * bool(self.unexpected)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON: a row for each parameter in moved, and the names in missing, unexpected and reshaped."""
        return {
            "moved": [asdict(each) for each in self.moved],
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "reshaped": list(self.reshaped),
        }


def migrate(
    optimizer: torch.optim.Optimizer,
    state_dict: Mapping[str, Any],
    *,
    weight_decay: str,
    lr: str,
    model: nn.Module | Iterable[tuple[str, Tensor]] | None = None,
    saved: Iterable[Any] | None = None,
    strict: bool = True,
) -> Migration:
    """Load a checkpoint whose parameters are grouped, ordered or wrapped otherwise, by their names.

    `optimizer.load_state_dict` of torch pairs parameters by their places: after a regrouping, moments go to other parameters
    without a word, and the checkpoint's λ replaces the new one. Here each parameter gets the state of its name, and which
    hyper-parameters hold is said by the caller. It works for any torch optimizer. Everything is checked before anything is
    loaded.

    Args:
        optimizer: as it shall go on, with its new groups.
        state_dict: what `optimizer.state_dict()` returned, or torch's get_optimizer_state_dict. Read a file with
            torch.load(path, weights_only=True).
        weight_decay: "live" keeps λ as the optimizer's groups have it now; "checkpoint" gives each group the λ that its
            parameters had, which has to be one, with what schedules keep of it.
        lr: the same for the learning rate, with what schedulers keep of it (initial_lr, …). A run that goes on under a
            scheduler takes "checkpoint". All other hyper-parameters stay live.
        model: the module, or (name, parameter) pairs, that names the optimizer's parameters, if its groups have no
            param_names, or had another name for a tied tensor.
        saved: the groups that the checkpoint's optimizer was made with, if they had names and the checkpoint has none:
            `param_groups(old_model, λ)`, or a list of names for each group.
        strict: whether to refuse if the two do not have the same parameters, or one of another shape (an embedding of more
            tokens, a head of more classes). If not, what the checkpoint lacks or has in another shape starts afresh (its own
            state, if it has any, is dropped), and what the optimizer lacks is left behind; all three are reported.

    Returns:
        What was moved where.

    Raises:
        ValueError: names are missing or stand for several parameters; the parameters differ (with a diff of their names); a
            moment has another shape than its parameter; a step count or a moment cannot be read; a group's parameters had
            different λ or learning rates and "checkpoint" was asked for; the optimizer refuses the state. Nothing has
            changed then.
        TypeError: the arguments are not of these kinds.

    >>> import weightdecay as wd
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    >>> old = torch.optim.AdamW(model.named_parameters(), lr=1e-3, weight_decay=0.1)  # everything decays
    >>> model(torch.ones(3, 2)).sum().backward()
    >>> old.step()
    >>> new = wd.AdamW(wd.param_groups(model, 0.05), lr=1e-2)
    >>> print(migrate(new, old.state_dict(), weight_decay="live", lr="checkpoint"))
    from group  to group  tensors  weight_decay  lr
    0           0         1        0.1 → 0.05    0.001
    0           1         3        0.1 → 0       0.001
    <BLANKLINE>
    4 of 4 parameters were found in the checkpoint by name.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer; pass the one that it wraps")
    policies = {"weight_decay": weight_decay, "lr": lr}
    for name, policy in policies.items():
        validation.choice(name, policy, POLICIES)
    live = _live_slots(optimizer, model)
    old = _saved_slots(state_dict, saved)
    pairs = _paired(live, old)
    missing = [slot.name for slot, match in zip(live, pairs, strict=True) if match is None]
    taken = {id(match) for match in pairs}
    unexpected = [slot.name for slot in old if id(slot) not in taken]
    if strict and (missing or unexpected):
        raise ValueError(
            "the optimizer and the checkpoint do not have the same parameters:\n"
            f"{differences([slot.name for slot in live], [slot.name for slot in old])}\n"
            "With strict=False the former start afresh, and the state of the latter is left behind."
        )
    reshaped = _of_another_shape(optimizer, live, pairs, strict)
    state = {
        place: _readable(optimizer, match.state, slot)
        for place, (slot, match) in enumerate(zip(live, pairs, strict=True))
        if match is not None and match.state and place not in reshaped
    }
    groups = _new_groups(optimizer, live, pairs, policies)
    _load(optimizer, Chosen({**state_dict, "state": state, "param_groups": groups}))
    rows = [
        _moved(slot, match, optimizer.param_groups[slot.group], place in state)
        for place, (slot, match) in enumerate(zip(live, pairs, strict=True))
    ]
    return Migration(tuple(rows), tuple(missing), tuple(unexpected), tuple(live[place].name for place in reshaped))


def _load(optimizer: torch.optim.Optimizer, state_dict: Chosen) -> None:
    """Load a state, or leave the optimizer as it was: torch's classes look at some of it when they have it already."""
    before: dict[str, Any] = {key: optimizer.__dict__[key] for key in ("state", "param_groups") if key in optimizer.__dict__}
    own = [dict(group) for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state_dict)
    except BaseException:
        optimizer.__dict__.update(before)  # torch puts new ones there, and changes nothing in these
        raise
    for group, old in zip(optimizer.param_groups, own, strict=True):
        _keep_tensors(group, old)


@dataclass(eq=False)
class _Slot:
    """The place of one parameter in an optimizer or a checkpoint."""

    names: list[str]
    group: int
    settings: Mapping[str, Any]
    param: Tensor | None = None
    state: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.names[0]


def _live_slots(optimizer: torch.optim.Optimizer, model: nn.Module | Iterable[tuple[str, Tensor]] | None) -> list[_Slot]:
    slots = [
        _Slot([group["param_names"][place]] if group.get("param_names") else [], index, group, param)
        for index, group in enumerate(optimizer.param_groups)
        for place, param in enumerate(group["params"])
    ]
    if model is not None:
        known = {id(param.tensor): param.names for param in params_of(model)}
        for slot in slots:
            if id(slot.param) not in known:
                raise ValueError(f"a parameter of param_groups[{slot.group}], of shape {_shape(slot)}, is not in the model")
            slot.names = list(known[id(slot.param)])
    elif not all(slot.names for slot in slots):
        raise ValueError(
            "the optimizer's groups have no names: pass model=…, or make it with param_groups(model, λ) or from "
            "model.named_parameters()"
        )
    return _spelled(slots, "the optimizer", "pass model=…, which names them as parts of the whole")


def _saved_slots(state_dict: Mapping[str, Any], saved: Iterable[Any] | None) -> list[_Slot]:
    groups, state = saved_state.parts(state_dict)
    places = [f"param_groups[{index}] of the checkpoint" for index in range(len(groups))]
    names = [
        [[name] for name in saved_state.names_of(group, where)] or [[] for _ in group["params"]]
        for group, where in zip(groups, places, strict=True)
    ]
    if saved is not None:
        names = [[[name] for name in _names_of(group)] for group in saved]
        sizes = [len(group["params"]) for group in groups]
        if [len(each) for each in names] != sizes:
            raise ValueError(
                f"saved has groups of {[len(each) for each in names]} names, and the checkpoint of {sizes} parameters"
            )
    slots = [
        _Slot(names[index][place], index, group, state=state.get(key, {}))
        for index, group in enumerate(groups)
        for place, key in enumerate(group["params"])
    ]
    if not all(slot.names for slot in slots):
        raise ValueError(
            "the checkpoint has no names: pass saved=…, the groups that its optimizer was made with, as in "
            "saved=param_groups(model, λ) or saved=[[name, name, …], …]"
        )
    return _spelled(slots, "the checkpoint", "pass saved=[[name, …], …], the names in each of its groups as parts of the whole")


def _names_of(group: Any) -> list[str]:
    """Return the names of a group that the user gives."""
    if isinstance(group, Mapping):
        entries = group.get("param_names") or [each[0] if isinstance(each, tuple) else each for each in group["params"]]
    else:
        entries = group
    if isinstance(entries, str) or not all(isinstance(name, str) for name in entries):
        raise TypeError("saved must be groups with names, such as param_groups(model, λ), or lists of names")
    return list(entries)


def _spelled(slots: list[_Slot], where: str, way_out: str) -> list[_Slot]:
    """Put the spelling without wrappers before every name, and refuse a name of two parameters."""
    given = [name for slot in slots for name in slot.names]
    bare = dict(zip(given, without_wrappers(given), strict=True))
    for slot in slots:
        slot.names = list(dict.fromkeys([*(bare[name] for name in slot.names), *slot.names]))
    counts = Counter(slot.name for slot in slots)
    if several := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"{where} has several parameters of one name: {some(several)}; {way_out}")
    return slots


def _paired(live: Sequence[_Slot], saved: Sequence[_Slot]) -> list[_Slot | None]:
    """Return what the checkpoint has for each parameter: under its name, or else under another name or spelling of it."""
    known: dict[str, _Slot] = {slot.name: slot for slot in saved}
    for slot in saved:
        for name in slot.names:
            known.setdefault(name, slot)
    found = [next((known[name] for name in slot.names if name in known), None) for slot in live]
    counts = Counter(id(match) for match in found if match is not None)
    for slot, match in zip(live, found, strict=True):
        if match is not None and counts[id(match)] > 1:
            others = [each.name for each, other in zip(live, found, strict=True) if other is match]
            raise ValueError(f"{match.name!r} of the checkpoint could be any of {some(others)}; rename {slot.name!r}")
    return found


def _of_another_shape(
    optimizer: torch.optim.Optimizer, live: Sequence[_Slot], pairs: Sequence[_Slot | None], strict: bool
) -> list[int]:
    """Return the places of parameters that had another shape in the checkpoint, or refuse these."""
    found = []
    for place, (slot, match) in enumerate(zip(live, pairs, strict=True)):
        shape = torch.Size(_shape(slot))
        wrong = saved_state.of_another_shape(optimizer, match.state, shape) if match is not None else {}
        if wrong and strict:
            key, value = next(iter(wrong.items()))
            raise ValueError(
                f"{slot.name!r} has the shape {tuple(value.shape)} in the checkpoint and {tuple(shape)} in the optimizer "
                f"({key}). With strict=False the moments of such a parameter start afresh, and all others move."
            )
        found += [place] * bool(wrong)
    return found


def _readable(optimizer: torch.optim.Optimizer, state: Any, slot: _Slot) -> Any:
    """Return the state of one parameter in a checkpoint, or refuse what no optimizer could go on from."""
    if not isinstance(state, Mapping):
        raise ValueError(f"the state of {slot.name!r} in the checkpoint is {saved_state.kind(state)}, not a dict")
    moments, numbers = (saved_state.moments(), saved_state.numbers()) if saved_state.is_known(optimizer) else (set(), set())
    for key, value in state.items():
        what = f"the loaded {key} of {slot.name!r}"
        if key == "step":
            saved_state.step_count(value, what)
        elif key in numbers:
            saved_state.number(value, what)
        elif key in moments and value is not None:
            saved_state.refuse_without_values(saved_state.tensor(value, what), what, cast(Tensor, slot.param))
        elif isinstance(value, Tensor) and slot.param is not None:
            saved_state.refuse_without_values(value, what, slot.param)
    return state


def _new_groups(
    optimizer: torch.optim.Optimizer, live: Sequence[_Slot], pairs: Sequence[_Slot | None], policies: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the live groups with what the policies take from the checkpoint, and places for parameters."""
    groups: list[dict[str, Any]] = []
    every: list[list[int]] = [[] for _ in optimizer.param_groups]
    for place, slot in enumerate(live):
        every[slot.group].append(place)
    for index, (group, places) in enumerate(zip(optimizer.param_groups, every, strict=True)):
        new = {**group, "params": places}
        for family, policy in policies.items():
            if policy == "checkpoint":
                voters = [(live[place].name, match) for place in places if (match := pairs[place]) is not None]
                new.update(_agreed(family, index, [(name, _spelled_as(group, match.settings)) for name, match in voters]))
        groups.append(new)
    return groups


def _spelled_as(group: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a group of the checkpoint with λ under the key that it has in the new one: an attached decay has its own."""
    if (LAMBDA in group) == (LAMBDA in settings):
        return settings
    there, here = (LAMBDA, "weight_decay") if LAMBDA in settings else ("weight_decay", LAMBDA)
    moved = {f"{prefix}{here}": f"{prefix}{there}" for prefix in ("", "initial_")}
    found = {key: value for key, value in settings.items() if key not in {*moved, *moved.values()}}
    found |= {key: settings[old] for key, old in moved.items() if old in settings}
    if here == "weight_decay" and not _has_lambda(settings):  # what stands there is 1 or 0, for on or off
        found[here] = settings.get(TAKEN_OVER, 0.0)
    return found


def _has_lambda(settings: Mapping[str, Any]) -> bool:
    return "lam" in REGISTRY.find("decay", settings.get(DECAY, "decoupled")).numbers


def _agreed(family: str, index: int, voters: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Any]]:
    """Yield what the parameters of one new group had in the checkpoint, if they all had the same."""
    for key in FAMILIES[family]:
        having = [(name, settings[key]) for name, settings in voters if key in settings]
        for name, value in having:
            _refuse_strange(key, value, name)
            first, agreed = having[0]
            if _plain(value) != _plain(agreed):
                raise ValueError(
                    f"{family}='checkpoint' cannot be had for param_groups[{index}]: in the checkpoint {key} was "
                    f"{_text(agreed)} for {first!r} and {_text(value)} for {name!r}, and a group holds one. "
                    f"Pass {family}='live', or group them apart."
                )
        if having and len(having) == len(voters):
            yield key, having[0][1]


def _refuse_strange(key: str, value: Any, name: str) -> None:
    """Refuse what stands in a checkpoint where a number, a schedule or None belongs."""
    if value is not None and not isinstance(value, Mapping):
        saved_state.number(value, f"the loaded {key} of {name!r}")


def _keep_tensors(group: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Fill the tensors that a group held (of λ or lr) instead of putting others in their place: graphs and users hold them."""
    for key, value in own.items():
        if isinstance(value, Tensor) and key in group:
            with torch.no_grad():
                value.fill_(_plain(group[key]))
            group[key] = value


def _moved(slot: _Slot, match: _Slot | None, group: Mapping[str, Any], has_state: bool) -> Moved:
    then: Mapping[str, Any] = match.settings if match else {}
    return Moved(
        slot.name,
        slot.group,
        match.group if match else None,
        weight_decay=_plain(group.get(LAMBDA, group.get("weight_decay"))),
        weight_decay_in_checkpoint=_plain(then.get(LAMBDA, then.get("weight_decay"))),
        lr=_plain(group.get("lr")),
        lr_in_checkpoint=_plain(then.get("lr")),
        has_state=has_state,
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _text(value: Any) -> str:
    return str(value) if isinstance(value, Mapping) else f"{_plain(value):g}"


def _change(old: float | None, new: float | None) -> str:
    texts = [f"{value:g}" if isinstance(value, Real) else "-" if value is None else str(value) for value in (old, new)]
    return texts[0] if texts[0] == texts[1] else " → ".join(texts)


def _shape(slot: _Slot) -> tuple[int, ...]:
    return tuple(slot.param.shape) if slot.param is not None else ()
