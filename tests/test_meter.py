"""The meter says what a step has done, against what is worked out from the weights by hand, and changes nothing."""

import copy
import inspect
import json
import math
import pickle

import pytest
import torch
from runs import assert_close
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import PRESETS, all_params, everything, options_of, parameters_of, set_gradients, train

import weightdecay as wd
from weightdecay.audit.meter import sums
from weightdecay.audit.meter.metrics import METRICS, QUANTITIES, asked_for
from weightdecay.optim.torch_equivalents import TORCH
from weightdecay.update_rules.traits import is_uniform

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
    return wd.Optimizer(params, backend="eager", **{"lr": LR, "weight_decay": LAMBDA, "direction": "adam", **rules})


# What was intended, and what came of it -----------------------------------------------------------------------------------

SAME_STEP = {
    "wd.AdamW": lambda params, lam: wd.AdamW(params, lr=LR, weight_decay=lam, backend="eager"),
    "torch's AdamW": lambda params, lam: torch.optim.AdamW(params, lr=LR, weight_decay=lam),
    "torch's fused AdamW": lambda params, lam: torch.optim.AdamW(params, lr=LR, weight_decay=lam, fused=True),
    "SGDW": lambda params, lam: wd.SGDW(params, lr=LR, momentum=0.9, weight_decay=lam, backend="eager"),
    "torch's SGD": lambda params, lam: torch.optim.SGD(params, lr=LR, momentum=0.9, weight_decay=lam),
    "cautious": lambda params, lam: general(params, weight_decay=lam, decay="cautious"),
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
    {"decay": "decoupled"}, {"decay": "implicit"}, {"decay": "soft_threshold"}, {"decay": "norm_control", "weight_decay": 0.1},
    {"decay": "stable"},
    {"direction": "nadam", "decay": "decoupled"}, {"penalty": "l2", "penalty_weight": LAMBDA, "weight_decay": 0},
    {"penalty": "l1", "penalty_weight": LAMBDA, "weight_decay": 0},
    {"penalty": "norm", "penalty_weight": LAMBDA, "weight_decay": 0},
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


def dotted(w, x):
    """Return what share of w lies in x."""
    return ((w * x).sum() / w.square().sum()).item()


def share_of_all(before, others, after):
    """Return the share of all weights together by which they are not where they would be without decay."""
    square = sum(w.square().sum() for w in before)
    return sum((w * (x - y)).sum() for w, x, y in zip(before, others, after, strict=True)).item() / square.item()


def leaves_the_update(decay):
    """Tell whether a step with λ = 0 has the same h: a proximal decay or a projection acts on the weight after its step."""
    return is_uniform(decay) or decay.name in ("cautious", "stable")


@pytest.mark.parametrize("schedule", [None, {"name": "linear", "steps": 5}], ids=["constant", "scheduled"])
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__)
def test_every_preset_takes_what_it_intends(preset, schedule):
    options = options_of(preset)
    if schedule and "weight_decay" in options:
        options["weight_decay_schedule"] = schedule
    optimizer = preset(list(parameters_of(preset).values()), backend="eager", **options)
    train(optimizer, 2)
    set_gradients(optimizer, 3)
    params, splits = all_params(optimizer), wd.decompose(optimizer)
    before = [param.detach().clone() for param in params]
    twin = copy.deepcopy(optimizer)
    for param, other in zip(params, all_params(twin), strict=True):
        other.grad = param.grad.clone()
    for group in twin.param_groups:
        group["weight_decay"] = 0.0
    meter = wd.Meter(optimizer, every=1)
    optimizer.step()
    (sample,) = meter.history()
    reading, after = sample.readings["group0"], [param.detach() for param in params]
    square = sum(w.square().sum() for w in before)
    shrink = (sum((splits[p].shrink * w * w).sum() for p, w in zip(params, before, strict=True)) / square).item()
    undecayed = [w - splits[p].lr * splits[p].h for p, w in zip(params, before, strict=True)]
    assert meter.unknown is None
    assert reading.shrink == pytest.approx(shrink, rel=1e-9, abs=1e-15)
    assert reading.realised == pytest.approx(share_of_all(before, undecayed, after), rel=1e-9, abs=1e-15)
    assert reading.realised == pytest.approx(reading.shrink, rel=1e-9, abs=1e-15)
    equation = optimizer.equation(optimizer.param_groups[0])
    if equation.penalty is None and leaves_the_update(equation.decay):
        twin.step()
        expected = share_of_all(before, [param.detach() for param in all_params(twin)], after)
        assert abs(expected) > 1e-4
        assert reading.realised == pytest.approx(expected, rel=1e-9)
    if equation.decay.name == "decoupled":
        assert reading.shrink == pytest.approx(options["lr"] * options["weight_decay"] * (0.6 if schedule else 1), rel=1e-12)


TORCHS = [each for each, row in TORCH.items() if row.preset is not None]


@pytest.mark.parametrize("build", TORCHS, ids=lambda build: build.__name__)
def test_torchs_own_take_what_their_rules_intend(build):
    param = one()
    reading, _ = read(build([param], lr=LR, weight_decay=LAMBDA), steps=3)
    assert reading.kept == pytest.approx(1, abs=1e-6)
    assert abs(reading.shrink) > 1e-6


SCHEDULES = {
    "linear": ({"name": "linear", "steps": 4}, lambda t, lr: lr * (1 - t / 4)),
    "follow_lr": ("follow_lr", lambda t, lr: lr * lr / LR),
    "constant_timescale": ("constant_timescale", lambda t, lr: LR),
}


