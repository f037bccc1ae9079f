"""The gpu backend's kernels compiled for GPUs that need not be there: Triton and its ptxas make a cubin of each."""

import itertools
import re

import pytest
import torch
from runs import RULES, name, rules_with
from test_gpu_source import optimizer_of, signature
from training import PRESETS, options_of

import weightdecay as wd
from weightdecay.backends import rounding
from weightdecay.backends.gpu.codegen import ARGUMENTS, BLOCK, SIZES

kernels = pytest.importorskip("weightdecay.backends.gpu.kernel", reason="Triton is not installed", exc_type=ImportError)
words = pytest.importorskip("weightdecay.backends.gpu.libdevice")
pytestmark = pytest.mark.skipif(words.INTERPRETED, reason="TRITON_INTERPRET=1 is set: there is no compiler then")

TARGETS = [(80, torch.float32, "nearest"), (90, torch.bfloat16, "stochastic")]
"""GPUs, and what they step there."""


def compiled(function, capability, block=BLOCK):
    """Return what Triton makes of one function of a kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=function,
        signature={**ARGUMENTS, **SIZES, "BLOCK": "constexpr"},
        constexprs={"BLOCK": block},
        attrs={(place,): [["tt.divisibility", 16]] for place in range(len(ARGUMENTS))},  # as torch allocates
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=kernels.OPTIONS)


def every_function(optimizer, dtype, how, capability, *, counted=True):
    """Return each function that steps such parameters, compiled, by name."""
    kernel = kernels.kernel(signature(optimizer, dtype, how, counted=counted))
    found = {each.__name__: compiled(each, capability) for each in kernel.passes}
    if kernel.settle is not None:
        found[kernel.settle.__name__] = compiled(kernel.settle, capability, 128)
    for each in found.values():
        assert each.asm["cubin"][:4] == b"\x7fELF"
    return found


def parameter():
    return [torch.nn.Parameter(torch.ones(3, 3))]


@pytest.mark.parametrize(("capability", "dtype", "how"), TARGETS, ids=str)
@pytest.mark.parametrize("preset", PRESETS, ids=lambda cls: cls.__name__)
def test_every_preset_compiles(preset, capability, dtype, how):
    every_function(preset(parameter(), **options_of(preset), backend="eager"), dtype, how, capability)


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_every_rule_compiles(rule):
    every_function(optimizer_of(rules_with(rule)), torch.float32, "nearest", 90, counted=False)


@pytest.mark.parametrize(
    ("dtype", "how"),
    [(torch.float64, "nearest"), *itertools.product(rounding.LOW_PRECISION, ("nearest", "stochastic", "compensated"))],
    ids=str,
)
def test_every_dtype_and_rounding_compiles(dtype, how):
    every_function(wd.SGDW(parameter(), momentum=0.9, backend="eager"), dtype, how, 90)


FUSED = re.compile(r"\bfma\.rn\.f(?:32|64)|\bffma2?\b", re.IGNORECASE)


@pytest.mark.parametrize("capability", [80, 90])
def test_no_product_is_fused_with_a_sum(capability):
    """Of rules without a division, a root or a power, whose own instructions are made of fused ones."""
    optimizer = wd.SGDW(parameter(), momentum=0.9, weight_decay=0.1, backend="eager")
    (step,) = every_function(optimizer, torch.float32, "nearest", capability, counted=False).values()
    assert not FUSED.search(step.asm["ptx"])
    assert "mul.rn.f32" in step.asm["ptx"] or "mul.f32" in step.asm["ptx"]
    assert step.metadata.enable_fp_fusion is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_whole_blocks_are_read_sixteen_bytes_at_a_time(dtype):
    """The memory is as fast as that, and no faster one element at a time; float32 moments, so each block of them too."""
    optimizer = wd.AdamW(parameter(), backend="eager")
    (step,) = every_function(optimizer, dtype, "nearest", 90, counted=False).values()
    wide = {kind: len(re.findall(rf"{kind}\.global\.v4\.b32", step.asm["ptx"])) for kind in ("ld", "st")}
    values = {torch.float32: (4 * 2, 3 * 2), torch.bfloat16: (2 * 1 + 2 * 2, 1 + 2 * 2)}[dtype]
    assert (wide["ld"], wide["st"]) == values


def test_places_are_counted_in_64_bits():
    """A tensor may have more than 2³¹ elements."""
    optimizer = wd.SGDW(parameter(), backend="eager")
    (step,) = every_function(optimizer, torch.bfloat16, "stochastic", 90, counted=False).values()
    loops = re.findall(r"scf\.for [^\n]*", step.asm["ttir"])
    assert len(loops) == 2
    assert all(re.search(r": i64\b", loop) for loop in loops)
    assert not re.search(r"tt\.addptr .*: !tt\.ptr<i16>, i32", step.asm["ttir"])


def test_parameters_on_the_cpu_are_not_for_this_backend():
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"backend='gpu' cannot step .*: it is on cpu; use backend='auto'"):
        wd.AdamW([param], backend="gpu").step()


class OnlyATarget:
    """What Triton asks of a GPU before it compiles."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def test_a_launch_compiles_once_whatever_the_sizes(monkeypatch):
    """By Triton's own way to a launch, as far as that goes without a GPU."""
    from triton.runtime import driver
    from triton.runtime.jit import MockTensor

    optimizer = wd.AdamW(parameter(), backend="eager")
    (step,) = kernels.kernel(signature(optimizer, torch.float32, "nearest")).passes
    dtypes = (torch.int64, torch.int32, torch.float64, torch.float64, torch.float32, torch.float32)
    monkeypatch.setattr(driver, "_active", OnlyATarget())
    found = {
        id(step.warmup(*map(MockTensor, dtypes), *sizes, grid=(sizes[1],), BLOCK=BLOCK, **kernels.OPTIONS))
        for sizes in ((1, 1), (16, 16), (400, 401))
    }
    assert len(found) == 1
