"""Schedules of λ, in the groups and as schedulers, against loops by hand, and under all that saves, copies or steps them."""

import copy
import io
import itertools
import json
import math

import pytest
import torch
import torch._dynamo.testing
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import Linear, Parameter
from torch.optim import lr_scheduler
from training import BACKENDS, all_params, bits, everything, parameters, refused, set_gradients, train

import weightdecay as wd
from weightdecay.optim import schedules

LR, LAM, STEPS = 0.5, 0.25, 14
BY_HAND = {
    "warm-up": ({"name": "constant", "warmup": 4}, lambda t, lr: min(1, (t + 1) / 4)),
    "linear": ({"name": "linear", "steps": 10}, lambda t, lr: max(0, (10 - t) / 10)),
    "linear-from-to": (
        {"name": "linear", "steps": 12, "warmup": 4, "final": 3.0},
        lambda t, lr: (t + 1) / 4 if t < 4 else min(3, 1 + 2 * (t - 4) / 8),
    ),
    "cosine": (
        {"name": "cosine", "steps": 10, "final": 0.1},
        lambda t, lr: 0.1 + 0.9 * math.cos(math.pi * min(t, 10) / 20) ** 2,
    ),
    "step": ({"name": "step", "every": 3, "factor": 0.5}, lambda t, lr: math.prod([0.5] * len(range(3, t + 1, 3)))),
    "inverse_time": ({"name": "inverse_time", "steps": 5}, lambda t, lr: 1 / (1 + t / 5)),
    "constant_timescale": ({"name": "constant_timescale"}, lambda t, lr: LR / lr if lr else 0),
    "follow_lr": ({"name": "follow_lr"}, lambda t, lr: lr / LR),
}
every_schedule = pytest.mark.parametrize(("schedule", "by_hand"), BY_HAND.values(), ids=BY_HAND)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def one(value=1.0, dtype=torch.float64):
    return Parameter(torch.full((3,), value, dtype=dtype))


def lrs():
    """Return a learning rate for each step, 0 at the last ones."""
    return [LR * max(0, 1 - t / 12) for t in range(STEPS)]


def falling(optimizer):
    """Return a scheduler that sets these learning rates."""
    return lr_scheduler.LambdaLR(optimizer, lambda t: max(0, 1 - t / 12))


def run(optimizer, *schedulers, steps=STEPS):
    """Return what the first weight of each group is after each step without a gradient."""
    seen = []
    for _ in range(steps):
        for param in all_params(optimizer):
            param.grad = torch.zeros_like(param)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        seen.append([group["params"][0].flatten()[0].item() for group in optimizer.param_groups])
    return seen


def products(factors):
    return list(itertools.accumulate(factors, lambda x, y: x * y))


def about(values):
    return pytest.approx(values, rel=1e-12)


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# What a schedule does ---------------------------------------------------------------------------------------------------


@every_backend
@every_schedule
def test_a_schedule_in_the_group_is_the_loop_by_hand(schedule, by_hand, backend):
    optimizer = wd.AdamW([one()], LR, weight_decay=LAM, weight_decay_schedule=schedule, backend=backend)
    seen = [left for (left,) in run(optimizer, falling(optimizer))]
    assert seen == about(products(1 - lr * LAM * by_hand(t, lr) for t, lr in enumerate(lrs())))
    assert seen[-1] != about(math.prod(1 - lr * LAM for lr in lrs()))
    assert optimizer.param_groups[0]["weight_decay"] == LAM


@pytest.mark.parametrize("build", [torch.optim.AdamW, wd.AdamW], ids=["torch", "ours"])
@every_schedule
def test_a_scheduler_is_the_loop_by_hand(schedule, by_hand, build):
    optimizer = build([one()], LR, weight_decay=LAM)
    rates = falling(optimizer)
    seen = [left for (left,) in run(optimizer, rates, wd.WeightDecayScheduler(optimizer, schedule))]
    assert seen == about(products(1 - lr * LAM * by_hand(t, lr) for t, lr in enumerate(lrs())))
    assert optimizer.param_groups[0]["weight_decay"] == about(LAM * by_hand(STEPS, 0))


@every_backend
@every_schedule
def test_in_the_group_and_as_a_scheduler_a_schedule_gives_the_same_bits(schedule, by_hand, backend):
    del by_hand
    inside = wd.AdamW(parameters().values(), 0.1, weight_decay=LAM, weight_decay_schedule=schedule, backend=backend)
    outside = wd.AdamW(parameters().values(), 0.1, weight_decay=LAM, backend=backend)
    ours, theirs = falling(inside), falling(outside)
    scheduler = wd.WeightDecayScheduler(
        outside, **{"schedule": schedule["name"], **{k: v for k, v in schedule.items() if k != "name"}}
    )
    for t in range(6):
        train(inside, 1, first=t)
        ours.step()
        train(outside, 1, first=t)
        theirs.step()
        scheduler.step()
    assert bits(all_params(inside)) == bits(all_params(outside))


