"""A state moves by name: the run goes on bit for bit as if it had always been grouped so, or nothing moves."""

import copy
import io
import json
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_groups import Tied, Wrapper
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.nn import Parameter
from training import bits, copies, noise, refused

import weightdecay as wd
from weightdecay.groups.names import differences, without_wrappers

NAMES = ("body.weight", "body.bias", "head.weight", "head.bias")
MOMENTUM = {"momentum": 0.9}
OPTIMIZERS = {
    "torch.AdamW": (torch.optim.AdamW, {}),
    "torch.SGD": (torch.optim.SGD, MOMENTUM),
    "torch.RMSprop": (torch.optim.RMSprop, MOMENTUM),
    "AdamW": (wd.AdamW, {"backend": "eager"}),
    "SGD": (wd.SGD, {**MOMENTUM, "backend": "eager"}),
    "Optimizer": (wd.Optimizer, {"direction": "adam", "decay": "toward", "backend": "eager"}),
}
optimizers = pytest.mark.parametrize(("cls", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS)
ORDINARY = (("body.weight", "head.weight"), ("body.bias", "head.bias"))
REGROUPED = (("head.bias", "body.bias"), ("head.weight",), ("body.weight",))
KEEP = {"weight_decay": "live", "lr": "checkpoint"}


def parameters():
    """Return parameters of one shape, which torch could swap without noticing."""
    return {name: Parameter(noise((3, 3), torch.float64, place)) for place, name in enumerate(NAMES)}


def build(cls, options, params, groups, decay, lr=0.05, prefix=""):
    """Return an optimizer with named groups; `decay` gives λ by name, one for each group."""
    made = [
        {"params": [(prefix + name, params[name]) for name in names], "weight_decay": decay[names[0]], "lr": lr}
        for names in groups
    ]
    return cls(made, lr=lr, **options)


def train(optimizer, params, steps, first=1):
    """Do steps whose gradients follow from the names and not from the order."""
    for t in range(first, first + steps):
        for name, p in params.items():
            p.grad = 0.5 * p.detach() + noise(p.shape, p.dtype, 1000 * t + NAMES.index(name))
        optimizer.step()


def by_name(optimizer, params):
    """Return the bits of weights and state by name."""
    return {name: bits([p, dict(optimizer.state[p])]) for name, p in params.items()}


BIASES_DO_NOT = {"body.weight": 0.1, "head.weight": 0.1, "body.bias": 0.0, "head.bias": 0.0}
NEW = {"body.weight": 0.3, "head.weight": 0.2, "body.bias": 0.0, "head.bias": 0.0}


@optimizers
def test_a_run_goes_on_in_other_groups_as_if_it_had_always_been_in_them(cls, options):
    params = parameters()
    old = build(cls, options, params, ORDINARY, BIASES_DO_NOT)
    train(old, params, 3)
    twins = copies(params)
    new = build(cls, options, twins, REGROUPED, NEW, lr=1.0)
    before = copy.deepcopy(old.state_dict())
    found = wd.migrate(new, before, **KEEP)
    assert bits(before) == bits(old.state_dict())
    assert [group["lr"] for group in new.param_groups] == [0.05] * 3
    assert [group["weight_decay"] for group in new.param_groups] == [0.0, 0.2, 0.3]
    assert by_name(new, twins) == by_name(old, params)

    reference = build(cls, options, params, [(name,) for name in NAMES], NEW)
    for name in NAMES:
        reference.state[params[name]] = old.state[params[name]]
    train(reference, params, 3, first=4)
    train(new, twins, 3, first=4)
    assert by_name(new, twins) == by_name(reference, params)
    assert len(found.moved) == 4
    assert found.missing == found.unexpected == ()


def test_torch_would_swap_the_moments_and_drop_the_new_decay():
    params = parameters()
    old = build(torch.optim.AdamW, {}, params, ORDINARY, BIASES_DO_NOT)
    train(old, params, 3)
    new = build(torch.optim.AdamW, {}, params, [tuple(reversed(names)) for names in ORDINARY], NEW)
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.state[params["head.weight"]]["exp_avg"], old.state[params["body.weight"]]["exp_avg"])
    assert new.param_groups[0]["weight_decay"] == 0.1


