"""A table of parameters on the device, rebuilt only when parameters, gradients or numbers have changed."""

from array import array
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from weightdecay.readers import table
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
        doubles = {"dtype": torch.float64, "device": device}
        self.arguments = [
            self.on_device,
            of.to(device),
            torch.zeros(max(1, self.parts * self.kernel.sums), **doubles),
            torch.zeros(max(1, count * len(signature.next)), **doubles),
        ]
        self.unscaled = torch.zeros(1, device=device), torch.ones(1, device=device)
        self.scaled: tuple[Tensor, Tensor] | None = None
        self.live: dict[int, Tensor] = {}
        """Numbers that are tensors on the device, by their place in the table: they are copied there, never read here."""
        self.captured: list[Tensor] = []
        self.spare = self._staging()

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

    def scale(self, found_inf: Tensor, unscale: Tensor) -> bool:
        """Let the next launch unscale gradients, and do nothing where found_inf is not 0."""
        device = self.signature.device
        if not self.signature.counted:
            return False
        self.scaled = found_inf.to(device, torch.float32), unscale.to(device, torch.float32)
        return True

    def launch(self) -> None:
        """Count a step, send what has changed, and run the passes."""
        if not self.moving:
            return
        if not self.signature.counted:
            self._count()
        with self._device():
            self._send()
            arguments = [*self.arguments, *(self.scaled or self.unscaled), len(self.entries), self.parts]
            for each in self.kernel.passes:
                launch(each, self.parts, arguments)
            if self.kernel.settle is not None:
                launch(self.kernel.settle, -(-len(self.entries) // _SETTLE), arguments, _SETTLE)
        self.scaled = None

    def _device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.signature.device) if self.signature.device.type == "cuda" else nullcontext()

    def _count(self) -> None:
        """Count the step on the host, and enter the counts."""
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
        if now != self.sent:
            cut = 8 * self.moving_from
            start = self.moving_from if now[:cut] == self.sent[:cut] else 0
            host = self._staged(now)
            self.on_device[start:].copy_(host[start:], non_blocking=True)
            self.sent = now
        if self.live:
            rows = self.on_device.view(torch.float64)
            torch._foreach_copy_([rows[at] for at in self.live], [value.reshape(()) for value in self.live.values()])

    def _staged(self, content: bytes) -> Tensor:
        """Return the content where the device copies from.

        A copy that a graph captures is done again at every replay: what it copies from is never written again.
        """
        if self.signature.device.type != "cuda":
            return torch.frombuffer(bytearray(content), dtype=torch.int64)
        if torch.cuda.is_current_stream_capturing():
            host = self.spare
            self.captured.append(host)
            self.spare = self._staging()
        else:
            host = self._staging()  # torch gives its memory to nobody else before the copy is done
        host.copy_(torch.frombuffer(bytearray(content), dtype=torch.int64))
        return host

    def _staging(self) -> Tensor:
        return torch.empty(len(self.on_device), dtype=torch.int64, pin_memory=self.signature.device.type == "cuda")
