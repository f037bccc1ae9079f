"""Units of λ, held against optimizers that run: what `units` says of a decay is what a weight then loses."""

import copy
import json
import math
from itertools import pairwise

import hypothesis
import pytest
import torch
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st
from runs import assert_close, gradients, twin, walk, weights
from sklearn.linear_model import Ridge
from torch.optim import lr_scheduler

import weightdecay as wd
from weightdecay.analysis import units
from weightdecay.cli import main
from weightdecay.optim import schedules

UNITS = tuple(units.UNITS)
LRS = [0.02, 0.05, 0.1, 0.1, 0.07, 0.03, 0.01, 0.0]


def about(expected, rel=1e-9, abs=0.0):  # noqa: A002
    """Compare relatively, and not, as pytest does beside, to 1e-12: a decay may be smaller."""
    return pytest.approx(expected, rel=rel, abs=abs)


def one(size=1.0, dtype=torch.float64):
    return torch.nn.Parameter(torch.full((1,), size, dtype=dtype))


def kept(optimizer, steps, scheduler=None, every=1):
    """Run an optimizer with zero gradients and return what each step left of the first weight of each group."""
    schedulers = [] if scheduler is None else scheduler if isinstance(scheduler, list) else [scheduler]
    firsts = [group["params"][0] for group in optimizer.param_groups]
    seen = []
    for done in range(1, steps + 1):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.zeros_like(param)
        optimizer.step()
        if done % every == 0 and done < steps:
            for each in schedulers:
                each.step()
        seen.append([param.flatten()[0].item() for param in firsts])
    return seen


# convert ------------------------------------------------------------------------------------------------------------------

logs = st.floats(-9, -3).map(lambda exponent: 10**exponent)
settings_of = st.fixed_dictionaries(
    {
        "lr": st.floats(-6, 0).map(lambda exponent: 10**exponent),
        "momentum": st.floats(0.01, 0.9),
        "dampening": st.floats(0, 0.5),
        "steps": st.integers(1, 900),
        "lrs": st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(lambda shares: max(shares) > 1e-3),
        "samples": st.floats(1, 1e9),
        "loss": st.sampled_from(tuple(units.LOSSES)),
    }
)


def read_by(source, target, settings, lrs=False):
    """Leave out of the settings what neither of two units reads."""
    both = {source, target}
    found = {"lr": settings["lr"]}
    if both & {"coupled", "sklearn"}:
        found |= {name: settings[name] for name in ("momentum", "dampening")}
    if "sklearn" in both:
        found["loss"] = settings["loss"]
        if "mean" in settings["loss"]:
            found["samples"] = settings["samples"]
    if "total_shrink" in both:
        name = "lrs" if lrs else "steps"
        found[name] = [settings["lr"] * share for share in settings["lrs"]] if lrs else settings["steps"]
    return found


@pytest.mark.parametrize("source", UNITS)
@pytest.mark.parametrize("target", UNITS)
@hypothesis.settings(max_examples=20)
@given(shrink=logs, settings=settings_of, lrs=st.booleans())
def test_there_and_back_again_is_where_one_was(source, target, shrink, settings, lrs):
    value = wd.convert(shrink, source="shrink", target=source, **read_by("shrink", source, settings, lrs))
    given_ = read_by(source, target, settings, lrs)
    there = wd.convert(value, source=source, target=target, **given_)
    assert math.isclose(wd.convert(there, source=target, target=source, **given_), value, rel_tol=1e-10)


@pytest.mark.parametrize("between", UNITS)
@given(shrink=logs, settings=settings_of, lrs=st.booleans())
def test_a_way_round_is_the_direct_way(between, shrink, settings, lrs):
    value = wd.convert(shrink, source="shrink", target="torch", lr=settings["lr"])
    there = wd.convert(value, source="torch", target=between, **read_by("torch", between, settings, lrs))
    back = wd.convert(there, source=between, target="shrink", **read_by(between, "shrink", settings, lrs))
    assert math.isclose(back, shrink, rel_tol=1e-10)


def test_no_digit_of_a_small_shrink_is_lost():
    assert wd.convert(3e-10, source="torch", target="shrink", lr=1e-10) == about(3e-20, rel=1e-15)
    assert wd.convert(3e-10, source="torch", target="total_shrink", lr=1e-10, steps=7) == about(21e-20, rel=1e-14)


@pytest.mark.parametrize("direction", ["adam", "sgd"])
def test_torchs_lambda_and_the_papers_do_the_same_at_every_step_of_a_schedule(direction):
    lam, history = 0.7, gradients(len(LRS))
    param = weights()
    trains = {"direction": direction, "lr": max(LRS), "lr_max": max(LRS)}
    independent = wd.convert(lam, source="torch", target="independent", lr=max(LRS))
    of = [
        walk(wd.Optimizer([twin(param)], **options), history, LRS)
        for options in (
            {"direction": direction, "lr": max(LRS), "decay": "decoupled", "weight_decay": lam},
            {**trains, "decay": "independent", "weight_decay": independent},
            {"direction": direction, "lr": max(LRS)},
        )
    ]
    assert_close(of[1], of[0], tolerance=1e-12, effect=(of[0] - of[2]).abs().max())


