"""Agreement is not truth: each rule, on floats and in the optimizer, against a second opinion on what it should be."""

import mpmath
import numpy as np
import pytest
import torch
from oracles import oracle
from runs import (
    RULES,
    assert_close,
    kept_at_start,
    name,
    numbers_of,
    on_floats,
    optimizer_with,
    stepped_on_floats,
    walk,
)

import weightdecay as wd

STEPS, WEIGHTS, LAMBDA, LR = 40, 7, 0.3, 0.125
TOLERANCE = 1e-12
OURS = [rule for rule in RULES if rule.function.__module__.startswith("weightdecay.")]


def cases(kind):
    """Return every rule of a kind with every setting that its oracle names."""
    rules = [rule for rule in OURS if rule.kind == kind and oracle(rule) and not rule.whole]
    return [pytest.param(rule, setting, id=f"{rule.name}-{setting}") for rule in rules for setting in oracle(rule).SETTINGS]


def data(seed=0):
    """Return weights of both signs and sizes and a history of gradients."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=WEIGHTS), draw.normal(size=(STEPS, WEIGHTS)) * draw.lognormal(size=WEIGHTS)


def schedule():
    """Return a learning rate that rises, falls and rests: no rule may count on a constant one."""
    return LR * np.abs(np.sin(np.arange(1, STEPS + 1)))


def parameter(w):
    return torch.nn.Parameter(torch.tensor(w, dtype=torch.float64))


@pytest.mark.parametrize("rule", OURS, ids=name)
def test_every_rule_has_an_oracle(rule):
    assert oracle(rule), f"write tests/oracles/{rule.kind}_{rule.name}.py: what {rule.source} says, not what the rule does"


def gradient(rule, w, start, **setting):
    """Differentiate a penalty's value by central differences with 60 digits, which leave 1e-20 at worst."""
    setting = {**setting, **{key: start.tolist() for key in rule.elements if key == "w_0"}}
    with mpmath.workdps(60):
        exact = [mpmath.mpf(x) for x in w]
        step = mpmath.mpf(10) ** -25

        def slope(i):
            up, down = ([*exact[:i], exact[i] + sign * step, *exact[i + 1 :]] for sign in (1, -1))
            value = oracle(rule).value
            return (value(up, lam=LAMBDA, **setting) - value(down, lam=LAMBDA, **setting)) / (2 * step)

        return np.array([float(slope(i)) for i in range(len(exact))])


@pytest.mark.parametrize(("rule", "setting"), cases("penalty"))
def test_a_penalty_is_the_gradient_of_its_value(rule, setting):
    for seed in range(5):
        w, (start, *_) = data(seed)
        expected = gradient(rule, w, start, **setting)
        numbers = numbers_of(rule, lam=LAMBDA, **setting)
        got = stepped_on_floats(rule, {"w": w.tolist()}, numbers, *kept_at_start(rule, start.tolist(), numbers))
        np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize(("rule", "setting"), cases("penalty"))
def test_the_optimizer_adds_the_penalty_to_the_gradient(rule, setting):
    w, gradients = data()
    param = parameter(w)
    seen = walk(optimizer_with(rule, [param], lam=LAMBDA, lr=LR, **setting), torch.tensor(gradients))
    start, plain = w, w - LR * gradients.cumsum(axis=0)
    for t in range(5):  # few enough that no weight of a kinked penalty has come to rest at its kink
        expected = w - LR * (gradients[t] + gradient(rule, w, start, **setting))
        effect = abs(expected - plain[t]).max() if abs(gradient(rule, start, start, **setting)).max() or t else None
        assert_close(seen[t], expected, tolerance=TOLERANCE, effect=effect)
        w = expected


