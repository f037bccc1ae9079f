"""Checkpoints: what is loaded continues as if it had never stopped, here and in torch, or is refused and changes nothing."""

import copy
import inspect
import io
import math
import pickle
import re

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import Linear, Parameter
from training import (
    COMBINATIONS,
    KINDS,
    all_params,
    apart,
    bits,
    copies,
    default_dtype,
    everything,
    noise,
    options_of,
    parameters,
    set_gradients,
    train,
)

import weightdecay as wd
from weightdecay.optim import saved_state

LAM = {"lr": 0.05, "weight_decay": 0.1}
TWINS = {
    "SGD": ("SGD", LAM),
    "SGD-momentum": ("SGD", {**LAM, "momentum": 0.9, "dampening": 0.1}),
    "SGD-nesterov": ("SGD", {**LAM, "momentum": 0.9, "nesterov": True}),
    "Adam": ("Adam", LAM),
    "AMSGrad": ("Adam", {**LAM, "amsgrad": True}),
    "Adam-decoupled": ("Adam", {**LAM, "decoupled_weight_decay": True}),
    "AdamW": ("AdamW", LAM),
    "AdamW-amsgrad": ("AdamW", {**LAM, "amsgrad": True}),
    "NAdam": ("NAdam", LAM),
    "NAdam-decoupled": ("NAdam", {**LAM, "decoupled_weight_decay": True}),
    "RAdam": ("RAdam", LAM),
    "Adamax": ("Adamax", LAM),
    "Adagrad": ("Adagrad", {**LAM, "initial_accumulator_value": 0.5, "lr_decay": 0.1}),
    "Adadelta": ("Adadelta", {**LAM, "lr": 1.0}),
    "RMSprop": ("RMSprop", LAM),
    "RMSprop-centered-momentum": ("RMSprop", {**LAM, "centered": True, "momentum": 0.9}),
}
IMPLEMENTATIONS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
twins = pytest.mark.parametrize(("name", "options"), TWINS.values(), ids=TWINS)


kinds = pytest.mark.parametrize("preset", KINDS, ids=lambda cls: cls.__name__)
combinations = pytest.mark.parametrize("rules", COMBINATIONS.values(), ids=COMBINATIONS)


# To and from torch.optim ------------------------------------------------------------------------------------------------


def implementations():
    """Return every twin with every implementation that torch's optimizer has."""
    for twin, (name, options) in TWINS.items():
        for how, flag in IMPLEMENTATIONS.items():
            if set(flag) <= set(inspect.signature(getattr(torch.optim, name)).parameters):
                yield pytest.param(name, options, flag, id=f"{twin}-{how}")


@pytest.fixture
def in_float64():
    """torch's NAdam keeps the product of its momenta in the default dtype."""
    with default_dtype(torch.float64):
        yield


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(("name", "options", "implementation"), list(implementations()))
def test_a_run_of_torch_continues_here(name, options, implementation):
    params = parameters()
    theirs = getattr(torch.optim, name)(params.values(), **options, **implementation)
    train(theirs, 5)
    ours, fresh = (getattr(wd, name)(copies(params).values(), **options) for _ in range(2))
    ours.load_state_dict(theirs.state_dict())
    for optimizer in (ours, fresh, theirs):
        train(optimizer, 5, first=6)
    assert apart(ours, theirs) <= 1e-12
    assert apart(fresh, theirs) >= 1e-10 or not theirs.state  # the state that was loaded is what makes them equal


@pytest.mark.usefixtures("in_float64")
@twins
def test_a_run_from_here_continues_in_torch(name, options):
    params = parameters()
    ours = getattr(wd, name)(params.values(), **options)
    train(ours, 5)
    theirs = getattr(torch.optim, name)(copies(params).values(), **options)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))  # torch would share it
    for optimizer in (ours, theirs):
        train(optimizer, 5, first=6)
    assert apart(ours, theirs) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_adagrad_has_its_state_before_a_gradient_as_torchs_has(dtype):
    """In torch 2.10 Adagrad goes on from no checkpoint without it."""
    ours, theirs = (lib.Adagrad(parameters(dtype).values(), initial_accumulator_value=0.5) for lib in (wd, torch.optim))
    assert bits(ours.state_dict()["state"]) == bits(theirs.state_dict()["state"])
    train(ours, 1)
    train(theirs, 1)
    assert apart(ours, theirs) <= 1e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def test_the_implementation_of_a_torch_checkpoint_is_not_taken_over(implementation):
    params = parameters(torch.float32)
    theirs = torch.optim.AdamW(params.values(), **implementation)
    train(theirs, 1)
    ours = wd.AdamW(copies(params).values())
    ours.load_state_dict(theirs.state_dict())
    assert not ours.param_groups[0]["foreach"]
    assert not ours.param_groups[0]["fused"]
    train(ours, 1, first=2)


@twins
def test_hyper_parameters_come_with_a_torch_checkpoint(name, options):
    params = parameters()
    theirs = getattr(torch.optim, name)(params.values(), **options)
    train(theirs, 1)
    ours = getattr(wd, name)(copies(params).values())
    ours.load_state_dict(theirs.state_dict())
    assert {key: ours.param_groups[0][key] for key in options} == options


