"""A table of parameters on the device, rebuilt only when parameters, gradients or numbers have changed."""

import ctypes
import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from weightdecay.backends import counting, param_table
from weightdecay.backends.eager import Share
from weightdecay.backends.gpu.codegen import BLOCK, Signature
from weightdecay.backends.gpu.kernel import kernel, launch

BLOCKS_PER_PROGRAM = 16
"""At most, so that what a program computes once is little beside what it does per element."""
PROGRAMS = 2048
"""Rather so many programs than large ones: every multiprocessor needs several."""
PARTIALS = 1024
"""At most so many parts of a tensor leave a partial sum, since every part then reads them all."""
_SETTLE = 128


def _count_of(entry: param_table.Entry) -> ctypes.c_float:
    """Return the step count of a parameter where it lies in the host's memory."""
    return ctypes.c_float.from_address(entry.state["step"].data_ptr())


class Table(param_table.Table):
    """All parameters with one signature, ready for its kernel."""

    signature: Signature

    def __init__(self, signature: Signature, entries: Iterable[param_table.Entry]) -> None:
        super().__init__(signature, entries)
        self.kernel = kernel(signature)
        device, count = signature.device, len(self.entries)
        blocks = [max(1, -(-size // BLOCK)) for size in self.sizes]  # one even of nothing: what is kept per tensor moves on
        usual = min(BLOCKS_PER_PROGRAM, max(1, sum(blocks) // PROGRAMS))
        longest = PARTIALS if self.kernel.sums else max(blocks) + 1
        per_program = [max(usual, -(-each // longest)) for each in blocks]
        parts = [-(-each // size) for each, size in zip(blocks, per_program, strict=True)]
        ends = list(accumulate(parts))
        self._write("blocks", per_program)
        self._write("first", [end - each for end, each in zip(ends, parts, strict=True)])
        self.parts = ends[-1]
        places = torch.arange(count, dtype=torch.int32, device="cpu")  # whatever the default device is
        self.of = torch.repeat_interleave(places, torch.tensor(parts, device="cpu"))
        self.on_device = torch.zeros(len(self.columns) + len(self.rows) // 8, dtype=torch.int64, device=device)
        self.moving_from = signature.columns.index("g") * count
        self.sent = b""
        doubles = partial(torch.zeros, dtype=torch.float64, device=device)
        self.partials = doubles(max(1, self.parts * self.kernel.sums))
        self.arguments = [
            self.on_device,
            self.of.to(device, non_blocking=self._is_capturing()),
            self.partials,
            doubles(max(1, count * len(signature.next))),
        ]
        self.unscaled = torch.zeros(1, device=device), torch.ones(1, device=device)
        self.scaled: tuple[Tensor, Tensor] | None = None
        self.live: dict[int, Tensor] = {}
        """Numbers that are tensors on the device, by their place in the table: they are copied there, never read here."""
        self.counts = [] if signature.counted else list(map(_count_of, self.entries[: self.plain]))
        """The step counts on the host: an operation of torch's for each of hundreds would take longer than all else."""
        self.streams = {self._stream()}
        """The streams that the tensors above are known to be used on."""
        self.captured = False
        """Whether a graph brings its own table when it is replayed."""
        self.spare: Tensor | None = self._staging()
        """Memory for what the next graph copies it from."""

    def number(self, row: int, place: int, value: Any) -> float:
        """Return a number as the host writes it into a row; one of the device is written there, at each step."""
        at = len(self.columns) + row * len(self.signature.numbers) + place
        self.live.pop(at, None)
        if not isinstance(value, Tensor):
            return float(value)
        if value.device.type != self.signature.device.type:
            return float(value.item())
        self.live[at] = value
        return math.nan  # unlike any number that may come after it

    @property
    def scales(self) -> bool:
        """Return whether the kernel can unscale gradients, and skip a step, by itself: the host must not have counted it."""
        return self.signature.counted

    def scale(self, found_inf: Tensor, unscale: Tensor) -> None:
        """Let the next step unscale gradients, and do nothing where found_inf is not 0."""
        device = self.signature.device
        self.scaled = found_inf.to(device, torch.float32), unscale.to(device, torch.float32)

    def add_up(self) -> None:
        """Count the step where the host does, and find what these parameters add to numbers of all tensors."""
        if not self.signature.counted:
            self._count()
        if self.kernel.begun:
            self.partials.zero_()  # what has no gradient now adds nothing
            self._run(self.kernel.passes[: self.kernel.begun])

    def shares(self) -> Iterator[Share]:
        """Yield the numbers of all tensors, each with this table's sum of its terms, on the device, and how many these are."""
        moving = sum(map(Tensor.numel, self.moving)) if self.signature.shares else 0
        for place, name in zip(self.kernel.shares, self.signature.shares, strict=True):
            yield name, [self.partials[place * self.parts : (place + 1) * self.parts].sum()], moving

    def launch(self) -> None:
        """Run the passes that write, and settle what they leave."""
        self._run(self.kernel.passes[self.kernel.begun :], self.kernel.settle)
        self.scaled = None

    def _run(self, passes: Sequence[Any], settle: Any = None) -> None:
        """Send what has changed, and launch."""
        if not self.moving:
            return
        with self._device():
            self._hold()
            self._send()
            arguments = [*self.arguments, *(self.scaled or self.unscaled), len(self.entries), self.parts]
            for each in passes:
                launch(each, self.parts, arguments)
            if settle is not None:
                launch(settle, -(-len(self.entries) // _SETTLE), arguments, _SETTLE)

    def _hold(self) -> None:
        """Keep the table's memory, when it is dropped, from others until a stream that it was not made on has done with it."""
        stream = self._stream()
        if stream is not None and stream not in self.streams and not self._is_capturing():
            self.streams.add(stream)
            for each in (*self.arguments, *self.unscaled):
                each.record_stream(stream)

    def _stream(self) -> torch.Stream | None:
        device = self.signature.device
        return torch.cuda.current_stream(device) if device.type == "cuda" else None

    def _is_capturing(self) -> bool:
        return self.signature.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.signature.device) if self.signature.device.type == "cuda" else nullcontext()

    def _count(self) -> None:
        """Count the step on the host, and enter the counts."""
        if not self.moving:
            return
        counts = [*self.counts, *map(_count_of, self.entries[self.plain :])]
        there = counts
        if self.moving is not self.params:
            there = [count for count, grad in zip(counts, self.grads, strict=True) if grad is not None]
        after = {count: counting.following_of_host(count) for count in {count.value for count in there}}
        for count in there:
            count.value = after[count.value]
        self._write("t", [ctypes.c_int32.from_buffer(count).value for count in counts])

    # What is sent to the device -----------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Bring the table on the device up to date."""
        now = self.columns.tobytes() + bytes(self.rows)
        host = self._captured(now)
        if host is not None:
            self.on_device.copy_(host, non_blocking=True)
        elif now != self.sent or self.captured:  # a replay may have been there
            cut = 8 * self.moving_from
            start = self.moving_from if now[:cut] == self.sent[:cut] and not self.captured else 0
            self.on_device[start:].copy_(self._staged(now)[start:], non_blocking=True)
            self.sent = now
        if self.live:
            rows = self.on_device.view(torch.float64)
            torch._foreach_copy_([rows[at] for at in self.live], [value.reshape(()) for value in self.live.values()])

    def _staged(self, content: bytes) -> Tensor:
        """Return the content where the device copies from; torch gives that memory to nobody else before the copy is done."""
        host = torch.frombuffer(bytearray(content), dtype=torch.int64)
        if self.signature.device.type != "cuda":
            return host
        if self.spare is None:
            self.spare = self._staging()
        return self._staging().copy_(host)

    def _captured(self, content: bytes) -> Tensor | None:
        """Return the content where a graph copies from, at every replay, so that it is never written again; else None.

        Each graph brings its own table: another may have been there, or a step that no graph has captured.
        """
        if not self._is_capturing():
            return None
        host, self.spare = self._staging() if self.spare is None else self.spare, None
        self.captured = True
        # The graph reads and writes these as long as its parameters are there, whatever becomes of this table.
        weakref.finalize(self.params[0], [host, self.of, *self.arguments, *self.unscaled].clear)
        return host.copy_(torch.frombuffer(bytearray(content), dtype=torch.int64))

    def _staging(self) -> Tensor:
        """Return memory of the host for the table: pinned, but while a graph is captured, which is no time to ask for that."""
        pinned = self.signature.device.type == "cuda" and not self._is_capturing()
        return torch.empty(len(self.on_device), dtype=torch.int64, device="cpu", pin_memory=pinned)