def test_each_group_is_scaled_from_its_own_lambda_and_zero_stays_zero():
    def groups():
        return [{"params": [one()], "weight_decay": lam} for lam in (0.25, 0.0, 0.5)]

    theirs, ours = torch.optim.AdamW(groups(), LR), wd.AdamW(groups(), LR, weight_decay_schedule={"name": "linear", "steps": 8})
    scheduler = wd.WeightDecayScheduler(theirs, "linear", steps=8)
    seen, inside = run(theirs, scheduler, steps=4), run(ours, steps=4)
    assert [group["weight_decay"] for group in theirs.param_groups] == scheduler.get_last_lambda() == [0.125, 0.0, 0.25]
    for place, lam in enumerate((0.25, 0.0, 0.5)):
        expected = about(products(1 - LR * lam * (1 - t / 8) for t in range(4)))
        assert [row[place] for row in seen] == expected
        assert [row[place] for row in inside] == expected


def test_a_lambda_of_a_penalty_is_scheduled_by_its_key():
    rules = {"direction": "sgd", "penalty": "l2", "penalty_weight": LAM, "decay": "decoupled", "weight_decay": 0.125}
    inside = wd.Optimizer([one()], LR, **rules, penalty_weight_schedule={"name": "linear", "steps": 4})
    outside = wd.Optimizer([one()], LR, **rules)
    scheduler = wd.WeightDecayScheduler(outside, "linear", key="penalty_weight", steps=4)
    expected = about(products(1 - LR * (0.125 + LAM * (1 - t / 4)) for t in range(4)))
    assert [left for (left,) in run(inside, steps=4)] == expected
    assert [left for (left,) in run(outside, scheduler, steps=4)] == expected
    assert outside.param_groups[0]["weight_decay"] == 0.125


# The laws of the three schedules that have one --------------------------------------------------------------------------


@every_backend
def test_a_decay_that_follows_the_lr_is_the_corrected_one(backend):
    def build(**rules):
        return wd.Optimizer(parameters().values(), 0.1, direction="adam", weight_decay=0.5, backend=backend, **rules)

    follows = build(decay="decoupled", weight_decay_schedule="follow_lr")
    corrected, plain = build(decay="corrected"), build(decay="decoupled")
    for optimizer in (follows, corrected, plain):
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 8)
        for t in range(8):
            train(optimizer, 1, first=t)
            scheduler.step()
    for w, expected, other in zip(*map(all_params, (follows, corrected, plain)), strict=True):
        assert torch.allclose(w, expected, rtol=1e-13, atol=0)
        assert not torch.allclose(w, other, rtol=1e-3, atol=0)


@every_backend
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_a_constant_timescale_takes_the_same_share_in_every_step(backend, tensor):
    lr = torch.tensor(LR, dtype=torch.float64) if tensor else LR
    optimizer = wd.AdamW([one()], lr, weight_decay=LAM, weight_decay_schedule="constant_timescale", backend=backend)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert [left for (left,) in run(optimizer, scheduler)] == about(products([1 - LR * LAM] * STEPS))
    before = bits(all_params(optimizer))
    for rate in (0.0, 1e-320):  # nothing is left of the step: no bit changes, nothing overflows
        optimizer.param_groups[0]["lr"] = torch.tensor(rate, dtype=torch.float64) if tensor else rate
        run(optimizer, steps=1)
        assert bits(all_params(optimizer)) == before


@pytest.mark.parametrize("peak", [1e-3, 1.0])
def test_a_lambda_of_one_over_t_forgets_by_a_power_of_time_at_any_peak(peak):
    """ADANA's log-time decay: Π(1 − ω/(t₀ + j)) is a quotient of gamma functions, about (t₀/(t₀ + n))^ω."""
    omega, start, steps = 4.0, 50, 200
    optimizer = wd.Optimizer(
        [one()], peak, direction="adam", decay="independent", weight_decay=omega / start,
        weight_decay_schedule={"name": "inverse_time", "steps": start}, backend="eager",
    )  # fmt: skip
    ((left,),) = run(optimizer, steps=steps)[-1:]
    exact = [math.lgamma(start - omega + steps), math.lgamma(start), -math.lgamma(start - omega), -math.lgamma(start + steps)]
    assert left == pytest.approx(math.exp(math.fsum(exact)), rel=1e-10)
    assert left == pytest.approx((start / (start + steps)) ** omega, rel=0.25)
    assert math.exp(-omega * steps / start) < left / 1000


# In a group ---------------------------------------------------------------------------------------------------------------


COSINE = {"name": "cosine", "steps": 10, "warmup": 2, "final": 0.1}


def scheduled(params, **options):
    return wd.AdamW(params, 0.1, weight_decay=LAM, weight_decay_schedule=COSINE, backend="eager", **options)


