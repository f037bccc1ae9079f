"""The gpu backend against the eager float64 reference: its kernels, which Triton's interpreter runs on the CPU, make its steps.

They run with TRITON_INTERPRET=1 in the environment, for which Triton looks once: `make gpu-check` sets it.
"""

import itertools

import pytest
import torch
from reference import Reference
from runs import arguments, distance, is_exact, name, pairs, same_bits
from test_cpu_backend import of_absolute, of_exp, of_log, of_maximum, of_minimum, of_power, of_sign, of_sqrt
from torch.nn import Parameter
from training import LAYOUTS, PRESETS, all_params, noise, options_of, parameters_of, train

import weightdecay as wd
from weightdecay.backends import rounding
from weightdecay.backends.gpu import codegen

gpu = pytest.importorskip("weightdecay.backends.gpu.backend", reason="Triton is not installed", exc_type=ImportError)
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
LAMBDAS = ("weight_decay", "penalty_weight")
SIZES = [(0, 3), (), (7,), (33, 64)]


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


def tensors_of(dtype, seed, *, laid=True):
    """Return a tensor of every size at which a loop may go wrong, and one of every layout."""
    flat = [noise(shape, dtype, seed + place) for place, shape in enumerate(SIZES)]
    full = noise((2, 4, 3, 6), dtype, seed + 50)
    return [*flat, *(layout(full) if laid else full for layout in LAYOUTS.values())]


def optimizer_of(backend, dtype=torch.float32, how="nearest", **rules):
    """Return an optimizer of the same tensors."""
    return wd.Optimizer(map(Parameter, tensors_of(dtype, 0)), 0.05, backend=backend, rounding=how, **rules)


def give_gradients(optimizer, dtype, t):
    """Give gradients that depend on nothing else."""
    for param, grad in zip(all_params(optimizer), tensors_of(dtype, 1000 * t, laid=t % 2 == 0), strict=True):
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


@pytest.mark.parametrize(("rules", "dtype", "how"), CASES.values(), ids=CASES)
def test_the_kernels_make_the_steps_of_the_reference(rules, dtype, how):
    ours, others = (optimizer_of(backend, dtype, how, **rules) for backend in ("gpu", "cpu"))
    without = {key: 0.0 for key in LAMBDAS if key in rules}
    effect = 0.0
    for t in range(1, 3):
        for optimizer in (ours, others):
            give_gradients(optimizer, dtype, t)
        reference = Reference(ours)
        if without and t > 1:
            effect = reference.effect(Reference(ours, **without))
        ours.step()
        assert not reference.outside()
        others.step()
    assert not without or effect >= 100
    got, expected = values(ours), values(others)
    assert set(got) == set(expected)
    if is_exact(ours) and dtype != torch.float64:
        assert all(same_bits(got[key], expected[key]) for key in got)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__)
def test_every_preset_is_stepped_as_torchs_operations_do_it(preset):
    def history(backend):
        optimizer = preset(parameters_of(preset).values(), **options_of(preset), backend=backend)
        train(optimizer, 3)
        return values(optimizer)

    ours, theirs = history("gpu"), history("eager")
    assert set(ours) == set(theirs)
    assert max(distance(ours[key], theirs[key]) for key in theirs) <= 1e-12


# Numbers of all tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [None, "group_norm"])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_number_of_all_tensors_is_added_up_on_the_device(capturable, penalty):
    """Of groups one of which is not decayed by v̂'s mean, and whose gradients come and go."""
    shapes = [(33, 64), (7,), (), (1500,)]
    dtypes = [torch.float32, torch.float32, torch.float64, torch.bfloat16]
    params = [Parameter(noise(shape, dtype, place)) for place, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))]
    groups = [{"params": params[:1], "decay": "decoupled"}, {"params": params[1:], "lr": 0.1}]
    rules = {"direction": "adam", "decay": "stable", "weight_decay": 0.5, "rounding": "nearest"}
    if penalty is not None:
        rules.update(penalty=penalty, penalty_weight=10.0)
    optimizer = wd.Optimizer(groups, 0.05, **rules, backend="gpu", capturable=capturable)
    for t in range(4):
        for place, param in enumerate(params):
            param.grad = None if (t, place) in ((0, 1), (2, 0), (2, 3)) else noise(param.shape, param.dtype, 10 * t + place)
        reference = Reference(optimizer)
        optimizer.step()
        assert not reference.outside()


