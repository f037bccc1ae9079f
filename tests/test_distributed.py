"""A parameter that is cut up over processes steps as the whole one does: two gloo processes, one machine, no network."""

from functools import partial

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

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for rule in STEPPED:
        w, state = walked(rule, lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)]))
        # The state of a tensor is cut up with it, a number of the whole tensor is every rank's.
        assert all(isinstance(value, DTensor) == (value.ndim > 0) for value in state.values()), rule.name
        whole = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in state.items()}
        found[name(rule)] = w.full_tensor(), whole
    torch.save((found, metered_in_parts(mesh), doctored(mesh), shared_out()), f"{out}{rank}")
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
    *_, ranks = of_two_processes
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
    return ranks[0][0], *([each[place] for each in ranks] for place in (1, 2, 3))


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
    _, _, reports, _ = of_two_processes
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
    "AdamW": lambda params: wd.AdamW(params, lr=0.1, weight_decay=0.5, reader="eager"),
    "SGD with L2": lambda params: wd.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.5, reader="eager"),
    "stochastic": lambda params: wd.AdamW(params, lr=0.1, weight_decay=0.5),
    "a number of all tensors": lambda params: wd.AdamS(params, lr=0.1, weight_decay=0.5, reader="eager"),
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
    _, meters, _, _ = of_two_processes
    for said in meters:
        for (title, layout), samples in said.items():
            expected = metered(METERED[title], lambda tensor: tensor, dtype_of(title))
            for sample, whole in zip(samples, expected, strict=True):
                assert sample["step"] == whole["step"]
                for quantity, value in whole["readings"]["group0"].items():
                    found = sample["readings"]["group0"][quantity]
                    assert found == value or found == pytest.approx(value, rel=1e-9), (title, layout, quantity)
