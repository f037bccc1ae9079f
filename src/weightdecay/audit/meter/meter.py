"""What the decay of a running optimizer does: `wd.Meter(optimizer)`."""

import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer as TorchOptimizer

from weightdecay.analysis.next_step import Upcoming, shared_numbers
from weightdecay.audit.meter import sums
from weightdecay.audit.meter.metrics import GROUP, Expected, Known, Measured, Sample, Summary
from weightdecay.backends import counting, rounding
from weightdecay.display.near_names import hint
from weightdecay.groups.params import params_of
from weightdecay.groups.roles import role_of
from weightdecay.optim.as_ours import as_ours
from weightdecay.optim.attach import Attachment, Intended
from weightdecay.optim.optimizer import Optimizer
from weightdecay.optim.unwrap import calls_hooks, innermost
from weightdecay.validation import number, whole

EVERY = 500
"""By default one step in so many is measured."""
_Hooks = OrderedDict[int, Any]
_MOST_UNREAD = 64
"""So many samples may wait on the device until somebody asks; then they are read, so that they do not fill its memory."""


def is_due(calls: int, every: int, start: int = 0) -> bool:
    """Tell whether a meter measures a step: the 1st, 2nd, 4th, 8th, … of those that it sees, then one in `every`.

    >>> [calls for calls in range(1, 61) if is_due(calls, every=20)]
    [1, 2, 4, 8, 16, 20, 40, 60]
    """
    return (start + calls) % every == 0 or (calls < every and calls & (calls - 1) == 0)


@dataclass(eq=False)
class _Taken:
    """A sample whose numbers are still on the tensors' device; it watches what an attached decay does."""

    calls: int
    skips: Tensor | None
    """How many of the calls a GradScaler has skipped so far."""
    skipped: Tensor | None
    """Whether it skips this one."""
    known: list[Known] = field(default_factory=list)
    tallies: list[sums.Tally] = field(default_factory=list)
    totals: list[tuple[list[int], Tensor]] = field(default_factory=list)
    attachment: Attachment | None = None
    watched: dict[Tensor, tuple[int, Upcoming | None]] = field(default_factory=dict)
    """The place of each tensor, and the optimizer's own step, if it is known."""

    def decayed(self, param: Tensor, intended: Intended) -> None:
        """Keep what the optimizer's step begins with."""
        if tally := self._expect(param, intended):
            tally.shrink, tally.begun = intended.shrink or 0.0, tally.stored().clone()

    def stepped(self, param: Tensor, intended: Intended) -> None:
        """Add up what the decay is about to do, and keep what the optimizer's step has ended with."""
        if tally := self._expect(param, intended):
            sums.add_intended(tally, intended)

    def _expect(self, param: Tensor, intended: Intended) -> sums.Tally | None:
        """Return the tally of a tensor that is measured, after noting what its decay implies."""
        if param not in self.watched:
            return None
        (place, step), shrink = self.watched[param], intended.shrink
        known = self.known[place]
        assert known.expected is not None
        expected = replace(known.expected, shrink=shrink) if step is None else Expected.shrinking(step, shrink)
        self.known[place] = replace(known, expected=expected)
        return self.tallies[place]

    def watch(self, attachment: Attachment) -> None:
        """Begin to hear of what is attached."""
        self.attachment = attachment
        attachment.watchers.append(self)

    def close(self) -> None:
        """Hear no more, and let go of the weights."""
        if self.attachment is not None:
            self.attachment.watchers[:] = [each for each in self.attachment.watchers if each is not self]
        self.attachment, self.tallies, self.watched = None, [], {}


