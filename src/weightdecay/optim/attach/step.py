"""What an attached decay does while the optimizer steps, and what it keeps of each parameter.

    u = (w − w′)/η           w′ is where the optimizer, whose own weight_decay is 0 now, has taken the weight
    w ← decay(w, u)

A decay that multiplies every weight by one number needs no u, and a weight that a decay leaves alone stays as the
optimizer wrote it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from weightdecay.backends import eager, rounding
from weightdecay.optim import saved_state
from weightdecay.optim.attach.host_groups import DECAY, LAMBDA, Takeover
from weightdecay.optim.saved_state import moment_dtype, name_of
from weightdecay.optim.torch_equivalents import TORCH
from weightdecay.update_rules.equation import Equation
from weightdecay.update_rules.traits import at_rest, is_uniform, rounded_away

_OURS = "attached_"
"""How the keys begin under which an optimizer's state holds what the decay keeps of a parameter."""
STEP, PENDING = f"{_OURS}step", f"{_OURS}pending"


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
    is_copied: bool
    """Whether the old weight is needed after the step."""
    factor: float
    """How often the gradient counts."""
    at_rest: bool
    """Whether λ is 0 and the decay only remembers and counts."""
    is_last: bool
    """Whether no hook comes between ours and the optimizer's step."""
    old: Tensor | None = None
    """A copy of the weight before the step."""
    moves: bool = False
    grad: Tensor | None = None

    @property
    def is_ahead(self) -> bool:
        """Return whether it decays before the step: then the optimizer's step comes on top, as in torch's AdamW."""
        return not self.is_copied and self.shrink is not None and self.how != "deferred"


@dataclass(frozen=True, slots=True)
class _Ahead:
    """How a weight has decayed before a step of which it is not known yet that it came to its end."""

    shrink: float
    how: str
    version: int
    """How often it had been written to by then."""


