"""The decay law of a running optimizer's group: from its rules, from what is known of torch.optim, or from experiment."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from weightdecay.analysis.units import Settings, swings
from weightdecay.audit.identify.hypotheses import Powers
from weightdecay.audit.identify.identify import identify
from weightdecay.optim import hyperparameters, schedules
from weightdecay.optim.attach import DECAY, LAMBDA, Attachment
from weightdecay.optim.optimizer import Optimizer
from weightdecay.optim.torch_equivalents import TORCH
from weightdecay.update_rules.registry import REGISTRY
from weightdecay.update_rules.rule import Rule

Share = Callable[[Mapping[str, Any]], float | None]
"""From the numbers of a group to the share of itself that a weight without a gradient loses in a step."""
_NOT_FLAGS = {"params", "lr", "weight_decay", "foreach", "fused", "capturable", "differentiable"}
"""Keywords that decide nothing about λ: an unknown class is tried on its plain path, on the CPU."""


@dataclass(frozen=True)
class Law:
    """What λ does in one group of an optimizer."""

    kind: str
    """As in `weightdecay.identify`: "decoupled", "coupled", "independent", "none", "constant", …"""
    text: str
    source: str
    """What says so: "torch.optim", "its rules", "experiment" or "nothing"."""
    share: Share
    moves_without_gradient: bool = False
    """Whether it decays tensors whose grad is None."""


def plain(value: Any, default: float = math.nan) -> float:
    """Return a number of a group, a tensor's or NumPy's too, as a float; what is no number is NaN.

    >>> import torch
    >>> plain(torch.tensor(0.5)), plain("x"), plain(10**400)
    (0.5, nan, inf)
    """
    single = getattr(value, "item", None) if getattr(value, "size", None) == 1 or isinstance(value, Tensor) else None
    if isinstance(value, Tensor) and (value.numel() != 1 or value.is_meta):
        return default
    found = single() if callable(single) else value
    if not isinstance(found, Real):
        return default
    try:
        return float(found)
    except OverflowError:
        return -math.inf if found < 0 else math.inf


def decay_of(group: Mapping[str, Any]) -> float:
    """Return the λ of a group as it stands there: the larger one where it has a penalty's too; 0 of what is no number."""
    found = [plain(group[key]) for key in _lambdas(group)]
    return max((each for each in found if math.isfinite(each)), default=0.0)


def decay_now(group: Mapping[str, Any]) -> float:
    """Return the λ of a group's next step: what stands there times the share of its schedule, if it has one."""
    found = [_scheduled(group, key) for key in _lambdas(group)]
    return max((each for each in found if math.isfinite(each)), default=0.0)


def _scheduled(group: Mapping[str, Any], key: str) -> float:
    """Return λ of the next step; somebody else's optimizer may keep anything under the key of a schedule."""
    schedule = group.get(f"{key}_schedule")
    is_ours = isinstance(schedule, Mapping) and schedule.get("name") in schedules.NAMES
    return plain(hyperparameters.scheduled(group, key) if is_ours else group[key])


def lambda_key(group: Mapping[str, Any]) -> str | None:
    """Return the key of a group under which its λ stands; None where it has none."""
    return max(_lambdas(group), key=lambda key: plain(group[key], 0.0), default=None)


