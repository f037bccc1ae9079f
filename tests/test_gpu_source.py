"""The text of the gpu backend's kernels, which needs neither a GPU nor Triton to be made."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from runs import RULES, name, rules_with

import weightdecay as wd
from weightdecay import backends
from weightdecay.backends import rounding
from weightdecay.backends.gpu.codegen import Signature, source

FOLDER = Path(wd.__file__).parent / "backends" / "gpu"


def signature(optimizer, dtype=torch.float32, how="nearest", *, counted=False):
    """Return the kernel's signature for parameters of this dtype on a GPU, as the optimizer would have it."""
    equation, kept, _ = optimizer.way(optimizer.param_groups[0])
    if equation.direction.whole:
        equation = equation.halves()[1]
        kept = tuple(each for each in kept if each in equation.decay.keeps)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    moments = tuple(wide for each in kept if each.per_element)
    grad = wide if equation.direction.name == "none" else dtype
    return Signature(
        equation, dtype, grad, kept, moments, how, equation.decay.shared, device=torch.device("cuda", 0), counted=counted
    )


def optimizer_of(rules):
    return wd.Optimizer([torch.nn.Parameter(torch.ones(3, 3))], 0.1, backend="eager", **rules)


def text(dtype=torch.float32, how="nearest", *, counted=False, **rules):
    """Return the functions that step parameters of this dtype."""
    return source(signature(optimizer_of(rules), dtype, how, counted=counted))


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_a_step_is_one_launch_and_a_reduction_one_more(rule):
    """But for the n-norm, which is taken in units of the largest element: that comes first."""
    found = text(**rules_with(rule))
    asked = () if rule.whole else rule.reductions  # what torch computes with a direction of whole tensors, no kernel does
    assert len(found.passes) == 1 + bool(asked) + ("norm_n_w" in asked)
    assert (found.begun, len(found.shares)) == ((1, 1) if rule.shared else (0, 0))
    stores = [function.count("tl.store(at_w ") for function in found.passes]
    assert stores == [0] * (len(found.passes) - 1) + [2]  # one loop over whole blocks, one with a mask
    changes = any(not each.per_element and each.changes for each in rule.keeps)
    assert (found.settle is not None) == changes


def test_the_reductions_of_a_rule_share_a_launch():
    """The penalty's norm of w enters u, whose norm the decay asks for beside its own of w."""
    found = text(direction="sgd", penalty="group_norm", penalty_weight=0.1, decay="hyperball")
    sums = [function.count("tl.store(partials ") for function in found.passes]
    assert sums == [2, 3, 0]  # ‖w‖ and d; ‖w‖ once more, ‖u‖ and ⟨w, u⟩


def test_a_number_of_all_tensors_comes_after_the_sums_that_it_is_made_of():
    """The penalty's norm enters v̂, whose mean the decay asks for; the decay's own norms of the tensor come later."""
    found = text(direction="adam", penalty="group_norm", penalty_weight=0.1, decay="stable", weight_decay=0.1)
    assert (len(found.passes), found.begun, found.shares) == (3, 2, (2,))  # ‖w‖ and d; Σv̂; the step
    assert "mean" not in found.passes[0]


def test_the_same_rules_make_the_same_text():
    assert text(direction="adam", decay="cautious") == text(direction="adam", decay="cautious")


@pytest.mark.parametrize("how", ["nearest", "stochastic", "compensated"])
@pytest.mark.parametrize("dtype", rounding.LOW_PRECISION, ids=name)
def test_every_type_is_spelt_out(dtype, how):
    """Nothing is left to a promotion: a constant has a type, and no operand of an operator is a number without one."""
    found = text(dtype, how, direction="nadam", decay="constrained", counted=True)
    for function in found.passes:
        tree = ast.parse(function)
        lines = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and node.targets[0].id.startswith("x")]
        assert len(lines) > 50
        for line in lines:
            if isinstance(line.value, ast.BinOp) and not isinstance(line.value.op, ast.LShift):
                sides = (line.value.left, line.value.right)
                plain = [side for side in sides if isinstance(side, ast.Constant) and isinstance(side.value, float)]
                assert not plain, ast.unparse(line)


