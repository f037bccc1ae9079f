"""A torch.optim.Optimizer in all that others do with one: hooks, schedulers, scalers, autograd, compilers, threads."""

import copy
import io
import math
import threading

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch.nn import Linear, Parameter
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from training import (
    BACKENDS,
    COMBINATIONS,
    DIRECTIONS,
    KINDS,
    all_params,
    apart,
    bits,
    copies,
    everything,
    noise,
    one_process,
    options_of,
    output,
    parameters,
    refused,
    set_gradients,
    train,
)

import weightdecay as wd

LAM = {"lr": 0.05, "weight_decay": 0.1}
combinations = pytest.mark.parametrize("rules", COMBINATIONS.values(), ids=COMBINATIONS)
presets = pytest.mark.parametrize("preset", KINDS, ids=lambda cls: cls.__name__)
told = pytest.mark.filterwarnings("ignore:foreach=True and fused=True:UserWarning")  # once a process


# A step, and who hears of it --------------------------------------------------------------------------------------------


@presets
def test_hooks_run_once_and_in_torchs_order(preset):
    def heard(optimizer):
        calls = []
        handles = [
            register_optimizer_step_pre_hook(lambda *_: calls.append("global before")),
            register_optimizer_step_post_hook(lambda *_: calls.append("global after")),
            optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
            optimizer.register_step_post_hook(lambda *_: calls.append("after")),
        ]
        try:
            train(optimizer, 2)
        finally:
            for handle in handles:
                handle.remove()
        train(optimizer, 1)
        return calls

    theirs = torch.optim.AdamW(parameters().values())
    assert heard(preset(parameters().values())) == heard(theirs) == ["global before", "before", "after", "global after"] * 2


def test_a_hook_may_replace_the_closure():
    optimizer = wd.AdamW(parameters().values())
    optimizer.register_step_pre_hook(lambda self, *_: ((self, lambda: 2.0), {}))
    assert optimizer.step(lambda: 1.0) == 2.0


@presets
def test_the_profiler_shows_a_step_under_the_name_of_its_class(preset):
    optimizer = preset(parameters().values())
    set_gradients(optimizer, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        optimizer.step()
    assert [e.name for e in profile.events()].count(f"Optimizer.step#{preset.__name__}.step") == 1


@presets
def test_it_prints_as_torchs_do(preset):
    shown = repr(preset(parameters().values(), lr=0.125, weight_decay=0.25))
    assert shown.startswith(f"{preset.__name__} (\nParameter Group 0\n")
    assert "lr: 0.125" in shown
    assert "weight_decay: 0.25" in shown


@presets
def test_a_closure_runs_once_with_gradients_and_its_loss_comes_back(preset):
    params = parameters()
    optimizer = preset(params.values(), **options_of(preset))
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = sum((param**2).sum() for param in params.values())
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure) for _ in range(3)]
    assert calls == [True] * 3
    assert losses[0] > losses[1] > losses[2]
    assert optimizer.step() is None


@combinations
def test_a_parameter_without_a_gradient_has_neither_step_nor_decay_nor_state(rules):
    params = parameters()
    optimizer = wd.Optimizer(params.values(), **LAM, **rules)
    before = bits(list(params.values()))
    optimizer.step()
    assert bits(list(params.values())) == before
    assert not optimizer.state
    set_gradients(optimizer, 1)
    params["bias"].grad = None
    optimizer.step()
    assert set(optimizer.state) == {params["weight"], params["scale"]}
    assert bits(params["bias"]) == before[1]


@combinations
def test_ascending_is_descending_on_the_negated_gradient_and_decays_the_same(rules):
    up = wd.Optimizer(parameters().values(), **LAM, **rules, maximize=True)
    down = wd.Optimizer(parameters().values(), **LAM, **rules)
    for t in range(3):
        set_gradients(down, t)
        for ours, theirs in zip(all_params(up), all_params(down), strict=True):
            ours.grad = -theirs.grad
        up.step()
        down.step()
    assert bits(all_params(up)) == bits(all_params(down))


