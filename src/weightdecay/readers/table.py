"""The parameters that one kernel steps, by where they lie in memory.

A table is made once and used as long as everything lies where it lay. Each step finds out whether it does, and reads where
the gradients are: with hundreds of small parameters that is most of the work, so it is done list by list.
"""

import struct
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from weightdecay.readers.eager import Share
from weightdecay.rule import Kept
from weightdecay.step import Equation

ORDINARY = {Tensor, torch.nn.Parameter}
"""What a gradient may be an instance of: torch's own, with no other meaning of an operation."""
_MASK = 2**64 - 1
_DTYPE = attrgetter("dtype")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int16)
"""What parameters, gradients and what the state holds for each element may be."""
_NOWHERE = 1
"""The address of a gradient that has no elements: not that of none."""


@dataclass(frozen=True)
class Signature:
    """All that a kernel depends on."""

    equation: Equation
    weight: torch.dtype
    grad: torch.dtype
    kept: tuple[Kept, ...]
    """What the rules keep from step to step."""
    moments: tuple[torch.dtype, ...]
    """The dtypes of that which is kept for every element."""
    how: str
    """The rounding, resolved."""
    shares: tuple[str, ...]
    """The numbers of all tensors in which these count; such a number is summed up first, and then one of the row."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Return the table's columns: those in `addresses`, and what else its kernel wants to know of a tensor."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return the columns that hold the addresses of a parameter's weight and state, in the order of its entry."""
        moments = (f"moment{k}" for k in range(len(self.moments)))
        return ("w", "step", *moments, *(["compensation"] if self.how == "compensated" else []), *self.memory)

    @property
    def elements(self) -> tuple[Kept, ...]:
        """Return what is kept for every element."""
        return tuple(each for each in self.kept if each.per_element)

    @property
    def memory(self) -> tuple[str, ...]:
        """Return the columns of the numbers that are kept, one per tensor."""
        return tuple(f"memory_{each.name}" for each in self.kept if not each.per_element)

    @property
    def next(self) -> tuple[str, ...]:
        """Return the names of where a step leaves such a number, while others still read the old one."""
        return tuple(f"next_{each.name}" for each in self.kept if not each.per_element and each.changes)

    @property
    def numbers(self) -> tuple[tuple[str, str], ...]:
        """Return what a row holds: the rules' numbers by kind and name, then the gradient's factor and the seed."""
        own = (
            (rule.kind, name)
            for rule in self.equation.rules
            for name in rule.numbers
            if name in rule.shared or name not in (*rule.reductions, *rule.memory, "t")
        )
        return (*own, ("", "factor"), ("", "seed"))


@dataclass(frozen=True)
class Entry:
    """One parameter of a table."""

    param: Tensor
    state: Mapping[str, Tensor]
    keys: tuple[str, ...]
    """Of the tensors in the state that the kernel reads, in the order of its columns."""
    row: int
    """Its parameter group, which says which row of numbers it takes."""
    index: int
    """Its place in the optimizer, for the random bits."""

    def tensors(self) -> list[Tensor]:
        """Return the tensors of the state, in the order of the columns."""
        return [self.state[key] for key in self.keys]

    def is_plain(self) -> bool:
        """Return whether the parameter, its state and its gradient are contiguous, as nearly all are."""
        every = [self.param, *self.tensors(), *([] if self.param.grad is None else [self.param.grad])]
        return self.param.numel() > 0 and all(tensor.is_contiguous() and not tensor.is_neg() for tensor in every)

    def layouts(self) -> list[tuple[torch.Size, torch.dtype]]:
        """Return what the parameter and its state are, if not where: shapes and dtypes, nothing for what is gone."""
        every = [self.param, *(self.state.get(key) for key in self.keys)]
        return [(tensor.shape, tensor.dtype) for tensor in every if tensor is not None]


