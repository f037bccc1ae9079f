"""Schedulers: what torch calls after each step to change λ, for any optimizer; and warm restarts, which change λ and lr."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from numbers import Real
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LRScheduler

from weightdecay.optim import schedules
from weightdecay.optim.attach import LAMBDA, Attachment
from weightdecay.optim.hyperparameters import peak_lr, refuse_following_twice, remember_lr, warn_above_peak
from weightdecay.optim.optimizer import Optimizer, Schedule
from weightdecay.optim.torch_equivalents import TORCH
from weightdecay.optim.unwrap import innermost
from weightdecay.update_rules.rule import Rule
from weightdecay.validation import choice, number, unboxed, whole

_UNITS = ("torch", "independent")
"""torch's optimizers that shrink weights by lr·weight_decay beside the step; others have a flag for it."""

Share = Callable[[int], Any]


class WeightDecayScheduler(LRScheduler):
    """Change λ after each step, in shares of what each parameter group started with; the learning rate stays as it is.

    A scheduler of torch's like any other: step it beside the one of the learning rate, chain the two, save and load it. A
    group whose λ is 0 keeps it. λ as a tensor is filled in place, so that compiled and captured steps see it. After
    `load_state_dict` λ is what it was, whether the optimizer's state is loaded before or after.

    Args:
        optimizer: any torch optimizer whose groups have a λ.
        schedule: what λ is multiplied by. A name with its numbers as keywords, or both in a dict, as
            `weight_decay_schedule` of this package's optimizers takes it; a function of the number of steps done; or a list
            with one of these for each group. A function is not saved, as with torch's LambdaLR: the one that the scheduler is
            made with is used again. Of a callable object `__dict__` is saved.
        key: of λ in the groups, such as "penalty_weight"; where `weightdecay.attach` has attached a decay, the λ of that.
        last_epoch: the number of steps done before, less one, to resume without a saved state.
        numbers: of the named schedule: `steps`, `warmup`, `final` ("linear", "cosine"), `warmup` ("constant"), `every`,
            `factor` ("step"), `steps` ("inverse_time": 1/(1 + t/steps)). "constant_timescale" (λ·lr_max/lr) and "follow_lr"
            (λ·lr/lr_max) look at the learning rate and so have to be stepped after the scheduler that sets it.

    Raises:
        TypeError, ValueError: a schedule that cannot be meant, a share that is negative or not finite, an optimizer without
            λ or with a schedule of its own. No λ has changed then.
        KeyError: `last_epoch` is given and the groups do not know what they started with.

    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.5, weight_decay=0.5)
    >>> scheduler = WeightDecayScheduler(optimizer, "linear", steps=4)
    >>> for _ in range(3):
    ...     optimizer.step()
    ...     scheduler.step()
    >>> scheduler.get_last_lambda(), optimizer.param_groups[0]["lr"]
    ([0.125], 0.5)

    Source: λ_t is scheduled as by Caron et al. 2021, arXiv:2104.14294 (DINO, a cosine), and others.
    """

    def __init__(
        self,
        optimizer: TorchOptimizer,
        schedule: Schedule | Share | Sequence[Schedule | Share],
        *,
        key: str = "weight_decay",
        last_epoch: int = -1,
        **numbers: Any,
    ) -> None:
        if key == "weight_decay" and _attached(optimizer) is not None:
            key = LAMBDA
        several = list(schedule) if isinstance(schedule, list | tuple) else [schedule]
        if numbers and not all(isinstance(each, str | Mapping) for each in several):
            raise TypeError(f"{', '.join(numbers)}: a function takes no numbers of a schedule")
        self.schedules = [each if callable(each) else schedules.checked("schedule", each, numbers) for each in several]
        self._check_groups(optimizer, key, last_epoch)
        self._check_number(optimizer)
        self._check_schedules(optimizer, self.schedules)
        for index, group in enumerate(optimizer.param_groups):
            if schedules.by_lr(self._schedule(index)):
                group.setdefault("lr_at_start", _copied(group["lr"]))
        super().__init__(optimizer, last_epoch)

    def _check_groups(self, optimizer: TorchOptimizer, key: str, last_epoch: int) -> None:
        """Refuse an optimizer whose λ cannot be scheduled."""
        if not isinstance(optimizer, TorchOptimizer):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}, not an optimizer: pass what has the step() method")
        if key == "lr":
            raise ValueError(
                "key='lr' is the learning rate, which torch's own schedulers set: name a λ, such as 'weight_decay'"
            )
        self.key = key
        for index, group in enumerate(optimizer.param_groups):
            where = f"param_groups[{index}]"
            if key not in group:
                raise ValueError(f"{where} of the {type(optimizer).__name__} has no {key!r} that could be scheduled")
            lam = unboxed(group[key])
            if isinstance(lam, bool) or not isinstance(lam, Real | Tensor):
                raise TypeError(f"{key}={group[key]!r} in {where} is not a number that could be scheduled")
            if group.get(f"{key}_schedule") is not None:
                raise ValueError(f"{where} has a {key}_schedule of its own: leave that or the scheduler out")
            if last_epoch != -1 and f"initial_{key}" not in group:
                raise KeyError(
                    f"'initial_{key}' is not in {where}, so last_epoch={last_epoch} cannot be resumed: load the optimizer's "
                    "state first, or leave last_epoch out and load the scheduler's state"
                )

    def _check_number(self, optimizer: TorchOptimizer) -> None:
        count = len(optimizer.param_groups)
        if len(self.schedules) not in (1, count):
            raise ValueError(f"schedule has {len(self.schedules)} entries for {count} parameter groups: give one for each")

    def _check_schedules(self, optimizer: TorchOptimizer, several: Sequence[Schedule | Share]) -> None:
        """Refuse schedules that follow the lr where the decay does so by itself, as a group refuses them."""
        for index, decay in enumerate(_decays(optimizer) if self.key in ("weight_decay", LAMBDA) else ()):
            schedule = several[index if len(several) > 1 else 0]
            if isinstance(schedule, Mapping):
                refuse_following_twice(f"schedule={schedule['name']!r} for param_groups[{index}]", schedule, decay)

    def _schedule(self, index: int) -> Any:
        """Return the schedule of a group."""
        return self.schedules[index if len(self.schedules) > 1 else 0]

    # What torch calls ---------------------------------------------------------------------------------------------------

    def _update_lr(self, epoch: int | None = None) -> None:
        """Move on by a step, or to one, and write λ: torch's schedulers, and those that hold others, call this."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._write()
        self._last_lr = self.get_lr()

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates as they are."""
        return [_copied(group["lr"]) for group in self.optimizer.param_groups]

    def get_last_lambda(self) -> list[float | Tensor]:
        """Return λ of each group, as it is."""
        return [_copied(group[self.key]) for group in self.optimizer.param_groups]

    @torch.no_grad()
    def _write(self) -> None:
        """Write λ of the present step into the groups, or nothing where a share is refused."""
        groups = self.optimizer.param_groups
        shares = [self._share(index, group) for index, group in enumerate(groups)]
        for group, share in zip(groups, shares, strict=True):
            _put(group, self.key, group.setdefault(f"initial_{self.key}", _copied(group[self.key])) * share)
        following = [(f"param_groups[{at}]", group) for at, group in enumerate(groups) if schedules.by_lr(self._schedule(at))]
        warn_above_peak(following, type(self).__name__)
        for _, group in following:
            remember_lr(group)

    def _share(self, index: int, group: Mapping[str, Any]) -> Any:
        """Return by what the λ of a group is multiplied at the present step."""
        self._check_number(self.optimizer)
        schedule = self._schedule(index)
        if callable(schedule):
            return number(f"schedule({self.last_epoch})", schedule(self.last_epoch), "[0, inf)")
        return schedules.share(schedule, step=self.last_epoch, lr=group["lr"], peak=peak_lr(group))

    # What is saved ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data: schedules by name are in it, functions are not, of objects `__dict__` is."""
        state: dict[str, Any] = super().state_dict()
        if "schedules" in state:
            state["schedules"] = [_saved(each) for each in self.schedules]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, schedules included, and write its λ into the optimizer's groups."""
        state = dict(state_dict)
        if "schedules" in state:
            own, given = self.schedules, state["schedules"]
            if len(own) != len(given):
                raise ValueError(f"the loaded state has {len(given)} schedules, and this scheduler {len(own)}")
            state["schedules"] = [_loaded(mine, saved) for mine, saved in zip(own, given, strict=True)]
            self._check_schedules(self.optimizer, state["schedules"])
        super().load_state_dict(state)
        if self.last_epoch >= 0:  # SequentialLR loads those, too, whose time has not come
            self._write()

    def __repr__(self) -> str:
        shown = "; ".join(_shown(each) for each in self.schedules)
        return f"{type(self).__name__}({self.key}: {shown}; {self.last_epoch} steps done)"


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _put(group: dict[str, Any], key: str, value: Any) -> None:
    """Write a number into a group, into the tensor that is there if there is one."""
    there = group[key]
    if not isinstance(there, Tensor):
        group[key] = float(value)
    elif isinstance(value, Tensor):
        there.copy_(value.reshape(there.shape))
    else:
        there.fill_(value)