def test_torch_moments_in_bfloat16_become_float32():
    params = parameters(torch.bfloat16)
    theirs = torch.optim.AdamW(params.values(), **LAM)
    train(theirs, 3)
    ours = wd.AdamW(copies(params).values(), **LAM)
    ours.load_state_dict(theirs.state_dict())
    for mine, other in zip(ours.state.values(), theirs.state.values(), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert bits(mine[key]) == bits(other[key].float())


# Resuming our own -------------------------------------------------------------------------------------------------------


def through_state_dict(params, optimizer, build):
    params = copies(params)
    resumed = build(params.values())
    resumed.load_state_dict(optimizer.state_dict())
    return resumed


def through_a_file(params, optimizer, build):
    file = io.BytesIO()
    torch.save([dict(params), optimizer.state_dict()], file)
    file.seek(0)
    params, state = torch.load(file, weights_only=True)
    resumed = build(params.values())
    resumed.load_state_dict(state)
    return resumed


def through_deepcopy(params, optimizer, build):
    return copy.deepcopy(optimizer)


def through_pickle(params, optimizer, build):
    return pickle.loads(pickle.dumps(optimizer))


ways = pytest.mark.parametrize("way", [through_state_dict, through_a_file, through_deepcopy, through_pickle])
precisions = pytest.mark.parametrize(
    ("dtype", "rounding"),
    [
        (torch.float32, "auto"),
        (torch.bfloat16, "nearest"),
        (torch.bfloat16, "stochastic"),
        (torch.bfloat16, "compensated"),
        (torch.float16, "compensated"),
        (torch.complex64, "auto"),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)


@combinations
@precisions
@ways
def test_resuming_is_bit_for_bit_never_having_stopped(way, dtype, rounding, rules):
    def build(params):
        return wd.Optimizer(params, **LAM, **rules, rounding=rounding)

    params = parameters(dtype)
    optimizer = build(params.values())
    train(optimizer, 4)
    resumed = way(params, optimizer, build)
    assert everything(resumed) == everything(optimizer)
    for run in (optimizer, resumed):
        train(run, 4, first=5)
    assert everything(resumed) == everything(optimizer)


@kinds
@ways
def test_every_kind_of_preset_resumes(way, preset):
    def build(params):
        return preset(params, **options_of(preset), rounding="stochastic", seed=7)

    params = parameters(torch.bfloat16)
    optimizer = build(params.values())
    train(optimizer, 3)
    resumed = way(params, optimizer, build)
    for run in (optimizer, resumed):
        train(run, 3, first=4)
    assert everything(resumed) == everything(optimizer)


def test_the_seed_comes_with_the_checkpoint():
    params = parameters(torch.bfloat16)
    optimizer = wd.AdamW(params.values(), **LAM, seed=1)
    train(optimizer, 2)
    resumed = wd.AdamW(copies(params).values(), **LAM, seed=2)
    resumed.load_state_dict(optimizer.state_dict())
    for run in (optimizer, resumed):
        train(run, 2, first=3)
    assert everything(resumed) == everything(optimizer)


def test_a_scheduled_run_resumes():
    def build(params):
        optimizer = wd.Optimizer(params, lr=0.1, direction="adam", decay="independent", weight_decay=0.05)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)

    params = parameters()
    optimizer, scheduler = build(params.values())

    def go(optimizer, scheduler, first):
        for t in range(first, first + 5):
            train(optimizer, 1, first=t)
            scheduler.step()

    go(optimizer, scheduler, 1)
    resumed, its_scheduler = build(copies(params).values())
    its_scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    resumed.load_state_dict(optimizer.state_dict())
    go(optimizer, scheduler, 6)
    go(resumed, its_scheduler, 6)
    assert everything(resumed) == everything(optimizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_shares_no_memory(dtype):
    params = parameters(dtype)
    optimizer = wd.AdamW(params.values(), lr=torch.tensor(0.05), rounding="compensated")
    train(optimizer, 2)
    saved = optimizer.state_dict()
    before = bits(saved)
    resumed = wd.AdamW(copies(params).values(), rounding="compensated")
    resumed.load_state_dict(saved)
    resumed.param_groups[0]["lr"].fill_(1.0)
    train(resumed, 2, first=3)
    assert bits(saved) == before


def test_float32_moments_of_bfloat16_parameters_are_not_cast():
    params = parameters(torch.bfloat16)
    optimizer = wd.AdamW(params.values(), **LAM)
    train(optimizer, 3)
    kept = through_a_file(params, optimizer, lambda values: wd.AdamW(values, **LAM))
    for state in kept.state.values():
        assert state["exp_avg"].dtype == torch.float32
        assert bits(state["exp_avg"]) != bits(state["exp_avg"].bfloat16().float())
    assert bits(kept.state_dict()) == bits(optimizer.state_dict())


@pytest.mark.parametrize("number", [np.float64, np.float32, np.int64])
def test_numbers_from_numpy_are_saved_as_pythons(number):
    """torch.load with weights_only=True, the default, refuses NumPy's."""
    params = parameters()
    optimizer = wd.AdamW(params.values(), lr=number(1), weight_decay=number(2), betas=(number(0), 0.5), seed=np.int64(3))
    resumed = through_a_file(params, optimizer, wd.AdamW)
    group = resumed.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"], group["seed"]) == (1, 2, (0, 0.5), 3)


# Older and stranger dictionaries ----------------------------------------------------------------------------------------


@combinations
def test_a_key_that_an_older_version_lacked_keeps_its_value(rules):
    def build(params):
        return wd.Optimizer(params, **LAM, **rules)

    params = parameters()
    optimizer = build(params.values())
    train(optimizer, 2)
    keys = set(optimizer.param_groups[0]) - {"params"}
    for missing in [*({key} for key in keys), keys]:
        older = copy.deepcopy(optimizer.state_dict())
        for key in missing:
            del older["param_groups"][0][key]
        resumed = build(copies(params).values())
        resumed.load_state_dict(older)
        assert everything(resumed) == everything(optimizer), f"without {missing}"


@pytest.mark.parametrize("number", [int, float])
@kinds
def test_a_step_may_be_a_plain_number(preset, number):
    params = parameters()
    optimizer = preset(params.values(), **options_of(preset))
    train(optimizer, 3)
    older = copy.deepcopy(optimizer.state_dict())
    for state in older["state"].values():
        state["step"] = number(state["step"])
    resumed = preset(copies(params).values(), **options_of(preset))
    resumed.load_state_dict(older)
    assert bits(resumed.state_dict()["state"]) == bits(optimizer.state_dict()["state"])


@pytest.mark.parametrize("named", ["saved", "live"])
def test_names_come_with_the_checkpoint_and_stay_without(named):
    params = parameters()

    def build(which):
        fresh = copies(params)
        return wd.AdamW(fresh.items() if named == which else fresh.values(), **LAM)

    saved, live = build("saved"), build("live")
    train(saved, 2)
    live.load_state_dict(saved.state_dict())
    assert live.param_groups[0]["param_names"] == list(params)
    assert bits(live.state_dict()["state"]) == bits(saved.state_dict()["state"])


# Refusals: whole, and with nothing changed ------------------------------------------------------------------------------


def refused(optimizer, state, *, match):
    before, given = everything(optimizer), bits(state)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state)
    assert everything(optimizer) == before
    assert bits(state) == given


def trained(cls, **options):
    optimizer = cls(parameters().values(), **options)
    train(optimizer, 3)
    return optimizer


FAMILIES = {
    "sgd": [lambda lib: lib.SGD, {**LAM}],
    "momentum": [lambda lib: lib.SGD, {**LAM, "momentum": 0.9}],
    "adam": [lambda lib: lib.AdamW, {**LAM}],
}
FOREIGN = [
    ("adam", "momentum"),
    ("adam", "sgd"),
    ("momentum", "adam"),
]


@pytest.mark.parametrize("library", [wd, torch.optim], ids=["weightdecay", "torch"])
@pytest.mark.parametrize(("saved", "live"), FOREIGN)
def test_the_moments_of_another_optimizer_are_refused(saved, live, library):
    (their_class, theirs), (our_class, ours) = FAMILIES[saved], FAMILIES[live]
    foreign = trained(their_class(library), **theirs)
    refused(trained(our_class(wd), **ours), foreign.state_dict(), match="another optimizer")
    refused(our_class(wd)(parameters().values(), **ours), foreign.state_dict(), match="another optimizer")


def test_a_step_count_without_moments_is_refused_where_moments_are_needed():
    """Zero moments at step 4 would be taken for the moments of three zero gradients, and their bias corrected away."""
    stateless = trained(wd.SGD, **LAM)
    refused(wd.AdamW(parameters().values(), **LAM), stateless.state_dict(), match="another optimizer")


def test_moments_of_another_shape_are_refused():
    saved = wd.AdamW([Parameter(torch.ones(3))], **LAM)
    train(saved, 1)
    refused(wd.AdamW([Parameter(torch.ones(5))], **LAM), saved.state_dict(), match="shape")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("lr", "weight_decay", "eps") for value in (math.nan, math.inf)),
        ("lr", torch.tensor(math.nan)),
        ("betas", (math.nan, 0.9)),
        ("betas", (0.9,)),
        ("rounding", "up"),
        ("seed", -1),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_meant_is_refused(key, value):
    state = copy.deepcopy(trained(wd.AdamW, **LAM).state_dict())
    state["param_groups"][0][key] = value
    refused(trained(wd.AdamW, **LAM), state, match=key)