class Table:
    """All parameters with one signature, ready for its kernel, which a reader adds."""

    def __init__(self, signature: Signature, entries: Iterable[Entry]) -> None:
        self.signature = signature
        entries = sorted(entries, key=lambda entry: not entry.is_plain())
        self.entries = entries
        self.plain = sum(entry.is_plain() for entry in entries)
        self.params = [entry.param for entry in entries]
        self.states = [entry.state for entry in entries[: self.plain]]
        self.keys = entries[0].keys
        self.fixed = [list(map(itemgetter(key), self.states)) for key in self.keys]
        """Of the plain parameters, the tensors of their states, by key."""
        self.sizes = list(map(Tensor.numel, self.params))
        self.single = [place for place, size in enumerate(self.sizes[: self.plain]) if size == 1]
        """The plain parameters of one element, of which alone a negative view is contiguous."""
        self.groups = {entry.row for entry in entries}
        self.grads: list[Tensor | None] = []
        self.copies: list[tuple[Tensor | None, Tensor]] = []
        self.addresses = self._where()
        self.layouts = [entry.layouts() for entry in entries[self.plain :]]
        self.columns = array("q", bytes(8 * len(entries) * len(signature.columns)))
        for place, name in enumerate(signature.addresses):
            self._write(name, self.addresses[place * self.plain : (place + 1) * self.plain])
        self._write("row", [entry.row for entry in entries])
        self._write("index", [entry.index for entry in entries])
        self._write("elements", self.sizes)
        self.numbers = struct.Struct(f"{len(signature.numbers) - 1}dQ")
        self.rows = bytearray(self.numbers.size * (1 + max(self.groups)))

    def _write(self, column: str, values: Sequence[int], first: int = 0) -> None:
        start = self.signature.columns.index(column) * len(self.entries) + first
        self.columns[start : start + len(values)] = array("q", values)

    def write_row(self, row: int, numbers: Mapping[str, Mapping[str, Any]], factor: float, seed: int) -> None:
        """Set the numbers of one parameter group."""
        given = (numbers[kind].get(name, 0.0) for kind, name in self.signature.numbers[:-2])  # one of all tensors comes later
        values = (self.number(row, place, value) for place, value in enumerate(given))
        self.numbers.pack_into(self.rows, row * self.numbers.size, *values, factor, seed & _MASK)

    def number(self, row: int, place: int, value: Any) -> float:
        """Return a number as it is written into a row."""
        return float(value.item() if isinstance(value, Tensor) else value)

    def write_shared(self, shared: Mapping[str, Any]) -> None:
        """Set the numbers of all tensors, in the row of every parameter group."""
        for place, (_, name) in enumerate(self.signature.numbers):
            if name in shared:
                for row in self.groups:
                    value = self.number(row, place, shared[name])
                    struct.pack_into("d", self.rows, row * self.numbers.size + 8 * place, value)

    @property
    def scales(self) -> bool:
        """Return whether the kernel can unscale gradients, and skip a step, by itself."""
        return False

    def scale(self, found_inf: Tensor, unscale: Tensor) -> None:
        """Let the next step unscale gradients, and do nothing where found_inf is not 0."""
        raise NotImplementedError

    @abstractmethod
    def add_up(self) -> None:
        """Count the step, and find what these parameters add to numbers of all tensors."""

    @abstractmethod
    def shares(self) -> Iterator[Share]:
        """Yield the numbers of all tensors, each with this table's sums of its terms, and how many these are."""

    @abstractmethod
    def launch(self) -> None:
        """Run the kernel, for every parameter whose column g is not 0."""

    def run(self) -> None:
        """Step every parameter that has a gradient."""
        self.begin()
        self.end()

    def begin(self) -> None:
        """Begin a step, as far as it can be done without the numbers of all tensors."""
        self.copies = [copy for place in range(self.plain, len(self.entries)) for copy in self._lay_out(place)]
        self.add_up()

    def end(self) -> None:
        """Do the rest of a step that has begun."""
        self.launch()
        torch.autograd.graph.increment_version(self.moving)
        self.grads = []  # which would take memory during the next backward pass
        for target, copy in self.copies:
            if target is not None:
                target.copy_(copy)
        self.copies = []

    def read(self, grads: list[Tensor | None]) -> bool:
        """Take the gradients; return whether the kernel can read them, and all else is as when the table was made."""
        every: list[Any] = grads
        plain, sizes, moving = every[: self.plain], self.sizes, self.params
        is_partial = any(map(is_, grads, repeat(None)))
        if is_partial:
            there = [grad is not None for grad in grads]
            every, plain = list(compress(grads, there)), list(compress(plain, there))
            sizes, moving = list(compress(sizes, there)), list(compress(moving, there))
        if not (set(map(type, every)) <= ORDINARY and self._are_alike(every, self.signature.grad, sizes)):
            return False
        if not all(map(Tensor.is_contiguous, plain)) or any(map(_is_neg, map(grads.__getitem__, self.single))):
            return False
        if any(grad is not None and grad.layout != torch.strided for grad in grads[self.plain :]):
            return False
        try:
            found = list(map(Tensor.data_ptr, plain))
        except RuntimeError:  # a tensor that stands for none
            return False
        if not all(found) or not self.is_as_it_was():
            return False
        if is_partial:
            following = iter(found)
            found = [next(following) if is_there else 0 for is_there in there[: self.plain]]
        self._write("g", found)
        self.grads, self.moving = grads, moving
        return True

    def is_as_it_was(self) -> bool:
        """Return whether parameters and state are what and where they were when the table was made.

        Anyone may put another tensor into a state, or other memory into a tensor: a kernel would write into the old.
        """
        try:
            if not all(
                all(map(is_, map(itemgetter(key), self.states), then)) for key, then in zip(self.keys, self.fixed, strict=True)
            ):
                return False
        except KeyError:
            return False
        return (
            self._are_alike(self.params, self.signature.weight, self.sizes)
            and all(map(Tensor.is_contiguous, chain(self.params[: self.plain], *self.fixed[1:])))
            and self._where() == self.addresses
            and all(entry.layouts() == then for entry, then in zip(self.entries[self.plain :], self.layouts, strict=True))
        )

    @staticmethod
    def _are_alike(tensors: list[Tensor], dtype: torch.dtype, sizes: list[int]) -> bool:
        return list(map(_DTYPE, tensors)) == [dtype] * len(tensors) and list(map(Tensor.numel, tensors)) == sizes

    def _where(self) -> list[int]:
        """Return where the plain parameters and their states lie."""
        return list(map(Tensor.data_ptr, chain(self.params[: self.plain], *self.fixed)))

    def _lay_out(self, place: int) -> list[tuple[Tensor | None, Tensor]]:
        """Enter one parameter that is not contiguous, or whose state or gradient lies otherwise than it does.

        What does not lie as the parameter does is copied for the kernel. Returns the copies, after what they go back to.
        """
        entry, grad = self.entries[place], self.grads[place]
        if grad is None:
            self._write("g", [0], place)
            return []
        param = entry.param.detach()
        layout = param if is_dense(param) else torch.empty_like(param)
        copies: list[tuple[Tensor | None, Tensor]] = []

        def address(tensor: Tensor, *, written: bool = True) -> int:
            if tensor.is_neg() or not _lies_like(tensor, layout):
                copy = torch.empty_like(layout, dtype=tensor.dtype).copy_(tensor)
                copies.append((tensor if written else None, copy))
                tensor = copy
            return tensor.data_ptr()

        step, *held = entry.tensors()
        numbers = len(self.signature.memory)
        moments, memory = held[: len(held) - numbers], held[len(held) - numbers :]
        found = [address(param), step.data_ptr(), *map(address, moments), *map(Tensor.data_ptr, memory)]
        for name, value in zip(self.signature.addresses, found, strict=True):
            self._write(name, [value], place)
        self._write("g", [address(grad, written=False) or _NOWHERE], place)
        return copies