@settings(max_examples=25, deadline=None)
@given(st.permutations(NAMES), st.permutations(NAMES), st.integers(1, 3), st.integers(1, 3))
def test_there_and_back_is_the_identity(one, other, cut, other_cut):
    params = parameters()
    decay = dict.fromkeys(NAMES, 0.1)
    old = build(torch.optim.AdamW, {}, params, [tuple(one[:cut]), tuple(one[cut:])], decay)
    train(old, params, 2)
    state = copy.deepcopy(old.state_dict())
    between = build(torch.optim.AdamW, {}, params, [tuple(other[:other_cut]), tuple(other[other_cut:])], decay)
    wd.migrate(between, state, **KEEP)
    back = build(torch.optim.AdamW, {}, params, [tuple(one[:cut]), tuple(one[cut:])], decay)
    wd.migrate(back, between.state_dict(), **KEEP)
    assert bits(back.state_dict()) == bits(state)


# Names ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", ["module.", "_orig_mod.", "_orig_mod.module.", ""])
@pytest.mark.parametrize("live", ["", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_prefixes_of_wrappers_are_no_part_of_a_name(saved, live):
    params = parameters()
    old = build(torch.optim.AdamW, {}, params, ORDINARY, BIASES_DO_NOT, prefix=saved)
    train(old, params, 2)
    twins = copies(params)
    new = build(torch.optim.AdamW, {}, twins, REGROUPED, NEW, prefix=live)
    found = wd.migrate(new, old.state_dict(), **KEEP)
    assert by_name(new, twins) == by_name(old, params)
    assert {each.name for each in found.moved} == set(NAMES)
    assert new.param_groups[1]["param_names"] == [f"{live}head.weight"]


def model_and_twin():
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 3)}).double()
    return model, copy.deepcopy(model)


def states(optimizer, model):
    return {name: bits(dict(optimizer.state[p])) for name, p in model.named_parameters()}


def test_names_come_from_the_model_and_from_the_old_groups_where_optimizers_have_none():
    model, twin = model_and_twin()
    old_groups = wd.param_groups(model, 0.1)
    old = torch.optim.AdamW(wd.param_groups(model, 0.1, names=False))
    train(old, dict(model.named_parameters()), 2)
    new = torch.optim.AdamW(wd.param_groups(Wrapper(twin), 0.1, patterns={"head": 0.0}, names=False))
    for saved in (old_groups, [[name for name, _ in group["params"]] for group in old_groups]):
        wd.migrate(new, old.state_dict(), **KEEP, model=Wrapper(twin), saved=saved)
        assert states(new, twin) == states(old, model)
    with refused(ValueError, "the optimizer's groups have no names: pass model=", unchanged=new):
        wd.migrate(new, old.state_dict(), **KEEP, saved=old_groups)
    with refused(ValueError, "the checkpoint has no names: pass saved=", unchanged=new):
        wd.migrate(new, old.state_dict(), **KEEP, model=twin)
    with refused(ValueError, "saved has groups of [1] names, and the checkpoint of [2, 2] parameters", unchanged=new):
        wd.migrate(new, old.state_dict(), **KEEP, model=twin, saved=[["body.weight"]])
    with refused(TypeError, "lists of names", unchanged=new):
        wd.migrate(new, old.state_dict(), **KEEP, model=twin, saved=wd.param_groups(model, 0.1, names=False))


def test_a_tied_tensor_is_found_by_any_of_its_names():
    first, second = Tied(head_first=True).double(), Tied().double()
    old = torch.optim.AdamW(first.named_parameters())
    first.head(first.tokens(torch.tensor([1]))).sum().backward()
    old.step()
    new = torch.optim.AdamW(second.named_parameters())
    with refused(ValueError, "only in the optimizer: 'tokens.weight'", "only in the checkpoint: 'head.weight'"):
        wd.migrate(new, old.state_dict(), **KEEP)
    wd.migrate(new, old.state_dict(), **KEEP, model=second)
    assert bits(new.state[second.tokens.weight]) == bits(old.state[first.tokens.weight])


