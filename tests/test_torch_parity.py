"""A drop-in is torch.optim's for-loop path: the same arguments, and the same parameters and state after many steps.

Tolerances are relative to the largest magnitude that a tensor had during the run: what passes zero has lost its own digits.
"""

import contextlib
import inspect
import itertools
from functools import cache, partial

import pytest
import torch
from torch.optim import lr_scheduler
from training import PRESETS, default_dtype, noise, parameters, parameters_of

import weightdecay as wd

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])

DROP_INS = [preset for preset in PRESETS if hasattr(torch.optim, preset.__name__)]
drop_ins = pytest.mark.parametrize("preset", DROP_INS, ids=lambda cls: cls.__name__)
BY_FLAG = {wd.NAdamW: torch.optim.NAdam, wd.RAdamW: torch.optim.RAdam}

LAM = {"lr": 0.02, "weight_decay": 0.3}
MOMENTUM = {**LAM, "momentum": 0.9}
SETTINGS = {
    "SGD": (wd.SGD, LAM),
    "SGD-maximize": (wd.SGD, {**LAM, "maximize": True}),
    "SGD-momentum": (wd.SGD, MOMENTUM),
    "SGD-dampening": (wd.SGD, {**MOMENTUM, "dampening": 0.4}),
    "SGD-nesterov": (wd.SGD, {**MOMENTUM, "nesterov": True}),
    "SGD-nesterov-maximize": (wd.SGD, {**MOMENTUM, "nesterov": True, "maximize": True}),
    "Adam": (wd.Adam, LAM),
    "Adam-betas-eps": (wd.Adam, {**LAM, "betas": (0.7, 0.95), "eps": 1e-3}),
    "Adam-maximize": (wd.Adam, {**LAM, "maximize": True}),
    "AMSGrad": (wd.Adam, {**LAM, "amsgrad": True}),
    "Adam-decoupled": (wd.Adam, {**LAM, "decoupled_weight_decay": True}),
    "AdamW": (wd.AdamW, LAM),
    "AdamW-maximize": (wd.AdamW, {**LAM, "maximize": True}),
    "AdamW-amsgrad": (wd.AdamW, {**LAM, "amsgrad": True, "betas": (0.8, 0.5)}),
    "NAdam": (wd.NAdam, LAM),
    "NAdam-warm-up": (wd.NAdam, {**LAM, "betas": (0.95, 0.9), "momentum_decay": 0.1, "maximize": True}),
    "NAdam-decoupled": (wd.NAdam, {**LAM, "decoupled_weight_decay": True}),
    "NAdamW": (wd.NAdamW, LAM),
    "RAdam": (wd.RAdam, LAM),  # whose first five steps are momentum
    "RAdam-rectified-early": (wd.RAdam, {**LAM, "betas": (0.8, 0.9), "eps": 1e-3, "maximize": True}),
    "RAdam-never-rectified": (wd.RAdam, {**LAM, "betas": (0.8, 0.6)}),  # 2/(1 − β₂) − 1 is below 5
    "RAdam-decoupled": (wd.RAdam, {**LAM, "decoupled_weight_decay": True}),
    "RAdamW": (wd.RAdamW, LAM),
    "Adamax": (wd.Adamax, LAM),
    "Adamax-maximize": (wd.Adamax, {**LAM, "betas": (0.7, 0.8), "eps": 1e-2, "maximize": True}),
    "Adagrad": (wd.Adagrad, LAM),
    "Adagrad-from-a-sum": (wd.Adagrad, {**LAM, "initial_accumulator_value": 0.5, "lr_decay": 0.1, "maximize": True}),
    "Adadelta": (wd.Adadelta, {**LAM, "lr": 1.0}),
    "Adadelta-maximize": (wd.Adadelta, {**LAM, "rho": 0.5, "eps": 1e-3, "maximize": True}),
    "RMSprop": (wd.RMSprop, LAM),
    "RMSprop-momentum": (wd.RMSprop, {**MOMENTUM, "alpha": 0.9}),
    "RMSprop-centered": (wd.RMSprop, {**LAM, "centered": True, "eps": 1e-3, "maximize": True}),
    "RMSprop-centered-momentum": (wd.RMSprop, {**MOMENTUM, "centered": True}),
    "Adafactor": (wd.Adafactor, LAM),
    "Adafactor-maximize": (
        wd.Adafactor,
        {**LAM, "lr": 2.0, "beta2_decay": -0.5, "eps": (1e-3, 0.5), "d": 2.0, "maximize": True},
    ),
    "Muon": (wd.Muon, LAM),
    "Muon-like-AdamW": (wd.Muon, {**LAM, "nesterov": False, "momentum": 0.8, "adjust_lr_fn": "match_rms_adamw"}),
    "Muon-coefficients": (wd.Muon, {**LAM, "ns_coefficients": (2.0, -1.5, 0.5), "eps": 1e-3, "ns_steps": 3}),
}
settings = pytest.mark.parametrize(("preset", "options"), SETTINGS.values(), ids=SETTINGS)