def test_rules_given_as_functions_are_kept_by_name():
    from weightdecay.update_rules.decays.cautious import cautious
    from weightdecay.update_rules.directions.adam import adam
    from weightdecay.update_rules.penalties.l1 import l1

    rules = {"direction": adam, "penalty": l1, "decay": cautious}
    w, v = parameters(shapes={"w": (3,), "v": (3,)}).values()
    optimizer = wd.Optimizer([{"params": [w]}, {"params": [v], **rules}], 0.1, **rules)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    for group in torch.load(file, weights_only=True)["param_groups"]:
        assert {kind: group[kind] for kind in rules} == {"direction": "adam", "penalty": "l1", "decay": "cautious"}


def numbers_given_as(shape, preset):
    """Return a preset's hyper-parameters as tensors of this shape."""
    defaults = {**preset([Parameter(torch.ones(1))]).defaults, **options_of(preset)}
    for key, value in defaults.items():
        if isinstance(value, tuple):
            yield key, tuple(torch.full(shape, number, dtype=torch.float64) for number in value)
        elif isinstance(value, float):
            yield key, torch.full(shape, value, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@presets
def test_a_number_may_be_a_tensor_of_one_element(preset, shape):
    plain = preset(parameters().values(), **options_of(preset))
    train(plain, 5)
    for key, value in numbers_given_as(shape, preset):
        optimizer = preset(parameters().values(), **{**options_of(preset), key: value})
        train(optimizer, 5)
        assert apart(optimizer, plain) <= 1e-12, key


FILLED = {
    "lr": lambda value: {"lr": value},
    "weight_decay": lambda value: {"weight_decay": value},
    "betas[1]": lambda value: {"betas": (0.9, value)},
    "eps": lambda value: {"eps": value},
}


@pytest.mark.parametrize("to", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("key", FILLED)
@pytest.mark.parametrize("backend", ["auto", "cpu", "eager"])
def test_a_tensor_that_was_filled_with_what_cannot_be_meant_is_refused(backend, key, to):
    value = torch.tensor(0.1, dtype=torch.float64)
    groups = [{"params": [param]} for param in parameters().values()]
    optimizer = wd.AdamW(groups, lr=0.1, weight_decay=0.1, backend=backend)
    optimizer.param_groups[1].update(FILLED[key](value))
    train(optimizer, 2)
    set_gradients(optimizer, 3)
    value.fill_(to)
    for _ in range(2):
        with refused(ValueError, f"{key}={to}", "param_groups[1]", unchanged=optimizer):
            optimizer.step()
        optimizer.param_groups[1]["maximize"] = False  # which was so before
        optimizer.param_groups[0]["lr"] = 0.2
    value.fill_(0.1)
    optimizer.step()
    expected = wd.AdamW([{"params": [param]} for param in parameters().values()], lr=0.1, weight_decay=0.1, backend=backend)
    expected.param_groups[1].update(FILLED[key](0.1))
    train(expected, 2)
    expected.param_groups[0]["lr"] = 0.2
    train(expected, 1, first=3)
    assert apart(optimizer, expected) <= 1e-12


def test_a_tensor_beside_a_number_of_a_schedule_is_looked_at_too():
    lam = torch.tensor(0.1)
    optimizer = wd.AdamW(parameters().values(), lr=0.1, weight_decay=lam)
    train(optimizer, 2)
    optimizer.param_groups[0]["lr"] = 0.05
    lam.fill_(-1.0)
    with refused(ValueError, "weight_decay=-1.0", "param_groups[0]", unchanged=optimizer):
        optimizer.step()


# Autograd through the step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
@combinations
def test_derivatives_of_the_step_are_those_of_its_differences(rules, steps):
    """With respect to the weights, every gradient, lr and both λ: what a meta-learner asks for."""
    if rules.get("decay") == "selective_projection":
        pytest.skip("it begins at a distance of zero, where a norm has no derivative")

    def trained(w, lr, weight_decay, penalty_weight, *gradients):
        param = w.clone()
        lambdas = {"weight_decay": weight_decay, **({"penalty_weight": penalty_weight} if "penalty" in rules else {})}
        peak = {"lr_max": 0.2} if rules.get("decay") in ("corrected", "independent") else {}
        optimizer = wd.Optimizer([param], lr, differentiable=True, **{**rules, **lambdas, **peak})
        (group,) = optimizer.param_groups
        given = [kept for rule in optimizer.equation(group).rules for kept in rule.keeps if not kept.changes]
        if given:  # what training began with is a constant, whatever the weights are now
            group["lr"], param.grad = 0.0, torch.ones_like(param)
            optimizer.step()
            group["lr"], state = lr, {key: value.detach() for key, value in optimizer.state[param].items()}
            optimizer.state[param] = {**state, **{kept.key: torch.full_like(state[kept.key], 0.5) for kept in given}}
        for grad in gradients:
            param.grad = grad
            optimizer.step()
        return param, *(value for name, value in optimizer.state[param].items() if name != "step")

    def leaf(values):
        return values.clone().requires_grad_()

    numbers = [leaf(torch.tensor(number, dtype=torch.float64)) for number in (0.1, 0.3, 0.2)]
    tensors = [leaf(noise((4,), torch.float64, seed)) for seed in range(1 + steps)]
    assert torch.autograd.gradcheck(trained, [tensors[0], *numbers, *tensors[1:]])


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("preset", [wd.AdamC, wd.SGDC, "independent"], ids=["AdamC", "SGDC", "independent"])
def test_the_derivative_by_an_lr_that_is_also_its_peak_is_that_of_differences(preset, capturable):
    """The peak is the size of that same lr: decay by η²λ/η_max is decay by ηλ, and by ηλ/η_max it is λ."""

    def loss_at(lr, peak=None):
        param = noise((4,), torch.float64, 1)
        options = {"weight_decay": 0.3, "differentiable": True, "capturable": capturable}
        if preset == "independent":
            optimizer = wd.Optimizer([param], lr, direction="adam", decay="independent", **options)
        else:
            optimizer = preset([param], lr=lr, **options)
        if peak is not None:
            optimizer.param_groups[0]["lr_max"] = peak
        for t in range(3):
            param.grad = noise((4,), torch.float64, 2 + t)
            optimizer.step()
        return (param - 1).square().sum()

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(loss_at(lr), lr)
    h = 1e-5
    above, below = (loss_at(torch.tensor(0.1 + way * h, dtype=torch.float64)).item() for way in (1, -1))
    assert got.item() == pytest.approx((above - below) / (2 * h), rel=1e-6)
    (held,) = torch.autograd.grad(loss_at(lr, peak=0.1), lr)  # with a peak that stays where it is
    assert abs(held.item() / got.item() - 1) > 1e-3


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_state_is_never_the_gradient_itself(direction, differentiable):
    """SGD's buffer starts as the first gradient: a copy, which zero_grad does not reach."""
    param = noise((4,), torch.float64, 1) if differentiable else Parameter(noise((4,), torch.float64, 1))
    momentum = {"momentum": 0.9} if direction == "sgd" else {}
    optimizer = wd.Optimizer([param], 0.1, direction=direction, differentiable=differentiable, **momentum)
    param.grad = noise((4,), torch.float64, 2)
    optimizer.step()
    kept = bits(optimizer.state_dict()["state"])
    param.grad.zero_()
    assert bits(optimizer.state_dict()["state"]) == kept


def test_a_step_leaves_no_graph_behind():
    params = parameters()
    optimizer = wd.AdamW(params.values(), lr=torch.tensor(0.1))
    train(optimizer, 2)
    assert all(param.is_leaf and param.requires_grad for param in params.values())
    assert not any(value.requires_grad for state in optimizer.state.values() for value in state.values())


# Numbers that stay on the device ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 2e-6)], ids=str)
@combinations
def test_a_capturable_step_gives_the_same_numbers(rules, dtype, bound):
    """To within what rounding 1 − βᵗ makes of them. In float32 β must not be rounded first: 1 − 0.999 would lose 3 digits."""
    plain = wd.Optimizer(parameters(dtype).values(), **LAM, **rules)
    lr = torch.tensor(LAM["lr"], dtype=dtype)
    device = wd.Optimizer(parameters(dtype).values(), **{**LAM, "lr": lr}, **rules, capturable=True)
    for optimizer in (plain, device):
        train(optimizer, 20)
    assert apart(device, plain) <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_capturable_step_draws_the_same_random_bits(dtype):
    plain, device = (
        wd.SGDW(parameters(dtype).values(), lr=0.125, weight_decay=0.125, seed=3, capturable=capturable)
        for capturable in (False, True)
    )
    for optimizer in (plain, device):
        train(optimizer, 10)
    assert bits(all_params(device)) == bits(all_params(plain))


# torch.compile ----------------------------------------------------------------------------------------------------------

COMPILED = {
    "SGD": (torch.float32, lambda params: wd.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1)),
    "AdamW": (torch.bfloat16, lambda params: wd.AdamW(params, lr=0.1)),
    "AdamW-capturable": (torch.float32, lambda params: wd.AdamW(params, lr=torch.tensor(0.1), capturable=True)),
    "norm": (torch.float32, lambda params: wd.Optimizer(params, 0.1, direction="adam", penalty="norm", penalty_weight=0.1)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own, on the way into its compiler
@pytest.mark.parametrize(("dtype", "build"), COMPILED.values(), ids=COMPILED)
def test_a_compiled_step_is_one_graph_with_the_same_numbers_and_a_new_lr_compiles_nothing(dtype, build):
    torch._dynamo.reset()
    plain, compiled = (build(parameters(dtype, {"weight": (4, 3)}).values()) for _ in range(2))
    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(compiled.step, backend=counter)
    graphs = []
    for t in range(1, 6):
        for optimizer in (plain, compiled):
            set_gradients(optimizer, t)
            lr = optimizer.param_groups[0]["lr"]
            optimizer.param_groups[0]["lr"] = lr.mul_(0.9) if isinstance(lr, torch.Tensor) else lr * 0.9
        plain.step()
        step()
        graphs.append(counter.frame_count)
    # A float that changes becomes a tensor of the graph, which may round elsewhere: an ulp, two in bfloat16's stochastic steps.
    assert apart(compiled, plain) <= (1e-6 if dtype == torch.float32 else 2**-7)
    assert graphs[0] == 1
    assert graphs[2] == graphs[-1]


# Scaling and averaging --------------------------------------------------------------------------------------------------


@told
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fused", [True, False, None])
@presets
def test_a_step_that_the_scaler_skips_skips_the_decay_and_the_count(preset, fused, backend):
    given = {**options_of(preset), "backend": backend}
    optimizer = preset(parameters(torch.float32).values(), **given, fused=fused)
    reference = preset(parameters(torch.float32).values(), **given)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    for t in range(1, 5):
        overflows = t == 2
        set_gradients(optimizer, t)
        for param in all_params(optimizer):
            param.grad = scaler.scale(param.grad * (math.inf if overflows else 1.0))
        before = everything(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert (everything(optimizer) == before) == overflows
        if not overflows:
            train(reference, 1, first=t)
    assert bits(all_params(optimizer)) == bits(all_params(reference))
    assert bits(optimizer.state_dict()["state"]) == bits(reference.state_dict()["state"])
    assert len(calls) == (4 if fused else 3)  # a fused optimizer of torch's runs its hooks on a skipped step, too


@told
@pytest.mark.parametrize("backend", BACKENDS)
@presets
def test_gradients_are_unscaled_and_clipped_before_the_step_unless_it_is_fused(preset, backend):
    """What Lightning and Fabric ask for before they clip: the attribute that torch's fused optimizers have."""
    options = {**options_of(preset), "backend": backend}
    assert not preset(parameters().values(), **options, foreach=True)._step_supports_amp_scaling
    assert preset(parameters().values(), **options, fused=True)._step_supports_amp_scaling
    optimizer, clipped = (preset(parameters(torch.float32).values(), **options) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(1, 4):
        for each in (optimizer, clipped):
            set_gradients(each, t)
        torch.nn.utils.clip_grad_norm_(all_params(clipped), 0.125)
        for param in all_params(optimizer):
            param.grad = scaler.scale(param.grad)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(all_params(optimizer), 0.125)
        scaler.step(optimizer)
        scaler.update()
        clipped.step()
    assert bits(all_params(optimizer)) == bits(all_params(clipped))


def test_flags_of_torchs_implementations_are_taken_and_told_of_once(monkeypatch):
    monkeypatch.setattr(wd.optim.optimizer, "_TOLD", set())
    w = Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match=r"fused=True changes is that torch\.amp\.GradScaler hands its scale") as caught:
        fused = wd.AdamW([w], fused=True)
    assert len(caught) == 1
    flags = [{"foreach": True}, {"fused": 1, "foreach": False}, {"fused": np.bool_(True)}, {"fused": False}]
    for given in (*flags, {"fused": True, "differentiable": True}, {"fused": True, "foreach": True}):
        group = wd.AdamW([w], **given).param_groups[0]
        assert all(group[flag] is (None if flag not in given else bool(given[flag])) for flag in ("foreach", "fused"))
        group = wd.AdamW([{"params": [w], **given, "differentiable": False}]).param_groups[0]
        assert all(group[flag] is (None if flag not in given else bool(given[flag])) for flag in ("foreach", "fused"))
    assert copy.deepcopy(fused)._step_supports_amp_scaling
    loaded = wd.AdamW([w])
    loaded.load_state_dict(fused.state_dict())
    assert not loaded._step_supports_amp_scaling  # as with torch's


def test_flags_that_change_nothing_are_not_told_of():
    wd.AdamW([Parameter(torch.ones(3))], fused=False, foreach=False)  # a warning would be an error here


@presets
def test_weights_are_averaged_beside_the_optimizer(preset):
    model = Linear(3, 2)
    optimizer = preset(model.parameters(), **options_of(preset))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=2)
    seen = []
    for t in range(3):
        train(optimizer, 1, first=t)
        averaged.update_parameters(model)
        scheduler.step()
        seen.append(model.weight.detach().clone())
    assert torch.allclose(averaged.module.weight, torch.stack(seen).mean(0))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


# Schedulers -------------------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=8, cycle_momentum=False),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.StepLR(o, 2)], milestones=[3]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=3),
}
schedulers = pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)


@schedulers
@presets
def test_what_a_scheduler_writes_into_the_groups_can_be_saved_and_loaded(preset, schedule):
    optimizer = preset(parameters().values(), **options_of(preset))
    scheduler = schedule(optimizer)
    for t in range(1, 4):
        train(optimizer, 1, first=t)
        scheduler.step()
    resumed = preset(copies({str(i): p for i, p in enumerate(all_params(optimizer))}).values())
    resumed.load_state_dict(optimizer.state_dict())
    assert everything(resumed) == everything(optimizer)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_cycle_finds_the_momentum_of_every_direction(direction):
    rule = wd.rules()["direction", direction]
    if not {"mu", "beta1"} & set(rule.defaults):
        pytest.skip(f"{direction} has no momentum")
    optimizer = wd.Optimizer(parameters().values(), 0.1, direction=direction)
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=4, base_momentum=0.5, max_momentum=0.75)
    group = optimizer.param_groups[0]
    cycled = []
    for t in range(3):
        train(optimizer, 1, first=t)
        cycled.append(group["betas"][0] if "betas" in group else group["momentum"])
        scheduler.step()
    assert max(cycled) == 0.75
    assert min(cycled) < 0.65