def test_a_state_keyed_by_names_as_of_distributed_checkpoints_is_read():
    model, twin = model_and_twin()
    old = torch.optim.AdamW(wd.param_groups(model, 0.1))
    train(old, dict(model.named_parameters()), 2)
    new = wd.AdamW(wd.param_groups(twin, 0.2, embeddings=False, patterns={"head": 0.5}), backend="eager")
    wd.migrate(new, get_optimizer_state_dict(model, old), **KEEP)
    assert states(new, twin) == states(old, model)


def test_a_file_read_with_weights_only_will_do():
    params = parameters()
    old = build(torch.optim.AdamW, {}, params, ORDINARY, BIASES_DO_NOT)
    train(old, params, 2)
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    twins = copies(params)
    new = build(wd.AdamW, {"backend": "eager"}, twins, REGROUPED, NEW)
    wd.migrate(new, torch.load(file, weights_only=True), **KEEP)
    assert by_name(new, twins) == by_name(old, params)


# Refusals, with nothing changed -----------------------------------------------------------------------------------------


def other_parameters():
    """Return an optimizer, and a checkpoint with a parameter that it lacks and without one that it has."""
    params = parameters()
    fewer = {name: p for name, p in params.items() if name != "head.bias"}
    old = torch.optim.AdamW([*fewer.items(), ("old.weight", Parameter(torch.ones(2)))], lr=0.05)
    train(old, fewer, 2)
    new = build(torch.optim.AdamW, {}, params, REGROUPED, NEW)
    train(new, params, 1)
    return new, old, params


def test_other_parameters_are_refused_with_a_diff_of_names():
    new, old, _ = other_parameters()
    with refused(
        ValueError, "only in the optimizer: 'head.bias'", "only in the checkpoint: 'old.weight'", "strict=False", unchanged=new
    ):
        wd.migrate(new, old.state_dict(), **KEEP)


def test_other_parameters_are_reported_where_they_are_allowed():
    new, old, params = other_parameters()
    found = wd.migrate(new, old.state_dict(), **KEEP, strict=False)
    assert found.missing == ("head.bias",)
    assert found.unexpected == ("old.weight",)
    assert params["head.bias"] not in new.state
    assert bits(new.state[params["head.weight"]]) == bits(old.state[params["head.weight"]])
    text = str(found)
    assert "3 of 4 parameters were found in the checkpoint by name." in text
    assert "new, without a state: 'head.bias'" in text
    assert "left behind: 'old.weight'" in text
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    train(new, params, 1, first=4)


def test_a_moment_of_another_shape_is_refused():
    params = parameters()
    new = build(torch.optim.AdamW, {}, params, REGROUPED, NEW)
    wide = {**params, "head.weight": Parameter(torch.ones(4, 3, dtype=torch.float64))}
    old = build(torch.optim.AdamW, {}, wide, ORDINARY, BIASES_DO_NOT)
    train(old, wide, 1)
    with refused(ValueError, "'head.weight'", "(4, 3) in the checkpoint and (3, 3) in the optimizer", unchanged=new):
        wd.migrate(new, old.state_dict(), **KEEP)


def test_what_the_optimizer_refuses_is_refused_whole():
    params = parameters()
    old = build(torch.optim.SGD, MOMENTUM, params, ORDINARY, BIASES_DO_NOT)
    train(old, params, 2)
    new = build(wd.AdamW, {"backend": "eager"}, copies(params), REGROUPED, NEW)
    with refused(ValueError, "momentum_buffer", "comes from another optimizer", unchanged=new):
        wd.migrate(new, old.state_dict(), **KEEP)


MOMENTS = {
    "Adagrad": ("sum", {}),
    "Rprop": ("prev", {}),
    "ASGD": ("ax", {}),
    "Adam": ("exp_avg", {}),
    "AdamW": ("max_exp_avg_sq", {"amsgrad": True}),
    "NAdam": ("exp_avg", {}),
    "Adamax": ("exp_inf", {}),
    "Adadelta": ("square_avg", {}),
    "RMSprop": ("grad_avg", {"centered": True}),
    "SGD": ("momentum_buffer", MOMENTUM),
    "Muon": ("momentum_buffer", {}),
}


