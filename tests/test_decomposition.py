"""A decomposition is the next step, taken apart and not done: g·w − lr·h is what `step()` then makes of every weight."""

import copy
import inspect
import json
import math
import random

import pytest
import torch
from runs import RULES, assert_close, decays_of_ones_own, fits, name, same_bits
from training import default_dtype

import weightdecay as wd
from weightdecay.update_rules.ops import absolute, where

LR, LAMBDA = 0.05, 0.3
BY_KIND = {kind: [rule for rule in RULES if rule.kind == kind] for kind in wd.update_rules.rule.KINDS}
TOLERANCE = {torch.float64: 1e-14, torch.float32: 4e-7, torch.bfloat16: 4e-7, torch.float16: 4e-7}
LOW = (torch.bfloat16, torch.float16)


def combinations():
    """Return sgd and adam with every penalty, every decay and L2 beside each of them, and the other directions with the usual.

    New rules join by themselves.
    """
    found = []
    for direction in [rule for rule in BY_KIND["direction"] if not rule.whole]:
        for penalty in [None, *BY_KIND["penalty"]]:
            for decay in [None, *BY_KIND["decay"]]:
                if penalty is not None and decay is not None and (penalty.name != "l2" or decay.name == "none"):
                    continue
                usual = {rule and rule.name for rule in (penalty, decay)} <= {None, "l2", "decoupled"}
                if not usual and direction.name not in ("sgd", "adam"):
                    continue
                if decay is not None and not fits(decay, direction.name):
                    continue
                given = {rule.kind: rule.name for rule in (direction, penalty, decay) if rule is not None}
                if penalty is not None:
                    given["penalty_weight"] = LAMBDA
                if decay is not None and "lam" in decay.numbers:
                    given["weight_decay"] = 0.75 * LAMBDA
                if decay is not None and "eta_max" in decay.numbers:
                    given["lr_max"] = 2 * LR
                shown = "-".join(rule.name for rule in (direction, penalty, decay) if rule is not None)
                found.append(pytest.param(given, id=shown))
    return found


every_combination = pytest.mark.parametrize("rules", combinations())
BY_NO_LAMBDA = ("constrained", "hyperball")
"""Decays that have no λ: a bound or a norm says how much they shrink, whatever the learning rate is."""
by_lambda = pytest.mark.parametrize(
    "rules", [case for case in combinations() if case.values[0].get("decay") not in BY_NO_LAMBDA]
)


def with_momentum(rules):
    """Return the rules with momentum, for torch's operations: a kernel for each would take half a second to compile."""
    direction = wd.rules()["direction", rules["direction"]]
    return {"backend": "eager", **rules, **({"momentum": 0.8} if "mu" in direction.defaults else {})}


def tensors(*shapes, dtype=torch.float64):
    """Return parameters with gradients, of sizes that differ from weight to weight."""
    found = []
    for shape in shapes:
        param = torch.nn.Parameter((torch.randn(shape, dtype=torch.float64) + 0.1).to(dtype))
        param.grad = (torch.randn(shape, dtype=torch.float64) * torch.logspace(-2, 1, shape[-1]).double()).to(dtype)
        found.append(param)
    return found