class Run:
    """Twenty steps of an optimizer, with a layer frozen on the way, gradients that are None, and a number for a parameter."""

    def __init__(self, cls, dtype, *, grouped=None, schedule=None, **options):
        self.params = parameters_of(getattr(cls, "func", cls), dtype)
        groups = [{"params": [p], **over} for p, over in zip(self.params.values(), grouped, strict=True)] if grouped else None
        self.optimizer = cls(groups or self.params.values(), **options)
        scheduler = schedule(self.optimizer) if schedule else None
        self.largest = {}
        # Ours keep numbers in dtypes of their own, and torch's in the default dtype.
        with contextlib.nullcontext() if isinstance(self.optimizer, wd.Optimizer) else default_dtype(dtype):
            self.train(scheduler)

    def train(self, scheduler):
        for t in range(20):
            self.set_gradients(t)
            self.optimizer.step()
            if scheduler:
                scheduler.step()
            for name, tensor in self.tensors().items():
                self.largest[name] = max(self.largest.get(name, 0.0), tensor.detach().abs().max().item())

    def set_gradients(self, t):
        for place, (name, param) in enumerate(self.params.items()):
            frozen = name == "weight" and 5 <= t < 9
            unused = name == "bias" and t in (0, 11)
            grad = 0.5 * param.detach() + noise(param.shape, param.dtype, 100 * t + place)
            param.grad = None if frozen or unused else grad

    def tensors(self):
        """Return parameters and state by name."""
        state = {name: self.optimizer.state.get(param, {}) for name, param in self.params.items()}
        moments = {f"{name}.{key}": value for name, entry in state.items() for key, value in entry.items()}
        return {**self.params, **moments}


def torchs(preset):
    """Return torch's optimizer of the same name, or the one that a flag makes the same, on its for-loop path."""
    if preset in BY_FLAG:
        return partial(BY_FLAG[preset], decoupled_weight_decay=True, foreach=False)
    if preset is wd.Muon:  # which has no other path
        return partial(torch.optim.Muon)
    return partial(getattr(torch.optim, preset.__name__), foreach=False)


@cache
def plain(preset):
    """Return the run that a comparison has to differ from in order to see anything."""
    return Run(preset, torch.float64, **base(preset), backend="eager")


def base(preset):
    """Return the settings that a test changes one thing of."""
    return MOMENTUM if preset is wd.SGD else LAM


def apart(ours, theirs, name):
    """Return by how much a tensor of two runs differs, relative to the largest magnitude it had."""
    difference = ours.tensors()[name].detach() - theirs.tensors()[name].detach()
    return difference.abs().max().item() / theirs.largest[name]


