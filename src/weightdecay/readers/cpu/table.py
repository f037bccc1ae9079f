"""A table of parameters, as the job of a kernel that torch's threads share out."""

import ctypes
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate, pairwise

from weightdecay.readers import table
from weightdecay.readers.cpu import threads
from weightdecay.readers.cpu.kernel import CHUNK, JOB, Signature, kernel

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
        self.partials = array("d", bytes(8 * self.chunks * (len(self.kernel.passes) - 1)))
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

    def launch(self) -> None:
        """Count a step, run the passes on as many threads as they are worth, and take over what they leave."""
        count = threads.threads() if self.chunks > SERIAL else 1
        if count != self.threads:
            self._share_out(count)
        job = self.job.buffer_info()[0]
        self.advance(0, 1, job)
        for each in self.passes:
            self.job[0] = 0
            threads.parallel(each, job, self.threads)
        if self.signature.next:
            self.settle(0, 1, job)

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