# The same random bits, wherever an element lies --------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "how"), [(torch.bfloat16, "stochastic"), (torch.float32, "nearest")], ids=str)
def test_places_beyond_32_bits_are_stepped_like_any_other(dtype, how):
    """The kernel is told that its 100 elements are the last of 2³³ + 100, which lie before them as far as it knows."""
    before, count = 2**33, 100
    param = Parameter(noise((count,), dtype, 1))
    start = param.detach().clone()
    optimizer = wd.Optimizer([param], 0.05, direction="sgd", decay="decoupled", weight_decay=0.5, backend="gpu", rounding=how)
    param.grad = noise((count,), dtype, 2)
    gradient = param.grad.clone()
    optimizer.step()
    (table,) = optimizer._plan.tables
    blocks = table.columns[table.signature.columns.index("blocks")]
    for column, value in {
        "first": -(before // (blocks * codegen.BLOCK)),
        "elements": before + count,
        "w": param.data_ptr() - before * dtype.itemsize,
    }.items():
        table._write(column, [value])
    with torch.no_grad():
        param.copy_(start)
    table.read([param.grad])
    table._write("g", [param.grad.data_ptr() - before * dtype.itemsize])
    optimizer.state[param]["step"].fill_(0)
    table.run()
    w, u = start.float(), gradient.float()
    exact = ((1 - 0.05 * 0.5) * w - torch.tensor(0.05) * u) if dtype == torch.float32 else None
    if exact is None:
        factor = torch.tensor(1 - 0.05 * 0.5, dtype=torch.float64).float()
        exact = rounding.stochastic(factor * w - torch.tensor(0.05) * u, dtype, bits_at(before, count))
    assert same_bits(param.detach(), exact)


def bits_at(first, count):
    """Return the random bits of the first step for these places of a tensor."""
    return rounding.halves(torch.arange(first, first + count), rounding.keys(0, 1, 0))


# Numbers on the device ---------------------------------------------------------------------------------------------------


def steps_with_tensors(backend, rules, *, capturable):
    """Return an optimizer after five steps whose lr and λ, if on the device, are changed in place."""
    number = torch.tensor if capturable else float
    params = [Parameter(noise(shape, torch.float32, place)) for place, shape in enumerate(SIZES)]
    key = "penalty_weight" if "penalty" in rules else "weight_decay"
    optimizer = wd.Optimizer(
        params, number(0.125), **rules, **{key: number(0.5)}, backend=backend, capturable=capturable
    )  # fmt: skip
    for t in range(5):
        for group in optimizer.param_groups:
            for name_, value in (("lr", 0.125 / 2**t), (key, 0.5 * 2**t)):
                if capturable:
                    group[name_].fill_(value)
                else:
                    group[name_] = value
        for place, param in enumerate(params):
            late = place == 2 and t < 2
            param.grad = None if late else noise(param.shape, torch.float32, 100 * t + place)
        optimizer.step()
    return optimizer


CAPTURED = {
    "AdamW": {"direction": "adam", "decay": "decoupled"},
    "SGD": {"direction": "sgd", "momentum": 0.9, "penalty": "l2"},
    "NAdam": {"direction": "nadam", "decay": "independent", "lr_max": 0.5},
    "group": {"direction": "sgd", "decay": "group_threshold"},
}


@pytest.mark.parametrize("rules", CAPTURED.values(), ids=CAPTURED)
def test_a_capturable_step_reads_lr_and_lambda_where_they_are(rules):
    """Compared bit for bit with the host's numbers, which these lr and λ are in float32, too."""
    ours, theirs = (steps_with_tensors("gpu", rules, capturable=capturable) for capturable in (True, False))
    got, expected = values(ours), values(theirs)
    assert all(same_bits(got[key], expected[key]) for key in got)
    assert [ours.state[param]["step"].item() for param in all_params(ours)] == [5, 5, 3, 5]


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("count", [2.0**24 - 2, 2.0**25 - 4, 1e30])
def test_counts_go_on_where_float32_has_no_next_whole_number(count, capturable):
    def stepped(**way):
        param = Parameter(noise((64, 8), torch.bfloat16, 1))
        optimizer = wd.SGDW([param], lr=1e-3, weight_decay=1.0, momentum=0.0, **way)
        optimizer.state[param] = {"step": torch.tensor(count)}
        param.grad, counts = torch.zeros_like(param), []
        for _ in range(4):
            optimizer.step()
            counts.append(optimizer.state[param]["step"].item())
        return counts, param.detach()

    (counts, ours), (expected, theirs) = stepped(backend="gpu", capturable=capturable), stepped(backend="cpu")
    assert counts == expected
    assert len({*counts, torch.tensor(count).item()}) == 5
    assert same_bits(ours, theirs)


@pytest.mark.parametrize("decay", ["decoupled", "stable"])
def test_a_capturable_step_asks_the_device_nothing(monkeypatch, decay):
    optimizer = steps_with_tensors("gpu", {"direction": "adam", "decay": decay}, capturable=True)

    def refused(*_):
        raise AssertionError("the host has read a number")

    for each in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, each, refused)
    optimizer.step()
    optimizer.grad_scale, optimizer.found_inf = torch.full((1,), 4.0), torch.zeros(1)
    optimizer.step()