@pytest.mark.parametrize(("schedule", "product"), SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_of_lambda_is_seen_at_each_step(schedule, product):
    optimizer = wd.AdamW([one()], **ADAM, weight_decay_schedule=schedule, backend="eager")
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=4)
    meter, expected = wd.Meter(optimizer, every=1), []
    for t in range(4):
        expected.append(LAMBDA * product(t, optimizer.param_groups[0]["lr"]))
        optimizer.step()
        falling.step()
    readings = [sample.readings["group0"] for sample in meter.history()]
    assert [each.shrink for each in readings] == pytest.approx(expected, rel=1e-12)
    assert [each.realised for each in readings] == pytest.approx(expected, rel=1e-9)
    assert [1 / each.timescale for each in readings] == pytest.approx(expected, rel=1e-12)


def test_a_small_decay_keeps_its_digits_in_float32():
    reading, _ = read(wd.AdamW([one(dtype=torch.float32, size=1e-3)], lr=1e-3, weight_decay=1e-2, backend="eager"))
    assert reading.shrink == pytest.approx(1e-5, rel=1e-12)
    reading, _ = read(wd.SGD([one(dtype=torch.float32, size=1e-3)], lr=1e-3, weight_decay=1e-2, backend="eager"))
    assert reading.shrink == pytest.approx(1e-5, rel=1e-6)


