"""What the next step of a running optimizer does to each weight: w_t = g·w − η·h, in numbers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer as TorchOptimizer

from weightdecay.analysis.linear import is_factor
from weightdecay.backends import counting, eager, rounding
from weightdecay.display.table import aligned
from weightdecay.groups.names import without_wrappers
from weightdecay.optim.attach import Attachment
from weightdecay.optim.optimizer import Optimizer
from weightdecay.optim.presets import PRESETS, Adam, Preset
from weightdecay.optim.saved_state import moment_dtype, name_of
from weightdecay.optim.unwrap import innermost
from weightdecay.update_rules.equation import Equation
from weightdecay.update_rules.state import kept_for
from weightdecay.update_rules.traits import at_rest, is_uniform, rounded_away, steps_to_halve

_AS_TORCH = {"differentiable": False, "rounding": "nearest", "seed": 0, "weight_decay_schedule": None}
"""What of torch's step matters here or could be taken for ours: another may keep something under these keys of a group."""
_MOST_SORTED = 2**20
"""Of a larger tensor every n-th weight is looked at for a quantile; the ends are exact."""
_QUANTILES = (0.05, 0.5, 0.95)
_OURS: Mapping[type, type[Preset]] = {
    **{getattr(torch.optim, name): preset for name, preset in PRESETS.items() if hasattr(torch.optim, name)},
    torch.optim.AdamW: Adam,  # whose flag a group of torch's may turn round
}