def test_a_schedule_in_the_group_is_plain_data_with_its_step():
    optimizer = scheduled(parameters().values())
    train(optimizer, 3)
    held = optimizer.param_groups[0]["weight_decay_schedule"]
    assert json.loads(json.dumps(held)) == held == {**COSINE, "step": 3}


def test_a_state_that_was_taken_does_not_move_on():
    optimizer = scheduled(parameters().values())
    state = optimizer.state_dict()
    train(optimizer, 2)
    assert state["param_groups"][0]["weight_decay_schedule"]["step"] == 0


@pytest.mark.parametrize("how", ["torch.save", "deepcopy", "dcp", "dcp-flat", "capturable"])
def test_a_run_with_a_schedule_in_its_groups_goes_on_bit_for_bit(how):
    def build(model):
        groups = [{"params": [model.weight]}, {"params": [model.bias], "weight_decay_schedule": {"name": "step", "every": 2}}]
        return scheduled(groups, capturable=how == "capturable")

    model = Linear(3, 2)
    optimizer = build(model)
    train(optimizer, 4)
    other = copy.deepcopy(model)
    resumed = build(other)
    if how == "deepcopy":
        resumed = copy.deepcopy(optimizer)
    elif how.startswith("dcp"):
        options = StateDictOptions(flatten_optimizer_state_dict=how == "dcp-flat")
        state = saved_and_loaded(get_optimizer_state_dict(model, optimizer, options=options))
        set_optimizer_state_dict(other, resumed, state, options=options)
    else:
        resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for each in (optimizer, resumed):
        train(each, 4, first=5)
    assert everything(resumed) == everything(optimizer)
    assert int(resumed.param_groups[1]["weight_decay_schedule"]["step"]) == 8


def test_a_checkpoint_without_a_schedule_keeps_the_optimizers_and_one_with_it_brings_it():
    with_it, without = scheduled(parameters().values()), wd.AdamW(parameters().values())
    train(with_it, 3)
    state = copy.deepcopy(with_it.state_dict())
    with pytest.warns(UserWarning, match="weight_decay of .* → 0.01"):
        with_it.load_state_dict(without.state_dict())
    assert with_it.param_groups[0]["weight_decay_schedule"] == {**COSINE, "step": 3}
    without.load_state_dict(state)
    assert without.param_groups[0]["weight_decay_schedule"] == {**COSINE, "step": 3}
    theirs = torch.optim.AdamW(parameters().values())
    theirs.load_state_dict(state)


def test_a_group_that_joins_later_starts_its_own_schedule_and_none_means_none():
    optimizer = scheduled([one()])
    run(optimizer, steps=3)
    optimizer.add_param_group({"params": [one()]})
    optimizer.add_param_group({"params": [one()], "weight_decay_schedule": {**COSINE, "step": 3}})
    optimizer.add_param_group({"params": [one()], "weight_decay_schedule": None})
    ((_, started, joined, plain),) = run(optimizer, steps=1)
    shrinks = [schedules.share(COSINE, step=0), schedules.share(COSINE, step=3), 1.0]
    assert [started, joined, plain] == about([1 - 0.1 * LAM * share for share in shrinks])
    assert len({started, joined, plain}) == 3


def test_a_schedule_may_be_changed_while_the_run_goes_on():
    optimizer = scheduled([one()])
    run(optimizer, steps=3)
    optimizer.param_groups[0]["weight_decay_schedule"] = {"name": "linear", "steps": 4}
    (before,) = run(optimizer, steps=1)[0]
    (after,) = run(optimizer, steps=1)[0]
    assert after / before == about(1 - 0.1 * LAM * 0.75)
    optimizer.param_groups[0]["weight_decay_schedule"] = "linnear"
    with refused(ValueError, "did you mean 'linear'", "param_groups[0]", unchanged=optimizer):
        run(optimizer, steps=1)


def test_a_skipped_step_is_not_counted():
    optimizer = scheduled([one(dtype=torch.float32)])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for overflows in (False, True, False):
        (param,) = all_params(optimizer)
        param.grad = scaler.scale(torch.full_like(param, math.inf if overflows else 0.0))
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.param_groups[0]["weight_decay_schedule"]["step"] == 2