ROUNDINGS = {
    "nearest": (0.0, lambda params: wd.AdamW(params, lr=1e-4, weight_decay=1.0, rounding="nearest", backend="eager")),
    "torch": (0.0, lambda params: torch.optim.AdamW(params, lr=1e-4, weight_decay=1.0)),
    "stochastic": (1.0, lambda params: wd.AdamW(params, lr=1e-4, weight_decay=1.0, backend="eager")),
    "stochastic, by the kernel": (1.0, lambda params: wd.AdamW(params, lr=1e-4, weight_decay=1.0)),
    "compensated": (1.0, lambda params: wd.AdamW(params, lr=1e-4, weight_decay=1.0, rounding="compensated", backend="eager")),
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
    optimizer = wd.SGDW([param], lr=0.01, weight_decay=0.1, backend="eager")
    start = param.detach().double()
    meter = wd.Meter(optimizer, every=1)
    for _ in range(50):
        optimizer.step()
    remaining = math.prod(1 - sample.readings["group0"].realised for sample in meter.history())
    assert remaining == pytest.approx(0.999**50, abs=0.002)
    assert ((start * param.detach().double()).sum() / start.square().sum()).item() == pytest.approx(remaining, abs=2e-4)


# A decay that is attached to somebody else's optimizer --------------------------------------------------------------------


class Sign(torch.optim.Optimizer):
    """An optimizer that nobody knows."""

    def __init__(self, params, lr=LR, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.add_(param.grad.sign() + group["weight_decay"] * param, alpha=-group["lr"])


def attached(params, host=torch.optim.AdamW, decay="decoupled", weight_decay=LAMBDA, lr=LR, meter_first=False, **options):
    """Return an optimizer with an attached decay, and its meter."""
    optimizer = host(params, lr=lr, weight_decay=0.0)
    meter = wd.Meter(optimizer, every=1) if meter_first else None
    wd.attach(optimizer, decay, weight_decay, **options)
    return optimizer, meter or wd.Meter(optimizer, every=1)


@pytest.mark.parametrize("use_closure", [False, True], ids=["no closure", "closure"])
@pytest.mark.parametrize("meter_first", [False, True], ids=["meter second", "meter first"])
@pytest.mark.parametrize("decay", ["decoupled", "cautious"])
@pytest.mark.parametrize("host", [torch.optim.AdamW, torch.optim.Rprop, Sign], ids=lambda host: host.__name__)
def test_an_attached_decay_is_the_step_without_it_less_the_step(host, decay, meter_first, use_closure):
    """A closure comes between the hooks; which of the two hooks into the step first does not matter."""
    if host is torch.optim.Rprop:

        def host(params, lr, weight_decay):
            return torch.optim.Rprop(params, lr=lr)

    param = one()
    optimizer, meter = attached([param], host, decay, meter_first=meter_first)
    plain = host([other := nn.Parameter(param.detach().clone())], lr=LR, weight_decay=0.0)
    before, other.grad = param.detach().clone(), param.grad.clone()
    plain.step()
    optimizer.step(*([lambda: 0.0] if use_closure else []))
    reading = meter.history()[0].readings["group0"]
    moved = (other - before).detach()
    taken = dotted(before, (other - param).detach())
    expected = LR * LAMBDA * (1 if decay == "decoupled" else dotted(before, before * (before * -moved >= 0)))
    assert meter.unknown is None
    assert_close(reading.shrink, expected, tolerance=1e-12, effect=expected)
    assert_close(reading.realised, taken, tolerance=1e-12, effect=expected)
    assert reading.kept == pytest.approx(1, abs=1e-9)
    decayed = reading.decay_to_update * moved.norm().item() / before.norm().item()
    assert decayed == pytest.approx(math.sqrt(LR * LAMBDA * expected), rel=1e-6)
    assert not optimizer.defaults.attachment.watchers


ATTACHED = [name for name, rule in wd.rules().of("decay").items() if not rule.shared and name != "none"]


@pytest.mark.parametrize("decay", ATTACHED)
def test_every_attached_decay_takes_what_it_intends(decay):
    numbers = {"constrained": {"kappa": 20.0, "kappa_update": 0.01}}.get(decay, {})
    has_lambda = "lam" in wd.rules()["decay", decay].numbers
    param = one((6, 5))
    optimizer, meter = attached([param], torch.optim.AdamW, decay, LAMBDA if has_lambda else None, **numbers)
    for t in range(6):  # Adam's momentum goes on for a while after the gradient has turned round
        param.grad = (-1 if t < 5 else 0.1) * param.detach() + 0.5 * torch.randn_like(param)
        optimizer.step()
    for sample in meter.history():
        reading = sample.readings["group0"]
        assert reading.realised == pytest.approx(reading.shrink, rel=1e-9, abs=1e-12)
    assert any(abs(sample.readings["group0"].shrink) > 1e-6 for sample in meter.history())


@pytest.mark.parametrize("rounding", ["deferred", "stochastic", "nearest"])
def test_what_an_attached_decay_has_pending_counts_as_taken(rounding):
    """Deferred, the stored weights lose nothing for some steps and then all of it at once: no single step shows the loss."""
    param = one((200, 200), torch.bfloat16, size=0.0)
    optimizer, meter = attached([param], torch.optim.SGD, rounding=rounding, lr=0.001, weight_decay=0.05)
    start, stood = param.detach().clone(), 0
    for _ in range(40):
        before = param.detach().clone()
        optimizer.step()
        stood += torch.equal(before, param)
    readings = [sample.readings["group0"] for sample in meter.history()]
    remaining = math.prod(1 - each.realised for each in readings)
    pending = optimizer.state[param].get("attached_pending", 0.0)
    assert [each.shrink for each in readings] == pytest.approx([5e-5] * 40, rel=1e-9)
    assert dotted(start.double(), (1 - pending) * param.detach().double()) == pytest.approx(remaining, abs=2e-5)
    if rounding == "nearest":
        assert (remaining, stood) == (1, 40)
    else:
        assert remaining == pytest.approx((1 - 5e-5) ** 40, abs=1e-4)
        assert stood >= 30 if rounding == "deferred" else stood == 0


def test_an_attached_decay_may_change_stop_and_stay_away_from_some_groups():
    params = [one(), one((5,)), one()]
    groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    meter = wd.Meter(optimizer, every=1)
    attachment = wd.attach(optimizer, "decoupled", 0.2)
    optimizer.step()
    optimizer.param_groups[0]["attached_weight_decay"] = 0.4
    optimizer.add_param_group({"params": params[2:], "weight_decay": 0.3})
    optimizer.step()
    attachment.detach()
    optimizer.step()
    shrinks = [[reading.shrink / LR for reading in sample.readings.values()] for sample in meter.history()]
    assert shrinks[0] == pytest.approx([0.2, 0])
    assert shrinks[1] == pytest.approx([0.4, 0, 0.2])
    assert shrinks[2] == pytest.approx([0.1, 0, 0.3])  # its own again
    assert meter.history()[1].readings["group0"].half_life == pytest.approx(wd.half_life(LR, 0.4))
    assert meter.history()[1].readings["group0"].norm_to_equilibrium > 0  # AdamW's, with that λ
    assert math.isnan(meter.history()[1].readings["group1"].norm_to_equilibrium)


@pytest.mark.parametrize("decay", ["decoupled", "cautious"])
def test_a_meter_does_not_change_what_an_attached_decay_does(decay):
    """Not even whether it comes before the optimizer's step or after it, which depends on the other hooks."""
    found = []
    for metered in (False, True):
        torch.manual_seed(0)
        params = [one(dtype=dtype) for dtype in (torch.bfloat16, torch.float32, torch.complex64)]
        optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        wd.attach(optimizer, decay, 0.1)
        meter = wd.Meter(optimizer, every=2) if metered else None
        for t in range(5):
            set_gradients(optimizer, t)
            optimizer.step()
        if meter is not None:
            assert all(sample.readings["group0"].kept == pytest.approx(1, abs=0.2) for sample in meter.history())
        found.append(everything(optimizer))
    assert found[0] == found[1]


def test_a_skipped_or_broken_step_leaves_nothing_behind_on_what_is_attached():
    param = one(dtype=torch.float32)
    optimizer, meter = attached([param], torch.optim.SGD)
    gradient, param.grad = param.grad, param.grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    param.grad = gradient
    copied = copy.deepcopy(optimizer)
    assert not copied.defaults.attachment.watchers
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor in (math.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale((param * param).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    (sample,) = meter.history()
    assert sample.readings["group0"].kept == pytest.approx(1, abs=0.01)
    assert not optimizer.defaults.attachment.watchers


# Norm, angle, change ------------------------------------------------------------------------------------------------------


def test_norm_change_and_angle_are_those_of_the_weights():
    params = [one(), one((7,))]
    optimizer = wd.AdamW(params, lr=0.5, backend="eager")
    reading, before = read(optimizer)
    params = [param.detach() for param in params]
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
    param.grad = torch.tensor([[1e-8, 1e-8]], dtype=torch.float64)
    reading, _ = read(torch.optim.SGD([param], lr=1.0))
    assert reading.angle == pytest.approx(1e-8, rel=1e-7)  # which a cosine would have lost


def test_a_complex_number_is_two_weights():
    readings = []
    for pairs in (False, True):
        torch.manual_seed(1)
        param = one((4, 6), torch.complex128)
        w = param if not pairs else nn.Parameter(torch.view_as_real(param.detach()).clone())
        w.grad = param.grad if not pairs else torch.view_as_real(param.grad).clone()
        readings.append(read(wd.AdamW([w], **ADAM, backend="eager"))[0])
    assert readings[0].to_dict() == readings[1].to_dict()
    assert readings[0].weights == 48


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "rules", [{"decay": "decoupled"}, {"penalty": "l2", "penalty_weight": LAMBDA, "weight_decay": 0}], ids=str
)
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
    "AdamW": (lambda p: wd.AdamW(p, lr=0.01, weight_decay=2.0, backend="eager"), noise),
    "torch's AdamW": (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=2.0), noise),
    "Lion": (lambda p: general(p, weight_decay=2.0, direction="lion", decay="decoupled", betas=(0.8, 0.9)), noise),
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.02), noise_across),
    "Nesterov": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.02, nesterov=True), noise_across),
    "dampening": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.04), noise_across),
    "SGDW": (lambda p: wd.SGDW(p, lr=0.1, momentum=0.9, weight_decay=0.2, backend="eager"), noise_across),
}