def test_the_default_device_is_no_matter():
    """Of torch.set_default_device, too: what is meant for the host says so."""
    param = Parameter(noise((40,), torch.float32, 0))
    param.grad = noise((40,), torch.float32, 1)
    for capturable in (False, True):
        with torch.device("meta"):
            optimizer = wd.Optimizer(
                [param], 0.125, direction="adam", decay="stable", weight_decay=0.5, backend="gpu", capturable=capturable
            )
            optimizer.step()
            optimizer.step()
        assert optimizer.state[param]["step"].item() == 2


def test_an_lr_of_zero_may_come_after_one_on_the_device():
    param = Parameter(noise((40,), torch.float32, 0))
    param.grad = torch.ones(40)
    optimizer = wd.SGD([param], lr=torch.tensor(0.125), backend="gpu", capturable=True)
    optimizer.step()
    before = param.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert same_bits(param.detach(), before)


@pytest.fixture
def capturing(monkeypatch):
    """Return what makes the host believe that a CUDA graph is being captured, or not, though what is launched runs at once."""

    def believe(whether):
        monkeypatch.setattr(wd.optim.optimizer, "_is_capturing", lambda: whether)
        monkeypatch.setattr(gpu.table, "_is_capturing", lambda table: whether)

    return believe


def test_a_state_that_was_loaded_may_be_captured_at_once(capturing):
    """The step that came before a capture is often undone so; the table that is made then is the graph's alone."""
    param = Parameter(noise((40,), torch.float32, 0))
    param.grad = noise((40,), torch.float32, 1)
    optimizer = wd.AdamW([param], backend="gpu", capturable=True)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    capturing(True)
    optimizer.step()
    assert optimizer._plan is None
    capturing(False)
    optimizer.step()
    assert optimizer._plan is not None
    assert optimizer.state[param]["step"].item() == 3


def test_a_parameter_without_state_cannot_be_captured(capturing):
    optimizer = wd.AdamW([Parameter(torch.ones(3))], backend="gpu", capturable=True)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    capturing(True)
    with pytest.raises(RuntimeError, match=r"do one step before the capture"):
        optimizer.step()
    assert not any(optimizer.state.values())


# GradScaler --------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:foreach=True and fused=True:UserWarning")
@pytest.mark.parametrize("capturable", [True, False])
def test_gradscaler_unscales_in_the_kernel_and_skips_a_step_whole(capturable):
    rules = {"direction": "nadam", "decay": "decoupled", "weight_decay": 0.5, "capturable": capturable, "fused": True}
    ours, plain = (wd.Optimizer([Parameter(noise((40,), torch.float32, 0))], 0.125, backend="gpu", **rules) for _ in "ab")
    assert ours._step_supports_amp_scaling
    for t, (scale, overflow) in enumerate([(4.0, 0.0), (1024.0, 1.0), (0.5, 0.0)]):
        for optimizer, factor in ((ours, scale), (plain, 1.0)):
            (param,) = all_params(optimizer)
            param.grad = noise((40,), torch.float32, t) * factor
        before = values(ours)
        before = {key: value.clone() for key, value in before.items()}
        ours.grad_scale, ours.found_inf = torch.full((1,), scale), torch.full((1,), overflow)
        ours.step()
        if overflow:
            assert all(same_bits(value, before[key]) for key, value in values(ours).items())
        else:
            plain.step()
    got, expected = values(ours), values(plain)
    assert all(same_bits(got[key], expected[key]) for key in got)