@pytest.mark.parametrize("change", ["one group more", "one parameter less"])
def test_other_groups_are_refused(change):
    params = parameters()
    live = wd.AdamW(params.values(), **LAM)
    train(live, 1)
    others = [*parameters().values()]
    groups = [{"params": others[:2]}] if change == "one parameter less" else [{"params": others[:1]}, {"params": others[1:]}]
    saved = wd.AdamW(groups, **LAM)
    train(saved, 1)
    refused(live, saved.state_dict(), match="group")


# Garbage ----------------------------------------------------------------------------------------------------------------

GARBAGE = [
    *(None, True, -1, 2.5, math.nan, math.inf, -math.inf, 10**400, 1e300, 2j, "text", b"bytes", (), [], {}, set(), object),
    *([1.0], {"a": 1}, np.float64(3), np.ones(2), torch.tensor(()), torch.tensor(math.nan), torch.tensor(-5.0), torch.ones(3)),
    *(torch.ones(2, 2, 2), torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 3, dtype=torch.bool), torch.ones(4, 3) * 1j),
    *(torch.ones(4, 3).to_sparse(), torch.empty(4, 3, device="meta"), torch.empty((), device="meta")),
]
FREED = torch.ones(4, 3)
FREED.untyped_storage().resize_(0)
OPTIMIZERS = {
    "adam+toward": {"direction": "adam", "decay": "toward", "rounding": "compensated"},
    "nadam+constrained": {"direction": "nadam", "decay": "constrained", "weight_decay": 0.0},
    "sgd+independent": {"direction": "sgd", "momentum": 0.9, "decay": "independent", "penalty": "l2", "penalty_weight": 0.1},
}