@pytest.mark.parametrize(("name", "key", "options"), [(name, *rest) for name, rest in MOMENTS.items()], ids=MOMENTS)
def test_every_moment_of_torchs_optimizers_has_the_parameters_shape(name, key, options):
    params = {name: Parameter(noise((3, 3), torch.float32, place)) for place, name in enumerate(NAMES)}
    old, new = (getattr(torch.optim, name)(list(copies(params).items()), **options) for _ in range(2))
    train(old, dict(zip(NAMES, old.param_groups[0]["params"], strict=True)), 1)
    state = copy.deepcopy(old.state_dict())
    wd.migrate(new, state, **KEEP)
    for value in (torch.ones(4, 3), *([] if key in ("prev", "ax") else [torch.tensor(1.0)])):  # no rule of ours has those two
        state["state"][2][key] = value
        with refused(ValueError, f"'head.weight' has the shape {tuple(value.shape)} in the checkpoint", key, unchanged=new):
            wd.migrate(new, state, **KEEP)


@pytest.mark.parametrize(("name", "key"), [("Adagrad", "sum"), ("Rprop", "prev"), ("ASGD", "ax"), ("AdamW", "exp_avg")])
def test_the_doctor_sees_a_moment_of_another_shape(name, key):
    model = nn.Linear(3, 3)
    optimizer = getattr(torch.optim, name)(model.parameters())
    train_all(optimizer)
    assert not wd.doctor(model, optimizer, only="D7").findings
    optimizer.state[model.weight][key] = torch.ones(4, 3)
    (finding,) = wd.doctor(model, optimizer, only="D7").findings
    assert f"{key} (4, 3) for (3, 3)" in str(finding.to_dict())


@pytest.mark.parametrize("name", ["Adafactor", "LBFGS"])
def test_the_doctor_knows_what_has_another_shape_by_right(name):
    model = nn.Linear(3, 3)
    optimizer = getattr(torch.optim, name)(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not wd.doctor(model, optimizer, only="D7").findings


def test_what_adafactor_keeps_of_rows_and_columns_moves():
    for cls in (torch.optim.Adafactor, wd.Adafactor):
        params = parameters()
        old, new = (cls(list(copies(params).items())) for _ in range(2))
        train(old, dict(zip(NAMES, old.param_groups[0]["params"], strict=True)), 1)
        wd.migrate(new, old.state_dict(), **KEEP)
        assert bits(new.state_dict()["state"]) == bits(old.state_dict()["state"])


@pytest.mark.parametrize("cls", [torch.optim.AdamW, wd.AdamW])
def test_the_moments_of_a_parameter_that_has_grown_start_afresh_where_that_is_allowed(cls):
    params = parameters()
    old = build(cls, {}, params, ORDINARY, BIASES_DO_NOT)
    train(old, params, 2)
    grown = {**copies(params), "head.weight": Parameter(noise((5, 3), torch.float64, 9))}
    new = build(cls, {}, grown, REGROUPED, NEW)
    train(new, grown, 1)
    with refused(ValueError, "'head.weight' has the shape (3, 3)", "(5, 3)", "With strict=False the moments", unchanged=new):
        wd.migrate(new, old.state_dict(), **KEEP)
    found = wd.migrate(new, old.state_dict(), **KEEP, strict=False)
    assert found.reshaped == ("head.weight",)
    assert found.missing == found.unexpected == ()
    assert "another shape than in the checkpoint, so without a state: 'head.weight'" in str(found)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    assert [each.has_state for each in found.moved if each.name == "head.weight"] == [False]
    assert grown["head.weight"] not in new.state
    assert bits(new.state[grown["body.weight"]]) == bits(old.state[params["body.weight"]])
    train(new, grown, 1, first=3)


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.NAdam, wd.AdamW])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("step", value) for value in ("text", None, -1.0, 2.5, torch.tensor(float("nan")), torch.ones(2))),
        *(("exp_avg", value) for value in ("text", torch.empty(3, 3, device="meta"), torch.ones(3, 3).to_sparse())),
        *(("mu_product", value) for value in ("text", torch.ones(2))),
    ],
    ids=str,
)
def test_a_state_that_no_optimizer_could_go_on_from_is_refused_whole(cls, key, value):
    params = parameters()
    old, new = (build(cls, {}, copies(params), ORDINARY, BIASES_DO_NOT) for _ in range(2))
    for each in (old, new):
        train_all(each)
    state = copy.deepcopy(old.state_dict())
    if key not in state["state"][3]:
        return
    state["state"][3][key] = value
    with refused(ValueError, f"the loaded {key} of 'head.bias'", unchanged=new):
        wd.migrate(new, state, **KEEP)