def all_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def real(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def frozen(optimizer):
    """Return all that a decomposition must leave as it is, as copies, with what identity and keys there are."""
    return {
        "state_dict": copy.deepcopy(optimizer.state_dict()),
        "keys": [(id(param), {key: id(value) for key, value in entry.items()}) for param, entry in optimizer.state.items()],
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
        "params": [param.detach().clone() for param in all_of(optimizer)],
        "grads": [None if param.grad is None else param.grad.clone() for param in all_of(optimizer)],
        "versions": [(param._version, param.grad is not None and param.grad._version) for param in all_of(optimizer)],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "grad": torch.is_grad_enabled(),
    }


def equal(x, y):
    if isinstance(x, torch.Tensor):
        if not isinstance(y, torch.Tensor) or x.dtype != y.dtype or x.shape != y.shape:
            return False
        return same_bits(real(x), real(y)) if x.is_floating_point() or x.is_complex() else torch.equal(x, y)
    if isinstance(x, dict):
        return isinstance(y, dict) and list(x) == list(y) and all(equal(x[key], y[key]) for key in x)
    if isinstance(x, list | tuple):
        return type(x) is type(y) and len(x) == len(y) and all(map(equal, x, y))
    return type(x) is type(y) and x == y


def decomposed(optimizer):
    """Return the splits, having seen that nothing of the optimizer changed."""
    before = frozen(optimizer)
    found = wd.decompose(optimizer)
    after = frozen(optimizer)
    for key in before:
        assert equal(before[key], after[key]), f"decompose changed the {key}"
    return found


def predicted(found, params):
    """Return what the next step makes of the parameters, from their splits."""
    return [found[p].g * real(p.detach()).to(found[p].g.dtype) - found[p].lr * found[p].h for p in params]


def unrounded(optimizer, params):
    """Return what a step makes of low-precision weights before it rounds them, by a float32 optimizer of the same state."""
    twins = [torch.nn.Parameter(param.detach().float()) for param in params]
    options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    other = wd.Optimizer(twins, backend="eager", **{key: value for key, value in options.items() if key != "lr_at_start"})
    for twin, param in zip(twins, params, strict=True):
        twin.grad = param.grad.float()
        if param in optimizer.state:
            kept = {key: value.clone() for key, value in optimizer.state[param].items() if key != "compensation"}
            other.state[twin] = kept
    other.step()
    return [twin.detach() for twin in twins]


def next_gradients(params):
    for param in params:
        param.grad = torch.randn_like(param) * 0.5


# Every combination ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=name)
@every_combination
def test_the_split_is_the_next_step(rules, dtype):
    params = tensors((5,), (3, 4), dtype=dtype)
    optimizer = wd.Optimizer(params, LR, **with_momentum(rules))
    for t in range(4):
        found = decomposed(optimizer)
        if t == 0:
            assert not optimizer.state
        assert list(found) == params
        foreseen = predicted(found, params)
        before = [param.detach().double() for param in params]
        expected = unrounded(optimizer, params) if dtype in LOW else None
        optimizer.step()
        for place, (param, each) in enumerate(zip(params, foreseen, strict=True)):
            exact = param.detach() if expected is None else expected[place]
            scale = torch.maximum(before[place].abs(), exact.double().abs()).max()
            assert (each.double() - exact.double()).abs().max() <= TOLERANCE[dtype] * scale
            if dtype in LOW:  # stochastic rounding takes a neighbour
                ulp = torch.finfo(dtype).eps * each.abs()
                assert ((param.detach().float() - each).abs() <= ulp).all()
        next_gradients(params)


@by_lambda
def test_without_lambda_g_is_one(rules):
    without = {key: value for key, value in with_momentum(rules).items() if key not in ("penalty_weight", "weight_decay")}
    (param,) = tensors((6,))
    optimizer = wd.Optimizer([param], LR, **without)
    for _ in range(2):
        split = decomposed(optimizer)[param]
        assert (split.g == 1).all()
        assert not split.decoupled > 0
        optimizer.step()


@by_lambda
def test_with_lambda_g_is_not_one(rules):
    """What λ does to the factor is far above the rounding that the other tests allow."""
    if rules["direction"] in ("lion", "signum") and rules.get("decay") is None:
        pytest.skip("a sign holds no factor of λ")
    if rules.get("decay") == "selective_projection":
        pytest.skip("it is idle in most steps")
    (param,) = tensors((6,))
    optimizer = wd.Optimizer([param], LR, **with_momentum(rules))
    optimizer.step()
    next_gradients([param])
    lam = sum(value for key, value in rules.items() if key in ("penalty_weight", "weight_decay"))
    assert ((decomposed(optimizer)[param].g - 1).abs().max() > 100 * 1e-14) == (lam > 0)


@pytest.mark.parametrize("lr", [0.0, 1e-30])
@by_lambda
def test_a_learning_rate_of_zero_divides_by_nothing(rules, lr):
    (param,) = tensors((6,))
    optimizer = wd.Optimizer([param], lr, **with_momentum(rules))
    for _ in range(2):
        split = decomposed(optimizer)[param]
        assert split.lr == lr
        assert split.g.isfinite().all()
        assert split.h.isfinite().all()
        assert_close(split.g, torch.ones(6), tolerance=1e-14)
        (foreseen,) = predicted({param: split}, [param])
        optimizer.step()
        assert_close(foreseen, param.detach(), tolerance=1e-15)


@by_lambda
def test_h_at_learning_rate_zero_is_its_limit(rules):
    """It is the h of a small learning rate, and no λ hides in it that g would have at any other."""
    (param,) = tensors((6,))
    at_zero, small = (
        decomposed(wd.Optimizer([param], lr, **{**with_momentum(rules), **({"lr_max": 1.0} if "lr_max" in rules else {})}))[
            param
        ]
        for lr in (0.0, 1e-12)
    )
    assert_close(at_zero.h, small.h, tolerance=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
@every_combination
def test_weights_at_zero_and_next_to_it(rules, dtype):
    param = torch.nn.Parameter(torch.tensor([0.0, -0.0, 1e-40, -1e-40, 1e-20, 1e-310, 1.0], dtype=dtype))
    param.grad = torch.tensor([0.5, -0.5, 0.5, 0.5, 0.0, 0.0, 0.0], dtype=dtype)
    optimizer = wd.Optimizer([param], LR, **with_momentum(rules))
    for _ in range(2):
        split = decomposed(optimizer)[param]
        assert split.g.isfinite().all()
        assert split.h.isfinite().all()
        (foreseen,) = predicted({param: split}, [param])
        before = param.detach().clone()
        optimizer.step()
        bound = TOLERANCE[dtype] * torch.maximum(before.abs(), param.detach().abs()).clamp_min(LR)
        assert ((foreseen - param.detach()).abs() <= bound).all()
        assert str(wd.decompose(optimizer))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "compensated"])