def leaves(tree, path=()):
    """Yield the path to everything in a tree of dictionaries and lists, and to the trees in it."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


def changed(tree, path, change):
    """Return a tree in which `change` has been done to the copy of what holds the last part of a path."""
    tree, (key, *rest) = copy.copy(tree), path
    if rest:
        tree[key] = changed(tree[key], rest, change)
    else:
        change(tree, key)
    return tree


def mutants(state):
    """Yield states that are broken in one place, with what has been done there: to the last parameter and the last group."""
    for path in leaves(state):
        if path[:2] in (("state", 0), ("param_groups", 0)) and len(path) > 2:
            continue
        yield f"without {path}", changed(state, path, lambda tree, key: tree.pop(key))
        if isinstance(path[-1], str):
            for other in ("other", 3.5):
                yield (
                    f"{other} for {path}",
                    changed(state, path, lambda tree, key, other=other: tree.update({other: tree.pop(key)})),
                )
        for value in (*GARBAGE, *[FREED] * (path[0] == "state")):
            shown = "freed memory" if value is FREED else repr(value)  # which Python could not print
            yield (
                f"{shown[:100]} at {path}",
                changed(state, path, lambda tree, key, value=value: tree.__setitem__(key, value)),
            )
    for value in GARBAGE:
        yield f"{value!r}"[:100], value


def made(rules, dtype=torch.bfloat16):
    params = [Parameter(noise(shape, dtype, place)) for place, shape in enumerate([(4, 3), (4, 3)])]
    options = {**LAM, **rules, "weight_decay_schedule": {"name": "linear", "steps": 9} if rules.get("penalty") else None}
    return wd.Optimizer([{"params": [("a", params[0])]}, {"params": [("b", params[1])]}], **options)


@pytest.mark.filterwarnings("ignore:loading has replaced", "ignore:lr=.* is above")
@pytest.mark.parametrize("rules", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_whatever_is_broken_in_a_checkpoint_it_is_refused_whole_or_loaded_and_the_run_goes_on(rules):
    saved = made(rules)
    torch.optim.lr_scheduler.ConstantLR(saved)
    train(saved, 2)
    live, wrong, loads = run_of(rules), [], 0
    before = everything(live)
    for what, broken in mutants(saved.state_dict()):
        if said := complaint(live.load_state_dict, broken):
            wrong += [f"{what}: {said}"] * (not any(place in said for place in PLACES))
            wrong += [f"{what}: changed"] * (everything(live) != before)
            continue
        loads += 1
        set_gradients(live, 7)
        said = complaint(live.step)  # of a number that may stand there between steps, and not during one
        wrong += [f"{what}, then: {said}"] * bool(said and "is not a finite number in" not in said)
        is_finite = all(param.isfinite().all() for param in all_params(live))
        wrong += [f"{what}: not finite"] * (not is_finite and not any(huge in what for huge in ("nan", "inf", "e+300")))
        live = run_of(rules)
    assert wrong == []
    assert loads > 20
    train(live, 1, first=2)


def run_of(rules):
    optimizer = made(rules)
    train(optimizer, 1)
    return optimizer


PLACES = ("of the loaded state", "the loaded", "state_dict ", "param_groups[")
"""By which a message says where something is wrong."""


def complaint(call, *args):
    """Return what the call says where it refuses."""
    try:
        call(*args)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "step", [math.nan, math.inf, -5.0, 2.5, 1e300, torch.ones(3), torch.empty(0), "3", None, 10**400, 1j, True], ids=str
)
def test_a_step_count_is_one_whole_number(step):
    optimizer = trained(wd.AdamW, **LAM)
    for value in (step, torch.tensor(step)) if isinstance(step, float) else (step,):
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][1]["step"] = value
        refused(
            optimizer, state, match=r"the loaded step of param_groups\[0\]\['params'\]\[1\] is .*not one whole number of steps"
        )


@pytest.mark.parametrize(
    "step", [4, 4.0, np.int64(4), torch.tensor(4), torch.tensor([4.0]), torch.tensor(4.0).bfloat16()], ids=repr
)
def test_a_step_count_may_be_held_in_several_ways(step):
    optimizer = trained(wd.AdamW, **LAM)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["step"] = step
    optimizer.load_state_dict(state)
    assert bits(optimizer.state_dict()["state"][0]["step"]) == bits(torch.tensor(4.0))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float32, torch.float16], ids=str)
def test_moments_in_another_dtype_are_cast_as_torch_casts_them(dtype):
    """Left as integers they would be cut off at every step."""
    params = parameters()
    theirs = torch.optim.AdamW(params.values(), **LAM)
    train(theirs, 1)
    ours = wd.AdamW(copies(params).values(), **LAM)
    state = copy.deepcopy(theirs.state_dict())
    for entry in state["state"].values():
        entry.update({key: torch.ones_like(entry[key], dtype=dtype) for key in ("exp_avg", "exp_avg_sq")})
    for optimizer in (ours, theirs):
        optimizer.load_state_dict(copy.deepcopy(state))
        train(optimizer, 5, first=2)
    assert all(state["exp_avg"].dtype == torch.float64 for state in ours.state.values())
    assert apart(ours, theirs) <= 1e-12


def test_a_number_that_a_rule_keeps_may_be_a_plain_one():
    """torch's NAdam of long ago kept its mu_product so."""
    optimizer = trained(wd.NAdam, **LAM)
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        entry["mu_product"] = entry["mu_product"].item()
    before = everything(optimizer)
    optimizer.load_state_dict(state)
    assert everything(optimizer) == before


