"""A table of parameters on the device, rebuilt only when parameters, gradients or numbers have changed."""

import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from weightdecay.readers import table
from weightdecay.readers.eager import Share
from weightdecay.readers.gpu.kernel import kernel, launch
from weightdecay.readers.gpu.source import BLOCK, Signature

BLOCKS_PER_PROGRAM = 16
"""At most, so that what a program computes once is little beside what it does per element."""
PROGRAMS = 2048
"""Rather so many programs than large ones: every multiprocessor needs several."""
PARTIALS = 1024
"""At most so many parts of a tensor leave a partial sum, since every part then reads them all."""
_SETTLE = 128


class Table(table.Table):
    """All parameters with one signature, ready for its kernel."""

    signature: Signature

    def __init__(self, signature: Signature, entries: Iterable[table.Entry]) -> None:
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
        of = torch.repeat_interleave(torch.arange(count, dtype=torch.int32), torch.tensor(parts, dtype=torch.int64))
        self.on_device = torch.zeros(len(self.columns) + len(self.rows) // 8, dtype=torch.int64, device=device)
        self.moving_from = signature.columns.index("g") * count
        self.sent = b""
        doubles = partial(torch.zeros, dtype=torch.float64, device=device)
        self.partials = doubles(max(1, self.parts * self.kernel.sums))
        self.arguments = [
            self.on_device,
            of.to(device),
            self.partials,
            doubles(max(1, count * len(signature.next))),
        ]
        self.unscaled = torch.zeros(1, device=device), torch.ones(1, device=device)
        self.scaled: tuple[Tensor, Tensor] | None = None
        self.live: dict[int, Tensor] = {}
        """Numbers that are tensors on the device, by their place in the table: they are copied there, never read here."""
        self.captured = False
        """Whether a graph brings its own table when it is replayed."""
        self.spare: Tensor | None = self._staging()
        """Memory for what the next graph copies it from: a capture is no time to ask for some."""

    def number(self, row: int, place: int, value: Any) -> float:
        """Return a number as the host writes it into a row; one of the device is written there, at each step."""
        at = len(self.columns) + row * len(self.signature.numbers) + place
        self.live.pop(at, None)
        if not isinstance(value, Tensor):
            return float(value)
        if value.device.type != self.signature.device.type:
            return float(value.item())
        self.live[at] = value
        return 0.0

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
        moving = sum(map(Tensor.numel, self.moving))
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
            self._send()
            arguments = [*self.arguments, *(self.scaled or self.unscaled), len(self.entries), self.parts]
            for each in passes:
                launch(each, self.parts, arguments)
            if settle is not None:
                launch(settle, -(-len(self.entries) // _SETTLE), arguments, _SETTLE)

    def _device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.signature.device) if self.signature.device.type == "cuda" else nullcontext()

    def _count(self) -> None:
        """Count the step on the host, and enter the counts."""
        if not self.moving:
            return
        there = [place for place, grad in enumerate(self.grads) if grad is not None]
        counts = [self.entries[place].state["step"] for place in there]
        torch._foreach_add_(counts, 1)
        t = array("q", bytes(8 * len(self.entries)))
        for place, count in zip(there, torch.stack(counts).tolist(), strict=True):
            t[place] = int(count)
        self._write("t", t)

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
        if self.signature.device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            return None
        host, self.spare = self._staging() if self.spare is None else self.spare, None
        self.captured = True
        # The graph reads and writes these as long as its parameters are there, whatever becomes of this table.
        weakref.finalize(self.params[0], [host, *self.arguments, *self.unscaled].clear)
        return host.copy_(torch.frombuffer(bytearray(content), dtype=torch.int64))

    def _staging(self) -> Tensor:
        return torch.empty(len(self.on_device), dtype=torch.int64, pin_memory=self.signature.device.type == "cuda")