def _saved(schedule: Any) -> Any:
    if isinstance(schedule, FunctionType):
        return None
    return dict(schedule) if isinstance(schedule, dict) else dict(getattr(schedule, "__dict__", {}))


def _loaded(own: Any, saved: Any) -> Any:
    """Return the schedule to go on with; an object keeps being the same one."""
    if not saved:
        return own
    if callable(own) and not isinstance(own, FunctionType):
        own.__dict__.update(saved)
        return own
    return schedules.checked("the loaded schedule", saved)


def _shown(schedule: Any) -> str:
    if callable(schedule):
        return str(getattr(schedule, "__name__", type(schedule).__name__))
    return " ".join([schedule["name"], *(f"{key}={value}" for key, value in schedule.items() if key != "name")])


# Warm restarts ------------------------------------------------------------------------------------------------------------


class WarmRestarts(WeightDecayScheduler):
    """Anneal the learning rate in cosines that restart, with a λ for the length of each cycle: AdamWR and SGDWR.

    Within a cycle of n steps the learning rate falls from its peak to 0 as ½(1 + cos(πs/n)), and each cycle is `growth` times
    as long as the one before. λ is λ_norm/√n per step at the peak, so that a longer cycle decays less in each step. The good
    weights are those right before a restart, where the learning rate is almost 0: keep them whenever `has_restarted` is true.

    Args:
        optimizer: AdamW, SGDW or another whose decay is decoupled; the learning rate of each group is its peak.
        first_cycle: n of the first cycle, in steps of the scheduler (T_0 of the paper).
        growth: by what each cycle is longer than the one before (T_mult).
        lambda_norm: λ_norm, which replaces every λ that is not 0; 0.025 to 0.05 did well on CIFAR-10 and ImageNet32x32.
            None keeps each group's λ for the first cycle, and scales it for the others.
        unit: of λ in the groups: "torch" (per unit of lr: torch's AdamW) or "independent" (per step at the peak: the paper).
            None asks the optimizer.
        every: after how many steps of the optimizer the scheduler is stepped, such as the number of batches where that is
            done once an epoch.
        last_epoch: as in `WeightDecayScheduler`.

    Raises:
        TypeError, ValueError: a number that cannot be meant, or an optimizer whose decay has neither unit (L2, corrected), or
            is not known and `unit` is not given.

    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.001)
    >>> scheduler = WarmRestarts(optimizer, first_cycle=100, growth=2, lambda_norm=0.05)
    >>> scheduler.restarts(4)
    (100, 300, 700, 1500)
    >>> scheduler.get_last_lambda()  # 0.05/√100 per step, over lr 0.001
    [5.0]

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, section 4 and appendix B.1; 2017, arXiv:1608.03983 (restarts).
    """

    def __init__(
        self,
        optimizer: TorchOptimizer,
        first_cycle: int,
        growth: int = 1,
        *,
        lambda_norm: float | None = None,
        unit: str | None = None,
        every: int = 1,
        last_epoch: int = -1,
    ) -> None:
        self.first_cycle, self.growth = whole("first_cycle", first_cycle), whole("growth", growth)
        self.every = whole("every", every)
        self.lambda_norm = None if lambda_norm is None else number("lambda_norm", lambda_norm, "[0, inf)")
        if unit is not None:
            choice("unit", unit, _UNITS)
            if lambda_norm is None:
                raise TypeError(f"unit={unit!r} is of the λ that lambda_norm becomes: give lambda_norm=…, or leave it out")
        self._check_groups(optimizer, "weight_decay", last_epoch)
        attached = _attached(optimizer)
        if attached is not None:
            raise ValueError(
                f"the {attached.decay.name} decay is attached to this {type(optimizer).__name__}, and warm restarts set the λ "
                "of an optimizer's own: take a WeightDecayScheduler beside torch's CosineAnnealingWarmRestarts"
            )
        if self.lambda_norm is not None and last_epoch == -1:
            self._normalize(optimizer, self.lambda_norm / math.sqrt(self.first_cycle * self.every), unit)
        LRScheduler.__init__(self, optimizer, last_epoch)

    def _normalize(self, optimizer: TorchOptimizer, per_step: float, unit: str | None) -> None:
        """Make every group that decays start from this λ per step at its peak learning rate."""
        groups = [(index, group) for index, group in enumerate(optimizer.param_groups) if group["weight_decay"] != 0]
        units = [unit or _unit(optimizer, index) for index, _ in groups]
        for (index, group), its in zip(groups, units, strict=True):
            rate = float(group.get("initial_lr", group["lr"])) if its == "torch" else 1.0
            if rate == 0:
                raise ValueError(f"lambda_norm: param_groups[{index}] has lr 0, per unit of which there is no λ")
            first = group["weight_decay"]
            lam = per_step / rate
            group["initial_weight_decay"] = torch.full_like(first, lam) if isinstance(first, Tensor) else lam

    @property
    def cycle(self) -> tuple[int, int, int]:
        """Return where the run is: which cycle, from 0, the steps done in it, and its length."""
        index, done, length = 0, max(self.last_epoch, 0), self.first_cycle
        if self.growth == 1:
            return done // length, done % length, length
        while done >= length:
            index, done, length = index + 1, done - length, length * self.growth
        return index, done, length

    @property
    def has_restarted(self) -> bool:
        """Return whether the step that was just done was the last of a cycle: its weights are the ones to keep."""
        return self.last_epoch > 0 and self.cycle[1] == 0

    def restarts(self, count: int) -> tuple[int, ...]:
        """Return after how many steps the first cycles end: where the weights to keep are."""

        def ends() -> Any:
            end, length = 0, self.first_cycle
            while True:
                end, length = end + length, length * self.growth
                yield end

        return tuple(islice(ends(), whole("count", count)))

    def _schedule(self, index: int) -> Any:
        return None  # of a name: λ goes with the length of the cycle

    def _share(self, index: int, group: Mapping[str, Any]) -> float:
        return math.sqrt(self.first_cycle / self.cycle[2])

    @torch.no_grad()
    def _update_lr(self, epoch: int | None = None) -> None:
        super()._update_lr(epoch)
        _, done, length = self.cycle
        for group in self.optimizer.param_groups:
            _put(group, "lr", group.setdefault("initial_lr", _copied(group["lr"])) * schedules.cosine(done, length))
        self._last_lr = self.get_lr()

    def __repr__(self) -> str:
        index, done, length = self.cycle
        ends = ", ".join(f"{end:,}" for end in self.restarts(max(4, index + 2)))
        return (
            f"WarmRestarts: {done:,} of {length:,} steps done in cycle {index + 1}. The weights to keep are those after "
            f"{ends}, … steps, right before a restart."
        )