@pytest.mark.parametrize("dtype", LOW, ids=name)
def test_low_precision_is_split_as_it_computes(dtype, rounding):
    """With compensation the weight that is split is the whole one, remainder and all, once there is one."""
    (param,) = tensors((400,), dtype=dtype)
    optimizer = wd.AdamW([param], LR, weight_decay=LAMBDA, rounding=rounding)
    for _ in range(3):
        split = decomposed(optimizer)[param]
        assert split.g.dtype == torch.float32
        assert_close(split.g, torch.full((400,), 1 - LR * LAMBDA), tolerance=1e-6, effect=LR * LAMBDA)
        w = param.detach().float()
        if rounding == "compensated" and optimizer.state:
            w = wd.backends.rounding.restored(param.detach(), optimizer.state[param]["compensation"])
        foreseen = split.g * w - LR * split.h
        optimizer.step()
        ulp = torch.finfo(dtype).eps * foreseen.abs()
        assert ((param.detach().float() - foreseen).abs() <= ulp * (0.51 if rounding != "stochastic" else 1)).all()
        if rounding == "compensated":
            now = wd.backends.rounding.restored(param.detach(), optimizer.state[param]["compensation"])
            assert_close(now, foreseen, tolerance=1e-6)
        next_gradients([param])


RUNS = [
    {"direction": "adam", "penalty": "l2", "penalty_weight": LAMBDA},
    {"direction": "sgd", "momentum": 0.9, "decay": "cautious", "weight_decay": LAMBDA},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("rules", RUNS, ids=["adam-l2", "sgd-cautious"])
def test_a_run_that_was_looked_at_is_the_run_that_was_not(rules, dtype):
    """Bit for bit, on the kernels, with every step decomposed before and after."""
    seen = []
    for looked_at in (True, False):
        torch.manual_seed(1)
        (param,) = tensors((50,), dtype=dtype)
        optimizer = wd.Optimizer([param], LR, **rules)
        for _ in range(4):
            if looked_at:
                decomposed(optimizer)
            optimizer.step()
            if looked_at:
                decomposed(optimizer)
            next_gradients([param])
        seen.append((param.detach().clone(), copy.deepcopy(optimizer.state_dict())))
    assert equal(*seen)


@pytest.mark.parametrize("dtype", LOW, ids=name)
def test_a_compensated_weight_is_split_with_its_remainder(dtype):
    """L1's factor is that of the whole weight, 1 − ηλ/|w|; the rounded one alone would be some ten thousandths off."""
    (param,) = tensors((400,), dtype=dtype)
    rules = {"direction": "sgd", "penalty": "l1", "penalty_weight": 1.0, "rounding": "compensated", "backend": "eager"}
    optimizer = wd.Optimizer([param], LR, **rules)
    optimizer.step()
    split = decomposed(optimizer)[param]
    w = wd.backends.rounding.restored(param.detach(), optimizer.state[param]["compensation"])
    assert_close(split.g * w, w - LR * w.sign(), tolerance=1e-6, effect=1e-3)


# torch.optim and the presets ------------------------------------------------------------------------------------------------

PAIRS = [
    ("SGD", {"weight_decay": LAMBDA}),
    ("SGD", {"weight_decay": LAMBDA, "momentum": 0.9}),
    ("SGD", {"weight_decay": LAMBDA, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"weight_decay": LAMBDA, "momentum": 0.9, "dampening": 0.5}),
    ("SGD", {"weight_decay": LAMBDA, "momentum": 0.9, "maximize": True}),
    ("SGD", {"weight_decay": torch.tensor(LAMBDA, dtype=torch.float64), "lr": torch.tensor(LR, dtype=torch.float64)}),
    ("Adam", {"weight_decay": LAMBDA}),
    ("Adam", {"weight_decay": LAMBDA, "amsgrad": True}),
    ("Adam", {"weight_decay": LAMBDA, "maximize": True}),
    ("Adam", {"weight_decay": LAMBDA, "decoupled_weight_decay": True}),
    ("Adam", {"weight_decay": LAMBDA, "betas": (0.5, 0.75), "eps": 0.1}),
    ("AdamW", {"weight_decay": LAMBDA}),
    ("AdamW", {"weight_decay": LAMBDA, "amsgrad": True}),
    ("AdamW", {"weight_decay": LAMBDA, "maximize": True, "amsgrad": True}),
    ("AdamW", {"weight_decay": LAMBDA, "lr": torch.tensor(LR, dtype=torch.float64)}),
]
PAIRS += [(name, {"weight_decay": LAMBDA}) for name in ("NAdam", "RAdam", "Adamax", "Adagrad")]
PAIRS += [("Adadelta", {"weight_decay": LAMBDA, "lr": 1.0, "eps": 1e-2})]
PAIRS += [("NAdam", {"weight_decay": LAMBDA, "decoupled_weight_decay": True, "maximize": True})]
PAIRS += [("RMSprop", {"weight_decay": LAMBDA, "centered": True, "momentum": 0.9})]
TORCHS = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]