def test_a_kernel_hears_of_each_new_lambda_and_is_made_once():
    optimizer = wd.AdamW([one()], LR, weight_decay=LAM, weight_decay_schedule={"name": "linear", "steps": 10}, backend="cpu")
    run(optimizer, steps=2)
    plan = optimizer._plan
    run(optimizer, steps=9)
    assert optimizer._plan is plan


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own, on the way into its compiler
def test_a_compiled_step_follows_its_schedule(capturable):
    torch._dynamo.reset()
    settings = {"weight_decay": LAM, "weight_decay_schedule": COSINE if capturable else {"name": "cosine", "steps": 10}}
    lr = torch.tensor(0.1) if capturable else 0.1
    compiled = wd.AdamW([one(dtype=torch.float32)], lr, capturable=capturable, **settings)
    plain = wd.AdamW([one(dtype=torch.float32)], 0.1, backend="eager", **settings)
    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(compiled.step, backend=counter)
    graphs = []
    for _ in range(4):
        set_gradients(compiled, 0)
        set_gradients(plain, 0)
        step()
        plain.step()
        graphs.append(counter.frame_count)
    assert torch.allclose(all_params(compiled)[0], all_params(plain)[0], rtol=1e-6)
    assert graphs[-1] == graphs[2] <= (1 if capturable else 2)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"weight_decay_schedule": "cosin"}, ValueError, ["weight_decay_schedule", "did you mean 'cosine'"]),
        ({"weight_decay_schedule": {"steps": 3}}, TypeError, ["has a name", "inverse_time"]),
        ({"weight_decay_schedule": "cosine"}, TypeError, ["cosine needs steps"]),
        ({"weight_decay_schedule": {**COSINE, "steps": 0}}, ValueError, ["steps=0", "param_groups[0]"]),
        ({"weight_decay_schedule": {**COSINE, "warmup": 10}}, ValueError, ["warmup=10", "steps=10"]),
        ({"weight_decay_schedule": {**COSINE, "final": math.nan}}, ValueError, ["final=nan"]),
        ({"weight_decay_schedule": {**COSINE, "step": -1}}, ValueError, ["step=-1"]),
        ({"weight_decay_schedule": {"name": "follow_lr", "steps": 9}}, TypeError, ["follow_lr takes no 'steps'"]),
        ({"weight_decay_schedule": lambda t: 1.0}, TypeError, ["WeightDecayScheduler"]),
        ({"weight_decay_schedule": 0.5}, TypeError, ["0.5"]),
        ({"decay": "corrected", "weight_decay_schedule": "follow_lr"}, ValueError, ["corrected", "by itself"]),
        ({"decay": "independent", "weight_decay_schedule": "constant_timescale"}, ValueError, ["independent", "by itself"]),
        ({"decay": None, "weight_decay": 0.0, "weight_decay_schedule": COSINE}, ValueError, ["does nothing", "weight_decay"]),
        ({"penalty_weight_schedule": COSINE}, ValueError, ["penalty_weight_schedule", "does nothing"]),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_a_schedule_that_cannot_be_meant_is_refused(options, error, words):
    with refused(error, *words):
        wd.Optimizer([one()], **{"lr": LR, "direction": "adam", "decay": "decoupled", "weight_decay": LAM, **options})


def test_the_presets_know_the_key_and_no_other():
    with refused(TypeError, "decay_schedule", "did you mean weight_decay_schedule"):
        wd.AdamW([one()], decay_schedule=COSINE)
    with refused(ValueError, "penalty_weight_schedule", "takes no penalty_weight"):
        wd.AdamW([{"params": [one()], "penalty_weight_schedule": COSINE}])
    optimizer = wd.AdamW([{"params": [one()], "lr_max": 2 * LR}], LR, weight_decay=LAM, weight_decay_schedule="follow_lr")
    assert run(optimizer, steps=1)[0] == about([1 - LR * LAM / 2])


# As a scheduler -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Muon, wd.SGDW])
def test_any_optimizer_with_a_lambda_has_it_scheduled_and_its_lr_left_alone(build):
    optimizer = build([Parameter(torch.ones(2, 2))], lr=0.125, weight_decay=LAM)
    scheduler = wd.WeightDecayScheduler(optimizer, "step", every=2)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["weight_decay"])
        run(optimizer, scheduler, steps=1)
        assert optimizer.param_groups[0]["lr"] == 0.125
        assert scheduler.get_last_lr() == scheduler.get_lr() == [0.125]
    assert seen == about([LAM, LAM, LAM / 10, LAM / 10])


class Halving:
    def __init__(self, every):
        self.every = every

    def __call__(self, step):
        return 0.5 ** (step // self.every)


def test_any_function_of_the_steps_done_will_do_one_for_all_groups_or_one_for_each():
    groups = [{"params": [one()], "weight_decay": LAM} for _ in range(3)]
    optimizer = torch.optim.AdamW(groups, LR)
    assert wd.WeightDecayScheduler(optimizer, math.exp).state_dict()["schedules"] == [{}]
    schedule = [lambda step: 1 / (1 + step), Halving(1), {"name": "linear", "steps": 4}]
    scheduler = wd.WeightDecayScheduler(optimizer, schedule)
    run(optimizer, scheduler, steps=2)
    assert scheduler.get_last_lambda() == about([LAM / 3, LAM / 4, LAM / 2])
    assert "Halving; linear steps=4 warmup=0 final=0.0; 2 steps done" in repr(scheduler)


SCHEDULERS = {
    "named": lambda o: wd.WeightDecayScheduler(o, "cosine", steps=10, final=0.1),
    "object": lambda o: wd.WeightDecayScheduler(o, Halving(3)),
    "function": lambda o: wd.WeightDecayScheduler(o, lambda step: 1 / (1 + step)),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.StepLR(o, 2), wd.WeightDecayScheduler(o, "linear", steps=10)], optimizer=o
    ),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            wd.WeightDecayScheduler(o, "constant", warmup=3),
            wd.WeightDecayScheduler(o, "cosine", steps=6),
            lr_scheduler.StepLR(o, 1),
        ],
        milestones=[3, 8],
    ),
    "restarts": lambda o: wd.WarmRestarts(o, 2, growth=2, lambda_norm=0.5, unit="torch"),
}