@pytest.mark.parametrize("cls", [torch.optim.NAdam, wd.NAdam])
def test_what_is_refused_after_it_has_been_taken_is_taken_back(cls):
    """torch's classes look at numbers, and users' hooks at anything, when the state is in its place already."""
    params = parameters()
    old, new = (build(cls, {}, copies(params), ORDINARY, BIASES_DO_NOT) for _ in range(2))
    for each in (old, new):
        train_all(each)

    def hook(optimizer):
        raise RuntimeError("no")

    new.register_load_state_dict_post_hook(hook)
    with refused(RuntimeError, "no", unchanged=new):
        wd.migrate(new, old.state_dict(), weight_decay="checkpoint", lr="checkpoint")
    train_all(new)


def test_names_of_parts_are_refused_with_the_way_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    parts = [{"params": list(part.named_parameters())} for part in model]
    old, new = (torch.optim.AdamW(parts, lr=0.05) for _ in range(2))
    train_all(old)
    with refused(ValueError, "the optimizer has several parameters of one name: 'weight', 'bias'; pass model=", unchanged=new):
        wd.migrate(new, old.state_dict(), **KEEP)
    with refused(ValueError, "the checkpoint has several", "pass saved=[[name, …], …], the names in each", unchanged=new):
        wd.migrate(new, old.state_dict(), **KEEP, model=model)
    wd.migrate(new, old.state_dict(), **KEEP, model=model, saved=[["0.weight", "0.bias"], ["1.weight", "1.bias"]])
    assert bits(new.state_dict()["state"]) == bits(old.state_dict()["state"])


def train_all(optimizer):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    optimizer.step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": None}, "the 'params' of param_groups[0] of the loaded state are None, not a list"),
        ({"param_names": [1, 2]}, "hold 1, not names"),
        ({"param_names": ["body.weight"]}, "the checkpoint has no names: pass saved=…"),
        ({"lr": "fast"}, "the loaded lr of 'body.weight' is a str, not one real number"),
    ],
)
def test_hostile_groups_are_refused_with_their_place(change, message):
    params = parameters()
    old, new = (build(torch.optim.AdamW, {}, params, ORDINARY, BIASES_DO_NOT) for _ in range(2))
    train(old, params, 1)
    state = copy.deepcopy(old.state_dict())
    state["param_groups"][0].update(change)
    with refused(ValueError, message, unchanged=new):
        wd.migrate(new, state, **KEEP)