# The peak learning rate of decay="independent" --------------------------------------------------------------------------


def shrinking(params, lr=0.1, lam=0.25, **options):
    return wd.Optimizer(params, lr, direction="sgd", decay="independent", weight_decay=lam, **options)


def factors(optimizer, after_step=lambda: None, steps=6):
    """Return by what each step without a gradient multiplies the first parameter of each group, and the lr at the time."""
    found = []
    for _ in range(steps):
        firsts = [group["params"][0] for group in optimizer.param_groups]
        before = [param.detach().clone() for param in firsts]
        lrs = [float(group["lr"]) for group in optimizer.param_groups]
        for param in firsts:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        found += [((param / old).mean().item(), lr) for param, old, lr in zip(firsts, before, lrs, strict=True)]
        after_step()
    return found


def assert_peak(found, peak, lam=0.25):
    assert len({lr for _, lr in found}) > 1  # a constant lr could not tell one peak from another
    for factor, lr in found:
        assert factor == pytest.approx(1 - lr / peak * lam, rel=1e-12)


def ones():
    return [Parameter(torch.full((3,), 2.0, dtype=torch.float64))]


@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
@schedulers
def test_the_peak_is_the_schedulers(schedule, as_tensor):
    optimizer = shrinking(ones(), lr=torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1)
    scheduler = schedule(optimizer)
    peak = 0.2 if isinstance(scheduler, lr_scheduler.OneCycleLR) else 0.1
    assert_peak(factors(optimizer, scheduler.step), peak)


