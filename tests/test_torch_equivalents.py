"""What is known of torch's optimizers is asked of torch's optimizers."""

import pytest
import torch
from training import noise

import weightdecay as wd
from weightdecay.optim.saved_state import of_another_shape
from weightdecay.optim.torch_equivalents import TORCH

NO_OPTIMIZERS = {
    "Optimizer": "the base class",
    "lr_scheduler": "a module",
    "swa_utils": "a module",
    "swap_in_optimizer_params_and_state": "a function",
}
LAM, LR = 0.125, 0.25
rows = pytest.mark.parametrize("cls", TORCH, ids=lambda cls: cls.__name__)


def test_every_name_of_torch_optim_has_a_row_or_a_reason():
    known = {cls.__name__ for cls in TORCH} | NO_OPTIMIZERS.keys()
    assert set(torch.optim.__all__) <= known
    assert all(isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) for cls in TORCH)


def stepped(cls, gradient, steps=1, weight=1.0, **settings):
    """Return the weights after steps with the gradient that a function makes of the weights."""
    param = torch.nn.Parameter(torch.full((2, 2), weight, dtype=torch.float64))
    optimizer = cls([param], lr=LR, **settings)
    for _ in range(steps):
        whole = gradient(param.detach())
        param.grad = whole.to_sparse() if cls is torch.optim.SparseAdam else whole
        optimizer.step(lambda: torch.zeros(())) if cls is torch.optim.LBFGS else optimizer.step()
    return param.detach()


def kinds_of(cls, **settings):
    """Return which kinds of decay several steps agree with, each made of steps without weight_decay."""
    momentum = {"momentum": 0.9} if cls is torch.optim.SGD else {}
    steps, shrink = 8, 1 - LR * LAM

    def coupled(w):
        return torch.cos(3 * w) + LAM * w

    theirs = stepped(cls, lambda w: torch.cos(3 * w), steps, weight_decay=LAM, **momentum, **settings)
    through = stepped(cls, coupled, steps, weight_decay=0.0, **momentum, **settings)
    beside = torch.nn.Parameter(torch.full((2, 2), 1.0, dtype=torch.float64))
    optimizer = cls([beside], lr=LR, weight_decay=0.0, **momentum, **settings)
    for _ in range(steps):
        beside.grad = torch.cos(3 * beside.detach())
        with torch.no_grad():
            beside.mul_(shrink)
        optimizer.step()
    found = {"coupled": through, "decoupled": beside.detach()}
    return {kind for kind, w in found.items() if torch.allclose(w, theirs, rtol=1e-9)}


@rows
def test_how_weight_decay_acts_is_what_the_row_says(cls):
    kind = TORCH[cls].kind_in(cls([torch.nn.Parameter(torch.ones(2, 2))], lr=LR).param_groups[0])
    if kind == "none":
        with pytest.raises(TypeError, match="weight_decay"):
            stepped(cls, torch.ones_like, weight_decay=LAM)
    elif cls is torch.optim.Adafactor:  # whose step is measured in the norm of the decayed weight
        torch.testing.assert_close(stepped(cls, torch.zeros_like, weight_decay=LAM), torch.full((2, 2), 1 - LR * LAM).double())
        assert kind == "decoupled"
    else:
        assert kinds_of(cls) == {kind}


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam"])
@pytest.mark.parametrize(("flag", "kind"), [(True, "decoupled"), (False, "coupled")])
def test_a_groups_flag_decides_where_the_class_has_one(name, flag, kind):
    cls = getattr(torch.optim, name)
    assert kinds_of(cls, decoupled_weight_decay=flag) == {kind}
    group = cls([torch.nn.Parameter(torch.ones(2))], decoupled_weight_decay=flag).param_groups[0]
    assert TORCH[cls].kind_in(group) == kind


def test_the_flag_of_adamw_may_be_turned_off_in_a_group():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    assert TORCH[torch.optim.AdamW].kind_in({**optimizer.param_groups[0], "decoupled_weight_decay": False}) == "coupled"


def test_a_stray_flag_changes_nothing_in_a_class_without_one():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=LR)
    assert TORCH[torch.optim.SGD].kind_in({**optimizer.param_groups[0], "decoupled_weight_decay": True}) == "coupled"


@rows
def test_an_update_depends_on_the_weight_where_the_row_says_so(cls):
    row = TORCH[cls]
    if row.steps_by_gradient is False and cls is not torch.optim.ASGD:
        pytest.skip("its step asks the closure again, or takes sparse gradients alone")
    settings = {} if row.kind == "none" else {"weight_decay": 0.0}
    small, large = (stepped(cls, torch.ones_like, weight=weight, **settings) - weight for weight in (1.0, 64.0))
    assert torch.allclose(small, large, rtol=1e-9) == (not row.reads_weight)


@rows
def test_the_preset_does_the_same_step(cls):
    row = TORCH[cls]
    if row.preset is None:
        pytest.skip("this package has no direction like it")
    settings = {} if row.kind == "none" else {"weight_decay": LAM}
    flag = {"decoupled_weight_decay": True} if cls is torch.optim.AdamW else {}
    theirs = stepped(cls, torch.cos, 3, **settings)
    ours = stepped(row.preset, torch.cos, 3, **settings, **flag)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)


def test_warm_restarts_know_that_torchs_adafactor_is_decoupled():
    found = []
    for cls in (torch.optim.Adafactor, torch.optim.AdamW):
        optimizer = cls([torch.nn.Parameter(torch.ones(2))], lr=0.1, weight_decay=0.1)
        wd.WarmRestarts(optimizer, 100, lambda_norm=0.05)
        found.append(optimizer.param_groups[0]["weight_decay"])
    assert found == [pytest.approx(0.05 / 100**0.5 / 0.1)] * 2


@rows
def test_state_of_another_shape_is_seen_in_every_optimizer(cls):
    if cls in (torch.optim.LBFGS, torch.optim.SparseAdam):
        pytest.skip("it keeps what is of all parameters together, or of sparse gradients")
    param = torch.nn.Parameter(noise((3, 4), torch.float32, 1))
    optimizer = cls([param], lr=LR, **({"momentum": 0.9} if cls is torch.optim.SGD else {}))
    param.grad = noise((3, 4), torch.float32, 2)
    optimizer.step()
    state = optimizer.state[param]
    assert not of_another_shape(optimizer, state, (3, 4))
    for shape in ((3, 6), (6, 4), (12,), (4, 3)):
        assert of_another_shape(optimizer, state, shape), shape