@pytest.mark.parametrize("optimizer_first", [False, True])
@pytest.mark.parametrize("build", [torch.optim.AdamW, wd.AdamW], ids=["torch", "ours"])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduled_run_goes_on_bit_for_bit(make, build, optimizer_first):
    """At every step that it may stop at, and with λ right at once in whichever order the two states are loaded."""

    def start():
        optimizer = build(parameters().values(), lr=0.1, weight_decay=LAM)
        return optimizer, make(optimizer)

    def go(optimizer, scheduler, steps):
        for t in steps:
            train(optimizer, 1, first=t)
            scheduler.step()
        return everything(optimizer)

    whole, its = start()
    for stop in range(1, 10, 2):
        go(whole, its, range(stop - 1, stop))
        state = saved_and_loaded([whole.state_dict(), its.state_dict(), all_params(whole)])
        resumed, resumed_its = start()
        loads = [lambda: resumed_its.load_state_dict(state[1]), lambda: resumed.load_state_dict(state[0])]  # noqa: B023
        for load in reversed(loads) if optimizer_first else loads:
            load()
        with torch.no_grad():
            for param, saved in zip(all_params(resumed), state[2], strict=True):
                param.copy_(saved)
        assert everything(resumed) == everything(whole)
        expected = go(whole, its, range(stop, stop + 1))
        assert go(resumed, resumed_its, range(stop, stop + 1)) == expected


def test_lambda_is_right_as_soon_as_the_schedulers_state_is_loaded_last():
    """Made after the optimizer's state was loaded, as many do, a scheduler would leave λ at its start for one step."""
    optimizer = torch.optim.AdamW([one()], LR, weight_decay=LAM)
    scheduler = wd.WeightDecayScheduler(optimizer, "linear", steps=10)
    run(optimizer, scheduler, steps=4)
    resumed = torch.optim.AdamW([one()], LR, weight_decay=0.9)
    resumed.load_state_dict(optimizer.state_dict())
    its = wd.WeightDecayScheduler(resumed, "linear", steps=99)
    its.load_state_dict(scheduler.state_dict())
    assert its.get_last_lambda() == about([0.6 * LAM])
    run(resumed, its, steps=1)
    assert its.get_last_lambda() == about([0.5 * LAM])


def test_what_is_no_plain_data_is_not_saved():
    optimizer = torch.optim.AdamW([one()], LR)
    assert wd.WeightDecayScheduler(optimizer, lambda step: 1.0).state_dict()["schedules"] == [None]
    assert wd.WeightDecayScheduler(optimizer, Halving(3)).state_dict()["schedules"] == [{"every": 3}]


def test_chained_with_the_lrs_scheduler_each_does_its_own():
    optimizer = torch.optim.AdamW([one()], LR, weight_decay=LAM)
    chain = [lr_scheduler.ExponentialLR(optimizer, 0.5), wd.WeightDecayScheduler(optimizer, "linear", steps=8)]
    scheduler = lr_scheduler.ChainedScheduler(chain, optimizer=optimizer)
    seen = run(optimizer, scheduler, steps=6)
    assert [left for (left,) in seen] == about(products(1 - LR * 0.5**t * LAM * (1 - t / 8) for t in range(6)))
    assert scheduler.get_last_lr() == [LR * 0.5**6]


def test_in_sequence_each_counts_from_its_own_start():
    optimizer = torch.optim.AdamW([one()], LR, weight_decay=LAM)
    parts = [wd.WeightDecayScheduler(optimizer, "constant", warmup=4), wd.WeightDecayScheduler(optimizer, "linear", steps=5)]
    scheduler = lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])
    rates = lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen = []
    for _ in range(9):
        seen.append(scheduler._schedulers[0].get_last_lambda()[0])
        run(optimizer, scheduler, rates, steps=1)
    assert seen == about([LAM * share for share in (0.25, 0.5, 0.75, 1, 1, 0.8, 0.6, 0.4, 0.2)])
    assert optimizer.param_groups[0]["lr"] == LR * 0.5**9


