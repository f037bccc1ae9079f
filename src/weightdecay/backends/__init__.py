"""The backends, each of which runs a rule in its own way. The optimizer's `backend` argument names one.

Start with `eager.py`, which is the reference: torch's operations, tensor by tensor. `cpu/` and `gpu/` compile kernels, each
for a kind of parameter: `passes.py` says what a kernel has to do, `expressions.py` how a rule becomes its code, and
`param_table.py` lists the parameters that one launch steps. `dispatch.py` decides which backend steps which parameter;
`memory.py` tells whether a kernel may use an address; `rounding.py` has the three ways to round; `recent.py` keeps kernels.
"""

from functools import cache
from typing import TYPE_CHECKING

import torch

from weightdecay.display.near_names import hint
from weightdecay.display.user_warning import warn

if TYPE_CHECKING:
    from weightdecay.backends.dispatch import Kernels

BACKENDS = ("eager", "cpu", "gpu")
"""Every backend there is. "auto" takes `cpu` and `gpu` for what they can do, and `eager` for the rest."""


def resolve(backend: str) -> str:
    """Return the backend's name, or refuse it."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend={backend!r} is unknown: {hint(backend, ('auto', *BACKENDS))}")
    if backend == "gpu":
        _gpu()
    return backend


def kernels(backend: str, device: torch.device) -> "Kernels | None":
    """Return the backend that makes kernels for a device; None where torch's operations do the step."""
    if backend == "cpu" or (backend == "auto" and device.type == "cpu"):
        from weightdecay.backends import cpu

        return cpu
    if backend == "gpu":
        return _gpu()
    return _gpu_if_there() if backend == "auto" and device.type == "cuda" else None


def _gpu() -> "Kernels":
    try:
        from weightdecay.backends.gpu import backend
    except ImportError as error:
        gpu = "" if torch.cuda.is_available() else ", and a CUDA GPU, of which torch sees none"
        raise ImportError(f"backend='gpu' needs Triton{gpu}: pip install 'weightdecay[gpu]' ({error})") from None
    return backend


@cache
def _gpu_if_there() -> "Kernels | None":
    try:
        from weightdecay.backends.gpu import backend

        backend.start()
    except Exception as error:  # there may be no Triton, or no C compiler for it
        why = f"it needs Triton, pip install 'weightdecay[gpu]': {error}" if isinstance(error, ImportError) else str(error)
        warn(
            f"the gpu backend cannot start, so parameters on the GPU are stepped by torch's operations, which is slower "
            f"(backend='eager' does so without this warning). {why}"
        )
        return None
    return backend
