"""Which parameters of an optimizer the kernels step, table by table, and which are left to the eager backend."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from operator import is_
from typing import Any, Protocol

import torch
from torch import Tensor

from weightdecay.backends.eager import Share
from weightdecay.backends.memory import has_address
from weightdecay.backends.param_table import Entry, Signature, Table, Written


class Kernels(Protocol):
    """What a backend that makes kernels, a module of `weightdecay.backends`, has for an optimizer."""

    def refusal(self, param: Tensor, grad: Tensor | None, *moments: Tensor) -> str | None:
        """Return why no kernel can step a parameter with this gradient and moments; None if one can."""

    def signature(self, param: Tensor, capturable: bool, **given: Any) -> Signature:
        """Return which kernel steps a parameter; what is given are the fields of a Signature."""

    def table(self, signature: Any, entries: Iterable[Entry], /) -> Table:
        """Return the table of all parameters with one signature."""


Lists = Mapping[tuple[Kernels, Signature], Sequence[Entry]]
"""The parameters of each kernel, by its backend and signature."""


class Plan:
    """Who steps what, made at one step and good for the next as long as nothing has moved."""

    def __init__(
        self,
        state: Mapping[Tensor, Any],
        groups: Sequence[Mapping[str, Any]],
        ways: Sequence[Any],
        rules: int,
        entries: Lists,
        halves: Lists,
        left: Mapping[int, Sequence[int]],
        waiting: Sequence[Tensor],
    ) -> None:
        """Make the tables.

        Args:
            state, groups: the optimizer's.
            ways: for each group all that decides which kernel it takes.
            rules: the registry's count of changes.
            entries: the kernels' parameters.
            halves: those whose u is made in torch, so that the kernel does the second half of the step: one by one.
            left: by group, the places of the parameters that the eager backend steps.
            waiting: parameters that have had no gradient yet, and so no state.
        """
        self.ways, self.rules, self.left, self.waiting = list(ways), rules, dict(left), list(waiting)
        self.tables = [backend.table(signature, own) for (backend, signature), own in entries.items()]
        self.halves = [
            (entry, backend.table(signature, [entry])) for (backend, signature), own in halves.items() for entry in own
        ]
        self.by_torch: dict[int, list[int]] = {index: list(places) for index, places in left.items()}
        """By group, the places of the parameters that torch's operations step, or of which they make u."""
        place_of = {param: (index, k) for index, group in enumerate(groups) for k, param in enumerate(group["params"])}
        for entry, _ in self.halves:
            index, place = place_of[entry.param]
            self.by_torch.setdefault(index, []).append(place)
        first = list(accumulate((len(group["params"]) for group in groups), initial=0))
        others = [(groups[index]["params"][place], first[index] + place) for index, places in left.items() for place in places]
        every = [entry for own in (*entries.values(), *halves.values()) for entry in own]
        by_kernels = [(tensor, entry.index) for entry in every for tensor in entry.written()]
        by_torch = ((tensor, k) for param, k in others for tensor in (param, *state.get(param, {}).values()))
        self._by_kernels = Written(by_kernels)
        written = Written([*by_kernels, *((tensor, number) for tensor, number in by_torch if has_address(tensor))])
        for table in (*self.tables, *(table for _, table in self.halves)):
            table.written = written
        self._others = [*others, *((entry.param, entry.index) for entry, _ in self.halves)]
        self._params = [list(group["params"]) for group in groups]
        self._states = list(state.values())

    def holds(self, state: Mapping[Tensor, Any], groups: Sequence[Mapping[str, Any]]) -> bool:
        """Look up the gradients; return whether the plan still fits them, the parameters and their state."""
        return (
            _are(self._states, list(state.values()))
            and len(groups) == len(self._params)
            and all(_are(own, group["params"]) for own, group in zip(self._params, groups, strict=True))
            and all(param.grad is None for param in self.waiting)
            and all(table.read([param.grad for param in table.params]) for table in self.tables)
            and all(table.is_as_it_was() and _is_dense(entry.param.grad) for entry, table in self.halves)
            and all(self._is_apart(param.grad, number) for param, number in self._others)
        )

    def _is_apart(self, grad: Tensor | None, number: int) -> bool:
        """Return whether a gradient that torch's operations read lies where no kernel writes before."""
        if grad is None or not has_address(grad) or id(grad.untyped_storage()) not in self._by_kernels.storages:
            return True
        return self._by_kernels.are_apart([(grad, number)])

    def write_row(self, group: int, numbers: Mapping[str, Mapping[str, Any]], factor: float, seed: int) -> None:
        """Set the numbers of one parameter group."""
        for table in (*self.tables, *(table for _, table in self.halves)):
            if group in table.groups:
                table.write_row(group, numbers, factor, seed)

    def scale(self, found_inf: Tensor, unscale: Tensor) -> bool:
        """Let the kernels of the next step unscale gradients, and do nothing where found_inf is not 0; False if some cannot."""
        if self.left or self.halves or not all(table.scales for table in self.tables):
            return False
        for table in self.tables:
            table.scale(found_inf, unscale)
        return True

    def begin(self) -> list[Share]:
        """Begin the step, and return what the kernels' parameters add to numbers of all tensors."""
        for table in self.tables:
            table.begin()
        return [share for table in self.tables for share in table.shares()]

    def run(self, direct: Callable[[Entry], Tensor | None], shared: Mapping[str, float]) -> None:
        """Do the kernels' part of a step that has begun; `direct` makes u where torch does."""
        for table in self.tables:
            table.write_shared(shared)
            table.end()
        for entry, table in self.halves:
            u = direct(entry)
            if not table.read([None if u is None else u.contiguous()]):
                raise RuntimeError("a direction of whole tensors made a u that no kernel can read")
            table.run()


def _is_dense(grad: Tensor | None) -> bool:
    return grad is None or grad.layout == torch.strided


def _are(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Return whether these are the very same objects in the same order."""
    return len(some) == len(others) and all(map(is_, some, others))