def test_beside_a_plateau_and_one_cycle_nobody_writes_into_the_others_numbers():
    optimizer = torch.optim.AdamW([one()], LR, weight_decay=LAM)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    scheduler = wd.WeightDecayScheduler(optimizer, "linear", steps=10)
    for _ in range(3):
        run(optimizer, scheduler, steps=1)
        plateau.step(1.0)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (LR / 4, about(0.7 * LAM))
    optimizer = torch.optim.AdamW([one()], LR, weight_decay=LAM)
    cycle = lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=10)
    follows = wd.WeightDecayScheduler(optimizer, "follow_lr")
    for _ in range(5):
        run(optimizer, cycle, follows, steps=1)
        assert follows.get_last_lambda() == about([LAM * optimizer.param_groups[0]["lr"] / 2.0])


def test_a_lambda_that_is_a_tensor_is_filled_in_place():
    lam = torch.tensor([LAM], dtype=torch.float64)
    optimizer = torch.optim.AdamW([one()], LR, weight_decay=lam, foreach=False)
    scheduler = wd.WeightDecayScheduler(optimizer, "linear", steps=4)
    seen = run(optimizer, scheduler, steps=3)
    assert optimizer.param_groups[0]["weight_decay"] is lam
    assert lam.item() == about(LAM / 4)
    assert [left for (left,) in seen] == about(products(1 - LR * LAM * (1 - t / 4) for t in range(3)))
    (last,) = scheduler.get_last_lambda()
    last.fill_(9.0)
    assert lam.item() == about(LAM / 4)


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
def test_a_compiled_step_sees_a_lambda_that_is_a_tensor_without_compiling_again():
    torch._dynamo.reset()
    lr, lam = torch.tensor(LR), torch.tensor(LAM)
    optimizer = wd.SGDW([one(dtype=torch.float32)], lr, weight_decay=lam, capturable=True)
    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    scheduler = wd.WeightDecayScheduler(optimizer, "linear", steps=4)
    seen = []
    for _ in range(3):
        all_params(optimizer)[0].grad = torch.zeros(3)
        step()
        optimizer._opt_called = True  # torch counts the calls of the method that was not compiled
        scheduler.step()
        seen.append(all_params(optimizer)[0][0].item())
    assert seen == pytest.approx(products(1 - LR * LAM * (1 - t / 4) for t in range(3)), rel=1e-6)
    assert counter.frame_count == 1


def test_a_group_that_joins_later_is_scaled_from_its_own_lambda():
    optimizer = torch.optim.AdamW([one()], LR, weight_decay=LAM)
    scheduler = wd.WeightDecayScheduler(optimizer, "linear", steps=4)
    run(optimizer, scheduler, steps=1)
    optimizer.add_param_group({"params": [one()], "weight_decay": 0.5})
    run(optimizer, scheduler, steps=1)
    assert scheduler.get_last_lambda() == [LAM / 2, 0.25]


