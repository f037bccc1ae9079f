"""Checkpoints: what is loaded continues as if it had never stopped, here and in torch, or is refused and changes nothing."""

import copy
import inspect
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import Linear, Parameter
from training import (
    COMBINATIONS,
    KINDS,
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
        *((key, value) for key in ("lr", "weight_decay", "eps") for value in (math.nan, math.inf, -1.0)),
        ("lr", torch.tensor(math.nan)),
        ("betas", (0.9, 1.0)),
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
    replacement["param_groups"][0]["lr"] = 0.5
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


def test_a_state_that_was_only_asked_for_holds_no_moments_of_its_own():
    """What the step with lr = 0 leaves behind: zero moments and a step count of one, as in torch."""
    model = linear()
    optimizer = wd.AdamW(model.parameters(), **LAM)
    get_optimizer_state_dict(model, optimizer)
    for state in optimizer.state.values():
        assert not state["exp_avg"].any()
        assert not state["exp_avg_sq"].any()
    set_gradients(optimizer, 1)
    optimizer.step()