def cases():
    found = []
    for optimizer, options in PAIRS:
        shown = f"{optimizer}-" + "-".join(f"{key}={value}" for key, value in options.items() if key != "weight_decay")
        known = inspect.signature(getattr(torch.optim, optimizer)).parameters
        for flags in [None, *(flags for flags in TORCHS if set(flags) <= set(known))]:
            tensor = any(isinstance(value, torch.Tensor) for value in options.values())
            if flags and tensor and flags != {"foreach": False}:
                continue  # torch's own implementations refuse these
            of = "ours" if flags is None else "torch" + "".join(f"-{key}={value}" for key, value in flags.items())
            found.append(pytest.param(optimizer, options, flags, id=f"{shown}-{of}"))
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
@pytest.mark.parametrize(("optimizer", "options", "flags"), cases())
def test_an_optimizer_of_torchs_is_split_as_it_steps(optimizer, options, flags, dtype):
    params = tensors((5,), (3, 4), dtype=dtype)
    make = getattr(wd if flags is None else torch.optim, optimizer)
    running = make(params, **{"lr": LR, **options, **(flags or {})})
    for t in range(4):
        found = decomposed(running)
        assert found.title == optimizer
        if t == 0 and optimizer != "Adagrad":  # which has its state from the start
            assert not running.state
        foreseen = predicted(found, params)
        before = [param.detach().clone() for param in params]
        with default_dtype(dtype):  # in which torch's NAdam keeps the product of its momenta
            running.step()
        for w, param, each in zip(before, params, foreseen, strict=True):
            scale = torch.maximum(w.abs(), param.detach().abs()).max()
            bound = (1e-12 if dtype == torch.float64 else 2e-6) * scale
            assert (each - param.detach()).abs().max() <= bound
            shrink = (found[param].g - 1).abs().max() * w.abs().max()
            assert shrink >= 100 * bound
        next_gradients(params)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("module", [torch.optim, wd], ids=["torch", "ours"])
def test_complex_parameters_are_pairs_of_reals(module, optimizer):
    param = torch.nn.Parameter(torch.tensor([1 + 2j, -0.5 + 0.25j, 3j], dtype=torch.complex128))
    param.grad = torch.tensor([0.5 - 1j, 2 + 2j, -1 + 0j], dtype=torch.complex128)
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    running = getattr(module, optimizer)([param], lr=LR, weight_decay=LAMBDA, **options)
    for _ in range(3):
        found = decomposed(running)
        assert found[param].g.shape == found[param].h.shape == (3, 2)
        (foreseen,) = predicted(found, [param])
        running.step()
        assert_close(foreseen, real(param.detach()), tolerance=1e-12, effect=(found[param].g - 1).abs().max())


