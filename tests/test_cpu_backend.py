"""The cpu and the eager backend against the float64 reference, and against each other bit for bit where they can be."""

import copy
import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from llvmlite import binding
from reference import Reference
from runs import RULES, arguments, fits, name, same_bits
from torch.nn import Linear, Parameter
from training import (
    BACKENDS,
    EXACT,
    LAYOUTS,
    all_params,
    apart,
    bits,
    everything,
    noise,
    one_process,
    output,
    parameters,
    refused,
    set_gradients,
    train,
)

import weightdecay as wd
from weightdecay.backends import eager, rounding
from weightdecay.backends.cpu import jit
from weightdecay.update_rules.ops import ULPS, WORDS, absolute, debias, exp, log, maximum, minimum, power, sign, sqrt, where

LOW = rounding.LOW_PRECISION
PRECISIONS = [
    (torch.float64, "nearest"),
    (torch.float32, "nearest"),
    *itertools.product(LOW, ("nearest", "stochastic", "compensated")),
]
LAMBDAS = ("weight_decay", "penalty_weight")


# Every rule, every dtype, every shape -----------------------------------------------------------------------------------


def pairs():
    """Return every rule with what makes an optimizer of it: a direction with a decay, the others with and without powers."""
    sgd, adam = {"direction": "sgd", "momentum": 0.9}, {"direction": "adam"}
    for rule in RULES:
        strength = {"weight_decay": 0.5} if "lam" in rule.numbers else {}
        if rule.kind == "direction" and not rule.whole:  # tests/test_whole_directions.py has those
            momentum = {"momentum": 0.9} if "mu" in rule.defaults else {}
            yield {"direction": rule.name, "decay": "decoupled", "weight_decay": 0.5, **momentum}
        for direction in (sgd, adam):
            if rule.kind == "penalty":
                yield {"penalty": rule.name, "penalty_weight": 2.0, **direction}
            elif rule.kind == "decay" and fits(rule, direction["direction"]):
                yield {"decay": rule.name, **strength, **direction}


ALL_ROUNDINGS = ("decoupled", "cautious", "l2", "norm", "hyperball", "toward")


def cases():
    """Return the pairs in every dtype; of the roundings, which no rule knows of, all with a few and one with the others."""
    found = {}
    for rules, (dtype, how) in itertools.product(pairs(), PRECISIONS):
        simple = rules["direction"] == "sgd" and (rules.get("decay") or rules["penalty"]) in ALL_ROUNDINGS
        if simple or dtype not in LOW or (dtype, how) in ((torch.bfloat16, "stochastic"), (torch.float16, "compensated")):
            names = (rules.get("penalty"), rules["direction"], rules.get("decay"), name(dtype), how)
            found["-".join(filter(None, names))] = (rules, dtype, how)
    return found


CASES = cases()
INEXACT = {"sqrt", "exp", "log", "power", "debias"}


def is_exact(optimizer):
    """Tell whether its rules are arithmetic that IEEE 754 rounds in one way only."""
    rules = optimizer.equation(optimizer.param_groups[0]).rules
    return not any(rule.reductions or rule.whole or INEXACT & set(rule.function.__code__.co_names) for rule in rules)


def tensors(dtype, *, seed, laid=True, whole=False):
    """Return a tensor of every size at which a loop may go wrong, and one of every layout."""
    sizes = [(0, 3), (), (1,), (7,), (15,), (16,), (17,), (4096,), (4097,)]
    flat = [noise(shape, dtype, seed + place) for place, shape in enumerate(sizes)]
    full = noise((2, 4, 3, 6), dtype, seed + 50)
    return [*([] if whole else flat), *(layout(full) if laid else full for layout in LAYOUTS.values())]


def optimizers(dtype, how="nearest", *, lr=0.05, **rules):
    """Return an optimizer of the same tensors per backend."""
    return [
        wd.Optimizer(map(Parameter, tensors(dtype, seed=0)), lr, backend=backend, rounding=how, **rules) for backend in BACKENDS
    ]


def give_gradients(optimizer, t):
    """Give gradients that depend on nothing else; at every second step they lie as the weights do, and else contiguously."""
    params = all_params(optimizer)
    grads = tensors(params[0].dtype, seed=1000 * t, laid=t % 2 == 0, whole=len(params) == len(LAYOUTS))
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


def values(optimizer):
    """Return all that a step changes, by name; a compensated weight as the float32 that it stands for."""
    found = {}
    for place, param in enumerate(all_params(optimizer)):
        state = dict(optimizer.state[param])
        remainder = state.pop("compensation", None)
        found[place, "w"] = param.detach() if remainder is None else rounding.restored(param.detach(), remainder)
        found.update({(place, key): value for key, value in state.items()})
    return found


def distance(got, expected):
    """Return the largest difference, in units of the largest value; NaN if there is one."""
    if not got.numel():
        return 0.0
    return ((got.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30)).item()


def ulps(got, expected):
    """Return for each element how many numbers of its dtype lie between the two; between NaNs none, and many beside one."""
    patterns = []
    for tensor in (got, expected):
        size = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
        pattern = tensor.contiguous().view(size).to(torch.int64)
        lowest = torch.iinfo(size).min
        patterns.append(torch.where(pattern < 0, lowest - pattern, pattern))
    apart = (patterns[0] - patterns[1]).abs()
    either, both = got.isnan() | expected.isnan(), got.isnan() & expected.isnan()
    return torch.where(both, 0, torch.where(either, 2**40, apart))