def test_a_copy_for_which_there_is_no_memory_leaves_the_optimizer_as_it_was(monkeypatch):
    optimizer = trained(wd.AdamW, **LAM)
    before, copied = everything(optimizer), saved_state.copied
    left = iter(range(3))

    def until_full(*args):
        if next(left, None) is None:
            raise torch.OutOfMemoryError("no memory")
        return copied(*args)

    state = optimizer.state_dict()
    monkeypatch.setattr(saved_state, "copied", until_full)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.load_state_dict(state)
    assert everything(optimizer) == before
    train(optimizer, 1, first=4)


# What was written after the last step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize("library", [wd, torch.optim], ids=["weightdecay", "torch"])
def test_the_checkpoint_of_the_last_step_loads_and_the_next_step_asks_for_an_lr_that_can_be_meant(library, way):
    """torch's OneCycleLR leaves a tiny negative lr behind."""
    saved = library.AdamW(parameters().values(), lr=0.1, weight_decay=0.1)
    schedule = {"total_steps": 20, "anneal_strategy": "linear"}
    scheduler = torch.optim.lr_scheduler.OneCycleLR(saved, 0.1, **schedule)
    for t in range(20):
        train(saved, 1, first=t)
        scheduler.step()
    assert saved.param_groups[0]["lr"] < 0
    if way == "state_dict":
        loaded = wd.AdamW(parameters().values(), lr=0.1, weight_decay=0.1)
        loaded.load_state_dict(saved.state_dict())
    else:
        loaded = copy.deepcopy(saved) if way == "deepcopy" else pickle.loads(pickle.dumps(saved))
    assert loaded.param_groups[0]["lr"] == saved.param_groups[0]["lr"]
    if library is wd or way == "state_dict":
        before = everything(loaded)
        with pytest.raises(ValueError, match=r"lr=-.* is not a finite number in \[0, inf\)"):
            train(loaded, 1)
        assert everything(loaded) == before
    torch.optim.lr_scheduler.OneCycleLR(loaded, 0.1, **schedule)  # a new run
    train(loaded, 1)


@pytest.mark.parametrize("options", [{"dampening": 0.5}, {"momentum": 0.9, "nesterov": True}], ids=["dampening", "nesterov"])
def test_a_checkpoint_of_a_momentum_that_has_come_to_zero_loads(options):
    """torch takes dampening without a momentum, and looks at nesterov only where an optimizer is made."""
    params = parameters()
    theirs = torch.optim.SGD(params.values(), **LAM, **options)
    theirs.param_groups[0]["momentum"] = 0.0
    train(theirs, 2)
    ours = wd.SGD(copies(params).values(), **LAM)
    ours.load_state_dict(theirs.state_dict())
    for optimizer in (ours, theirs):
        train(optimizer, 3, first=3)
    assert apart(ours, theirs) <= 1e-12


@pytest.mark.parametrize(("key", "value"), [("lr", -1.0), ("weight_decay", -1.0), ("eps", -1.0), ("betas", (0.9, 1.0))])
def test_a_finite_number_outside_its_domain_is_refused_by_the_step(key, value):
    optimizer = trained(wd.AdamW, **LAM)
    optimizer.param_groups[0][key] = value
    state, fresh = copy.deepcopy(optimizer.state_dict()), wd.AdamW(parameters().values())
    fresh.load_state_dict(state)
    before = everything(fresh)
    with pytest.raises(ValueError, match=key):
        train(fresh, 1)
    assert everything(fresh) == before


# λ and lr that loading changes ------------------------------------------------------------------------------------------


def test_one_warning_says_which_lambda_and_lr_loading_has_changed():
    saved = torch.optim.AdamW(parameters().values(), lr=0.5, weight_decay=0.2)
    live = wd.AdamW(parameters().values(), lr=0.1, weight_decay=0.3)
    with pytest.warns(
        UserWarning, match=r"weight_decay of param_groups\[0\]: 0.3 → 0.2\n  lr of .*: 0.1 → 0.5\n.*migrate"
    ) as said:
        live.load_state_dict(saved.state_dict())
    assert len(said) == 1
    assert said[0].filename == __file__
    assert (live.param_groups[0]["lr"], live.param_groups[0]["weight_decay"]) == (0.5, 0.2)


