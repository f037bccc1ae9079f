"""What the next step of a running optimizer does to each weight: w_t = g·w − η·h, in numbers."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer as TorchOptimizer

from weightdecay.analysis.next_step import Upcoming, shared_numbers
from weightdecay.analysis.split import Split, Summary
from weightdecay.display.table import aligned
from weightdecay.groups.names import without_wrappers
from weightdecay.optim.as_ours import as_ours
from weightdecay.optim.optimizer import Optimizer
from weightdecay.optim.unwrap import innermost

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
        from weightdecay.analysis.plot import spread
        from weightdecay.display.figure import save

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
