"""The meter says what a step has done, against what is worked out from the weights by hand, and changes nothing."""

import copy
import json
import math
import pickle

import pytest
import torch
from runs import assert_close
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import PRESETS, all_params, everything, set_gradients

import weightdecay as wd
from weightdecay.audit import sums

LR, LAMBDA = 0.01, 0.3
ADAM = {"lr": LR, "weight_decay": LAMBDA}


def one(shape=(40, 25), dtype=torch.float64, size=1.0):
    """Return a parameter with a gradient."""
    param = nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype))
    param.grad = (size * torch.randn(shape, dtype=torch.float64)).to(dtype)
    return param


def read(optimizer, steps=1, **options):
    """Return the reading of the first group at the last of some steps with the same gradients, and the weights around it."""
    with wd.Meter(optimizer, every=1, **options) as meter:
        for _ in range(steps):
            before = [param.detach().clone() for param in all_params(optimizer)]
            optimizer.step()
    return meter.history()[-1].readings["group0"], before


def general(params, **rules):
    return wd.Optimizer(params, reader="eager", **{"lr": LR, "weight_decay": LAMBDA, "direction": "adam", **rules})


# What was intended, and what came of it -----------------------------------------------------------------------------------

SAME_STEP = {
    "wd.AdamW": lambda params, lam: wd.AdamW(params, lr=LR, weight_decay=lam, reader="eager"),
    "torch's AdamW": lambda params, lam: torch.optim.AdamW(params, lr=LR, weight_decay=lam),
    "torch's fused AdamW": lambda params, lam: torch.optim.AdamW(params, lr=LR, weight_decay=lam, fused=True),
    "SGDW": lambda params, lam: wd.SGDW(params, lr=LR, momentum=0.9, weight_decay=lam, reader="eager"),
    "torch's SGD": lambda params, lam: torch.optim.SGD(params, lr=LR, momentum=0.9, weight_decay=lam),
    "cautious": lambda params, lam: general(params, weight_decay=lam, decay="cautious"),
    "soft threshold": lambda params, lam: general(params, weight_decay=lam, decay="soft_threshold"),
    "maximize": lambda params, lam: general(params, weight_decay=lam, decay="decoupled", maximize=True),
}


@pytest.mark.parametrize("build", SAME_STEP.values(), ids=SAME_STEP)
def test_the_realised_shrink_is_the_step_without_decay_less_the_step(build):
    param = one()
    optimizer = build([param], LAMBDA)
    optimizer.step()
    other = nn.Parameter(param.detach().clone())
    other.grad = param.grad
    without = build([other], 0.0)
    without.state[other] = copy.deepcopy(optimizer.state[param])
    reading, (before,) = read(optimizer)
    without.step()
    expected = (before * (other - param)).sum() / before.square().sum()
    assert_close(reading.realised, expected, tolerance=1e-12, effect=expected)
    assert_close(reading.shrink, expected, tolerance=1e-12, effect=expected)
    assert reading.kept == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("rules", [
    {"decay": "decoupled"}, {"decay": "implicit"}, {"decay": "norm_control", "weight_decay": 0.1},
    {"direction": "nadam", "decay": "decoupled"}, {"penalty": "l2", "penalty_weight": LAMBDA, "weight_decay": 0},
    {"penalty": "l1", "penalty_weight": LAMBDA, "weight_decay": 0}, {"penalty": "norm", "penalty_weight": LAMBDA, "weight_decay": 0},
], ids=str)  # fmt: skip
def test_the_intended_shrink_is_the_decompositions(rules):
    params = [one(), one((3,)), one(())]
    optimizer = general(params, **rules)
    optimizer.step()
    splits = wd.decompose(optimizer)
    weights = {param: param.detach().clone() for param in params}
    norm = sum(w.square().sum() for w in weights.values())
    shrink = sum((splits[p].shrink * w * w).sum() for p, w in weights.items()) / norm
    decay = sum((splits[p].shrink * w).square().sum() for p, w in weights.items()).sqrt()
    update = sum((LR * splits[p].h).square().sum() for p in params).sqrt()
    reading, _ = read(optimizer)
    assert_close(reading.shrink, shrink, tolerance=1e-12, effect=shrink)
    assert_close(reading.decay_to_update, decay / update, tolerance=1e-10 * (decay / update).item(), effect=decay / update)
    assert reading.kept == pytest.approx(1, abs=1e-6)


def test_a_small_decay_keeps_its_digits_in_float32():
    reading, _ = read(wd.AdamW([one(dtype=torch.float32, size=1e-3)], lr=1e-3, weight_decay=1e-2, reader="eager"))
    assert reading.shrink == pytest.approx(1e-5, rel=1e-12)
    reading, _ = read(wd.SGD([one(dtype=torch.float32, size=1e-3)], lr=1e-3, weight_decay=1e-2, reader="eager"))
    assert reading.shrink == pytest.approx(1e-5, rel=1e-6)


