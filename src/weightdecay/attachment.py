"""Any decay on any torch optimizer: what its step did is read as −η·u, and the rule makes of that what it says.

    u = (w − w′)/η           w′ is where the optimizer, whose own weight_decay is 0 now, has taken the weight
    w ← decay(w, u)

A decay that multiplies every weight by one number needs no u, and a weight that a decay leaves alone stays as the
optimizer wrote it.
"""

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from weightdecay import hyperparameters
from weightdecay.arguments import choice, number
from weightdecay.checkpoints import moment_dtype, name_of
from weightdecay.columns import aligned
from weightdecay.optimizer import Optimizer
from weightdecay.readers import eager, rounding
from weightdecay.rule import REGISTRY, Rule
from weightdecay.shrink import at_rest, is_uniform, rounded_away
from weightdecay.step import Equation, RuleLike
from weightdecay.wrappers import calls_hooks

LAMBDA = "attached_weight_decay"
"""The key of a parameter group under which λ is found, by schedules too."""
DECAY = "attached_decay"
TAKEN_OVER = "host_weight_decay"
_OURS = "attached_"
"""How the keys begin under which an optimizer's state holds what the decay keeps of a parameter."""
STEP, PENDING = f"{_OURS}step", f"{_OURS}pending"
ROUNDINGS = ("auto", "nearest", "stochastic", "deferred")
_READ_NO_WEIGHT = frozenset(
    getattr(torch.optim, name)
    for name in ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "RMSprop", "Rprop", "Muon")
)
"""The optimizers, not their subclasses, that make u of the gradient alone and ask a closure once, before they start."""


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
        numbers: the decay's hyper-parameters (p, delta, …), and `lr_max` where it asks for the peak learning rate.

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


@dataclass(frozen=True, eq=False)
class Intended:
    """What an attached decay is about to do to a parameter, before it is rounded."""

    numbers: Mapping[str, Any]
    """The decay's, by its own names."""
    shrink: float | None
    """The share that it takes of every old weight alike; None where there is no such number."""
    equation: Equation | None = None
    values: Mapping[str, Tensor] | None = None
    """Where there is none: what the equation is applied to, u among it."""


class Watcher(Protocol):
    """Who looks on while an attached decay works, and changes nothing."""

    def decayed(self, param: Tensor, intended: Intended) -> None:
        """Hear that a weight has decayed before its optimizer's step."""

    def stepped(self, param: Tensor, intended: Intended) -> None:
        """Hear that a weight has taken its optimizer's step and has not decayed yet."""


class _Defaults(dict[str, Any]):
    """An optimizer's `defaults`, which pickle and deepcopy take along where they drop its hooks, and so the attachment."""

    attachment: "Attachment"


@dataclass(slots=True, eq=False)
class _Moving:
    """A parameter while its optimizer's step is in flight."""

    param: Tensor
    group: Mapping[str, Any]
    index: int
    """Where its group stands."""
    inside: int
    """Where it stands in its group."""
    place: int
    """Where it stands among all parameters."""
    numbers: Mapping[str, Any]
    """The decay's, by its own names."""
    how: str
    """How the weight is rounded."""
    shrink: float | None
    """What a uniform decay takes of every weight."""
    old: Tensor | None
    """A copy of the weight before the step."""
    factor: float
    """How often the gradient counts."""
    at_rest: bool
    """Whether λ is 0 and the decay only remembers and counts."""
    is_last: bool
    """Whether no hook comes between ours and the optimizer's step."""
    moves: bool = False
    done: bool = False
    """Whether it has decayed before the step."""
    grad: Tensor | None = None