@given(lam=st.floats(0.01, 1))
def test_without_momentum_l2_and_decoupled_decay_are_the_same_at_every_step(lam):
    history, param = gradients(len(LRS)), weights()
    coupled = wd.convert(lam, source="torch", target="coupled")
    found = [
        walk(optimizer, history, LRS)
        for optimizer in (
            torch.optim.SGD([twin(param)], lr=LRS[0], weight_decay=coupled),
            wd.SGDW([twin(param)], lr=LRS[0], weight_decay=lam),
            wd.SGDW([twin(param)], lr=LRS[0]),
        )
    ]
    assert_close(found[0], found[1], tolerance=1e-12, effect=(found[1] - found[2]).abs().max())


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.4])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_with_momentum_the_shrink_is_one_to_first_order(momentum, dampening, nesterov):
    """A weight really loses a share s·μ/(1 − μ) more, to second order, and at most twice as much."""
    if nesterov and dampening:
        pytest.skip("torch refuses the two together")
    most = (1 - math.sqrt(momentum)) ** 2 / (1 - momentum)
    for shrink in (1e-4, most / 10, most * (1 - 1e-6)):
        lam = wd.convert(shrink, source="shrink", target="coupled", lr=0.1, momentum=momentum, dampening=dampening)
        optimizer = torch.optim.SGD(
            [one()], lr=0.1, momentum=momentum, dampening=dampening, nesterov=nesterov, weight_decay=lam
        )
        (before,), (after,) = kept(optimizer, 600)[-2:]
        more = (1 - after / before) / shrink - 1
        expected = shrink * momentum / (1 - momentum)
        if not nesterov:
            assert 0 < more < 1.001
        if shrink == 1e-4:
            assert (0 if nesterov else 0.99) < more / expected < 1.01


@given(momentum=st.floats(0.05, 0.8), dampening=st.floats(0, 0.5), a=st.floats(0.02, 0.95) | st.floats(1.05, 1.9))
def test_what_is_refused_as_swinging_does_swing(momentum, dampening, a):
    """A first step that dampening has not reached yet may take a weight through zero once, and no further."""
    lam = a * (1 - math.sqrt(momentum)) ** 2 / (1 - dampening)
    optimizer = torch.optim.SGD([one()], lr=1.0, momentum=momentum, dampening=dampening, weight_decay=lam)
    crossings = sum(before[0] * after[0] < 0 for before, after in pairwise([[1.0], *kept(optimizer, 300)]))
    assert (crossings > 1) == units.swings(1.0, lam, momentum, dampening) == (a > 1)


def test_an_l2_that_flips_every_weight_counts_as_swinging():
    values = kept(torch.optim.SGD([one()], lr=1.0, momentum=0.5, weight_decay=5.0), 20)
    assert all(before[0] * after[0] < 0 for before, after in pairwise(values))
    assert units.swings(1.0, 5.0, 0.5)


def test_a_swinging_l2_has_no_other_unit():
    with pytest.raises(ValueError, match=r"value=0\.05 is an L2 of λ=0\.05, .*lr=0\.1 and momentum=0\.9 swings"):
        wd.convert(0.05, source="coupled", target="half_life", lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"value=0\.05 is an L2 of λ=0\.05, .*swings"):
        wd.convert(0.05, source="shrink", target="sklearn", lr=0.1, momentum=0.9, loss="half_sum")
    # The minimum is reached all the same.
    assert wd.convert(0.05, source="coupled", target="sklearn", lr=0.1, momentum=0.9, samples=10) == about(0.5)


REDUCTIONS = {
    "half_mean": lambda error: (error**2).mean() / 2,
    "mean": lambda error: (error**2).mean(),
    "half_sum": lambda error: (error**2).sum() / 2,
    "sum": lambda error: (error**2).sum(),
}


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("loss", units.LOSSES)
@pytest.mark.parametrize("named", ["SGD", "SGDW"])
def test_ridge_finds_what_sgd_finds_with_its_alpha_converted(named, loss, outputs):
    examples, alpha, momentum = 40, 7.0, 0.6
    x, y = torch.randn(examples, 3, dtype=torch.float64), torch.randn(examples, outputs, dtype=torch.float64)
    errors = examples * outputs
    given_ = {"samples": errors} if "mean" in loss else {}
    unit = "coupled" if named == "SGD" else "torch"
    lam = wd.convert(alpha, source="sklearn", target=unit, momentum=momentum, loss=loss, **given_)
    w = torch.nn.Parameter(torch.zeros(3, outputs, dtype=torch.float64))
    lr = 0.1 / errors if "sum" in loss else 0.1
    optimizer = getattr(wd, named)([w], lr=lr, momentum=momentum, weight_decay=lam)
    for _ in range(1500):
        optimizer.zero_grad()
        REDUCTIONS[loss](x @ w - y).backward()
        optimizer.step()
    coefficients = [
        torch.tensor(Ridge(alpha=strength, fit_intercept=False, tol=1e-12).fit(x.numpy(), y.numpy()).coef_)
        .reshape(outputs, 3)
        .T
        for strength in (alpha, 0.0)
    ]
    assert_close(w.detach(), coefficients[0], tolerance=1e-9, effect=(coefficients[0] - coefficients[1]).abs().max())


@given(lr=st.floats(0.01, 1), lam=st.floats(0.01, 0.5))
def test_a_half_life_is_the_steps_that_are_counted(lr, lam):
    expected = wd.half_life(lr, lam)
    assume(expected < 2000)
    w = one()
    steps = math.ceil(expected)
    values = [1.0, *(value for (value,) in kept(wd.SGDW([w], lr=lr, weight_decay=lam), steps))]
    assert values[-1] <= 0.5 + 1e-12
    assert values[-2] > 0.5 - 1e-12
    assert wd.convert(expected, source="half_life", target="torch", lr=lr) == about(lam, rel=1e-12)


def test_a_half_life_speaks_every_unit():
    assert wd.half_life(0.1, 0.05, source="independent") == about(math.log(2) / -math.log(0.95))
    assert wd.half_life(0.1, 0.005, source="coupled", momentum=0.9) == about(math.log(2) / -math.log(0.995))
    assert wd.half_life(0.1, 0.0) == math.inf
    assert wd.convert(math.inf, source="half_life", target="torch", lr=0.1) == 0


