"""A parameter that is cut up over processes steps as the whole one does: two gloo processes, one machine, no network."""

from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from runs import RULES, assert_close, name, optimizer_with

import weightdecay as wd

SHAPE = (5, 3)  # which two processes cannot share evenly
STEPS = 4
STEPPED = RULES


def data():
    torch.manual_seed(0)
    return torch.randn(SHAPE, dtype=torch.float64), torch.randn(STEPS, *SHAPE, dtype=torch.float64)


def walked(rule, cut):
    """Return the weights after some steps, and the tensors that the optimizer keeps; `cut` makes a parameter of a tensor."""
    w, history = data()
    param = torch.nn.Parameter(cut(w.clone()))
    optimizer = optimizer_with(rule, [param], lam=0.5, direction="adam")
    for gradient in history:
        param.grad = cut(gradient.clone())
        optimizer.step()
    return param.detach(), optimizer.state[param]


def doctored(mesh):
    """Return what D6 and D10 find where the optimizer was made before fully_shard, after it, and by the fix."""
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    early = torch.optim.AdamW(wd.param_groups(model, 0.1))
    fully_shard(model, mesh=mesh)
    report = wd.doctor(model, early, steps=1000)
    names = {"model": model, "torch": torch, "fully_shard": lambda model: model}
    exec(next(each.fix for each in report.findings if each.id == "D10"), names)
    late = wd.doctor(model, names["optimizer"], steps=1000)
    return [[(each.id, each.severity, len(each.tensors)) for each in one.findings] for one in (report, late)]


def both(rank, rendezvous, out):
    """Step every rule on this rank's half, and save what all ranks hold together and what meter and doctor say on this one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    meeting, patience = f"file://{rendezvous}", timedelta(minutes=3)  # who waits for a rank that does not come fails
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for rule in STEPPED:
        w, state = walked(rule, lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)]))
        # The state of a tensor is cut up with it, a number of the whole tensor is every rank's.
        assert all(isinstance(value, DTensor) == (value.ndim > 0) for value in state.values()), rule.name
        whole = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in state.items()}
        found[name(rule)] = w.full_tensor(), whole
    tried = tried_in_parts(rank, mesh), decomposed_in_parts(rank, mesh, f"{out}.png")
    torch.save((found, metered_in_parts(mesh), doctored(mesh), shared_out(), *tried), f"{out}{rank}")
    dist.destroy_process_group()


SHARED_OUT = (wd.AdamW, wd.SGD, wd.Adagrad, wd.AdamC)


def stepped(make, preset):
    """Return two weights after some steps; the second has joined the optimizer later, in a group of its own."""
    w, history = data()
    params = [torch.nn.Parameter(w.clone()), torch.nn.Parameter(w[0].clone())]
    optimizer = make([params[0]], preset)
    optimizer.add_param_group({"params": [params[1]]})
    for gradient in history:
        params[0].grad, params[1].grad = gradient.clone(), gradient[0].clone()
        optimizer.step()
    return optimizer, [param.detach() for param in params]


def shared_out():
    """Return what steps on optimizers that are shared out leave of weights, and how many each group has on this rank."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    found = {}
    for preset in SHARED_OUT:
        sharded, weights = stepped(
            lambda params, preset: ZeroRedundancyOptimizer(params, preset, lr=0.1, weight_decay=0.5), preset
        )
        found[preset.__name__] = [len(group["params"]) for group in sharded.optim.param_groups], weights
    return found


@pytest.mark.parametrize("preset", SHARED_OUT, ids=lambda cls: cls.__name__)
def test_a_rank_may_have_no_share_of_a_group(preset, of_two_processes):
    ranks = of_two_processes[3]
    _, expected = stepped(lambda params, preset: preset(params, lr=0.1, weight_decay=0.5), preset)
    sizes = [rank[preset.__name__][0] for rank in ranks]
    assert sizes == [[1, 0], [0, 1]]
    for rank in ranks:
        assert all(torch.equal(found, own) for found, own in zip(rank[preset.__name__][1], expected, strict=True))


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(both, (folder / "rendezvous", folder / "found"), nprocs=2)
    ranks = [torch.load(f"{folder / 'found'}{rank}", weights_only=True) for rank in (0, 1)]
    return ranks[0][0], *([each[place] for each in ranks] for place in range(1, 6))


@pytest.mark.parametrize("rule", STEPPED, ids=name)
def test_a_sharded_parameter_steps_as_the_whole_one(rule, of_two_processes):
    """A norm is of the whole tensor, not of each rank's rows, and so is what a rule remembers of it."""
    w, state = of_two_processes[0][name(rule)]
    expected, kept = walked(rule, lambda tensor: tensor)
    start, _ = data()
    assert_close(w, expected, tolerance=1e-13, effect=(expected - start).abs().max())
    assert set(state) == set(kept)
    for key, value in kept.items():
        torch.testing.assert_close(state[key], value, rtol=1e-13, atol=1e-15, msg=lambda text, key=key: f"{key}: {text}")


def test_the_doctor_finds_an_optimizer_that_was_made_before_fully_shard(of_two_processes):
    reports = of_two_processes[2]
    for early, late in reports:
        assert ("D10", "error", 4) in early
        assert late == []


