"""The judge of the backends is judged: its bound holds on the worst processor that the words allow, and sees planted errors."""

import math

import pytest
import torch
from reference import EXACTLY, Reference, Words, near, next_in
from runs import name, pairs, same_bits
from torch.nn import Parameter
from training import all_params, noise

import weightdecay as wd
from weightdecay.backends import eager, rounding
from weightdecay.update_rules.equation import Equation
from weightdecay.update_rules.ops import ULPS, debias, sqrt, where

PAIRS = {"-".join(filter(None, (r.get("penalty"), r["direction"], r.get("decay")))): r for r in pairs()}
SHRINKING = {"direction": "adam", "decay": "decoupled", "weight_decay": 0.5}
every_pair = pytest.mark.parametrize("rules", PAIRS.values(), ids=PAIRS)


def trained(dtype=torch.float32, backend="eager", how="nearest", steps=2, **rules):
    """Return an optimizer that has done some steps and has gradients for the next."""
    params = [Parameter(noise(shape, dtype, place)) for place, shape in enumerate([(2000,), (7, 5), ()])]
    optimizer = wd.Optimizer(params, 0.05, backend=backend, rounding=how, **rules)
    for t in range(steps + 1):
        for place, param in enumerate(params):
            param.grad = noise(param.shape, dtype, 10 * t + place)
        if t < steps:
            optimizer.step()
    return optimizer


def outside(optimizer, *planted, **group):
    """Do a step, and return what is not where a reference with other rules or numbers has it."""
    reference = Reference(optimizer, *planted, **group)
    optimizer.step()
    return reference.outside()


# It is the reference ------------------------------------------------------------------------------------------------------


@every_pair
def test_its_values_are_those_of_the_eager_backend_in_float64(rules):
    optimizer = trained(torch.float64, **rules)
    reference = Reference(optimizer)
    optimizer.step()
    for key, found in reference.expected.items():
        got = reference.got(*key)
        assert ((got - found.value).abs() <= 1e-15 * found.value.abs().max()).all(), key


# Its bound holds ------------------------------------------------------------------------------------------------------------


def nudged(dtype, generator):
    """Return words whose every result on float32 is as far from the exact one as the word allows, up or down at random."""

    def worse(word):
        def read(*given):
            found = torch_s[word](*given)
            if not isinstance(found, torch.Tensor) or found.dtype != torch.float32:
                return found
            exact = EXACTLY[word](*(x.double() if isinstance(x, torch.Tensor) else x for x in given))
            up = torch.rand(exact.shape, generator=generator) < 0.5
            off = torch.where(up, next_in(exact, torch.float32, 1), next_in(exact, torch.float32, -1))
            for _ in range(math.floor(ULPS[word]) - 1):
                off = torch.nextafter(off, torch.where(up, torch.tensor(math.inf), torch.tensor(-math.inf)))
            return torch.where(exact == 0, found, off)

        return read

    torch_s = VOCABULARY(dtype)
    return {**torch_s, **{word: worse(word) for word in ("sqrt", "exp", "log", "power")}} if dtype == torch.float32 else torch_s


VOCABULARY = eager.vocabulary


@every_pair
@pytest.mark.parametrize(("dtype", "how"), [(torch.float32, "nearest"), (torch.bfloat16, "stochastic")], ids=str)
def test_the_worst_processor_that_the_words_allow_stays_inside(request, monkeypatch, rules, dtype, how):
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(eager, "vocabulary", lambda dtype: nudged(dtype, generator))
    own = {dtype: f"_worst_{request.node.name}_{dtype}" for dtype in (torch.float32, torch.float64)}  # kept with each function
    monkeypatch.setattr(eager, "_BOUND", own)
    for steps in range(3):
        assert not outside(trained(dtype, how=how, steps=steps, **rules))


# It sees what is wrong ------------------------------------------------------------------------------------------------------


WITH_LAMBDA = {key: rules for key, rules in PAIRS.items() if any("weight" in name_ for name_ in rules)}


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("rules", WITH_LAMBDA.values(), ids=WITH_LAMBDA)
def test_one_per_cent_of_lambda_is_seen(backend, rules):
    (key,) = [key for key in rules if "weight" in key]
    optimizer = trained(backend=backend, **rules)
    assert outside(optimizer, **{key: 1.01 * rules[key]})
    assert not outside(optimizer)


@pytest.mark.parametrize("dtype", rounding.LOW_PRECISION, ids=name)
@pytest.mark.parametrize("how", ["nearest", "stochastic", "compensated"])
def test_one_per_cent_of_lambda_is_seen_through_a_rounding(dtype, how):
    optimizer = trained(dtype, "cpu", how, **SHRINKING)
    assert outside(optimizer, weight_decay=0.505)
    assert not outside(optimizer)


