"""The passes over the elements that a step takes: what each writes, in the order in which a kernel does it.

The last pass writes weights and state. A rule that asks for a number of its whole tensor costs passes before it, which write
nothing but the terms of sums, and end where those are there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import nan
from typing import Any, Protocol

import torch

from weightdecay.backends import rounding
from weightdecay.backends.param_table import Signature
from weightdecay.update_rules.equation import step
from weightdecay.update_rules.reductions import REDUCTIONS, Reduction
from weightdecay.update_rules.rule import Rule


@dataclass(frozen=True)
class Sum:
    """A reduction's terms added up, or the largest element, in whose units they are taken."""

    reduction: int | str
    """Which of the reductions that the rules ask for, in the order of the step; one of all tensors by its name."""
    largest: bool


class Passes:
    """Which sums each pass over the elements finds; the last finds none, and writes.

    What a rule asks for does not depend on each other, and is found in one pass; only what is taken in units of the largest
    element needs one more.
    """

    def __init__(self, signature: Signature) -> None:
        wanted: list[Sequence[Sum]] = []
        self.reductions: list[Reduction] = []
        """What the rules ask for, by the numbers that sums have."""
        shared = [Sum(name, largest=False) for name in signature.shares]
        for rule in signature.equation.rules:
            if rule is signature.equation.decay:  # a number of all tensors is of what the direction makes
                wanted += [[each] for each in shared]
            asked = list(enumerate(_asked(rule), len(self.reductions)))
            self.reductions += [reduction for _, reduction in asked]
            wanted += [
                [Sum(k, reduction.norm) for k, reduction in asked],
                [Sum(k, largest=False) for k, reduction in asked if reduction.norm],
            ]
        self.wanted = (*(tuple(sums) for sums in wanted if sums), ())
        """The sums of each pass."""
        self.sums = tuple(chain.from_iterable(self.wanted))
        """All of them, in the order in which they are found."""
        self.shares = tuple(map(self.sums.index, shared))
        """Which are of the numbers of all tensors, in the order of the signature."""
        self.begun = max((place + 1 for place, found in enumerate(self.wanted) if set(found) & set(shared)), default=0)
        """After how many passes the numbers of all tensors are found."""


def _asked(rule: Rule) -> list[Reduction]:
    return [REDUCTIONS[name] for name in rule.reductions if name not in rule.shared]


class _Reached(Exception):  # noqa: N818
    """Leaves the step where the terms of all the sums are there for which a pass is made."""


class Writes(Protocol):
    """What a writer has, to which a pass tells what to write."""

    real: Any
    """The type in which elements are computed."""
    wide: Any
    """Float64, in which the numbers of a tensor are."""

    def bound(self, function: Callable[..., Any], /) -> Callable[..., Any]:
        """Return a function of words as one that writes."""

    def alike(self, *operands: Any) -> tuple[Any, ...]:
        """Return the operands with one type."""

    def converted(self, value: Any, of: Any, /) -> Any:
        """Return the same number, or numbers, in another type."""

    def constant(self, number: float, of: Any, /) -> Any:
        """Return a number of the host as one of the kernel."""

    def with_inverse(self, value: Any, inverse: Any, /) -> Any:
        """Return a number by which to divide is to multiply by its inverse."""

    def where(self, condition: Any, x: Any, y: Any, /) -> Any:
        """Choose x where the condition holds, else y."""

    def absolute(self, x: Any, /) -> Any:
        """Return |x|."""