@schedulers
def test_the_peak_that_is_passed_comes_first(schedule):
    optimizer = shrinking(ones(), lr_max=0.4)
    scheduler = schedule(optimizer)
    assert_peak(factors(optimizer, scheduler.step), 0.4)


def by_hand(optimizer):
    """Return what warms the lr up, past the loop's own step: `for group in optimizer.param_groups: group["lr"] = …`."""
    steps = iter(range(1, 100))

    def set_lr():
        t = next(steps)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * t

    return set_lr


def test_without_a_scheduler_the_peak_is_the_lr_of_the_construction():
    optimizer = shrinking(ones())
    assert_peak(factors(optimizer, by_hand(optimizer)), 0.1)


def test_each_group_has_its_own_peak():
    optimizer = shrinking([{"params": ones()}, {"params": ones(), "lr": 0.4}, {"params": ones(), "lr_max": 0.8}])
    optimizer.add_param_group({"params": ones(), "lr": 0.2})
    found = factors(optimizer, by_hand(optimizer))
    for place, peak in enumerate((0.1, 0.4, 0.8, 0.2)):
        assert_peak(found[place::4], peak)


def test_the_peak_is_saved():
    optimizer = shrinking(ones())
    factors(optimizer, by_hand(optimizer))
    resumed = shrinking(ones(), lr=0.9)
    with pytest.warns(UserWarning, match=r"lr of param_groups\[0\]: 0.9 → 0.1"):
        resumed.load_state_dict(optimizer.state_dict())
    assert_peak(factors(resumed, by_hand(resumed)), 0.1)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("start", [0.0, 0.1])