def assert_equal(ours, theirs, tolerance):
    found, expected = ours.tensors(), theirs.tensors()
    assert set(found) >= set(expected)  # torch's SGD counts no steps
    assert {name for name in found if not name.endswith(".step")} == {name for name in expected if not name.endswith(".step")}
    for name in expected:
        assert apart(ours, theirs, name) <= tolerance, name


def assert_matters(ours, without, tolerance):
    """Refuse a comparison that could not have seen what it is about."""
    assert max(apart(ours, without, name) for name in ours.params) >= 100 * tolerance


# The numbers ------------------------------------------------------------------------------------------------------------


@dtypes
@settings
def test_twenty_steps_are_torchs(preset, options, dtype):
    ours, theirs = Run(preset, dtype, **options), Run(torchs(preset), dtype, **options)
    assert_matters(ours, Run(preset, dtype, **{**options, "weight_decay": 0.0}), TOLERANCE[dtype])
    assert_equal(ours, theirs, TOLERANCE[dtype])


@settings
def test_without_decay_too(preset, options):
    plain = {**options, "weight_decay": 0.0}
    assert_equal(Run(preset, torch.float64, **plain), Run(torchs(preset), torch.float64, **plain), 1e-12)


OVERRIDES = {
    wd.SGD: [
        {"lr": 0.05},
        {"weight_decay": 0.7},
        {"weight_decay": 0.0},
        {"momentum": 0.5},
        {"momentum": 0.0},
        {"dampening": 0.3},
        {"nesterov": True},
        {"maximize": True},
    ],
    wd.Adam: [
        {"lr": 0.05},
        {"weight_decay": 0.7},
        {"weight_decay": 0.0},
        {"betas": (0.6, 0.8)},
        {"eps": 0.1},
        {"amsgrad": True, "betas": (0.9, 0.5)},
        {"maximize": True},
        {"decoupled_weight_decay": True},
    ],
}
OVERRIDES[wd.AdamW] = OVERRIDES[wd.Adam][:-1]
_EVERY = [{"lr": 0.05}, {"weight_decay": 0.7}, {"weight_decay": 0.0}, {"maximize": True}]
_ADAPTIVE = [*_EVERY, {"betas": (0.6, 0.8)}, {"eps": 0.1}]
OVERRIDES |= {
    wd.NAdam: [*_ADAPTIVE, {"momentum_decay": 0.2}, {"decoupled_weight_decay": True}],
    wd.RAdam: [*_ADAPTIVE, {"decoupled_weight_decay": True}],
    wd.Adamax: _ADAPTIVE,
    wd.Adagrad: [*_EVERY, {"lr_decay": 0.2}, {"eps": 0.1}],
    wd.Adadelta: [*_EVERY, {"rho": 0.5}, {"eps": 0.1}],
    wd.Adafactor: [*_EVERY, {"beta2_decay": -0.5}, {"eps": (1e-3, 0.5)}, {"d": 2.0}],
    wd.Muon: [
        *_EVERY[:-1],
        {"momentum": 0.5},
        {"nesterov": False},
        {"ns_coefficients": (2.0, -1.5, 0.5)},
        {"eps": 10.0},
        {"ns_steps": 3},
        {"adjust_lr_fn": "match_rms_adamw"},
    ],
    wd.RMSprop: [*_EVERY, {"alpha": 0.5}, {"eps": 0.1}, {"momentum": 0.5}, {"centered": True}],
}


@pytest.mark.parametrize(
    ("preset", "override"),
    [pytest.param(preset, over, id=f"{preset.__name__}-{over}") for preset in DROP_INS for over in OVERRIDES[preset]],
)
def test_a_group_may_override_every_hyper_parameter(preset, override):
    grouped = [override, {}, override]
    ours = Run(preset, torch.float64, grouped=grouped, **base(preset), backend="eager")
    assert_matters(ours, plain(preset), 1e-12)
    assert_equal(ours, Run(torchs(preset), torch.float64, grouped=grouped, **base(preset)), 1e-12)