class Attachment:
    """A decay on somebody else's optimizer; prints what it took over. Made by `attach`."""

    watchers: list[Watcher]
    """Who is told of every decay; pickle and deepcopy leave them behind."""
    _flight: "list[_Moving]"
    """What the step in progress is about to move."""
    _loaded: list[dict[str, Any]]

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
        self.decay, asks_for_peak = decay, "eta_max" in decay.numbers
        self.weight_decay = None if weight_decay is None else number("weight_decay", weight_decay, "[0, inf)")
        self.rounding = choice("rounding", rounding, ROUNDINGS)
        if rounding == "deferred" and not is_uniform(decay):
            raise ValueError(
                f"rounding='deferred' keeps one number per tensor, and the {decay.name} decay does not multiply all weights by "
                "one: use 'stochastic'"
            )
        if weight_decay is not None and "lam" not in decay.numbers:
            raise ValueError(f"weight_decay={weight_decay} does nothing: the {decay.name} decay has no λ; leave it out")
        own = hyperparameters.defaults([decay])
        hyperparameters.refuse_unknown(numbers, {*own, *(["lr_max"] if asks_for_peak else [])}, f"the {decay.name} decay")
        given = {**own, **numbers, "rounding": "auto", "seed": seed}
        hyperparameters.check(given, Equation.given_u(decay.function), "attach(…)")
        self.seed: int = given["seed"]
        self.numbers = {name: given[name] for name in (*own, *(["lr_max"] if "lr_max" in numbers else []))}
        groups = optimizer.param_groups
        self.everywhere = _is_everywhere(groups)
        """Whether groups whose own weight_decay is 0 decay, too."""
        news = any(LAMBDA not in group for group in groups)
        if self.everywhere and weight_decay is None and "lam" in decay.numbers and news:
            raise ValueError("weight_decay=None takes over the groups' own, and that of every group is 0: pass weight_decay=…")
        taken = [self._taken_over(group, index) for index, group in enumerate(groups)]
        loaded = {param: self._restored(optimizer.state.get(param, {}), param) for param in self._params(optimizer)}
        for group, values in zip(groups, taken, strict=True):
            group.update(values)
        self._put(optimizer, loaded)
        self._hook_into(optimizer)

    @staticmethod
    def of(optimizer: torch.optim.Optimizer) -> "Attachment | None":
        """Return what is attached to an optimizer, which may be a copy or come from a pickle, or None."""
        found = optimizer.defaults.attachment if isinstance(optimizer.defaults, _Defaults) else None
        return found if found is not None and found._optimizer() is optimizer else None  # copy.copy shares defaults, not hooks

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
            for place, param in enumerate(self._params(optimizer)):
                if optimizer.state.get(param, {}).get(PENDING, 0) != 0:
                    self._apply_pending(param, place, optimizer.state[param])
        for name, hook in _HOOKS.items():
            hooks = _hooks_of(optimizer, name)
            for place in [place for place, each in hooks.items() if each is hook]:
                del hooks[place]
        self._flight = []
        optimizer.defaults = dict(optimizer.defaults)
        if optimizer.__dict__.get("add_param_group") == self._add_param_group:
            optimizer.__dict__.pop("add_param_group")
            optimizer.__dict__.update(self._their_own)
        for group in optimizer.param_groups:
            for key in (LAMBDA, f"initial_{LAMBDA}", DECAY, *(["lr_at_start"] if "eta_max" in self.decay.numbers else [])):
                group.pop(key, None)
            if TAKEN_OVER in group:
                group["weight_decay"] = group.pop(TAKEN_OVER)
        for param in self._params(optimizer):
            entry = optimizer.state.get(param, {})
            ours = [key for key in entry if _is_ours(key)]
            for key in ours:
                del entry[key]
            if ours and not entry:
                del optimizer.state[param]

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

    # The parameter groups -----------------------------------------------------------------------------------------------

    @staticmethod
    def _params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
        return [param for group in optimizer.param_groups for param in group["params"]]

    def _taken_over(self, group: Mapping[str, Any], index: int, *, is_added: bool = False) -> dict[str, Any]:
        """Return what changes in a group that has no λ of ours yet, brings one of its own, or has one from a checkpoint."""
        where = f"param_groups[{index}]"
        lr = number(f"{where}['lr']", group.get("lr"), "[0, inf)")
        if group.get("differentiable"):
            raise ValueError(
                f"{where} has differentiable=True, and autograd does not see through a step that is read afterwards"
            )
        found: dict[str, Any] = {DECAY: self.decay.name}
        if "eta_max" in self.decay.numbers:
            found["lr_at_start"] = group.get("lr_at_start", lr)
        brought = number(f"{where}['{LAMBDA}']", group[LAMBDA], "[0, inf)") if LAMBDA in group else None
        if brought is not None and DECAY in group and not is_added:
            self._refuse_other_decay(group, where)
            return {**found, **({LAMBDA: self.weight_decay} if brought != 0 and self.weight_decay is not None else {})}
        own = group.get("weight_decay")
        lam = 0.0 if own is None else number(f"{where}['weight_decay']", own, "[0, inf)")
        if brought is not None:
            lam = brought
        elif lam != 0 or self.everywhere:
            lam = 1.0 if "lam" not in self.decay.numbers else lam if self.weight_decay is None else self.weight_decay
        found[LAMBDA] = lam
        return found if own is None or TAKEN_OVER in group else {**found, TAKEN_OVER: own, "weight_decay": 0.0}

    def _add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as the optimizer does, and take over what has come; what is refused is not added."""
        optimizer = self.optimizer
        groups, before = optimizer.param_groups, len(optimizer.param_groups)
        self._their_own.get("add_param_group", partial(type(optimizer).add_param_group, optimizer))(param_group)
        if Attachment.of(optimizer) is not self:  # somebody has kept this method while the decay was detached
            return
        try:
            taken = [self._taken_over(group, index, is_added=True) for index, group in enumerate(groups[before:], before)]
        except Exception:
            del groups[before:]
            raise
        for group, values in zip(groups[before:], taken, strict=True):
            group.update(values)
        self.everywhere = _is_everywhere(groups)

    def _refuse_other_decay(self, group: Mapping[str, Any], where: str) -> None:
        if group.get(DECAY, self.decay.name) != self.decay.name:
            raise ValueError(f"{where} was trained with {group[DECAY]} decay attached, not {self.decay.name}: attach the same")

    def _numbers(self, group: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Return the decay's numbers in a group as they are now, after checking what may have been written since."""
        where = f"param_groups[{index}]"
        if _decays(group):
            raise ValueError(
                f"{where}['weight_decay']={group['weight_decay']} would decay a second time beside the {self.decay.name} decay "
                f"that is attached: write λ to {where}['{LAMBDA}'], make a scheduler of λ after attaching, or detach()"
            )
        now = {key: number(f"{where}['{key}']", group.get(key), "[0, inf)") for key in ("lr", LAMBDA)}
        found = hyperparameters.numbers(self.decay, {**group, **self.numbers, **now}, lam=LAMBDA, t=0.0)
        return {name: float(value) for name, value in found.items()}

    # The step -----------------------------------------------------------------------------------------------------------

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Look at the weights before the optimizer moves them, and at the gradients once they are there."""
        self._flight = []  # of a step that did not come to its end
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"the {self.decay.name} decay that is attached counts in Python, which no CUDA graph repeats")
        found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        if found_inf is not None and found_inf.item():
            return None
        factor = 1.0 if scale is None else 1.0 / scale.item()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        with torch.no_grad():
            flight = self._collect(optimizer, closure is not None, factor)
            self._see_gradients(flight)
            if closure is None:
                self._multiply(flight)
        self._flight = flight
        if closure is None:
            return None

        def seen(*of_closure: Any) -> Any:
            loss = closure(*of_closure)
            with torch.no_grad():
                self._see_gradients(flight)
                self._multiply(flight)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": seen}
        return (args[0], seen, *args[2:]), kwargs

    def _collect(self, optimizer: torch.optim.Optimizer, gradients_come: bool, factor: float) -> list[_Moving]:
        """Return the parameters that may decay in this step, with copies where a decay needs the old weight afterwards."""
        groups = optimizer.param_groups
        for index, group in enumerate(groups):
            if DECAY not in group:  # appended by hand
                group.update(self._taken_over(group, index))
        numbers = [self._numbers(group, index) for index, group in enumerate(groups)]
        *_, last = _hooks_of(optimizer, "step_pre").values()
        is_last = last is _before_step  # another may take gradients away
        early = is_last and type(optimizer) in _READ_NO_WEIGHT
        flight, place = [], -1
        for index, group in enumerate(groups):
            shrink = at_rest(self.decay, numbers[index]) if is_uniform(self.decay) else None
            sign = -1.0 if group.get("maximize") else 1.0
            for inside, param in enumerate(group["params"]):
                place += 1
                may_move = param.grad is not None or (gradients_come and param.requires_grad)
                rests = bool(group[LAMBDA] == 0 or shrink == 0)
                if not may_move or (rests and not self._looks_on(numbers[index], optimizer.state.get(param, {}))):
                    continue
                how = self._how(param.dtype)
                needs_none = shrink is not None and (early or (how == "deferred" and is_last))
                old, given = None if needs_none else param.detach().clone(), numbers[index]
                flight.append(
                    _Moving(param, group, index, inside, place, given, how, shrink, old, sign * factor, rests, is_last)
                )
        return flight

    def _looks_on(self, numbers: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
        """Tell whether a decay whose λ is 0, until a schedule says otherwise, counts steps or remembers how weights began."""
        begins = (_OURS + each.key for each in self.decay.keeps if isinstance(each.start, str))
        return "t" in numbers or self._goes_on_at_rest or any(key not in entry for key in begins)

    @property
    def _goes_on_at_rest(self) -> bool:
        """Tell whether what the decay keeps changes at λ = 0, too."""
        return "lam" in self.decay.numbers and any(each.changes for each in self.decay.keeps)

    def _see_gradients(self, flight: list[_Moving]) -> None:
        """Note which parameters have a gradient, and keep it for a decay that asks for it: an optimizer may change its own."""
        for moving in flight:
            grad = moving.param.grad
            if grad is not None and grad.layout != torch.strided:
                name = name_of(moving.group, moving.index, moving.inside)
                raise RuntimeError(
                    f"the gradient of {name} is sparse ({grad.layout}): decay touches every weight; build the embedding "
                    "with sparse=False, or give this tensor to an optimizer of its own"
                )
            moving.moves = grad is not None
            if grad is not None and self.decay.measures_gradient:
                moving.grad = grad.detach().clone()

    def _multiply(self, flight: list[_Moving]) -> None:
        """Shrink the weights of which nothing needs to be kept: the optimizer's step comes on top, as in torch's AdamW."""
        for moving in flight:
            if moving.old is not None or moving.shrink is None or moving.how == "deferred":
                continue
            param, kept, moving.done = moving.param, 1 - moving.shrink, True
            if moving.moves and moving.how == "nearest":
                param.mul_(kept)
            elif moving.moves:
                key = self._key(moving, self.optimizer.state.get(param, {}))
                eager.write(param, kept * eager.real(param).float(), {}, how=moving.how, key=key)
            for watcher in self.watchers if moving.moves else ():
                watcher.decayed(param, Intended(moving.numbers, moving.shrink))

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Decay what has moved, and let go of each copy as soon as that is done."""
        flight, self._flight = self._flight[::-1], []
        # Before the next step this hook comes last, and sees what others leave of the gradients.
        hooks = _hooks_of(optimizer, "step_pre")
        hooks.move_to_end(next(place for place, hook in hooks.items() if hook is _before_step))
        with torch.no_grad():
            while flight:
                moving = flight.pop()
                if not moving.moves or _lost_its_gradient(moving):
                    continue
                # Written only now: many an optimizer sets up its own state where it finds none.
                counts = moving.how == "stochastic" or "t" in moving.numbers
                entry = optimizer.state.get(moving.param, {})
                if entry.get(PENDING, 0) != 0 and moving.how != "deferred":  # loaded from a run that deferred
                    self._apply_pending(moving.param, moving.place, entry)
                if moving.shrink is None:
                    self._decay(moving, entry)
                elif not moving.done:
                    for watcher in self.watchers:
                        watcher.stepped(moving.param, Intended(moving.numbers, moving.shrink))
                    if moving.old is not None and moving.how != "deferred":
                        self._subtract(moving, moving.shrink, moving.old, entry)
                    else:
                        self._defer(moving, moving.shrink, entry)
                if counts:
                    entry[STEP] = entry.get(STEP, 0) + 1
                if entry:
                    optimizer.state[moving.param] = entry

    def _subtract(self, moving: _Moving, shrink: float, old: Tensor, entry: Mapping[str, Any]) -> None:
        """Take a share of the old weight from the new one: w′ − s·w is (1 − s)·w − η·u, whatever η and u are."""
        param = moving.param
        if moving.how == "nearest":
            param.sub_(old, alpha=shrink)
        else:
            w = eager.real(param).float() - shrink * eager.real(old).float()
            eager.write(param, w, {}, how=moving.how, key=self._key(moving, entry))

    def _decay(self, moving: _Moving, entry: dict[str, Any]) -> None:
        """Apply the rule to the old weight and to what the step was."""
        assert moving.old is not None
        param, wide, given = moving.param, moment_dtype(moving.param), moving.numbers
        for each in self.decay.keeps:
            if _OURS + each.key not in entry:
                entry[_OURS + each.key] = eager.start(each, moving.old, given, wide)
        if given["eta"] == 0 or (moving.at_rest and not self._goes_on_at_rest):
            return
        if "t" in given:
            given = {**given, "t": entry.get(STEP, 0) + 1.0}
        u = (moving.old.to(wide) - param.to(wide)) / given["eta"]
        state = {"u": u, **{each.key: entry[_OURS + each.key] for each in self.decay.keeps}}
        numbers: eager.Numbers = {"direction": {}, "decay": given}
        grad = u if moving.grad is None else moving.grad
        kept = self._equation.kept(numbers)
        values = eager.operands(self._equation, moving.old, grad, state, kept, "nearest", moving.factor)
        numbers = eager.remembered(self._equation, numbers, state, kept)
        for watcher in self.watchers:
            watcher.stepped(param, Intended(numbers["decay"], None, self._equation, values))
        after, new = eager.step(self._equation, numbers, values)
        plain, _ = eager.step(self._plain, {"direction": {}, "decay": {"eta": given["eta"]}}, values)
        # u was divided by η, and η·u is not the step to the last bit: what does not decay is left as it is.
        after = torch.where(after == plain, eager.real(param).to(after.dtype), after)
        if not moving.at_rest:
            eager.write(param, after, {}, how=moving.how, key=self._key(moving, entry))
        eager.keep(self.decay.keeps, new, state)

    def _defer(self, moving: _Moving, shrink: float, entry: dict[str, Any]) -> None:
        """Gather what the decay takes, and apply it once enough has come together for a rounding to show it."""
        pending = entry.get(PENDING, 0.0)
        entry[PENDING] = pending + shrink * (1 - pending)
        if abs(entry[PENDING]) >= rounded_away(moving.param.dtype) / 4:
            self._apply_pending(moving.param, moving.place, entry)

    def _apply_pending(self, param: Tensor, place: int, entry: dict[str, Any]) -> None:
        count, kept = entry.get(STEP, 0), 1 - entry[PENDING]
        if param.dtype in rounding.LOW_PRECISION:
            w = eager.real(param).float()
            bits = rounding.spread_bits(w, rounding.keys(self.seed, 0, place), count)
            eager.real(param).copy_(rounding.stochastic(kept * w, param.dtype, bits))
        else:
            param.mul_(kept)
        entry[PENDING], entry[STEP] = 0.0, count + 1

    def _how(self, dtype: torch.dtype) -> str:
        if dtype not in rounding.LOW_PRECISION:
            return "nearest"
        if self.rounding == "auto":
            return "deferred" if is_uniform(self.decay) else "stochastic"
        return self.rounding

    def _key(self, moving: _Moving, entry: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the key of the random bits of this step."""
        return rounding.keys(self.seed, entry.get(STEP, 0) + 1, moving.place)

    # Checkpoints, copies and pickles ------------------------------------------------------------------------------------

    def _loading(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        """Copy what is ours out of a state that is about to be loaded, after looking whether it fits."""
        groups = state_dict["param_groups"]
        for index, group in enumerate(groups):
            if LAMBDA in group:
                self._refuse_other_decay(group, f"param_groups[{index}] of the loaded state")
        keys, params = [key for group in groups for key in group["params"]], self._params(optimizer)
        entries = [state_dict["state"].get(key, {}) for key in keys]
        self._loaded = [self._restored(entry, param) for entry, param in zip(entries, params, strict=False)]

    def _restored(self, entry: Mapping[Any, Any], param: Tensor) -> dict[str, Any]:
        """Return a copy of what is ours in a parameter's entry of a checkpoint, as it is kept, or refuse it."""
        found: dict[str, Any] = {key: count(entry[key]) for key, count in ((STEP, int), (PENDING, float)) if key in entry}
        for each in self.decay.keeps:
            key = _OURS + each.key
            if key in entry:
                tensor, dtype = torch.as_tensor(entry[key]), moment_dtype(param) if each.per_element else torch.float64
                shape = param.shape if each.per_element else torch.Size()
                if tensor.shape != shape:
                    raise ValueError(f"the loaded {key} has shape {tuple(tensor.shape)}, not {tuple(shape)}")
                found[key] = tensor.detach().to(param.device, dtype, copy=True)
        return found

    def _load(self, optimizer: torch.optim.Optimizer) -> None:
        """Put back what torch has cast, and take over groups that were not ours."""
        self._put(optimizer, dict(zip(self._params(optimizer), self._loaded, strict=True)))
        self._loaded = []
        self.everywhere = _is_everywhere(optimizer.param_groups)
        for index, group in enumerate(optimizer.param_groups):
            if DECAY not in group:
                group.update(self._taken_over(group, index))

    @staticmethod
    def _put(optimizer: torch.optim.Optimizer, loaded: Mapping[Tensor, Mapping[str, Any]]) -> None:
        for param, ours in loaded.items():
            if ours:
                optimizer.state[param].update(ours)

    def _hook_into(self, optimizer: torch.optim.Optimizer) -> None:
        self._equation, self._plain = Equation.given_u(self.decay.function), Equation.given_u("none")
        self._optimizer = weakref.ref(optimizer)
        self._flight, self._loaded, self.watchers = [], [], []
        if not isinstance(optimizer.__dict__.get("defaults"), _Defaults) and "defaults" in optimizer.__dict__:
            optimizer.defaults = _Defaults(optimizer.defaults)
            optimizer.defaults.attachment = self
        theirs = optimizer.__dict__.get("add_param_group")
        is_copied = getattr(theirs, "__func__", None) is Attachment._add_param_group
        self._their_own = {} if theirs is None or is_copied else {"add_param_group": theirs}
        optimizer.__dict__["add_param_group"] = self._add_param_group
        for name in _HOOKS:  # while it is unpickled the optimizer has no hooks yet, and keeps those that it finds
            optimizer.__dict__.setdefault(f"_optimizer_{name}_hooks", OrderedDict())
        optimizer.register_step_pre_hook(_before_step)
        optimizer.register_step_post_hook(_after_step)
        optimizer.register_load_state_dict_pre_hook(_before_load)
        optimizer.register_load_state_dict_post_hook(_after_load)
        # Apart from compiled graphs; a decorator would import the compiler with this module.
        self._on_step = tuple(map(torch.compiler.disable, (self._before, self._after)))

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("weight_decay", "rounding", "seed", "numbers", "everywhere")}
        return {**kept, "decay": self.decay.name, "optimizer": self.optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "decay": REGISTRY.find("decay", state["decay"])})
        self._hook_into(self.__dict__.pop("optimizer"))


# What the optimizer calls: functions that ask whose attachment it has now, so that a copy of the hooks serves a copy of it.


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    attachment = Attachment.of(optimizer)
    return None if attachment is None else attachment._on_step[0](optimizer, args, kwargs)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    attachment = Attachment.of(optimizer)
    if attachment is not None:
        attachment._on_step[1](optimizer, args, kwargs)


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


def _decays(group: Mapping[str, Any]) -> bool:
    """Tell whether the group's own weight_decay is at work."""
    own = group.get("weight_decay")
    return own is not None and bool(own != 0)


def _is_everywhere(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether all groups decay: none had a weight_decay of its own by which to leave others out."""
    return not any(group[TAKEN_OVER] != 0 if TAKEN_OVER in group else _decays(group) for group in groups)


def _lost_its_gradient(moving: _Moving) -> bool:
    """Tell whether a hook took the gradient away after it was seen, and before the optimizer could step with it."""
    gone = moving.param.grad is None and not moving.is_last
    return gone and moving.old is not None and torch.equal(moving.param, moving.old)


def _is_ours(key: Any) -> bool:
    return isinstance(key, str) and key.startswith(_OURS)