def test_a_total_shrink_is_what_the_steps_take():
    lam = 0.8
    optimizer = wd.SGDW([one()], lr=LRS[0], weight_decay=lam)
    (*_, (left,)) = walk(optimizer, [torch.zeros(1)] * len(LRS), LRS).tolist()
    total = wd.convert(lam, source="torch", target="total_shrink", lrs=LRS)
    assert total == about(1 - left, rel=1e-12)
    assert total != about(wd.convert(lam, source="torch", target="total_shrink", lr=max(LRS), steps=len(LRS)), rel=0.1)
    assert wd.convert(total, source="total_shrink", target="torch", lrs=LRS) == about(lam, rel=1e-12)
    ((left,),) = kept(wd.SGDW([one()], lr=0.1, weight_decay=lam), 9)[-1:]
    total = wd.convert(lam, source="torch", target="total_shrink", lr=0.1, steps=9)
    assert total == about(1 - left, rel=1e-12)


@given(total=st.floats(1e-9, 1 - 1e-9), lrs=st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(lambda x: max(x) > 1e-2))
def test_a_wanted_total_is_reached_over_any_schedule(total, lrs):
    shrink = wd.convert(total, source="total_shrink", target="shrink", lrs=lrs)
    left = math.prod(1 - shrink * lr / max(lrs) for lr in lrs)
    assert left == about(1 - total, rel=1e-6, abs=1e-12)
    assert wd.convert(shrink, source="shrink", target="total_shrink", lrs=lrs) == about(total, rel=1e-9)


MISTAKES = [
    ({"source": "torch", "target": "half_life"}, TypeError, "from torch to half_life convert needs lr="),
    ({"source": "sklearn", "target": "shrink", "samples": 9}, TypeError, "needs lr="),
    ({"source": "shrink", "target": "total_shrink"}, TypeError, "needs steps="),
    ({"source": "sklearn", "target": "coupled"}, TypeError, "needs samples="),
    ({"source": "sklearn", "target": "coupled", "loss": "sum", "samples": 9}, ValueError, "samples=9 does nothing"),
    ({"source": "torhc", "target": "coupled"}, ValueError, "source='torhc' is unknown: did you mean 'torch'?"),
    ({"source": "torch", "target": "?"}, ValueError, "target='?' is unknown: there are torch, independent"),
    ({"source": "sklearn", "target": "torch", "loss": "mse"}, ValueError, "loss='mse' is unknown"),
    ({"value": math.nan}, ValueError, "value=nan is not a number in [0, inf)"),
    ({"value": -0.1}, ValueError, "value=-0.1 is not"),
    ({"value": math.inf}, ValueError, "value=inf is not"),
    ({"value": 10**400}, ValueError, "value=1000"),
    ({"value": "0.1"}, TypeError, "value='0.1' is not a number"),
    ({"value": True}, TypeError, "value=True is not a number"),
    ({"value": 1.0, "source": "shrink"}, ValueError, "value=1.0 is not a number in [0, 1)"),
    ({"value": 1.0, "source": "total_shrink", "steps": 2}, ValueError, "value=1.0 is not a number in [0, 1)"),
    ({"value": 0, "source": "half_life"}, ValueError, "value=0 is not a number in (0, inf]"),
    ({"value": 20}, ValueError, "value=20 in the unit 'torch' at lr=0.1 takes 2 of a weight in one step"),
    ({"value": 1.5, "source": "independent", "target": "torch"}, ValueError, "takes 1.5 of a weight"),
    ({"value": 1e-9, "source": "half_life", "target": "torch"}, ValueError, "takes 1 of a weight"),
    ({"value": 0.5, "source": "shrink", "target": "torch", "lr": 1e-323}, ValueError, "beyond what a float holds"),
    ({"value": 1e300, "source": "sklearn", "target": "torch", "loss": "sum", "momentum": 0.999999999}, ValueError, "beyond"),
    ({"value": 1e308, "source": "sklearn", "loss": "sum", "momentum": 0.99}, ValueError, "takes inf of a weight"),
    ({"lr": 0.0}, ValueError, "lr=0.0 is not a number in (0, inf)"),
    ({"lr": math.nan}, ValueError, "lr=nan"),
    ({"momentum": 1.0, "target": "coupled"}, ValueError, "momentum=1.0 is not a number in [0, 1)"),
    ({"dampening": -0.1, "momentum": 0.9, "target": "coupled"}, ValueError, "dampening=-0.1"),
    ({"dampening": 0.5, "target": "coupled"}, ValueError, "does nothing while momentum=0"),
    ({"momentum": 0.9}, ValueError, "momentum=0.9 would do nothing from torch to shrink: only coupled and sklearn read it"),
    ({"samples": 9}, ValueError, "samples=9.0 would do nothing"),
    ({"steps": 9}, ValueError, "steps=9 would do nothing"),
    ({"lrs": [0.1]}, ValueError, "1 lrs would do nothing"),
    ({"steps": 0, "target": "total_shrink"}, ValueError, "steps=0 is not a whole number from 1 on"),
    ({"steps": 1.5, "target": "total_shrink"}, ValueError, "steps=1.5 is not a whole number"),
    ({"steps": 2, "lrs": [0.1], "target": "total_shrink"}, ValueError, "give one of the two"),
    ({"lrs": [0.1, -1], "target": "total_shrink"}, ValueError, "lrs[1]=-1 is not a number in [0, inf)"),
    ({"lrs": [0.0], "target": "total_shrink"}, ValueError, "none is above 0"),
    ({"lrs": [], "target": "total_shrink"}, ValueError, "lrs has 0 learning rates"),
    ({"lrs": [0.2], "target": "total_shrink"}, ValueError, "lr=0.1 is not the peak: lrs goes up to 0.2"),
]