def changed(some, others):
    """Return the share of weights with other bits, over all tensors."""
    weights = [key for key in some if key[1] == "w"]
    different = torch.cat([(ulps(some[key], others[key]) > 0).flatten() for key in weights])
    return different.double().mean().item()


@pytest.mark.parametrize(("rules", "dtype", "how"), CASES.values(), ids=CASES)
def test_every_backend_makes_the_steps_of_the_reference(rules, dtype, how):
    """Within what the roundings of one step add up to, on any processor; λ is seen a hundred times over."""
    optimizers_ = optimizers(dtype, how, **rules)
    without = {key: 0.0 for key in LAMBDAS if key in rules}
    effect = 0.0
    for t in range(1, 3):
        for optimizer in optimizers_:
            give_gradients(optimizer, t)
            reference = Reference(optimizer)
            if without and t > 1 and optimizer is optimizers_[0]:  # at the first step Adam makes ±1 of any gradient
                effect = max(effect, reference.effect(Reference(optimizer, **without)))
            optimizer.step()
            assert not reference.outside(), optimizer.backend
    assert not without or effect >= 100
    ours, theirs = optimizers_
    assert set(values(ours)) == set(values(theirs))
    assert not is_exact(ours) or alike(ours, theirs)


def test_the_pairs_hold_every_rule_and_some_are_exact():
    named, given = {(rule.kind, rule.name) for rule in RULES if not rule.whole}, list(pairs())
    assert named == {(kind, rules[kind]) for rules in given for kind in ("penalty", "direction", "decay") if kind in rules}
    exact = [rules for rules in given if is_exact(wd.Optimizer([Parameter(torch.ones(1))], 0.1, **rules))]
    penalties, decays = ({rules.get(kind) for rules in exact} for kind in ("penalty", "decay"))
    assert {"l1", "l2", "elastic_net"} <= penalties
    assert {"cautious", "decoupled", "independent", "none"} <= decays


def test_a_table_of_many_parameters_and_groups_steps_each_by_its_own_numbers():
    def build(backend):
        groups = [
            {"params": [Parameter(noise((5, place + 1), torch.float32, place))], "lr": 0.01 * place, "maximize": place % 3 == 0}
            for place in range(40)
        ]
        return wd.Optimizer(groups, 0.1, direction="sgd", momentum=0.9, decay="cautious", weight_decay=0.5, backend=backend)

    ours, theirs = map(build, BACKENDS)
    for optimizer in (ours, theirs):
        train(optimizer, 3)
    assert everything(ours) == everything(theirs)


# Nearer to the truth than torch's own kernel ----------------------------------------------------------------------------