def test_a_schedule_of_lambda_counts_no_step_that_gradscaler_skips():
    schedule = {"name": "linear", "steps": 10}
    param = Parameter(noise((40,), torch.float32, 0))
    optimizer = wd.AdamW([param], weight_decay=0.5, weight_decay_schedule=schedule, capturable=True, backend="gpu")
    for overflow, counted in ((0.0, 1), (1.0, 1), (0.0, 2)):
        param.grad = noise((40,), torch.float32, 1)
        optimizer.grad_scale, optimizer.found_inf = torch.full((1,), 4.0), torch.full((1,), overflow)
        optimizer.step()
        assert optimizer.param_groups[0]["weight_decay_schedule"]["step"] == counted == optimizer.state[param]["step"]


def test_torchs_gradscaler_hands_its_scale_over():
    param = Parameter(noise((40,), torch.float32, 0))
    optimizer = wd.AdamW([param], lr=0.125, backend="gpu", capturable=True, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = param.detach().clone()
    scaler.scale((param * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert same_bits(param.detach(), before)
    assert optimizer.state[param]["step"].item() == 0
    assert scaler.get_scale() == 512.0
    optimizer.zero_grad()
    scaler.scale((param * param).sum()).backward()
    scaler.step(optimizer)
    assert not same_bits(param.detach(), before)


# What moves --------------------------------------------------------------------------------------------------------------


def test_gradients_that_move_and_appear_late_are_found():
    def history(backend):
        params = [Parameter(noise((n,), torch.float32, n)) for n in (5, 2000, 70)]
        groups = [{"params": [param], "lr": 0.01 * place, "maximize": place == 2} for place, param in enumerate(params, 1)]
        optimizer = wd.Optimizer(
            groups, 0.1, direction="sgd", momentum=0.9, decay="cautious", weight_decay=0.5, backend=backend
        )
        for t in range(4):
            for place, param in enumerate(params):
                fresh = noise(param.shape, torch.float32, 10 * t + place)
                param.grad = None if (t + place) % 3 == 0 else torch.cat([fresh[:1], fresh])[1:]  # off any multiple of 16
            optimizer.step()
        return values(optimizer)

    ours, theirs = history("gpu"), history("cpu")
    assert all(same_bits(ours[key], theirs[key]) for key in theirs)


def test_the_table_is_sent_again_only_when_something_has_changed(monkeypatch):
    param = Parameter(noise((40,), torch.float32, 0))
    optimizer = wd.AdamW([param], lr=torch.tensor(0.125), backend="gpu", capturable=True)
    sent = []
    staged = gpu.table._staged
    monkeypatch.setattr(gpu.table, "_staged", lambda table, content: sent.append(1) or staged(table, content))
    param.grad = noise((40,), torch.float32, 1)
    for _ in range(3):
        optimizer.param_groups[0]["lr"].mul_(0.5)
        optimizer.step()
    assert len(sent) == 1
    param.grad = noise((40,), torch.float32, 2)
    optimizer.step()
    assert len(sent) == 2


def test_moments_may_be_of_another_dtype_than_weights():
    def trained_from(backend):
        param = Parameter(noise((2000,), torch.float32, 0))
        optimizer = wd.AdamW([param], lr=0.125, backend=backend)
        param.grad = noise((2000,), torch.float32, 1)
        optimizer.step()
        state = optimizer.state[param]
        state["exp_avg"], state["exp_avg_sq"] = state["exp_avg"].bfloat16(), state["exp_avg_sq"].half()
        for t in range(2, 4):
            param.grad = noise((2000,), torch.float32, t)
            optimizer.step()
        return values(optimizer)

    ours, theirs = trained_from("gpu"), trained_from("cpu")
    assert ours[0, "exp_avg"].dtype == torch.bfloat16
    assert all(same_bits(ours[key], theirs[key]) for key in theirs)


def test_hundreds_of_parameters_are_one_launch(monkeypatch):
    launches = []
    original = gpu.table.launch.__globals__["launch"]
    monkeypatch.setitem(gpu.table.launch.__globals__, "launch", lambda *given: launches.append(given[1]) or original(*given))
    params = [Parameter(noise((place % 3 + 1,), torch.float32, place)) for place in range(150)]
    optimizer = wd.Optimizer(params, 0.1, direction="sgd", decay="decoupled", weight_decay=0.5, backend="gpu")
    for param in params:
        param.grad = torch.ones_like(param)
    expected = [(1 - 0.1 * 0.5) * param.detach().double() - 0.1 for param in params]
    optimizer.step()
    assert launches == [150]
    assert all((param.detach() - exact).abs().max() < 1e-6 for param, exact in zip(params, expected, strict=True))


@pytest.mark.parametrize("direction", ["rotated", "muon", "adafactor"])
def test_a_direction_of_whole_tensors_is_torchs_and_the_rest_is_the_kernels(own_registry, direction):
    @wd.direction(source="a test", state={"m": "momentum_buffer"}, whole=True)
    def rotated(g, m, *, t, mu=0.5):
        m = mu * m + g
        return m.flip(0), m

    def trained_with(backend, **options):
        param = Parameter(noise((6, 5), torch.bfloat16, 0))
        optimizer = wd.Optimizer(
            [param], 0.125, direction=direction, decay="cautious", weight_decay=0.5, backend=backend, **options
        )
        for t in range(3):
            param.grad = noise((6, 5), torch.bfloat16, 1 + t)
            optimizer.step()
        return values(optimizer)

    theirs = trained_with("cpu")
    for options in ({}, {"capturable": True}):
        ours = trained_with("gpu", **options)
        assert all(same_bits(ours[key], theirs[key]) for key in theirs)


def test_what_no_kernel_can_do_is_refused_by_name():
    param = Parameter(noise((3,), torch.complex64, 0))
    param.grad = noise((3,), torch.complex64, 1)
    with pytest.raises(ValueError, match=r"backend='gpu' cannot step .*complex64; use backend='auto'"):
        wd.AdamW([param], backend="gpu").step()
    real = Parameter(noise((3,), torch.float32, 0))
    real.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"backend='gpu' .* differentiable=True"):
        wd.AdamW([real], backend="gpu", differentiable=True).step()


# Words -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
@pytest.mark.parametrize(
    "word",
    [of_absolute, of_sign, of_maximum, of_minimum, of_exp, of_log, of_sqrt, of_power],
    ids=lambda word: word.__name__,
)
def test_the_words_on_special_numbers_are_what_they_are_on_floats(own_registry, word, dtype):
    pairs = arguments("power" if word is of_power else "maximum", dtype)
    w, u = (torch.tensor(column, dtype=dtype) for column in zip(*pairs, strict=True))
    param = Parameter(w.clone())
    optimizer = wd.Optimizer([param], 0.1, direction="sgd", decay=wd.decay(source="a test")(word), backend="gpu")
    param.grad = u
    optimizer.step()
    exact = torch.tensor([word(x, y, eta=0.1) for x, y in zip(w.tolist(), u.tolist(), strict=True)], dtype=torch.float64)
    torch.testing.assert_close(param.detach(), exact.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=0, equal_nan=True)


def test_a_rule_that_is_written_anew_is_read_anew(own_registry):
    def made(factor):
        def shrinking(w, u, *, eta, lam, factor=factor):
            return factor * w

        return wd.decay(source="a test")(shrinking)

    for factor in (0.5, 0.25):
        param = Parameter(torch.ones(3))
        optimizer = wd.Optimizer([param], 0.1, direction="sgd", decay=made(factor), weight_decay=0.1, backend="gpu")
        param.grad = torch.zeros(3)
        optimizer.step()
        assert param.tolist() == [factor] * 3