def _lambdas(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of a group under which λ is found: one alone where a decay is attached, which replaces the others."""
    if LAMBDA in group:
        return () if group.get(DECAY) == "none" else (LAMBDA,)
    return tuple(key for key in ("weight_decay", "penalty_weight") if key in group)


def laws_of(optimizer: TorchOptimizer) -> list[Law]:
    """Return the law of each group; an unknown class is tried once with each set of flags."""
    attachment = Attachment.of(optimizer)
    if attachment is not None:
        return [_of_attached(attachment)] * len(optimizer.param_groups)
    tried: dict[str, Law] = {}
    found = []
    for group in optimizer.param_groups:
        law = _of_ours(optimizer, group) if isinstance(optimizer, Optimizer) else _of_torch(type(optimizer), group)
        if law is None:
            flags = _flags(type(optimizer), group)
            key = repr(flags)
            law = tried[key] = tried[key] if key in tried else _by_experiment(type(optimizer), flags)
        found.append(law)
    return found


def _of_ours(optimizer: Optimizer, group: Mapping[str, Any]) -> Law:
    equation = optimizer.equation(group)
    decays = plain(group["weight_decay"]) > 0 or equation.penalty is None
    if equation.penalty is not None and not (decays and equation.decay.name != "none"):
        return Law("coupled", str(equation), "its rules", _coupled(equation.direction.name, equation.penalty.name))
    return _of_decay(equation.decay, str(equation), lambda numbers: optimizer.numbers(numbers, 1)["decay"])


def _of_attached(attachment: Attachment) -> Law:
    decay = attachment.decay

    def numbers(group: Mapping[str, Any]) -> Mapping[str, Any]:
        return hyperparameters.numbers(decay, {**group, **attachment.numbers}, lam=LAMBDA, t=1.0)

    return _of_decay(decay, f"{decay.name} decay, attached", numbers)


def _of_decay(decay: Rule, text: str, numbers: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Law:
    """Return the law of a decay beside the gradient; `numbers` are the rule's, from a group."""

    def share(group: Mapping[str, Any]) -> float | None:
        given = numbers(group)
        if decay.keeps or not set(decay.numbers) <= set(given):  # it remembers, or asks for norms: no one share
            return None
        return 1 - float(decay.function(1.0, 0.0, **{name: plain(value) for name, value in given.items()}))

    kind = decay.name if decay.name in ("none", "independent") else "decoupled"
    return Law(kind, text, "its rules", share)


def _of_torch(cls: type, group: Mapping[str, Any]) -> Law | None:
    row = TORCH.get(cls)
    if row is None:
        return None
    kind = row.kind_in(group)
    if kind == "decoupled":
        return DECOUPLED
    if kind == "none":
        return Law("none", "it takes no weight_decay", "torch.optim", lambda group: 0.0)
    direction = row.preset.direction if row.preset else "of its own"
    return Law("coupled", "λ·w is added to the gradient", "torch.optim", _coupled(direction, "l2"))


def _without_own_methods(cls: type) -> type:
    """Return the class whose methods a class has that is only made in another way: what λ does is the same."""
    while not any(callable(each) and name != "__init__" and not _is_inherited(cls, name) for name, each in vars(cls).items()):
        if cls in TORCH or cls is object:
            break
        cls = cls.__mro__[1]
    return cls


def _is_inherited(cls: type, name: str) -> bool:
    """Return whether a method is its parent's: the first optimizer that is made wraps the step of its class."""
    own, inherited = (inspect.unwrap(getattr(each, name, None)) for each in (cls, cls.__mro__[1]))  # type: ignore[arg-type]
    return own is inherited


def _decoupled(group: Mapping[str, Any]) -> float:
    eta, lam = plain(group["lr"]), plain(group["weight_decay"])
    return 1 - float(REGISTRY["decay", "decoupled"].function(1.0, 0.0, eta=eta, lam=lam))


DECOUPLED = Law("decoupled", "a step takes lr·λ of the weight", "torch.optim", _decoupled)
"""That of torch's AdamW, and of this package's presets that are called like it."""


def _coupled(direction: str, penalty: str) -> Share:
    """Return the share that L2 takes in the long run, for SGD; an adaptive direction takes no one share."""

    @lru_cache
    def swinging(lam: float, momentum: float, dampening: float, power: int) -> bool:
        """Tell it for the lr of a power of two: a schedule has too many to ask of each."""
        return momentum > 0 and swings(2.0**power, lam, momentum, dampening)

    def share(group: Mapping[str, Any]) -> float | None:
        lr, momentum, less = (plain(group.get(key, 0.0)) for key in ("lr", "momentum", "dampening"))
        lam = _scheduled(group, "penalty_weight" if "penalty_weight" in group else "weight_decay")
        if lr == 0 or lam == 0:
            return 0.0
        if direction != "sgd" or penalty != "l2" or swinging(lam, momentum, less, math.ceil(math.log2(lr))):
            return None
        given = Settings(between=("coupled", "torch"), lr=lr, momentum=momentum, dampening=less if momentum else 0.0)
        return _decoupled({"lr": lr, "weight_decay": given.to_torch("coupled", lam)})

    return share


def _flags(cls: type, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a group says that the class takes as keywords, λ and lr aside."""
    try:
        takes = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return {}
    return {k: v for k, v in group.items() if k in takes and k not in _NOT_FLAGS and not isinstance(v, Tensor)}


def _by_experiment(cls: type, flags: Mapping[str, Any]) -> Law:
    try:
        found = identify(partial(cls, **flags) if flags else cls, name=cls.__name__)
    except Exception as error:  # whatever an unknown class raises
        inherited = _of_torch(_without_own_methods(cls), flags)
        return inherited or Law("unknown", f"{cls.__name__} could not be tried: {error}", "nothing", lambda group: None)
    moves = getattr(found.findings.get("grad=None"), "verdict", "") == "moves"
    known: Powers | None = found.strength if found.kind in ("decoupled", "independent", "proximal") else None

    def share(group: Mapping[str, Any]) -> float | None:
        lam, lr = decay_of(group), plain(group["lr"])
        if lam == 0 or found.kind == "none":
            return 0.0
        return None if known is None else known.strength(lam, lr, plain(group.get("initial_lr", lr)))

    return Law(found.kind, found.text, "experiment", share, moves)
