"""What the checks look at: a model, its optimizer and its schedulers, read once."""

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from weightdecay.analysis.remaining import ahead
from weightdecay.analysis.units import share
from weightdecay.audit.doctor.cure import MOST, Run, tempered, was_trained
from weightdecay.audit.doctor.decay_law import Law, decay_now, decay_of, lambda_key, laws_of, plain
from weightdecay.audit.doctor.probe import Step, replay
from weightdecay.groups.params import Param, params_of
from weightdecay.groups.roles import role_of
from weightdecay.optim import hyperparameters
from weightdecay.optim.saved_state import known_names
from weightdecay.optim.unwrap import bare, innermost
from weightdecay.validation import number, whole

ASSUMED_STEPS = 10_000
"""How far a run is looked ahead whose length nobody says."""


@dataclass(frozen=True, eq=False)
class Member:
    """A tensor in a group of the optimizer."""

    param: Param
    group: int
    role: str
    """Of `weightdecay.groups.ROLES`."""
    called: str
    """The role as the table of the groups writes it."""
    decays: bool
    """Whether such a tensor should, by its role."""
    lam: float
    in_model: bool

    @property
    def name(self) -> str:
        return self.param.name

    @property
    def tensor(self) -> Tensor:
        return self.param.tensor


class Case:
    """A model, one of its optimizers and what steps its learning rates; it is only read.

    Raises:
        TypeError, ValueError: what was passed is none of these, or a number of steps is none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: TorchOptimizer,
        scheduler: Any,
        steps: int | None,
        steps_per_epoch: float | None,
        pretrained: bool | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is {_called(model)}, not a torch.nn.Module: pass the model")
        self.model = model
        self.optimizer = _inside(optimizer)
        self.name = "optimizer"
        """What the code of a fix calls the optimizer."""
        self.all: Sequence[Case] = (self,)
        """The cases of all optimizers of the model, this one included."""
        self.schedulers = _schedulers(scheduler)
        self.epoch = None if steps_per_epoch is None else number("steps_per_epoch", steps_per_epoch, "(0, inf)")
        self.told_steps = whole("steps", steps) if steps is not None else _length(self.schedulers)
        if pretrained not in (None, True, False):
            raise TypeError(f"pretrained={pretrained!r} is not True, False or None")
        self.told_pretrained = pretrained
        self.groups: list[dict[str, Any]] = self.optimizer.param_groups
        try:
            self.params  # noqa: B018  # what cannot be read is refused here, and not by the first check
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            if Path(last.filename).is_relative_to(Path(__file__).parents[2]):
                raise
            what = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno}, in {last.name})"
            raise RuntimeError(f"the parameters of the model, a {type(model).__name__}, cannot be listed: {what}") from error

    # The tensors ------------------------------------------------------------------------------------------------------------

    @cached_property
    def is_flattened(self) -> bool:
        """Return whether FSDP1 has put whole layers into vectors."""
        params = (param for group in self.groups for param in group["params"])
        return any(getattr(each, "_is_flat_param", False) for each in params) or any(
            getattr(module, "_flat_param", None) is not None for module in self.model.modules()
        )

    @cached_property
    def params(self) -> list[Param]:
        """Return every tensor of the model once."""
        return params_of(self.model.named_parameters() if self.is_flattened else self.model)

    @cached_property
    def members(self) -> list[Member]:
        """Return every tensor of the optimizer, as often as it holds it."""
        known = {id(param.tensor): param for param in self.params}
        found = []
        for index, group in enumerate(self.groups):
            names = known_names(group) or [f"param_groups[{index}][{place}]" for place in range(len(group["params"]))]
            for tensor, name in zip(group["params"], names, strict=True):
                param = known.get(id(tensor)) or params_of([(str(name), tensor)])[0]
                role, called = role_of(param)
                found.append(
                    Member(param, index, role.name, called, role.decays, decay_of(group), in_model=id(tensor) in known)
                )
        return found

    @property
    def is_first(self) -> bool:
        """Return whether what is true of the model, whatever its optimizers, is to be said here."""
        return self.all[0] is self

    @property
    def everywhere(self) -> str:
        """Return in which optimizers what is true of the model is found, where there are several."""
        return "all" if len(self.all) > 1 else ""

    @property
    def decaying(self) -> list[Member]:
        """Return the members that λ does something to: a frozen tensor without a gradient is not even stepped, by most."""
        return [
            each
            for each in self.members
            if each.lam > 0
            and (law := self.laws[each.group]).kind != "none"
            and (each.tensor.requires_grad or each.tensor.grad is not None or law.moves_without_gradient)
        ]

    # What the optimizer does -------------------------------------------------------------------------------------------------

    @cached_property
    def laws(self) -> list[Law]:
        """Return what λ does, by group."""
        return laws_of(self.optimizer)

    @cached_property
    def runs(self) -> list[Run]:
        """Return the steps to come, by group: a copy of the schedulers is run ahead."""
        foreseen = [each for each in self.schedulers if self.is_mine(each) and not isinstance(each, ReduceLROnPlateau)]
        try:
            return self._ahead(foreseen)
        except Exception:  # a scheduler of some other kind, whose step() wants more than torch's does
            self.unforeseen = True
            return self._ahead([])

    def _ahead(self, schedulers: Sequence[Any]) -> list[Run]:
        if not self.groups:
            return []
        steps, epoch = self.told_steps or 0, self.epoch or 0.0
        every = max(1, round(epoch)) if any(_is_per_epoch(each, steps, epoch) for each in schedulers if epoch) else 1
        found: list[list[tuple[float, float, float | None]]] = [[] for _ in self.groups]
        for groups in ahead(self.optimizer, schedulers, self.told_steps or ASSUMED_STEPS, every=every):
            if found[0] and not self.told_steps and any(plain(group.get("lr")) < 0 for group in groups):
                break  # a schedule that falls to zero ends there, whatever length was assumed
            for so_far, group, law in zip(found, groups, self.laws, strict=True):
                now = plain(group.get("lr")), decay_now(group)
                is_as_before = bool(so_far) and so_far[-1][:2] == now
                share = so_far[-1][2] if is_as_before else _share(law, group, *now)
                so_far.append((*now, share))
                hyperparameters.count(group)
        return [Run(lrs, lams, _whole(shares)) for lrs, lams, shares in (zip(*each, strict=True) for each in found)]

    @property
    def steps(self) -> int:
        """Return how many steps are looked ahead."""
        return len(self.runs[0].lrs) if self.runs else self.told_steps or ASSUMED_STEPS

    unforeseen = False
    """Whether the schedulers could not be run ahead, so that lr is taken to stay."""

    def is_mine(self, scheduler: Any) -> bool:
        """Return whether a scheduler writes into this optimizer, as far as it tells."""
        target = getattr(scheduler, "optimizer", None)
        return target is None or innermost(target) is self.optimizer

    def replay(self, member: Member, gradient: float = 0.0, **changes: Any) -> Step | None:
        """Do one step of a copy on a piece of a tensor; see `weightdecay.audit.doctor.probe`."""
        return replay(self.optimizer, self.groups[member.group], member.tensor, gradient, **changes)

    def sample(self, members: Sequence[Member]) -> Member | None:
        """Return the member with the most values, whose piece tells the most."""
        return max(members, key=lambda each: each.tensor.numel(), default=None)

    # How to say it -------------------------------------------------------------------------------------------------------

    @property
    def horizon(self) -> str:
        """Return the steps that are looked ahead, in words."""
        return f"{self.steps:,} steps" + ("" if self.told_steps else " (assumed: pass steps=)")

    def left_in_words(self, indices: Iterator[int] | Sequence[int]) -> str:
        """Say what the decay leaves of tensors of these groups."""
        left = [self.runs[index].left for index in dict.fromkeys(indices)]
        known = [each for each in left if each is not None]
        if not known:
            return "no one share: the decay goes through the optimizer, and weights with small gradients lose most"
        ends = share(min(known)) if max(known) - min(known) < 1e-3 else f"{share(min(known))} to {share(max(known))}"
        return f"without a gradient they end at {ends} of their start: ∏(1 − s) over {self.horizon}"

    # What a fix may do -------------------------------------------------------------------------------------------------------

    @cached_property
    def pretrained(self) -> bool | None:
        """Return whether the weights were trained before: as it was said, else as the model shows it; None if nobody knows."""
        return was_trained(self.model, self.params) if self.told_pretrained is None else self.told_pretrained

    def with_lambda(self, index: int, lam: float, law: Law | None = None, lr: float | None = None) -> Run:
        """Return the steps to come of a group as they would be with another λ at its start, under another law, or at one lr."""
        run, law, group = self.runs[index], law or self.laws[index], self.groups[index]
        start = decay_of(group)
        lams = tuple(lam * each / start for each in run.lams) if start else (lam,) * len(run.lams)
        numbers = {key: value for key, value in group.items() if key not in hyperparameters.SCHEDULES.values()}
        key, known = lambda_key(group) or "weight_decay", {}
        lrs = run.lrs if lr is None else (lr,) * len(run.lrs)
        for eta, now in dict.fromkeys(zip(lrs, lams, strict=True)):
            given = {**numbers, "lr": eta, "weight_decay": now, key: now}
            known[eta, now] = _share(law, given, eta, now)
        return Run(lrs, lams, _whole([known[each] for each in zip(lrs, lams, strict=True)]))

    def tempered(self, index: int, lam: float, law: Law | None = None, now: float | None = None) -> tuple[float, Run]:
        """Return the λ that a fix may set in a group, up to one, and the run with it.

        It destroys nothing, and of weights that were trained before, or may have been, it takes no more than a tenth, unless
        the run takes more as it is.

        Args:
            index: the group whose learning rates count.
            lam: λ as it is wanted.
            law: what λ does by the fix, where that is another law.
            now: what the run leaves as it is of the weights that the fix is for; None where that is not known.
        """
        least = 0.0 if self.pretrained is False else min(1 - MOST, 1.0 if now is None else max(now, 1e-12))
        return tempered(lam, lambda each: self.with_lambda(index, each, law), least)


def cases_of(
    model: nn.Module,
    optimizers: Any,
    scheduler: Any,
    steps: int | None,
    steps_per_epoch: float | None,
    pretrained: bool | None = None,
) -> list[Case]:
    """Return the cases of a model with one optimizer or several, each with the schedulers that write into it.

    Raises:
        TypeError, ValueError: as for `Case`; there is no optimizer, or one of them twice.
    """
    if not isinstance(optimizers, list | tuple):
        return [Case(model, optimizers, scheduler, steps, steps_per_epoch, pretrained)]
    if not optimizers:
        raise ValueError(f"optimizer is an empty {type(optimizers).__name__}: pass the optimizer, or those that there are")
    found = [Case(model, each, scheduler, steps, steps_per_epoch, pretrained) for each in optimizers]
    if len({id(each.optimizer) for each in found}) < len(found):
        raise ValueError("optimizer holds the same one twice: pass each once")
    for index, each in enumerate(found if len(found) > 1 else ()):
        each.name, each.all = f"optimizers[{index}]", found
        # What is nobody's is the first one's, and said once.
        each.schedulers = [
            one for one in each.schedulers if each.is_mine(one) or (index == 0 and not any(of.is_mine(one) for of in found))
        ]
    return found


def _schedulers(given: Any) -> list[Any]:
    """Return the schedulers that were passed, each out of accelerate's wrapper, which holds one."""
    several = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    for place, each in enumerate(several):
        several[place] = each = bare(each)
        if isinstance(each, type) or not callable(getattr(each, "step", None)):
            raise TypeError(f"scheduler is {_called(each)}, which has no step(): pass a scheduler of torch's kind")
    return several