@drop_ins
def test_every_hyper_parameter_of_torchs_is_overridden_above(preset):
    flags = {"foreach", "fused", "capturable", "differentiable"}
    theirs = torchs(preset)(parameters_of(preset).values()).defaults.keys() - flags
    not_by_group = {wd.AdamW: {"decoupled_weight_decay"}, wd.Adagrad: {"initial_accumulator_value"}}
    assert {key for override in OVERRIDES[preset] for key in override} == theirs - not_by_group.get(preset, set())


def test_a_group_may_override_where_the_sum_of_adagrad_starts_and_torchs_does_not_listen():
    grouped = [{"initial_accumulator_value": 0.5}, {}, {}]
    ours, plain = (Run(wd.Adagrad, torch.float64, grouped=groups, **LAM) for groups in (grouped, None))
    everywhere = Run(torchs(wd.Adagrad), torch.float64, **LAM, initial_accumulator_value=0.5)
    assert apart(ours, everywhere, "weight") <= 1e-12
    assert apart(ours, plain, "weight") >= 1e-3
    theirs = Run(torchs(wd.Adagrad), torch.float64, grouped=grouped, **LAM)
    assert apart(plain, theirs, "weight") <= 1e-12


def test_nadam_of_torch_keeps_the_product_of_its_momenta_in_the_default_dtype():
    """Why the runs of this file set it: at float32 torch's weights are those of a product with eight digits."""
    ours = Run(wd.NAdam, torch.float64, **LAM)

    class WithFloat32(Run):
        def train(self, scheduler):
            with default_dtype(torch.float32):
                super().train(scheduler)

    theirs = WithFloat32(torchs(wd.NAdam), torch.float64, **LAM)
    assert theirs.optimizer.state[theirs.params["weight"]]["mu_product"].dtype == torch.float32
    assert 1e-12 < apart(ours, theirs, "weight") < 1e-7


SCHEDULES = {
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o,
        0.1,
        total_steps=21,
        base_momentum=0.6,
        max_momentum=0.95,
        cycle_momentum=bool({"momentum", "betas"} & set(o.defaults)),
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=15, eta_min=1e-3),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
}


@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@drop_ins
def test_schedulers_drive_both_alike(preset, schedule, as_tensor):
    def run(cls):
        lr = torch.tensor(0.02, dtype=torch.float64) if as_tensor else 0.02
        return Run(cls, torch.float64, schedule=schedule, **{**base(preset), "lr": lr})

    ours, theirs = run(preset), run(torchs(preset))
    assert_matters(ours, plain(preset), 1e-12)
    assert_equal(ours, theirs, 1e-12)
    for key in ("lr", "momentum", "betas"):
        found, expected = (each.optimizer.param_groups[0].get(key) for each in (ours, theirs))
        assert found == pytest.approx(expected)


@settings
def test_a_tensor_lr_is_a_float_lr(preset, options):
    lr = {"lr": torch.tensor(options["lr"], dtype=torch.float64)}
    assert_equal(Run(preset, torch.float64, **{**options, **lr}), Run(torchs(preset), torch.float64, **options), 1e-12)


def test_betas_may_be_tensors():
    betas = {"betas": tuple(torch.tensor(beta, dtype=torch.float64) for beta in (0.8, 0.95))}
    for preset in (wd.Adam, wd.AdamW):
        ours, theirs = (Run(cls, torch.float64, **LAM, **betas) for cls in (preset, torchs(preset)))
        assert_equal(ours, theirs, 1e-12)