@dataclass(frozen=True, eq=False)
class Split:
    """The next step of one parameter: w becomes g·w − lr·h, before it is rounded to the parameter's dtype.

    The tensors have the parameter's shape, in float32 or float64, as the step computes; a complex parameter's are those of
    `torch.view_as_real`. torch's optimizers compute bfloat16 and float16 parameters in that dtype and round each operation, so
    that what they do to one is g·w − lr·h only roughly, and a decay that is smaller than the rounding is lost.
    """

    name: str
    g: Tensor
    h: Tensor
    shrink: Tensor
    """1 − g, computed in float64: of a small one, g in float32 has lost the digits."""
    lr: float
    decoupled: float
    """The shrink that every weight gets from the decay, or would get from λ if that were decoupled; NaN if no one number."""
    rounding: float
    """The shrink up to which a decay alone changes no weight of the dtype; 0 where nothing is lost."""

    def summary(self) -> "Summary":
        """Return what the factors have in common: quantiles of the shrink 1 − g, its half-life, its spread."""
        shrink: Tensor = self.shrink.full_tensor() if hasattr(self.shrink, "full_tensor") else self.shrink  # of every rank
        shrink = shrink.double().flatten()
        if not shrink.numel():
            shrink = torch.zeros(1, dtype=torch.double)
        some = shrink[:: max(1, shrink.numel() // _MOST_SORTED)]
        low, median, high = torch.quantile(some, torch.tensor(_QUANTILES, dtype=torch.double, device=some.device)).tolist()
        weakest, strongest = shrink.min().item(), shrink.max().item()
        acting = shrink[shrink > 0]
        ratio = math.nan if math.isnan(strongest) else strongest / acting.min().item() if acting.numel() else 1.0
        return Summary(
            self.name, list(self.g.shape), weakest, low, median, high, strongest,
            acting.numel() / shrink.numel(), steps_to_halve(median), ratio,
            int(((shrink > 0) & (shrink <= self.rounding)).sum()) / shrink.numel(),
        )  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """One tensor's shrinks: 0.01 takes a hundredth of a weight away in one step."""

    name: str
    shape: list[int]
    weakest: float
    low: float
    median: float
    high: float
    strongest: float
    acting: float
    """The share of the weights that shrink at all."""
    half_life: float
    """In how many steps with just this g the median weight halves; with L2 past penalties in the momentum come on top."""
    ratio: float
    """The strongest shrink over the weakest that is not zero."""
    lost: float
    """The share of the weights whose shrink alone is rounded away."""

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data; what is not finite is None."""
        values = asdict(self)
        return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in values.items()}

    def cells(self) -> tuple[str, ...]:
        """Return the line of the table."""
        share = f"{self.acting:.0%}"
        shrinks = (f"{x:.3g}" for x in (self.weakest, self.median, self.strongest))
        life = f"{self.half_life:,.0f}" if math.isfinite(self.half_life) else str(self.half_life).replace("inf", "never")
        return self.name, str(tuple(self.shape)), *shrinks, share, f"{self.ratio:.3g}", life


_PAST = """\
g is of one step: the momentum holds past penalties as well, and in the long run weights shrink faster,
with SGD by 1/(1 − momentum), which wd.half_life and wd.derive count in"""


class Decomposition(Mapping[Tensor, Split]):
    """The splits of all parameters that have a gradient, by parameter; prints as a table of their shrinks."""

    header = ("tensor", "shape", "weakest", "median", "strongest", "decays", "strongest/weakest", "half-life of g")

    def __init__(self, title: str, splits: Mapping[Tensor, Split], *, remembers: bool = False) -> None:
        """Take the splits; `remembers` says that a buffer holds past penalties, whose effect no g has."""
        self.title, self._splits, self._remembers = title, dict(splits), remembers

    def __getitem__(self, param: Tensor) -> Split:
        if param not in self._splits:
            raise KeyError("only a parameter that had a gradient, the tensor itself, has a split here")
        return self._splits[param]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)

    def summary(self) -> list[Summary]:
        """Return a line per tensor."""
        return list(self._summary)

    @cached_property
    def _summary(self) -> list[Summary]:
        return [split.summary() for split in self.values()]

    def __str__(self) -> str:
        rows = [self.header, *(each.cells() for each in self.summary())]
        lines = aligned(rows)
        if self._remembers:
            lines += ["", *_PAST.splitlines()]
        lost = [each.name for each in self._summary if each.lost > 0]
        if lost:
            some = ", ".join(lost[:3]) + (", …" if len(lost) > 3 else "")
            lines += ["", f"rounded away in {len(lost)} of {len(self)} tensors, whose dtype has no such small step: {some}"]
        return "\n".join([f"{self.title}: the share 1 − g that each weight loses in the next step", "", *lines])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return {"optimizer": self.title, "tensors": [each.to_dict() for each in self.summary()]}

    def plot(self, path: str | Path) -> None:
        """Draw how the shrink spreads in each tensor, against the one number of decoupled decay, into a .png or .svg.

        Needs matplotlib: `pip install 'weightdecay[sweep]'`.
        """
        from weightdecay.display.figure import save
        from weightdecay.report.spread import spread

        if not any(each.strongest > 0 for each in self.summary()):
            raise ValueError("no weight shrinks in the next step, so there is nothing to draw: is λ 0, or lr?")
        save(path, lambda: spread(self.title, self.summary(), [split.decoupled for split in self.values()]))


def decompose(optimizer: TorchOptimizer, model: nn.Module | None = None) -> Decomposition:
    """Split the next step of an optimizer into the factor of each weight and the rest, without doing it.

    Args:
        optimizer: any of this package's, or torch.optim's of the same name, with gradients present. It is not changed.
        model: where the tensors get their names from; without it from the groups, which have some where they were made by
            `weightdecay.param_groups` or from model.named_parameters().

    Returns:
        For each parameter with a gradient its `Split`: g·w − lr·h is what `step()` then makes of it, before rounding. Three
        tensors of each parameter's size are held. Of DTensors (`fully_shard`) they are DTensors; every rank has to make this
        call, and any one may print or plot what it returns.

    Raises:
        TypeError: an optimizer that is neither, or a model that is none.
        ValueError: no parameter has a gradient, or a decay is attached.
        RuntimeError: a gradient is sparse.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = torch.optim.SGD([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([1.0, 1.0])
    >>> split = decompose(optimizer)[w]
    >>> split.g, split.h
    (tensor([0.8750, 0.8750]), tensor([1., 1.]))

    Source: the shape is Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    names = {} if model is None else _names_in(model)
    optimizer = innermost(optimizer)
    ours = as_ours(optimizer)
    with torch.no_grad():
        upcoming = [
            Upcoming(ours, index, place, names)
            for index, group in enumerate(ours.param_groups)
            for place, param in enumerate(group["params"])
            if param.grad is not None
        ]
        shared = shared_numbers(upcoming)
        splits = {each.param: each.split(shared) for each in upcoming}
    if not splits:
        raise ValueError("no parameter has a gradient: call loss.backward() first, and decompose before step() and zero_grad()")
    title = type(optimizer).__name__
    if type(optimizer) is Optimizer:
        title = ", ".join(dict.fromkeys(str(ours.equation(group)) for group in ours.param_groups))
    coupled = [ours.way(group)[:2] for group in ours.param_groups]
    found = Decomposition(title, splits, remembers=any(equation.penalty and moments for equation, moments in coupled))
    if any(hasattr(split.shrink, "full_tensor") for split in splits.values()):
        found.summary()  # while every rank is here: one rank may then print or draw it alone
    return found


def _names_in(model: nn.Module) -> dict[Tensor, str]:
    """Return the name of each parameter of a model, without what wrappers put before it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, not a torch.nn.Module: pass the model that has the parameters")
    names, params = zip(*model.named_parameters(), strict=True) if any(True for _ in model.parameters()) else ((), ())
    return dict(zip(params, without_wrappers(names), strict=True))


def as_ours(optimizer: TorchOptimizer, *, attached: bool = False) -> Optimizer:
    """Return one of this package's optimizers that does the same step; it shares the state and only reads it.

    With `attached`, it is the step without the decay that may be attached; else such an optimizer is refused.
    """
    optimizer = innermost(optimizer)
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, TorchOptimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, not an optimizer: pass what has the step() method")
    ours = _OURS.get(type(optimizer))
    if ours is None:
        known = ", ".join(f"torch.optim.{each.__name__}" for each in _OURS)
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, whose rules are not known here: only this package's optimizers, "
            f"{known} can be taken apart; the same rules as a weightdecay.Optimizer can be"
        )
    attachment = Attachment.of(optimizer)
    if attachment is not None and not attached:
        raise ValueError(
            f"the {attachment.decay.name} decay is attached to this {type(optimizer).__name__}, whose own rules know nothing "
            "of it: weightdecay.Meter(optimizer) measures what it does, and what can be taken apart is a "
            f"weightdecay.Optimizer(…, decay={attachment.decay.name!r})"
        )
    return ours.looking_at(({**group, **_AS_TORCH} for group in optimizer.param_groups), optimizer.state)


class Upcoming:
    """The next step of one parameter, with all that it starts from."""

    def __init__(self, optimizer: Optimizer, index: int, place: int, names: Mapping[Tensor, str] | None = None) -> None:
        self.group = group = optimizer.param_groups[index]
        self.param = param = group["params"][place]
        self.name = name_of(group, index, place)
        if param.grad.layout != torch.strided:
            raise RuntimeError(f"the gradient of {self.name} is sparse ({param.grad.layout}), and no step is made with it")
        self.name = (names or {}).get(param) or (group.get("param_names") or {place: self.name})[place]
        self.equation, every, how = optimizer.way(group)
        self.kept = kept_for(param.shape, every)
        self.state = dict(optimizer.state.get(param, {}))
        held = [each for each in self.kept if self.state.get(each.key) is not None]
        counted = self.state.get("step")
        started = float(any(each.changes for each in held))
        self.t = counting.following_of_host(started if counted is None else float(counted))
        self.given = optimizer.numbers(group, self.t)
        for each in self.kept:
            if self.state.get(each.key) is None:
                self.state[each.key] = eager.start(each, param, self.equation.asking(each, self.given), moment_dtype(param))
        self.how = self.result = rounding.resolve(how, param.dtype)
        if self.state.get("compensation") is None and self.how == "compensated":
            self.how = "nearest"  # is how the weight has come to be; `result` is what becomes of the next
        grad = -param.grad if group["maximize"] else param.grad
        self.values = eager.operands(self.equation, param, grad, self.state, self.kept, self.how, 1.0)

    def numbers(self, dtype: torch.dtype) -> eager.Numbers:
        """Return what stands right of each rule's `*`, numbers of all tensors aside."""
        return eager.remembered(self.equation, eager.numbers_in(dtype, self.given), self.state, self.kept)

    def shrink(self) -> float | None:
        """Return the share that the step takes of every weight alike; None where there is no such number."""
        decay = self.equation.decay
        if self.equation.penalty is not None or not is_uniform(decay):
            return None
        return at_rest(decay, {name: float(x) for name, x in self.given["decay"].items()})

    def share(self, name: str) -> eager.Share:
        """Return what this parameter adds to a number of all tensors."""
        total, count = eager.share(self.equation, name, self.numbers(self.values["w"].dtype), self.values)
        return name, [total.item()], count

    def split(self, shared: Mapping[str, float]) -> Split:
        """Take the step apart."""
        dtype = self.values["w"].dtype
        factor, rest = eager.split(self.equation, self.equation.with_shared(self.numbers(dtype), shared), self.values)
        numbers = self.equation.with_shared(self.numbers(torch.float64), shared)
        exact, _ = eager.split(self.equation, numbers, {name: value.double() for name, value in self.values.items()})
        low = self.how == "nearest" and self.param.dtype in rounding.LOW_PRECISION
        return Split(
            self.name,
            factor,
            rest,
            (1 - exact).to(factor.dtype),
            float(self.group["lr"]),
            _one_shrink(self.equation, self.given),
            rounded_away(self.param.dtype) if low else 0.0,
        )


def shared_numbers(upcoming: Sequence[Upcoming]) -> dict[str, float]:
    """Return the numbers of all tensors that decays among these steps ask for."""
    asked = {name for each in upcoming for name in each.equation.decay.shared}
    return eager.means(each.share(name) for name in asked for each in upcoming if each.equation.supplies(name))


def _one_shrink(equation: Equation, numbers: Mapping[str, Mapping[str, Any]]) -> float:
    """Return what the decay takes of a weight at rest, or what λ of the penalty would take as a decoupled decay."""
    decay, given = equation.decay, {name: float(x) for name, x in numbers["decay"].items()}
    if "lam" in given:
        plain = not decay.reductions and not decay.keeps and is_factor(decay)
        return at_rest(decay, given) if plain else math.nan
    penalty = numbers.get("penalty", {}) if equation.penalty is not None else {}
    return given["eta"] * float(penalty.get("lam", 0.0))