def test_a_schedule_of_lambda_that_loading_changes_is_said():
    params = parameters().values()
    saved = wd.AdamW(params, **LAM, weight_decay_schedule={"name": "linear", "steps": 10})
    live = wd.AdamW(params, **LAM, weight_decay_schedule={"name": "linear", "steps": 20})
    with pytest.warns(UserWarning, match=r"weight_decay_schedule of .*'steps': 20.* → .*'steps': 10"):
        live.load_state_dict(saved.state_dict())


def scheduled(build):
    def made():
        optimizer = wd.AdamW(parameters().values(), lr=0.1, weight_decay=0.3)
        return optimizer, build(optimizer)

    return made


SCHEDULERS = {
    "cosine": scheduled(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)),
    "one cycle": scheduled(lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)),
    "warm-up": scheduled(lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / 10)),
    "of λ": scheduled(lambda optimizer: wd.WeightDecayScheduler(optimizer, "linear", steps=10)),
}


@pytest.mark.parametrize("live", ["fresh", "scheduled", "trained"])
@pytest.mark.parametrize("made", SCHEDULERS.values(), ids=SCHEDULERS)
def test_nothing_is_said_of_what_schedulers_have_changed(made, live):
    """Warnings are errors in these tests."""
    saved, scheduler = made()
    for t in range(4):
        train(saved, 1, first=t)
        scheduler.step()
    loaded, its = made() if live != "fresh" else (wd.AdamW(parameters().values(), lr=0.1, weight_decay=0.3), None)
    if live == "trained":
        train(loaded, 1)
        its.step()
    loaded.load_state_dict(saved.state_dict())


def test_nothing_is_said_of_an_lr_that_the_training_loop_lowers_or_of_what_nobody_has_passed():
    saved = wd.AdamW(parameters().values(), lr=0.1, weight_decay=0.3)
    saved.param_groups[0]["lr"] = 0.05
    for given in ({"lr": 0.1, "weight_decay": 0.3}, {}):
        wd.AdamW(parameters().values(), **given).load_state_dict(saved.state_dict())


# A checkpoint of other groups -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 2), (4,)], ids=["as the Trainer of transformers groups", "as torch's classes group"])
@pytest.mark.parametrize("names", [True, False])
def test_a_checkpoint_of_a_plain_run_says_how_its_groups_differ_and_names_the_way(sizes, names):
    model = torch.nn.Sequential(Linear(3, 3), torch.nn.LayerNorm(3)).double()
    params = list(model.parameters())
    groups = [params[:2], params[2:]] if len(sizes) == 2 else [params]
    plain = torch.optim.AdamW([{"params": group} for group in groups], lr=0.05)
    train(plain, 2)
    live = wd.AdamW(wd.param_groups(model, 0.1, names=names), lr=0.05)
    with pytest.raises(ValueError, match="other groups") as caught:
        live.load_state_dict(plain.state_dict())
    text = str(caught.value)
    for index, size in enumerate(sizes):
        assert f"    {index}: {size} parameters\n" in text.partition("in the optimizer")[0]
    assert "in the optimizer: 2 groups" in text
    assert ("('0.weight')" in text) == names
    assert ("model=model" in text) == (not names)
    assert "weightdecay.migrate(optimizer, state_dict, weight_decay=…, lr=…" in text
    assert "saved=[[name, …], …]" in text
    every = [name for name, _ in model.named_parameters()]
    wd.migrate(
        live,
        plain.state_dict(),
        weight_decay="live",
        lr="live",
        model=model,
        saved=[every[:2], every[2:]][: len(sizes)] if len(sizes) == 2 else [every],
    )
    assert bits(live.state[params[0]]["exp_avg"]) == bits(plain.state[params[0]]["exp_avg"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": None}, "the 'params' of param_groups[0] of the loaded state are None, not a list"),
        ({"params": [0, [1], 2]}, "the 'params' of param_groups[0] of the loaded state hold a list"),
        ({"params": [0, 0, 1]}, "has the parameter 0 twice"),
        ({"param_names": [1, 2, 3]}, "the 'param_names' of param_groups[0] of the loaded state hold 1, not names"),
    ],
)
def test_hostile_groups_are_refused_with_their_place(change, message):
    live = wd.AdamW(parameters().items(), **LAM)
    train(live, 1)
    state = copy.deepcopy(live.state_dict())
    state["param_groups"][0].update(change)
    refused(live, state, match=re.escape(message))


@pytest.mark.parametrize("build", [wd.AdamW, torch.optim.AdamW], ids=["wd", "torch"])
def test_an_optimizer_whose_group_was_appended_to_loads_its_own_state(build):
    """Torch pairs parameters by place: names that are too few are no reason to lose a checkpoint."""
    live = build([("a", Parameter(torch.ones(2)))], lr=0.05, weight_decay=0.1)
    if build is torch.optim.AdamW:
        wd.attach(live, "independent", 0.1)
    live.param_groups[0]["params"].append(Parameter(torch.ones(3)))
    train(live, 2)
    state = copy.deepcopy(live.state_dict())
    train(live, 1)
    live.load_state_dict(state)
    assert len(state["state"]) == 2
    for entry, saved in zip(live.state_dict()["state"].values(), state["state"].values(), strict=True):
        assert all(torch.equal(torch.as_tensor(entry[key]), torch.as_tensor(value)) for key, value in saved.items())


