"""torch's own threads, which its stable C interface lends to any function; every build since 2.10 has it."""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

PASS = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
"""How torch's threads call a function: with a range, and with what was passed along."""
_forked: list[bool] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forked.append(True))


def threads() -> int:
    """Return on how many threads torch runs, as `torch.set_num_threads` or OMP_NUM_THREADS set it.

    One in a child of `fork`: torch's threads stayed with the parent, and OpenMP would wait for them for ever.
    """
    return 1 if _forked else torch.get_num_threads()


def parallel(function: Any, job: int, count: int) -> None:
    """Run a function with its job on as many of torch's own threads, and return when all are done; Python goes on beside it.

    Threads of another runtime would fight torch's for the cores, which stay awake for a while after each operation.
    """
    if count == 1:
        function(0, 1, job)
    else:
        failed = _library().torch_parallel_for(0, count, 1, function, job)
        if failed:
            raise RuntimeError(f"torch could not run a kernel on {count} threads (error {failed}): use backend='eager'")


@cache
def _library() -> Any:
    folder = Path(torch.__file__).parent / "lib"
    paths = [path for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll") if (path := folder / name).exists()]
    if not paths:
        raise OSError(f"no libtorch_cpu in {folder}, on whose threads kernels run: use backend='eager'")
    library = ctypes.CDLL(str(paths[0]))
    library.torch_parallel_for.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, PASS, ctypes.c_void_p]
    return library
