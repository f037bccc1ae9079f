"""What every rule obeys on every dtype. The tests walk the registry: a rule in its folder is a rule under these laws."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import (
    DIRECTIONS,
    DTYPES,
    NOT_THE_IDENTITY,
    RULES,
    WITH_LAMBDA,
    assert_close,
    bits,
    edges,
    fits,
    gradients,
    laid_for,
    name,
    numbers_of,
    on_floats,
    optimizer_with,
    same_bits,
    twin,
    walk,
    weights,
    zeros,
)
from torch.nn import Parameter

import weightdecay as wd
from weightdecay.backends import eager, rounding
from weightdecay.update_rules.reductions import REDUCTIONS

LOW_PRECISION = (torch.bfloat16, torch.float16)
ROUNDINGS = [
    *((dtype, "nearest") for dtype in DTYPES),
    *itertools.product(LOW_PRECISION, ("stochastic", "compensated")),
]

every_rule = pytest.mark.parametrize("rule", RULES, ids=name)
every_plain_rule = pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.whole], ids=name)
every_lambda = pytest.mark.parametrize("rule", WITH_LAMBDA, ids=name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name)
every_rounding = pytest.mark.parametrize(("dtype", "how"), ROUNDINGS, ids=name)


USUAL = {"l2", "decoupled"}
BESIDE = [
    pytest.param(rule, direction, id=f"{name(rule)}-{direction}")
    for rule in WITH_LAMBDA
    for direction in DIRECTIONS
    if rule.name not in NOT_THE_IDENTITY and fits(rule, direction) and (rule.name in USUAL or direction in ("sgd", "adam"))
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=name)
@pytest.mark.parametrize(("rule", "direction"), BESIDE)
def test_a_lambda_of_zero_is_the_identity(rule, direction, dtype):
    """Bit for bit and over many steps, whatever the direction keeps: the λ = 0 of a sweep is the baseline itself."""
    plain, history = weights(dtype), gradients()
    zero, tensor = twin(plain), twin(plain)
    expected = walk(wd.Optimizer([plain], lr=0.1, direction=direction), history)
    assert same_bits(walk(optimizer_with(rule, [zero], lam=0.0, direction=direction), history), expected)
    assert same_bits(walk(optimizer_with(rule, [tensor], lam=torch.tensor(0.0), direction=direction), history), expected)


@every_dtype
@every_lambda
def test_lambda_is_seen(rule, dtype):
    """Its effect is a hundred times what a comparison on this dtype would forgive, or no test could tell it from nothing."""
    decayed, history = weights(dtype), gradients()
    plain = twin(decayed)
    with_lambda = walk(optimizer_with(rule, [decayed], lam=2.0, rounding="nearest"), history)
    without = walk(wd.Optimizer([plain], lr=0.1, direction="sgd", rounding="nearest"), history)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps / 2)
    assert (with_lambda - without).double().abs().max() >= 100 * tolerance


@pytest.mark.parametrize(
    ("dtype", "how", "number"),
    [
        (torch.float64, "nearest", torch.tensor),
        (torch.float32, "nearest", float),
        (torch.bfloat16, "stochastic", float),
        (torch.float16, "compensated", float),
    ],
    ids=lambda value: "tensor" if value is torch.tensor else getattr(value, "__name__", name(value)),
)
@every_rule
def test_a_learning_rate_of_zero_changes_no_bit(rule, dtype, how, number):
    """Distributed checkpointing does such a step to create the state, before the first real step or after some."""
    largest = 1e150 if any(key != "numel" and not REDUCTIONS[key].norm for key in rule.reductions) else math.inf
    sizes = edges(dtype)
    bound = {"kappa": 180.0} if rule.name == "constrained" else {}  # else it takes every weight to zero, and they stay there
    sizes = sizes[sizes.abs() < 1] if bound else sizes
    param = torch.nn.Parameter(laid_for(rule, torch.cat([sizes[sizes.abs() < largest], torch.randn(200).to(dtype)])))
    nothing, something = torch.zeros(param.numel()), torch.randn(param.numel())
    something[: param.numel() - 200] = 0
    optimizer = optimizer_with(rule, [param], lam=0.5, lr=number(0.0), rounding=how, **bound)
    for _ in range(3):
        before = param.detach().clone()
        walk(optimizer, [nothing, nothing], lrs=[number(0.0)] * 2)
        assert same_bits(param + 0, before + 0)  # + 0: a −0 may become 0 where momentum is negative, as in torch.optim
        walk(optimizer, [something], lrs=[number(0.125)])
        assert not same_bits(param, before)


@pytest.mark.parametrize("number", [float, torch.tensor], ids=["float-lr", "tensor-lr"])
@every_rule
def test_a_schedule_that_never_leaves_zero_changes_no_bit(rule, number):
    """The peak of such a learning rate is 0 as well, and nothing may divide by it."""
    param = weights()
    before = param.detach().clone()
    optimizer = optimizer_with(rule, [param], lam=0.5, lr=number(0.0))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    for _ in range(3):
        walk(optimizer, zeros(1))
        scheduler.step()
    assert same_bits(param, before)


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=name)
def test_stochastic_rounding_leaves_every_number_that_the_dtype_has(dtype):
    """Whatever the random bits are: a weight that was not moved is where it was."""
    every = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[torch.isfinite(every)]
    for pattern in (0, 0x1FFF, 0x8000, 0xFFFF, 0xFFFFFFFF):
        rounded = rounding.stochastic(every.float(), dtype, torch.full(every.shape, pattern, dtype=torch.int64))
        assert same_bits(rounded, every), f"{(bits(rounded) != bits(every)).sum()} of {every.numel()} numbers have changed"


def agree(rule, elements, numbers):
    """Assert that the eager backend gives what the rule gives on floats, and no NaN; return it, a list per result."""
    expected = on_floats(rule, elements, numbers)
    values = {key: torch.tensor(column, dtype=torch.float64) for key, column in zip(rule.elements, elements, strict=True)}
    asked = {key: eager.reduce(REDUCTIONS[key], values, numbers) for key in rule.reductions}
    found = eager.bound(rule.function, torch.float64)(*values.values(), **numbers, **asked)
    found = found if isinstance(found, tuple) else (found,)
    found = torch.stack([torch.as_tensor(each, dtype=torch.float64).expand(len(expected[0])) for each in found])
    assert not found.isnan().any()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)
    return expected


def combinations(values, count):
    """Return a column per place: all ways to fill `count` places with the values."""
    return [list(column) for column in zip(*itertools.product(values, repeat=count), strict=True)]


@pytest.mark.parametrize("values", [edges().tolist(), [-3.0, -0.7, 0.01, 0.4, 1.9]], ids=["edges", "inside"])
@every_plain_rule
def test_a_rule_on_floats_is_the_rule_on_tensors(rule, values):
    """The page as Python reads it is what the eager backend runs, at zeros, subnormal and huge numbers too."""
    if any({"g", "v_hat"} & set(REDUCTIONS[key].elements) for key in rule.reductions):
        pytest.skip("it asks for what a decay has not among its elements")
    if any(key != "numel" and not REDUCTIONS[key].norm for key in rule.reductions):
        values = [value for value in values if abs(value) < 1e150]  # whose squares are numbers
    if rule.kind != "direction":
        agree(rule, combinations(values, len(rule.elements)), numbers_of(rule, lam=0.3))
        return
    history = combinations(values, 3)
    state = [[0.0] * len(history[0]) for _ in rule.state]
    for t, g in enumerate(history, start=1):
        _, *state = agree(rule, [g, *state], numbers_of(rule, t=t))[: 1 + len(rule.state)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
@every_rule
def test_no_weight_is_lost_at_the_edges(rule, dtype):
    """In the optimizer too, where reductions see the whole tensor: of zeros, of tiny numbers, of all sizes side by side."""
    small = [edge for edge in edges(dtype).tolist() if abs(edge) < 1]
    every = edges(dtype).tolist()
    if any(key != "numel" and not REDUCTIONS[key].norm for key in rule.reductions):
        every = [edge for edge in every if abs(edge) < 1e150]  # whose squares are numbers
    for values in ([0.0], [-0.0, 0.0], small, every):
        param = torch.nn.Parameter(laid_for(rule, torch.tensor(values, dtype=dtype)))
        optimizer = optimizer_with(rule, [param], lam=0.5)
        ones = torch.ones(len(values))
        assert not walk(optimizer, [0 * ones, ones, -ones]).isnan().any()


@every_dtype
@every_rule
def test_maximize_flips_the_gradient_and_never_the_decay(rule, dtype):
    down, history = weights(dtype), gradients()
    up = twin(down)
    descent = walk(optimizer_with(rule, [down], lam=0.5), history)
    ascent = walk(optimizer_with(rule, [up], lam=0.5, maximize=True), [-gradient for gradient in history])
    assert same_bits(ascent, descent)


@every_rule
def test_a_parameter_without_a_gradient_does_not_move(rule):
    """Nor does it decay or get a state; its neighbour moves as if it were alone."""
    frozen, neighbour, history = weights(), weights(), gradients()
    before, alone = frozen.detach().clone(), twin(neighbour)
    optimizer = optimizer_with(rule, [frozen, neighbour], lam=0.5)
    walk(optimizer, [[None, gradient] for gradient in history])
    walk(optimizer_with(rule, [alone], lam=0.5), history)
    assert same_bits(frozen, before)
    assert frozen not in optimizer.state
    assert same_bits(neighbour, alone)


@every_rounding
@every_rule
def test_groups_are_only_a_way_to_write_parameters_down(rule, dtype, how):
    """One group of three is three groups of one, bit for bit, also where the rounding is random."""
    together, history = [weights(dtype) for _ in range(3)], [list(torch.randn(3, 33)) for _ in range(4)]
    apart = [{"params": [twin(param)]} for param in together]
    merged = walk(optimizer_with(rule, together, lam=0.5, rounding=how), history)
    assert same_bits(walk(optimizer_with(rule, apart, lam=0.5, rounding=how), history), merged)


@settings(max_examples=10)
@given(order=st.permutations(range(4)))
@every_rule
def test_the_order_of_parameters_does_not_matter(rule, order):
    params, history = [weights() for _ in range(4)], [list(torch.randn(4, 33)) for _ in range(2)]
    shuffled = [twin(params[i]) for i in order]
    walk(optimizer_with(rule, params, lam=0.5), history)
    walk(optimizer_with(rule, shuffled, lam=0.5), [[step[i] for i in order] for step in history])
    assert all(same_bits(params[i], param) for i, param in zip(order, shuffled, strict=True))


@every_plain_rule
def test_the_order_of_weights_in_a_tensor_does_not_matter(rule):
    """A rule sees one element at a time, and of the tensor it knows a sum: neither order nor shape says anything."""
    param, history, order = weights(count=30), gradients(count=30), torch.randperm(30)
    shuffled = torch.nn.Parameter(param.detach().flatten()[order].view(5, 6))
    expected = walk(optimizer_with(rule, [param], lam=0.5), history)
    seen = walk(optimizer_with(rule, [shuffled], lam=0.5), [gradient[order].view(5, 6) for gradient in history])
    assert_close(seen, expected[:, order], tolerance=1e-14)


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 4)], ids=str)
@every_plain_rule
def test_a_stack_of_models_steps_as_each_of_them_alone(rule, shape):
    """A sweep trains many models in one tensor: what a rule knows of the whole tensor is then of each model's."""
    optimizer = optimizer_with(rule, [weights()], lam=0.5)
    (group,) = optimizer.param_groups
    equation = optimizer.equation(group)
    numbers = equation.with_shared(optimizer.numbers(group, t=2), dict.fromkeys(rule.shared, 0.7))
    kept = [kept for each in equation.rules for kept in each.keeps]
    if any(not each.per_element for each in kept):
        pytest.skip("a stack keeps no numbers of its models")
    names = ["w", "g", *(each.name for each in kept)]
    values = dict(zip(names, torch.randn(len(names), *shape, dtype=torch.float64).abs(), strict=True))
    together, after = eager.step(equation, numbers, values, stacked=True)
    for model in range(3):
        alone, left = eager.step(equation, numbers, {key: value[model] for key, value in values.items()})
        for stacked, one in zip((together, *after.values()), (alone, *left.values()), strict=True):
            assert_close(stacked[model], one, tolerance=1e-14)


