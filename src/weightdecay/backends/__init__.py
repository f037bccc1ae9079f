"""The backends that read a rule. Each file or folder is one; the optimizer's `reader` argument names it."""

from functools import cache
from typing import TYPE_CHECKING

import torch

from weightdecay.display.near_names import hint
from weightdecay.display.warned import warn

if TYPE_CHECKING:
    from weightdecay.backends.dispatch import Kernels

READERS = ("eager", "cpu", "gpu")
"""Every reader there is. "auto" takes `cpu` and `gpu` for what they can do, and `eager` for the rest."""


def resolve(reader: str) -> str:
    """Return the reader's name, or refuse it."""
    if reader not in ("auto", *READERS):
        raise ValueError(f"reader={reader!r} is unknown: {hint(reader, ('auto', *READERS))}")
    if reader == "gpu":
        _gpu()
    return reader


def kernels(reader: str, device: torch.device) -> "Kernels | None":
    """Return the reader that makes kernels for a device; None where torch's operations do the step."""
    if reader == "cpu" or (reader == "auto" and device.type == "cpu"):
        from weightdecay.backends import cpu

        return cpu
    if reader == "gpu":
        return _gpu()
    return _gpu_if_there() if reader == "auto" and device.type == "cuda" else None


def _gpu() -> "Kernels":
    try:
        from weightdecay.backends.gpu import backend as reader
    except ImportError as error:
        gpu = "" if torch.cuda.is_available() else ", and a CUDA GPU, of which torch sees none"
        raise ImportError(f"reader='gpu' needs Triton{gpu}: pip install 'weightdecay[gpu]' ({error})") from None
    return reader


@cache
def _gpu_if_there() -> "Kernels | None":
    try:
        from weightdecay.backends.gpu import backend as reader

        reader.start()
    except Exception as error:  # there may be no Triton, or no C compiler for it
        why = f"it needs Triton, pip install 'weightdecay[gpu]': {error}" if isinstance(error, ImportError) else str(error)
        warn(
            f"the gpu reader cannot start, so parameters on the GPU are stepped by torch's operations, which is slower "
            f"(reader='eager' does so without this warning). {why}"
        )
        return None
    return reader