@pytest.mark.parametrize(("build", "gradient"), WALKS.values(), ids=WALKS)
def test_weights_under_noise_settle_at_the_equilibrium(build, gradient):
    param = nn.Parameter(torch.randn(40, 50))
    optimizer = build([param])
    meter = wd.Meter(optimizer, every=1)
    param.grad = gradient(param.detach())
    optimizer.step()
    start = meter.history()[-1].readings["group0"]
    with torch.no_grad():
        param.mul_(1.6 * start.equilibrium / param.norm())
    for _ in range(200):  # of shrink 0.02 in the long run, all of them
        param.grad = gradient(param.detach())
        optimizer.step()
    ratios = [sample.readings["group0"].norm_to_equilibrium for sample in meter.history()]
    assert ratios[1] == pytest.approx(1.6, rel=0.05)
    assert sum(ratios[-100:]) / 100 == pytest.approx(1, abs=0.04)


def test_no_equilibrium_where_no_law_applies():
    assert math.isnan(read(torch.optim.SGD([one()], lr=0.1, weight_decay=0.1))[0].equilibrium)  # the gradient sees the length
    assert math.isnan(read(wd.AdamW([one((50,))], **ADAM, backend="eager"))[0].equilibrium)  # no matrix
    assert math.isnan(read(wd.AdamW([one()], lr=LR, weight_decay=0.0, backend="eager"))[0].equilibrium)
    assert math.isnan(read(wd.Adam([one()], **ADAM, backend="eager"))[0].equilibrium)


# Half-life, timescale, effective learning rate ----------------------------------------------------------------------------


def test_half_life_and_timescale_are_those_of_the_units():
    reading, _ = read(wd.AdamW([one()], **ADAM, backend="eager"), steps_per_epoch=50)
    assert reading.half_life == pytest.approx(wd.half_life(LR, LAMBDA))
    assert (reading.timescale, reading.timescale_epochs) == pytest.approx((1 / (LR * LAMBDA), 1 / (LR * LAMBDA) / 50))
    assert reading.half_life_epochs == pytest.approx(reading.half_life / 50)
    reading, _ = read(torch.optim.SGD([one()], lr=0.1, momentum=0.9, weight_decay=5e-4), steps=2)
    assert reading.half_life == pytest.approx(wd.half_life(0.1, 5e-4, source="coupled", momentum=0.9))
    assert math.isnan(read(wd.Adam([one()], **ADAM, backend="eager"))[0].half_life)  # another one for every weight
    assert math.isinf(read(wd.AdamW([one()], lr=LR, weight_decay=0.0, backend="eager"))[0].half_life)


@pytest.mark.parametrize("direction", [name for name, rule in wd.rules().of("direction").items() if not rule.whole])
def test_the_effective_lr_is_what_turns_weights_alike_at_any_size(direction):
    """Weights c times as large have a gradient 1/c times as large; with the lr that keeps η_eff they turn by the same angle."""
    start, gradients = torch.randn(30, 30), torch.randn(8, 30, 30)
    eps = {"eps": 1e-20} if "eps" in wd.rules()["direction", direction].defaults else {}
    readings = []
    for size in (1, 4):
        param = nn.Parameter(size * start.double())
        lr = 0.01 * size ** (2 if direction == "sgd" else 1)
        optimizer = general([param], lr=lr, direction=direction, weight_decay=0, **eps)
        meter = wd.Meter(optimizer, every=1)
        for gradient in gradients:
            param.grad = gradient.double() / size
            optimizer.step()
        readings.append(meter.history()[-1].readings["group0"])
    assert readings[0].angle == pytest.approx(readings[1].angle, rel=2e-3)  # RAdam's first steps are SGD's
    assert readings[0].effective_lr == pytest.approx(readings[1].effective_lr, rel=2e-3)


def test_where_the_decay_gives_u_another_length_no_effective_lr_is_told():
    for optimizer in (wd.LAMB([one()], lr=LR, weight_decay=0.1, backend="eager"), wd.AdamH([one()], lr=LR, backend="eager")):
        assert math.isnan(read(optimizer)[0].effective_lr)


@pytest.mark.parametrize("build", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Rprop])
@pytest.mark.parametrize("size", [math.inf, 1e160, 1e-155])
def test_a_run_that_diverges_goes_on_with_a_meter(build, size):
    start = 1.0 if math.isinf(size) else size
    params = [nn.Parameter(torch.full((3, 3), start, dtype=torch.float64)) for _ in range(2)]
    optimizer = build(params, lr=0.1)
    meter = wd.Meter(optimizer, every=1)
    for _ in range(2):
        for sign, param in zip((1, -1), params, strict=True):
            param.grad = torch.full_like(param, sign * size)
        optimizer.step()
    assert len(meter.history()) == 2
    assert all(math.isfinite(value) for value in meter.metrics().values())
    assert "steps 1 to 2" in str(meter)


def test_an_infinite_gradient_has_neither_angle_nor_equilibrium():
    param = nn.Parameter(torch.ones(3, 3))
    optimizer = torch.optim.SGD([param], lr=0.1, weight_decay=0.1)
    meter = wd.Meter(optimizer)
    param.grad = torch.zeros(3, 3)
    param.grad[0, 0] = math.inf
    optimizer.step()
    reading = meter.history()[0].readings["group0"]
    assert math.isnan(reading.angle)
    assert math.isnan(reading.equilibrium)
    assert math.isnan(reading.norm_to_equilibrium)


def test_a_tensor_that_is_zero_does_not_lower_the_mean_angle():
    """As LoRA's B and biases are at first: a zero vector has no direction."""
    params = [nn.Parameter(torch.tensor([[1.0, 0.0]])), nn.Parameter(torch.zeros(2))]
    optimizer = torch.optim.SGD(params, lr=1.0)
    meter = wd.Meter(optimizer)
    for param in params:
        param.grad = torch.tensor([0.0, -1.0]).expand_as(param).clone()
    optimizer.step()
    assert meter.history()[0].readings["group0"].angle == pytest.approx(math.pi / 4)
    params[1].grad, params[1].data = torch.ones(2), torch.zeros(2)
    assert math.isnan(read(torch.optim.SGD(params[1:], lr=1.0))[0].angle)