@every_plain_rule
def test_every_hyper_parameter_has_an_effect(rule):
    elements = combinations([-0.25, 1.5], len(rule.elements))
    others = {key: next(x for x in (0.75, 3.0) if key not in rule.domain or x in rule.domain[key]) for key in rule.defaults}
    numbers = {**numbers_of(rule, lam=0.5, t=9), **others}
    starts = {kept.start for kept in rule.keeps}
    for key, default in rule.defaults.items():
        if key in starts:
            continue  # which is there before the first step
        assert on_floats(rule, elements, {**numbers, key: default}) != on_floats(rule, elements, numbers), key


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
@pytest.mark.parametrize("key", [key for key, reduction in REDUCTIONS.items() if not reduction.of_all])
def test_reductions_are_those_of_numpy(key, dtype):
    for scale in (0.0, 1.0, 1e-30):
        values = dict(zip(("w", "u", "g", "w_0"), scale * torch.randn(4, 1000).to(dtype), strict=True))
        plain = {key: value.double().numpy() for key, value in values.items()}
        end = plain["w"] - 0.5 * plain["u"]
        expected = {
            "norm_w": np.linalg.norm(plain["w"]),
            "norm_u": np.linalg.norm(plain["u"]),
            "dot_wu": plain["w"] @ plain["u"],
            "norm_y": np.linalg.norm(end),
            "norm_r": np.linalg.norm(plain["u"] + 0.25 * plain["w"]),
            "numel": 1000.0,
            "distance_w": np.linalg.norm(plain["w"] - plain["w_0"]),
            "distance_y": np.linalg.norm(end - plain["w_0"]),
            "dot_gd": plain["g"] @ (plain["w"] - plain["w_0"]),
            "norm_n_w": np.linalg.norm(plain["w"], ord=3),
        }
        found = eager.reduce(REDUCTIONS[key], values, {"n": 3.0, "eta": 0.5, "lam": 0.25})
        assert found.dtype == torch.float64  # and rounded once, where it meets an element
        assert found.item() == pytest.approx(expected[key], rel=1e-12, abs=torch.finfo(dtype).tiny)


