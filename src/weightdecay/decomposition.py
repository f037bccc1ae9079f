"""What the next step of a running optimizer does to each weight: w_t = g·w − η·h, in numbers."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from weightdecay.checkpoints import moment_dtype, name_of
from weightdecay.files import write
from weightdecay.optimizer import Optimizer
from weightdecay.presets import SGD, Adam
from weightdecay.readers import eager, rounding

_FLAGS = {"foreach": None, "fused": None, "differentiable": False}
"""How torch's step is computed, which does not matter here."""
_MOST_SORTED = 2**20
"""Of a larger tensor every n-th weight is looked at for a quantile; the ends are exact."""
_QUANTILES = (0.05, 0.5, 0.95)
_OURS: Mapping[type, Callable[..., Optimizer]] = {torch.optim.SGD: SGD, torch.optim.Adam: Adam, torch.optim.AdamW: Adam}


@dataclass(frozen=True, eq=False)
class Split:
    """The next step of one parameter: w becomes g·w − lr·h, before it is rounded to the parameter's dtype.

    Both tensors have the parameter's shape, in float32 or float64, as the step computes; a complex parameter's are those of
    `torch.view_as_real`.
    """

    name: str
    g: Tensor
    h: Tensor
    lr: float
    decoupled: float
    """The shrink lr·λ that decoupled decay with the same λ, the decay's or else the penalty's, would give every weight."""

    def summary(self) -> "Summary":
        """Return what the factors have in common: quantiles of the shrink 1 − g, its half-life, its spread."""
        shrink = (1 - self.g.double()).flatten()
        if not shrink.numel():
            shrink = torch.zeros(1, dtype=torch.double)
        some = shrink[:: max(1, shrink.numel() // _MOST_SORTED)]
        low, median, high = torch.quantile(some, torch.tensor(_QUANTILES, dtype=torch.double, device=some.device)).tolist()
        weakest, strongest = shrink.min().item(), shrink.max().item()
        acting = shrink[shrink > 0]
        ratio = strongest / acting.min().item() if acting.numel() else 1.0
        return Summary(
            self.name, list(self.g.shape), weakest, low, median, high, strongest,
            acting.numel() / shrink.numel(), half_life(median), ratio,
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
    """In how many steps like this one the median weight halves."""
    ratio: float
    """The strongest shrink over the weakest that is not zero."""

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data; what is not finite is None."""
        values = asdict(self)
        return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in values.items()}

    def cells(self) -> tuple[str, ...]:
        """Return the line of the table."""
        share = f"{self.acting:.0%}"
        shrinks = (f"{x:.3g}" for x in (self.weakest, self.median, self.strongest))
        life = f"{self.half_life:,.0f}" if math.isfinite(self.half_life) else "never"
        return self.name, str(tuple(self.shape)), *shrinks, share, f"{self.ratio:.3g}", life


def half_life(shrink: float) -> float:
    """Return in how many steps a weight halves that loses this share of itself in each.

    >>> round(half_life(0.01), 1)
    69.0
    """
    if shrink <= 0:
        return math.inf
    return math.log(2) / -math.log1p(-shrink) if shrink < 1 else 1.0


class Decomposition(Mapping[Tensor, Split]):
    """The splits of all parameters that have a gradient, by parameter; prints as a table of their shrinks."""

    header = ("tensor", "shape", "weakest", "median", "strongest", "decays", "strongest/weakest", "half-life in steps")

    def __init__(self, title: str, splits: Mapping[Tensor, Split]) -> None:
        self.title, self._splits = title, dict(splits)

    def __getitem__(self, param: Tensor) -> Split:
        return self._splits[param]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)

    def summary(self) -> list[Summary]:
        """Return a line per tensor."""
        return [split.summary() for split in self.values()]

    def __str__(self) -> str:
        rows = [self.header, *(each.cells() for each in self.summary())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([f"{self.title}: the share 1 − g that each weight loses in the next step", "", *lines])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return {"optimizer": self.title, "tensors": [each.to_dict() for each in self.summary()]}

    def plot(self, path: str | Path) -> None:
        """Draw how the shrink spreads in each tensor, against the one number of decoupled decay, into a .png or .svg.

        Needs matplotlib: `pip install 'weightdecay[sweep]'`.
        """
        from weightdecay.report.spread import spread

        kind, folder = Path(path).suffix.lower(), Path(path).parent
        if kind not in (".png", ".svg"):
            raise ValueError(f"path={str(path)!r} is neither a .png nor a .svg")
        if not folder.is_dir():
            raise FileNotFoundError(f"path={str(path)!r}: there is no folder {str(folder)!r}")
        if not any(split.g.lt(1).any() for split in self.values()):
            raise ValueError("no weight shrinks in the next step, so there is nothing to draw: is λ 0, or lr?")
        picture = spread(self.title, self.summary(), [split.decoupled for split in self.values()])
        write(Path(path), picture.png if kind == ".png" else picture.svg.encode())


def decompose(optimizer: TorchOptimizer) -> Decomposition:
    """Split the next step of an optimizer into the factor of each weight and the rest, without doing it.

    Args:
        optimizer: any of this package's, or torch.optim's SGD, Adam or AdamW, with gradients present. It is not changed.

    Returns:
        For each parameter with a gradient its `Split`: g·w − lr·h is what `step()` then makes of it, before rounding. Two
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
    return Decomposition(title, splits)


def as_ours(optimizer: TorchOptimizer) -> Optimizer:
    """Return one of this package's optimizers that does the same step; it shares the state and only reads it."""
    if isinstance(optimizer, Optimizer):
        return optimizer
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


def _split(optimizer: Optimizer, index: int, place: int) -> Split:
    """Split the next step of one parameter."""
    group = optimizer.param_groups[index]
    param, name = group["params"][place], name_of(group, index, place)
    if param.grad.layout != torch.strided:
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
    if state.get("compensation") is None and how == "compensated":
        how = "nearest"
    numbers = eager.remembered(equation, eager.numbers_in(eager.compute_dtype(param.dtype), given), state, kept)
    grad = -param.grad if group["maximize"] else param.grad
    factor, rest = eager.split(equation, numbers, eager.operands(equation, param, grad, state, kept, how, 1.0))
    lr = float(group["lr"])
    lam = float(group["weight_decay"]) or float(group.get("penalty_weight", 0.0))
    return Split(name.strip("'"), factor, rest, lr, lr * lam)