def test_a_pull_to_a_larger_norm_forgets_nothing():
    param = one()
    optimizer = wd.AdamWN([param], lr=0.1, weight_decay=0.1, backend="eager")
    meter = wd.Meter(optimizer, every=1)
    for _ in range(2):
        param.grad = torch.zeros_like(param)
        optimizer.step()
        with torch.no_grad():
            param.mul_(0.5)
    reading = meter.history()[1].readings["group0"]
    assert reading.shrink < 0
    assert math.isinf(reading.timescale)
    assert math.isinf(reading.half_life)


@pytest.mark.parametrize("hook_first", [True, False])
def test_the_gradients_that_other_hooks_leave_are_those_that_count(hook_first):
    param = one()
    optimizer = torch.optim.SGD([param], lr=0.1, weight_decay=0.1)

    def scaled(*_):
        param.grad = 5 * param.grad

    if hook_first:
        optimizer.register_step_pre_hook(scaled)
    meter = wd.Meter(optimizer, every=1)
    if not hook_first:
        optimizer.register_step_pre_hook(scaled)
    for _ in range(3):
        param.grad = torch.randn_like(param)
        optimizer.step()
    kept = [sample.readings["group0"].kept for sample in meter.history()]
    assert kept[0 if hook_first else 1 :] == pytest.approx([1.0] * (3 if hook_first else 2), abs=1e-3)


# Groups and roles ---------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix, self.norm = nn.Embedding(6, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.slope, self.scale = nn.Parameter(torch.ones(4)), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.scale * self.norm(self.mix(self.table(x))) * self.slope


def trained(model, optimizer, steps=1):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.arange(6).roll(step)).pow(2).sum().backward()
        optimizer.step()


ROLES = {
    "table.weight": "embedding", "mix.weight": "weight", "mix.bias": "bias", "norm.weight": "norm", "norm.bias": "bias",
    "slope": "vector", "scale": "scalar",
}  # fmt: skip


@pytest.mark.parametrize("by_name", [False, True])
def test_roles_come_from_the_model_or_by_name(by_name):
    model = Model()
    optimizer = wd.AdamW(wd.param_groups(model, 0.1), lr=LR, backend="eager")
    norms = {name: param.detach().double().norm().item() for name, param in model.named_parameters()}
    meter = wd.Meter(optimizer, roles=ROLES if by_name else model)
    trained(model, optimizer)
    readings = meter.history()[0].readings
    assert list(readings)[:2] == ["group0", "group1"]
    assert set(readings) == {"group0", "group1", *ROLES.values()}
    assert readings["bias"].norm == pytest.approx(math.hypot(norms["mix.bias"], norms["norm.bias"]), rel=1e-9)
    assert readings["embedding"].norm == pytest.approx(norms["table.weight"], rel=1e-9)
    assert (readings["group0"].tensors, readings["group1"].tensors) == (2, 5)
    assert (readings["group0"].shrink, readings["group1"].shrink) == pytest.approx((LR * 0.1, 0))
    assert readings["weight"].shrink == pytest.approx(LR * 0.1, rel=1e-12)


def test_a_tensor_without_a_gradient_is_not_counted():
    params = [one(), one()]
    params[0].grad = None
    reading, before = read(wd.AdamW(params, **ADAM, backend="eager"))
    assert reading.tensors == 1
    assert reading.norm == pytest.approx(before[1].norm().item())
    with wd.Meter(torch.optim.SGD([nn.Parameter(torch.ones(2))])) as meter:
        pass
    assert (meter.history(), meter.metrics(), meter.step, str(meter)) == ((), {}, 0, "nothing measured yet")


def test_a_group_that_joins_later_is_measured_too():
    optimizer = wd.AdamW([one()], **ADAM, backend="eager")
    meter = wd.Meter(optimizer, every=1)
    optimizer.step()
    optimizer.add_param_group({"params": [one()], "weight_decay": 0.5})
    optimizer.step()
    assert [list(sample.readings) for sample in meter.history()] == [["group0"], ["group0", "group1"]]
    assert meter.metrics()["weight_decay/group1/shrink"] == pytest.approx(LR * 0.5)


@pytest.mark.parametrize("attach", [False, True])
def test_a_run_that_goes_on_from_a_checkpoint_is_measured_as_if_it_had_not_stopped(attach):
    samples = []
    for stops in (False, True):
        torch.manual_seed(0)
        params = [one(dtype=torch.bfloat16)]
        optimizer = torch.optim.AdamW(params, **ADAM) if attach else wd.AdamW(params, **ADAM, backend="eager")
        if attach:
            wd.attach(optimizer, "decoupled")
        train(optimizer, 3)
        if stops:
            other = torch.optim.AdamW(params, lr=1.0) if attach else wd.AdamW(params, lr=1.0, backend="eager")
            meter = wd.Meter(other, every=1)
            if attach:
                wd.attach(other, "decoupled")
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer = other
        else:
            meter = wd.Meter(optimizer, every=1)
        train(optimizer, 2, first=4)
        samples.append([sample.to_dict() for sample in meter.history()])
    assert samples[0] == samples[1]
    assert samples[0][0]["readings"]["group0"]["shrink"] == pytest.approx(LR * LAMBDA)