@pytest.mark.parametrize(("changes", "error", "says"), MISTAKES, ids=lambda value: str(value)[:50])
def test_what_cannot_be_meant_is_refused_by_name(changes, error, says):
    lr = {} if {"source", "target"} <= set(changes) and "value" not in changes else {"lr": 0.1}
    good = {"value": 0.1, "source": "torch", "target": "shrink", **lr}
    if "value" in good and not changes.keys() & {"source", "target"}:
        wd.convert(**good)
    with pytest.raises(error) as refusal:
        wd.convert(**{**good, **changes})
    assert says in str(refusal.value)


def test_the_shorthands_name_their_own_arguments():
    for call in (
        lambda value: wd.half_life(0.1, value),
        lambda value: wd.timescale(0.1, value),
        lambda value: wd.transfer(value, 0.1, new_lr=0.2),
        lambda value: wd.normalized(None, 1, 1, 1, weight_decay=value),
    ):
        with pytest.raises(ValueError, match="weight_decay=nan is not a number"):
            call(math.nan)
        with pytest.raises(ValueError, match="weight_decay=-1 is not a number"):
            call(-1)
    with pytest.raises(ValueError, match="source='half_life' is unknown"):
        wd.half_life(0.1, 1, source="half_life")
    with pytest.raises(ValueError, match="steps_per_epoch=0"):
        wd.timescale(0.1, 1, 0)


def test_tensors_of_one_element_are_numbers():
    assert wd.convert(torch.tensor(0.5), source="torch", target="shrink", lr=torch.tensor([0.25])) == 0.125


# timescale ----------------------------------------------------------------------------------------------------------------


def test_a_timescale_is_how_far_a_moving_average_looks_back():
    """The mean age of what AdamW averages, Σ k·s·(1 − s)ᵏ, is τ − 1."""
    lr, lam = 0.02, 0.5
    found = wd.timescale(lr, lam, steps_per_epoch=40)
    values = [1.0, *(value for (value,) in kept(wd.SGDW([one()], lr=lr, weight_decay=lam), 6000))]
    age = sum(k * (before - after) for k, (before, after) in enumerate(pairwise(values)))
    assert found.steps == about(age + 1, rel=1e-9)
    assert found.epochs == about(found.steps / 40)
    assert found.to_dict() == {"steps": found.steps, "epochs": found.epochs}
    assert str(found) == "The weights average their updates over about 100 steps (2.5 epochs)."
    assert wd.timescale(lr, lam).epochs is None


def test_without_decay_the_timescale_has_no_end():
    found = wd.timescale(0.1, 0.0, 10)
    assert found.steps == found.epochs == math.inf
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == {"steps": None, "epochs": None}
    assert "forget none" in str(found)


# remaining ----------------------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "none": lambda optimizer: None,
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=30),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=5, T_mult=2),
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.9),
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.3),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t)),
    "multiplied": lambda optimizer: lr_scheduler.MultiplicativeLR(optimizer, lambda t: 0.8),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=40, cycle_momentum=False),
    "cycles": lambda optimizer: lr_scheduler.CyclicLR(
        optimizer, base_lr=0.01, max_lr=0.2, step_size_up=4, cycle_momentum=False
    ),
    "sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(optimizer, T_max=25)],
        milestones=[5],
    ),
    "chain": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.5, 4), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
    "several": lambda optimizer: [lr_scheduler.StepLR(optimizer, 10), Halving(optimizer)],
}