@pytest.mark.parametrize(("rule", "setting"), [case for case in cases("penalty") if "w_0" not in case.values[0].elements])
def test_a_penalty_leaves_a_weight_of_zero_where_it_is(rule, setting):
    """Every value is even in each weight, so where it has a kink at zero the middle of its slopes is 0."""
    for w in ([0.0, -0.0, 1.5], [0.0, -0.0]):
        (pull,) = on_floats(rule, [w], numbers_of(rule, lam=LAMBDA, **setting))
        assert pull[:2] == [0, 0]


@pytest.mark.parametrize(("rule", "setting"), cases("direction"))
def test_a_direction_on_floats(rule, setting):
    _, gradients = data()
    expected = oracle(rule).updates(gradients, **setting)
    kept = kept_at_start(rule, gradients[0], numbers_of(rule, **setting))
    for t, g in enumerate(gradients, start=1):
        found = stepped_on_floats(rule, {"g": g.tolist()}, numbers_of(rule, t=t, **setting), *kept)
        assert_close(found, expected[t - 1], tolerance=TOLERANCE)


@pytest.mark.parametrize(("rule", "setting"), cases("direction"))
def test_a_direction_in_the_optimizer(rule, setting):
    w, gradients = data()
    seen = walk(optimizer_with(rule, [parameter(w)], **setting), torch.tensor(gradients), schedule().tolist())
    expected = w - (schedule()[:, None] * oracle(rule).updates(gradients, **setting)).cumsum(axis=0)
    assert_close(seen, expected, tolerance=TOLERANCE)


WHOLE = [
    pytest.param(rule, setting, shape, id=f"{rule.name}-{setting}-{shape}")
    for rule in OURS
    if rule.whole and oracle(rule)
    for setting in oracle(rule).SETTINGS
    for shape in oracle(rule).SHAPES
]


@pytest.mark.parametrize(("rule", "setting", "shape"), WHOLE)
def test_a_direction_of_whole_tensors_in_the_optimizer(rule, setting, shape):
    draw = np.random.default_rng(0)
    w, gradients = draw.normal(size=shape), draw.normal(size=(STEPS, *shape)) * draw.lognormal(size=shape)
    optimizer = wd.Optimizer([parameter(w)], LR, direction=rule.name, backend="eager", **setting)
    seen = walk(optimizer, torch.tensor(gradients), schedule().tolist())
    expected = oracle(rule).weights(w, gradients, schedule(), **setting)
    assert_close(seen, expected.reshape(STEPS, -1), tolerance=oracle(rule).TOLERANCE)


@pytest.mark.parametrize(("rule", "setting"), [case for case in cases("decay") if not case.values[0].shared])
def test_a_decay_on_floats(rule, setting):
    w, updates = data()
    expected = oracle(rule).weights(w, updates, schedule(), lam=LAMBDA, **setting)
    kept = kept_at_start(rule, w.tolist(), numbers_of(rule, **setting))
    for update, lr, after in zip(updates, schedule().tolist(), expected, strict=True):
        numbers = numbers_of(rule, lam=LAMBDA, eta=lr, eta_max=max(schedule()), **setting)
        columns = {"w": w.tolist(), "u": update.tolist(), "g": update.tolist()}
        w = np.array(stepped_on_floats(rule, columns, numbers, *kept))
        assert_close(w, after, tolerance=TOLERANCE)


@pytest.mark.parametrize(("rule", "setting"), cases("decay"))
def test_a_decay_in_the_optimizer(rule, setting):
    w, updates = data()
    peak = {"lr_max": max(schedule())} if "eta_max" in rule.numbers else {}
    optimizer = optimizer_with(rule, [parameter(w)], lam=LAMBDA, **peak, **setting)
    seen = walk(optimizer, torch.tensor(updates), schedule().tolist())
    expected = oracle(rule).weights(w, updates, schedule(), lam=LAMBDA, **setting)
    plain = oracle(rule).weights(w, updates, schedule(), lam=0.0, **setting)
    effect = abs(expected - plain).max() if "lam" in rule.numbers else None
    assert_close(seen, expected, tolerance=TOLERANCE, effect=effect)