def test_the_words_are_calls_of_triton_and_no_formulas():
    """A backend gives words their meaning and writes loops: a rule's arithmetic, and a word's, are elsewhere."""
    tree = ast.parse((FOLDER / "libdevice.py").read_text(encoding="utf-8"))
    words = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    assert {word.name for word in words} == {"exp", "log", "power", "copysign"}
    for word in words:
        (statement,) = word.body
        assert isinstance(statement, ast.Return)
        assert isinstance(statement.value, ast.Call)
        assert all(isinstance(argument, ast.Name) for argument in statement.value.args)
    assert not any(isinstance(node, ast.BinOp) for node in ast.walk(tree))


def test_no_rule_is_named_in_the_backend():
    names = {rule.name for rule in RULES} - {"log", "none", "norm"}  # a word, Python's None, an attribute
    for path in FOLDER.glob("*.py"):
        code = ast.parse(path.read_text(encoding="utf-8"))
        found = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
        found |= {node.value for node in ast.walk(code) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert not names & found, path.name


# Without Triton ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_triton(monkeypatch):
    """Let importing Triton fail, also where it has been imported."""
    monkeypatch.setitem(sys.modules, "triton", None)
    forget(monkeypatch)
    yield
    backends._gpu_if_there.cache_clear()


def forget(monkeypatch):
    """Let the backend be imported anew."""
    for module in ("backend", "param_table", "kernel", "libdevice", "partial_sums"):
        monkeypatch.delitem(sys.modules, f"weightdecay.backends.gpu.{module}", raising=False)
        monkeypatch.delattr(f"weightdecay.backends.gpu.{module}", raising=False)
    backends._gpu_if_there.cache_clear()


@pytest.mark.usefixtures("no_triton")
def test_without_triton_parameters_on_a_gpu_are_torchs_and_that_is_said_once():
    with pytest.warns(UserWarning, match=r"torch's operations.*needs Triton, pip install 'weightdecay\[gpu\]'"):
        assert backends.kernels("auto", torch.device("cuda", 0)) is None
    assert backends.kernels("auto", torch.device("cuda", 1)) is None  # a second warning would be an error here


@pytest.mark.usefixtures("no_triton")
def test_without_triton_the_backend_is_refused_with_what_to_install():
    with pytest.raises(ImportError, match=r"backend='gpu' needs Triton.*: pip install 'weightdecay\[gpu\]'"):
        wd.AdamW([torch.nn.Parameter(torch.ones(1))], backend="gpu")


def test_a_triton_that_cannot_start_is_not_taken(monkeypatch):
    """It compiles a little C to launch kernels, and not every machine can."""
    backend = pytest.importorskip("weightdecay.backends.gpu.backend", exc_type=ImportError)

    def fail():
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(backend, "start", fail)
    backends._gpu_if_there.cache_clear()
    with pytest.warns(UserWarning, match="torch's operations.*Failed to find C compiler"):
        assert backends.kernels("auto", torch.device("cuda", 0)) is None
    backends._gpu_if_there.cache_clear()


def test_a_triton_that_is_too_old_counts_as_none(monkeypatch):
    triton = pytest.importorskip("triton", exc_type=ImportError)
    monkeypatch.setattr(triton, "__version__", "3.1.0")
    forget(monkeypatch)
    with pytest.raises(ImportError, match=r"pip install .*Triton 3\.1\.0 is older than 3\.6"):
        backends.resolve("gpu")


def test_other_devices_are_torchs():
    assert backends.kernels("auto", torch.device("meta")) is None
    assert backends.kernels("eager", torch.device("cpu")) is None