def test_names_cost_time_in_proportion_to_their_number_and_their_length():
    """Each once took the square of it: minutes."""
    ours, theirs = ([f"module.layers.{place}.{kind}" for place in range(50_000)] for kind in ("weight", "kernel"))
    begin = time.process_time()
    assert differences(without_wrappers(ours), without_wrappers(theirs)).endswith("and 49990 more")
    assert without_wrappers(["." * 100_000, "module." * 100_000 + "weight"]) == ["." * 100_000, "module.weight"]
    assert without_wrappers(["module." * 100_000 + "weight"]) == ["weight"]
    assert time.process_time() - begin < 20


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight_decay": "new"}, ValueError, "weight_decay='new' is unknown"),
        ({"state_dict": {"model": {}, "optimizer": {}}}, TypeError, "state_dict has 'model', 'optimizer', not the 'state'"),
        ({"state_dict": [1]}, TypeError, "state_dict is a list"),
        ({"optimizer": object()}, TypeError, "optimizer is a object, not a torch.optim.Optimizer"),
        ({"model": nn.Linear(2, 2)}, ValueError, r"of shape \(3, 3\), is not in the model"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused(change, error, message):
    new = build(torch.optim.AdamW, {}, parameters(), REGROUPED, NEW)
    given = {"optimizer": new, "state_dict": new.state_dict(), **KEEP, **change}
    with pytest.raises(error, match=message):
        wd.migrate(given.pop("optimizer"), given.pop("state_dict"), **given)


def test_the_policies_have_to_be_said():
    new = build(torch.optim.AdamW, {}, parameters(), REGROUPED, NEW)
    with pytest.raises(TypeError, match="weight_decay"):
        wd.migrate(new, new.state_dict(), lr="live")


# Which hyper-parameters hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [torch.optim.AdamW, wd.AdamW])
def test_each_policy_takes_its_family_and_leaves_the_rest(cls):
    params = parameters()
    old = cls([{"params": list(params.items()), "weight_decay": 0.1, "lr": 0.02, "betas": (0.5, 0.5)}])
    scheduler = torch.optim.lr_scheduler.ExponentialLR(old, 0.5)
    train(old, params, 1)
    scheduler.step()
    for policy, decay, lr in [("checkpoint", 0.1, 0.01), ("live", 0.4, 1.0)]:
        new = cls([{"params": list(params.items()), "weight_decay": 0.4}], lr=1.0)
        wd.migrate(new, old.state_dict(), weight_decay=policy, lr=policy)
        (group,) = new.param_groups
        assert (group["weight_decay"], group["lr"], group["betas"]) == (decay, lr, (0.9, 0.999))
        assert group.get("initial_lr") == (0.02 if policy == "checkpoint" else None)


def test_a_group_cannot_have_two_values_of_the_checkpoint():
    params = parameters()
    old = build(torch.optim.AdamW, {}, params, ORDINARY, BIASES_DO_NOT)
    new = build(torch.optim.AdamW, {}, params, [("body.weight", "body.bias"), ("head.weight", "head.bias")], NEW)
    with refused(
        ValueError, "weight_decay was 0.1 for 'body.weight' and 0 for 'body.bias'", "weight_decay='live'", unchanged=new
    ):
        wd.migrate(new, old.state_dict(), weight_decay="checkpoint", lr="live")


@pytest.mark.parametrize("cls", [torch.optim.AdamW, wd.AdamW])
def test_a_run_under_a_scheduler_goes_on_where_it_was(cls):
    options = {"backend": "eager"} if cls is wd.AdamW else {}

    def scheduled(params, groups):
        optimizer = build(cls, options, params, groups, BIASES_DO_NOT)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    def go(optimizer, scheduler, params, first):
        for t in range(first, first + 3):
            train(optimizer, params, 1, first=t)
            scheduler.step()

    params = parameters()
    old, scheduler = scheduled(params, ORDINARY)
    go(old, scheduler, params, 1)
    twins = copies(params)
    new, its = scheduled(twins, [tuple(reversed(names)) for names in ORDINARY])
    its.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    wd.migrate(new, copy.deepcopy(old.state_dict()), weight_decay="checkpoint", lr="checkpoint")
    go(old, scheduler, params, 4)
    go(new, its, twins, 4)
    assert by_name(new, twins) == by_name(old, params)


@pytest.mark.parametrize("policy", ["live", "checkpoint"])
def test_a_tensor_of_lambda_stays_the_same_object(policy):
    params = parameters()
    old = build(torch.optim.AdamW, {}, params, ORDINARY, BIASES_DO_NOT)
    decay = torch.tensor(0.4)
    new = torch.optim.AdamW([{"params": [(name, params[name]) for name in ORDINARY[0]], "weight_decay": decay}])
    wd.migrate(new, old.state_dict(), weight_decay=policy, lr="live", strict=False)
    assert new.param_groups[0]["weight_decay"] is decay
    assert decay.item() == pytest.approx(0.4 if policy == "live" else 0.1)


# What our own load_state_dict refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([tuple(reversed(names)) for names in ORDINARY], ["place 0: 'head.weight' in the optimizer, 'body.weight'"]),
        (
            [("body.weight",), ("head.weight", "body.bias", "head.bias")],
            ["    0: 1 parameter ('body.weight')\n    1: 3 parameters ('head"],
        ),
        ([ORDINARY[0], ("body.bias",)], ["only in the checkpoint: 'head.bias'"]),
    ],
    ids=["order", "groups", "parameters"],
)
def test_our_optimizers_refuse_other_names_and_say_how_to_move_them(groups, words):
    params = parameters()
    old = build(wd.AdamW, {"backend": "eager"}, params, ORDINARY, BIASES_DO_NOT)
    train(old, params, 1)
    new = build(wd.AdamW, {"backend": "eager"}, copies(params), groups, NEW)
    with refused(ValueError, *words, "weightdecay.migrate(optimizer, state_dict", unchanged=new):
        new.load_state_dict(old.state_dict())


