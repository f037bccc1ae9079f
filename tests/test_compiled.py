"""A step inside torch.compile: it computes what a plain step does, and compiles as often as torch's own."""

import inspect
import math

import pytest
import torch
import torch._dynamo.testing
from torch.nn import Parameter
from torch.optim import lr_scheduler
from training import all_params, bits, noise, options_of, parameters_of, set_gradients

import weightdecay as wd
from weightdecay.optim import presets

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own, on the way into its compiler
STEPS = 6
MOST = 3
"""The graphs of a run in which numbers change: the first has them all as they are, and each of the others one kind fewer."""
QUICK = ("SGD", "AdamW", "AdamS", "AdamC", "Adafactor", "Muon")
"""One of each way to step; the others take minutes together."""
names = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in presets.PRESETS]
)


@pytest.fixture(autouse=True)
def _forgotten():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(optimizer):
    """Return the compiled step, and the counter of its graphs."""
    counter = torch._dynamo.testing.CompileCounter()
    return torch.compile(optimizer.step, backend=counter), counter


def change(optimizer, t):
    """Change what schedulers change: lr, λ and, as OneCycleLR and CyclicLR do, the first beta or the momentum."""
    for group in optimizer.param_groups:
        group["lr"] = 0.05 * (1 - t / 20)
        for key in ("weight_decay", "penalty_weight"):
            if group.get(key):
                group[key] = 0.1 * (1 - t / 10)
        if "betas" in group:
            group["betas"] = (0.85 + 0.01 * t, *group["betas"][1:])
        elif group.get("momentum"):
            group["momentum"] = 0.85 + 0.01 * t


def trained(optimizer, step, first=1):
    """Do the steps, with numbers that change."""
    for t in range(first, first + STEPS):
        set_gradients(optimizer, t)
        step()
        change(optimizer, t)
    return torch.cat([param.detach().flatten() for param in all_params(optimizer)])


def built(cls, **options):
    accepts = inspect.signature(cls).parameters
    own = {} if cls.__module__.startswith("weightdecay") else {"foreach": False}
    options = {**options_of(cls), **own, **options}
    options = {key: value for key, value in options.items() if key in accepts or key in ("decay", "backend")}
    return cls([parameters_of(cls)["weight"]], **options)


@names
def test_a_compiled_step_is_the_plain_one_and_compiles_no_more_often_than_torchs(name):
    preset = presets.PRESETS[name]
    ours, plain = built(preset), built(preset, backend="eager")
    step, counter = compiled(ours)
    got, expected = trained(ours, step), trained(plain, plain.step)
    assert torch.allclose(got, expected, rtol=1e-9, atol=0)
    if "weight_decay" in options_of(preset):
        without = built(preset, weight_decay=0.0, backend="eager")
        assert ((trained(without, without.step) - expected) / expected).abs().max() > 1e-6
    graphs, theirs = counter.frame_count, getattr(torch.optim, name, None)
    assert 1 <= graphs <= MOST
    if theirs is not None and name != "Adafactor":  # of which torch compiles nothing until a number changes
        optimizer = built(theirs)
        step, counter = compiled(optimizer)
        trained(optimizer, step)
        assert graphs <= counter.frame_count


@pytest.mark.parametrize("preset", [wd.AdamW, wd.AdamC], ids=lambda each: each.__name__)
def test_under_one_cycle_with_a_tensor_lr_there_are_two_graphs(preset):
    """It cycles β₁, of which Python's logarithm would be a constant in the graph."""
    optimizer = preset([Parameter(noise((4, 4), torch.float64, 0))], lr=torch.tensor(0.01), weight_decay=0.1)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=50)
    step, counter = compiled(optimizer)
    for t in range(10):
        set_gradients(optimizer, t)
        step()
        optimizer._opt_called = True  # torch counts the calls of the method that was not compiled
        scheduler.step()
    assert counter.frame_count == 2


