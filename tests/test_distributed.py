"""A parameter that is cut up over processes steps as the whole one does: two gloo processes, one machine, no network."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from runs import RULES, assert_close, name, optimizer_with

import weightdecay as wd

SHAPE = (5, 3)  # which two processes cannot share evenly
STEPS = 4
STEPPED = RULES
DOCTOR = "what the doctor finds"


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
    """Step every rule on this rank's half and, on rank 0, save what all ranks hold together."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    found: dict = {DOCTOR: doctored(mesh)}
    for rule in STEPPED:
        w, state = walked(rule, lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)]))
        # The state of a tensor is cut up with it, a number of the whole tensor is every rank's.
        assert all(isinstance(value, DTensor) == (value.ndim > 0) for value in state.values()), rule.name
        whole = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in state.items()}
        found[name(rule)] = w.full_tensor(), whole
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(both, (folder / "rendezvous", folder / "found.pt"), nprocs=2)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("rule", STEPPED, ids=name)
def test_a_sharded_parameter_steps_as_the_whole_one(rule, of_two_processes):
    """A norm is of the whole tensor, not of each rank's rows, and so is what a rule remembers of it."""
    w, state = of_two_processes[name(rule)]
    expected, kept = walked(rule, lambda tensor: tensor)
    start, _ = data()
    assert_close(w, expected, tolerance=1e-13, effect=(expected - start).abs().max())
    assert set(state) == set(kept)
    for key, value in kept.items():
        torch.testing.assert_close(state[key], value, rtol=1e-13, atol=1e-15, msg=lambda text, key=key: f"{key}: {text}")


def test_the_doctor_finds_an_optimizer_that_was_made_before_fully_shard(of_two_processes):
    early, late = of_two_processes[DOCTOR]
    assert ("D10", "error", 4) in early
    assert late == []
