"""The peak of the learning rate that `independent`, `corrected` and two schedules ask for, when a scheduler goes above it."""

import copy
import io
import math
import warnings

import pytest
import torch
from torch.nn import Parameter
from torch.optim import lr_scheduler
from training import BACKENDS, all_params, refused

import weightdecay as wd
from weightdecay.audit.doctor.setup import Case
from weightdecay.optim import hyperparameters

LAM, STEPS = 0.01, 24
every_backend = pytest.mark.parametrize("backend", BACKENDS)
ABOVE = {
    "CyclicLR": (1e-2, lambda o: lr_scheduler.CyclicLR(o, 1e-5, 1e-2, step_size_up=7, cycle_momentum=False)),
    "LambdaLR": (1e-5, lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1000.0, 100.0 * (t + 1)))),
    "MultiplicativeLR": (1e-4, lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 1.5 if t < 9 else 0.75)),
    "Noam": (1e-3, lambda o: lr_scheduler.LambdaLR(o, lambda t: 40 * min((t + 1) ** -0.5, (t + 1) * 8**-1.5))),
}
every_scheduler_that_goes_above = pytest.mark.parametrize(("lr", "scheduler"), ABOVE.values(), ids=ABOVE)


def one():
    return Parameter(torch.ones(2, dtype=torch.float64))


def independent(params, lr, backend="eager", **options):
    rules = {"direction": "adam", "decay": "independent"}
    return wd.Optimizer(params, lr, **rules, weight_decay=LAM, backend=backend, **options)


def attached(params, lr, backend="", decay="independent", **options):
    del backend
    optimizer = torch.optim.Adam(params, lr=lr, foreach=False)
    wd.attach(optimizer, decay, LAM, **options)
    return optimizer


def corrected(params, lr, backend="eager", **options):
    return wd.AdamC([{"params": params, **options}], lr, weight_decay=10.0, backend=backend)


def follows(params, lr, backend="eager", **options):
    groups = [{"params": params, **options}]
    return wd.AdamW(groups, lr, weight_decay=10.0, weight_decay_schedule="follow_lr", backend=backend)


def step(optimizer, scheduler=None, step=None):
    """Do a step without a gradient; return the lr that it had and what it left of each weight."""
    (group,) = optimizer.param_groups
    lr, before = float(group["lr"]), group["params"][0].detach()[0].item()
    group["params"][0].grad = torch.zeros_like(group["params"][0])
    (step or optimizer.step)()
    if scheduler is not None:
        scheduler.step()
    return lr, group["params"][0].detach()[0].item() / before


def run(optimizer, scheduler, steps=STEPS):
    return [step(optimizer, scheduler) for _ in range(steps)]


def by_hand(build, first, lrs):
    """Return what each step leaves of a weight if the peak is the largest lr so far, but `first` at least."""
    peaks = [max(first, *lrs[: place + 1]) for place in range(len(lrs))]
    if build in (independent, attached):
        return [1 - lr / peak * LAM for lr, peak in zip(lrs, peaks, strict=True)]
    return [1 - lr * lr / peak * 10.0 for lr, peak in zip(lrs, peaks, strict=True)]


OWN = [independent, corrected, follows]
every_build = pytest.mark.parametrize("build", [*OWN, attached], ids=lambda build: build.__name__)


@every_scheduler_that_goes_above
@every_backend
@every_build
def test_the_peak_follows_a_scheduler_that_goes_above_it_with_one_warning(build, backend, lr, scheduler):
    if build is attached and backend != BACKENDS[0]:
        return
    optimizer = build([one()], lr, backend)
    its = scheduler(optimizer)
    with pytest.warns(UserWarning, match="peak") as told:
        seen = run(optimizer, its)
    lrs, left = zip(*seen, strict=True)
    first = optimizer.param_groups[0]["initial_lr"]
    assert left == pytest.approx(by_hand(build, first, lrs), rel=1e-12)
    assert max(lrs) > 2 * first
    (warning,) = [str(each.message) for each in told]
    assert all(word in warning for word in ("param_groups[0]", "initial_lr", f"{first:.6g}", "lr_max"))