def test_a_learning_rate_of_zero_changes_no_bit(start, scheduled, as_tensor):
    params = ones()
    before = bits(params)
    optimizer = shrinking(params, lr=torch.tensor(start) if as_tensor else start)
    if scheduled:
        lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.0) if as_tensor else 0.0
    params[0].grad = torch.zeros_like(params[0])
    optimizer.step()
    assert bits(params) == before


# Many optimizers, many processes, many threads --------------------------------------------------------------------------


@presets
def test_an_optimizer_per_parameter_may_step_inside_the_backward_pass(preset):
    def loss(params):
        return sum((param**2).sum() * place for place, param in enumerate(params, 1))

    together = list(parameters().values())
    optimizer = preset(together, **options_of(preset))
    apiece = list(parameters().values())
    optimizers = {param: preset([param], **options_of(preset)) for param in apiece}

    def step(param):
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in apiece:
        param.register_post_accumulate_grad_hook(step)
    for _ in range(4):
        loss(apiece).backward()
        optimizer.zero_grad()
        loss(together).backward()
        optimizer.step()
    assert bits(apiece) == bits(together)


@presets
def test_threads_with_an_optimizer_each_do_not_meet(preset):
    def build():
        return [preset(parameters(torch.bfloat16, seed=seed).values(), **options_of(preset)) for seed in range(4)]

    serial, parallel = build(), build()
    for optimizer in serial:
        train(optimizer, 20)
    threads = [threading.Thread(target=train, args=(optimizer, 20)) for optimizer in parallel]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [everything(optimizer) for optimizer in parallel] == [everything(optimizer) for optimizer in serial]