@drop_ins
def test_a_closure_sees_the_same_losses(preset):
    def losses(cls):
        params = parameters_of(preset)
        optimizer = cls(params.values(), **LAM)

        def closure():
            optimizer.zero_grad()
            loss = sum(((param - 1) ** 2).sum() for param in params.values())
            loss.backward()
            return loss

        return torch.stack([optimizer.step(closure).detach() for _ in range(10)])

    with default_dtype(torch.float64):
        theirs = losses(torchs(preset))
    assert torch.allclose(losses(preset), theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("preset", [preset for preset in DROP_INS if preset is not wd.Adagrad])  # torch's has no state for it
def test_a_group_may_join_on_the_way(preset):
    class Growing(Run):
        def set_gradients(self, t):
            if t == 7:
                self.params["late"] = parameters(shapes={"late": (5, 2)})["late"]
                self.optimizer.add_param_group({"params": [self.params["late"]], "lr": 0.05, "weight_decay": 0.5})
            super().set_gradients(t)

    ours, theirs = (Growing(cls, torch.float64, **base(preset)) for cls in (preset, torchs(preset)))
    assert "late" in theirs.tensors()
    assert_equal(ours, theirs, 1e-12)


MOMENTA = {
    "from the start": lambda t: 0.9 if t < 4 or t >= 8 else 0.0,
    "later": lambda t: 0.9 if 4 <= t < 8 or t >= 12 else 0.0,
    "never": lambda _: 0.0,
}


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize(
    ("momentum", "given"),
    [  # a buffer that begins late begins here with a dampened gradient, in torch with the gradient
        *itertools.product(["from the start", "never"], [{}, {"dampening": 0.5}, {"nesterov": True}]),
        *itertools.product(["later"], [{}, {"nesterov": True}]),
    ],
    ids=str,
)
def test_momentum_may_be_switched_off_and_on(momentum, given, backend):
    """With what does nothing without it: a schedule that reaches 0 stops no run."""

    class Switching(Run):
        def set_gradients(self, t):
            self.optimizer.param_groups[0]["momentum"] = MOMENTA[momentum](t)
            super().set_gradients(t)

    start = {**LAM, "momentum": 0.9, **given}
    ours = Switching(wd.SGD, torch.float64, **start, backend=backend)
    theirs = Switching(torchs(wd.SGD), torch.float64, **start)
    assert_equal(ours, theirs, 1e-12)
    assert_matters(ours, Run(wd.SGD, torch.float64, **start), 1e-12)
    theirs.optimizer.param_groups[0]["momentum"] = 0.0
    ours.optimizer.load_state_dict(theirs.optimizer.state_dict())
    assert ours.optimizer.param_groups[0]["momentum"] == 0


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_without_a_momentum_nothing_is_dampened(backend):
    ours = Run(wd.SGD, torch.float64, **LAM, dampening=0.5, backend=backend)
    assert_equal(ours, Run(torchs(wd.SGD), torch.float64, **LAM, dampening=0.5), 1e-12)
    of_a_tensor = Run(wd.SGD, torch.float64, **LAM, dampening=0.5, momentum=torch.tensor(0.0), backend=backend)
    assert apart(of_a_tensor, ours, "weight") <= 1e-12
    halved = Run(wd.SGD, torch.float64, **{**LAM, "lr": LAM["lr"] / 2})
    assert_matters(ours, halved, 1e-12)


def test_rules_that_step_as_asgd_does():
    """What decisions/0031 says of torch's ASGD: η falls by its own schedule, and `lambd` is a decoupled decay beside L2."""
    lr, lambd, alpha = 0.05, 0.3, 0.75

    def ours(**changes):
        params = parameters()
        rules = {"direction": "sgd", "penalty": "l2", "penalty_weight": 0.2, "decay": "decoupled", "weight_decay": lambd}
        optimizer = wd.Optimizer(params.values(), lr, **{**rules, **changes})
        scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: (1 + lambd * lr * t) ** -alpha)
        for t in range(20):
            for place, param in enumerate(params.values()):
                param.grad = 0.5 * param.detach() + noise(param.shape, param.dtype, 100 * t + place)
            optimizer.step()
            scheduler.step()
        return params

    class Everywhere(Run):
        def set_gradients(self, t):
            for place, param in enumerate(self.params.values()):
                param.grad = 0.5 * param.detach() + noise(param.shape, param.dtype, 100 * t + place)

    asgd = partial(torch.optim.ASGD, foreach=False)
    theirs = Everywhere(asgd, torch.float64, lr=lr, lambd=lambd, alpha=alpha, weight_decay=0.2)
    found, without = ours(), ours(weight_decay=0.0)
    for name, param in theirs.params.items():
        assert (found[name] - param).abs().max() <= 1e-12 * theirs.largest[name]
        assert (without[name] - param).abs().max() >= 1e-2 * theirs.largest[name]