ROUNDINGS = {
    "nearest": (0.0, lambda params: wd.AdamW(params, lr=1e-4, weight_decay=1.0, rounding="nearest", reader="eager")),
    "torch": (0.0, lambda params: torch.optim.AdamW(params, lr=1e-4, weight_decay=1.0)),
    "stochastic": (1.0, lambda params: wd.AdamW(params, lr=1e-4, weight_decay=1.0, reader="eager")),
    "stochastic, by the kernel": (1.0, lambda params: wd.AdamW(params, lr=1e-4, weight_decay=1.0)),
    "compensated": (1.0, lambda params: wd.AdamW(params, lr=1e-4, weight_decay=1.0, rounding="compensated", reader="eager")),
}


@pytest.mark.parametrize(("kept", "build"), ROUNDINGS.values(), ids=ROUNDINGS)
def test_bfloat16_keeps_the_decay_or_loses_it_as_it_is_rounded(kept, build):
    """The share of 1e-4 is far below what bfloat16 holds, and so are the steps: all is lost, or nothing but the noise is."""
    param = one((400, 500), torch.bfloat16)
    reading, _ = read(build([param]), steps=2)
    noise = math.sqrt(3 * 2.0**-8 / (1e-4 * param.numel()))  # of the few weights that move, by a whole unit each
    assert reading.shrink == pytest.approx(1e-4, rel=1e-12)
    assert abs(reading.kept - kept) <= (1e-3 if build is ROUNDINGS["compensated"][1] else 4 * noise if kept else 0.02)


def test_a_rounded_walk_loses_as_much_as_the_meter_says():
    """Over many steps without gradients, the readings add up to what is missing of the weights."""
    param = one((200, 200), torch.bfloat16, size=0.0)
    optimizer = wd.SGDW([param], lr=0.01, weight_decay=0.1, reader="eager")
    start = param.detach().double()
    meter = wd.Meter(optimizer, every=1)
    for _ in range(50):
        optimizer.step()
    remaining = math.prod(1 - sample.readings["group0"].realised for sample in meter.history())
    assert remaining == pytest.approx(0.999**50, abs=0.002)
    assert ((start * param.detach().double()).sum() / start.square().sum()).item() == pytest.approx(remaining, abs=2e-4)


# Norm, angle, change ------------------------------------------------------------------------------------------------------


def test_norm_change_and_angle_are_those_of_the_weights():
    params = [one(), one((7,))]
    optimizer = wd.AdamW(params, lr=0.5, reader="eager")
    reading, before = read(optimizer)
    angles = []
    for old, new in zip(before, params, strict=True):
        angles.append(math.acos((old * new).sum() / (old.norm() * new.norm())))
    norm = math.hypot(*(old.norm().item() for old in before))
    change = math.hypot(*((new - old).norm().item() for old, new in zip(before, params, strict=True)))
    assert reading.norm == pytest.approx(norm, rel=1e-12)
    assert reading.change == pytest.approx(change / norm, rel=1e-12)
    assert reading.angle == pytest.approx(sum(angles) / 2, rel=1e-9)
    assert (reading.tensors, reading.weights) == (2, 1007)


def test_a_small_angle_keeps_its_digits():
    param = nn.Parameter(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    param.grad = torch.tensor([[0.5, 1e-7]], dtype=torch.float64)
    reading, _ = read(torch.optim.SGD([param], lr=1.0))
    assert reading.angle == pytest.approx(2e-7, rel=1e-9)


def test_a_complex_number_is_two_weights():
    readings = []
    for pairs in (False, True):
        torch.manual_seed(1)
        param = one((4, 6), torch.complex128)
        w = param if not pairs else nn.Parameter(torch.view_as_real(param.detach()).clone())
        w.grad = param.grad if not pairs else torch.view_as_real(param.grad).clone()
        readings.append(read(wd.AdamW([w], **ADAM, reader="eager"))[0])
    assert readings[0] == readings[1]
    assert readings[0].weights == 48


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rules", [{"decay": "decoupled"}, {"penalty": "l2", "penalty_weight": LAMBDA, "weight_decay": 0}], ids=str)
def test_the_sums_do_not_depend_on_how_tensors_are_cut_up_and_joined(rules, dtype, monkeypatch):
    found = []
    for most in (7, 2**20):
        monkeypatch.setitem(sums._AT_ONCE, "cpu", most)
        torch.manual_seed(0)
        shapes = [(5, 3), (4,), (), (0,), (2, 3, 4, 4)]
        params = [one(shape, dtype) for shape in shapes]
        params[-1].data = params[-1].data.to(memory_format=torch.channels_last)
        found.append(read(general(params, **rules), steps=2)[0])
    for name, value in found[0].to_dict().items():
        assert value == pytest.approx(getattr(found[1], name), rel=1e-9) if value is not None else True, name


# Equilibrium --------------------------------------------------------------------------------------------------------------


def noise(w):
    return torch.randn_like(w)


def noise_across(w):
    """Return the gradient of a loss that does not see the length of w: at right angles, and the smaller the longer w is."""
    z = torch.randn_like(w)
    return (z - (z * w).sum() / w.square().sum() * w) / w.norm()


WALKS = {
    "AdamW": (lambda p: wd.AdamW(p, lr=0.01, weight_decay=2.0, reader="eager"), noise),
    "torch's AdamW": (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=2.0), noise),
    "Lion": (lambda p: general(p, lr=0.001, weight_decay=2.0, direction="lion", decay="decoupled", betas=(0.9, 0.9)), noise),
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.02), noise_across),
    "Nesterov": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.02, nesterov=True), noise_across),
    "dampening": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.04), noise_across),
    "SGDW": (lambda p: wd.SGDW(p, lr=0.1, momentum=0.9, weight_decay=0.2, reader="eager"), noise_across),
}


