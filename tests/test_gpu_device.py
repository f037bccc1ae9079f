"""The gpu backend on a GPU; without one, nothing here runs (and `make gpu-check` does what can be done)."""

from importlib.util import find_spec

import pytest
import torch
from runs import distance, is_exact, name, pairs
from torch.nn import Parameter
from training import noise

import weightdecay as wd

pytest.importorskip("triton", exc_type=ImportError)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

BITS = find_spec("llvmlite") is not None
"""Whether the cpu backend is there to compare bits with; torch's operations round otherwise."""
SHAPES = [(0, 3), (), (7,), (33, 64), (1025, 33)]


def trained(device, dtype=torch.float32, how="nearest", steps=3, **options):
    """Return the optimizer and its parameters after some steps; gradients depend on nothing else."""
    params = [Parameter(noise(shape, dtype, place).to(device)) for place, shape in enumerate(SHAPES)]
    optimizer = wd.Optimizer(params, 0.05, rounding=how, **options)
    for t in range(steps):
        for place, param in enumerate(params):
            param.grad = noise(param.shape, dtype, 100 * (t + 1) + place).to(device)
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize(
    ("dtype", "how"),
    [(torch.float64, "nearest"), (torch.float32, "nearest"), (torch.bfloat16, "stochastic"), (torch.float16, "compensated")],
    ids=str,
)
@pytest.mark.parametrize("rules", list(pairs()), ids=lambda rules: "-".join(v for v in rules.values() if isinstance(v, str)))
def test_the_device_agrees_with_the_cpu(rules, dtype, how):
    ours, got = trained("cuda", dtype, how, backend="gpu", **rules)
    _, expected = trained("cpu", dtype, how, backend="cpu" if BITS else "eager", **rules)
    words = {word for rule in ours.equation(ours.defaults).rules for word in rule.function.__code__.co_names}
    exact = is_exact(ours) and "debias" not in words and dtype != torch.float64 and BITS
    for mine, theirs in zip(got, expected, strict=True):
        if exact:
            assert torch.equal(mine.cpu(), theirs)
        else:
            bound = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
            assert distance(mine.detach().cpu(), theirs.detach()) <= bound


RULES = [("adam", "decoupled"), ("nadam", "decoupled"), ("sgd", "decoupled"), ("adam", "stable"), ("sgd", "group_threshold")]


@pytest.mark.parametrize(("direction", "decay"), RULES)
def test_a_graph_replays_with_another_lr_and_lambda(direction, decay):
    def fresh():
        params = [Parameter(noise(shape, torch.float32, place).cuda()) for place, shape in enumerate(SHAPES)]
        numbers = {"lr": torch.tensor(0.125, device="cuda"), "weight_decay": torch.tensor(0.5, device="cuda")}
        optimizer = wd.Optimizer(params, direction=direction, decay=decay, capturable=True, **numbers)
        for place, param in enumerate(params):
            param.grad = noise(param.shape, torch.float32, 10 + place).cuda()
        return params, optimizer, numbers

    def schedule(numbers, t):
        numbers["lr"].fill_(0.125 / 2**t)
        numbers["weight_decay"].fill_(0.5 * 2**t)

    params, optimizer, numbers = fresh()
    expected, plain, plain_numbers = fresh()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        optimizer.step()
    stream.synchronize()
    plain.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for t in range(1, 4):
        schedule(numbers, t)
        graph.replay()
        schedule(plain_numbers, t)
        plain.step()
    torch.cuda.synchronize()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(params, expected, strict=True))
    assert {state["step"].item() for state in optimizer.state.values()} == {4.0}


def test_a_replay_steps_what_was_captured_whatever_came_between():
    """A step outside of the graph takes other gradients, before the first replay and between two."""
    param = Parameter(torch.zeros(2000, device="cuda"))
    optimizer = wd.SGD([param], lr=1.0, capturable=True)
    captured, others = (torch.full_like(param, value) for value in (1.0, 100.0))
    param.grad = others
    optimizer.step()  # −100
    param.grad = captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(2):
        param.grad = captured
        optimizer.step()
        param.grad = others
        optimizer.step()
        graph.replay()
    torch.cuda.synchronize()
    assert param.unique().tolist() == [-100.0 - 2 * (1.0 + 100.0 + 1.0)]