class Meter:
    """Measure what the decay does to the weights, every so many steps of any torch optimizer, and more often at the start.

    It hooks the optimizer's step and changes nothing: a run with a meter is the run without it, bit for bit. Between two
    samples it does nothing. A sample is of one step and holds a copy of the weights during it; its numbers stay on a GPU
    until they are asked for. `weightdecay.audit.meter.metrics.Reading` says what they are. DTensors (`fully_shard`) are
    measured whole: every rank has the same numbers, and every rank needs the meter.

    This package's optimizers, and torch's of the same names, are known from their rules, and a decay of `weightdecay.attach` is
    known on any optimizer. Of the decay of another optimizer nothing is known: there is the norm, the change and the angle, and
    `unknown` says why.

    Args:
        optimizer: of any kind; what accelerate and Lightning wrap around one is taken off.
        every: measure each step whose number is a multiple of this, and before the first of them steps 1, 2, 4, 8, … so that
            a short run has a picture, too.
        roles: what to sum up beside the groups: a model, whose tensors have the roles that `weightdecay.param_groups` gives
            them (weight, embedding, norm, bias, …), or a role by the name of each parameter, which the optimizer's groups
            have to know then (`weightdecay.param_groups` gives them). A tensor may be left out.
        steps_per_epoch: optimizer steps, to know half-life and timescale in epochs as well.
        start: how many steps the run had made before, if it goes on from a checkpoint; they count in the numbers of the steps.

    Raises:
        TypeError: `optimizer` is none, or one that calls no hooks, or `roles` neither a model nor a mapping.
        ValueError: `every` is no whole number from 1, `start` none from 0, `steps_per_epoch` not positive, a name in `roles`
            unknown.

    >>> w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = torch.optim.SGD([w], lr=0.5, weight_decay=0.01)
    >>> with Meter(optimizer) as meter:
    ...     w.grad = torch.tensor([[0.3, -0.1]])
    ...     optimizer.step()
    >>> metrics = meter.metrics()
    >>> round(metrics["weight_decay/group0/norm"], 4), round(metrics["weight_decay/group0/shrink"], 4)
    (5.0, 0.005)
    >>> round(metrics["weight_decay/group0/kept"], 3), round(metrics["weight_decay/group0/half_life"], 1)
    (1.0, 138.3)

    Source: Kosson et al. 2024, arXiv:2305.17212 (angle, equilibrium); Wang & Aitchison 2024, arXiv:2405.13698 (timescale).
    """

    unknown: str | None = None
    """Why nothing is known of the decay of this optimizer, or of a tensor in the last sample, if so."""

    def __init__(
        self,
        optimizer: TorchOptimizer,
        *,
        every: int = EVERY,
        roles: nn.Module | Mapping[str, str] | None = None,
        steps_per_epoch: float | None = None,
        start: int = 0,
    ) -> None:
        self.every, self.start = whole("every", every), whole("start", start, 0)
        self.steps_per_epoch = None if steps_per_epoch is None else number("steps_per_epoch", steps_per_epoch, "(0, inf)")
        inner = _unwrapped(optimizer)
        self._roles = _roles(roles, inner)
        self._known(inner)
        self._calls = 0
        self._skips: Tensor | None = None
        self._taken: _Taken | None = None
        self._unread: list[_Taken] = []
        self._samples: list[Sample] = []
        # A step may be compiled, and nothing here should be.
        before, after = map(torch.compiler.disable, (self._before, self._after))
        self._hooks = [inner.register_step_pre_hook(before), inner.register_step_post_hook(after)]
        if Attachment.of(inner) is not None:
            # An attached decay may change the weights in its own hook, before the optimizer does and after.
            cast(_Hooks, inner._optimizer_step_pre_hooks).move_to_end(self._hooks[0].id, last=False)

    def _known(self, optimizer: TorchOptimizer) -> Optimizer | None:
        """Return the optimizer as one of ours, or None, and keep the reason if that leaves the decay unknown."""
        self.unknown = None
        try:
            return as_ours(optimizer, attached=True)
        except (TypeError, ValueError) as error:
            if Attachment.of(optimizer) is None:
                self.unknown = str(error)
        return None

    # At a step ----------------------------------------------------------------------------------------------------------

    def _before(self, optimizer: TorchOptimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Measure, if it is time, or see to it that the closure does as soon as it has made the gradients."""
        self._drop()
        self._calls += 1
        found_inf, skipped = getattr(optimizer, "found_inf", None), None
        if found_inf is not None:
            skipped = (found_inf > 0).long()
            self._skips = skipped if self._skips is None else self._skips + skipped
        if not is_due(self._calls, self.every, self.start):
            return None
        cast(_Hooks, optimizer._optimizer_step_post_hooks).move_to_end(self._hooks[1].id)  # a decay may be attached since
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._try_to_take(optimizer, skipped)
            return None

        def measured() -> Any:
            loss = closure()
            if self._taken is None:  # of several evaluations, the first is at the weights before the step
                self._try_to_take(optimizer, skipped)
            return loss

        return ((args[0], measured, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": measured})

    def _try_to_take(self, optimizer: TorchOptimizer, skipped: Tensor | None) -> None:
        """Measure a step, or note why it cannot be measured: what stands in somebody's optimizer stops no run of theirs."""
        try:
            self._taken = self._take(optimizer, skipped)
        except Exception as error:
            self._note_failure(error)

    def _note_failure(self, error: Exception) -> None:
        """Say in `unknown` why a step is not measured, and let go of it."""
        self.unknown = f"a step could not be measured: {type(error).__name__}: {error}"
        self._drop()

    @torch.no_grad()
    def _take(self, optimizer: TorchOptimizer, skipped: Tensor | None) -> _Taken:
        """Copy the weights that have a gradient, and add up what the step is about to do."""
        taken = _Taken(self._calls, self._skips, skipped)
        ours, attachment = self._known(optimizer), Attachment.of(optimizer)
        scale = getattr(optimizer, "grad_scale", None)
        if attachment is not None:
            for tally, step, _ in self._splits(taken, optimizer, ours, scale, attached=True):
                if step.equation.direction.name == "sgd":  # whose equilibrium asks for it
                    sums.add_gradient(tally, step)
                step.values = {}
            taken.watch(attachment)
            return taken
        shared: Mapping[str, float] = {}
        if ours is not None and any(ours.equation(group).decay.shared for group in ours.param_groups):
            shared = shared_numbers([step for *_, step in _moving(optimizer, ours, scale) if step is not None])
        sums.add_before(self._splits(taken, optimizer, ours, scale), shared)
        return taken

    def _splits(
        self,
        taken: _Taken,
        optimizer: TorchOptimizer,
        ours: Optimizer | None,
        scale: Tensor | None,
        attached: bool = False,
    ) -> Iterator[tuple[sums.Tally, Upcoming, sums.Key]]:
        """Take the tensors one by one, and yield each whose step can be taken apart with that step."""
        expected: dict[tuple[int, float], Expected] = {}
        for index, at, param, step in _moving(optimizer, ours, scale):
            group = optimizer.param_groups[index]
            how = "nearest" if ours is None else rounding.resolve(ours.param_groups[index]["rounding"], param.dtype)
            tally, law = sums.Tally(param, optimizer.state, how, attached=attached), None
            if step is not None:
                law = expected[index, step.t] = expected.get((index, step.t)) or Expected.of(step)
            elif attached:
                law = Expected(float(group["lr"]), math.nan, 0.0, None)
            else:
                tally.refuse()
                if ours is not None:
                    self.unknown = f"a gradient in param_groups[{index}] is sparse, of which no step is taken apart"
            labels = (f"{GROUP}{index}", *([role] if (role := self._roles.get(param)) else []))
            count = param.numel() * (2 if param.is_complex() else 1)
            if attached:
                taken.watched[param] = len(taken.tallies), step
            taken.known.append(Known(labels, count, param.ndim > 1, law))
            taken.tallies.append(tally)
            if step is not None and ours is not None:
                yield tally, step, rounding.keys(ours.param_groups[index]["seed"], counting.drawn_from_of_host(step.t), at)

    @torch.no_grad()
    def _after(self, optimizer: TorchOptimizer, *_: Any) -> None:
        """Add up what the step has done, if it is measured."""
        self._stand_last(optimizer)
        taken = self._taken
        if taken is None or not taken.tallies:
            return
        try:
            sums.add_after(taken.tallies)
            taken.totals = sums.totals(taken.tallies)
        except Exception as error:
            self._note_failure(error)
            return
        self._drop()
        self._unread.append(taken)
        if len(self._unread) == _MOST_UNREAD:
            self._read()

    def _stand_last(self, optimizer: TorchOptimizer) -> None:
        """See to it that hooks which change the gradients come before the meter; only after a step may one move."""
        hooks = cast(_Hooks, optimizer._optimizer_step_pre_hooks)
        if self._hooks and next(reversed(hooks), None) != self._hooks[0].id and Attachment.of(optimizer) is None:
            hooks.move_to_end(self._hooks[0].id)

    def _drop(self) -> None:
        """End the measuring of a step, which may not have come to its end."""
        if self._taken is not None:
            self._taken.close()
        self._taken = None

    def _read(self) -> None:
        """Bring the numbers to the host, and drop the samples of steps that were none."""
        for taken in self._unread:
            if taken.skipped is not None and taken.skipped.item():
                continue
            rows: dict[int, list[float]] = {}
            for places, totals in taken.totals:
                rows.update(zip(places, totals.tolist(), strict=True))
            tensors = [Measured.of(known, rows[place]) for place, known in enumerate(taken.known)]
            step = self.start + taken.calls - (0 if taken.skips is None else int(taken.skips.item()))
            self._samples.append(Sample.of(step, tensors, self.steps_per_epoch))
        self._unread = []

    # What was measured --------------------------------------------------------------------------------------------------

    def history(self) -> tuple[Sample, ...]:
        """Return every sample so far; only this, and what is made of it, makes the host wait for a GPU."""
        self._read()
        return tuple(self._samples)

    def metrics(
        self, prefix: str = "weight_decay", names: Collection[str] | None = None, *, roles: bool = True
    ) -> dict[str, float]:
        """Return what is known of the last sample as a flat dict for any logger: `weight_decay/group0/kept` and so on.

        Args:
            prefix: what the keys begin with.
            names: which quantities, as in `weightdecay.audit.meter.metrics.Reading`; all of them if you do not say.
            roles: of the roles as well as of the groups.
        """
        samples = self.history()
        return samples[-1].metrics(prefix, names, roles=roles) if samples else {}

    def summary(self) -> Summary | None:
        """Return what the samples say together, which `print(meter)` shows; None before the first."""
        samples = self.history()
        return Summary.of(samples) if samples else None

    @property
    def waiting(self) -> bool:
        """Tell whether there is a sample that nobody has asked for; this makes nobody wait."""
        return bool(self._unread)

    @property
    def step(self) -> int:
        """Return the step of the last sample, 0 before the first."""
        samples = self.history()
        return samples[-1].step if samples else 0

    def to_dict(self) -> dict[str, Any]:
        """Return every sample as plain data, and what they say together."""
        samples, summary = [each.to_dict() for each in self.history()], self.summary()
        return {
            "every": self.every, "unknown": self.unknown, "summary": summary and summary.to_dict(), "samples": samples
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [str(self.summary() or "nothing measured yet")]
        return "\n".join([*lines, *(["", f"what the decay does is unknown: {self.unknown}"] if self.unknown else [])])

    __repr__ = __str__

    def plot(self, path: str | Path) -> None:
        """Draw the history into a .png or .svg: norm, shrink, angle and decay against update.

        Needs matplotlib: `pip install 'weightdecay[sweep]'`.

        Raises:
            ValueError: nothing was measured yet, or the path is neither.
            FileNotFoundError: there is no such folder.
        """
        from weightdecay.audit.meter.plot import course
        from weightdecay.display.figure import save

        samples = self.history()
        if not samples:
            raise ValueError("nothing was measured yet: the first step of the optimizer after the meter was made will be")
        save(path, lambda: course(samples))

    # Its end ------------------------------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Take the meter off the optimizer; what it has measured stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.detach()

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and deepcopy keep: what was measured, without the optimizer."""
        self._read()
        return {**self.__dict__, "_hooks": [], "_taken": None, "_roles": {}}


def _moving(
    optimizer: TorchOptimizer, ours: Optimizer | None, scale: Tensor | None
) -> Iterator[tuple[int, int, Tensor, Upcoming | None]]:
    """Yield each tensor that has a gradient: its group, its place among all, itself, and its step if that is known."""
    at = -1
    for index, group in enumerate(optimizer.param_groups):
        for place, param in enumerate(group["params"]):
            at += 1
            if param.grad is None:
                continue
            step = None
            if ours is not None and param.grad.layout == torch.strided:
                step = Upcoming(ours, index, place)
                if scale is not None:  # as the step unscales
                    step.values["g"] = step.values["g"] * scale.double().reciprocal().float().to(param.device)
            yield index, at, param, step


def _unwrapped(optimizer: Any) -> TorchOptimizer:
    """Return the optimizer inside of what frameworks wrap around it, whose own hooks may not work."""
    optimizer = innermost(optimizer)
    if not isinstance(optimizer, TorchOptimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, not an optimizer: pass what has the step() method")
    if not calls_hooks(optimizer):
        name = type(optimizer).__name__
        raise TypeError(f"the step of {name} calls no hooks, which a meter needs: pass the torch optimizer that it wraps")
    return optimizer


def _roles(given: nn.Module | Mapping[str, str] | None, optimizer: TorchOptimizer) -> dict[Tensor, str]:
    """Return the role of each tensor that has one."""
    if given is None:
        return {}
    if isinstance(given, nn.Module):
        return {param.tensor: role_of(param)[0].name for param in params_of(given)}
    if not isinstance(given, Mapping):
        raise TypeError(f"roles is a {type(given).__name__}: pass the model, or a role by the name of each parameter")
    known: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        known.update(zip(group.get("param_names", ()), group["params"], strict=False))
    for name, role in given.items():
        if not isinstance(role, str) or role.startswith(GROUP):
            raise ValueError(f"roles[{name!r}]={role!r}: a role is a word that does not begin with {GROUP!r}")
        if name not in known:
            why = "its parameters have no names: pass the model, or build its groups with weightdecay.param_groups"
            meant = hint(name, known, otherwise=f"it has {', '.join(list(known)[:3])}, …") if known else why
            raise ValueError(f"roles names {name!r}, which is no parameter of the optimizer; {meant}")
    return {known[name]: role for name, role in given.items()}