def test_a_resume_under_one_cycle_warns_of_nothing():
    """OneCycleLR replaces the lr that the optimizer is made with; a resumed run makes it after the optimizer has loaded."""

    def built():
        return wd.AdamW([Parameter(torch.ones(2))], lr=0.1, weight_decay=0.1)

    first = built()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(first, max_lr=0.5, total_steps=10)
    for _ in range(3):
        train(first, 1)
        scheduler.step()
    again = built()
    again.load_state_dict(first.state_dict())  # a warning is an error here
    resumed = torch.optim.lr_scheduler.OneCycleLR(again, max_lr=0.5, total_steps=10, last_epoch=2)
    assert resumed.get_last_lr() != [0.1]


# Attached decays --------------------------------------------------------------------------------------------------------


def attached(decay="decoupled", dtype=torch.bfloat16, build=torch.optim.AdamW):
    optimizer = build([("a", Parameter(noise((4, 3), dtype, 0))), ("b", Parameter(noise((4, 3), dtype, 1)))], lr=0.05)
    wd.attach(optimizer, decay, 0.1)
    return optimizer


@pytest.mark.parametrize(
    ("decay", "key", "value"),
    [
        *(("decoupled", "attached_pending", value) for value in (math.nan, 2.0, -0.1, "text", None, torch.ones(2))),
        *(("toward", "attached_step", value) for value in (math.nan, -1, 2.5, "text", None, torch.ones(2))),
        *(("toward", "attached_reference", value) for value in ("text", None, torch.ones(3), torch.ones(4, 3) * 1j)),
    ],
    ids=str,
)
def test_what_an_attached_decay_could_not_go_on_from_is_refused_whole(decay, key, value):
    saved, live = attached(decay), attached(decay)
    for optimizer in (saved, live):
        train(optimizer, 2)
    state = copy.deepcopy(saved.state_dict())
    assert key in state["state"][1]
    state["state"][1][key] = value
    refused(live, state, match=f"the loaded {key} of 'b'")


@pytest.mark.parametrize("change", [{"params": None}, {"lr": "text"}, {"differentiable": True}, {"weight_decay": -1.0}])
def test_groups_that_an_attached_decay_could_not_take_over_are_refused_whole(change):
    live = attached()
    train(live, 1)
    plain = torch.optim.AdamW([Parameter(noise((4, 3), torch.bfloat16, 0)), Parameter(noise((4, 3), torch.bfloat16, 1))])
    train(plain, 1)
    state = plain.state_dict()
    state["param_groups"][0].update(change)
    before = everything(live)
    with pytest.raises((TypeError, ValueError), match=r"param_groups\[0\]"):
        live.load_state_dict(state)
    assert everything(live) == before


@pytest.mark.parametrize("attach_first", [True, False])
def test_a_decay_is_attached_to_what_was_saved_after_the_last_step(attach_first):
    saved = attached(dtype=torch.float32)
    train(saved, 1)
    saved.param_groups[0]["lr"] = -4e-7
    live = torch.optim.AdamW([Parameter(torch.ones(4, 3)), Parameter(torch.ones(4, 3))])
    if attach_first:
        wd.attach(live, "decoupled", 0.1)
    live.load_state_dict(saved.state_dict())
    if not attach_first:
        wd.attach(live, "decoupled", 0.1)
    before = everything(live)
    with pytest.raises(ValueError, match="lr"):
        train(live, 1)
    assert everything(live) == before


# Hooks ------------------------------------------------------------------------------------------------------------------


def test_load_hooks_run_in_torchs_order():
    def heard(optimizer):
        calls = []
        for hook in ("first", "second"):
            optimizer.register_load_state_dict_pre_hook(lambda *_, hook=hook: calls.append(f"{hook} before"))
            optimizer.register_load_state_dict_post_hook(lambda *_, hook=hook: calls.append(f"{hook} after"))
        optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("zeroth before"), prepend=True)
        optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("zeroth after"), prepend=True)
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.load_state_dict(optimizer.state_dict())
        return calls

    ours, theirs = wd.AdamW(parameters().values()), torch.optim.AdamW(parameters().values())
    assert heard(ours) == heard(theirs) != []


def test_a_pre_hook_may_replace_the_dictionary():
    params = parameters()
    optimizer = wd.AdamW(params.values(), **LAM)
    train(optimizer, 2)
    replacement = copy.deepcopy(optimizer.state_dict())
    replacement["param_groups"][0]["eps"] = 0.5
    for state in replacement["state"].values():
        state["exp_avg"].fill_(2.0)
    optimizer.register_load_state_dict_pre_hook(lambda *_: replacement)
    optimizer.load_state_dict(optimizer.state_dict())
    assert bits(optimizer.state_dict()) == bits(replacement)


def test_what_a_pre_hook_brings_is_checked():
    optimizer = trained(wd.AdamW, **LAM)
    replacement = copy.deepcopy(optimizer.state_dict())
    replacement["param_groups"][0]["lr"] = math.nan
    optimizer.register_load_state_dict_pre_hook(lambda *_: replacement)
    refused(optimizer, optimizer.state_dict(), match="lr")


