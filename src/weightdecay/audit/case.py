"""What the checks look at: a model, its optimizer and its schedulers, read once."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from weightdecay import hyperparameters, presets
from weightdecay.arguments import number, whole
from weightdecay.attachment import Attachment
from weightdecay.audit.law import Law, decay_now, decay_of, laws_of, plain
from weightdecay.audit.replay import Step, replay
from weightdecay.forecast import ahead
from weightdecay.groups.params import Param, params_of
from weightdecay.groups.roles import role_of
from weightdecay.optimizer import Optimizer
from weightdecay.presets.preset import Options
from weightdecay.wrappers import innermost

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


@dataclass(frozen=True)
class Run:
    """The steps to come of one group."""

    lrs: tuple[float, ...]
    lams: tuple[float, ...]
    shares: tuple[float, ...] | None
    """Of itself, what a weight without a gradient loses in each step; None where weights lose different shares."""

    @cached_property
    def left(self) -> float | None:
        """Return what the steps leave of a weight without a gradient."""
        if self.shares is None:
            return None
        if any(share >= 1 for share in self.shares):
            return math.prod(1 - share for share in self.shares)
        return math.exp(math.fsum(math.log1p(-share) for share in self.shares))

    @property
    def peak(self) -> float:
        """Return the largest learning rate, NaN aside."""
        return max((lr for lr in self.lrs if lr == lr), default=math.nan)

    @property
    def largest(self) -> float:
        """Return the largest share that a step takes, 0 where there is none to tell."""
        return max(self.shares or (0.0,))


class Case:
    """A model, one of its optimizers and what steps its learning rates; it is only read.

    Raises:
        TypeError, ValueError: what was passed is none of these, or a number of steps is none.
    """

    def __init__(
        self, model: nn.Module, optimizer: TorchOptimizer, scheduler: Any, steps: int | None, steps_per_epoch: float | None
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
        self.groups: list[dict[str, Any]] = self.optimizer.param_groups
        self.params  # noqa: B018  # what cannot be read is refused here, and not by the first check

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
            names = group.get("param_names") or ()
            if len(names) != len(group["params"]):
                names = [f"param_groups[{index}][{place}]" for place in range(len(group["params"]))]
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
        """Do one step of a copy on a piece of a tensor; see `weightdecay.audit.replay`."""
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
        ends = f"{min(known):.3g}" if max(known) - min(known) < 1e-3 else f"{min(known):.3g} to {max(known):.3g}"
        return f"without a gradient they end at {ends} of their start: ∏(1 − s) over {self.horizon}"

    @property
    def call(self) -> str:
        """Return the optimizer's class as code."""
        cls = type(self.optimizer)
        if cls.__module__.startswith("torch.optim"):
            return f"torch.optim.{cls.__name__}"
        return f"wd.{cls.__name__}" if cls.__module__.startswith("weightdecay") else cls.__name__

    def made(self, params: str = "", *, call: str = "", anew: bool = False, **changes: Any) -> str:
        """Return code that makes the optimizer anew, with the numbers that it has now and the class takes.

        Args:
            params: code for what it is to train; by default, groups with the largest λ there is.
            call: another class, of torch.optim or of this package's presets.
            anew: whether what the optimizer holds now says nothing of what it is to hold.
            changes: other keywords.
        """
        lam = max((each.lam for each in self.members), default=0.0)
        params = params or f"wd.param_groups(model, weight_decay={lam:g})"
        settings, before = self._settings(), ""
        if len(self.all) > 1:
            before, params = (f"groups = {params}  # of these, what it is to train\n", "groups") if anew else self._own(params)
        if call:
            module, _, name = call.rpartition(".")
            takes = _keywords(getattr(presets if module == "wd" else torch.optim, name))
            not_theirs = {"foreach", "fused"} if module == "wd" else set()
            settings = {key: value for key, value in settings.items() if key in takes and key not in not_theirs}
        given = "".join(f", {key}={value!r}" for key, value in {**settings, **changes}.items())
        code = f"{before}{self.name} = {call or self.call}({params}{given})"
        attachment = Attachment.of(self.optimizer)
        if attachment is not None and not call and "weight_decay" not in changes:
            of_decay = {} if attachment.rounding in ("auto", "nearest") else {"rounding": attachment.rounding}
            given = "".join(f", {key}={value!r}" for key, value in {**of_decay, **attachment.numbers}.items())
            code += f'\nwd.attach({self.name}, "{attachment.decay.name}"{given})'
        return f"import weightdecay as wd\n{code}" if "wd." in code else code

    def _own(self, params: str) -> tuple[str, str]:
        """Return code for what this optimizer is to train, of what several train: what goes before, and the argument."""
        held = f'held = {{param for group in {self.name}.param_groups for param in group["params"]}}\n'
        if not params.startswith("wd.param_groups("):
            return held, f"[param for param in {params} if param in held]"
        kept = 'kept := [param for param in group["params"] if param in held]'
        return f'{held}groups = [\n    {{**group, "params": kept}}\n    for group in {params}\n    if ({kept})\n]\n', "groups"

    @property
    def decoupled(self) -> str:
        """Return, as code, the optimizer with such a direction whose decay stands beside the step."""
        if "momentum" in self.groups[0] and "betas" not in self.groups[0]:
            return "wd.SGDW"
        return "wd.AdamW" if self.call.startswith("wd.") else "torch.optim.AdamW"

    def _settings(self) -> dict[str, Any]:
        """Return lr and what else the first group has otherwise than the class's defaults, λ aside."""
        group = self.groups[0]
        lr = plain(group.get("initial_lr", group.get("lr")))
        found: dict[str, Any] = {"lr": lr} if math.isfinite(lr) else {}
        for key, parameter in _keywords(type(self.optimizer)).items():
            value = hyperparameters.unified(group.get(key))
            differs = key in group and not _holds_tensor(value) and value != parameter.default
            if differs and key not in ("lr", "params", "weight_decay"):
                found[key] = value
        return found


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple) and any(isinstance(each, Tensor) for each in value))


def _keywords(cls: type) -> dict[str, inspect.Parameter]:
    """Return what a class takes by name; this package's presets take the options of all, too."""
    found = dict(inspect.signature(cls).parameters)
    if issubclass(cls, presets.Preset):
        general = inspect.signature(Optimizer).parameters
        found |= {name: general[name] for name in Options.__annotations__}
    return found


def cases_of(model: nn.Module, optimizers: Any, scheduler: Any, steps: int | None, steps_per_epoch: float | None) -> list[Case]:
    """Return the cases of a model with one optimizer or several, each with the schedulers that write into it.

    Raises:
        TypeError, ValueError: as for `Case`; there is no optimizer, or one of them twice.
    """
    if not isinstance(optimizers, list | tuple):
        return [Case(model, optimizers, scheduler, steps, steps_per_epoch)]
    if not optimizers:
        raise ValueError(f"optimizer is an empty {type(optimizers).__name__}: pass the optimizer, or those that there are")
    found = [Case(model, each, scheduler, steps, steps_per_epoch) for each in optimizers]
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
        several[place] = each = getattr(each, "scheduler", each)
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
