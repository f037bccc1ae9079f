"""From LLVM's text to machine code for this processor.

The environment variable WEIGHTDECAY_CPU names an older one to compile for instead: x86-64-v2, x86-64-v3 or x86-64-v4, the
levels that compilers and Linux distributions know. It is there to test what other processors will do, and for clusters whose
machines should all run the same instructions. It is read when the first kernel is made, once.
"""

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock
from typing import Any

from llvmlite import binding, ir

from weightdecay.backends.cpu.ops import I64

VARIABLE = "WEIGHTDECAY_CPU"
_V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_V4 = ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
LEVELS = {"x86-64-v2": _V2, "x86-64-v3": (*_V2, *_V3), "x86-64-v4": (*_V2, *_V3, *_V4)}
"""The processors that can be named, and the instructions that a machine must have to run code for them, as LLVM calls both."""
_LLVM = RLock()
"""Held while LLVM is at work, so that no fork of another thread leaves the child with LLVM's own locks held."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LLVM.acquire, after_in_parent=_LLVM.release, after_in_child=_LLVM.release)


@cache
def _processor() -> tuple[Any, str, Any]:
    """Return what LLVM compiles for: the target, the processor and its features."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target, host = binding.Target.from_default_triple(), binding.get_host_cpu_features()
    level = os.environ.get(VARIABLE, "")
    if not level:
        return target, binding.get_host_cpu_name(), host
    why = refusal(level)
    if why is not None:
        raise ValueError(f"{VARIABLE}={level!r} in the environment: {why}")
    features = binding.FeatureMap({name: name in LEVELS[level] for name in host})
    return target, level, features


def refusal(level: str) -> str | None:
    """Return why this machine cannot run code for a processor that WEIGHTDECAY_CPU may name; None if it can."""
    if level not in LEVELS:
        return f"there are {', '.join(LEVELS)}, and without the variable this machine's own processor"
    host, name = binding.get_host_cpu_features(), binding.get_host_cpu_name()
    missing = [feature for feature in LEVELS[level] if not host.get(feature)]
    return f"this processor ({name}) has no {', '.join(missing)}" if missing else None


@cache
def converts_float16() -> bool:
    """Return whether the processor converts float16 by an instruction: all but the oldest x86 do."""
    with _LLVM:
        target, _, features = _processor()
    return bool(features.get("f16c", not target.triple.startswith(("x86", "i686"))))


class Code:
    """The machine code of a module's functions, which lives as long as this does."""

    def __init__(self, engine: Any, addresses: dict[str, int]) -> None:
        self.addresses = addresses
        """Of the functions, by name."""
        weakref.finalize(self, _free, engine).atexit = False


def _free(engine: Any) -> None:
    with _LLVM:
        engine.close()


def compiled(module: ir.Module) -> Code:
    """Return a module's functions as machine code."""
    with _LLVM:
        return Code(*_compiled(module))


def _compiled(module: ir.Module) -> tuple[Any, dict[str, int]]:
    """Compile; a function of its own, so that what it leaves behind is freed while the lock is held."""
    target, processor, features = _processor()
    # A level is all that LLVM needs to know of it; of a host, what is there says more than its name. One machine for each
    # engine, which frees it.
    said = "" if processor in LEVELS else features.flatten()
    machine = target.create_target_machine(cpu=processor, features=said, opt=2, jit=True)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    native = binding.parse_assembly(str(module))
    tuning = binding.create_pipeline_tuning_options(speed_level=1)
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_unrolling = False  # the loops are vectors already
    builder = binding.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(native, builder)
    engine = binding.create_mcjit_compiler(native, machine)
    engine.finalize_object()
    names = [function.name for function in module.functions if not function.is_declaration]
    return engine, {name: engine.get_function_address(name) for name in names}


@contextmanager
def counted(builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, stride: int = 1) -> Iterator[ir.Value]:
    """Write a loop over start, start + stride, … as long as a whole stride is left; the count goes on after it."""
    head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
    before = builder.block
    builder.branch(head)
    builder.position_at_end(head)
    count = builder.phi(I64)
    count.add_incoming(start, before)
    following = builder.add(count, I64(stride))
    builder.cbranch(builder.icmp_unsigned("<=", following, stop), body, done)
    builder.position_at_end(body)
    yield count
    count.add_incoming(following, builder.block)
    builder.branch(head)
    builder.position_at_end(done)