def _inside(optimizer: Any) -> TorchOptimizer:
    """Return the optimizer that wrappers such as accelerate's hold, or refuse what is none."""
    found = innermost(optimizer)
    if not isinstance(found, TorchOptimizer):
        several = ": pass several as a list" if isinstance(optimizer, Mapping) else ": pass what has param_groups"
        raise TypeError(f"optimizer is {_called(optimizer)}, not a torch.optim.Optimizer{several}")
    return found


def _called(thing: Any) -> str:
    return f"the class {thing.__name__} itself" if isinstance(thing, type) else f"a {type(thing).__name__}"


def _length(schedulers: Sequence[Any]) -> int | None:
    """Return the length of the run that a scheduler was made for, where it says one."""
    lengths = [getattr(each, "total_steps", None) or getattr(each, "T_max", None) for each in schedulers]
    return max((each for each in lengths if isinstance(each, int) and each > 0), default=None)


def _is_per_epoch(scheduler: Any, steps: int, epoch: float) -> bool:
    """Return whether a scheduler counts epochs: what it counts would fit into the run, each an epoch long."""
    counts = [getattr(scheduler, name, None) for name in ("total_steps", "T_max", "step_size")]
    counts += list(getattr(scheduler, "milestones", ()))
    numbers = [each for each in counts if isinstance(each, int) and each > 0]
    return bool(numbers) and max(numbers) * epoch <= 1.5 * steps


def _whole(shares: Sequence[float | None]) -> tuple[float, ...] | None:
    return tuple(share for share in shares if share is not None) if all(map(_is_share, shares)) else None


def _share(law: Law, group: Mapping[str, Any], lr: float, lam: float) -> float | None:
    return 0.0 if lam == 0 else None if math.isnan(lr) else law.share(group)


def _is_share(share: float | None) -> bool:
    """Return whether a step takes a share: with an lr that is negative or no number it takes none."""
    return share is not None and 0 <= share < math.inf


def by_group(members: Sequence[Member]) -> Mapping[int, list[Member]]:
    """Return the members of each group."""
    found: dict[int, list[Member]] = {}
    for each in members:
        found.setdefault(each.group, []).append(each)
    return found


def names(members: Sequence[Member]) -> tuple[str, ...]:
    """Return the names of members."""
    return tuple(each.name for each in members)