FUSED = {
    "AdamW": (wd.AdamW, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "SGD": (wd.SGD, torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
}


@pytest.mark.parametrize(("ours", "theirs", "options"), FUSED.values(), ids=FUSED)
def test_twenty_steps_of_float32_are_as_near_to_float64_as_torchs_fused_ones(ours, theirs, options):
    """All seeds together, since one alone is luck."""
    errors = {"ours": [], "theirs": []}
    for seed in range(8):
        start = noise((5000,), torch.float32, seed)
        params = {"ours": start.clone(), "theirs": start.clone(), "exact": start.double()}
        params = {key: Parameter(value) for key, value in params.items()}
        runs = {
            "ours": ours([params["ours"]], backend="cpu", **options),
            "theirs": theirs([params["theirs"]], fused=True, **options),
            "exact": theirs([params["exact"]], foreach=False, **options),
        }
        for t in range(20):
            grad = noise((5000,), torch.float32, 100 * (seed + 1) + t)
            for key, optimizer in runs.items():
                params[key].grad = grad.to(params[key].dtype)
                optimizer.step()
        for key, found in errors.items():
            found.append((params[key].detach().double() - params["exact"].detach()).abs())
    ours, theirs = (torch.cat(errors[key]) for key in ("ours", "theirs"))
    assert 0 < ours.max() <= 1.05 * theirs.max()
    assert ours.square().mean().sqrt() <= 1.05 * theirs.square().mean().sqrt()


# Any shape, any numbers -------------------------------------------------------------------------------------------------

sizes = st.lists(st.integers(1, 70), min_size=0, max_size=2).map(tuple)
fraction = st.floats(0.0, 0.999)
NUMBERS = {
    "adam": {"direction": st.just("adam"), "betas": st.tuples(fraction, fraction), "eps": st.floats(1e-8, 1e-2)},
    "amsgrad": {"direction": st.just("amsgrad"), "betas": st.tuples(fraction, fraction), "eps": st.floats(1e-8, 1e-2)},
    "momentum": {"direction": st.just("sgd"), "momentum": st.floats(0.01, 0.999), "dampening": st.floats(0.0, 1.0)},
    "nesterov": {"direction": st.just("sgd"), "momentum": st.floats(0.01, 0.999), "nesterov": st.booleans()},
    "lp": {"direction": st.just("sgd"), "penalty": st.just("lp"), "p": st.floats(1.0, 4.0)},
    "norm": {"direction": st.just("sgd"), "penalty": st.just("norm"), "n": st.floats(1.0, 40.0)},
    "elastic_net": {"direction": st.just("sgd"), "penalty": st.just("elastic_net"), "l1_ratio": st.floats(0.0, 1.0)},
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
@settings(max_examples=15)
@given(data=st.data(), shape=sizes, lr=st.floats(1e-4, 1.0), lam=st.floats(0.0, 1.0), maximize=st.booleans())
def test_numbers_and_shapes_mean_what_they_mean_in_float64(numbers, dtype, tolerance, data, shape, lr, lam, maximize):
    """Relative to the largest weight of the run and to the largest step: a sum of both loses no more."""
    rules = data.draw(st.fixed_dictionaries(numbers))
    weight = {"penalty_weight": lam} if "penalty" in rules else {"decay": "decoupled", "weight_decay": lam}
    start = noise(shape, torch.float32, 1)
    ours, exact = Parameter(start.to(dtype)), Parameter(start.double())
    runs = [
        wd.Optimizer([param], lr, backend=backend, maximize=maximize, **rules, **weight)
        for param, backend in ((ours, "cpu"), (exact, "eager"))
    ]
    largest = start.abs().max().item()
    for t in range(4):
        for param, optimizer in zip((ours, exact), runs, strict=True):
            param.grad = noise(shape, torch.float32, 10 + t).to(param.dtype)
            optimizer.step()
        largest = max(largest, exact.detach().abs().max().item())
        assert (ours.detach().double() - exact.detach()).abs().max() <= tolerance * largest


# Words ------------------------------------------------------------------------------------------------------------------


def of_absolute(w, u, *, eta):
    return absolute(w)


def of_sign(w, u, *, eta):
    return sign(w)


def of_sqrt(w, u, *, eta):
    return sqrt(w)


def of_exp(w, u, *, eta):
    return exp(w)


def of_log(w, u, *, eta):
    return log(w)


def of_power(w, u, *, eta):
    return power(w, u)


def of_maximum(w, u, *, eta):
    return maximum(w, u)


def of_minimum(w, u, *, eta):
    return minimum(w, u)


def of_where(w, u, *, eta):
    return where(w > 0, w, u)


def of_debias(w, u, *, eta, beta=0.5, steps=1.0):
    return where(w == w, debias(beta, steps), u)


PLAIN = {
    "absolute": absolute,
    "sign": sign,
    "sqrt": sqrt,
    "exp": exp,
    "log": log,
    "power": power,
    "maximum": maximum,
    "minimum": minimum,
    "where": lambda x, y: where(x > 0, x, y),
}
APPROXIMATED = {word: ULPS[word] for word in ("exp", "log", "power")}
every_word = pytest.mark.parametrize("word", PLAIN)
reals = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)


def compiled(rule, *, w, u=None, backend="cpu", judged=False, **numbers):
    """Return what a decay that is made of this rule, for once, makes of the weights and of a step u; if so, judge it."""
    param = Parameter(w.clone())
    optimizer = wd.Optimizer([param], 0.1, direction="sgd", decay=rule, backend=backend, **numbers)
    param.grad = torch.zeros_like(w) if u is None else u
    reference = Reference(optimizer) if judged else None
    optimizer.step()
    assert reference is None or not reference.outside(), backend
    return param.detach()


@pytest.fixture
def as_rule(own_registry):
    return wd.decay(source="a test of this package")


def on_floats(word, *columns):
    """Return the word of each row of plain floats, in float64 and rounded to the columns' dtype."""
    found = torch.tensor([PLAIN[word](*row) for row in zip(*(c.tolist() for c in columns), strict=True)], dtype=torch.float64)
    return found.to(columns[0].dtype)


def test_every_word_is_compiled_here():
    assert {*PLAIN, "debias"} == set(WORDS)


def special(word, dtype):
    """Return columns of all combinations of special numbers that a word takes."""
    rows = arguments("maximum" if word == "where" else word, dtype)
    return [torch.tensor(column, dtype=torch.float64).to(dtype) for column in zip(*rows, strict=True)]


@reals
@every_word
def test_a_word_of_special_numbers_is_what_it_is_on_floats(as_rule, word, dtype):
    """NaN, infinity and zero come out where they should, whatever library is asked; zeros with their sign."""
    columns = special(word, dtype)
    got = compiled(as_rule(globals()[f"of_{word}"]), w=columns[0], u=columns[1] if len(columns) > 1 else None)
    expected = on_floats(word, *columns)
    for kind in (torch.isnan, torch.isposinf, torch.isneginf, lambda x: x == 0):
        wrong = kind(got) != kind(expected)
        assert not wrong.any(), (columns, got[wrong], expected[wrong])
    zeros = expected == 0
    assert torch.equal(got[zeros].signbit(), expected[zeros].signbit())
    assert ulps(got, expected).max() <= APPROXIMATED.get(word, 0)


def ordinary(word, dtype):
    """Return columns of random numbers of every size for which the word is a finite number, or nearly."""
    size = 20_000
    bounds = {"exp": (-110.0, 92.0) if dtype == torch.float32 else (-740.0, 705.0)}
    low, high = bounds.get(word, (-1.0, 1.0))
    uniform = torch.rand(size, dtype=torch.float64) * (high - low) + low
    scales = torch.pow(10.0, torch.rand(size, dtype=torch.float64) * 60 - 30)
    first = uniform if word == "exp" else uniform * scales
    first = first.abs() if word in ("log", "sqrt", "power") else first
    second = noise((size,), torch.float64, 1) * (1 if word == "power" else scales)
    return [first.to(dtype), second.to(dtype)]


@reals
@every_word
def test_a_word_of_random_numbers_is_what_it_is_on_floats(as_rule, word, dtype):
    first, second = ordinary(word, dtype)
    got = compiled(as_rule(globals()[f"of_{word}"]), w=first, u=second)
    two = word in ("power", "maximum", "minimum", "where")
    expected = on_floats(word, first, second) if two else on_floats(word, first)
    assert expected.isfinite().double().mean() > 0.9
    bound = APPROXIMATED.get(word, 0) if dtype == torch.float32 else 4 * (word in APPROXIMATED)
    assert ulps(got, expected).max() <= bound


def of_power_by_a_number(w, u, *, eta, p=2.0):
    return power(w, p)


@reals
def test_a_power_by_a_number_is_one_by_elements_that_are_that_number(as_rule, dtype):
    """A hyper-parameter such as p: a kernel may choose another way for it, of normal numbers and of all others."""
    sizes = torch.tensor([0.0, 1e-44, 1e-39, 1.0, math.inf, math.nan], dtype=torch.float64)
    normal = torch.pow(10.0, torch.rand(5000, dtype=torch.float64) * 60 - 30)
    near_one = 1 + torch.linspace(-1, 1, 1001, dtype=torch.float64) / 64
    columns = [column.to(dtype) for column in (torch.cat([normal, near_one]), torch.cat([sizes, normal[:500]]))]
    rule = as_rule(of_power_by_a_number)
    wrong = {}
    for p in (0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 7.25, -0.5, -1, -2, 0.125, 1 / 1024, 60, -60, 3e9, -3e9):
        worst = max(ulps(compiled(rule, w=w, p=p), on_floats("power", w, torch.full_like(w, p))).max().item() for w in columns)
        if worst > (2 if dtype == torch.float32 else 4):
            wrong[p] = worst
    assert not wrong


def near_one(w, u, *, eta):
    return log(w) + 0 * exp(u)


def test_a_logarithm_near_one_keeps_its_digits(as_rule):
    w = 1 + torch.linspace(-1, 1, 4001) * 1e-4
    got = compiled(as_rule(near_one), w=w)
    assert ulps(got, w.double().log().float()).max() <= 2


def of_numbers(w, u, *, eta, lam, a=2.0, b=3.0):
    found = power(a, b) + exp(a) * log(b) - sqrt(a) / maximum(a, b) + sign(b) * minimum(a, b)
    return where(w == w, found + absolute(a - b) + where(a > b, a, b) + debias(lam, b), u)


@reals
def test_words_of_numbers_are_computed_once_in_double_precision(as_rule, dtype):
    """A hyper-parameter is a Python float: in a kernel, too, before it meets the elements."""
    rule = as_rule(of_numbers)
    for a, b, lam in ((2.0, 3.0, 0.5), (0.1, 1e-3, 0.999), (3.7, 0.3, 0.25)):
        got = compiled(rule, w=torch.ones(17, dtype=dtype), a=a, b=b, weight_decay=lam)
        expected = torch.tensor(of_numbers(1.0, 0.0, eta=0.1, lam=lam, a=a, b=b), dtype=torch.float64)
        assert (got.double() - expected).abs().max() <= {torch.float64: 1e-15, torch.float32: 6e-8}[dtype] * expected.abs()


@reals
def test_debias_keeps_its_digits(as_rule, dtype):
    rule = as_rule(of_debias)
    for beta, steps in itertools.product((0.0, 0.5, 0.9, 0.999, 0.99999), (1.0, 2.0, 10.0, 1e3, 1e6)):
        got = compiled(rule, w=torch.ones(17, dtype=dtype), beta=beta, steps=steps)
        exact = -math.expm1(steps * math.log(beta)) if beta else 1.0
        assert distance(got, torch.tensor(exact, dtype=torch.float64)) <= {torch.float64: 1e-11, torch.float32: 1e-7}[dtype]


def of_mixtures(w, u, *, eta, lam, a=0.3):
    chosen = where(w > 0, where(u > 0, w, 1.0), where(lam > a, 1.0, 2)) * where(w, 1, u) * where(lam, 2, 3)
    edge = maximum(w, a) + minimum(2, u) - power(absolute(w), a) * power(a, u)
    return chosen * where(eta > 1, 3, 1) + edge + (+u) - (-w) / (1 / lam) - 3


def of_literals(w, u, *, eta, lam, a=0.3):
    powers = power(absolute(w), 2) + power(absolute(u), 0.3) + power(2, u) + power(a, 3) + power(2, a) + power(2, 0.5)
    edges = maximum(0, w) + minimum(u, 0.5) + maximum(a, 0.1) + minimum(1, 2) + where(w > 0, 1, 2) + where(a > 1, w, 2)
    rest = exp(0.5) * log(2) * sqrt(2) + sign(-3) * absolute(-w) + debias(0.5, 3) + debias(a, 3) + debias(0.5, lam)
    return powers + edges + rest + 1 / (3 + absolute(w)) - 3 * eta


@reals
@pytest.mark.parametrize("rule", [of_mixtures, of_literals], ids=lambda rule: rule.__name__)
def test_numbers_mix_with_elements_in_every_place(as_rule, rule, dtype):
    """Those of the signature, and those that stand in the rule."""
    w, u = noise((400,), dtype, 1), noise((400,), dtype, 2)
    for backend in BACKENDS:
        assert compiled(as_rule(rule), w=w, u=u, weight_decay=0.5, backend=backend, judged=True).std() > 0.5


def of_debias_of_elements(w, u, *, eta):
    return debias(w, 3) + 0 * debias(0.5, u)


def test_debias_of_elements_keeps_its_digits(as_rule):
    w = 1 - torch.linspace(0.1, 1, 1000) * 1e-3
    exact = -torch.expm1(3 * torch.log(w.double()))
    for backend in BACKENDS:
        got = compiled(as_rule(of_debias_of_elements), w=w, u=torch.ones(1000), backend=backend)
        assert ((got - exact) / exact).abs().max() <= 1e-6, backend


def of_truths(w, u, *, eta, lam):
    return w - (w > 0) * (eta * lam) * w - eta * u


def of_truths_of_numbers(w, u, *, eta, lam):
    return w - (eta > lam) * u


@pytest.mark.parametrize("rule", [of_truths, of_truths_of_numbers], ids=lambda rule: rule.__name__)
def test_a_truth_is_no_number(as_rule, rule):
    """In `(w > 0) * 0.05` torch makes 0.05 a float32 whatever w is, and machine code has one bit for it."""
    with refused(TypeError, rule.__name__, "where(condition, x, y)"):
        as_rule(rule)


def trusting(w, u, *, eta, lam, norm_w, norm_u, dot_wu):
    return w - eta * where(norm_u > 0, norm_w / norm_u, 1) * u - eta * lam * sign(dot_wu) * w


@reals
def test_a_rule_may_ask_for_several_numbers_of_the_whole_tensor(as_rule, dtype):
    """Each is a pass of its own, and each tensor of the table has its own."""
    rule = as_rule(trusting)
    for optimizer in optimizers(dtype, direction="adam", decay=rule, weight_decay=0.5):
        for t in range(1, 4):
            give_gradients(optimizer, t)
            reference = Reference(optimizer)
            assert reference.effect(Reference(optimizer, weight_decay=0.0)) >= 100
            optimizer.step()
            assert not reference.outside(), optimizer.backend


def test_a_reduction_of_numbers_of_any_size_stays_in_range():
    """The sum of |w|ⁿ leaves float64 long before ‖w‖ₙ does."""
    for scale, n in itertools.product((1e-30, 1.0, 1e30), (1.0, 2.0, 7.5, 60.0)):
        w = noise((5000,), torch.float32, 1) * scale
        rules = {"direction": "sgd", "penalty": "norm", "penalty_weight": 0.5 * scale, "n": n}
        for backend in BACKENDS:
            param = Parameter(w.clone())
            param.grad = torch.zeros_like(w)
            optimizer = wd.Optimizer([param], 1.0, backend=backend, **rules)
            reference = Reference(optimizer)
            assert reference.effect(Reference(optimizer, penalty_weight=0.0), quantile=1.0) >= 100
            optimizer.step()
            assert not reference.outside(), (backend, scale, n)


# Stochastic rounding ----------------------------------------------------------------------------------------------------


def decayed(dtype, value, *, seed=0, size=10**6, params=1, steps=1):
    """Return equal weights after decay alone."""
    weights = [Parameter(torch.full((size,), value, dtype=dtype)) for _ in range(params)]
    optimizer = wd.SGDW(weights, lr=0.01, weight_decay=0.1, rounding="stochastic", backend="cpu", seed=seed)
    for _ in range(steps):
        for param in weights:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    return [param.detach() for param in weights]


@pytest.mark.parametrize("value", [1.0, -1.0, 0.7, 3.3e-6, -211.0])
@pytest.mark.parametrize("dtype", LOW, ids=name)
def test_a_million_equal_weights_decay_by_what_they_should_on_average(dtype, value):
    (after,) = decayed(dtype, value, seed=3)
    start = torch.tensor(value, dtype=dtype)
    exact = ((1 - 0.01 * 0.1) * start.float()).double()
    low, high = after.min().double(), after.max().double()
    assert low < exact < high
    assert len(after.unique()) == 2
    share = (exact - low) / (high - low)
    error = (high - low) * (share * (1 - share) / after.numel()).sqrt()
    assert (after.double().mean() - exact).abs() <= 3 * error
    assert (start.double() - exact).abs() >= 100 * error


@pytest.mark.parametrize("dtype", LOW, ids=name)
def test_seeds_steps_and_parameters_draw_different_bits(dtype):
    first, second = decayed(dtype, 1.0, params=2, size=4096)
    again, _ = decayed(dtype, 1.0, params=2, size=4096)
    (other,) = decayed(dtype, 1.0, seed=1, size=4096)
    far, wide = (decayed(dtype, 1.0, seed=seed, size=4096)[0] for seed in (2**32, 2**63))
    assert torch.equal(first, again)
    drawn = [first, second, other, far, wide]
    for some, others in itertools.combinations(drawn, 2):
        assert 0.05 < (some != others).double().mean() < 0.6


def test_steps_draw_different_bits():
    """Weights that are put back after each step would repeat themselves if t were not in the key."""
    param = Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = wd.SGDW([param], lr=0.01, weight_decay=0.1, backend="cpu")
    drawn = []
    for _ in range(4):
        param.grad = torch.zeros_like(param)
        with torch.no_grad():
            param.fill_(1.0)
        optimizer.step()
        drawn.append(param.detach().clone())
    for some, others in itertools.combinations(drawn, 2):
        assert 0.05 < (some != others).double().mean() < 0.6


# Mixed dtypes -----------------------------------------------------------------------------------------------------------

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def alike(ours, theirs):
    """Tell whether two optimizers of these rules, which IEEE 754 rounds in one way, hold the same bits."""
    got, expected = values(ours), values(theirs)
    return set(got) == set(expected) and all(same_bits(got[key], expected[key]) for key in got)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch gives a gradient its parameter's dtype")
@pytest.mark.parametrize("of_grad", FLOATS, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_a_gradient_of_another_dtype(dtype, of_grad):
    ours, theirs = optimizers(dtype, "auto", **EXACT)
    for t in range(1, 4):
        for optimizer in (ours, theirs):
            for param, grad in zip(all_params(optimizer), tensors(of_grad, seed=100 * t, laid=t == 2), strict=True):
                param.grad_dtype = of_grad
                param.grad = grad
            optimizer.step()
    assert alike(ours, theirs)


@pytest.mark.parametrize("of_moment", FLOATS, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_moments_of_another_dtype(dtype, of_moment):
    """They are read as they are, and rounded to nearest when they are written."""
    ours, theirs = optimizers(dtype, "auto", **EXACT)
    for t in range(1, 5):
        for optimizer in (ours, theirs):
            give_gradients(optimizer, t)
            if t == 2:
                for state in optimizer.state.values():
                    state["momentum_buffer"] = state["momentum_buffer"].to(of_moment)
            optimizer.step()
    assert {state["momentum_buffer"].dtype for state in ours.state.values()} == {of_moment}
    assert alike(ours, theirs)


@pytest.mark.parametrize("edge", ["rounds twice", "overflows", "underflows", "not finite"])
@pytest.mark.parametrize(("dtype", "of_moment"), list(itertools.product((torch.float64, torch.float32), LOW)), ids=name)
def test_a_narrow_moment_is_rounded_as_torch_rounds(dtype, of_moment, edge):
    """From float64 torch goes by way of float32, which shows where the first rounding makes a tie."""
    eps = torch.finfo(of_moment).eps
    edges = {
        "rounds twice": 1 + eps * torch.tensor([0.5 + 2**-20, 0.5 - 2**-20, 0.5, 1.5, 0.5 + 2**-30, 1.5 - 2**-30]).double(),
        "overflows": torch.tensor([0.999, 0.9999, 1.0, 1.0001, 2.0, 1e5]).double() * torch.finfo(of_moment).max,
        "underflows": torch.finfo(of_moment).tiny * torch.tensor([1, 0.3, 0.01, eps, eps / 2, eps / 4]).double(),
        "not finite": torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, 1.0]).double(),
    }
    grad = torch.cat([edges[edge], -edges[edge], edges[edge].repeat(3)]).to(dtype)
    ours, theirs = (
        wd.SGD([Parameter(torch.zeros(30, dtype=dtype))], lr=0.1, momentum=0.9, backend=backend) for backend in BACKENDS
    )
    for optimizer in (ours, theirs):
        (param,) = all_params(optimizer)
        param.grad = grad
        optimizer.state[param]["step"] = torch.tensor(0.0)
        optimizer.state[param]["momentum_buffer"] = torch.zeros(30, dtype=of_moment)
        optimizer.step()
    got, expected = (next(iter(o.state.values()))["momentum_buffer"] for o in (ours, theirs))
    assert got.dtype == of_moment
    assert ulps(got, expected).max() == 0


OLDER = """
from itertools import product
from weightdecay.backends.cpu import jit

class Features(dict):
    def flatten(self):
        return ""

target, *_ = jit._processor()
jit._processor = lambda: (target, "haswell", Features(f16c=True))
import test_cpu_backend as tests
for dtypes in product(tests.FLOATS, tests.FLOATS):
    print(*dtypes, flush=True)
    tests.test_moments_of_another_dtype(*dtypes)
"""


@pytest.mark.skipif(not binding.get_host_cpu_features().get("f16c"), reason="code for an older processor would not run here")
@pytest.mark.slow
def test_a_processor_without_float16_arithmetic_needs_no_function_that_is_not_there():
    """LLVM calls a library for what a processor cannot do; where that is missing the process ends without a word."""
    assert output(OLDER, timeout=120).splitlines() == [f"{dtype} {moment}" for dtype in FLOATS for moment in FLOATS]


class Lacking(dict):
    """The features of a processor that has everything but some."""

    def __init__(self, *missing):
        super().__init__({name: name not in missing for name in jit.LEVELS["x86-64-v4"]})


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("x86-64-v9", ["there are x86-64-v2, x86-64-v3, x86-64-v4"]),
        ("haswell", ["there are x86-64-v2, x86-64-v3, x86-64-v4"]),
        ("x86-64-v4", ["has no fma, avx512bw", jit.binding.get_host_cpu_name()]),
    ],
)
def test_a_processor_that_cannot_be_asked_for_is_refused_by_name(monkeypatch, asked, words):
    monkeypatch.setenv("WEIGHTDECAY_CPU", asked)
    monkeypatch.setattr(jit.binding, "get_host_cpu_features", lambda: Lacking("fma", "avx512bw"))
    with refused(ValueError, f"WEIGHTDECAY_CPU={asked!r}", *words):
        jit._processor.__wrapped__()