@pytest.mark.parametrize(("build", "gradient"), WALKS.values(), ids=WALKS)
def test_weights_under_noise_settle_at_the_equilibrium(build, gradient):
    param = nn.Parameter(torch.randn(40, 50))
    optimizer = build([param])
    shrink = 0.002 if isinstance(optimizer, wd.Optimizer) and "direction" in optimizer.param_groups[0] else 0.02
    meter = wd.Meter(optimizer, every=1)
    param.grad = gradient(param.detach())
    optimizer.step()
    start = meter.history()[-1].readings["group0"]
    assert start.shrink == pytest.approx(shrink, rel=0.91)  # of one step: L2's share of the momentum comes later
    with torch.no_grad():
        param.mul_(1.6 * start.equilibrium / param.norm())
    for _ in range(int(4 / shrink)):
        param.grad = gradient(param.detach())
        optimizer.step()
    ratios = [sample.readings["group0"].norm_to_equilibrium for sample in meter.history()]
    assert ratios[1] == pytest.approx(1.6, rel=0.05)
    assert sum(ratios[-100:]) / 100 == pytest.approx(1, abs=0.04)


def test_no_equilibrium_where_no_law_applies():
    assert math.isnan(read(torch.optim.SGD([one()], lr=0.1, weight_decay=0.1))[0].equilibrium)  # the gradient sees the length
    assert math.isnan(read(wd.AdamW([one((50,))], **ADAM, reader="eager"))[0].equilibrium)  # no matrix
    assert math.isnan(read(wd.AdamW([one()], lr=LR, weight_decay=0.0, reader="eager"))[0].equilibrium)
    assert math.isnan(read(wd.Adam([one()], **ADAM, reader="eager"))[0].equilibrium)


# Half-life, timescale, effective learning rate ----------------------------------------------------------------------------


def test_half_life_and_timescale_are_those_of_the_units():
    reading, _ = read(wd.AdamW([one()], **ADAM, reader="eager"), steps_per_epoch=50)
    assert reading.half_life == pytest.approx(wd.half_life(LR, LAMBDA))
    assert (reading.timescale, reading.timescale_epochs) == pytest.approx((1 / (LR * LAMBDA), 1 / (LR * LAMBDA) / 50))
    assert reading.half_life_epochs == pytest.approx(reading.half_life / 50)
    reading, _ = read(torch.optim.SGD([one()], lr=0.1, momentum=0.9, weight_decay=5e-4), steps=2)
    assert reading.half_life == pytest.approx(wd.half_life(0.1, 5e-4, source="coupled", momentum=0.9))
    assert math.isnan(read(wd.Adam([one()], **ADAM, reader="eager"))[0].half_life)  # another one for every weight
    assert math.isinf(read(wd.AdamW([one()], lr=LR, weight_decay=0.0, reader="eager"))[0].half_life)


@pytest.mark.parametrize("direction", [name for name, rule in wd.rules().of("direction").items() if not rule.whole])
def test_the_effective_lr_is_what_turns_weights_alike_at_any_size(direction):
    """Weights c times as large have a gradient 1/c times as large; with the lr that keeps η_eff they turn by the same angle."""
    params = [one((30, 30)), nn.Parameter(torch.zeros(30, 30, dtype=torch.float64))]
    gradients = [torch.randn(30, 30, dtype=torch.float64) for _ in range(12)]
    with torch.no_grad():
        params[1].copy_(4 * params[0])
    readings = []
    for param, size in zip(params, (1, 4), strict=True):
        lr = 0.01 * (size**2 if direction == "sgd" else size)
        optimizer = general([param], lr=lr, direction=direction, eps=1e-20) if direction != "sgd" and has_eps(direction) else (
            general([param], lr=lr, direction=direction, weight_decay=0)
        )
        meter = wd.Meter(optimizer, every=1)
        for gradient in gradients:
            param.grad = gradient / size
            optimizer.step()
        readings.append(meter.history()[-1].readings["group0"])
    assert readings[0].effective_lr == pytest.approx(readings[1].effective_lr, rel=0.2)
    assert readings[0].effective_lr > 0


def has_eps(direction):
    return "eps" in wd.rules()["direction", direction].defaults