def test_a_scheduler_resumes_by_a_number_of_steps_as_torchs_do():
    optimizer = torch.optim.AdamW([one()], LR, weight_decay=LAM)
    with pytest.raises(KeyError, match="initial_weight_decay"):
        wd.WeightDecayScheduler(optimizer, "linear", steps=4, last_epoch=1)
    wd.WeightDecayScheduler(optimizer, "linear", steps=4)
    assert wd.WeightDecayScheduler(optimizer, "linear", steps=4, last_epoch=1).get_last_lambda() == [LAM / 2]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda o: wd.WeightDecayScheduler(o, "cosin", steps=3), ValueError, ["did you mean 'cosine'"]),
        (lambda o: wd.WeightDecayScheduler(o, "cosine", step=3), TypeError, ["cosine takes no 'step'", "steps"]),
        (lambda o: wd.WeightDecayScheduler(o, lambda step: -1.0), ValueError, ["schedule(0)=-1.0"]),
        (lambda o: wd.WeightDecayScheduler(o, lambda step: math.nan), ValueError, ["schedule(0)=nan"]),
        (lambda o: wd.WeightDecayScheduler(o, lambda step: 1.0, steps=3), TypeError, ["steps", "a function takes no"]),
        (lambda o: wd.WeightDecayScheduler(o, 0.5), TypeError, ["0.5 is not a schedule"]),
        (lambda o: wd.WeightDecayScheduler(o, [Halving(1)] * 3), ValueError, ["3 entries for 2"]),
        (lambda o: wd.WeightDecayScheduler(o, "follow_lr", key="decay"), ValueError, ["param_groups[0]", "no 'decay'"]),
        (lambda o: wd.WeightDecayScheduler(o, "follow_lr", key="lr"), ValueError, ["learning rate"]),
        (lambda o: wd.WeightDecayScheduler(o, "follow_lr", key="nesterov"), TypeError, ["nesterov=False", "not a number"]),
        (lambda o: wd.WeightDecayScheduler(o.param_groups, "follow_lr"), TypeError, ["list"]),
        (lambda o: wd.WeightDecayScheduler(scheduled([one()]), "follow_lr"), ValueError, ["schedule of its own"]),
        (lambda o: wd.WarmRestarts(o, 0), ValueError, ["first_cycle=0"]),
        (lambda o: wd.WarmRestarts(o, 2, growth=1.5), ValueError, ["growth=1.5"]),
        (lambda o: wd.WarmRestarts(o, 2, lambda_norm=-1), ValueError, ["lambda_norm=-1"]),
        (lambda o: wd.WarmRestarts(o, 2, lambda_norm=1, unit="coupled"), ValueError, ["unit='coupled'"]),
        (lambda o: wd.WarmRestarts(o, 2, unit="torch"), TypeError, ["unit", "lambda_norm"]),
        (lambda o: wd.WarmRestarts(o, 2, lambda_norm=1), ValueError, ["torch.optim.SGD adds λ·w to the gradient", "SGDW"]),
    ],
)  # fmt: skip
def test_a_scheduler_that_cannot_be_meant_is_refused_and_changes_nothing(make, error, words):
    optimizer = torch.optim.SGD([{"params": [one()]}, {"params": [one()]}], LR, weight_decay=LAM)
    with refused(error, *words):
        make(optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [LAM, LAM]
    assert not any("initial_weight_decay" in group for group in optimizer.param_groups)


# What is left -------------------------------------------------------------------------------------------------------------


@every_schedule
def test_what_remains_is_foreseen_with_a_schedule_in_the_group_and_with_a_scheduler(schedule, by_hand):
    del by_hand
    inside = wd.AdamW([one()], LR, weight_decay=LAM, weight_decay_schedule=schedule, backend="eager")
    outside = torch.optim.AdamW([one()], LR, weight_decay=LAM)
    for optimizer, several in [(inside, []), (outside, [schedule])]:
        schedulers = [falling(optimizer), *(wd.WeightDecayScheduler(optimizer, each) for each in several)]
        run(optimizer, *schedulers, steps=3)
        before = everything(optimizer)
        expected = wd.remaining(optimizer, schedulers, steps=8).groups
        assert everything(optimizer) == before
        (start,) = {param[0].item() for param in all_params(optimizer)}
        (left,) = run(optimizer, *schedulers, steps=8)[-1]
        assert expected == about((left / start,))


def test_a_decomposition_shows_the_lambda_of_the_next_step():
    optimizer = wd.AdamW([one()], LR, weight_decay=LAM, weight_decay_schedule={"name": "linear", "steps": 4}, backend="eager")
    run(optimizer, steps=1)
    (split,) = wd.decompose(optimizer).values()
    assert split.decoupled == about(LR * LAM * 0.75)
    assert split.shrink[0].item() == about(LR * LAM * 0.75)


# Warm restarts --------------------------------------------------------------------------------------------------------------


def adamwr(decay, lam, **options):
    optimizer = wd.Optimizer([one()], 0.01, direction="adam", decay=decay, weight_decay=lam, backend="eager")
    return optimizer, wd.WarmRestarts(optimizer, **options)


@pytest.mark.parametrize("decay", ["independent", "decoupled"])
def test_warm_restarts_are_the_papers(decay):
    """η_t = ½(1 + cos(π·T_cur/T_i)) multiplies lr and λ, and λ = λ_norm·√(1/T_i) is another one in each cycle."""
    optimizer, scheduler = adamwr(decay, LAM, first_cycle=10, growth=2, lambda_norm=0.05)
    foreseen = wd.remaining(optimizer, scheduler, steps=70).groups
    left, lr, kept = [], [], []
    for step in range(1, 71):
        lr.append(optimizer.param_groups[0]["lr"])
        left.append(run(optimizer, scheduler, steps=1)[0][0])
        if scheduler.has_restarted:
            kept.append(step)
    assert kept == [10, 30, 70] == list(scheduler.restarts(3))
    start = 1.0
    for first, length in [(0, 10), (10, 20), (30, 40)]:
        multipliers = [0.5 + 0.5 * math.cos(math.pi * step / length) for step in range(length)]
        assert lr[first : first + length] == about([0.01 * multiplier for multiplier in multipliers])
        shrinks = [multiplier * 0.05 * math.sqrt(1 / length) for multiplier in multipliers]
        assert math.fsum(shrinks) == about(0.05 * (length + 1) / 2 / math.sqrt(length))  # the cosine's sum, by hand
        assert left[first + length - 1] == about(start * math.prod(1 - shrink for shrink in shrinks))
        start = left[first + length - 1]
    assert foreseen == about((start,))


def test_restarts_come_where_the_paper_has_them():
    optimizer, scheduler = adamwr("independent", LAM, first_cycle=100, growth=2)
    assert scheduler.restarts(4) == (100, 300, 700, 1500)
    for _ in range(137):
        optimizer.step()
        scheduler.step()
    assert scheduler.cycle == (1, 37, 200)
    assert "37 of 200 steps done in cycle 2" in repr(scheduler)
    assert "after 100, 300, 700, 1,500, … steps" in repr(scheduler)
    assert adamwr("independent", LAM, first_cycle=7)[1].restarts(3) == (7, 14, 21)


def test_the_lr_of_warm_restarts_is_torchs():
    optimizer, scheduler = adamwr("decoupled", LAM, first_cycle=4, growth=3)
    theirs = torch.optim.SGD([one()], 0.01)
    its = lr_scheduler.CosineAnnealingWarmRestarts(theirs, 4, 3)
    for _ in range(60):
        assert optimizer.param_groups[0]["lr"] == about(theirs.param_groups[0]["lr"])
        for each in (optimizer, theirs, scheduler, its):
            each.step()


def test_without_a_normalised_lambda_each_group_keeps_its_own_for_the_first_cycle():
    groups = [{"params": [one()], "weight_decay": lam} for lam in (LAM, 0.0)]
    optimizer = torch.optim.AdamW(groups, LR)
    scheduler = wd.WarmRestarts(optimizer, 2, growth=4)
    assert scheduler.get_last_lambda() == [LAM, 0.0]
    run(optimizer, scheduler, steps=2)
    assert scheduler.get_last_lambda() == [LAM / 2, 0.0]


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5, dtype=torch.float64)], ids=["float", "tensor"])
def test_a_normalised_lambda_is_in_the_unit_of_the_optimizer(lr):
    """Per step at the peak it is λ_norm/√(steps in the cycle), and `normalized` says the same."""
    expected = wd.normalized(0.5, batch_size=1, dataset_size=5, epochs=4).weight_decay
    makes = {
        "torch": lambda params: torch.optim.AdamW(params, lr),
        "decoupled": lambda params: wd.SGDW(params, lr, weight_decay=LAM),
        "independent": lambda params: wd.Optimizer(params, lr, direction="sgd", decay="independent", weight_decay=LAM),
    }
    for name, make in makes.items():
        optimizer = make([{"params": [one()]}, {"params": [one()], "weight_decay": 0.0}])
        scheduler = wd.WarmRestarts(optimizer, 4, lambda_norm=0.5, every=5)
        rate = 1 if name == "independent" else 0.5
        assert [float(lam) for lam in scheduler.get_last_lambda()] == about([expected / rate, 0.0])
        ((left, untouched),) = run(optimizer, steps=1)
        assert (left, untouched) == about((1 - expected, 1.0))
    corrected = wd.Optimizer([one()], LR, direction="sgd", decay="corrected", weight_decay=LAM)
    with refused(ValueError, "corrected decay", "no such unit", unchanged=corrected):
        wd.WarmRestarts(corrected, 4, lambda_norm=0.5)