def test_a_refused_load_leaves_no_hook_behind():
    optimizer = trained(wd.AdamW, **LAM)
    bad = copy.deepcopy(optimizer.state_dict())
    bad["param_groups"][0]["lr"] = math.nan
    for _ in range(2):
        refused(optimizer, bad, match="lr")
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_post_hook_sees_the_loaded_state_and_has_the_last_word(dtype):
    params = parameters(dtype)
    optimizer = wd.AdamW(params.values(), **LAM)
    train(optimizer, 2)
    saved = optimizer.state_dict()
    before = bits(saved)
    seen = []

    def hook(loaded):
        seen.append(bits(loaded.state_dict()["state"]))
        for state in loaded.state.values():
            state["exp_avg"] = torch.full_like(state["exp_avg"], 2.0)
            state["exp_avg_sq"].fill_(3.0)

    optimizer.register_load_state_dict_post_hook(hook)
    optimizer.load_state_dict(saved)
    assert seen == [before["state"]]
    assert bits(saved) == before
    for state in optimizer.state.values():
        assert (state["exp_avg"] == 2).all()
        assert (state["exp_avg_sq"] == 3).all()


def test_saving_hooks_run_and_may_replace():
    optimizer = trained(wd.AdamW, **LAM)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("before"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "extra": calls.append("after")})
    assert "extra" in optimizer.state_dict()
    assert calls == ["before", "after"]


# torch.distributed.checkpoint, which takes a step with lr = 0 to create the state ---------------------------------------------

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
options = pytest.mark.parametrize("how", [StateDictOptions(), FLAT], ids=["nested", "flat"])


def linear(dtype=torch.float32):
    model = Linear(3, 2).to(dtype)
    with torch.no_grad():
        for place, param in enumerate(model.parameters()):
            param.copy_(noise(param.shape, dtype, place))
        model.bias[0] = -0.0
        model.weight[0, 0] = 2.0**-20
    return model


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@combinations
@options
def test_asking_for_a_state_before_the_first_step_changes_no_weight(how, rules, dtype, lr):
    model = linear(dtype)
    before = bits(model.state_dict())
    optimizer = wd.Optimizer(model.parameters(), lr=lr, weight_decay=0.1, **rules)
    state = get_optimizer_state_dict(model, optimizer, options=how)
    set_optimizer_state_dict(model, optimizer, state, options=how)
    assert bits(model.state_dict()) == before
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@combinations
@options
def test_a_distributed_checkpoint_resumes_bit_for_bit(how, rules, dtype):
    def build(model):
        return wd.Optimizer(model.parameters(), **LAM, **rules)

    model = linear(dtype)
    optimizer = build(model)
    train(optimizer, 3)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=how))
    other = copy.deepcopy(model)
    resumed = build(other)
    set_optimizer_state_dict(other, resumed, state, options=how)
    for run in (optimizer, resumed):
        train(run, 3, first=4)
    assert everything(resumed) == everything(optimizer)


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05)], ids=["float", "tensor"])
@combinations
def test_asking_for_a_state_before_the_first_step_is_no_step(rules, lr, backend):
    """torch counts it: the bias correction of the first gradients, λ·w in the moments and schedules of λ are then others."""

    def run(asks):
        model = linear()
        given = {"lr": copy.deepcopy(lr), "weight_decay": 0.1, "weight_decay_schedule": {"name": "linear", "steps": 4}}
        if rules.get("decay") == "constrained":  # which has no λ
            given = {"lr": given["lr"]}
        optimizer = wd.Optimizer(model.parameters(), **given, **rules, backend=backend)
        if asks:
            get_optimizer_state_dict(model, optimizer)
            assert len(optimizer.state) == 2
            assert all(state["step"] == 0 for state in optimizer.state.values())
        train(optimizer, 3)
        return everything(optimizer)

    assert run(asks=True) == run(asks=False)


def test_a_first_step_counts_where_lr_or_a_gradient_is_not_zero():
    for lr, grad in ((0.1, 0.0), (0.0, 1.0), (torch.tensor(0.1), 0.0), (torch.tensor(0.0), math.nan)):
        params = [Parameter(torch.ones(3)), Parameter(torch.ones(3)), Parameter(torch.ones(3))]
        optimizer = wd.Adam(params, lr=lr, weight_decay=0.1)
        params[0].grad, params[1].grad = torch.zeros(3), torch.full((3,), grad)
        optimizer.step()
        assert [int(optimizer.state[param]["step"]) for param in params[:2]] == [1, 1]
        assert params[2] not in optimizer.state


def test_a_second_step_counts_whatever_it_does():
    optimizer = wd.AdamW([Parameter(torch.ones(3))], **LAM)
    train(optimizer, 1)
    optimizer.param_groups[0]["lr"] = 0.0
    for param, state in optimizer.state.items():
        param.grad = torch.zeros(3)
        optimizer.step()
        assert state["step"] == 2


def test_a_value_that_cannot_be_meant_is_refused_where_only_a_state_is_asked_for():
    optimizer = wd.AdamW([Parameter(torch.ones(3))], lr=0.0)
    optimizer.param_groups[0].update(weight_decay=-1.0)
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(3)
    with pytest.raises(ValueError, match="weight_decay"):
        optimizer.step()
    assert not optimizer.state
