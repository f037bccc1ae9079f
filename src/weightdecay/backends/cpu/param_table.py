"""A table of parameters, as the job of a kernel that torch's threads share out."""

import ctypes
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from weightdecay.backends import param_table as table
from weightdecay.backends.cpu import threads
from weightdecay.backends.cpu.kernel import CHUNK, JOB, Signature, kernel
from weightdecay.backends.eager import Share

PARTS_PER_THREAD = 4
"""So that a thread that was held up can leave work to another; decisions/0009 has the measurement."""
SERIAL = 16
"""Up to so many chunks are done by the calling thread: waking another costs more."""


class Table(table.Table):
    """All parameters with one signature, ready for its kernel."""

    def __init__(self, signature: Signature, entries: Iterable[table.Entry]) -> None:
        super().__init__(signature, entries)
        self.kernel = kernel(signature)
        count = len(self.entries)
        chunks = [-(-size // CHUNK) for size in self.sizes]
        self.ends = list(accumulate(chunks))
        self.chunks = self.ends[-1]
        self._write("chunk", [end - count for end, count in zip(self.ends, chunks, strict=True)])
        self._write("end", self.ends)
        self.left = array("d", bytes(8 * count * len(signature.next)))
        for place, name in enumerate(signature.next):
            first = self.left.buffer_info()[0] + 8 * place * count
            self._write(name, range(first, first + 8 * count, 8))
        self.partials = array("d", bytes(8 * self.chunks * self.kernel.sums))
        self.job = array("q", bytes(8 * len(JOB)))
        for name, value in {
            "tensors": count,
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

    def add_up(self) -> None:
        """Count the step, and find what these parameters add to numbers of all tensors."""
        count = threads.threads() if self.chunks > SERIAL else 1
        if count != self.threads:
            self._share_out(count)
        self.advance(0, 1, self.job.buffer_info()[0])
        if self.signature.shares:
            self.partials[:] = array("d", bytes(8 * len(self.partials)))  # what has no gradient now adds nothing
        self._do(self.passes[: self.kernel.begun])

    def shares(self) -> Iterator[Share]:
        """Yield the numbers of all tensors, each with this table's sums of its terms, and how many these are."""
        moving = sum(map(Tensor.numel, self.moving)) if self.signature.shares else 0
        for place, name in zip(self.kernel.shares, self.signature.shares, strict=True):
            yield name, self.partials[place * self.chunks : (place + 1) * self.chunks].tolist(), moving

    def launch(self) -> None:
        """Run the passes on as many threads as they are worth, and take over what they leave."""
        self._do(self.passes[self.kernel.begun :])
        if self.signature.next:
            self.settle(0, 1, self.job.buffer_info()[0])

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
