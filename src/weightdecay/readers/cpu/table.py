"""The parameters that one kernel steps, by where they lie in memory.

A table is made once and used as long as everything lies where it lay. Each step finds out whether it does, and reads where
the gradients are: with hundreds of small parameters that is most of the work, so it is done list by list.
"""

import ctypes
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, compress, pairwise, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from weightdecay.readers.cpu import threads
from weightdecay.readers.cpu.kernel import CHUNK, FIXED_COLUMNS, JOB, Signature, kernel

PARTS_PER_THREAD = 4
"""So that a thread that was held up can leave work to another; decisions/0009 has the measurement."""
SERIAL = 16
"""Up to so many chunks are done by the calling thread: waking another costs more."""
_MASK = 2**64 - 1
ORDINARY = {Tensor, torch.nn.Parameter}
"""What a gradient may be an instance of: torch's own, with no other meaning of an operation."""
_DTYPE = attrgetter("dtype")
_NOWHERE = 1
"""The address of a gradient that has no elements: not that of none."""


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
    """All parameters with one signature, ready for its kernel."""

    def __init__(self, signature: Signature, entries: Iterable[Entry]) -> None:
        self.signature, self.kernel = signature, kernel(signature)
        entries = sorted(entries, key=lambda entry: not entry.is_plain())
        self.entries = entries
        self.plain = sum(entry.is_plain() for entry in entries)
        self.params = [entry.param for entry in entries]
        self.states = [entry.state for entry in entries[: self.plain]]
        self.keys = entries[0].keys
        self.fixed = [list(map(itemgetter(key), self.states)) for key in self.keys]
        """Of the plain parameters, the tensors of their states, by key."""
        self.sizes = list(map(Tensor.numel, self.params))
        chunks = [-(-size // CHUNK) for size in self.sizes]
        self.ends = list(accumulate(chunks))
        self.chunks = self.ends[-1]
        starts = [end - count for end, count in zip(self.ends, chunks, strict=True)]
        rows, indices = [entry.row for entry in entries], [entry.index for entry in entries]
        self.groups = set(rows)
        self.columns = array("q", bytes(8 * len(entries) * len(signature.columns)))
        for name, column in zip(FIXED_COLUMNS, (starts, self.ends, self.sizes, rows, indices), strict=False):
            self._write(name, column)
        self.grads: list[Tensor | None] = []
        self.copies: list[tuple[Tensor | None, Tensor]] = []
        self.addresses = self._where()
        self.layouts = [entry.layouts() for entry in entries[self.plain :]]
        held = signature.columns[len(FIXED_COLUMNS) : len(signature.columns) - len(signature.next)]
        for place, name in enumerate(("w", "step", *held)):
            self._write(name, self.addresses[place * self.plain : (place + 1) * self.plain])
        self.left = array("d", bytes(8 * len(entries) * len(signature.next)))
        for place, name in enumerate(signature.next):
            first = self.left.buffer_info()[0] + 8 * place * len(entries)
            self._write(name, range(first, first + 8 * len(entries), 8))
        self.numbers = struct.Struct(f"{len(signature.numbers) - 1}dQ")
        self.rows = bytearray(self.numbers.size * (1 + max(rows)))
        self.partials = array("d", bytes(8 * self.chunks * (len(self.kernel.passes) - 1)))
        self.job = array("q", bytes(8 * len(JOB)))
        for name, value in {
            "tensors": len(entries),
            "columns": self.columns.buffer_info()[0],
            "rows": ctypes.addressof(ctypes.c_char.from_buffer(self.rows)),
            "partials": self.partials.buffer_info()[0],
            "chunks": self.chunks,
        }.items():
            self.job[JOB.index(name)] = value
        self.threads = 0
        self.advance = threads.PASS(self.kernel.advance)
        self.passes = [threads.PASS(address) for address in self.kernel.passes]
        self.settle = threads.PASS(self.kernel.settle)

    def _write(self, column: str, values: Sequence[int], first: int = 0) -> None:
        start = self.signature.columns.index(column) * len(self.entries) + first
        self.columns[start : start + len(values)] = array("q", values)

    def write_row(self, row: int, numbers: Mapping[str, Mapping[str, Any]], factor: float, seed: int) -> None:
        """Set the numbers of one parameter group."""
        given = (numbers[kind].get(name, 0.0) for kind, name in self.signature.numbers[:-2])  # one of all tensors comes later
        values = (value.item() if isinstance(value, Tensor) else value for value in given)
        self.numbers.pack_into(self.rows, row * self.numbers.size, *values, factor, seed & _MASK)

    def write_shared(self, shared: Mapping[str, float]) -> None:
        """Set the numbers of all tensors, in every row."""
        for place, (_, name) in enumerate(self.signature.numbers):
            if name in shared:
                for start in range(8 * place, len(self.rows), self.numbers.size):
                    struct.pack_into("d", self.rows, start, shared[name])

    # Before a step ------------------------------------------------------------------------------------------------------

    def read(self, grads: list[Tensor | None]) -> bool:
        """Take the gradients; return whether the kernel can read them, and all else is as when the table was made."""
        there = [grad is not None for grad in grads]
        every = [grad for grad in grads if grad is not None]
        plain = [grad for grad in grads[: self.plain] if grad is not None]
        sizes = list(compress(self.sizes, there))
        if not (set(map(type, every)) <= ORDINARY and self._are_alike(every, self.signature.grad, sizes)):
            return False
        if not all(map(Tensor.is_contiguous, plain)) or any(grad.is_neg() for grad in plain if grad.numel() == 1):
            return False
        if any(grad is not None and grad.layout != torch.strided for grad in grads[self.plain :]):
            return False
        try:
            found = list(map(Tensor.data_ptr, plain))
        except RuntimeError:  # a tensor that stands for none
            return False
        if not all(found) or not self.is_as_it_was():
            return False
        following = iter(found)
        self._write("g", [next(following) if is_there else 0 for is_there in there[: self.plain]])
        self.grads = grads
        self.moving = self.params if all(there) else list(compress(self.params, there))
        return True

    def is_as_it_was(self) -> bool:
        """Return whether parameters and state are what and where they were when the table was made.

        Anyone may put another tensor into a state, or other memory into a tensor: a kernel would write into the old.
        """
        try:
            states = [list(map(itemgetter(key), self.states)) for key in self.keys]
        except KeyError:
            return False
        return (
            all(all(map(is_, now, then)) for now, then in zip(states, self.fixed, strict=True))
            and self._are_alike(self.params, self.signature.weight, self.sizes)
            and all(map(Tensor.is_contiguous, chain(self.params[: self.plain], *self.fixed[1:])))
            and self._where() == self.addresses
            and all(entry.layouts() == then for entry, then in zip(self.entries[self.plain :], self.layouts, strict=True))
        )

    @staticmethod
    def _are_alike(tensors: list[Tensor], dtype: torch.dtype, sizes: list[int]) -> bool:
        return all(map(is_, map(_DTYPE, tensors), repeat(dtype))) and list(map(Tensor.numel, tensors)) == sizes

    def _where(self) -> list[int]:
        """Return where the plain parameters and their states lie."""
        return list(map(Tensor.data_ptr, chain(self.params[: self.plain], *self.fixed)))

    # The step -----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Step every parameter that has a gradient."""
        self.begin()
        self.end()

    def begin(self) -> None:
        """Count the step, and find what these parameters add to numbers of all tensors."""
        self.copies = [copy for place in range(self.plain, len(self.entries)) for copy in self._lay_out(place)]
        count = threads.threads() if self.chunks > SERIAL else 1
        if count != self.threads:
            self._share_out(count)
        self.advance(0, 1, self.job.buffer_info()[0])
        if self.signature.shares:
            self.partials[:] = array("d", bytes(8 * len(self.partials)))  # what has no gradient now adds nothing
        self._do(self.passes[: len(self.signature.shares)])

    def shares(self) -> Iterator[tuple[str, list[float], int]]:
        """Yield the numbers of all tensors, each with this table's sums of its terms, and how many these are."""
        moving = sum(map(Tensor.numel, self.moving))
        for place, name in enumerate(self.signature.shares):
            yield name, self.partials[place * self.chunks : (place + 1) * self.chunks].tolist(), moving

    def end(self) -> None:
        """Do the rest of a step that has begun."""
        self._do(self.passes[len(self.signature.shares) :])
        if self.signature.next:
            self.settle(0, 1, self.job.buffer_info()[0])
        torch.autograd.graph.increment_version(self.moving)
        self.grads = []  # which would take memory during the next backward pass
        for target, copy in self.copies:
            if target is not None:
                target.copy_(copy)
        self.copies = []

    def _do(self, passes: Iterable[Any]) -> None:
        for each in passes:
            self.job[0] = 0
            threads.parallel(each, self.job.buffer_info()[0], self.threads)

    def _share_out(self, count: int) -> None:
        """Cut the chunks into parts for this many threads."""
        self.threads = count
        parts = max(1, min(self.chunks, count * PARTS_PER_THREAD if count > 1 else 1))
        edges = [self.chunks * part // parts for part in range(parts + 1)]
        table = array("q")
        for chunk, end in pairwise(edges):
            table.extend((bisect_right(self.ends, chunk), chunk, end))
        self.part_table = table
        self.job[JOB.index("parts")] = parts
        self.job[JOB.index("part_table")] = table.buffer_info()[0]

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
        values = {"step": step.data_ptr(), "w": address(param), "g": address(grad, written=False) or _NOWHERE}
        names = self.signature.columns[len(FIXED_COLUMNS) :]
        values.update(zip(names, [*map(address, moments), *map(Tensor.data_ptr, memory)], strict=False))
        for name, value in values.items():
            self._write(name, [value], place)
        return copies


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