@presets
def test_a_copy_has_every_public_attribute(preset):
    def public(optimizer):
        return {name for name in vars(optimizer) if not name.startswith("_")}

    optimizer = preset(parameters().values())
    twin, before = copy.deepcopy(optimizer), everything(optimizer)
    assert public(twin) == public(optimizer)
    assert twin.backend == optimizer.backend
    train(twin, 1)
    assert everything(optimizer) == before


@pytest.fixture(scope="module")
def process_group():
    with one_process():
        yield


@presets
@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own, on import
@pytest.mark.usefixtures("process_group")
def test_a_sharded_optimizer_of_one_process_is_the_optimizer(preset):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    params, others = (list(parameters().values()) for _ in range(2))
    sharded = ZeroRedundancyOptimizer(params, optimizer_class=preset, **options_of(preset))
    whole = preset(others, **options_of(preset))
    for optimizer in (sharded, whole):
        for t in range(1, 4):
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.1 * t
            train(optimizer, 1, first=t)
    assert bits(params) == bits(others)
    sharded.consolidate_state_dict()
    assert bits(sharded.state_dict()["state"]) == bits(whole.state_dict()["state"])


@pytest.mark.parametrize(
    ("build", "extra"),
    [
        (wd.AdamW, {"decay": "none"}),
        (wd.AdamW, {"direction": "sgd"}),
        (wd.AdamW, {"penalty_weight": 0.5}),
        (wd.AdamW, {"lr_max": 3.0}),
        (wd.AdamW, {"momentum": 0.9}),
        (wd.SGD, {"betas": (0.9, 0.999)}),
        (lambda groups: wd.Optimizer(groups, 0.1, direction="adam"), {"momentum": 0.9}),
        (lambda groups: wd.Optimizer(groups, 0.1, direction="adam"), {"p": 3.0}),
        (wd.AdamW, {"differentiable": True}),
    ],
)
def test_a_key_that_would_do_nothing_in_a_group_is_refused(build, extra):
    param = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=next(iter(extra))):
        build([{"params": [param], **extra}])


