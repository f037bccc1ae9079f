"""Muon and Adafactor: torch's optimizers number for number, state of other shapes than the weight's, and what they refuse."""

import copy
import math

import pytest
import torch
from oracles import oracle
from torch.nn import Parameter
from training import BACKENDS, all_params, everything, noise, one_process, refused

import weightdecay as wd
from weightdecay.update_rules.directions.muon import orthogonalized

TOLERANCE = 1e-12
MATRICES = {"tall": (5, 3), "wide": (3, 7), "square": (4, 4), "row": (1, 6)}
SHAPES = {"matrix": (4, 3), "kernel": (2, 3, 3), "vector": (5,), "number": ()}
MUON = {
    "plain": {},
    "without-nesterov": {"nesterov": False, "momentum": 0.8},
    "like-adamw": {"adjust_lr_fn": "match_rms_adamw"},
    "coefficients": {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 3, "eps": 1e-3},
}
ADAFACTOR = {
    "plain": {},
    "relative": {"lr": 5.0},
    "eps": {"eps": (1e-3, 0.5)},
    "slow": {"beta2_decay": -0.5, "d": 2.0},
    "maximize": {"maximize": True},
}
CASES = [("muon", options) for options in MUON.values()] + [("adafactor", options) for options in ADAFACTOR.values()]
cases = pytest.mark.parametrize(
    ("direction", "options"), CASES, ids=[*(f"muon-{key}" for key in MUON), *(f"adafactor-{key}" for key in ADAFACTOR)]
)
LAM = {"lr": 0.05, "weight_decay": 0.5}


def params_of(direction, dtype=torch.float64):
    shapes = MATRICES if direction == "muon" else SHAPES
    return [Parameter(noise(shape, dtype, place)) for place, shape in enumerate(shapes.values())]


def torchs(direction, **options):
    """Return torch's optimizer on its for-loop path."""
    params, given = params_of(direction), {**LAM, **options}
    return torch.optim.Muon(params, **given) if direction == "muon" else torch.optim.Adafactor(params, foreach=False, **given)


def ours(direction, backend="eager", dtype=torch.float64, **options):
    given = {**LAM, **options}
    return wd.Optimizer(params_of(direction, dtype), direction=direction, decay="decoupled", backend=backend, **given)


def train(optimizer, steps=20, first=0):
    """Step with gradients that follow from the weights and the step; one parameter rests for a while."""
    for t in range(first, first + steps):
        for place, param in enumerate(all_params(optimizer)):
            grad = 0.5 * param.detach() + noise(param.shape, param.dtype, 100 * t + place)
            param.grad = None if place == 1 and t in (0, 7, 8) else grad
        optimizer.step()
    return optimizer


def values(optimizer):
    """Return the weights and what torch's optimizers keep, by name."""
    found = {}
    for place, param in enumerate(all_params(optimizer)):
        found[place, "w"] = param.detach()
        found |= {(place, key): value for key, value in optimizer.state[param].items() if key != "step"}
    return found


def apart(some, others):
    some, others = values(some), values(others)
    assert set(some) == set(others)
    assert all(some[key].shape == others[key].shape for key in some)
    return max(((some[key] - others[key]).abs().max() / others[key].abs().max()).item() for key in some)


@pytest.mark.parametrize(
    ("direction", "options", "backend"), [*((*case, "eager") for case in CASES), ("muon", {}, "cpu"), ("adafactor", {}, "cpu")]
)
def test_twenty_steps_are_torchs(direction, options, backend):
    """The weights and the state. Muon's iterations run in bfloat16 on both sides, the same roundings in the same order."""
    found, expected = train(ours(direction, backend, **options)), train(torchs(direction, **options))
    assert apart(found, expected) <= TOLERANCE
    assert apart(train(ours(direction, **{**options, "weight_decay": 0.0})), expected) >= 100 * TOLERANCE


@cases
def test_a_checkpoint_goes_both_ways(direction, options):
    """From torch's optimizer to ours and back, in the middle of a run: every number stays on its way."""
    expected = train(torchs(direction, **options))
    half = train(torchs(direction, **options), 10)
    found = ours(direction, **options)
    move(half, found)
    train(found, 5, first=10)
    back = torchs(direction, **options)
    move(found, back)
    train(back, 5, first=15)
    assert apart(back, expected) <= TOLERANCE


