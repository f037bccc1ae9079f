"""The parameters that one kernel steps, by where they lie in memory.

A table is made once and used as long as everything lies where it lay. Each step finds out whether it does, and reads where
the gradients are: with hundreds of small parameters that is most of the work, so it is done list by list.
"""

import struct
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress, repeat
from operator import add, call, ge, is_, itemgetter, mul
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from weightdecay.backends.eager import Share
from weightdecay.backends.memory import (
    ORDINARY,
    Likeness,
    Spans,
    contiguous_form,
    form,
    is_dense,
    is_readable,
    is_wrapper,
    lies_like,
)
from weightdecay.update_rules.equation import Equation
from weightdecay.update_rules.state import Kept

_MASK = 2**64 - 1
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What the elements of parameters, gradients and moments may be."""
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
    state: Mapping[str, Any]
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

    def written(self) -> list[Tensor]:
        """Return the tensors that a step writes."""
        return [self.param, *self.tensors()]

    def forms(self) -> list[Any]:
        """Return what the parameter and its state are, and where."""
        every = [self.param, *(self.state.get(key) for key in self.keys)]
        return [(form(each), each.data_ptr() if isinstance(each, Tensor) else None) for each in every]

    def has_memory(self) -> bool:
        """Return whether the memory of the parameter and its state is there."""
        return all(map(is_readable, self.written()))


class Written:
    """What a step writes, for gradients that might lie there: a kernel would read what another thread has written."""

    def __init__(self, tensors: Iterable[tuple[Tensor, int]]) -> None:
        """Take tensors with the places of their parameters in the optimizer."""
        self._tensors = list(tensors)
        self.storages = {id(tensor.untyped_storage()) for tensor, _ in self._tensors}
        """By their identities: a gradient with another has memory of its own."""
        self._spans: Spans | None = None

    def are_apart(self, grads: Iterable[tuple[Tensor, int]]) -> bool:
        """Return whether each gradient lies beside it all, or upon a tensor of its own parameter's, element by element."""
        if self._spans is None:
            self._spans = Spans(self._tensors)
        return not any(next(self._spans.foreign(grad, owner), None) is not None for grad, owner in grads if grad.numel())


class Table:
    """All parameters with one signature, ready for its kernel, which a backend adds."""

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
        self.groups = {entry.row for entry in entries}
        self.grads: list[Tensor | None] = []
        self.copies: list[tuple[Tensor | None, Tensor]] = []
        self.addresses = self._where()
        plain = self.params[: self.plain]
        self.elements = [*plain, *chain(*self.fixed[1 : len(self.keys) - len(signature.memory)])]
        """Of the plain parameters, the weights and what is kept for each of their elements."""
        self.own_forms = Likeness(list(map(form, self.elements)))
        self.grad_forms = Likeness([contiguous_form(param, signature.grad) for param in plain])
        self.grad_bytes = [size * signature.grad.itemsize for size in self.sizes[: self.plain]]
        self.storages = [weakref.ref(tensor.untyped_storage()) for tensor in self.elements]
        self.storage_sizes = self._storage_sizes()
        self.written = Written((tensor, entry.index) for entry in entries for tensor in entry.written())
        """All that the step writes; a plan adds what others do."""
        self.forms = [entry.forms() for entry in entries[self.plain :]]
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
        plain, which, moving = every[: self.plain], None, self.params
        bytes_: Iterable[int] = self.grad_bytes
        places: Iterable[int] = range(len(every))
        if any(map(is_, grads, repeat(None))):
            there = [grad is not None for grad in grads]
            which = there[: self.plain]
            every, plain, bytes_ = list(compress(grads, there)), list(compress(plain, which)), compress(bytes_, which)
            moving, places = list(compress(self.params, there)), compress(places, there)
        try:
            if not self.grad_forms.holds(plain, which):
                return False
            found = list(map(Tensor.data_ptr, plain))
            storages = list(map(Tensor.untyped_storage, every))
        except RuntimeError:  # a tensor that stands for none
            return False
        offsets: Iterable[Any] = map(Tensor.storage_offset, plain)
        ends = map(add, bytes_, map(mul, offsets, repeat(self.signature.grad.itemsize)))
        if not all(found) or not all(map(ge, map(UntypedStorage.nbytes, storages), ends)):
            return False
        if not all(map(self._can_copy, every[len(plain) :], moving[len(plain) :])) or not self.is_as_it_was():
            return False
        if not self.written.storages.isdisjoint(map(id, storages)):
            near = ((grad, self.entries[place].index) for grad, place in zip(every, places, strict=True))
            if not self.written.are_apart(near):
                return False
        if which is not None:
            following = iter(found)
            found = [next(following) if is_there else 0 for is_there in which]
        self._write("g", found)
        self.grads, self.moving = grads, moving
        return True

    def is_as_it_was(self) -> bool:
        """Return whether parameters and state are what and where they were when the table was made.

        Anyone may put another tensor into a state, or other memory into a tensor: a kernel would write into the old. Numbers
        are looked at for their places only: what is read there is there.
        """
        try:
            if not all(
                all(map(is_, map(itemgetter(key), self.states), then)) for key, then in zip(self.keys, self.fixed, strict=True)
            ):
                return False
            return (
                self.own_forms.holds(self.elements)
                and self._where() == self.addresses
                and self._storage_sizes() == self.storage_sizes
                and all(
                    entry.forms() == then and entry.has_memory()
                    for entry, then in zip(self.entries[self.plain :], self.forms, strict=True)
                )
            )
        except (KeyError, RuntimeError, TypeError):  # an entry is gone, a tensor has no address, a storage is no more
            return False

    def _can_copy(self, grad: Tensor, param: Tensor) -> bool:
        """Return whether a gradient can be read beside a parameter that is not contiguous: by address, or else from a copy."""
        kind, dtype, device, layout, shape, _, (_, conj, zero) = form(grad)
        expected = Tensor, self.signature.grad, param.device, torch.strided, param.shape
        return (kind, dtype, device, layout, shape) == expected and not (conj or zero) and is_readable(grad)

    def _storage_sizes(self) -> list[int]:
        """Return how large the storages of the plain parameters and their moments are; TypeError if one is gone."""
        alive: Iterable[Any] = map(call, self.storages)
        return list(map(UntypedStorage.nbytes, alive))

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
            if tensor.is_neg() or not lies_like(tensor, layout):
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


def unreadable(param: Tensor, grad: Tensor | None, *moments: Tensor) -> str | None:
    """Return why no kernel at all can step a parameter with this gradient and moments; None if one might."""
    if grad is not None and type(grad) not in ORDINARY:
        return f"its gradient is a {type(grad).__name__}"
    if grad is not None and (grad._is_zerotensor() or not is_readable(grad)):
        return "its gradient has no memory of its own"
    for tensor in (param, *moments) if grad is None else (param, grad, *moments):
        if is_wrapper(tensor):
            return f"it is a {type(tensor).__name__}, whose memory is not all there is to it"
        if tensor.layout != torch.strided:
            return f"it is {tensor.layout}"
        if tensor.dtype not in _DTYPES:
            return f"it is {tensor.dtype}"
        if not is_readable(tensor):
            return "it has no memory of its own"
    return None