class Pass(ABC):
    """Writes one pass over all elements of all tensors."""

    writer: Writes
    number: Mapping[tuple[str, str], Any]
    """The numbers of one tensor, by kind of rule and name; those of no rule have no kind, and what is kept is "kept"."""

    def __init__(self, signature: Signature, passes: Passes, place: int) -> None:
        self.signature = signature
        self.known = tuple(chain.from_iterable(passes.wanted[:place]))
        """The sums that earlier passes have found."""
        self.wanted = passes.wanted[place]
        """The sums that this one is there for; none for the one that writes."""

    @abstractmethod
    def load(self, column: str, dtype: torch.dtype) -> Any:
        """Read the elements at hand of the tensor whose address is in a column, as numbers to compute with."""

    @abstractmethod
    def store(self, value: Any, column: str, dtype: torch.dtype) -> None:
        """Write the elements at hand, rounded to nearest."""

    @abstractmethod
    def leave(self, value: Any, column: str) -> None:
        """Write a number that a step leaves for a tensor, for the time when all its elements are done."""

    @abstractmethod
    def add(self, term: Any, which: int) -> None:
        """Take the terms of the elements at hand into one of the wanted sums, by its number among them."""

    @abstractmethod
    def partial(self, which: Sum) -> Any:
        """Return what earlier passes have left of a sum for this tensor."""

    @abstractmethod
    def random_bits(self) -> Any:
        """Return 16 bits for each element at hand: the halves, in turn, of what is drawn for each pair of neighbours."""

    def write_elements(self) -> None:
        """Write what happens to the elements at hand: the step itself, or as much of it as the sums need."""
        signature, writer = self.signature, self.writer
        moments = list(zip(signature.elements, signature.moments, strict=True))
        w = self.load("w", signature.weight)
        if signature.how == "compensated":
            w = writer.bound(rounding.restore)(w, self.load("compensation", torch.int16))
        values: dict[str, Any] = {"w": w, "g": self.number["", "factor"] * self.load("g", signature.grad)}
        values.update({kept.name: 0.0 for rule in signature.equation.rules for kept in rule.keeps if kept.per_element})
        values.update({kept.name: self.load(f"moment{k}", dtype) for k, (kept, dtype) in enumerate(moments)})
        numbers: dict[str, Any] = {
            rule.kind: {
                name: self.number["" if name == "t" else "kept" if name in rule.memory else rule.kind, name]
                for name in rule.numbers
                if name in rule.shared or name not in rule.reductions
            }
            for rule in signature.equation.rules
        }
        self._terms: dict[Sum, Any] = {}
        try:
            for which in self.wanted:
                if isinstance(which.reduction, str):
                    self._share(which, REDUCTIONS[which.reduction], numbers, values)
            found, new = self._step(numbers, values)
        except _Reached:
            for place, wanted in enumerate(self.wanted):
                self.add(self._terms[wanted], place)
            return
        changed = [(f"moment{k}", kept, dtype) for k, (kept, dtype) in enumerate(moments) if kept.changes]
        found, *news, _ = writer.alike(found, *(new[kept.name] for _, kept, _ in changed), w)
        self._round_and_store(found)
        for (column, _, dtype), moment in zip(changed, news, strict=True):
            self.store(moment, column, dtype)
        for column in signature.next:
            (left, _) = writer.alike(new[column.removeprefix("next_")], self.number["", "t"])
            self.leave(left, column)

    def _round_and_store(self, w: Any) -> None:
        signature, writer = self.signature, self.writer
        if signature.how == "stochastic":
            w = writer.bound(rounding.STOCHASTIC[signature.weight])(w, self.random_bits())
        elif signature.how == "compensated":
            nearest = writer.bound(rounding.NEAREST[signature.weight])(w)
            self.store(writer.bound(rounding.lost)(w, nearest), "compensation", torch.int16)
            w = nearest
        self.store(w, "w", signature.weight)

    # Reductions ---------------------------------------------------------------------------------------------------------

    def _step(self, numbers: Mapping[str, Any], values: Mapping[str, Any], up_to: str = "") -> tuple[Any, dict[str, Any]]:
        """Return what comes of a step, or of one that ends with a line of the direction."""
        equation = self.signature.equation.up_to(up_to) if up_to else self.signature.equation
        self._count = 0  # of the reductions so far
        return step(equation, numbers, values, bind=self.writer.bound, reduce=self._reduce)

    def _share(self, which: Sum, reduction: Reduction, numbers: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Take this tensor's terms of a number of all tensors, which is of what lines of the direction make."""
        writer = self.writer
        lines = [self._step(numbers, values, up_to=name)[0] for name in reduction.elements]
        elements = [writer.converted(writer.alike(line, values["w"])[0], writer.wide) for line in lines]
        self._reached(which, writer.bound(reduction.term)(*elements))

    def _reduce(self, reduction: Reduction, values: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """Return a number of the whole tensor if earlier passes have found it; else take the terms that this one wants."""
        writer, number = self.writer, self._count
        self._count += 1
        elements = [writer.converted(writer.alike(values[n], values["w"])[0], writer.wide) for n in reduction.elements]
        unit: Any = 1.0
        if reduction.norm:
            (x,) = elements
            which = Sum(number, largest=True)
            if which in self.wanted:
                return self._reached(which, writer.absolute(x))
            largest = self.partial(which)
            unit = writer.where(largest > 0, largest, 1.0)
            # The inverse of a float32 is a double, that of a double may be none.
            elements = [x / (unit if writer.real == writer.wide else writer.with_inverse(unit, 1 / unit))]
        which = Sum(number, largest=False)
        if which in self.wanted:
            return self._reached(which, writer.bound(reduction.term)(*elements, **reduction.given(reduction.term, given)))
        total = self.partial(which)
        found = writer.bound(reduction.finish)(total, **reduction.given(reduction.finish, given)) * unit
        return writer.converted(found, writer.wide)

    def _reached(self, which: Sum, term: Any) -> Any:
        """Take the term of a sum, and leave the step if it was the last; its number is not known in this pass."""
        self._terms[which] = term
        if len(self._terms) == len(self.wanted):
            raise _Reached
        return self.writer.constant(nan, self.writer.wide)