# Under others' loops --------------------------------------------------------------------------------------------------------


def both(model):
    """Return an optimizer of torch's with a scheduler of the lr and one of λ."""
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=LAM)
    return optimizer, lr_scheduler.ExponentialLR(optimizer, 0.5), wd.WeightDecayScheduler(optimizer, "linear", steps=8)


def expected_lambdas(count):
    return about([LAM * (1 - t / 8) for t in range(count)])


@pytest.mark.filterwarnings("ignore")  # theirs
def test_accelerate_steps_saves_and_loads_a_scheduler(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = Linear(2, 1)
    _, optimizer, rates, scheduler = accelerator.prepare(model, *both(model))
    seen = []
    for step in range(6):
        seen.append(optimizer.param_groups[0]["weight_decay"])
        optimizer.step()
        rates.step()
        scheduler.step()
        if step == 2:
            accelerator.save_state(str(tmp_path))
    assert seen == expected_lambdas(6)
    assert scheduler.get_last_lr() == [LR * 0.5**6]
    accelerator.load_state(str(tmp_path))
    assert optimizer.param_groups[0]["weight_decay"] == about(LAM * (1 - 3 / 8))
    scheduler.step()
    assert optimizer.param_groups[0]["weight_decay"] == about(LAM * (1 - 4 / 8))


@pytest.mark.filterwarnings("ignore")  # theirs
def test_lightning_steps_saves_and_loads_a_scheduler(tmp_path):
    lightning = pytest.importorskip("lightning", reason="needs lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = Linear(2, 1), []

        def training_step(self, batch, _):
            self.seen.append(self.optimizers().param_groups[0]["weight_decay"])
            return self.layer(batch).square().mean()

        def configure_optimizers(self):
            optimizer, *schedulers = both(self.layer)
            return [optimizer], [{"scheduler": each, "interval": "step"} for each in schedulers]

    def fit(steps, **options):
        module = Module()
        trainer = lightning.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(torch.ones(100, 2), batch_size=1), **options)
        return trainer, module

    trainer, module = fit(3)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    assert module.seen == expected_lambdas(3)
    _, resumed = fit(6, ckpt_path=tmp_path / "state.ckpt")
    assert [*module.seen, *resumed.seen] == expected_lambdas(6)
