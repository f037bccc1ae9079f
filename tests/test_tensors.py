"""Tensors of every kind: those that a step takes as it takes any other, and those that are refused with nothing changed."""

import collections
import copy
import inspect
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import Embedding, Linear, Parameter
from training import (
    BACKENDS,
    COMBINATIONS,
    DIRECTIONS,
    KINDS,
    LAYOUTS,
    PRESETS,
    all_params,
    bits,
    copies,
    everything,
    noise,
    one_process,
    options_of,
    parameters,
    refused,
    train,
)

import weightdecay as wd

LAM = {"lr": 0.05, "weight_decay": 0.1}
combinations = pytest.mark.parametrize("rules", COMBINATIONS.values(), ids=COMBINATIONS)
presets = pytest.mark.parametrize("preset", KINDS, ids=lambda cls: cls.__name__)
every_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda cls: cls.__name__)
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
COMPLEX = [torch.complex64, torch.complex128]


def dtypes(*which):
    return pytest.mark.parametrize("dtype", which, ids=lambda dtype: str(dtype).removeprefix("torch."))


precisions = pytest.mark.parametrize(
    ("dtype", "rounding"),
    [
        (torch.float64, "nearest"),
        (torch.float32, "nearest"),
        (torch.bfloat16, "stochastic"),
        (torch.bfloat16, "compensated"),
        (torch.float16, "stochastic"),
        (torch.complex64, "nearest"),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)


def after(values, gradients, *, rounding="nearest", **rules):
    """Return a parameter and its optimizer after one step per gradient."""
    param = values if isinstance(values, Parameter) else Parameter(values)
    optimizer = wd.Optimizer([param], **LAM, **rules, rounding=rounding)
    for grad in gradients:
        param.grad = grad
        optimizer.step()
    return param, optimizer


def gradients(shape, dtype, steps=3):
    return [noise(shape, dtype, 100 + t) for t in range(steps)]


# What is taken ----------------------------------------------------------------------------------------------------------


@dtypes(*COMPLEX)
@combinations
def test_a_complex_number_is_a_pair_of_reals(rules, dtype):
    w, grads = noise((4, 3), dtype, 1), gradients((4, 3), dtype)
    pairs, _ = after(torch.view_as_real(w).clone(), [torch.view_as_real(g).clone() for g in grads], backend="eager", **rules)
    param, optimizer = after(w, grads, **rules)
    assert bits(torch.view_as_real(param.detach())) == bits(pairs)
    assert all(value.dtype == dtype for value in optimizer.state[param].values() if value.ndim)


@combinations
def test_a_conjugated_gradient_is_read_as_the_number_it_is(rules):
    """Autograd leaves such gradients behind: the conjugate is a bit on the tensor, not yet in its memory."""
    w, factor = noise((3,), torch.complex64, 1), noise((3,), torch.complex64, 2)
    param = Parameter(w.clone())
    (param.conj() * factor).real.sum().backward()
    lazy = param.grad
    assert lazy.is_conj()
    got, _ = after(param, [lazy], **rules)
    expected, _ = after(w, [lazy.resolve_conj()], **rules)
    assert bits(got) == bits(expected)


@precisions
@combinations
def test_a_number_is_a_tensor_of_one_element(rules, dtype, rounding):
    w, grads = noise((), dtype, 1), gradients((), dtype)
    alone, _ = after(w.clone(), grads, rounding=rounding, **rules)
    row, _ = after(w.reshape(1).clone(), [g.reshape(1) for g in grads], rounding=rounding, **rules)
    assert bits(alone.reshape(1)) == bits(row)


@precisions
@combinations
def test_a_tensor_without_elements_steps_beside_others(rules, dtype, rounding):
    shapes = {"empty": (0, 3), "full": (3,)}
    params = parameters(dtype, shapes)
    optimizer = wd.Optimizer(params.values(), **LAM, **rules, rounding=rounding)
    train(optimizer, 2)
    assert params["empty"].shape == (0, 3)
    assert optimizer.state[params["empty"]]["step"] == 2
    assert params["full"].isfinite().all()


layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@layouts
@pytest.mark.parametrize("which", ["weights", "gradients", "both"])
@combinations
def test_the_layout_in_memory_changes_no_number(rules, which, layout):
    shape = (2, 4, 3, 5)
    w, grads = noise(shape, torch.float32, 1), gradients(shape, torch.float32)
    plain, _ = after(w.clone(), grads, **rules)
    laid_w = layout(w) if which != "gradients" else w.clone()
    laid_grads = [layout(g) for g in grads] if which != "weights" else grads
    param, _ = after(laid_w, laid_grads, **rules)
    assert param.stride() == laid_w.stride()
    assert torch.allclose(param, plain, rtol=1e-6, atol=0)  # sums over the tensor may add up in another order


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "compensated"])
def test_a_step_writes_nothing_between_the_elements_of_a_view(rounding):
    base = noise((3, 8), torch.bfloat16, 1)
    before = base.clone()
    after(base[:, ::2], gradients((3, 4), torch.bfloat16), direction="adam", decay="decoupled", rounding=rounding)
    assert bits(base[:, 1::2]) == bits(before[:, 1::2])
    assert not torch.equal(base[:, ::2], before[:, ::2])