# What is measured, and when -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "measured"), [
    ({"every": 4}, [1, 2, 4, 8, 12, 16]), ({"every": 20}, [1, 2, 4, 8, 16]), ({}, [1, 2, 4, 8, 16]),
    ({"every": 1}, [*range(1, 20)]), ({"every": 5, "start": 7}, [8, 9, 10, 11, 15, 20, 25]),
], ids=str)  # fmt: skip
def test_steps_are_measured_densely_at_the_start_and_then_every_so_many(options, measured):
    optimizer = torch.optim.SGD([one()], lr=0.1)
    meter = wd.Meter(optimizer, **options)
    for _ in range(19):
        optimizer.step()
    assert [sample.step for sample in meter.history()] == measured
    assert meter.step == measured[-1]


def test_a_run_of_300_steps_has_a_picture():
    optimizer = torch.optim.SGD([one()], lr=0.1)
    meter = wd.Meter(optimizer)
    for _ in range(300):
        optimizer.step()
    steps = [sample.step for sample in meter.history()]
    assert len(steps) == 9
    assert steps[-1] == 256


@pytest.mark.parametrize("build", [wd.AdamW, torch.optim.AdamW, wd.Adam], ids=lambda build: build.__module__)
def test_groups_with_a_rate_each_are_measured_as_one_by_one(build):
    """They are added up together, with η and shrink of each weight's own group."""
    found = []
    for together in (True, False):
        torch.manual_seed(0)
        params = [one((3, place + 1), torch.float32) for place in range(6)]
        groups = [{"params": [param], "lr": LR * (1 + place), "weight_decay": LAMBDA / (1 + place % 2)}
                  for place, param in enumerate(params)]  # fmt: skip
        optimizers = [build(groups)] if together else [build([group]) for group in groups]
        meters = [wd.Meter(optimizer, every=1) for optimizer in optimizers]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.step()
        found.append([reading for meter in meters for reading in meter.history()[-1].readings.values()])
    for joined, alone in zip(*found, strict=True):
        assert joined.numbers() == pytest.approx(alone.numbers(), rel=1e-12)
        assert len(joined.numbers()) >= 8


def test_what_a_sample_does_grows_with_the_number_of_groups_and_no_faster():
    """Operations are counted, not seconds: a group costs a few, and the optimizer is taken apart once."""
    counts = []
    for groups in (100, 200, 400):
        rates = [LR * (1 + place) for place in range(groups)]
        optimizer = torch.optim.AdamW([{"params": [one((2, 2))], "lr": lr} for lr in rates], foreach=True)
        meter = wd.Meter(optimizer, every=1)
        optimizer.step()
        with Operations() as alone:
            meter.detach()
            optimizer.step()
        meter, _ = wd.Meter(optimizer, every=1), optimizer.step()
        with Operations() as measured:
            optimizer.step()
        counts.append(measured.count - alone.count)
    first, second = counts[1] - counts[0], counts[2] - counts[1]
    assert second == pytest.approx(2 * first, rel=0.05)
    assert first / 100 < 40


def test_groups_that_change_between_samples_are_followed():
    param, other = one(), one()
    optimizer = torch.optim.AdamW([param], **ADAM)
    meter = wd.Meter(optimizer, every=1)
    optimizer.step()
    optimizer.param_groups[0].update(lr=0.5 * LR, weight_decay=2 * LAMBDA)
    optimizer.step()
    optimizer.param_groups[0]["decoupled_weight_decay"] = False
    optimizer.step()
    optimizer.param_groups[0]["decoupled_weight_decay"] = True
    optimizer.param_groups[0]["params"].append(other)
    optimizer.step()
    readings = [sample.readings["group0"] for sample in meter.history()]
    assert [each.tensors for each in readings] == [1, 1, 1, 2]
    assert [readings[place].shrink for place in (0, 1, 3)] == pytest.approx([LR * LAMBDA] * 3, rel=1e-12)
    assert readings[2].shrink != pytest.approx(LR * LAMBDA, rel=1e-3)
    assert all(each.kept == pytest.approx(1, abs=1e-6) for each in readings)


@pytest.mark.parametrize("given", ["keyword", "position"])
def test_the_gradients_of_a_closure_are_those_that_count(given):
    """Lightning passes a closure, before which there are no gradients."""
    found = []
    for use_closure in (False, True):
        torch.manual_seed(3)
        param = one()
        gradient, param.grad = param.grad, None
        optimizer = wd.AdamW([param], **ADAM, backend="eager")
        meter = wd.Meter(optimizer, every=1)

        def closure(param=param, gradient=gradient):
            assert torch.is_grad_enabled()
            param.grad = gradient
            return 3.5

        if not use_closure:
            closure()
            optimizer.step()
        else:
            assert (optimizer.step(closure) if given == "position" else optimizer.step(closure=closure)) == 3.5
        found.append(meter.metrics())
    assert found[0] == found[1]


def test_a_closure_that_is_evaluated_again_and_again_is_measured_once():
    param = nn.Parameter(torch.tensor([[2.0, 1.0]], dtype=torch.float64))
    optimizer = torch.optim.LBFGS([param], lr=0.5)
    meter = wd.Meter(optimizer, every=1)

    def closure():
        optimizer.zero_grad()
        loss = param.pow(4).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    (sample,) = meter.history()
    moved = (param.detach() - torch.tensor([[2.0, 1.0]])).norm() / math.sqrt(5)
    assert sample.readings["group0"].change == pytest.approx(moved.item())