def _is_neg(grad: Tensor | None) -> bool:
    return grad is not None and grad.is_neg()


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill a piece of memory without gaps and without sharing a place, in any order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _lies_like(tensor: Tensor, layout: Tensor) -> bool:
    """Return whether two tensors of one shape have their elements in the same order in memory, without gaps."""
    sizes = zip(tensor.shape, tensor.stride(), layout.stride(), strict=True)
    return all(size == 1 or ours == theirs for size, ours, theirs in sizes)


def overlapping(entries: Iterable[Entry]) -> set[int]:
    """Return the places, among all parameters, of those whose weight or state shares memory with another's.

    They have to be stepped one after the other, and a kernel does all at once. What lies with gaps is copied anyway.
    """
    spans = [
        (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, entry.index)
        for entry in entries
        for tensor in (entry.param, *entry.tensors())
        if tensor.numel() and is_dense(tensor)
    ]
    found: set[int] = set()
    end, last = 0, -1
    for start, stop, index in sorted(spans):
        if start < end:
            found |= {last, index}
        if stop > end:
            end, last = stop, index
    return found


def unreadable(param: Tensor, grad: Tensor | None, *state: Tensor) -> str | None:
    """Return why no kernel at all can step a parameter with this gradient and state; None if one might."""
    if grad is not None and type(grad) not in ORDINARY:
        return f"its gradient is a {type(grad).__name__}"
    if grad is not None and not _has_memory(grad):
        return "its gradient has no memory of its own"
    for tensor in (param, *state) if grad is None else (param, grad, *state):
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            return f"it is a {type(tensor).__name__}, whose memory is not all there is to it"
        if tensor.layout != torch.strided:
            return f"it is {tensor.layout}"
        if tensor.dtype not in DTYPES:
            return f"it is {tensor.dtype}"
    return None


def _has_memory(tensor: Tensor) -> bool:
    try:
        return tensor.numel() == 0 or tensor.data_ptr() != 0
    except RuntimeError:  # a wrapper of torch.func's, or a sparse tensor
        return False