# Where float32 has no digits left -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_variance_that_rounding_leaves_below_zero_is_zero(backend):
    """As equal gradients make it in the end; torch's root of it is NaN."""

    def stepped(cls, **options):
        param = Parameter(torch.zeros(4, dtype=torch.float32))
        optimizer = cls([param], lr=2.0**-20, alpha=0.5, eps=2.0**-10, centered=True, **options)
        below, ones = torch.full_like(param, 1 - 2.0**-20).detach(), torch.ones(4)
        optimizer.state[param] = {"step": torch.tensor(200.0), "square_avg": below, "grad_avg": ones}
        param.grad = torch.ones(4)
        optimizer.step()
        return param.detach()

    assert torch.allclose(stepped(wd.RMSprop, backend=backend), torch.tensor(-(2.0**-10)), rtol=1e-6, atol=0)  # −lr·g/eps
    assert stepped(torch.optim.RMSprop).isnan().all()


def test_a_centred_rmsprop_needs_more_than_one_gradient():
    param = Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="alpha=0 with centered=True"):
        wd.RMSprop([param], alpha=0, centered=True)
    for options in ({"alpha": 0}, {"alpha": 0.5, "centered": True}):
        wd.RMSprop([param], **options)


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_adamax_that_forgets_at_once_is_bounded_by_its_mean_over_eps(backend):
    eps, lr = 1e-4, 1e-4
    param = Parameter(torch.zeros(4, dtype=torch.float16))
    optimizer = wd.Adamax([param], lr=lr, betas=(0.5, 0.0), eps=eps, rounding="nearest", backend=backend)
    param.grad = torch.full_like(param, 0.5)
    optimizer.step()
    before = param.detach().double()
    param.grad = torch.zeros_like(param)
    optimizer.step()
    u = (before - param.detach().double()) / lr
    mean = 0.5 * (0.5 * 0.5) / (1 - 0.5**2)  # of 0.5 and 0, corrected
    assert torch.allclose(u, torch.full_like(u, mean / eps), rtol=2.0**-10, atol=0)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_norm_whose_square_is_beyond_float32_is_held(backend, capturable):
    """In float32 the square of 1e20 is infinite, and weights became 0 or changed their sign."""

    def stepped(dtype, **options):
        param = Parameter(torch.linspace(1, 2, 15, dtype=torch.float64).reshape(3, 5).to(dtype) * 1.7e19)
        param.grad = torch.linspace(-1, 1, 15).reshape(3, 5).to(dtype)
        wd.AdamH([param], lr=0.1, **options).step()
        return param.detach().double()

    got, expected = stepped(torch.float32, backend=backend, capturable=capturable), stepped(torch.float64, backend="eager")
    assert 0.9e20 < expected.norm() < 1.1e20
    assert (got > 0).all()
    assert ((got - expected).abs() <= 1e-6 * 1e20).all()
    without = torch.linspace(1, 2, 15, dtype=torch.float64).reshape(3, 5) * 1.7e19
    assert (expected - without).abs().max() >= 100 * 1e-6 * 1e20
