"""Put a decay on somebody else's optimizer, through the hooks of its step, and take it off again."""

import inspect
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from weightdecay.display.table import aligned
from weightdecay.display.user_warning import warn
from weightdecay.optim import hyperparameters, saved_state
from weightdecay.optim.attach.host_groups import DECAY, LAMBDA, TAKEN_OVER, Takeover
from weightdecay.optim.attach.step import Step, Watcher, all_params, forget
from weightdecay.optim.checkpoint import Chosen, chosen, overridden, warn_of_news
from weightdecay.optim.optimizer import Optimizer
from weightdecay.optim.saved_state import name_of
from weightdecay.optim.unwrap import calls_hooks, innermost
from weightdecay.update_rules.equation import Equation, RuleLike
from weightdecay.update_rules.registry import REGISTRY
from weightdecay.update_rules.rule import Rule
from weightdecay.update_rules.traits import is_uniform
from weightdecay.validation import choice, number

ROUNDINGS = ("auto", "nearest", "stochastic", "deferred")


def attach(
    optimizer: torch.optim.Optimizer,
    decay: RuleLike,
    weight_decay: float | None = None,
    *,
    rounding: str = "auto",
    seed: int = 0,
    **numbers: float,
) -> "Attachment":
    """Give any torch optimizer any decay, through hooks on its step, and set its own `weight_decay` to 0.

    λ is then `group["attached_weight_decay"]` of each group, where a schedule may write it before any step; a group added
    later may bring its own. The step is read, not known: u is what it did, divided by `group["lr"]`. A parameter without a
    gradient stays, and a step that GradScaler skips does not decay. A new process attaches again, before it loads the
    optimizer's state or after; deep copies and pickles of the optimizer keep the decay.

    Args:
        optimizer: torch.optim's or anyone's, that calls the hooks of `torch.optim.Optimizer` and has `lr` in its groups.
        decay: a decay by name or as a function; `weightdecay.rules().of("decay")` lists them.
        weight_decay: λ, in the unit that the decay's page states: per unit of lr for most. A group whose own weight_decay
            is 0 keeps 0, as those of biases do, unless that of every group is 0: then all get λ. None takes over each
            group's own. For a decay without λ, what matters is only whether it is 0.
        rounding: of bfloat16 and float16 weights. "deferred" keeps what a uniform decay takes as one number per tensor until
            enough of it has come together; "stochastic" rounds every step at random, "nearest" loses the decay. "auto" is
            "deferred" where the decay multiplies all weights by one number, and "stochastic" elsewhere.
        seed: of the random bits with which those are rounded.
        numbers: the decay's hyper-parameters (p, delta, …), and `lr_max` where it asks for the peak learning rate: needed
            under a scheduler that goes above the rate it starts with (CyclicLR).

    Returns:
        The `Attachment`. It prints what it took over, and its `detach` gives it back. While a step is in flight (one that
        raises is until the next), it holds a copy of each weight that moves, but none with a decay that multiplies all
        weights by one number on an optimizer of torch.optim that makes u of the gradient alone.

    Raises:
        TypeError: no optimizer, or one that calls no hooks.
        ValueError: a value that cannot be meant, an optimizer of this package, one with a decay attached already, or one
            whose step is no step of its weights: LBFGS, or one with `train()` and `eval()`, which has others in its state.
            Nothing has changed then.
        RuntimeError: from the optimizer's `step`, for a sparse gradient, before a weight has moved.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    >>> optimizer = torch.optim.SGD([w], lr=0.5)
    >>> attach(optimizer, "cautious", weight_decay=0.5)
    cautious decay attached to SGD; took over the weight_decay of 1 group: 0
    group  tensors  weight_decay  was
    0      1        0.5           0
    >>> w.grad = torch.tensor([1.0, 1.0])
    >>> optimizer.step()
    >>> w.tolist()
    [0.25, -1.5]
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, not an optimizer: pass what has the step() method")
    rule = REGISTRY.find("decay", decay)
    _refuse(optimizer, rule)
    return Attachment(optimizer, rule, weight_decay, rounding=rounding, seed=seed, numbers=numbers)


def _refuse(optimizer: torch.optim.Optimizer, decay: Rule) -> None:
    """Refuse an optimizer to which no decay can be attached."""
    name = type(optimizer).__name__
    if isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer is this package's {name}, which takes a decay itself: Optimizer(…, decay={decay.name!r})")
    if not calls_hooks(optimizer):
        raise TypeError(f"the step of {name} calls no hooks: attach to the optimizer that it wraps, before it is wrapped")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS moves along a line that it searches: its step is no −lr·u; add a penalty to the loss instead")
    if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
        raise ValueError(
            f"{name} has train() and eval(): its weights are a mixture of others in its state, which a decay of what can be "
            "seen would not reach; use its own weight_decay"
        )
    if decay.shared:
        asked = " and ".join(decay.shared)
        raise ValueError(
            f"the {decay.name} decay asks for {asked}, a number of the direction's own that nobody sees from outside: use "
            f"weightdecay.Optimizer(…, decay={decay.name!r})"
        )
    other = Attachment.of(optimizer)
    if other is not None:
        raise ValueError(f"the {other.decay.name} decay is attached to this {name} already: detach() it first")


class _Defaults(dict[str, Any]):
    """An optimizer's `defaults`, which pickle and deepcopy take along where they drop its hooks, and so the attachment."""

    attachment: "Attachment"