@torch.no_grad()
def move(source, target):
    for theirs, our in zip(all_params(source), all_params(target), strict=True):
        our.copy_(theirs)
    target.load_state_dict(copy.deepcopy(source.state_dict()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("direction", ["muon", "adafactor"])
def test_the_backends_agree_and_a_run_resumes(direction, dtype):
    kernels, operations = (train(ours(direction, backend, dtype), 6) for backend in BACKENDS)
    assert everything(kernels) == everything(operations)
    resumed = ours(direction, "cpu", dtype)
    move(train(ours(direction, "cpu", dtype), 3), resumed)
    train(resumed, 3, first=3)
    assert everything(resumed) == everything(kernels)
    kept = [value for state in resumed.state.values() for key, value in state.items() if key != "step"]
    assert all(value.dtype == torch.float32 for value in kept)


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix_and_no_more():
    optimizer = train(ours("adafactor"), 2)
    shapes = [{key: tuple(value.shape) for key, value in optimizer.state[param].items()} for param in all_params(optimizer)]
    assert shapes == [
        {"step": (), "row_var": (4, 1), "col_var": (1, 3)},
        {"step": (), "row_var": (2, 3, 1), "col_var": (2, 1, 3)},
        {"step": (), "variance": (5,)},
        {"step": (), "variance": ()},
    ]


def test_a_moment_of_a_wrong_shape_is_refused():
    optimizer, saved = ours("adafactor"), train(ours("adafactor"), 1).state_dict()
    saved["state"][0]["row_var"] = torch.zeros(4, 3)
    with refused(ValueError, "row_var", "(4, 3)", "(4, 1)", unchanged=optimizer):
        optimizer.load_state_dict(saved)
    del saved["state"][0]["row_var"]
    with refused(ValueError, "row_var", "adafactor", unchanged=optimizer):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("direction", ["muon", "adafactor"])
def test_a_capturable_step_gives_the_same_numbers(direction):
    plain, device = ours(direction), ours(direction, lr=torch.tensor(0.05, dtype=torch.float64), capturable=True)
    assert apart(train(device), train(plain)) <= 1e-11


@pytest.mark.parametrize("direction", ["muon", "adafactor"])
@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own, on import
def test_a_distributed_tensor_is_seen_whole(direction):
    from torch.distributed.tensor import Shard, distribute_tensor

    with one_process() as mesh:
        plain = Parameter(noise((4, 3), torch.float64, 1))
        spread = Parameter(distribute_tensor(plain.detach().clone(), mesh, [Shard(0)]))
        optimizers = [wd.Optimizer([each], direction=direction, decay="decoupled", **LAM) for each in (plain, spread)]
        for t in range(3):
            plain.grad = noise((4, 3), torch.float64, 10 + t)
            spread.grad = distribute_tensor(plain.grad, mesh, [Shard(0)])
            for optimizer in optimizers:
                optimizer.step()
        assert (spread.full_tensor() - plain).abs().max() <= 1e-12


# Muon -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", MATRICES.values(), ids=MATRICES)
def test_the_iterations_are_a_polynomial_of_the_singular_values(shape):
    """In float64, where the two ways to compute it meet."""
    x = noise(shape, torch.float64, 3)
    expected = oracle(wd.rules()["direction", "muon"]).orthogonal(x.numpy(), (3.4445, -4.775, 2.0315), 5)
    assert (orthogonalized(x, (3.4445, -4.775, 2.0315), 5, 1e-7) - torch.tensor(expected)).abs().max() <= 1e-12


def test_without_a_gradient_muon_shrinks_by_the_learning_rate_as_it_is():
    """Π(1 − η_tλ), whatever scale the step has."""
    for adjust in ("original", "match_rms_adamw"):
        param = Parameter(torch.tensor([[2.0, -1.0]] * 3, dtype=torch.float64))
        optimizer = wd.Optimizer(
            [param], 0.1, direction="muon", decay="decoupled", weight_decay=0.5, adjust_lr_fn=adjust, backend="eager"
        )
        before, left = param.detach().clone(), 1.0
        for lr in (0.1, 0.3, 0.2):
            optimizer.param_groups[0]["lr"] = lr
            param.grad = torch.zeros_like(param)
            optimizer.step()
            left *= 1 - lr * 0.5
        assert (param - left * before).abs().max() <= 1e-15


def test_the_decay_of_muon_bounds_the_spectral_norm():
    """‖W‖ ≤ s/λ in the end, with s the size of the step: here the gradient pulls one way for ever."""
    param, pull = Parameter(3 * noise((4, 4), torch.float64, 1)), noise((4, 4), torch.float64, 2)
    exact = {"ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 30}
    optimizer = wd.Optimizer([param], 0.1, direction="muon", decay="decoupled", weight_decay=0.5, backend="eager", **exact)
    for _ in range(150):
        param.grad = pull.clone()
        optimizer.step()
    sizes = torch.linalg.svdvals(param.detach())
    assert sizes.max() <= 1.02 / 0.5
    assert sizes.min() >= 0.98 / 0.5


@pytest.mark.parametrize(
    ("param", "words"),
    [
        (Parameter(torch.ones(3)), ("'bias'", "(3,)", "muon", "2 dimensions", "adam")),
        (Parameter(torch.ones(3, 3, 3)), ("(3, 3, 3)", "2 dimensions")),
        (Parameter(torch.ones(3, 3, dtype=torch.complex64)), ("complex", "muon")),
    ],
)
def test_muon_takes_matrices(param, words):
    with refused(ValueError, *words):
        wd.Optimizer([("bias", param)], 0.1, direction="muon")
    optimizer = wd.Optimizer([("weight", Parameter(torch.ones(2, 2)))], 0.1, direction="muon")
    with refused(ValueError, *words, unchanged=optimizer):
        optimizer.add_param_group({"params": [("bias", param)]})
    optimizer.add_param_group({"params": [("bias", param)], "direction": "sgd"})


@pytest.mark.parametrize(
    ("direction", "options", "words"),
    [
        ("muon", {"adjust_lr_fn": "moonlight"}, ("adjust_lr_fn='moonlight'", "match_rms_adamw")),
        ("muon", {"ns_steps": 2.5}, ("ns_steps=2.5", "{0, …, 99}")),
        ("muon", {"ns_steps": 100}, ("ns_steps=100", "{0, …, 99}")),
        ("muon", {"ns_coefficients": (1.0, 2.0)}, ("ns_coefficients", "3 numbers")),
        ("muon", {"ns_coefficients": 3.0}, ("ns_coefficients", "3 numbers")),
        ("muon", {"ns_coefficients": (1.0, None, 1.0)}, ("ns_coefficients[1]", "None")),
        ("adafactor", {"eps": (None, None)}, ("eps[1]", "None")),
        ("adafactor", {"eps": (None, -1.0)}, ("eps[1]=-1.0",)),
        ("adafactor", {"eps": 1e-3}, ("eps=0.001", "2 numbers")),
        ("adafactor", {"d": 0.5}, ("d=0.5", "[1, inf)")),
        ("adafactor", {"beta2_decay": math.nan}, ("beta2_decay=nan",)),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(direction, options, words):
    with refused((TypeError, ValueError), *words, "param_groups[0]"):
        ours(direction, **options)


def test_a_derivation_shows_a_direction_of_whole_tensors_as_a_function():
    """Of its settings nothing is shown, and of the decay beside it all."""
    for direction, settings in (("muon", MUON["coefficients"]), ("muon", MUON["like-adamw"]), ("adafactor", ADAFACTOR["eps"])):
        shown = wd.derive(direction, decay="decoupled", **settings)
        assert str(shown.g) == "-eta*lambda + 1"
        assert direction in str(shown.step)
    assert wd.derive("adafactor").symbols["norm_w"] in wd.derive("adafactor").step.free_symbols


def test_a_decay_that_measures_the_gradient_is_given_the_gradient():
    """A kernel would see in its place what muon made of it."""
    numbers = {"decay": "selective_projection", "weight_decay": 1.0, "direction": "muon", "lr": 0.05}
    eager, auto = (wd.Optimizer(params_of("muon"), backend=backend, **numbers) for backend in ("eager", "auto"))
    for optimizer in (eager, auto):
        train(optimizer, 12)
    assert everything(eager) == everything(auto)
    for direction in ("muon", "adafactor"):
        with refused(ValueError, "selective_projection", "gradient", direction, "backend='auto'"):
            wd.Optimizer(params_of(direction), backend="cpu", **{**numbers, "direction": direction})


def test_a_group_with_another_direction_has_the_defaults_of_that():
    first, second, third = (Parameter(torch.ones(2, 2)) for _ in range(3))
    of_adam = {"direction": "adam", "decay": "decoupled"}
    optimizer = wd.Optimizer([{"params": [first]}, {"params": [second], **of_adam}], 0.1, direction="muon")
    assert [group["eps"] for group in optimizer.param_groups] == [1e-7, 1e-8]
    optimizer.add_param_group({"params": [third], **of_adam, "eps": 1e-7})
    assert optimizer.param_groups[2]["eps"] == 1e-7
    asked = wd.Optimizer([{"params": [first]}, {"params": [second], **of_adam}], 0.1, direction="muon", eps=1e-6)
    assert [group["eps"] for group in asked.param_groups] == [1e-6, 1e-6]
    assert wd.Optimizer([{"params": [first], **of_adam}], 0.1, direction="adafactor").param_groups[0]["eps"] == 1e-8


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_adafactor_takes_gradients_whose_fourth_power_is_beyond_float32(backend):
    """As the penalty lp with p = ½ makes them near zero: 3e13 at a weight of 1e-30."""

    def stepped(dtype, weight=0.1):
        param = Parameter(torch.tensor([[1e-30, 1.0], [0.5, -1e-30]], dtype=torch.float32).to(dtype))
        rules = {"direction": "adafactor", "penalty": "lp", "p": 0.5, "penalty_weight": weight, "eps": (2.0**-23, 1e-3)}
        optimizer = wd.Optimizer([param], 0.1, **rules, backend=backend)
        param.grad = torch.full_like(param, 0.01)
        optimizer.step()
        return param.detach().double()

    got, expected = stepped(torch.float32), stepped(torch.float64)
    assert (got - expected).abs().max() <= 1e-6
    assert (stepped(torch.float64, weight=0.0) - expected).abs().max() >= 100 * 1e-6
