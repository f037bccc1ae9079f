"""Runs a rule as machine code: one kernel for all CPU parameters of a kind, at the speed of the memory.

`kernel.py` writes the loops around a step, `ops.py` gives operators and operations their meaning in LLVM, `jit.py` compiles,
`param_table.py` makes a kernel's arguments of the parameters, and `threads.py` runs it on torch's threads.
"""

from typing import Any

from torch import Tensor

from weightdecay.backends.cpu.kernel import Signature, can_hold
from weightdecay.backends.cpu.param_table import Table as table  # noqa: N813
from weightdecay.backends.param_table import unreadable

__all__ = ["refusal", "signature", "table"]


def signature(param: Tensor, capturable: bool, **given: Any) -> Signature:
    """Return which kernel steps a parameter; what is given are the fields of a Signature."""
    return Signature(**given)


def refusal(param: Tensor, grad: Tensor | None, *moments: Tensor) -> str | None:
    """Return why no kernel can step a parameter with this gradient and moments; None if one can."""
    why = unreadable(param, grad, *moments)
    for tensor in (param, *moments) if grad is None else (param, grad, *moments):
        if why is None and tensor.device.type != "cpu":
            why = f"it is on {tensor.device}"
        if why is None and not can_hold(tensor.dtype):
            why = f"this processor has no instruction for {tensor.dtype}"
    return why