def adam_like(own_registry, change):
    """Return Adam with one thing changed."""

    def uncorrected(g, m, v, *, t, beta1=0.9, beta2=0.999, eps=1e-8):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        return m / (sqrt(v / debias(beta2, t)) + eps), m, v

    def inside(g, m, v, *, t, beta1=0.9, beta2=0.999, eps=1e-8):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        return m / debias(beta1, t) / sqrt(v / debias(beta2, t) + eps), m, v

    def late(g, m, v, *, t, beta1=0.9, beta2=0.999, eps=1e-8):
        m_new = beta1 * m + (1 - beta1) * g
        v_new = beta2 * v + (1 - beta2) * g * g
        return m / debias(beta1, t) / (sqrt(v_new / debias(beta2, t)) + eps), m_new, v_new

    def off(g, m, v, *, t, beta1=0.9, beta2=0.999, eps=1e-8):
        m = (beta1 * m + (1 - beta1) * g) * 1.0000005
        v = beta2 * v + (1 - beta2) * g * g
        return m / debias(beta1, t) / (sqrt(v / debias(beta2, t)) + eps), m, v

    found = {"no correction": uncorrected, "ε in the root": inside, "the old mean": late, "four units in a moment": off}[change]
    return wd.direction(source="a planted error", state={"m": "exp_avg", "v": "exp_avg_sq"})(found)


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("change", ["no correction", "ε in the root", "the old mean", "four units in a moment"])
def test_another_adam_is_seen(own_registry, backend, change):
    optimizer = trained(backend=backend, eps=1e-5, **{**SHRINKING, "direction": adam_like(own_registry, change)})
    assert outside(optimizer, Equation.of("adam", decay="decoupled"))
    assert not outside(optimizer)


def decayed_late(w, u, *, eta, lam):
    return (1 - eta * lam) * (w - eta * u)


def decayed_less(w, u, *, eta, lam):
    return where(w > 0, (1 - eta * lam) * w, w) - eta * u


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("rule", [decayed_late, decayed_less], ids=lambda rule: rule.__name__)
def test_another_decay_is_seen(own_registry, backend, rule):
    optimizer = trained(backend=backend, **{**SHRINKING, "decay": wd.decay(source="a planted error")(rule)})
    assert outside(optimizer, Equation.of("adam", decay="decoupled"))
    assert not outside(optimizer)


def of_root(w, u, *, eta):
    return sqrt(w)


def test_a_root_of_twice_its_units_in_the_last_place_is_seen(own_registry):
    optimizer = wd.Optimizer([Parameter(torch.rand(1000))], 0.1, direction="sgd", decay=wd.decay(source="a test")(of_root))
    (param,) = all_params(optimizer)
    param.grad = torch.zeros(1000)
    reference = Reference(optimizer)
    optimizer.step()
    root = reference.expected[0, "w"].value
    low, high = next_in(root, torch.float32, -1), next_in(root, torch.float32, 1)
    below, above = (torch.nextafter(x, torch.full_like(x, side * math.inf)) for x, side in ((low, -1), (high, 1)))
    for found, right in ((low, True), (high, True), (below, False), (above, False)):
        with torch.no_grad():
            param.copy_(found)
        assert (not reference.outside()) == right


@pytest.mark.parametrize("dtype", rounding.LOW_PRECISION, ids=name)
def test_other_random_bits_are_seen(dtype):
    optimizer = trained(dtype, "cpu", "stochastic", **SHRINKING)
    assert outside(optimizer, seed=1)
    (found,) = outside(trained(dtype, "cpu", "nearest", **SHRINKING), rounding="stochastic").values()
    assert int(found.split()[0]) > 500  # of 2,036 elements, one in four or more goes to the other neighbour


def test_a_difference_of_neighbours_has_no_bound_that_is_small():
    """What is left of two numbers that cancel may be anything: so is the bound, and no promise is made of a quotient by it."""
    own = Words(torch.float32)
    x = near(1.0).converted(torch.float32)
    third = near(1 / 3).converted(torch.float32) * 3.0
    assert third.error > 0
    assert own.sqrt(third - x).error == math.inf
    assert (1.0 / (third - x)).error == math.inf


def test_what_is_exact_has_no_bound_but_nothing():
    """Where decay and step are zero a weight is what it was, and a comparison with zero is no open question."""
    optimizer = trained(torch.float32, direction="sgd", decay="cautious", weight_decay=0.0, steps=0)
    for param in all_params(optimizer):
        param.grad = torch.zeros_like(param)
    before = [param.detach().clone() for param in all_params(optimizer)]
    reference = Reference(optimizer)
    assert all(reference.ends[key][0].equal(reference.ends[key][1]) for key in reference.ends)
    optimizer.step()
    assert not reference.outside()
    assert all(map(same_bits, before, all_params(optimizer)))