@pytest.mark.parametrize("direction", DIRECTIONS)
@dtypes(*FLOATS)
def test_the_state_has_the_layout_of_its_parameter(dtype, direction):
    w = noise((2, 4, 3, 5), dtype, 1).to(memory_format=torch.channels_last)
    momentum = {"momentum": 0.9} if direction == "sgd" else {}
    rules = {"direction": direction, "decay": "decoupled", **momentum}
    param, optimizer = after(w, gradients(w.shape, dtype), rounding="compensated", **rules)
    for name, value in optimizer.state[param].items():
        assert value.ndim == 0 or value.stride() == w.stride(), name


def test_an_expanded_gradient_is_a_full_one():
    w = noise((4, 3), torch.float64, 1)
    grad = torch.tensor(0.3, dtype=torch.float64)
    expanded, _ = after(w.clone(), [grad.expand(4, 3)] * 3, direction="sgd", momentum=0.9, decay="decoupled")
    full, _ = after(w.clone(), [grad.repeat(4, 3)] * 3, direction="sgd", momentum=0.9, decay="decoupled")
    assert bits(expanded) == bits(full)


@combinations
def test_dtypes_live_side_by_side_in_a_group(rules):
    if rules["decay"] == "stable":
        pytest.skip("it knows its neighbours")
    every = [*FLOATS, *COMPLEX]
    params = {str(dtype): Parameter(noise((4, 3), dtype, 1)) for dtype in every}
    optimizer = wd.Optimizer(params.items(), **LAM, **rules, rounding="nearest")
    for t in range(3):
        for dtype in every:
            params[str(dtype)].grad = gradients((4, 3), dtype)[t]
        optimizer.step()
    for dtype in every:
        alone, _ = after(noise((4, 3), dtype, 1), gradients((4, 3), dtype), **rules)
        assert bits(params[str(dtype)]) == bits(alone), dtype


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch gives a gradient its parameter's dtype")
@combinations
def test_a_gradient_of_another_dtype_keeps_its_precision(rules):
    w, grads = noise((4, 3), torch.bfloat16, 1), gradients((4, 3), torch.float32)
    param = Parameter(w.clone())
    param.grad_dtype = torch.float32
    got, _ = after(param, grads[:1], **rules)
    wide, _ = after(w.float(), grads[:1], **rules)
    assert bits(got) == bits(wide.bfloat16())


@pytest.mark.parametrize("capturable", [False, True])
@dtypes(torch.float32, torch.bfloat16)
@combinations
def test_on_the_meta_device_a_step_makes_shapes_only(rules, dtype, capturable):
    """A capturable step reads no number back from the device: here there are none to read."""
    param = Parameter(torch.empty(4, 3, device="meta", dtype=dtype))
    optimizer = wd.Optimizer([param], **LAM, capturable=capturable, **rules)
    param.grad = torch.empty_like(param)
    optimizer.step()
    (group,) = optimizer.param_groups
    numbers = {"step", *(each.key for rule in optimizer.equation(group).rules for each in rule.keeps if not each.per_element)}
    for name, value in optimizer.state[param].items():
        assert value.shape == (() if name in numbers else (4, 3))
        assert value.device.type == ("cpu" if name == "step" and not capturable else "meta")


def test_a_frozen_parameter_has_neither_decay_nor_state():
    params = parameters()
    params["bias"].requires_grad_(False)
    before = bits(params["bias"])
    optimizer = wd.AdamW(params.values(), **LAM)
    for t in range(3):
        sum((p**2).sum() * t for p in params.values()).backward()
        optimizer.step()
    assert bits(params["bias"]) == before
    assert params["bias"] not in optimizer.state
    assert len(optimizer.state) == 2