@every_backend
def test_a_tensor_that_is_filled_is_followed_too(backend):
    lr = torch.tensor(1e-3, dtype=torch.float64)
    optimizer = independent([one()], lr, backend, capturable=True)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 1 + 3 * math.sin(t / 4))
    with pytest.warns(UserWarning, match="peak"):
        lrs, left = zip(*run(optimizer, scheduler, 12), strict=True)
    assert left == pytest.approx(by_hand(independent, 1e-3, lrs), rel=1e-12)
    assert optimizer.param_groups[0]["largest_lr"].item() == max(lrs) > 3.9e-3


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_a_compiled_step_follows_too(tensor):
    torch._dynamo.reset()
    optimizer = independent([one()], torch.tensor(1e-3, dtype=torch.float64) if tensor else 1e-3)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 1 + 3 * math.sin(t / 4))
    compiled = torch.compile(optimizer.step, backend="eager")
    lrs, left = zip(*(step(optimizer, scheduler, compiled) for _ in range(12)), strict=True)
    assert left == pytest.approx(by_hand(independent, 1e-3, lrs), rel=1e-12)
    assert float(optimizer.param_groups[0]["largest_lr"]) == max(lrs)
    torch._dynamo.reset()


@every_build
def test_what_is_passed_as_lr_max_is_the_peak_and_nothing_is_said(build):
    lr, scheduler = ABOVE["CyclicLR"]
    optimizer = build([one()], lr, lr_max=1e-2)
    its = scheduler(optimizer)
    lrs, left = zip(*run(optimizer, its), strict=True)
    assert left == pytest.approx(by_hand(build, 1e-2, lrs), rel=1e-12)
    assert math.prod(left) > 0.5 if build in (independent, attached) else math.prod(left) > 0.1


@every_build
def test_an_lr_above_lr_max_raises_the_peak_too(build):
    """A run goes on, and η/η_max, which would be more than 1, cannot be meant."""
    optimizer = build([one()], 1e-3, lr_max=2e-3)
    optimizer.param_groups[0]["lr"] = 4e-3
    with pytest.warns(UserWarning, match="lr_max=0.002"):
        seen = [step(optimizer)]
    optimizer.param_groups[0]["lr"] = 1e-3
    seen.append(step(optimizer))
    lrs, left = zip(*seen, strict=True)
    assert left == pytest.approx(by_hand(build, 2e-3, lrs), rel=1e-12)


def test_a_schedules_own_rounding_is_no_higher_peak():
    optimizer = independent([one()], 0.3, lr_max=0.3)
    optimizer.param_groups[0]["lr"] = 0.3 * (1 + 1e-9)
    assert step(optimizer)[1] == pytest.approx(1 - LAM, rel=1e-12)


def test_groups_that_go_above_one_after_another_are_told_of_once():
    groups = [{"params": [one()]}, {"params": [one()], "lr": 1e-2}, {"params": [one()], "lr": 1e-4}]
    optimizer = independent(groups, 1e-3)
    said = []
    for factor in (1.0, 2.0, 5.0):
        optimizer.param_groups[0]["lr"] = 1e-3 * factor
        optimizer.param_groups[2]["lr"] = 1e-4 * max(1.0, factor - 1)
        for param in all_params(optimizer):
            param.grad = torch.zeros_like(param)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            optimizer.step()
        said.append(len(told))
    assert said == [0, 1, 0]
    assert [hyperparameters.peak_lr(group) for group in optimizer.param_groups] == pytest.approx([5e-3, 1e-2, 4e-4])


# What is saved --------------------------------------------------------------------------------------------------------------


def reloaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_build
@pytest.mark.parametrize("way", ["load_state_dict", "deepcopy"])
def test_a_run_goes_on_with_the_peak_that_it_has_reached(build, way):
    """After the peak, so that only what was saved knows of it, and nothing is said a second time."""
    lr, scheduler = ABOVE["LambdaLR"]
    optimizer = build([one()], lr)
    its = scheduler(optimizer)
    with pytest.warns(UserWarning, match="peak"):
        run(optimizer, its)
    peak = optimizer.param_groups[0]["lr"]
    if way == "deepcopy":
        resumed = copy.deepcopy(optimizer)
    else:
        resumed = build([one()], lr)
        resumed.load_state_dict(reloaded(optimizer.state_dict()))
    resumed.param_groups[0]["lr"] = peak / 4
    ((got, left),) = [step(resumed)]
    assert left == pytest.approx(by_hand(build, peak, [got])[0], rel=1e-12)