@pytest.mark.parametrize("module", [torch.optim, wd], ids=["torch", "ours"])
def test_every_group_has_its_own_numbers(module):
    one, two, three = tensors((4,), (4,), (4,))
    groups = [
        {"params": [one], "weight_decay": 0.5},
        {"params": [two], "weight_decay": 0.0, "lr": 1.0, "betas": (0.5, 0.5)},
        {"params": [three], "maximize": True, "eps": 1.0},
    ]
    running = module.AdamW(groups, lr=LR, weight_decay=LAMBDA)
    for _ in range(3):
        found = decomposed(running)
        foreseen = predicted(found, [one, two, three])
        assert [found[param].lr for param in (one, two, three)] == [LR, 1.0, LR]
        shrinks = [(1 - found[param].g).tolist() for param in (one, two, three)]
        for shrink, expected in zip(shrinks, (LR * 0.5, 0.0, LR * LAMBDA), strict=True):
            assert shrink == pytest.approx([expected] * 4, abs=1e-15)
        assert [found[param].decoupled for param in (one, two, three)] == pytest.approx([LR * 0.5, 0.0, LR * LAMBDA])
        running.step()
        for param, each in zip((one, two, three), foreseen, strict=True):
            assert_close(each, param.detach(), tolerance=1e-12)


@pytest.mark.parametrize("module", [torch.optim, wd], ids=["torch", "ours"])
def test_a_parameter_without_a_gradient_is_left_out(module):
    one, two = tensors((4,), (4,))
    two.grad = None
    running = module.AdamW([one, two], lr=LR, weight_decay=LAMBDA)
    found = decomposed(running)
    assert list(found) == [one]
    assert two not in found
    assert len(found) == 1
    running.step()
    two.grad = torch.ones_like(two)  # its first step is the other's second
    found = decomposed(running)
    foreseen = predicted(found, [one, two])
    running.step()
    for param, each in zip((one, two), foreseen, strict=True):
        assert_close(each, param.detach(), tolerance=1e-12)


def test_a_scheduler_and_a_loaded_state_are_seen():
    (param,) = tensors((4,))
    running = torch.optim.SGD([param], lr=LR, weight_decay=LAMBDA, momentum=0.9, dampening=0.5)
    scheduler = torch.optim.lr_scheduler.CyclicLR(running, 0.01, 0.5, cycle_momentum=False)
    for _ in range(3):
        running.step()
        scheduler.step()
    (foreseen,) = predicted(decomposed(running), [param])
    running.step()
    assert_close(foreseen, param.detach(), tolerance=1e-12)
    twin = torch.nn.Parameter(param.detach().clone())
    twin.grad = torch.ones_like(twin)
    other = torch.optim.SGD([twin], lr=LR, weight_decay=LAMBDA, momentum=0.9, dampening=0.5)
    other.load_state_dict(running.state_dict())
    (foreseen,) = predicted(decomposed(other), [twin])
    other.step()
    assert_close(foreseen, twin.detach(), tolerance=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4), (0,)], ids=str)
def test_every_shape_is_kept(shape):
    param = torch.nn.Parameter(torch.ones(shape))
    param.grad = torch.ones(shape)
    split = decomposed(wd.AdamW([param], weight_decay=LAMBDA))[param]
    assert split.g.shape == split.h.shape == shape


def test_layouts_are_no_matter():
    param = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64).t())
    param.grad = torch.randn(3, 4, dtype=torch.float64).t()
    running = wd.Adam([param], lr=LR, weight_decay=LAMBDA)
    for _ in range(2):
        (foreseen,) = predicted(decomposed(running), [param])
        running.step()
        assert_close(foreseen, param.detach(), tolerance=1e-14)


def test_the_splits_are_copies():
    (param,) = tensors((4,))
    running = wd.SGD([param], lr=LR, weight_decay=LAMBDA, momentum=0.9)
    running.step()
    found = wd.decompose(running)
    before = frozen(running)
    found[param].g.zero_()
    found[param].h.zero_()
    assert equal(before, frozen(running))
    assert not found[param].g.requires_grad


# The seeds' result, and rules of one's own ----------------------------------------------------------------------------------


def test_adam_with_l2_decays_each_weight_by_its_own_share():
    """g = 1 − ηλ(1 − β₁)/(1 − β₁ᵗ)/(√v̂ + ε) of the gradient with the penalty in it; with AdamW every weight has 1 − ηλ."""
    (param,) = tensors((50,))
    adam = torch.optim.Adam([param], lr=LR, weight_decay=LAMBDA)
    for _ in range(3):
        adam.step()
        next_gradients([param])
    split = wd.decompose(adam)[param]
    total = param.grad + LAMBDA * param.detach()
    v_hat = (0.999 * adam.state[param]["exp_avg_sq"] + 0.001 * total**2) / (1 - 0.999**4)
    expected = 1 - LR * LAMBDA * (1 - 0.9) / (1 - 0.9**4) / (v_hat.sqrt() + 1e-8)
    assert_close(1 - split.g, 1 - expected, tolerance=1e-10)
    assert split.summary().ratio > 2
    w = torch.optim.AdamW([param], lr=LR, weight_decay=LAMBDA)
    assert_close(wd.decompose(w)[param].g, torch.full((50,), 1 - LR * LAMBDA, dtype=torch.float64), tolerance=1e-15)
    assert wd.decompose(w)[param].summary().ratio == pytest.approx(1, abs=1e-9)