def test_a_loaded_state_is_captured_at_once_and_twice():
    """Without a step in between, so that table and all are made while the first graph is captured."""
    optimizer, params = trained("cuda", direction="adam", decay="decoupled", weight_decay=0.5, capturable=True)
    _, expected = trained("cuda", direction="adam", decay="decoupled", weight_decay=0.5, capturable=True, steps=5)
    optimizer.load_state_dict(optimizer.state_dict())
    graphs, grads = [torch.cuda.CUDAGraph() for _ in "ab"], []
    for t, graph in zip((4, 5), graphs, strict=True):
        for place, param in enumerate(params):
            param.grad = noise(param.shape, torch.float32, 100 * t + place).cuda()
        with torch.cuda.graph(graph):
            optimizer.step()
        grads += [param.grad for param in params]  # which the replays read
    for graph in graphs:
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(params, expected, strict=True))


def test_steps_on_several_streams_with_a_default_device():
    param = Parameter(torch.zeros(2000, device="cuda"))
    with torch.device("cuda"):
        optimizer = wd.SGD([param], lr=1.0)
        for _ in range(3):
            param.grad = torch.ones_like(param)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                optimizer.step()
            torch.cuda.current_stream().wait_stream(stream)
    assert param.unique().tolist() == [-3.0]


def test_a_graph_of_a_schedule_that_the_host_counts_is_refused():
    schedule = {"name": "linear", "steps": 10}
    numbers = {"weight_decay": 0.5, "weight_decay_schedule": schedule, "capturable": True}
    optimizer, _ = trained("cuda", direction="sgd", decay="decoupled", **numbers)
    with pytest.raises(RuntimeError, match="follows a schedule"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


def test_a_graph_of_steps_that_the_host_counts_is_refused():
    optimizer, _ = trained("cuda", direction="sgd", backend="gpu")
    with pytest.raises(RuntimeError, match="capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


def test_a_capturable_step_does_not_wait_for_the_device():
    optimizer, params = trained("cuda", direction="adam", decay="decoupled", weight_decay=0.5, capturable=True)
    optimizer.grad_scale, optimizer.found_inf = (torch.full((1,), x, device="cuda") for x in (2.0, 1.0))
    before = [param.detach().clone() for param in params]
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


def test_a_compiled_training_step_holds_the_optimizers():
    model, twin = (torch.nn.Linear(8, 4, device="cuda") for _ in "ab")
    twin.load_state_dict(model.state_dict())
    data = noise((16, 8), torch.float32, 1).cuda()
    runs = [
        (each, wd.AdamW(each.parameters(), lr=torch.tensor(0.01, device="cuda"), capturable=True)) for each in (model, twin)
    ]

    def step(net, optimizer):
        optimizer.zero_grad()
        net(data).square().mean().backward()
        optimizer.step()

    compiled = torch.compile(step)
    for _ in range(3):
        compiled(*runs[0])
        step(*runs[1])
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_several_devices_are_stepped_each_by_its_own_launch():
    params = [Parameter(noise((100,), torch.float32, 0).to(f"cuda:{place % 2}")) for place in range(4)]
    optimizer = wd.AdamW(params, lr=0.125, weight_decay=0.5)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert len(optimizer._plan.tables) == 2
    assert all(torch.equal(param.cpu(), params[0].cpu()) for param in params)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=name)
def test_a_tensor_of_more_than_two_to_the_31_elements(dtype):
    count = 2**31 + 5000
    param = Parameter(torch.ones(count, dtype=dtype, device="cuda"))
    param.grad = torch.ones(count, dtype=dtype, device="cuda")
    wd.SGDW([param], lr=0.25, weight_decay=0.5, rounding="nearest").step()
    assert param.min().item() == param.max().item() == 1 - 0.25 * 0.5 - 0.25