# The meter ----------------------------------------------------------------------------------------------------------------


class Halving(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self):
        for param in self.param_groups[0]["params"]:
            param.mul_(0.5).sub_(0.1 * param.grad)


def attached(params, decay, weight_decay=0.5):
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    wd.attach(optimizer, decay, weight_decay)
    return optimizer


METERED = {
    "AdamW": lambda params: wd.AdamW(params, lr=0.1, weight_decay=0.5, backend="eager"),
    "SGD with L2": lambda params: wd.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.5, backend="eager"),
    "stochastic": lambda params: wd.AdamW(params, lr=0.1, weight_decay=0.5),
    "a number of all tensors": lambda params: wd.AdamS(params, lr=0.1, weight_decay=0.5, backend="eager"),
    "a reduction": lambda params: wd.Optimizer(params, 0.1, direction="adam", decay="norm_control", weight_decay=0.5),
    "torch's AdamW": lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.5, foreach=False),
    "attached": partial(attached, decay="decoupled"),
    "attached, deferred": partial(attached, decay="decoupled", weight_decay=0.002),
    "attached, weight by weight": partial(attached, decay="cautious"),
    "attached, with a reduction": partial(attached, decay="norm_control"),
    "unknown": lambda params: Halving(params, {}),
}


def metered(build, cut, dtype):
    """Return what a meter says of two tensors, of which the second is each rank's own."""
    w, history = (tensor.to(dtype) for tensor in data())
    params = [torch.nn.Parameter(cut(w.clone())), torch.nn.Parameter(w[0].clone())]
    optimizer = build(params)
    meter = wd.Meter(optimizer, every=1, steps_per_epoch=2)
    for gradient in history:
        params[0].grad, params[1].grad = cut(gradient.clone()), gradient[0].clone()
        optimizer.step()
    return meter.to_dict()["samples"]


def metered_in_parts(mesh):
    """Return what a meter says on this rank, of a tensor that is cut up by rows and of one that both ranks have."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    found = {}
    for title, build in METERED.items():
        for layout in ([Shard(0)], [Replicate()]) if title in ("AdamW", "attached, weight by weight") else ([Shard(0)],):
            cut = partial(distribute_tensor, device_mesh=mesh, placements=layout)
            found[title, str(layout)] = metered(build, cut, dtype_of(title))
    return found


def dtype_of(title):
    return torch.bfloat16 if title in ("stochastic", "attached, deferred") else torch.float64


def test_a_meter_says_of_a_sharded_parameter_what_it_says_of_the_whole_on_every_rank(of_two_processes):
    meters = of_two_processes[1]
    for said in meters:
        for (title, layout), samples in said.items():
            expected = metered(METERED[title], lambda tensor: tensor, dtype_of(title))
            for sample, whole in zip(samples, expected, strict=True):
                assert sample["step"] == whole["step"]
                for quantity, value in whole["readings"]["group0"].items():
                    found = sample["readings"]["group0"][quantity]
                    assert found == value or found == pytest.approx(value, rel=1e-9), (title, layout, quantity)


# What is tried on a model, and what its next step does ------------------------------------------------------------------------


class Net(torch.nn.Module):
    """A weight before a batch norm, one before a layer norm, one that no norm follows, and one that nothing depends on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.batch_normed, self.batch_norm = torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5)
        self.layer_normed, self.layer_norm = torch.nn.Linear(5, 7, bias=False), torch.nn.LayerNorm(7)
        self.out, self.unused = torch.nn.Linear(7, 3), torch.nn.Linear(3, 3)
        self.double()

    def forward(self, x):
        y = self.layer_norm(self.layer_normed(self.batch_norm(self.batch_normed(x)).relu()))
        return {"out": self.out(y), "weight": self.unused.bias}


VERDICTS = {
    "batch_normed.weight": "scale-invariant",
    "layer_normed.weight": "scale-invariant",
    "out.weight": "its length matters",
    "unused.weight": "no effect on this output",
}


def batch(rank):
    torch.manual_seed(7 + rank)
    return torch.randn(16, 6, dtype=torch.float64)


