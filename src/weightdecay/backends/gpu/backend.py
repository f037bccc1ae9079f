"""What an optimizer asks of this backend; importing it imports Triton."""

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from weightdecay.backends.gpu.codegen import Signature
from weightdecay.backends.gpu.libdevice import INTERPRETED
from weightdecay.backends.gpu.param_table import Table as table  # noqa: N813
from weightdecay.backends.param_table import unreadable

__all__ = ["INTERPRETED", "refusal", "signature", "start", "table"]

_OLDEST = (7, 5)
"""The compute capability that Triton compiles for at least."""


def start() -> None:
    """Start Triton's driver: for that it compiles some C, once on a machine, and raises whatever keeps it from it."""
    if not INTERPRETED:
        triton.runtime.driver.active  # noqa: B018


def signature(param: Tensor, capturable: bool, **given: Any) -> Signature:
    """Return which kernel steps a parameter; what is given are the fields of a Signature."""
    return Signature(**given, device=param.device, counted=capturable)


def refusal(param: Tensor, grad: Tensor | None, *moments: Tensor) -> str | None:
    """Return why no kernel can step a parameter with this gradient and moments; None if one can."""
    why = unreadable(param, grad, *moments)
    if why is not None:
        return why
    if param.device.type != ("cpu" if INTERPRETED else "cuda"):
        return f"it is on {param.device}"
    if param.device.type == "cuda" and torch.version.hip is None and _capability(param.device) < _OLDEST:
        return f"it is on {torch.cuda.get_device_name(param.device)}, for which Triton does not compile"
    elsewhere = next((each for each in (*moments, *([] if grad is None else [grad])) if each.device != param.device), None)
    return None if elsewhere is None else f"its moments or gradient are on {elsewhere.device}"


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