class Halving:
    """A schedule of λ."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        for group in self.optimizer.param_groups:
            group["weight_decay"] *= 0.5


def groups(lam=0.4):
    return [{"params": [one()], "weight_decay": lam}, {"params": [one(), one()], "weight_decay": 0.0, "lr": 0.05}]


OPTIMIZERS = {
    "wd.AdamW": lambda: wd.AdamW(groups(), lr=0.1),
    "wd.SGDW": lambda: wd.SGDW(groups(), lr=0.1, momentum=0.9),
    "wd.SGD": lambda: wd.SGD(groups(), lr=0.1),
    "independent": lambda: wd.Optimizer(groups(), lr=0.1, direction="adam", decay="independent"),
    "cautious": lambda: wd.Optimizer(groups(), lr=0.1, direction="adam", decay="cautious"),
    "torch.AdamW": lambda: torch.optim.AdamW(groups(), lr=0.1),
    "torch.SGD": lambda: torch.optim.SGD(groups(), lr=0.1),
    "torch.Adam, decoupled": lambda: torch.optim.Adam(groups(), lr=0.1, decoupled_weight_decay=True),
    "torch.AdamW, tensor lr": lambda: torch.optim.AdamW(groups(), lr=torch.tensor(0.1, dtype=torch.float64), foreach=False),
}


def snapshot(optimizer, scheduler):
    """Return all that a user could see of an optimizer and its schedulers."""
    several = scheduler if isinstance(scheduler, list) else [scheduler]
    states = [each.state_dict() for each in several if hasattr(each, "state_dict")]
    plain = [{**group, "params": [param.tolist() for param in group["params"]]} for group in optimizer.param_groups]
    return copy.deepcopy((plain, str(states), str(dict(optimizer.state)), list(vars(optimizer))))


@pytest.mark.filterwarnings("ignore:lr=.* is above initial_lr:UserWarning")  # CyclicLR rises, and the peak follows it
@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_remains_is_what_a_run_leaves(name, schedule):
    optimizer = OPTIMIZERS[name]()
    scheduler = SCHEDULERS[schedule](optimizer)
    before = snapshot(optimizer, scheduler)
    first = wd.remaining(optimizer, scheduler, 30)  # without a warning that no step was made yet
    assert snapshot(optimizer, scheduler) == before
    for ahead in (12, 18):
        start = [group["params"][0].item() for group in optimizer.param_groups]
        foreseen = wd.remaining(optimizer, scheduler, ahead)
        assert wd.remaining(optimizer, scheduler, ahead) == foreseen
        end = kept(optimizer, ahead, scheduler)[-1]
        for share, now, then in zip(foreseen.groups, end, start, strict=True):
            assert share == about(now / then, rel=1e-12)
        for each in scheduler if isinstance(scheduler, list) else [scheduler] if scheduler else []:
            each.step()
    assert first.groups == about([group["params"][0].item() for group in optimizer.param_groups], rel=1e-12)
    assert abs(1 - first.groups[0]) > 0.05
    assert first.groups[1] == 1.0


def test_the_momentum_of_l2_is_foreseen_from_an_empty_buffer():
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.3}
    for make in (wd.SGD, torch.optim.SGD):
        optimizer = make([one()], **options)
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
        foreseen = wd.remaining(optimizer, scheduler, 50)
        (end,) = kept(optimizer, 50, scheduler)[-1]
        assert foreseen.groups == (about(end, rel=1e-10, abs=1e-12),)
        assert abs(end) < 0.9


def test_a_scheduler_of_epochs_is_stepped_once_an_epoch():
    optimizer = wd.AdamW(groups(), lr=0.1)
    scheduler = lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    foreseen = wd.remaining(optimizer, scheduler, 20, every=6)
    assert foreseen.groups[0] > 1.01 * wd.remaining(optimizer, None, 20).groups[0]
    assert foreseen.groups[0] == about(kept(optimizer, 20, scheduler, every=6)[-1][0], rel=1e-12)
    assert foreseen.to_dict() == {"steps": 20, "groups": list(foreseen.groups)}
    assert str(foreseen) == (
        f"In the next 20 steps the decay alone leaves, of a weight: {foreseen.groups[0]:.3g} in group 0, 1 in group 1."
    )


def test_a_users_own_decay_is_foreseen_as_its_rule_says(own_registry):
    @wd.decay(source="nobody")
    def fading(w, u, *, eta, lam, t):
        """Decay less and less."""
        return (1 - eta * lam / t) * w - eta * u

    @wd.decay(source="nobody")
    def whole(w, u, *, eta, lam, norm_w):
        """Decay by the norm of the tensor."""
        return (1 - eta * lam * norm_w) * w - eta * u

    optimizer = wd.Optimizer([one()], 0.5, direction="sgd", decay=fading, weight_decay=0.5, backend="eager")
    for expected in (0.75 * 0.875, (1 - 0.25 / 3) * (1 - 0.25 / 4)):
        foreseen = wd.remaining(optimizer, None, 2)
        assert foreseen.groups == (about(expected, rel=1e-12),)
        before = optimizer.param_groups[0]["params"][0].item()
        (after,) = kept(optimizer, 2)[-1]
        assert after / before == about(expected, rel=1e-12)
    with pytest.raises(ValueError, match="whole decay, which does not take the same share"):
        wd.remaining(wd.Optimizer([one()], 0.5, direction="sgd", decay=whole, weight_decay=0.5), None, 2)
    assert wd.remaining(wd.Optimizer([one()], 0.5, direction="sgd", decay=whole), None, 2).groups == (1.0,)


def test_nothing_large_is_copied():
    big = torch.nn.Parameter(torch.ones(1000))
    optimizer = wd.AdamW([big], lr=0.1, weight_decay=0.1)

    class Holding:
        def __init__(self, tensor):
            self.tensor = tensor

        def __deepcopy__(self, memo):
            assert copy.deepcopy(self.tensor, memo) is self.tensor
            return self

        def __call__(self, t):
            return 1.0

    wd.remaining(optimizer, lr_scheduler.LambdaLR(optimizer, Holding(big)), 3)


def test_what_cannot_be_foreseen_is_refused():
    optimizer = wd.AdamW([one()], lr=0.1, weight_decay=0.1)
    other = wd.AdamW([one()], lr=0.1)
    with pytest.raises(TypeError, match="ReduceLROnPlateau waits for losses"):
        wd.remaining(optimizer, lr_scheduler.ReduceLROnPlateau(optimizer), 3)
    with pytest.raises(ValueError, match="StepLR is of another optimizer"):
        wd.remaining(optimizer, lr_scheduler.StepLR(other, 3), 3)
    with pytest.raises(TypeError, match="scheduler is a float, which has no step"):
        wd.remaining(optimizer, 0.5, 3)
    with pytest.raises(TypeError, match="optimizer is a Rprop"):
        wd.remaining(torch.optim.Rprop([one()]), None, 3)
    with pytest.raises(ValueError, match=r"steps=0 is not"):
        wd.remaining(optimizer, None, 0)
    with pytest.raises(ValueError, match=r"every=0\.5 is not"):
        wd.remaining(optimizer, None, 1, every=0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda params: wd.Adam(params, lr=0.1, weight_decay=0.1),
        lambda params: torch.optim.Adam(params, lr=0.1, weight_decay=0.1),
        lambda params: wd.Optimizer(params, lr=0.1, direction="sgd", penalty="l1", penalty_weight=0.1),
        lambda params: wd.Optimizer(params, lr=0.1, direction="sgd", penalty="norm", penalty_weight=0.1),
    ],
    ids=["wd.Adam", "torch.Adam", "l1", "norm"],
)
def test_a_decay_that_differs_from_weight_to_weight_has_no_one_number(make):
    with pytest.raises(ValueError, match=r"param_groups\[0\] is trained with .* does not take the same share of every weight"):
        wd.remaining(make([one()]), None, 3)
    without = make([one()])
    without.param_groups[0].update({key: 0.0 for key in ("weight_decay", "penalty_weight") if key in without.param_groups[0]})
    assert wd.remaining(without, None, 3).groups == (1.0,)


# normalized and transfer --------------------------------------------------------------------------------------------------

sizes = st.floats(-1, 3).map(lambda exponent: 10**exponent)
pairs = st.tuples(sizes, sizes)


@given(norm=sizes, batch=sizes, data=sizes, epochs=sizes)
def test_normalized_is_the_papers_formula_and_its_inverse(norm, batch, data, epochs):
    found = wd.normalized(norm, batch, data, epochs)
    assert found.weight_decay == about(norm * math.sqrt(batch / (data * epochs)), rel=1e-12)
    assert found.steps == about(data * epochs / batch)
    assert wd.normalized(None, batch, data, epochs, weight_decay=found.weight_decay).lambda_norm == about(norm)
    assert wd.normalized(norm, batch, data, 4 * epochs).weight_decay == about(found.weight_decay / 2)


def test_normalized_says_what_it_needs():
    for lambda_norm, weight_decay in ((None, None), (0.1, 0.1)):
        with pytest.raises(TypeError, match="normalized needs lambda_norm, or None and weight_decay"):
            wd.normalized(lambda_norm, 1, 1, 1, weight_decay=weight_decay)
    for place, name in enumerate(("lambda_norm", "batch_size", "dataset_size", "epochs")):
        numbers = [0.1, 1, 1, 1]
        numbers[place] = -1
        with pytest.raises(ValueError, match=f"{name}=-1 is not a number"):
            wd.normalized(*numbers)
    with pytest.raises(ValueError, match="batch_size=0 is not a number"):
        wd.normalized(0.1, 0, 1, 1)
    assert wd.normalized(0.1, 1, 100, 1).to_dict() == {"lambda_norm": 0.1, "weight_decay": 0.01, "steps": 100}


@pytest.mark.parametrize("keep", ["epochs", "run", "normalized"])
@given(batch=pairs, data=pairs, epochs=pairs, width=pairs, new_lr=st.none() | st.floats(1e-6, 1e-3))
def test_a_transfer_keeps_what_it_says(keep, batch, data, epochs, width, new_lr):
    lr, lam = 1e-5, 1e-10
    changes = {"batch_size": batch, "dataset_size": data, "epochs": epochs, "width": width}
    found = wd.transfer(lam, lr, keep=keep, new_lr=new_lr, **changes)
    assert found.lr == (new_lr or about(lr * width[0] / width[1]))
    assert str(found).startswith("λ 1e-10 at lr 1e-05 becomes λ ")
    assert "1/width" in found.law

    def kept_number(rate, decay, new):
        per_epoch, passes = data[new] / batch[new], epochs[new]
        scale = wd.timescale(rate, decay, per_epoch)
        if keep == "epochs":
            return scale.epochs
        if keep == "run":
            return scale.steps / (per_epoch * passes)
        independent = wd.convert(decay, source="torch", target="independent", lr=rate)
        return wd.normalized(None, batch[new], data[new], passes, weight_decay=independent).lambda_norm

    assert kept_number(found.lr, found.weight_decay, 1) == about(kept_number(lr, lam, 0), rel=1e-9)


@given(width=pairs)
def test_across_widths_the_decay_of_a_step_stays(width):
    found = wd.transfer(0.1, 1e-3, width=width)
    assert found.lr == about(1e-3 * width[0] / width[1])
    assert found.weight_decay == about(0.1 * width[1] / width[0])
    assert wd.half_life(found.lr, found.weight_decay) == about(wd.half_life(1e-3, 0.1))


def test_the_laws_of_the_papers_in_one_number_each():
    base = {"weight_decay": 0.1, "lr": 1e-3}
    assert wd.transfer(**base, batch_size=(1, 2)).weight_decay == about(0.2)
    assert wd.transfer(**base, dataset_size=(1, 2)).weight_decay == about(0.05)
    assert wd.transfer(**base, epochs=(1, 2)).weight_decay == about(0.1)
    assert wd.transfer(**base, epochs=(1, 2), keep="run").weight_decay == about(0.05)
    assert wd.transfer(**base, epochs=(1, 4), keep="normalized").weight_decay == about(0.05)
    assert wd.transfer(**base, new_lr=2e-3).weight_decay == about(0.05)
    assert "2405.13698" in wd.transfer(**base, epochs=(1, 2)).source
    assert "2505.13738" in wd.transfer(**base, epochs=(1, 2), keep="run").source
    assert "1711.05101" in wd.transfer(**base, epochs=(1, 2), keep="normalized").source
    assert "2510.19093" in wd.transfer(**base, width=(1, 2)).source


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({}, TypeError, "transfer needs what changes"),
        ({"width": 2}, TypeError, "width=2 is not a pair: give width=(old, new)"),
        ({"width": (1, 2, 3)}, TypeError, "is not a pair"),
        ({"batch_size": (0, 2)}, ValueError, "batch_size=0 is not a number in (0, inf)"),
        ({"epochs": (1, math.nan)}, ValueError, "epochs=nan"),
        ({"new_lr": -1}, ValueError, "new_lr=-1"),
        ({"new_lr": 0.1, "keep": "epoch"}, ValueError, "did you mean 'epochs'"),
        ({"batch_size": (1, 1e6)}, ValueError, "weight_decay=0.1 becomes a shrink of 100 per step"),
    ],
    ids=str,
)
def test_a_transfer_that_cannot_be_meant_is_refused(changes, error, says):
    with pytest.raises(error) as refusal:
        wd.transfer(0.1, 1e-3, **changes)
    assert says in str(refusal.value)


# plan ---------------------------------------------------------------------------------------------------------------------

CONVENTIONS = {
    "torch": lambda lr, lam: wd.AdamW([one()], lr=lr, weight_decay=lam),
    "independent": lambda lr, lam: wd.Optimizer(
        [one()], lr, lr_max=lr, direction="adam", decay="independent", weight_decay=lam
    ),
    "coupled": lambda lr, lam: wd.SGD([one()], lr=lr, weight_decay=lam),
}


def every_share(steps, *schedule, **numbers):
    share = schedules.share_of_peak(steps, *schedule, **numbers)
    return [share(step) for step in range(steps)]


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_plan_is_what_the_run_then_does(convention, schedule):
    lr, lam, steps = 0.1, 0.03, 96
    given_ = {"schedule": schedule, "warmup": 10, "final": 0.25}
    shares = every_share(steps, **given_)
    optimizer = CONVENTIONS[convention](lr, lam)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: shares[min(step, steps - 1)])
    values = [1.0, *(value for (value,) in kept(optimizer, steps, scheduler))]
    found = wd.plan(lr, lam, steps, convention=convention, steps_per_epoch=12, **given_)
    assert_close(found.path, values[::2], tolerance=1e-12, effect=1 - values[-1])
    assert found.remaining == about(values[-1], rel=1e-12)
    assert found.units["total_shrink"] == about(1 - values[-1], rel=1e-9)
    assert found.units[convention] == about(lam)
    assert found.timescale.steps == about(steps * found.runs) == about(12 * found.timescale.epochs)
    for unit in ("torch", "independent", "coupled"):
        assert wd.plan(lr, found.units[unit], steps, convention=unit, **given_).remaining == about(found.remaining)


def test_the_schedules_are_torchs():
    steps, low = 40, 0.2
    for schedule, make in {
        "linear": lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, low, total_iters=steps),
        "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=low),
        "constant": lambda optimizer: lr_scheduler.ConstantLR(optimizer, 1.0),
    }.items():
        optimizer = torch.optim.SGD([one()], lr=1.0)
        scheduler = make(optimizer)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert every_share(steps, schedule, final=low) == about(rates, rel=1e-9)
    assert every_share(5, "constant", warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0]
    with pytest.raises(ValueError, match="warmup=5 is not shorter than the run of 5 steps"):
        schedules.share_of_peak(5, warmup=5)
    with pytest.raises(ValueError, match=r"final=1\.5 is not"):
        schedules.share_of_peak(5, final=1.5)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_a_dtype_loses_what_a_plan_says_it_loses(name):
    """At a quarter of eps no weight changes, in torch's way of decaying; twice as much changes all of them."""
    dtype = getattr(torch, name)
    edge = torch.finfo(dtype).eps / 4
    every = torch.linspace(1, 2, 10_000).to(dtype)
    for shrink, lost in ((edge, 1.0), (2.01 * edge, 0.0)):
        found = wd.plan(1.0, shrink, 100, dtype=name)
        assert found.lost[name] == lost
        assert ("lost" in found.warnings) == bool(lost)
        after = (every.double() * (1 - shrink)).to(dtype)
        assert torch.equal(after, every) == bool(lost)
        assert lost or not (after == every)[1:].any()
    ramp = wd.plan(1.0, 2 * edge, 1000, schedule="linear")
    assert ramp.lost[name] == about(0.25, abs=0.01)  # the lower half of a triangle
    assert wd.plan(1.0, edge, 100, convention="coupled", dtype=name).lost == {}  # it is rounded with the gradient


