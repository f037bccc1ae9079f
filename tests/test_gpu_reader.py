"""The gpu reader against the others: its kernels, which Triton's interpreter runs on the CPU, give the others' numbers.

They run with TRITON_INTERPRET=1 in the environment, for which Triton looks once: `make gpu-check` sets it.
"""

import itertools

import pytest
import torch
from runs import RULES, name, same_bits
from torch.nn import Parameter
from training import LAYOUTS, all_params, noise

import weightdecay as wd
from weightdecay.readers import rounding

gpu = pytest.importorskip("weightdecay.readers.gpu.reader", reason="Triton is not installed", exc_type=ImportError)
pytestmark = [
    pytest.mark.skipif(not gpu.INTERPRETED, reason="TRITON_INTERPRET=1 is not set"),
    # The interpreter's own, which is NumPy.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

LOW = rounding.LOW_PRECISION
PRECISIONS = [
    (torch.float64, "nearest"),
    (torch.float32, "nearest"),
    *itertools.product(LOW, ("nearest", "stochastic", "compensated")),
]
TOLERANCE = {torch.float64: 1e-12}
SIZES = [(0, 3), (), (7,), (33, 64)]
APPROXIMATED = {"exp", "log", "power"}
"""Words of which two libraries may give neighbouring numbers."""


def pairs():
    """Return every rule with what makes an optimizer of it, one without powers first."""
    sgd, adam = {"direction": "sgd", "momentum": 0.9}, {"direction": "adam"}
    for rule in RULES:
        strength = {"weight_decay": 0.5} if "lam" in rule.numbers else {}
        if rule.kind == "direction":
            momentum = {"momentum": 0.9} if "mu" in rule.defaults else {}
            yield {"direction": rule.name, "decay": "decoupled", "weight_decay": 0.5, **momentum}
        elif rule.kind == "penalty":
            yield {"penalty": rule.name, "penalty_weight": 2.0, **sgd}
        else:
            yield {"decay": rule.name, **strength, **(adam if rule.name in ("cautious", "hyperball") else sgd)}


def cases():
    """Return the pairs in both wide dtypes; in the narrow ones each rounding with a few, and one rounding with all."""
    found = {}
    for place, (rules, (dtype, how)) in enumerate(itertools.product(pairs(), PRECISIONS)):
        few = rules["direction"] in ("sgd", "adam", "nadam") and rules.get("decay") in ("decoupled", "cautious", "constrained")
        if dtype not in LOW or few or how == ("stochastic", "compensated", "nearest")[place % 3]:
            names = (rules.get("penalty"), rules["direction"], rules.get("decay"), name(dtype), how)
            found["-".join(filter(None, names))] = (rules, dtype, how)
    return found


CASES = cases()


def parameters_of(dtype, seed, *, laid=True):
    """Return a tensor of every size at which a loop may go wrong, and one of every layout."""
    flat = [noise(shape, dtype, seed + place) for place, shape in enumerate(SIZES)]
    full = noise((2, 4, 3, 6), dtype, seed + 50)
    return [*flat, *(layout(full) if laid else full for layout in LAYOUTS.values())]


def trained(reader, dtype=torch.float32, how="nearest", steps=3, **rules):
    """Return an optimizer of the same tensors, trained on gradients that depend on nothing else."""
    optimizer = wd.Optimizer(map(Parameter, parameters_of(dtype, 0)), 0.05, reader=reader, rounding=how, **rules)
    for t in range(1, steps + 1):
        for param, grad in zip(all_params(optimizer), parameters_of(dtype, 1000 * t, laid=t % 2 == 0), strict=True):
            param.grad = grad
        optimizer.step()
    return optimizer


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
    """Return the largest difference, in units of the largest value."""
    if not got.numel():
        return 0.0
    return ((got.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30)).item()


def is_exact(optimizer):
    """Tell whether the kernels' arithmetic has one right answer: sums are taken in another order, powers by other libraries."""
    rules = optimizer.equation(optimizer.param_groups[0]).rules
    return not any(rule.reductions or APPROXIMATED & set(rule.function.__code__.co_names) for rule in rules)


@pytest.mark.parametrize(("rules", "dtype", "how"), CASES.values(), ids=CASES)
def test_the_kernels_agree_with_the_other_readers(rules, dtype, how):
    ours = trained("gpu", dtype, how, **rules)
    others = {reader: trained(reader, dtype, how, **rules) for reader in ("cpu", "eager")}
    got = values(ours)
    rounded = dtype in LOW and how != "compensated"
    for reader, other in others.items():
        expected = values(other)
        assert set(got) == set(expected)
        for key in got:
            if reader == "cpu" and is_exact(ours) and dtype != torch.float64:
                assert same_bits(got[key], expected[key]), key
            elif rounded and key[1] == "w":
                assert distance(got[key], expected[key]) <= 2 * torch.finfo(dtype).eps, key
            else:
                assert distance(got[key], expected[key]) <= TOLERANCE.get(dtype, 2e-6), key