def test_our_optimizers_load_the_same_names_behind_another_wrapper_and_keep_their_own():
    params = parameters()
    old = build(wd.AdamW, {"backend": "eager"}, params, ORDINARY, BIASES_DO_NOT, prefix="module.")
    train(old, params, 1)
    twins = copies(params)
    new = build(wd.AdamW, {"backend": "eager"}, twins, ORDINARY, BIASES_DO_NOT, prefix="_orig_mod.")
    new.load_state_dict(old.state_dict())
    assert by_name(new, twins) == by_name(old, params)
    assert new.param_groups[0]["param_names"] == ["_orig_mod.body.weight", "_orig_mod.head.weight"]


# A λ that stands elsewhere ---------------------------------------------------------------------------------------------------


def attached(params, decay="cautious", **numbers):
    optimizer = torch.optim.AdamW(params, lr=1e-2)
    wd.attach(optimizer, decay, **numbers)
    return optimizer


@pytest.mark.parametrize("policy", ["live", "checkpoint"])
@pytest.mark.parametrize("make", [(torch.optim.AdamW, attached), (attached, torch.optim.AdamW), (attached, attached)])
def test_lambda_follows_its_policy_to_and_from_an_attached_decay(make, policy):
    model = torch.nn.Linear(2, 2)
    old, new = (each(wd.param_groups(model, lam)) for each, lam in zip(make, (0.3, 0.1), strict=True))
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    old.step()
    found = wd.migrate(new, old.state_dict(), weight_decay=policy, lr="live")
    wanted = 0.3 if policy == "checkpoint" else 0.1
    key = "attached_weight_decay" if make[1] is attached else "weight_decay"
    assert [group[key] for group in new.param_groups] == [wanted, 0.0]
    assert [(each.weight_decay_in_checkpoint, each.weight_decay) for each in found.moved] == [(0.3, wanted), (0.0, 0.0)]
    new.step()  # refuses a second λ beside the attached one


def test_an_attached_decay_without_lambda_brings_back_what_it_took_over():
    model = torch.nn.Linear(2, 2)
    old = attached(wd.param_groups(model, 0.3), "constrained")
    new = torch.optim.AdamW(wd.param_groups(model, 0.1))
    wd.migrate(new, old.state_dict(), weight_decay="checkpoint", lr="live")
    assert [group["weight_decay"] for group in new.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize(("policy", "step"), [("live", 0), ("checkpoint", 3)])
def test_a_schedule_of_lambda_follows_its_policy(policy, step):
    model = torch.nn.Linear(2, 2)
    schedule = {"name": "linear", "steps": 10}

    def make():
        return wd.AdamW(wd.param_groups(model, 0.3), lr=0.1, weight_decay_schedule=schedule, backend="eager")

    old, new = make(), make()
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    for _ in range(3):
        old.step()
    wd.migrate(new, old.state_dict(), weight_decay=policy, lr="live")
    assert [group["weight_decay_schedule"]["step"] for group in new.param_groups] == [step, step]