class Gate(torch.nn.Module):
    """One layer, of whose weight a batch of zeros shows nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(6, 5, dtype=torch.float64)

    def forward(self, x):
        return self.layer(x)


def fully_sharded(model, mesh):
    from torch.distributed.fsdp import fully_shard

    for part in list(model.children())[:2]:
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def in_tensor_parallel(model, mesh):
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def feed_forward():
    torch.manual_seed(0)
    parts = torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6, bias=False), torch.nn.LayerNorm(6)
    return torch.nn.Sequential(*parts).double()


def bits(model):
    return {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def tried_in_parts(rank, mesh):
    """Return what is found on this rank with a batch of its own, whether a bit has changed, and later gradients."""
    model = fully_sharded(Net(), mesh)
    before = bits(model)
    found = [wd.scale_invariant(model, batch(rank)).to_dict()]
    kept = [bits(model)]
    model.eval()(batch(rank))  # after which the outermost module keeps what it has gathered
    found.append(wd.scale_invariant(model, batch(rank)).to_dict())
    kept.append(bits(model))
    model.train()(batch(rank))["out"].square().mean().backward()
    gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    parallel = in_tensor_parallel(feed_forward(), mesh)
    uneven = fully_sharded(Gate(), mesh)
    return {
        "found": found,
        "as before": [all(torch.equal(after[name], before[name]) for name in before) for after in kept],
        "gradients": gradients,
        "tensor parallel": wd.scale_invariant(parallel, batch(0)).to_dict(),
        "zeros on one rank": wd.scale_invariant(uneven, batch(0) * rank).to_dict(),
        "refused": refusal(uneven, batch(0) / rank),
        "as before it broke": broken(mesh),
    }


def broken(mesh):
    """Return whether the weights are those of before, where the model fails while one of them is four times as long."""
    model = fully_sharded(Net(), mesh)
    weights = dict(model.named_parameters())
    before, calls = {each: whole(weight).clone() for each, weight in weights.items()}, []

    def fail_later(module, inputs):
        calls.append(module)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    model.out.register_forward_pre_hook(fail_later)
    with pytest.raises(RuntimeError, match="out of memory"):
        wd.scale_invariant(model, batch(0))
    return all(torch.equal(whole(weight), before[each]) for each, weight in weights.items())


def refusal(model, inputs):
    with pytest.raises(ValueError, match="not finite") as raised:
        wd.scale_invariant(model, inputs)
    return str(raised.value)


def decomposed_in_parts(rank, mesh, picture):
    """Return what the next step of a fully sharded model does, which one rank alone prints and draws."""
    from torch.distributed.fsdp import fully_shard

    model, optimizer = about_to_step(lambda model: fully_shard(model, mesh=mesh))
    split = wd.decompose(optimizer, model=model)
    if rank == 0:
        split.plot(picture)
        return {"table": str(split), "begins": Path(picture).read_bytes()[:4].decode("latin-1"), **split.to_dict()}
    return None


def about_to_step(sharded):
    model = feed_forward()
    sharded(model)
    optimizer = wd.Adam(wd.param_groups(model, 0.1), lr=0.1, decoupled_weight_decay=False)
    model(batch(0)).square().mul(torch.arange(6)).mean().backward()
    return model, optimizer


def test_what_is_scale_invariant_is_found_on_a_sharded_model_as_on_the_whole_one(of_two_processes):
    """Each rank has a batch of its own; the answer is of the largest change on any of them."""
    whole_ones = [wd.scale_invariant(Net(), batch(rank)).to_dict() for rank in (0, 1)]
    for rows in whole_ones:
        assert {row["name"]: row["verdict"] for row in rows} == VERDICTS
    for rank in of_two_processes[4]:
        for rows in rank["found"]:
            assert {row["name"]: row["verdict"] for row in rows} == VERDICTS
            for row, *each in zip(rows, *whole_ones, strict=True):
                assert row["change"] == pytest.approx(max(one["change"] for one in each), rel=1e-6, abs=1e-15)


def test_a_sharded_model_is_as_it_was_and_goes_on(of_two_processes):
    model = Net()
    for rank in (0, 1):
        model(batch(rank))["out"].square().mean().div(2).backward()
    for rank in of_two_processes[4]:
        assert rank["as before"] == [True, True]
        assert rank["as before it broke"]
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert set(rank["gradients"]) == set(gradients)
        for tensor, gradient in gradients.items():
            torch.testing.assert_close(rank["gradients"][tensor], gradient, rtol=1e-9, atol=1e-12)


def test_the_ranks_decide_alike_where_one_batch_shows_less_or_is_not_finite(of_two_processes):
    for rank in of_two_processes[4]:
        assert [row["verdict"] for row in rank["zeros on one rank"]] == ["its length matters"]
        assert "Give others" in rank["refused"]


def test_weights_in_tensor_parallel_are_tried_too(of_two_processes):
    expected = wd.scale_invariant(feed_forward(), batch(0)).to_dict()
    assert [row["verdict"] for row in expected] == ["its length matters", "scale-invariant"]
    for rank in of_two_processes[4]:
        for row, one in zip(rank["tensor parallel"], expected, strict=True):
            assert (row["name"], row["verdict"]) == (one["name"], one["verdict"])
            assert row["change"] == pytest.approx(one["change"], rel=1e-6)


def test_one_rank_alone_prints_and_draws_what_the_next_step_does(of_two_processes):
    said, nothing = of_two_processes[5]
    assert nothing is None
    table = said.pop("table")
    assert said.pop("begins") == "\x89PNG"
    model, optimizer = about_to_step(lambda model: None)
    expected = wd.decompose(optimizer, model=model).to_dict()
    assert said["optimizer"] == expected["optimizer"]
    for row, one in zip(said["tensors"], expected["tensors"], strict=True):
        assert row["name"] in table
        assert (one["strongest"] > 1e-3) == (len(one["shape"]) > 1)
        for quantity, value in one.items():
            number = isinstance(value, float)
            assert row[quantity] == (pytest.approx(value, rel=1e-9) if number else value), quantity
