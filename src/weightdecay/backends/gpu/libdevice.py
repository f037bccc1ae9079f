"""What Triton's own operators leave out, each under one name for the compiler and for the interpreter.

Every word here is one call of a function of Triton's or of CUDA's libdevice. Triton's interpreter (TRITON_INTERPRET=1), which
runs a kernel on the CPU, has no libdevice: there the same words are NumPy's.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from triton.language.extra import libdevice

OLDEST = (3, 6)
"""The first Triton that this backend is tested with."""
if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
    raise ImportError(f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}")

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether this process interprets its kernels, which is settled when the first is made."""


@triton.jit
def exp(x):
    return libdevice.exp(x)


@triton.jit
def log(x):
    return libdevice.log(x)


@triton.jit
def power(x, y):
    return libdevice.pow(x, y)


@triton.jit
def copysign(x, y):
    return libdevice.copysign(x, y)


def _interpreted(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operation of NumPy's on the interpreter's values."""
    import numpy as np
    from triton.runtime.interpreter import TensorHandle

    def read(x: Any, *others: Any) -> Any:
        with np.errstate(all="ignore"):
            found = operation(x.handle.data, *(other.handle.data for other in others))
        return tl.tensor(TensorHandle(found, x.handle.dtype), x.type)

    return read


if INTERPRETED:
    import numpy

    exp, log, power, copysign = map(_interpreted, (numpy.exp, numpy.log, numpy.power, numpy.copysign))