def test_tied_weights_decay_once():
    embedding, head = Embedding(5, 3), Linear(3, 5, bias=False)
    head.weight = embedding.weight
    before = embedding.weight.detach().clone()
    optimizer = wd.AdamW(torch.nn.ModuleList([embedding, head]).parameters(), lr=0.5, weight_decay=0.5)
    embedding.weight.grad = torch.zeros_like(before)
    optimizer.step()
    assert torch.equal(embedding.weight, 0.75 * before)


# DTensor ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh():
    with one_process() as mesh:
        yield mesh


@pytest.mark.parametrize("placement", ["shard", "replicate"])
@precisions
@combinations
def test_a_distributed_tensor_steps_as_the_whole(mesh, rules, dtype, rounding, placement):
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    def spread(tensor):
        return distribute_tensor(tensor.clone(), mesh, [Shard(0) if placement == "shard" else Replicate()])

    w, grads = noise((4, 3), dtype, 1), gradients((4, 3), dtype, steps=2)
    whole, _ = after(w.clone(), grads, rounding=rounding, backend="eager", **rules)
    parts, optimizer = after(Parameter(spread(w)), [spread(g) for g in grads], rounding=rounding, **rules)
    assert bits(parts.full_tensor()) == bits(whole)
    for name, value in optimizer.state[parts].items():
        assert isinstance(value, DTensor) == (value.ndim > 0), name  # a number of the whole is every rank's own
        assert value.ndim == 0 or value.placements == parts.placements


def test_a_fully_sharded_model_trains_as_a_whole_one(mesh):
    from torch.distributed.fsdp import fully_shard

    def trained(model, backend):
        optimizer = wd.Optimizer(model.parameters(), backend=backend, **LAM, **COMBINATIONS["norm"])
        for t in range(3):
            optimizer.zero_grad()
            model(noise((8, 3), torch.float32, t)).pow(2).sum().backward()
            optimizer.step()
        return [getattr(param, "full_tensor", lambda param=param: param)() for param in model.parameters()]

    whole = Linear(3, 2)
    sharded = copy.deepcopy(whole)
    fully_shard(sharded, mesh=mesh)
    assert bits(trained(sharded, "auto")) == bits(trained(whole, "eager"))


# What is refused, with nothing changed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
@presets
def test_a_sparse_gradient_is_refused_before_anything_moves(preset, named):
    params = parameters(shapes={"first": (3,), "table": (4, 3)})
    optimizer = preset(params.items() if named else params.values(), **options_of(preset))
    params["first"].grad = torch.ones(3, dtype=torch.float64)
    params["table"].grad = torch.ones(4, 3, dtype=torch.float64).to_sparse()
    with refused(RuntimeError, "sparse", "'table'" if named else "param_groups[0]['params'][1]", unchanged=optimizer):
        optimizer.step()


NEVER_STEPPED = {
    "int8": lambda: torch.zeros(3, dtype=torch.int8),
    "uint8": lambda: torch.zeros(3, dtype=torch.uint8),
    "int64": lambda: torch.zeros(3, dtype=torch.int64),
    "bool": lambda: torch.zeros(3, dtype=torch.bool),
    "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
    "expanded": lambda: torch.zeros(1, dtype=torch.float64).expand(3),
    "sparse": lambda: torch.zeros(3).to_sparse(),
}
frozen_kinds = pytest.mark.parametrize("kind", NEVER_STEPPED)


@pytest.mark.parametrize("backend", BACKENDS)
@frozen_kinds
@presets
def test_a_frozen_parameter_may_be_anything_and_is_refused_where_it_would_be_stepped(preset, kind, backend):
    """Quantised layers come along with model.parameters(), and never have a gradient."""
    frozen, plain = Parameter(NEVER_STEPPED[kind](), requires_grad=False), parameters()
    optimizer = preset([("layer.scales", frozen), *plain.items()], **options_of(preset), backend=backend)
    alone = preset(parameters().values(), **options_of(preset), backend=backend)
    for t in range(1, 4):
        for params in (plain, dict(zip(plain, all_params(alone), strict=True))):
            for place, param in enumerate(params.values()):
                param.grad = noise(param.shape, param.dtype, 10 * t + place)
        optimizer.step()
        alone.step()
    assert bits(list(plain.values())) == bits(all_params(alone))
    assert frozen not in optimizer.state
    preset([("layer.scales", frozen), *plain.items()], **options_of(preset)).load_state_dict(optimizer.state_dict())
    if kind != "sparse":
        frozen.grad = torch.ones_like(frozen)
        with refused((ValueError, RuntimeError), "'layer.scales'"):
            optimizer.step()
        assert bits(list(plain.values())) == bits(all_params(alone))