@pytest.mark.parametrize("build", [
    lambda params: wd.AdamW(params, **ADAM), lambda params: wd.AdamW(params, **ADAM, backend="eager"),
    lambda params: torch.optim.AdamW(params, **ADAM, fused=True), lambda params: torch.optim.AdamW(params, **ADAM),
], ids=["kernel", "eager", "torch fused", "torch"])  # fmt: skip
def test_a_scaled_gradient_is_measured_unscaled_and_a_skipped_step_not_at_all(build):
    scaled, plain = (nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)) for _ in range(2))
    optimizer, other = build([scaled]), build([plain])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    meter, expected = wd.Meter(optimizer, every=1), wd.Meter(other, every=1)
    for step in range(4):
        optimizer.zero_grad()
        factor = math.inf if step in (0, 2) else 1.0
        scaler.scale((scaled * scaled).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor == 1:
            other.zero_grad()
            (plain * plain).sum().backward()
            other.step()
    assert [sample.to_dict() for sample in meter.history()] == [sample.to_dict() for sample in expected.history()]
    assert [sample.step for sample in meter.history()] == [1, 2]


# Nothing is changed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("build", [*PRESETS, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop], ids=str)
def test_a_run_with_a_meter_is_the_run_without_bit_for_bit(build, dtype):
    found = []
    for metered in (False, True):
        torch.manual_seed(0)
        params = [one((4, 3), dtype), one((3, 2), dtype), nn.Parameter(torch.ones(2, 2, dtype=dtype))]
        decay = {"weight_decay": 0.1} if "weight_decay" in inspect.signature(build).parameters else {}
        backend = {"backend": "eager"} if build in PRESETS and build is not wd.AdamW else {}
        optimizer = build(params, lr=0.05, **decay, **backend)
        meter = wd.Meter(optimizer, every=2) if metered else None
        for t in range(5):
            set_gradients(optimizer, t)
            params[2].grad = None
            optimizer.step()
            if meter is not None:
                assert "weight_decay/group0/norm" in meter.metrics()
                assert meter.unknown is None
        found.append((everything(optimizer), len(optimizer.state), optimizer.param_groups[0].keys(), torch.rand(1).item()))
    assert found[0] == found[1]


class Operations(TorchDispatchMode):
    """Count the operations, and what of them makes the host wait for a number."""

    def __init__(self):
        super().__init__()
        self.count, self.reads = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        self.reads += function is torch.ops.aten._local_scalar_dense.default and args[0].numel() == 1 and args[0].ndim == 0
        self.reads += function is torch.ops.aten.nonzero.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rules", [{"decay": "decoupled"}, {"penalty": "l2", "penalty_weight": 0.1, "weight_decay": 0},
                                   {"decay": "norm_control", "weight_decay": 0.1}, {"attached": "decoupled"},
                                   {"attached": "cautious"}], ids=str)  # fmt: skip
def test_between_samples_nothing_runs_and_at_samples_no_number_is_read_but_the_step_count(rules):
    counts = {}
    for every in (None, 100, 1):
        torch.manual_seed(0)
        params = [one(dtype=torch.bfloat16), one((3,), torch.float32)]
        optimizer = torch.optim.AdamW(params) if "attached" in rules else general(params, **rules)
        if "attached" in rules:
            wd.attach(optimizer, rules["attached"], 0.1)
        optimizer.step()
        meter = None if every is None else wd.Meter(optimizer, every=every)
        for _ in range(2 if every == 100 else 0):  # the third step is no sample
            optimizer.step()
        with Operations() as operations:
            optimizer.step()
        counts[every] = operations.count, operations.reads
        assert meter is None or len(meter.history()) == {100: 2, 1: 1}[every]
    assert counts[100] == counts[None]
    assert counts[1][0] > counts[None][0]
    assert counts[1][1] == counts[None][1] + len(params)


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own, on the way into its compiler
def test_a_compiled_step_is_measured():
    optimizer = torch.optim.AdamW([one()], **ADAM)
    meter = wd.Meter(optimizer, every=2)
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(4):
        step()
    assert [sample.step for sample in meter.history()] == [1, 2, 4]
    assert meter.metrics()["weight_decay/group0/kept"] == pytest.approx(1, abs=1e-4)


def test_detached_it_measures_no_more_and_keeps_what_it_has():
    optimizer = torch.optim.SGD([one()], lr=0.1)
    with wd.Meter(optimizer, every=1) as meter:
        optimizer.step()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    optimizer.step()
    meter.detach()
    assert [sample.step for sample in meter.history()] == [1]


def test_a_step_that_fails_is_no_sample():
    param = one()
    optimizer = wd.AdamW([param], **ADAM, backend="eager")
    meter = wd.Meter(optimizer, every=1)
    param.grad = param.grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert [sample.step for sample in meter.history()] == [2]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_meter_is_its_record_and_a_copy_of_the_optimizer_has_none(copied):
    optimizer = torch.optim.AdamW([one()], **ADAM)
    meter = wd.Meter(optimizer, every=1, roles=nn.Linear(2, 2))
    optimizer.step()
    record = copied(meter)
    assert record.to_dict() == meter.to_dict()
    copied(optimizer).step()
    optimizer.step()
    assert (meter.step, record.step) == (2, 1)
    record.detach()


# What it cannot know, and what it refuses ---------------------------------------------------------------------------------


def test_of_another_optimizer_it_knows_the_weights_and_says_what_it_does_not():
    param = one()
    before = param.detach().clone()
    optimizer = torch.optim.Rprop([param], lr=0.5)
    meter = wd.Meter(optimizer, every=1)
    optimizer.step()
    assert set(meter.metrics()) == {f"weight_decay/group0/{name}" for name in ("norm", "change", "angle")}
    assert meter.metrics()["weight_decay/group0/change"] == pytest.approx(((param - before).norm() / before.norm()).item())
    assert "Rprop" in meter.unknown
    assert "Rprop" in str(meter)
    assert meter.to_dict()["samples"][0]["readings"]["group0"]["shrink"] is None
    assert wd.Meter(torch.optim.AdamW([param])).unknown is None