def own_rules():
    """Register decays and a direction of shapes that the library's have not."""

    decays_of_ones_own()

    @wd.decay(source="nobody")
    def cubed(w, u, *, eta, lam):
        return w - eta * u - eta * lam * w * w * w

    @wd.decay(source="nobody")
    def after(w, u, *, eta, lam):
        return where(absolute(w - eta * u) > 0.5, (1 - eta * lam) * (w - eta * u), w - eta * u)

    @wd.direction(source="nobody", state={"m": "buffer"}, whole=True)
    def turned(g, m, *, t, mu=0.5):
        m = mu * m + g
        return m / m.norm(), m


@pytest.mark.parametrize("penalty", [None, "l2", "l1"])
@pytest.mark.parametrize("decay", ["my_soft", "my_divided", "my_by_norm", "cubed", "after", "cautious"])
@pytest.mark.parametrize("direction", ["sgd", "adam", "turned"])
def test_rules_of_ones_own_are_split_as_they_step(own_registry, direction, decay, penalty):
    own_rules()
    (param,) = tensors((12,))
    lam = {"penalty": penalty, "penalty_weight": LAMBDA} if penalty else {}
    optimizer = wd.Optimizer([param], LR, direction=direction, decay=decay, weight_decay=LAMBDA, backend="eager", **lam)
    for _ in range(3):
        found = decomposed(optimizer)
        (foreseen,) = predicted(found, [param])
        effect = (found[param].g - 1).abs().max()
        optimizer.step()
        assert_close(foreseen, param.detach(), tolerance=1e-13, effect=effect)
        next_gradients([param])


# What it shows --------------------------------------------------------------------------------------------------------------


def trained(**options):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
    running = torch.optim.Adam(model.named_parameters(), lr=LR, **{"weight_decay": LAMBDA, **options})
    for _ in range(2):
        running.zero_grad()
        model(torch.randn(6, 4)).square().sum().backward()
        running.step()
    return running


def test_it_prints_a_line_per_tensor():
    found = wd.decompose(trained())
    lines = str(found).splitlines()
    assert lines[0] == "Adam: the share 1 − g that each weight loses in the next step"
    assert [line.split()[0] for line in lines[3:7]] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert "the momentum holds past penalties" in str(found)
    assert "past penalties" not in str(wd.decompose(trained(weight_decay=0.0)))
    assert repr(found) == str(found)
    assert not any(line != line.rstrip() for line in lines)


def test_the_summary_is_of_the_shrinks():
    (param,) = tensors((1001,))
    running = wd.Optimizer([param], LR, direction="sgd", penalty="l1", penalty_weight=LAMBDA)
    split = wd.decompose(running)[param]
    shrink = (1 - split.g).sort().values.tolist()
    found = split.summary()
    assert found.weakest == shrink[0]
    assert found.strongest == shrink[-1]
    assert [found.low, found.median, found.high] == pytest.approx([shrink[50], shrink[500], shrink[950]])
    assert found.acting == 1
    assert found.ratio == pytest.approx(shrink[-1] / shrink[0])
    assert found.half_life == pytest.approx(math.log(0.5) / math.log(1 - shrink[500]))
    assert found.shape == [1001]


def test_a_large_tensor_is_summed_up_as_a_small_one():
    """More than 2**20 weights are looked at in part for a quantile; the ends are exact."""
    weights = torch.linspace(0.5, 1.5, 2**20 + 77)
    param = torch.nn.Parameter(weights)
    param.grad = torch.zeros_like(param)
    split = wd.decompose(wd.Optimizer([param], LR, direction="sgd", penalty="l1", penalty_weight=LAMBDA))[param]
    found, exact = split.summary(), split.shrink.double()
    assert ((1 - split.g.double()) - exact).abs().max() <= 2**-24
    assert (found.weakest, found.strongest) == (exact.min(), exact.max())
    assert [found.low, found.median, found.high] == pytest.approx(
        torch.quantile(exact[::7], torch.tensor([0.05, 0.5, 0.95]).double()).tolist(), rel=1e-2
    )