def test_a_groups_own_rules_and_their_numbers_are_welcome():
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "direction": "sgd", "momentum": 0.9, "note": "mine"}]
    optimizer = wd.Optimizer(groups, 0.1, direction="adam", decay="decoupled", weight_decay=0.5)
    for param in params:
        param.grad = torch.zeros(2)
    optimizer.step()
    assert str(optimizer.equation(optimizer.param_groups[1])) == "sgd direction + decoupled decay"
    assert set(optimizer.state[params[1]]) == {"step", "momentum_buffer"}


@pytest.mark.parametrize(
    "change",
    [{"weight_decay": -1.0}, {"lr": float("nan")}, {"lr": "x"}, {"betas": 0.9}, {"weigth_decay": 0.9}, {"rounding": "up"}],
    ids=lambda change: next(iter(change)),
)
def test_a_value_written_into_a_group_is_checked_before_the_next_step(change):
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = wd.AdamW([{"params": [param]} for param in params], lr=0.1)
    for param in params:
        param.grad = torch.ones(2)
    optimizer.step()
    before = [param.detach().clone() for param in params]
    optimizer.param_groups[1].update(change)
    with pytest.raises((ValueError, TypeError), match=next(iter(change))):
        optimizer.step()
    assert all(torch.equal(param, was) for param, was in zip(params, before, strict=True))


def test_a_module_is_not_a_list_of_parameters():
    with pytest.raises(TypeError, match=r"model\.parameters\(\)"):
        wd.AdamW(torch.nn.Linear(2, 2))


def test_importing_the_package_imports_no_compiler_and_no_extra():
    late = ("torch._dynamo", "triton", "llvmlite", "matplotlib", "pandas", "transformers", "lightning", "sklearn")
    script = f"import sys, weightdecay; print([name for name in {late} if name in sys.modules])"
    assert output(script).strip() == "[]"


def test_a_group_of_plain_parameters_joins_groups_with_names():
    """Frameworks that unfreeze layers add them so, to a running optimizer."""
    optimizer = wd.AdamW([("a", Parameter(torch.ones(2)))], lr=0.1)
    optimizer.add_param_group({"params": [Parameter(torch.ones(3)), Parameter(torch.ones(4))]})
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["a"],
        ["param_groups[1].params[0]", "param_groups[1].params[1]"],
    ]
    assert [tuple(param.shape) for param in optimizer.param_groups[1]["params"]] == [(3,), (4,)]


def test_an_lr_that_is_no_number_is_refused_at_the_first_step_too():
    optimizer = wd.AdamW([Parameter(torch.ones(2))], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(2)
    optimizer.param_groups[0]["lr"] = np.array([0.1, 0.2])
    with pytest.raises((TypeError, ValueError), match=r"lr.*param_groups\[0\]"):
        optimizer.step()


MADE_IN_THREADS = """
import threading, torch, weightdecay as wd
wd.AdamW
errors = []
def make():
    try:
        wd.AdamW([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    except Exception as error:
        errors.append(str(error))
threads = [threading.Thread(target=make) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(errors)
"""


def test_the_first_optimizers_may_be_made_in_threads():
    """The rules are imported when the first of them is asked for, and the other threads wait."""
    assert output(MADE_IN_THREADS, timeout=120).strip() == "[]"


def test_a_thread_may_load_while_another_steps():
    params = [Parameter(torch.ones(300)) for _ in range(10)]
    optimizer = wd.AdamW(params, lr=0.1)
    for param in params:
        param.grad = torch.ones(300)
    optimizer.step()
    errors = []

    def repeat(act):
        try:
            for _ in range(60):
                act()
        except Exception as error:
            errors.append(error)

    acts = (optimizer.step, lambda: optimizer.load_state_dict(optimizer.state_dict()))
    threads = [threading.Thread(target=repeat, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