def test_a_peak_that_rises_with_the_lr_compiles_no_step_after_the_other():
    optimizer = wd.AdamC([Parameter(noise((4, 4), torch.float64, 0))], lr=1e-3, weight_decay=0.1)
    step, counter = compiled(optimizer)
    for t in range(16):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.sin(t / 3))
        set_gradients(optimizer, t)
        step()
        if t == 7:
            graphs = counter.frame_count
    assert counter.frame_count <= graphs + 1 <= 6


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # in torch's own tracing
@pytest.mark.parametrize("preset", [wd.Adafactor], ids=lambda each: each.__name__)
def test_a_step_with_a_closure_compiles_no_more_often_than_torchs(preset):
    def graphs(cls):
        param, x = Parameter(noise((4, 4), torch.float64, 0)), noise((4, 4), torch.float64, 1)
        optimizer = cls([param], lr=0.01)
        step, counter = compiled(optimizer)

        def closure():
            optimizer.zero_grad()
            loss = (param * x).square().sum()
            loss.backward()
            return loss

        losses = [step(closure).item() for _ in range(4)]
        assert losses == sorted(losses, reverse=True)
        return counter.frame_count

    assert 1 <= graphs(preset) <= graphs(torch.optim.AdamW)


@pytest.mark.parametrize("preset", [wd.AdamW, wd.AdamS], ids=lambda each: each.__name__)
def test_another_optimizer_makes_none_compile_again(preset, own_registry):
    """What each rule is read as is kept with the rule: a table of all would be another one after any first step."""
    optimizer = preset([Parameter(noise((3,), torch.float64, 0))], lr=0.01, weight_decay=0.1)
    step, counter = compiled(optimizer)

    @wd.decay(source="this test")
    def only_of_this_test(w, u, *, eta, lam):
        return (1 - eta * lam) * w - eta * u

    for t, decay in enumerate(("cautious", "soft_threshold", only_of_this_test)):
        set_gradients(optimizer, t)
        step()
        other = wd.Optimizer([Parameter(torch.ones(2))], 0.1, direction="lion", decay=decay, weight_decay=0.1, backend="eager")
        set_gradients(other, t)
        other.step()
    assert counter.frame_count == 1


def test_an_optimizer_that_is_made_inside_steps_there_and_after():
    """torch's test_guard_on_none_grads does it, and dynamo's test_state_dict."""

    def training():
        w = Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        optimizer = wd.AdamW([w], lr=0.1, weight_decay=0.5, backend="eager")
        for _ in range(2):
            optimizer.zero_grad()
            w.square().sum().backward()
            optimizer.step()
        return w, optimizer

    (got, optimizer), (expected, plain) = torch.compile(training, backend="eager")(), training()
    assert torch.allclose(got, expected, rtol=1e-12, atol=0)
    assert optimizer.backend == plain.backend == "eager"
    assert optimizer.state[got]["step"].item() == 2
    for each in (optimizer, plain):
        each.step()
    assert torch.allclose(got, expected, rtol=1e-12, atol=0)


def test_a_compiled_step_does_not_look_at_what_a_tensor_was_filled_with():
    lr = torch.tensor(0.05)
    optimizer = wd.AdamW([Parameter(noise((4, 4), torch.float64, 0))], lr=lr)
    step, counter = compiled(optimizer)
    for t in range(1, 4):
        set_gradients(optimizer, t)
        step()
        lr.fill_(math.nan if t == 2 else 0.01)
    assert counter.frame_count == 1
    assert all_params(optimizer)[0].isnan().all()
    lr.fill_(math.nan)
    with pytest.raises(ValueError, match="lr=nan in param_groups"):
        optimizer.step()


@pytest.mark.parametrize("capturable", [False, True])
def test_a_compiled_step_counts_on_where_float32_has_no_next_whole_number(capturable):
    def training(step_of):
        param = Parameter(noise((64, 8), torch.bfloat16, 1))
        optimizer = wd.SGDW([param], lr=1e-3, weight_decay=1.0, momentum=0.0, backend="eager", capturable=capturable)
        optimizer.state[param] = {"step": torch.tensor(2.0**24 - 1)}
        param.grad, step, counts = torch.zeros_like(param), step_of(optimizer), []
        for _ in range(3):
            step()
            counts.append(optimizer.state[param]["step"].item())
        return counts, bits(param)

    counts, expected = training(lambda optimizer: optimizer.step)
    assert counts == [2.0**24, 2.0**24 + 2, 2.0**24 + 4]
    assert training(lambda optimizer: compiled(optimizer)[0]) == (counts, expected)