class Attachment:
    """A decay on somebody else's optimizer; prints what it took over. Made by `attach`."""

    _loaded: list[dict[str, Any]]
    """What is ours in a state that is being loaded, a parameter each."""
    _news: list[str]
    """In words, which λ and lr it changes."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        decay: Rule,
        weight_decay: float | None,
        *,
        rounding: str,
        seed: int,
        numbers: Mapping[str, float],
    ) -> None:
        lam = None if weight_decay is None else number("weight_decay", weight_decay, "[0, inf)")
        choice("rounding", rounding, ROUNDINGS)
        if rounding == "deferred" and not is_uniform(decay):
            raise ValueError(
                f"rounding='deferred' keeps one number per tensor, and the {decay.name} decay does not multiply all weights by "
                "one: use 'stochastic'"
            )
        if weight_decay is not None and "lam" not in decay.numbers:
            raise ValueError(f"weight_decay={weight_decay} does nothing: the {decay.name} decay has no λ; leave it out")
        own, peak = hyperparameters.defaults([decay]), ["lr_max"] if "eta_max" in decay.numbers else []
        hyperparameters.refuse_unknown(numbers, {*own, *peak}, f"the {decay.name} decay")
        given = {**own, **numbers, "rounding": "auto", "seed": seed}
        hyperparameters.check(given, Equation.given_u(decay.function), "attach(…)")
        numbers = {name: given[name] for name in (*own, *peak) if name in given}
        groups = optimizer.param_groups
        takeover = Takeover(decay, lam, numbers)
        takeover.begin(groups)
        changes = [takeover.changes(group, index) for index, group in enumerate(groups)]
        step = Step(takeover, rounding=rounding, seed=given["seed"])
        kept = [
            step.restored(optimizer.state.get(param, {}), param, name_of(group, index, place))
            for index, group in enumerate(groups)
            for place, param in enumerate(group["params"])
        ]
        for group, values in zip(groups, changes, strict=True):
            group.update(values)
        _put(optimizer, kept)
        self._hook_into(optimizer, step)

    @staticmethod
    def of(optimizer: torch.optim.Optimizer) -> "Attachment | None":
        """Return what is attached to an optimizer, which may be wrapped, a copy or come from a pickle, or None."""
        optimizer = innermost(optimizer)
        found = optimizer.defaults.attachment if isinstance(optimizer.defaults, _Defaults) else None
        return found if found is not None and found._optimizer() is optimizer else None  # copy.copy shares defaults, not hooks

    @property
    def decay(self) -> Rule:
        """Return the decay."""
        return self._step.decay

    @property
    def numbers(self) -> Mapping[str, float]:
        """Return the decay's hyper-parameters."""
        return self._takeover.numbers

    @property
    def rounding(self) -> str:
        """Return how weights are rounded."""
        return self._step.rounding

    @property
    def seed(self) -> int:
        """Return the seed of the random bits of rounding."""
        return self._step.seed

    @property
    def watchers(self) -> list[Watcher]:
        """Return the list of those who are told of every decay; pickle and deepcopy leave them behind."""
        return self._step.watchers

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        optimizer = self._optimizer()
        if optimizer is None:
            raise ReferenceError("the optimizer does not exist any more")
        return optimizer

    def detach(self) -> None:
        """Apply what is pending, remove the hooks and give each group its own weight_decay back."""
        optimizer = self.optimizer
        if Attachment.of(optimizer) is not self:
            return
        with torch.no_grad():
            self._step.undo_ahead()
        self._step.apply_all_pending(optimizer)
        for name, hook in _HOOKS.items():
            hooks = _hooks_of(optimizer, name)
            for place in [place for place, each in hooks.items() if each is hook]:
                del hooks[place]
        self._step.flight = []
        optimizer.defaults = dict(optimizer.defaults)
        if optimizer.__dict__.get("add_param_group") == self._add_param_group:
            optimizer.__dict__.pop("add_param_group")
            optimizer.__dict__.update(self._their_own)
        for group in optimizer.param_groups:
            self._takeover.give_back(group)
        forget(optimizer)

    def __str__(self) -> str:
        found = self.to_dict()
        if not found["groups"]:
            return f"{self.decay.name} decay, detached"
        was = [group["was"] for group in found["groups"] if group["was"] is not None]
        taken = f"; took over the weight_decay of {len(was)} group{'s' * (len(was) != 1)}: " if was else ""
        rows: list[tuple[str, ...]] = [("group", "tensors", "weight_decay", "was")]
        rows += [tuple("none" if x is None else f"{x:g}" for x in group.values()) for group in found["groups"]]
        title = f"{self.decay.name} decay attached to {found['optimizer']}{taken}{', '.join(f'{x:g}' for x in was)}"
        return "\n".join([title, *aligned(rows)])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Return what is attached to what as plain data, with λ of each group now and the weight_decay that it had."""
        optimizer = self._optimizer()
        attached = optimizer is not None and Attachment.of(optimizer) is self
        groups = optimizer.param_groups if optimizer is not None and attached else []
        return {
            "decay": self.decay.name,
            "numbers": dict(self.numbers),
            "optimizer": type(optimizer).__name__ if attached else None,
            "rounding": self.rounding,
            "groups": [
                {
                    "group": index,
                    "tensors": len(group["params"]),
                    "weight_decay": float(group[LAMBDA]) if LAMBDA in group else None,
                    "was": float(group[TAKEN_OVER]) if TAKEN_OVER in group else None,
                }
                for index, group in enumerate(groups)
            ],
        }

    def _add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as the optimizer does, and take over what has come; what is refused is not added."""
        optimizer = self.optimizer
        groups, before = optimizer.param_groups, len(optimizer.param_groups)
        self._their_own.get("add_param_group", partial(type(optimizer).add_param_group, optimizer))(param_group)
        if Attachment.of(optimizer) is not self:  # somebody has kept this method while the decay was detached
            return
        try:
            changes = [self._takeover.changes(group, at, is_added=True) for at, group in enumerate(groups[before:], before)]
        except Exception:
            del groups[before:]
            raise
        for group, values in zip(groups[before:], changes, strict=True):
            group.update(values)
        self._takeover.note_whether_everywhere(groups)

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._put_back("step_post", optimizer)
        *_, last = _hooks_of(optimizer, "step_pre").values()  # another may take gradients away
        return self._step.before(optimizer, args, kwargs, is_last=last is _before_step)

    def _after(self, optimizer: torch.optim.Optimizer) -> None:
        self._step.after(optimizer)
        # Before the next step our hook comes last, and sees what others leave of the gradients.
        _hooks_of(optimizer, "step_pre").move_to_end(self._put_back("step_pre", optimizer))

    def _put_back(self, name: str, optimizer: torch.optim.Optimizer) -> int:
        """Return where a hook of ours stands, which is put back if somebody has cleared all hooks of this kind."""
        hooks = _hooks_of(optimizer, name)
        place = next((place for place, hook in hooks.items() if hook is _HOOKS[name]), None)
        if place is not None:
            return place
        warn(
            f"somebody has cleared the {name.replace('_', ' ')}-hooks of this {type(optimizer).__name__}, and that of the "
            f"attached {self.decay.name} decay with them: it is back, but the last step may have been without decay. Call "
            "detach() on the attachment to take the decay off"
        )
        return _hook(optimizer, name)

    def _loading(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        """Copy what is ours out of a state that is about to be loaded, after looking whether all of it fits."""
        groups, state = saved_state.parts(state_dict)
        then = replace(self._takeover)  # which sees the loaded groups before the optimizer has them
        then.note_whether_everywhere(groups)
        passed, news = self._passed(optimizer), list[str]()
        for index, group in enumerate(groups):
            where = f"param_groups[{index}] of the loaded state"
            if LAMBDA in group:
                then.refuse_other_decay(group, where)
            for key in ("initial_lr", "max_lr", f"initial_{LAMBDA}"):  # what schedulers have noted
                if group.get(key) is not None:
                    number(f"{key} in {where}", group[key], "(-inf, inf)")
            changes = then.changes(group, index)
            if index < len(optimizer.param_groups):
                loaded = group if DECAY in group else {**group, **changes}
                news += overridden(loaded, optimizer.param_groups[index], passed, f"param_groups[{index}]")
        pairs = [
            (state.get(key, {}), param, name_of(live, index, place))
            for index, (group, live) in enumerate(zip(groups, optimizer.param_groups, strict=False))
            for place, (key, param) in enumerate(zip(group["params"], live["params"], strict=False))
        ]  # torch refuses groups of other sizes
        self._loaded = [self._step.restored(*pair) for pair in pairs]
        self._news = [] if isinstance(state_dict, Chosen) else news

    def _passed(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Return which of λ and lr somebody has passed: the others are those of the optimizer's class."""
        found = chosen(optimizer, ["lr"])
        if "lam" not in self.decay.numbers:
            return found
        usual = inspect.signature(type(optimizer)).parameters.get("weight_decay")
        own = [group[TAKEN_OVER] for group in optimizer.param_groups if TAKEN_OVER in group]
        is_passed = self._takeover.weight_decay is not None or usual is None or any(usual.default != value for value in own)
        return [LAMBDA, *found] if is_passed else found

    def _load(self, optimizer: torch.optim.Optimizer) -> None:
        """Put back what torch has cast, and take over groups that were not ours."""
        _put(optimizer, self._loaded)
        self._loaded = []
        self._takeover.note_whether_everywhere(optimizer.param_groups)
        for index, group in enumerate(optimizer.param_groups):
            if DECAY not in group:
                group.update(self._takeover.changes(group, index))
        news, self._news = self._news, []
        warn_of_news(news)

    def _hook_into(self, optimizer: torch.optim.Optimizer, step: Step) -> None:
        self._optimizer, self._step, self._takeover = weakref.ref(optimizer), step, step.takeover
        self._loaded, self._news = [], []
        if not isinstance(optimizer.__dict__.get("defaults"), _Defaults) and "defaults" in optimizer.__dict__:
            optimizer.defaults = _Defaults(optimizer.defaults)
            optimizer.defaults.attachment = self
        theirs = optimizer.__dict__.get("add_param_group")
        is_copied = getattr(theirs, "__func__", None) is Attachment._add_param_group
        self._their_own = {} if theirs is None or is_copied else {"add_param_group": theirs}
        optimizer.__dict__["add_param_group"] = self._add_param_group
        for name in _HOOKS:  # while it is unpickled the optimizer has no hooks yet, and keeps those that it finds
            optimizer.__dict__.setdefault(f"_optimizer_{name}_hooks", OrderedDict())
        for name in _HOOKS:
            _hook(optimizer, name)
        # Apart from compiled graphs; a decorator would import the compiler with this module.
        self._on_step = tuple(map(torch.compiler.disable, (self._before, self._after)))

    def __getstate__(self) -> dict[str, Any]:
        takeover = self._takeover
        return {
            "optimizer": self.optimizer,
            "decay": self.decay.name,
            "takeover": {"weight_decay": takeover.weight_decay, "numbers": takeover.numbers, "everywhere": takeover.everywhere},
            "step": {"rounding": self.rounding, "seed": self.seed},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        takeover = Takeover(REGISTRY.find("decay", state["decay"]), **state["takeover"])
        self._hook_into(state["optimizer"], Step(takeover, **state["step"]))


# What the optimizer calls: functions that ask whose attachment it has now, so that a copy of the hooks serves a copy of it.


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    attachment = Attachment.of(optimizer)
    return None if attachment is None else attachment._on_step[0](optimizer, args, kwargs)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    attachment = Attachment.of(optimizer)
    if attachment is not None:
        attachment._on_step[1](optimizer)


def _before_load(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    attachment = Attachment.of(optimizer)
    if attachment is not None:
        attachment._loading(optimizer, state_dict)


def _after_load(optimizer: torch.optim.Optimizer) -> None:
    attachment = Attachment.of(optimizer)
    if attachment is not None:
        attachment._load(optimizer)


_HOOKS = {
    "step_pre": _before_step,
    "step_post": _after_step,
    "load_state_dict_pre": _before_load,
    "load_state_dict_post": _after_load,
}


def _hooks_of(optimizer: torch.optim.Optimizer, name: str) -> "OrderedDict[int, Any]":
    return cast("OrderedDict[int, Any]", getattr(optimizer, f"_optimizer_{name}_hooks"))


def _hook(optimizer: torch.optim.Optimizer, name: str) -> int:
    """Register a hook of ours, and return where it stands."""
    place: int = getattr(optimizer, f"register_{name}_hook")(_HOOKS[name]).id
    if name == "step_post":  # first of all: another may step again, and would find this step unfinished
        _hooks_of(optimizer, name).move_to_end(place, last=False)
    return place


def _put(optimizer: torch.optim.Optimizer, kept: Iterable[Mapping[str, Any]]) -> None:
    """Put what a decay has kept of each parameter into the optimizer's state."""
    for param, ours in zip(all_params(optimizer), kept, strict=True):
        if ours:
            optimizer.state[param].update(ours)