# The arguments ----------------------------------------------------------------------------------------------------------


def arguments(cls):
    """Return the arguments of a class after params, each with its default and whether it may be given by position."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[2:]  # after self and params
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    return positional, {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def theirs_of(preset):
    return getattr(torch.optim, preset.__name__)


OURS_ALONE = {"weight_decay_schedule", "backend", "rounding", "seed"}
"""What every optimizer of the package takes beyond torch's arguments, by keyword."""
FLAGS = {"maximize", "capturable", "differentiable", "foreach", "fused"}
"""What every one takes, whether torch's of that name does or not."""
WITHOUT_A_PRESET = {
    "ASGD": "decays by lambd beside λ and averages weights: decisions/0031 has the rules that step alike",
    "LBFGS": "has no weight_decay",
    "Rprop": "has no weight_decay",
    "SparseAdam": "has no weight_decay",
}


def test_every_optimizer_of_torchs_is_here_or_it_is_said_why_not():
    every = {
        name for name, cls in vars(torch.optim).items() if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    }
    assert every - {"Optimizer"} == {preset.__name__ for preset in DROP_INS} | set(WITHOUT_A_PRESET)
    for name, why in WITHOUT_A_PRESET.items():
        takes = inspect.signature(getattr(torch.optim, name)).parameters
        assert ("weight_decay" not in takes) == (why == "has no weight_decay")


@drop_ins
def test_a_signature_is_torchs_and_what_is_ours_comes_by_keyword(preset):
    positional, by_keyword = arguments(preset)
    theirs, theirs_by_keyword = arguments(theirs_of(preset))
    assert list(positional.items()) == list(theirs.items())  # names, order and defaults, the flags that end some of them too
    known = wd.optim.presets.preset.Options.__annotations__.keys() | by_keyword.keys()
    assert known >= theirs_by_keyword.keys()
    assert known - theirs_by_keyword.keys() <= OURS_ALONE | FLAGS
    bare = preset(parameters_of(preset).values()).defaults
    assert {name: bare[name] for name in theirs_by_keyword} == theirs_by_keyword
    for name in known - by_keyword.keys():
        preset(parameters_of(preset).values(), **{name: bare.get(name) if name != "backend" else "auto"})


@drop_ins
def test_every_argument_may_be_given_by_position(preset):
    theirs, _ = arguments(theirs_of(preset))
    by_position = preset(parameters_of(preset).values(), *theirs.values())
    assert by_position.defaults == preset(parameters_of(preset).values()).defaults


@drop_ins
def test_every_argument_of_torchs_is_taken_with_its_default(preset):
    theirs = {name: default for each in arguments(theirs_of(preset)) for name, default in each.items()}
    assert theirs
    bare = preset(parameters_of(preset).values())
    for name, default in theirs.items():
        assert bare.defaults[name] == default, name
        assert preset(parameters_of(preset).values(), **{name: default}).defaults == bare.defaults, name


@drop_ins
def test_defaults_and_groups_have_every_key_that_torchs_have(preset):
    """Frameworks read them: a logger weight_decay, a scheduler betas or momentum."""
    ours, theirs = (cls(parameters_of(preset).values()) for cls in (preset, theirs_of(preset)))
    for found, expected in ((ours.defaults, theirs.defaults), (ours.param_groups[0], theirs.param_groups[0])):
        shared = {key: found[key] for key in expected if key != "params"}
        assert shared == {key: value for key, value in expected.items() if key != "params"}