def test_a_checkpoint_from_before_the_peak_takes_it_back():
    """A learning-rate finder goes up, and then loads what was there before."""
    optimizer = independent([one()], 1e-3)
    step(optimizer)
    before = reloaded(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 1.0
    with pytest.warns(UserWarning, match="peak"):
        step(optimizer)
    optimizer.load_state_dict(before)
    assert step(optimizer)[1] == pytest.approx(1 - LAM, rel=1e-12)


def test_a_checkpoint_of_torchs_knows_no_peak_and_its_lr_is_followed():
    theirs = torch.optim.AdamW([one()], lr=1e-2)
    step(theirs)
    optimizer = wd.AdamC([one()], 1e-3, weight_decay=10.0)
    with pytest.warns(UserWarning, match="weight_decay of .*: 10 → 0.01"):
        optimizer.load_state_dict(reloaded(theirs.state_dict()))
    optimizer.param_groups[0]["weight_decay"] = 10.0
    with pytest.warns(UserWarning, match="lr_at_start=0.001"):
        assert step(optimizer)[1] == pytest.approx(1 - 1e-2 * 10.0, rel=1e-12)


def test_migrate_moves_the_peak_with_the_lr():
    old, new = (wd.AdamC([("w", one())], 1e-3, weight_decay=0.1) for _ in range(2))
    old.param_groups[0]["lr"] = 1e-2
    with pytest.warns(UserWarning, match="peak"):
        step(old)
    wd.migrate(new, old.state_dict(), weight_decay="live", lr="live")
    assert hyperparameters.peak_lr(new.param_groups[0]) == 1e-3
    wd.migrate(new, old.state_dict(), weight_decay="live", lr="checkpoint")
    assert hyperparameters.peak_lr(new.param_groups[0]) == 1e-2


def test_detaching_leaves_nothing_of_the_peak():
    optimizer = torch.optim.Adam([one()], lr=1e-3)
    before = set(optimizer.param_groups[0])
    attachment = wd.attach(optimizer, "independent", LAM)
    optimizer.param_groups[0]["lr"] = 1e-2
    with pytest.warns(UserWarning, match="the attached independent decay"):
        step(optimizer)
    attachment.detach()
    assert set(optimizer.param_groups[0]) == before


# Who else asks for the peak ------------------------------------------------------------------------------------------------


def reached(build, peak=1e-2):
    """Return an optimizer whose lr has been at a peak that nobody named, and is a quarter of it now."""
    optimizer = build([one()], 1e-3)
    optimizer.param_groups[0]["lr"] = peak
    with pytest.warns(UserWarning, match="peak"):
        step(optimizer)
    optimizer.param_groups[0]["lr"] = peak / 4
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(2, dtype=torch.float64)
    return optimizer


@pytest.mark.parametrize("build", OWN, ids=lambda build: build.__name__)
def test_what_looks_ahead_sees_the_same_peak(build):
    optimizer = reached(build)
    expected = by_hand(build, 1e-2, [1e-2 / 4])[0]
    split = wd.decompose(optimizer)[all_params(optimizer)[0]]
    assert split.g.tolist() == pytest.approx([expected] * 2, rel=1e-12)
    assert wd.remaining(optimizer).groups[0] == pytest.approx(expected, rel=1e-12)
    meter = wd.Meter(optimizer, every=1)
    assert step(optimizer)[1] == pytest.approx(expected, rel=1e-12)
    assert meter.history()[-1].readings["group0"].shrink == pytest.approx(1 - expected, rel=1e-9)


@every_build
def test_a_look_ahead_goes_up_with_the_schedule_and_says_nothing(build):
    lr, scheduler = ABOVE["LambdaLR"]
    optimizer = build([one()], lr)
    its = scheduler(optimizer)
    model = torch.nn.ParameterDict({"w": all_params(optimizer)[0]})
    (run,) = Case(model, optimizer, its, STEPS, None).runs
    assert run.shares == pytest.approx([1 - left for left in by_hand(build, optimizer.param_groups[0]["initial_lr"], run.lrs)])
    assert max(run.lrs) > 2 * run.lrs[0]
    assert "largest_lr" not in optimizer.param_groups[0] or not optimizer.param_groups[0]["largest_lr"]


def test_a_scheduler_that_follows_the_lr_follows_the_peak():
    optimizer = torch.optim.AdamW([one()], 1e-3, weight_decay=0.5)
    rates = lr_scheduler.LambdaLR(optimizer, lambda t: [1, 2, 8, 4, 2][t])
    follows = wd.WeightDecayScheduler(optimizer, "follow_lr")
    with pytest.warns(UserWarning, match="WeightDecayScheduler") as told:
        seen = run(optimizer, lr_scheduler.ChainedScheduler([rates, follows], optimizer=optimizer), steps=4)
    shrinks = [1e-3 * 0.5, 2e-3 * 0.5, 8e-3 * 0.5, 4e-3 * 0.25]
    assert [1 - left for _, left in seen] == pytest.approx(shrinks, rel=1e-9)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.125)
    assert len(told) == 1