def test_what_frameworks_wrap_around_an_optimizer_is_taken_off():
    class Wrapped(torch.optim.Optimizer):  # as accelerate's, which never calls Optimizer.__init__
        def __init__(self, optimizer):
            self.optimizer = optimizer

    optimizer = torch.optim.AdamW([one()])
    meter = wd.Meter(Wrapped(optimizer))
    optimizer.step()
    assert meter.step == 1
    with pytest.raises(TypeError, match="Wrapped calls no hooks"):
        wd.Meter(Wrapped(object()))


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"every": 0}, ValueError, ["every=0"]), ({"every": 2.5}, ValueError, ["every=2.5"]),
    ({"every": "x"}, TypeError, ["every"]),
    ({"steps_per_epoch": -1}, ValueError, ["steps_per_epoch"]), ({"roles": 3}, TypeError, ["roles", "int"]),
    ({"roles": {"w": "norm"}}, ValueError, ["'w'", "param_groups"]), ({"roles": {"w": "group1"}}, ValueError, ["group1"]),
], ids=str)  # fmt: skip
def test_it_refuses_what_cannot_be_meant_and_hooks_nothing(options, error, words):
    optimizer = torch.optim.SGD([one()], lr=0.1)
    with pytest.raises(error) as caught:
        wd.Meter(optimizer, **options)
    assert all(word in str(caught.value) for word in words)
    assert not optimizer._optimizer_step_pre_hooks
    with pytest.raises(TypeError, match="int"):
        wd.Meter(3)
    with pytest.raises(ValueError, match=r"did you mean 'mix\.weight'"):
        wd.Meter(torch.optim.SGD(Model().named_parameters()), roles={"mix.weigth": "weight"})


# What it shows ------------------------------------------------------------------------------------------------------------


def test_it_prints_what_the_run_was_and_not_how_it_ended():
    """A schedule ends at lr 0, where nothing shrinks and no half-life is left; the run was not like that."""
    param = one(dtype=torch.float32)
    optimizer = torch.optim.AdamW([param], **ADAM)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=20)
    meter = wd.Meter(optimizer, every=5)
    begun = param.detach().norm().item()
    for _ in range(25):
        optimizer.step()
        falling.step()
    last = meter.history()[-1].readings["group0"]
    assert (last.shrink, last.half_life) == (0, math.inf)
    summary = meter.summary()
    assert (summary.first, summary.last, summary.samples) == (1, 25, 8)
    course = summary.courses["group0"]
    assert (course.first, course.last) == (pytest.approx(begun), pytest.approx(param.detach().norm().item()))
    # Of steps 1, 2, 4, 5, 10, 15, 20 and 25, which stand for 1, 1, 2, 1, 5, 5, 5 and 5 steps, the median is that of step 15.
    assert course.shrink == pytest.approx(LR * LAMBDA * (1 - 14 / 20))
    assert course.half_life == pytest.approx(-math.log(2) / math.log1p(-LR * LAMBDA * 6 / 20), rel=0.5)
    assert course.kept == pytest.approx(1, abs=1e-4)
    title, *_, line = str(meter).splitlines()
    assert title.startswith("steps 1 to 25, 8 of them measured")
    assert "100%" in line
    assert not {"–", "never", "nan", "0"} & set(line.split())
    assert meter.to_dict()["summary"] == summary.to_dict()
    assert json.loads(json.dumps(summary.to_dict(), allow_nan=False))["courses"]["group0"]["kept"] == course.kept


def test_what_is_kept_in_all_counts_each_sample_for_the_steps_before_it():
    """Of torch's bfloat16 nothing is kept, with lr so large that the first steps do keep some of it."""
    param = one((300, 300), torch.bfloat16)
    optimizer = torch.optim.AdamW([param], lr=1e-4, weight_decay=1.0)
    meter = wd.Meter(optimizer, every=10)
    for _ in range(20):
        optimizer.step()
    course, samples = meter.summary().courses["group0"], meter.history()
    counts = {1: 1, 2: 1, 4: 2, 8: 4, 10: 2, 20: 10}
    taken = sum(counts[each.step] * each.readings["group0"].realised for each in samples)
    assert course.kept == pytest.approx(taken / (20 * 1e-4), abs=1e-9)
    assert f"{abs(round(course.kept, 2)):.0%}" in str(meter)


def test_before_the_first_step_it_says_so():
    meter = wd.Meter(torch.optim.AdamW([one()]))
    assert str(meter) == "nothing measured yet"
    assert (meter.summary(), meter.to_dict()["summary"]) == (None, None)


def test_metrics_by_name():
    optimizer = torch.optim.AdamW([one()], **ADAM)
    meter = wd.Meter(optimizer)
    optimizer.step()
    assert set(meter.metrics("x", ["kept", "norm"])) == {"x/group0/kept", "x/group0/norm"}
    assert set(meter.metrics("x", METRICS)) == {f"x/group0/{name}" for name in METRICS}
    assert asked_for("all") == QUANTITIES
    with pytest.raises(ValueError, match=r"metrics='kep' is unknown: did you mean 'kept'"):
        asked_for(["norm", "kep"])


def test_it_prints_as_a_table_and_is_plain_data(tmp_path):
    model = Model()
    optimizer = wd.AdamW(wd.param_groups(model, 0.1), lr=LR, backend="eager")
    meter = wd.Meter(optimizer, every=2, roles=model, steps_per_epoch=3)
    trained(model, optimizer, steps=7)
    lines = str(meter.history()[-1]).splitlines()
    assert lines[0] == "step 6"
    assert [line.split()[0] for line in lines[2:4]] == ["group0", "group1"]
    assert len(lines) == 2 + 2 + len(set(ROLES.values()))
    assert json.loads(json.dumps(meter.to_dict(), allow_nan=False))["samples"][-1]["step"] == 6
    metrics = meter.metrics("decay")
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert metrics["decay/weight/half_life_epochs"] == pytest.approx(metrics["decay/weight/half_life"] / 3)
    for name in ("course.png", "course.svg"):
        meter.plot(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 10_000
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ValueError, match=r"neither a .png nor a .svg"):
        meter.plot(tmp_path / "course.pdf")
    with pytest.raises(ValueError, match="nothing was measured"):
        wd.Meter(optimizer).plot(tmp_path / "course.png")