def _attached(optimizer: TorchOptimizer) -> Attachment | None:
    """Return the decay that is attached to an optimizer, or to the one inside a wrapper."""
    inner = innermost(optimizer)
    return Attachment.of(inner) if isinstance(inner, TorchOptimizer) else None


def _decays(optimizer: TorchOptimizer) -> list[Rule]:
    """Return the decay of each group where one is known: this package's, or what is attached."""
    inner, attached = innermost(optimizer), _attached(optimizer)
    if isinstance(inner, Optimizer):
        return [inner.equation(group).decay for group in optimizer.param_groups]
    return [] if attached is None else [attached.decay] * len(optimizer.param_groups)


def _unit(optimizer: TorchOptimizer, index: int) -> str:
    """Return the unit of the λ of a group's decay."""
    inner = innermost(optimizer)
    group, name = optimizer.param_groups[index], type(inner).__name__
    if isinstance(inner, Optimizer):
        decay = inner.equation(group).decay
        if decay.name == "independent":
            return "independent"
        if "lam" in decay.numbers and "eta_max" not in decay.numbers:
            return "torch"
        raise ValueError(f"lambda_norm: param_groups[{index}] is trained with {inner.equation(group)}, which has no such unit")
    row = TORCH.get(type(inner))
    if row is not None:
        if row.kind_in(group) == "decoupled":
            return "torch"
        has = "adds λ·w to the gradient" if row.kind == "coupled" else "has no weight_decay"
        raise ValueError(f"lambda_norm is for decoupled decay, and torch.optim.{name} {has}: use AdamW or weightdecay.SGDW")
    raise ValueError(f"lambda_norm: the unit of λ in a {name} is not known here: pass unit='torch' or unit='independent'")