WARNINGS = [
    ({"weight_decay": 0.0}, "no effect"),
    ({"weight_decay": 1e-4, "steps": 100}, "no effect"),
    ({"weight_decay": 15.0}, "destroys"),
    ({"weight_decay": 5.0}, "destroys"),
    ({"weight_decay": 0.1, "steps_per_epoch": 200}, "forgets"),
    ({"weight_decay": 0.05, "convention": "coupled", "momentum": 0.9}, "swings"),
    ({"weight_decay": 0.01, "dtype": "bfloat16"}, "lost"),
]


@pytest.mark.parametrize(("changes", "warning"), WARNINGS, ids=str)
def test_a_plan_warns(changes, warning):
    fine = {"lr": 0.1, "weight_decay": 0.1, "steps": 1000}
    assert wd.plan(**fine).warnings == {}
    assert list(wd.plan(**{**fine, **changes}).warnings) == [warning]


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_a_long_plan_is_summed_in_blocks_and_says_the_same(schedule):
    steps, given_ = 200_000, {"schedule": schedule, "warmup": 777, "final": 0.1}
    shrink = 2e-5
    found = wd.plan(0.1, shrink / 0.1, steps, **given_)
    exponents = [math.log1p(-shrink * share) for share in every_share(steps, **given_)]
    assert found.remaining == about(math.exp(math.fsum(exponents)), rel=1e-8)
    for place, left in enumerate(found.path):
        assert left == about(math.exp(math.fsum(exponents[: round(place * steps / 48)])), rel=1e-8)
    edge = torch.finfo(torch.float32).eps / 4
    ramp = wd.plan(1.0, 2 * edge, steps, schedule="linear")
    assert ramp.lost["float32"] == about(0.25, abs=1e-3)