def test_a_processor_is_what_the_environment_calls_it(monkeypatch):
    monkeypatch.setattr(jit.binding, "get_host_cpu_features", Lacking)
    for asked, has_float16 in (("x86-64-v2", False), ("x86-64-v3", True)):
        monkeypatch.setenv("WEIGHTDECAY_CPU", asked)
        _, processor, features = jit._processor.__wrapped__()
        assert processor == asked
        assert features["sse4.2"]
        assert features["f16c"] == has_float16
        assert not features["avx512f"]
    for asked in ("", None):
        monkeypatch.delenv("WEIGHTDECAY_CPU") if asked is None else monkeypatch.setenv("WEIGHTDECAY_CPU", asked)
        assert jit._processor.__wrapped__()[1] == jit.binding.get_host_cpu_name()


# Directions of whole tensors --------------------------------------------------------------------------------------------


def orthogonal(g, m, *, t, friction=0.1):
    m = (1 - friction) * m + g
    u, _, v = torch.linalg.svd(m.flatten(1), full_matrices=False)
    return (u @ v).reshape(m.shape), m


def crossed(g, *, t):
    return g.mT.contiguous().mT * t


def of_one_row(g, *, t):
    return g[:1]


def in_double(g, *, t):
    return g.double() * 2


def spread_out(g, *, t):
    return g.sum().expand(g.shape)


