"""Somebody's optimizer is looked at and not used: whatever stands in its groups, no check of a user's call is in the way."""

import collections
import math

import numpy as np
import pytest
import torch
from torch import nn
from training import noise

import weightdecay as wd

LR, LAMBDA = 0.01, 0.5


def theirs(build, frozen=None, empty=False, written=None, **options):
    """Return one of torch's optimizers with a gradient, and beside it what a framework or a user may have put there."""
    w = nn.Parameter(noise((3, 3), torch.float32, 1))
    w.grad = noise((3, 3), torch.float32, 2)
    others = [] if frozen is None else [nn.Parameter(frozen, requires_grad=False)]
    groups = [{"params": [*others, w]}, *([{"params": [], "weight_decay": 0.0}] if empty else [])]
    optimizer = build(groups, lr=LR, **{"weight_decay": LAMBDA, **options})
    optimizer.param_groups[0].update(written or {})
    return optimizer, w


ADAMW, SGD = torch.optim.AdamW, torch.optim.SGD
LOOKED_AT = {
    "an empty group": lambda: theirs(ADAMW, empty=True),
    "a frozen int8 parameter": lambda: theirs(ADAMW, torch.zeros(3, dtype=torch.int8)),
    "a frozen bool parameter": lambda: theirs(ADAMW, torch.zeros(3, dtype=torch.bool)),
    "a frozen float8 parameter": lambda: theirs(ADAMW, torch.zeros(3).to(torch.float8_e4m3fn)),
    "a frozen expanded parameter": lambda: theirs(SGD, torch.zeros(1).expand(3)),
    "betas of NumPy's": lambda: theirs(ADAMW, betas=np.array([0.9, 0.99])),
    "betas in a deque": lambda: theirs(ADAMW, betas=collections.deque([0.9, 0.99])),
    "numbers of NumPy's": lambda: theirs(ADAMW, written={"lr": np.array(LR), "weight_decay": np.float64(LAMBDA)}),
    "flags as numbers": lambda: theirs(SGD, nesterov=0, maximize=np.bool_(True)),
    "a dampening without a momentum": lambda: theirs(SGD, dampening=0.5),
    "a look-ahead whose momentum is gone": lambda: theirs(SGD, momentum=0.9, nesterov=True, written={"momentum": 0.0}),
    "foreach": lambda: theirs(ADAMW, foreach=True),
    "fused": lambda: theirs(ADAMW, fused=True),
    "keys that look like ours": lambda: theirs(ADAMW, written={"seed": "a", "rounding": "up", "weigth_decay": 1}),
}  # fmt: skip


@pytest.mark.parametrize("given", LOOKED_AT.values(), ids=LOOKED_AT)
def test_looking_at_somebodys_optimizer_refuses_nothing(given):
    optimizer, w = given()
    before, split = w.detach().double(), wd.decompose(optimizer)[w]
    shares = wd.remaining(optimizer, steps=2).groups
    assert shares[0] == pytest.approx((1 - LR * LAMBDA) ** 2, rel=1e-6)
    assert shares[1:] in ((), (1.0,))
    meter = wd.Meter(optimizer, every=1)
    optimizer.step()
    exact = split.g.double() * before - split.lr * split.h.double()
    assert (w.detach() - exact).abs().max() <= 5e-6  # a thousandth of what the decay takes of a weight of 1
    assert meter.unknown is None
    assert meter.metrics()["weight_decay/group0/shrink"] == pytest.approx(LR * LAMBDA, rel=1e-6)
    model = nn.Module()
    model.params = nn.ParameterList([param for group in optimizer.param_groups for param in group["params"]])
    assert wd.doctor(model, optimizer).to_dict()
    wd.WeightDecayScheduler(optimizer, "linear", steps=4)


@pytest.mark.parametrize("lr", [-1e-9, math.nan])
def test_a_number_that_cannot_be_meant_is_shown_as_it_is(lr):
    """torch's OneCycleLR leaves a negative lr behind."""
    optimizer, w = theirs(ADAMW, written={"lr": lr})
    assert wd.decompose(optimizer)[w].lr == pytest.approx(lr, nan_ok=True)
    assert wd.remaining(optimizer).groups[0] == pytest.approx(1 - lr * LAMBDA, nan_ok=True)
    assert wd.Meter(optimizer, every=1).unknown is None


def test_an_empty_group_keeps_all_that_it_has():
    groups = [{"params": [], "weight_decay": 0.1}]
    optimizer = torch.optim.Adam([*groups, {"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.0}])
    assert wd.remaining(optimizer, steps=5).groups == (1.0, 1.0)  # of weights under L2 no one number could be told


def test_a_decay_is_attached_and_scheduled_whatever_kind_its_numbers_are():
    optimizer, w = theirs(ADAMW, written={"lr": np.array(LR), "weight_decay": np.array(LAMBDA)})
    twin, v = theirs(ADAMW)
    for each in (optimizer, twin):
        wd.attach(each, "decoupled")
        scheduler = wd.WeightDecayScheduler(each, "linear", steps=4)
        for _ in range(2):
            each.step()
            scheduler.step()
    assert torch.equal(w, v)


def appended(optimizer, w):
    """Somebody appends to a group whose parameters have names."""
    extra = nn.Parameter(torch.ones(2))
    extra.grad = torch.ones(2)
    optimizer.param_groups[0]["param_names"] = ["w"]
    optimizer.param_groups[0]["params"].append(extra)


BROKEN = {
    "no state": lambda optimizer, w: optimizer.state.update({w: None}),
    "a step that is NaN": lambda optimizer, w: optimizer.state[w].update(step=torch.tensor(math.nan)),
    "a step in words": lambda optimizer, w: optimizer.state[w].update(step="x"),
    "names that are a number": lambda optimizer, w: optimizer.param_groups[0].update(param_names=5),
    "betas of None": lambda optimizer, w: optimizer.param_groups[0].update(betas=None),
    "fewer names than parameters": appended,
    "a schedule of somebody's own": lambda optimizer, w: optimizer.param_groups[0].update(weight_decay_schedule="cosine"),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_looking_at_what_is_broken_refuses_nothing(broken):
    optimizer, w = theirs(ADAMW)
    optimizer.step()
    broken(optimizer, w)
    assert w in wd.decompose(optimizer)
    assert wd.remaining(optimizer, steps=2).groups[0] == pytest.approx((1 - LR * LAMBDA) ** 2, rel=1e-6)
    model = nn.Module()
    for place, param in enumerate(optimizer.param_groups[0]["params"]):
        model.register_parameter(f"w{place}", param)
    assert wd.doctor(model, optimizer, steps=10).subject["optimizer"] == "AdamW"


def test_a_meter_that_cannot_measure_lets_the_step_go_on(monkeypatch):
    """Whatever makes it fail, the run is somebody else's."""
    (optimizer, w), (plain, v) = theirs(ADAMW), theirs(ADAMW)
    meter = wd.Meter(optimizer, every=1)
    monkeypatch.setattr(wd.audit.meter.sums, "add_before", lambda *_: 1 / 0)
    optimizer.step()
    plain.step()
    assert torch.equal(w, v)
    assert meter.history() == ()
    assert "ZeroDivisionError" in meter.unknown
    assert meter.unknown in str(meter)
    monkeypatch.undo()
    optimizer.step()
    assert len(meter.history()) == 1