@pytest.mark.parametrize("steps", [10**9, 10**12 - 1, 10**300], ids="{:.0e}".format)
@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_a_plan_of_any_length_takes_no_time(steps, schedule, monkeypatch):
    share = {"constant": 1.0, "linear": 0.5, "cosine": 0.5}[schedule]
    asked, tell = [], schedules.share
    monkeypatch.setattr(schedules, "share", lambda given, step: asked.append(step) or tell(given, step=step))
    found = wd.plan(1.0, 1 / steps, steps, schedule=schedule)
    assert 48 <= len(asked) < 10_000
    assert found.remaining == about(math.exp(-share), rel=1e-8)
    assert wd.plan(1.0, 3.0, steps).remaining in (math.inf, -math.inf)


def test_a_plan_prints_all_that_it_says():
    found = wd.plan(3e-4, 0.1, 10_000, schedule="cosine", steps_per_epoch=1000, dtype="bfloat16")
    assert found.picture() in str(found)
    assert f"warning: {found.warnings['lost']}" in str(found)
    assert str(found).startswith("10,000 steps, 10 epochs at lr 3e-4, cosine; λ 0.1 (a step takes lr·λ)\n\nshrink per step")


def test_a_plan_that_would_swing_names_no_l2():
    found = wd.plan(0.1, 0.5, 100, momentum=0.9, samples=10)
    assert found.units["coupled"] is found.units["sklearn"] is None
    found = wd.plan(0.1, 0.05, 100, momentum=0.9, samples=10)
    assert found.units["coupled"] == about(0.005)
    assert found.units["sklearn"] == about(0.05)


