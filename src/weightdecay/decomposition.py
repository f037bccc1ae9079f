"""What the next step of a running optimizer does to each weight: w_t = g·w − η·h, in numbers."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from weightdecay.checkpoints import moment_dtype, name_of
from weightdecay.optimizer import Optimizer
from weightdecay.presets import SGD, Adam
from weightdecay.readers import eager, rounding
from weightdecay.readers.split import is_factor
from weightdecay.rule import Kept
from weightdecay.shrink import at_rest, rounded_away, steps_to_halve
from weightdecay.step import Equation

_FLAGS = {"foreach": None, "fused": None, "differentiable": False, "rounding": "nearest"}
"""How torch's step is computed: with which implementation does not matter here."""
_MOST_SORTED = 2**20
"""Of a larger tensor every n-th weight is looked at for a quantile; the ends are exact."""
_QUANTILES = (0.05, 0.5, 0.95)
_CONSTANT = ("none", "decoupled", "independent", "corrected")
"""The decays that take the same share of every weight, whatever its step."""
_OURS: Mapping[type, Callable[..., Optimizer]] = {torch.optim.SGD: SGD, torch.optim.Adam: Adam, torch.optim.AdamW: Adam}


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
        shrink = self.shrink.double().flatten()
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
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
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
        from weightdecay.report.canvas import save
        from weightdecay.report.spread import spread

        if not any(split.shrink.gt(0).any() for split in self.values()):
            raise ValueError("no weight shrinks in the next step, so there is nothing to draw: is λ 0, or lr?")
        save(path, lambda: spread(self.title, self.summary(), [split.decoupled for split in self.values()]))


def decompose(optimizer: TorchOptimizer) -> Decomposition:
    """Split the next step of an optimizer into the factor of each weight and the rest, without doing it.

    Args:
        optimizer: any of this package's, or torch.optim's SGD, Adam or AdamW, with gradients present. It is not changed.
            Its tensors have names if its groups do: from model.named_parameters(), or weightdecay.param_groups(…, names=True).

    Returns:
        For each parameter with a gradient its `Split`: g·w − lr·h is what `step()` then makes of it, before rounding. Three
        tensors of each parameter's size are held.

    Raises:
        TypeError: an optimizer that is neither.
        ValueError: no parameter has a gradient.
        RuntimeError: a gradient is sparse.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = torch.optim.SGD([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([1.0, 1.0])
    >>> split = decompose(optimizer)[w]
    >>> split.g, split.h
    (tensor([0.8750, 0.8750]), tensor([1., 1.]))

    Source: the shape is Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    ours = as_ours(optimizer)
    splits = {}
    with torch.no_grad():
        for index, group in enumerate(ours.param_groups):
            for place, param in enumerate(group["params"]):
                if param.grad is not None:
                    splits[param] = _split(ours, index, place)
    if not splits:
        raise ValueError("no parameter has a gradient: call loss.backward() first, and decompose before step() and zero_grad()")
    title = type(optimizer).__name__
    if type(optimizer) is Optimizer:
        title = ", ".join(dict.fromkeys(str(ours.equation(group)) for group in ours.param_groups))
    coupled = [ours.way(group)[:2] for group in ours.param_groups]
    return Decomposition(title, splits, remembers=any(equation.penalty and moments for equation, moments in coupled))


def as_ours(optimizer: TorchOptimizer) -> Optimizer:
    """Return one of this package's optimizers that does the same step; it shares the state and only reads it."""
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
    groups = [{**group, "params": list(group["params"]), **_FLAGS} for group in optimizer.param_groups]
    found = ours(groups)
    found.state.update(optimizer.state)
    return found


@dataclass(frozen=True, eq=False)
class Upcoming:
    """The next step of one parameter, with all that it is computed from; nothing has been computed or changed."""

    equation: Equation
    given: Mapping[str, Mapping[str, Any]]
    """What stands right of each rule's `*`, by kind of rule."""
    values: Mapping[str, Tensor]
    """What the rules take per element, in the dtype of the computation."""
    state: Mapping[str, Any]
    kept: tuple[Kept, ...]
    t: float
    """The number of the step, from 1."""
    how: str
    """How the result is rounded."""

    @classmethod
    def of(cls, optimizer: Optimizer, index: int, place: int) -> "Upcoming":
        """Return the step of the parameter at a place in a group."""
        group = optimizer.param_groups[index]
        param = group["params"][place]
        if param.grad.layout != torch.strided:
            name = name_of(group, index, place)
            raise RuntimeError(f"the gradient of {name} is sparse ({param.grad.layout}), and no step is made with it")
        equation, kept, how = optimizer.way(group)
        state = dict(optimizer.state.get(param, {}))
        held = [each for each in kept if state.get(each.key) is not None]
        t = float(state["step"]) + 1 if state.get("step") is not None else 1.0 + any(each.changes for each in held)
        given = optimizer.numbers(group, t)
        for each in kept:
            if state.get(each.key) is None:
                state[each.key] = eager.start(each, param, equation.asking(each, given), moment_dtype(param))
        how = rounding.resolve(how, param.dtype)
        from_pair = "nearest" if state.get("compensation") is None else how
        grad = -param.grad if group["maximize"] else param.grad
        values = eager.operands(equation, param, grad, state, kept, from_pair, 1.0)
        return cls(equation, given, values, state, kept, t, how)

    def shrink(self) -> float | None:
        """Return the share that the step takes of every weight alike; None where there is no such number."""
        decay = self.equation.decay
        if self.equation.penalty is not None or decay.name not in _CONSTANT:
            return None
        return at_rest(decay, {name: float(x) for name, x in self.given["decay"].items()})

    def numbers(self, dtype: torch.dtype) -> eager.Numbers:
        """Return the numbers of all rules, what they remember among them, for values of a dtype."""
        return eager.remembered(self.equation, eager.numbers_in(dtype, self.given), self.state, self.kept)


def _split(optimizer: Optimizer, index: int, place: int) -> Split:
    """Split the next step of one parameter."""
    group = optimizer.param_groups[index]
    param, step = group["params"][place], Upcoming.of(optimizer, index, place)
    factor, rest = eager.split(step.equation, step.numbers(eager.compute_dtype(param.dtype)), step.values)
    doubled = {name: value.double() for name, value in step.values.items()}
    exact, _ = eager.split(step.equation, step.numbers(torch.float64), doubled)
    low = step.how == "nearest" and param.dtype in rounding.LOW_PRECISION
    return Split(
        names[place] if (names := group.get("param_names")) else name_of(group, index, place),
        factor,
        rest,
        (1 - exact).to(factor.dtype),
        float(group["lr"]),
        _one_shrink(step.equation, step.given),
        rounded_away(param.dtype) if low else 0.0,
    )


def _one_shrink(equation: Equation, numbers: Mapping[str, Mapping[str, Any]]) -> float:
    """Return what the decay takes of a weight at rest, or what λ of the penalty would take as a decoupled decay."""
    decay, given = equation.decay, {name: float(x) for name, x in numbers["decay"].items()}
    if "lam" in given:
        plain = not decay.reductions and not decay.keeps and is_factor(decay)
        return at_rest(decay, given) if plain else math.nan
    penalty = numbers.get("penalty", {}) if equation.penalty is not None else {}
    return given["eta"] * float(penalty.get("lam", 0.0))