def itself(g, *, t):
    return g


@pytest.fixture
def as_whole(own_registry):
    return lambda function, **state: wd.direction(source="a test of this package", whole=True, state=state)(function)


WHOLE = {
    "orthogonal": (orthogonal, {"m": "momentum_buffer"}),
    "crossed": (crossed, {}),
    "spread out": (spread_out, {}),
    "itself": (itself, {}),
}


def whole_optimizers(direction, dtype, how="auto", **rules):
    """Return an optimizer per backend, of matrices that lie in every way, one of which lacks a gradient now and then."""
    rules = {"decay": "decoupled", "weight_decay": 0.5, **rules}
    return [
        wd.Optimizer(
            map(Parameter, tensors(dtype, seed=0, whole=True)),
            0.05,
            direction=direction,
            rounding=how,
            backend=backend,
            **rules,
        )
        for backend in BACKENDS
    ]


def train_whole(optimizer, steps=4):
    for t in range(1, 1 + steps):
        give_gradients(optimizer, t)
        if t == 2:
            all_params(optimizer)[1].grad = None
        optimizer.step()


@pytest.mark.parametrize(
    "rules",
    [{}, {"decay": "cautious"}, {"penalty": "l2", "penalty_weight": 0.3}, {"maximize": True}],
    ids=["decoupled", "cautious", "penalty", "maximize"],
)
@pytest.mark.parametrize(
    ("dtype", "how"),
    [(torch.float64, "nearest"), (torch.float32, "nearest"), (torch.bfloat16, "stochastic"), (torch.float16, "compensated")],
    ids=str,
)
@pytest.mark.parametrize(("direction", "state"), WHOLE.values(), ids=WHOLE)
def test_a_direction_of_whole_tensors_is_half_a_step(as_whole, direction, state, dtype, how, rules):
    """torch makes u, and the kernel does the rest bit for bit."""
    rule = as_whole(direction, **state)
    ours, theirs = whole_optimizers(rule, dtype, how, **rules)
    (free,) = whole_optimizers(rule, dtype, how, **{**rules, "weight_decay": 0.0})[1:]
    for optimizer in (ours, theirs, free):
        train_whole(optimizer)
    got, expected = values(ours), values(theirs)
    assert set(got) == set(expected)
    assert all(same_bits(got[key], expected[key]) for key in got)
    assert changed(expected, values(free)) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_a_u_of_another_dtype_is_read_in_the_weights(as_whole, dtype):
    ours, theirs = whole_optimizers(as_whole(in_double), dtype)
    for optimizer in (ours, theirs):
        train_whole(optimizer)
    assert alike(ours, theirs)