def test_a_scheduler_of_lambda_knows_the_lr_that_it_was_made_at():
    """Without a scheduler of the lr, by hand."""
    optimizer = torch.optim.AdamW([one()], 1e-2, weight_decay=0.5)
    follows = wd.WeightDecayScheduler(optimizer, "follow_lr")
    optimizer.param_groups[0]["lr"] = 1e-3
    step(optimizer, follows)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.05)


# Nothing follows the lr twice ------------------------------------------------------------------------------------------------

TWICE = {
    "AdamC": lambda: wd.AdamC([one()], 0.1, weight_decay=0.1),
    "SGDC": lambda: wd.SGDC([one()], 0.1, weight_decay=0.1),
    "independent": lambda: independent([one()], 0.1),
    "attached": lambda: attached([one()], 0.1),
    "attached corrected": lambda: attached([one()], 0.1, decay="corrected"),
}


@pytest.mark.parametrize("name", ["follow_lr", "constant_timescale"])
@pytest.mark.parametrize("build", TWICE.values(), ids=TWICE)
def test_a_scheduler_refuses_what_the_group_refuses(build, name):
    optimizer = build()
    before = copy.deepcopy(optimizer.state_dict())
    with refused(ValueError, name, "param_groups[0]", "by itself"):
        wd.WeightDecayScheduler(optimizer, name)
    with refused(ValueError, name, "by itself"):
        wd.WeightDecayScheduler(optimizer, [{"name": name}])
    assert optimizer.state_dict() == before
    scheduler = wd.WeightDecayScheduler(optimizer, "cosine", steps=10)
    other = wd.WeightDecayScheduler(torch.optim.AdamW([one()], 0.1), name)
    with refused(ValueError, name, "by itself"):
        scheduler.load_state_dict(other.state_dict())
    assert scheduler.schedules[0]["name"] == "cosine"


def test_a_penalty_beside_such_a_decay_may_follow_the_lr():
    rules = {"direction": "sgd", "decay": "corrected", "penalty": "l2", "penalty_weight": 0.5}
    inside = wd.Optimizer([one()], 0.1, **rules, penalty_weight_schedule="follow_lr")
    outside = wd.Optimizer([one()], 0.1, **rules)
    scheduler = wd.WeightDecayScheduler(outside, "follow_lr", key="penalty_weight")
    assert [step(optimizer)[1] for optimizer in (inside, outside)] == pytest.approx([1 - 0.1 * 0.5] * 2)
    inside.param_groups[0]["lr"] = outside.param_groups[0]["lr"] = 0.05
    scheduler.step()
    assert [step(optimizer)[1] for optimizer in (inside, outside)] == pytest.approx([1 - 0.05 * 0.25] * 2)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
@pytest.mark.parametrize("schedule", ["follow_lr", "constant_timescale"])
def test_a_scheduler_of_lambda_goes_on_when_the_lr_rises_above_its_start(backend, schedule):
    """It writes the peak into a group that had none, between two steps of a kernel."""
    optimizer = wd.AdamW([one()], 0.1, weight_decay=LAM, backend=backend)
    decay = wd.WeightDecayScheduler(optimizer, schedule)

    def follow(lrs):
        for lr in lrs:
            optimizer.param_groups[0]["lr"] = lr
            step(optimizer, decay)

    with pytest.warns(UserWarning, match="for the peak"):
        follow((0.1, 0.2, 0.4, 0.2))
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(LAM * (0.5 if schedule == "follow_lr" else 2.0))


@pytest.mark.parametrize("backend", ["eager", "cpu"])
@pytest.mark.parametrize("build", [independent, attached], ids=["independent", "attached"])
def test_a_run_that_starts_at_lr_0_remembers_its_peak(build, backend):
    """A warm-up written by hand: the first lr names no peak, and nothing is said."""
    optimizer = build([one()], 0.0, backend)
    kept = []
    for lr in (0.05, 0.1, 0.05, 0.01):
        optimizer.param_groups[0]["lr"] = lr
        kept.append(step(optimizer)[1])
    shares = [1.0, 1.0, 0.5, 0.1]  # of λ: the lr over the largest so far
    assert [1 - each for each in kept] == pytest.approx([LAM * share for share in shares], rel=1e-9)


def test_an_attached_decay_refuses_a_peak_that_is_no_number():
    optimizer = torch.optim.SGD([one()], lr=0.1)
    optimizer.param_groups[0]["lr_max"] = "x"
    with refused((TypeError, ValueError), "param_groups[0]['lr_max']", unchanged=optimizer):
        wd.attach(optimizer, "independent", LAM)