def test_a_small_shrink_keeps_its_digits():
    """1e-7 in float32: g itself is 1 − 1.19e-7 there, and the summary must not take that for what λ says."""
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.ones(5)
    split = wd.decompose(wd.SGD([param], lr=1e-3, weight_decay=1e-4))[param]
    assert split.summary().median == pytest.approx(1e-7, rel=1e-6)
    assert 1 - split.g[0].item() == pytest.approx(2**-23)


@pytest.mark.parametrize(("make", "lost"), [(torch.optim.AdamW, 1.0), (wd.AdamW, 0.0)], ids=["torch", "ours"])
def test_it_says_where_a_dtype_loses_the_decay(make, lost):
    param = torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    found = wd.decompose(make([param], lr=3e-4, weight_decay=0.1))
    assert found[param].summary().lost == lost
    assert ("rounded away in 1 of 1 tensors" in str(found)) == bool(lost)


@pytest.mark.parametrize(
    ("decay", "number"), [("decoupled", 1e-3), ("independent", 1e-2), ("cautious", 1e-3), (None, 2e-3)], ids=str
)
def test_the_one_shrink_is_that_of_the_rule(decay, number):
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.ones(5)
    lambdas = {"weight_decay": 0.01} if decay else {"penalty": "l1", "penalty_weight": 0.02}
    optimizer = wd.Optimizer([param], 0.1, direction="adam", decay=decay, **lambdas)
    assert wd.decompose(optimizer)[param].decoupled == pytest.approx(number, rel=1e-9)


def test_what_has_no_split_is_a_key_error_in_words():
    found = wd.decompose(trained())
    with pytest.raises(KeyError, match="had a gradient"):
        found["0.weight"]


def test_it_is_plain_data():
    found = wd.decompose(trained())
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["optimizer"] == "Adam"
    assert [each["name"] for each in data["tensors"]] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [each["shape"] for each in data["tensors"]] == [[8, 4], [8], [3, 8], [3]]


def test_a_weight_that_never_halves_is_plain_data():
    json.dumps(wd.decompose(trained(weight_decay=0.0)).to_dict(), allow_nan=False)


def test_an_empty_tensor_is_shown():
    param = torch.nn.Parameter(torch.zeros(0, 3))
    param.grad = torch.zeros(0, 3)
    assert "(0, 3)" in str(wd.decompose(wd.SGD([param], lr=LR)))


def test_names_come_from_the_groups():
    model = torch.nn.Linear(3, 2)
    model(torch.ones(3)).sum().backward()
    found = wd.decompose(wd.AdamW(model.named_parameters(), weight_decay=LAMBDA))
    assert [split.name for split in found.values()] == ["weight", "bias"]
    found = wd.decompose(wd.AdamW(model.parameters(), weight_decay=LAMBDA))
    assert [split.name for split in found.values()] == [f"param_groups[0]['params'][{place}]" for place in range(2)]


HEADS = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<"}


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PNG"])
def test_it_draws(tmp_path, suffix):
    found = wd.decompose(trained())
    for path in (tmp_path / f"spread{suffix}", str(tmp_path / f"again{suffix}")):
        found.plot(path)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"again{suffix}", f"spread{suffix}"]
    for file in files:
        content = file.read_bytes()
        assert content.startswith(HEADS[suffix.lower()])
        assert len(content) > 1000
    if suffix == ".svg":
        import xml.etree.ElementTree

        xml.etree.ElementTree.fromstring(files[0].read_text(encoding="utf-8"))


def test_it_draws_a_decay_that_flips_weights(tmp_path):
    (param,) = tensors((4,))
    wd.decompose(wd.SGD([param], lr=10.0, weight_decay=1.0)).plot(tmp_path / "strong.svg")
    assert len(list(tmp_path.iterdir())) == 1