class Step:
    """A decay in the middle of somebody else's steps."""

    def __init__(self, takeover: Takeover, *, rounding: str, seed: int) -> None:
        self.takeover, self.decay, self.rounding, self.seed = takeover, takeover.decay, rounding, seed
        self.watchers: list[Watcher] = []
        """Who is told of every decay."""
        self.flight: list[_Moving] = []
        """What the step in progress is about to move."""
        self._ahead: dict[Tensor, _Ahead] = {}
        """Which weights have decayed before a step that is not done: it is in progress, or has failed."""
        self._equation, self._plain = Equation.given_u(self.decay.function), Equation.given_u("none")

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any, is_last: bool) -> tuple[Any, Any] | None:
        """Look at the weights before the optimizer moves them, and at the gradients once they are there.

        `is_last` says that no hook comes between this and the optimizer's step. The arguments of the step are returned
        where a closure has to be another.
        """
        self.flight = []  # of a step that did not come to its end
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"the {self.decay.name} decay that is attached counts in Python, which no CUDA graph repeats")
        found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        if found_inf is not None and found_inf.item():
            return None
        factor = 1.0 if scale is None else 1.0 / scale.item()
        closure, state = kwargs.get("closure", args[1] if len(args) > 1 else None), optimizer.state
        with torch.no_grad():
            flight = self._collect(optimizer, closure is not None, factor, is_last)
            self._see_gradients(flight)
            self.undo_ahead(flight if closure is None else ())  # a closure is to see the weights as they were
            for moving in flight:
                moving.old = moving.param.detach().clone() if moving.is_copied else None
            if closure is None:
                self._multiply(state, flight)
        self.flight = flight
        if closure is None:
            return None

        def seen(*of_closure: Any) -> Any:
            loss = closure(*of_closure)
            with torch.no_grad():
                self._see_gradients(flight)
                self._multiply(state, flight)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": seen}
        return (args[0], seen, *args[2:]), kwargs

    def _collect(self, optimizer: torch.optim.Optimizer, gradients_come: bool, factor: float, is_last: bool) -> list[_Moving]:
        """Return the parameters that may decay in this step."""
        groups = optimizer.param_groups
        for index, group in enumerate(groups):
            if DECAY not in group:  # appended by hand
                group.update(self.takeover.changes(group, index))
        numbers = [self.takeover.numbers_now(group, index) for index, group in enumerate(groups)]
        row = TORCH.get(type(optimizer))
        early = is_last and row is not None and not row.reads_weight
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
                given = numbers[index]
                flight.append(
                    _Moving(
                        param, group, index, inside, place, given, how, shrink, not needs_none, sign * factor, rests, is_last
                    )
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

    def _multiply(self, state: Mapping[Tensor, Any], flight: list[_Moving]) -> None:
        """Shrink the weights of which nothing needs to be kept, but for those that have shrunk for a step that failed."""
        for moving in flight:
            if not moving.is_ahead or not moving.moves:
                continue
            assert moving.shrink is not None
            param = moving.param
            if param not in self._ahead:
                if moving.how == "nearest":
                    param.mul_(1 - moving.shrink)
                else:
                    key = self._key(moving, state.get(param, {}))
                    eager.write(param, (1 - moving.shrink) * eager.real(param).float(), {}, how=moving.how, key=key)
                if not param.is_inference():  # of which torch does not count how often it is written to
                    self._ahead[param] = _Ahead(moving.shrink, moving.how, param._version)
            for watcher in self.watchers:
                watcher.decayed(param, Intended(moving.numbers, moving.shrink))

    def undo_ahead(self, flight: Iterable[_Moving] = ()) -> None:
        """Undo the decay of steps that failed, but for weights that are to decay just so for the step in flight.

        A weight that was written to since has taken its step, or comes from a checkpoint: there is nothing to undo.
        """
        again = {moving.param: (moving.shrink, moving.how) for moving in flight if moving.is_ahead and moving.moves}
        for param, ahead in list(self._ahead.items()):
            is_as_it_was = param._version == ahead.version
            if is_as_it_was and again.get(param) == (ahead.shrink, ahead.how):
                continue
            del self._ahead[param]
            if is_as_it_was and ahead.shrink != 1:
                param.div_(1 - ahead.shrink)

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Decay what has moved, and let go of each copy as soon as that is done."""
        flight, self.flight = self.flight[::-1], []
        if flight:
            self.takeover.remember_lr(optimizer.param_groups)
        with torch.no_grad():
            while flight:
                moving = flight.pop()
                self._ahead.pop(moving.param, None)
                if not moving.moves or _lost_its_gradient(moving):
                    continue
                # Written only now: many an optimizer sets up its own state where it finds none.
                counts = moving.how == "stochastic" or "t" in moving.numbers
                entry = optimizer.state.get(moving.param, {})
                if entry.get(PENDING, 0) != 0 and moving.how != "deferred":  # loaded from a run that deferred
                    self._apply_pending(moving.param, moving.place, entry)
                if moving.shrink is None:
                    self._decay(moving, entry)
                elif not moving.is_ahead:
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

    def apply_all_pending(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply to every weight what is kept back of its decay."""
        with torch.no_grad():
            for place, param in enumerate(all_params(optimizer)):
                if optimizer.state.get(param, {}).get(PENDING, 0) != 0:
                    self._apply_pending(param, place, optimizer.state[param])

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

    def restored(self, entry: Any, param: Tensor, name: str) -> dict[str, Any]:
        """Return a copy of what is ours in a parameter's entry of a checkpoint, as it is kept, or refuse it."""
        found: dict[str, Any] = {}
        if not isinstance(entry, Mapping):
            return found
        if STEP in entry:
            found[STEP] = int(saved_state.step_count(entry[STEP], f"the loaded {STEP} of {name}"))
        if PENDING in entry:
            found[PENDING] = saved_state.number(entry[PENDING], f"the loaded {PENDING} of {name}")
            if not 0 <= found[PENDING] <= 1:
                raise ValueError(f"the loaded {PENDING} of {name} is {found[PENDING]}, not a share of the weights from 0 to 1")
        for each in self.decay.keeps:
            key = _OURS + each.key
            what = f"the loaded {key} of {name}"
            if key in entry and each.per_element:
                found[key] = saved_state.moment(entry[key], what, param.shape, param, moment_dtype(param))
            elif key in entry:
                value = saved_state.number(entry[key], what)
                found[key] = torch.tensor(value, dtype=torch.float64, device=param.device)
        return found


def all_params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters of an optimizer, in the order of its groups."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Remove what a decay has kept of every parameter."""
    for param in all_params(optimizer):
        entry = optimizer.state.get(param, {})
        ours = [key for key in entry if isinstance(key, str) and key.startswith(_OURS)]
        for key in ours:
            del entry[key]
        if ours and not entry:
            del optimizer.state[param]


def _lost_its_gradient(moving: _Moving) -> bool:
    """Tell whether a hook took the gradient away after it was seen, and before the optimizer could step with it."""
    gone = moving.param.grad is None and not moving.is_last
    return gone and moving.old is not None and torch.equal(moving.param, moving.old)