def test_a_direction_of_whole_tensors_stands_beside_others(as_whole):
    rule = as_whole(orthogonal, m="momentum_buffer")

    def build(backend):
        params = list(parameters(torch.float32, {"matrix": (5, 4), "bias": (5,), "low": (4, 4)}).values())
        low = Parameter(params[2].detach().bfloat16())
        groups = [{"params": params[:1]}, {"params": params[1:2], "direction": "sgd", "momentum": 0.9}, {"params": [low]}]
        return wd.Optimizer(groups, 0.05, direction=rule, decay="cautious", weight_decay=0.5, backend=backend)

    ours, theirs = map(build, BACKENDS)
    for optimizer in (ours, theirs):
        train(optimizer, 4)
    assert everything(ours) == everything(theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_u_of_a_wrong_shape_is_refused_before_the_weight_moves(as_whole, backend):
    optimizer = wd.Optimizer(
        [Parameter(noise((4, 3), torch.float32, 1))], 0.1, direction=as_whole(of_one_row), decay="decoupled", backend=backend
    )
    before = bits(all_params(optimizer))
    set_gradients(optimizer, 1)
    with refused(ValueError, "of_one_row", "(1, 3)", "(4, 3)"):
        optimizer.step()
    assert bits(all_params(optimizer)) == before


# What it cannot do ------------------------------------------------------------------------------------------------------


def stepping(params, backend="cpu", **options):
    """Return an optimizer whose parameters have gradients."""
    optimizer = wd.Optimizer(params, 0.1, **EXACT, backend=backend, **options)
    set_gradients(optimizer, 1)
    return optimizer


NAMED = ("backend='cpu'", "backend='auto'")


def test_a_complex_parameter_is_refused_by_name():
    params = {**parameters(torch.float32), **parameters(torch.complex64, {"rotation": (3,)})}
    optimizer = stepping(params.items())
    with refused(ValueError, *NAMED, "'rotation'", "complex64", unchanged=optimizer):
        optimizer.step()


def test_a_complex_parameter_without_a_gradient_is_in_nobodys_way():
    params = [*parameters(torch.float32).values(), Parameter(noise((3,), torch.complex64, 1))]
    optimizer = stepping(params)
    params[-1].grad = None
    before = bits(params)
    optimizer.step()
    assert bits(params[-1:]) == before[-1:]
    assert bits(params[:-1]) != before[:-1]


def test_a_distributed_tensor_is_refused_by_name():
    from torch.distributed.tensor import Replicate, distribute_tensor

    with one_process() as mesh:
        spread = distribute_tensor(noise((4, 3), torch.float32, 1), mesh, [Replicate()])
        param = Parameter(spread)
        param.grad = distribute_tensor(noise((4, 3), torch.float32, 2), mesh, [Replicate()])
        optimizer = wd.Optimizer([("spread", param)], 0.1, **EXACT, backend="cpu")
        before = bits(param.to_local())
        with refused(ValueError, *NAMED, "'spread'", "DTensor"):
            optimizer.step()
        assert bits(param.to_local()) == before
        assert not optimizer.state


def test_differentiating_the_step_is_refused_by_name():
    optimizer = stepping(parameters(torch.float64).values(), differentiable=True)
    with refused(RuntimeError, *NAMED, "differentiable", unchanged=optimizer):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own, on the way into its compiler
def test_compiling_the_step_into_one_graph_is_refused_by_name():
    torch._dynamo.reset()
    optimizer = stepping(parameters(torch.float32).values())
    with refused(RuntimeError, *NAMED, "torch.compile", unchanged=optimizer):
        torch.compile(optimizer.step, backend="eager", fullgraph=True)()


def test_real_parameters_go_through_the_kernel_beside_complex_ones(monkeypatch):
    def build(backend):
        params = {f"{dtype}": Parameter(noise((4, 3), dtype, 1)) for dtype in (*FLOATS, torch.complex64, torch.complex128)}
        return wd.Optimizer(params.values(), 0.1, **EXACT, backend=backend)

    ours, theirs = build("auto"), build("eager")
    train(theirs, 3)
    seen = []
    update = eager.update
    monkeypatch.setattr(eager, "update", lambda *given, **named: seen.append(given[2].dtype) or update(*given, **named))
    train(ours, 3)
    without_a_kernel = set() if jit.converts_float16() else {torch.float16}
    assert set(seen) == {torch.complex64, torch.complex128} | without_a_kernel
    assert everything(ours) == everything(theirs)


class Counted(torch.Tensor):
    """A subclass that means nothing by an operation."""


@pytest.mark.parametrize("which", ["weights", "gradients"])
def test_subclasses_of_tensor_step_as_tensors(which):
    def build(backend):
        w, g = noise((4, 3), torch.float32, 1), noise((4, 3), torch.float32, 2)
        param = w.as_subclass(Counted).requires_grad_() if which == "weights" else Parameter(w)
        param.grad = g.as_subclass(Counted) if which == "gradients" else g
        optimizer = wd.Optimizer([param], 0.1, **EXACT, backend=backend)
        optimizer.step()
        return param.detach().as_subclass(torch.Tensor)

    assert bits(build("auto")) == bits(build("eager"))


def test_a_gradient_may_be_a_parameter():
    def build(backend):
        param = Parameter(noise((4, 3), torch.float32, 1))
        param.grad = Parameter(noise((4, 3), torch.float32, 2))
        wd.Optimizer([param], 0.1, **EXACT, backend=backend).step()
        return param

    assert bits(build("cpu")) == bits(build("eager"))


def test_a_parameter_that_is_a_lazy_negative_is_the_number_it_is():
    """The imaginary part of a conjugate: the sign is a bit on the tensor, not yet in its memory."""

    def build(backend, size):
        param = Parameter(noise((size,), torch.complex64, 1).conj().imag)
        assert param.is_neg()
        optimizer = wd.Optimizer([param], 0.1, **EXACT, backend=backend)
        train(optimizer, 2)
        return param.detach().tolist()

    for size in (1, 5):
        assert build("cpu", size) == build("eager", size)


def test_a_model_learns():
    """An end-to-end check that needs no other backend: a line is fitted."""
    model = Linear(1, 1)
    optimizer = wd.AdamW(model.parameters(), lr=0.05, weight_decay=0.0, backend="cpu")
    x = torch.linspace(-1, 1, 64)[:, None]
    for _ in range(400):
        optimizer.zero_grad()
        ((model(x) - (3 * x - 2)) ** 2).mean().backward()
        optimizer.step()
    assert model.weight.item() == pytest.approx(3, abs=0.01)
    assert model.bias.item() == pytest.approx(-2, abs=0.01)


def test_a_copy_of_an_optimizer_steps_alone():
    optimizer = stepping(parameters(torch.float32).values())
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    before = everything(optimizer)
    train(twin, 2, first=2)
    assert everything(optimizer) == before
    train(optimizer, 2, first=2)
    assert everything(optimizer) == everything(twin)
    assert apart(optimizer, twin) == 0