@pytest.mark.parametrize("form", ["tensors", "named", "group of a tensor", "group", "named group"])
@pytest.mark.parametrize(("kind", "word"), [("float8", "float8"), ("expanded", "expanded"), ("sparse", "sparse")])
@presets
def test_a_parameter_that_trains_and_cannot_be_stepped_is_refused(preset, kind, word, form):
    param = NEVER_STEPPED[kind]().requires_grad_()
    params = {
        "tensors": [param],
        "named": [("counts", param)],
        "group of a tensor": [{"params": param}],
        "group": [{"params": [param]}],
        "named group": [{"params": [("counts", param)]}],
    }[form]
    name = "counts" if "named" in form else "param_groups[0]['params'][0]"
    with refused(ValueError, word, name):
        preset(params)


BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1.0, "0.1", None, True, [0.1], torch.tensor(math.nan), torch.tensor([0.1, 0.1]),
               np.array(math.nan), np.array([0.1]), np.bool_(True), np.array(-1)]  # fmt: skip


BAD_BETAS = [(0.9,), (0.9,) * 3, (1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (math.nan, 0.9), (0.9, "0.9"), (0.9, True), 0.9, None,
             "09", {0.8, 0.9}, {0.8: 1, 0.9: 2}, np.array(0.9), np.ones((2, 2)), torch.ones(2, 2),
             torch.tensor([0.9, 1.0])]  # fmt: skip
BAD_FLAGS = [2, 0.0, None, "yes", torch.tensor(True)]
BAD_WORDS = {"rounding": ["up", None, 1], "foreach": [2, 0.0, "yes"], "fused": [2, 0.0, "yes"]}


def bad_values(preset):
    """Return every hyper-parameter of a preset with values that cannot be meant."""
    for key, default in preset([Parameter(torch.ones(1))]).defaults.items():
        if isinstance(default, bool):
            yield key, BAD_FLAGS
        elif isinstance(default, int | float):
            yield key, [*BAD_NUMBERS, *([0.5] if key == "seed" else [])]
        elif isinstance(default, tuple):
            yield key, BAD_BETAS
        else:
            yield key, BAD_WORDS[key]


@pytest.mark.parametrize(
    ("preset", "key", "bad"),
    [
        pytest.param(preset, key, bad, id=f"{preset.__name__}-{key}={bad}")
        for preset in KINDS
        for key, values in bad_values(preset)
        for bad in values
        if not (preset is wd.AdamW and key == "decoupled_weight_decay")
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_wherever_it_is_given(preset, key, bad):
    bad = {key: bad}
    with refused((TypeError, ValueError), key, "param_groups[0]"):
        preset(parameters().values(), **bad)
    with refused((TypeError, ValueError), key, "param_groups[1]"):
        preset([{"params": [Parameter(torch.ones(1))]}, {"params": [Parameter(torch.ones(1))], **bad}])
    live = preset(parameters().values(), **options_of(preset))
    train(live, 1)
    group = {"params": [Parameter(torch.ones(1))], **bad}
    given = dict(group)
    with refused((TypeError, ValueError), key, "param_groups[1]", unchanged=live):
        live.add_param_group(group)
    assert list(group) == list(given)


@pytest.mark.parametrize("rule", wd.rules().values(), ids=lambda rule: f"{rule.kind}-{rule.name}")
def test_every_number_of_a_rule_is_checked(rule):
    from weightdecay.optim.hyperparameters import defaults

    for key, default in defaults([rule]).items():
        if isinstance(default, bool):
            continue
        for bad in (math.nan, math.inf, "0.1", None):
            value = (bad,) * len(default) if isinstance(default, tuple) else bad
            if bad is None and isinstance(default, str):
                continue  # a word that is not given
            with refused((TypeError, ValueError), key):
                wd.Optimizer([Parameter(torch.ones(1, 1))], 0.1, **{"direction": "adam", rule.kind: rule.name, key: value})


def misspelt(word):
    """Return the word with two neighbours swapped in the middle."""
    middle = next(i for i in range(len(word) // 2, len(word)) if word[i] != word[i - 1])
    return word[: middle - 1] + word[middle] + word[middle - 1] + word[middle + 1 :]


@pytest.mark.parametrize("rule", wd.rules().values(), ids=lambda rule: f"{rule.kind}-{rule.name}")
def test_an_unknown_rule_is_refused_with_the_nearest_name(rule):
    wrong = misspelt(rule.name)
    with refused(ValueError, f"{rule.kind}={wrong!r}", rule.name):
        wd.Optimizer([Parameter(torch.ones(1))], 0.1, **{"direction": "sgd", rule.kind: wrong})


def test_a_rule_in_the_wrong_place_is_refused():
    from weightdecay.update_rules.decays.cautious import cautious

    def build(**rules):
        wd.Optimizer([Parameter(torch.ones(1))], 0.1, **rules)

    with refused(ValueError, "direction='cautious'", "is a decay"):
        build(direction="cautious")
    with refused(ValueError, "is a decay"):
        build(direction=cautious)
    with refused(ValueError, "not a rule", "@decay"):
        build(direction="sgd", decay=torch.sign)
    with refused(TypeError, "decay=3"):
        build(direction="sgd", decay=3)


@every_preset
def test_an_unknown_keyword_is_refused_with_the_nearest_one(preset):
    names = [p.name for p in inspect.signature(preset.__init__).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for key in [*(name for name in names[2:] if len(name) > 1), "maximize", "rounding"]:
        with refused(TypeError, preset.__name__, misspelt(key), key):
            preset([Parameter(torch.ones(1))], **{misspelt(key): 0.1})


def test_a_keyword_that_no_rule_of_the_optimizer_takes_is_refused():
    with refused(TypeError, "momentum"):
        wd.Optimizer([Parameter(torch.ones(1))], 0.1, direction="adam", momentum=0.9)
    with refused(TypeError, "lr_max"):
        wd.Optimizer([Parameter(torch.ones(1))], 0.1, direction="adam", decay="decoupled", lr_max=0.1)
    with refused(TypeError, "write lr"):
        wd.Optimizer([Parameter(torch.ones(1))], 0.1, direction="adam", eta=0.1)


@pytest.mark.parametrize("cls", [*KINDS, wd.Optimizer], ids=lambda cls: cls.__name__)
def test_a_misspelt_group_key_is_refused_with_the_right_one(cls):
    options = {"direction": "adam", "decay": "independent", **LAM} if cls is wd.Optimizer else options_of(cls)
    live = cls(parameters().values(), **options)
    long_enough = [key for key in live.param_groups[0] if len(key) >= 7 and key not in ("params", "param_names")]
    for key in long_enough:
        with refused(ValueError, misspelt(key), f"'{key}'", "param_groups[1]", unchanged=live):
            live.add_param_group({"params": [Parameter(torch.ones(1))], misspelt(key): live.param_groups[0][key]})


def test_what_others_keep_in_a_group_is_left_alone():
    extra = {"name": "head", "lr_scale": 0.5, "initial_lr": 0.1, "max_lr": 1.0, "layer_decay": 0.9, "fqn": ["a"]}
    optimizer = wd.AdamW([{"params": [Parameter(torch.ones(1))], **extra}])
    assert {key: optimizer.param_groups[0][key] for key in extra} == extra


@pytest.mark.parametrize("backend", BACKENDS)
@presets
def test_an_empty_group_is_stepped_as_nothing(preset, backend):
    """Trainers always make two groups, one of them of what does not decay."""
    params, options = parameters(), {**options_of(preset), "backend": backend}
    groups = [{"params": []}, {"params": list(params.values())[:2]}, {"params": iter([]), "weight_decay": 0.0}]
    optimizer, plain = preset(groups, **options), preset(parameters().values(), **options)
    optimizer.add_param_group({"params": [params["scale"]]})
    optimizer.add_param_group({"params": []})
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2, 0, 1, 0]
    for each in (optimizer, plain):
        train(each, 3)
    assert bits(all_params(optimizer)) == bits(all_params(plain))
    twin = preset([{**group, "params": list(copies(dict(enumerate(group["params"]))).values())}
                   for group in optimizer.param_groups], **options)  # fmt: skip
    twin.load_state_dict(optimizer.state_dict())
    for each in (optimizer, twin):
        train(each, 2, first=4)
        each.param_groups[1]["params"].clear()
        train(each, 1, first=6)
    assert bits(all_params(twin)) == bits(all_params(optimizer))


@presets
def test_a_group_that_is_not_there_is_refused(preset):
    with refused(ValueError, "empty parameter list"):
        preset([])
    live = preset(parameters().values(), **options_of(preset))
    with refused(ValueError, "param_groups[1]", "'params'", unchanged=live):
        live.add_param_group({"lr": 0.1})


def test_an_empty_group_has_a_schedule_and_names_like_any_other():
    schedule = {"weight_decay_schedule": {"name": "linear", "steps": 4}}
    params = parameters()
    groups = [{"params": [], **schedule}, {"params": list(params.items())}, {"params": []}]
    for capturable in (False, True):
        optimizer = wd.AdamW(groups, capturable=capturable)
        train(optimizer, 2)
        assert optimizer.param_groups[0]["weight_decay_schedule"]["step"] == 2
        assert [group["param_names"] for group in optimizer.param_groups] == [[], list(params), []]
    unnamed = wd.AdamW([{"params": []}, {"params": [params["bias"]]}])
    with refused(ValueError, "names", unchanged=unnamed):
        unnamed.add_param_group({"params": [("late", params["scale"])]})


@presets
def test_a_backend_that_there_is_not_is_refused(preset):
    with refused(ValueError, "backend='xla'", "eager", "cpu"):
        preset(parameters().values(), backend="xla")
    with refused(ValueError, "backend='CPU' is unknown: did you mean 'cpu'?"):
        preset(parameters().values(), backend="CPU")


@presets
def test_parameters_that_come_twice(preset):
    params = list(parameters().values())
    live = preset(params, **options_of(preset))
    with refused(ValueError, "more than one parameter group", unchanged=live):
        live.add_param_group({"params": [params[0]]})
    with pytest.warns(UserWarning, match="duplicate parameters"):
        preset([params[0], params[0]])


@presets
def test_what_torch_refuses_is_refused(preset):
    with refused(TypeError, "iterable"):
        preset(torch.ones(3))
    with refused(TypeError, "set"):
        preset([{"params": {Parameter(torch.ones(1))}}])
    with refused(ValueError, "non-leaf"):
        preset([Parameter(torch.ones(1)) * 2])
    with refused(TypeError):
        preset([1.0])


@pytest.mark.parametrize(
    ("rules", "key"),
    [
        ({"decay": None}, "weight_decay"),
        ({"decay": "none"}, "weight_decay"),
        ({"decay": "decoupled", "penalty": None}, "penalty_weight"),
    ],
)
def test_a_lambda_without_a_rule_that_takes_it_is_refused(rules, key):
    with refused(ValueError, f"{key}=0.1", f"{key.split('_')[0].replace('weight', 'decay')}="):
        wd.Optimizer([Parameter(torch.ones(1))], 0.1, direction="sgd", **rules, **{key: 0.1})
    live = wd.Optimizer([Parameter(torch.ones(1))], 0.1, direction="sgd", **rules)
    with refused(ValueError, f"{key}=0.1", "param_groups[1]", unchanged=live):
        live.add_param_group({"params": [Parameter(torch.ones(1))], key: 0.1})


def test_a_look_ahead_that_cannot_be_meant_is_refused():
    params = [Parameter(torch.ones(1))]
    with refused(ValueError, "nesterov=True", "momentum"):
        wd.SGD(params, nesterov=True)
    with refused(ValueError, "nesterov=True", "dampening=0"):
        wd.SGD(params, momentum=0.9, nesterov=True, dampening=0.5)
    live = wd.SGD(params)
    with refused(ValueError, "nesterov=True", "param_groups[1]", unchanged=live):
        live.add_param_group({"params": [Parameter(torch.ones(1))], "nesterov": True})


# What is taken, in whatever form it comes --------------------------------------------------------------------------------

AS_NUMBERS = {
    "NumPy's float64": np.float64,
    "NumPy's float32": np.float32,
    "array": lambda x: np.array(x, dtype=np.float32),
    "fraction": Fraction,
}
AS_SEQUENCES = {
    "list": list,
    "UserList": collections.UserList,
    "deque": collections.deque,
    "array": lambda xs: np.array(xs, dtype=object if None in xs else np.float64),
    "array of single precision": lambda xs: np.array(xs, dtype=object if None in xs else np.float32),
}


def in_every_way(preset, key, value):
    """Yield optimizers that are given a value when they are made, in a group, and later."""
    options = {name: x for name, x in options_of(preset).items() if name != key}
    shapes = {"w": (4, 3)}
    yield preset(parameters(shapes=shapes).values(), **options, **{key: value})
    yield preset([{"params": list(parameters(shapes=shapes).values()), key: value}], **options)
    live = preset(parameters(shapes=shapes).values(), **options)
    live.param_groups[0][key] = value
    yield live


@pytest.mark.parametrize("form", AS_NUMBERS)
@pytest.mark.parametrize("key", ["lr", "weight_decay", "momentum", "eps"])
def test_a_number_may_be_of_any_kind(key, form):
    preset = wd.RMSprop
    value = AS_NUMBERS[form](0.0625)
    (plain, *_), given = in_every_way(preset, key, 0.0625), list(in_every_way(preset, key, value))
    for optimizer in (plain, *given):
        train(optimizer, 3)
        assert type(optimizer.param_groups[0][key]) is float
    assert all(everything(each)[0] == everything(plain)[0] for each in given)


@pytest.mark.parametrize("form", AS_SEQUENCES)
@pytest.mark.parametrize(
    ("preset", "key", "value"),
    [
        (wd.AdamW, "betas", (0.875, 0.96875)),
        (wd.Lion, "betas", (0.875, 0.96875)),
        (wd.Muon, "ns_coefficients", (2.0, -1.5, 0.5)),
        (wd.Adafactor, "eps", (None, 0.125)),
        (wd.Adafactor, "eps", (0.0625, 0.125)),
    ],
)
def test_several_numbers_may_stand_in_any_sequence(preset, key, value, form):
    (plain, *_), given = in_every_way(preset, key, value), list(in_every_way(preset, key, AS_SEQUENCES[form](value)))
    for optimizer in (plain, *given):
        train(optimizer, 3)
        found = optimizer.param_groups[0][key]
        assert found == value
        assert type(found) is tuple
        assert all(each is None or type(each) is float for each in found)
    assert all(everything(each)[0] == everything(plain)[0] for each in given)
    assert given[0].defaults[key] == value


def test_several_numbers_may_be_a_tensor_or_come_from_a_config_file():
    for given in in_every_way(wd.AdamW, "betas", torch.tensor([0.875, 0.96875])):
        train(given, 2)
        assert given.param_groups[0]["betas"] == (torch.tensor(0.875), torch.tensor(0.96875))
    omegaconf = pytest.importorskip("omegaconf")
    for given in in_every_way(wd.AdamW, "betas", omegaconf.OmegaConf.create({"betas": [0.9, 0.95]}).betas):
        train(given, 2)
        assert given.param_groups[0]["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("yes", [1, np.bool_(True), np.array(True), np.int64(1)], ids=lambda x: f"{type(x).__name__}")
@pytest.mark.parametrize(
    ("preset", "key"),
    [(wd.SGD, "maximize"), (wd.RMSprop, "centered"), (wd.Muon, "nesterov"), (wd.NAdam, "decoupled_weight_decay")],
)
def test_a_flag_may_be_a_0_or_a_1(preset, key, yes):
    (plain, *_), given = in_every_way(preset, key, True), list(in_every_way(preset, key, yes))
    (off, *_) = in_every_way(preset, key, np.bool_(False))
    assert off.param_groups[0][key] is False
    for optimizer in (plain, off, *given):
        train(optimizer, 3)
    assert all(each.param_groups[0][key] is True for each in given)
    assert all(everything(each)[0] == everything(plain)[0] for each in given)
    assert everything(off)[0] != everything(plain)[0]


def test_a_lr_of_several_elements_is_refused_by_every_kind_of_optimizer():
    for preset in (wd.AdamW, wd.AdamC, wd.SGDC):
        with refused(ValueError, "lr in param_groups[0]", "2 elements"):
            preset([Parameter(torch.ones(1))], lr=torch.tensor([0.1, 0.1]))


def test_what_others_write_into_a_group_keeps_its_form():
    extra = {"scales": np.ones(3), "lr_scale": np.array(0.5), "fqn": collections.deque(["a"])}
    optimizer = wd.AdamW([{"params": [Parameter(torch.ones(1))], **extra}])
    train(optimizer, 2)
    assert all(optimizer.param_groups[0][key] is value for key, value in extra.items())