# weightdecay plan ---------------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, ["plan", *arguments])


ORDINARY = ["--lr", "3e-4", "-w", "0.1", "--epochs", "10", "--steps-per-epoch", "1000", "--schedule", "cosine"]


def test_the_command_prints_the_plan():
    result = run(*ORDINARY, "--warmup", "500", "--samples", "50000", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for part in (
        "10,000 steps, 10 epochs at lr 3e-4, cosine after 500 steps of warm-up; λ 0.1",
        "shrink per step 3e-5 at the peak lr",
        "half-life 23,105 steps, 23.1 epochs at the peak lr",
        "timescale 33,333 steps, 33.3 epochs at the peak lr; 3.33 × the run",
        "left at the end 0.8607 of a weight",
        "lost if rounded to nearest 100% in bfloat16, 100% in float16",
        "independent 3e-5",
        "sklearn 5000",
        "warning: bfloat16 weights",
    ):
        assert part in text
    assert "█▇" in result.output


def test_the_commands_json_is_the_plan():
    result = run(*ORDINARY, "--json")
    expected = wd.plan(3e-4, 0.1, 10_000, schedule="cosine", steps_per_epoch=1000)
    assert json.loads(result.output) == json.loads(json.dumps(expected.to_dict(), allow_nan=False))
    nothing = run("--lr", "1", "-w", "0", "--steps", "3", "--json")
    found = json.loads(nothing.output)
    assert found["half_life"] is found["timescale"]["steps"] is None
    assert found["remaining"] == 1
    assert "there is no decay" in run("--lr", "1", "-w", "0", "--steps", "3").output


@pytest.mark.parametrize(
    ("optimizer", "convention"),
    [
        ("AdamW", "torch"), ("SGDW", "torch"), ("SGD", "coupled"), ("adam+independent", "independent"), ("sgd+l2", "coupled"),
    ],
)  # fmt: skip
def test_an_optimizers_name_says_what_its_lambda_means(optimizer, convention):
    numbers = ["--lr", "0.1", "-w", "0.01", "--steps", "100", "--json"]
    found = json.loads(run(*numbers, "-o", optimizer).output)
    assert found == json.loads(run(*numbers, "--convention", convention).output)
    assert found["convention"] == convention
    # One step of the optimizer itself, without a gradient.
    made = wd.sweeps.grid.choose(optimizer).optimizer(torch.nn.Linear(1, 1, bias=False), 0.1, 0.01)
    assert 1 - wd.remaining(made).groups[0] == about(found["shrink"], rel=1e-9)


COMMAND_MISTAKES = [
    (["--lr", "1", "-w", "1"], 2, "give one of the two"),
    (["--lr", "1", "-w", "1", "--steps", "3", "--epochs", "3"], 2, "give one of the two"),
    (["--lr", "1", "-w", "1", "--epochs", "3"], 2, "--epochs needs --steps-per-epoch"),
    (["--lr", "1", "-w", "1", "--steps", "3", "-o", "SGD", "--convention", "torch"], 2, "give one of the two"),
    (["--lr", "1", "--steps", "3"], 2, "--weight-decay"),
    (["--lr", "nan", "-w", "1", "--steps", "3"], 1, "lr=nan is not a number in (0, inf)"),
    (["--lr", "1", "-w", "-1", "--steps", "3"], 1, "weight_decay=-1.0 is not a number"),
    (["--lr", "1", "-w", "1", "--steps", "0"], 1, "steps=0 is not a whole number"),
    (["--lr", "1", "-w", "1", "--epochs", "inf", "--steps-per-epoch", "9"], 1, "epochs=inf"),
    (["--lr", "1", "-w", "1", "--steps", "3", "--warmup", "3"], 1, "warmup=3 is not shorter"),
    (["--lr", "1", "-w", "1", "--steps", "3", "--momentum", "1"], 1, "momentum=1.0 is not a number in [0, 1)"),
    (["--lr", "1", "-w", "1", "--steps", "3", "-o", "Adam"], 1, "does not take the same share of every weight"),
    (["--lr", "1", "-w", "1", "--steps", "3", "-o", "adam+cautious"], 1, "only the decays decoupled and independent"),
    (["--lr", "1", "-w", "1", "--steps", "3", "-o", "adamw"], 1, "did you mean 'AdamW'?"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), COMMAND_MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_gets_a_reason_and_no_traceback(arguments, code, says):
    result = run(*arguments)
    assert result.exit_code == code
    assert says in " ".join(result.output.split())
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(("lr", "lam", "steps"), [(1.0, 1e4, 100), (1.0, 3.0, 10_000), (10.0, 1e308, 1), (1e308, 1e308, 10)])
def test_a_plan_for_a_decay_that_destroys_says_so(lr, lam, steps):
    """A weight that grows without end is infinite at the end, which prints."""
    found = wd.plan(lr=lr, weight_decay=lam, steps=steps)
    assert "destroys the weights" in str(found)
    assert found.picture()
    json.dumps(found.to_dict(), allow_nan=False)