def test_there_is_no_picture_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="is λ 0"):
        wd.decompose(trained(weight_decay=0.0)).plot(tmp_path / "spread.svg")
    with pytest.raises(FileNotFoundError, match="no folder"):
        wd.decompose(trained()).plot(tmp_path / "nowhere" / "spread.svg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["spread.pdf", "spread", "spread.png.txt"])
def test_other_pictures_are_refused(tmp_path, file):
    with pytest.raises(ValueError, match=r"neither a \.png nor a \.svg"):
        wd.decompose(trained()).plot(tmp_path / file)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_leaves_nothing_and_the_old_one(tmp_path, monkeypatch):
    found, path = wd.decompose(trained()), tmp_path / "spread.svg"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        found.plot(path)
    assert [file.name for file in tmp_path.iterdir()] == ["spread.svg"]
    assert path.read_text(encoding="utf-8") == "old"
    with pytest.raises(FileNotFoundError):
        found.plot(tmp_path / "no" / "spread.svg")


# What is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [torch.optim.LBFGS, torch.optim.Rprop, torch.optim.ASGD])
def test_another_optimizer_is_refused(make):
    running = make(tensors((3,)))
    with pytest.raises(TypeError, match=rf"{make.__name__}.*only this package's optimizers, torch\.optim\.SGD.*AdamW"):
        wd.decompose(running)


@pytest.mark.parametrize("given", [None, "adam", torch.nn.Linear(2, 2), tensors((2,))], ids=lambda value: type(value).__name__)
def test_what_is_no_optimizer_is_refused(given):
    with pytest.raises(TypeError, match=f"optimizer is a {type(given).__name__}"):
        wd.decompose(given)


class Changed(torch.optim.AdamW):
    """A subclass, which may step otherwise."""


def test_a_subclass_of_torchs_is_refused():
    with pytest.raises(TypeError, match="Changed"):
        wd.decompose(Changed(tensors((3,))))


@pytest.mark.parametrize("module", [torch.optim, wd], ids=["torch", "ours"])
def test_without_gradients_it_says_what_to_do(module):
    running = module.SGD([torch.nn.Parameter(torch.ones(2))], lr=LR)
    with pytest.raises(ValueError, match=r"no parameter has a gradient: call loss\.backward\(\) first"):
        wd.decompose(running)


@pytest.mark.parametrize("module", [torch.optim, wd], ids=["torch", "ours"])
def test_a_sparse_gradient_is_refused_by_name(module):
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"gradient of .*sparse"):
        wd.decompose(module.SGD(table.parameters(), lr=LR))
    named = module.SGD(table.named_parameters(), lr=LR)
    with pytest.raises(RuntimeError, match="gradient of 'weight' is sparse"):
        wd.decompose(named)


def test_a_differentiable_optimizer_of_torchs_is_split():
    (param,) = tensors((3,))
    running = torch.optim.AdamW([param], lr=LR, weight_decay=LAMBDA, differentiable=True)
    assert_close(wd.decompose(running)[param].g, torch.full((3,), 1 - LR * LAMBDA, dtype=torch.float64), tolerance=1e-15)


@pytest.mark.parametrize("key", ["layer", "lr_scale", "name"])
def test_a_groups_key_of_the_users_own_is_no_matter(key):
    (param,) = tensors((3,))
    running = torch.optim.AdamW([{"params": [param], key: 0.5}], lr=LR, weight_decay=LAMBDA)
    assert_close(wd.decompose(running)[param].g, torch.full((3,), 1 - LR * LAMBDA, dtype=torch.float64), tolerance=1e-15)


def test_an_optimizer_with_an_attached_decay_is_refused_and_not_called_one_without_decay():
    (param,) = tensors((3,))
    running = torch.optim.AdamW([param], lr=LR, weight_decay=LAMBDA)
    attachment = wd.attach(running, "cautious")
    for look in (wd.decompose, lambda optimizer: wd.remaining(optimizer, None, steps=3)):
        with pytest.raises(ValueError, match=r"cautious decay is attached.*Meter"):
            look(running)
    attachment.detach()
    assert_close(wd.decompose(running)[param].g, torch.full((3,), 1 - LR * LAMBDA, dtype=torch.float64), tolerance=1e-15)


def test_names_come_from_the_model_else_from_the_groups():
    model = torch.nn.ModuleDict({"module": torch.nn.ModuleDict({"net": torch.nn.Linear(3, 2)})})  # as in a wrapper
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    plain = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    names = ["net.weight", "net.bias"]
    assert [split.name for split in wd.decompose(plain, model=model).values()] == names
    assert [split.name for split in wd.decompose(plain).values()] == [
        "param_groups[0]['params'][0]",
        "param_groups[0]['params'][1]",
    ]
    assert [split.name for split in wd.decompose(torch.optim.AdamW(wd.param_groups(model, 0.5))).values()] == names
    part = torch.optim.AdamW(model["module"]["net"].named_parameters())
    assert [split.name for split in wd.decompose(part).values()] == ["weight", "bias"]
    assert [split.name for split in wd.decompose(part, model).values()] == names
    late = torch.nn.Parameter(torch.ones(2))
    late.grad = torch.ones(2)
    assert wd.decompose(torch.optim.AdamW([("late", late)]), model)[late].name == "late"
    with pytest.raises(TypeError, match="model is a generator"):
        wd.decompose(plain, model.parameters())
