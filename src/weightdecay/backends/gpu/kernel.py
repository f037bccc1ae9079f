"""Triton's functions, made of the text of a kernel; Triton compiles each when it is first run."""

import hashlib
import linecache
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from weightdecay.backends.gpu import libdevice, partial_sums
from weightdecay.backends.gpu.codegen import BLOCK, SIZES, Signature, source
from weightdecay.backends.recent import Recent

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
"""How every kernel is compiled; without fusion a product is rounded before it is added, as decisions/0010 says."""


@dataclass(frozen=True)
class Kernel:
    """What steps the parameters of one signature."""

    passes: tuple[Any, ...]
    begun: int
    """How many of them come before the numbers of all tensors are known."""
    shares: tuple[int, ...]
    """Which of the partial sums are of these numbers."""
    settle: Any
    """None where nothing has to be counted or moved on."""
    sums: int
    """How many partial sums a part leaves."""


KERNELS: Recent[Kernel] = Recent(64)


def kernel(signature: Signature) -> Kernel:
    """Return the kernel for a signature, which lives as long as whoever has it, and a while longer; devices share it."""
    known = tuple(value for name, value in vars(signature).items() if name != "device")
    return KERNELS.get(known, lambda: _written(signature))


def _written(signature: Signature) -> Kernel:
    text = source(signature)
    passes, settle = tuple(map(function, text.passes)), text.settle and function(text.settle)
    made = Kernel(passes, text.begun, text.shares, settle, text.sums)
    for each in (*passes, *([] if settle is None else [settle])):
        weakref.finalize(each, linecache.cache.pop, each.fn.__code__.co_filename, None)
    return made


def function(source: str) -> Any:
    """Return the function of this source, as Triton's: it reads the source again, under a name that is made of all of it."""
    file = f"<weightdecay.backends.gpu {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {"__name__": __name__, "tl": tl, "words": libdevice, "partials_of": partial_sums}
    exec(compile(source, file, "exec"), names)  # our own text, whose words are those of the rules
    return triton.jit(names[source[len("def ") : source.index("(")]], do_not_specialize=list(SIZES))


def launch(kernel_function: Any, programs: int, arguments: Sequence[Any], block: int = BLOCK) -> None:
    """Run one function of a kernel."""
    if programs:
        kernel_function[(programs,)](*arguments, BLOCK=block, **OPTIONS)
