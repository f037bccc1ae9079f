"""Warnings stand at the line that a user has written, however many calls are in between."""

import linecache

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import CyclicLR

import weightdecay as wd
from weightdecay.optim import optimizer as core


def one():
    w = Parameter(torch.ones(2, 2))
    w.grad = torch.zeros_like(w)
    return w


def line(caught):
    """Return the line at which the one warning stands."""
    assert [each.filename for each in caught] == [__file__]
    return linecache.getline(__file__, caught[0].lineno).strip()


@pytest.mark.parametrize("build", [wd.AdamW, wd.Muon, wd.Optimizer])
def test_of_torchs_flags(build, monkeypatch):
    monkeypatch.setattr(core, "_TOLD", set())
    options = {"direction": "adam"} if build is wd.Optimizer else {}
    with pytest.warns(UserWarning, match="fused=True") as caught:
        build([one()], lr=0.1, fused=True, **options)
    assert line(caught) == "build([one()], lr=0.1, fused=True, **options)"


def cyclic(build):
    optimizer = build([one()])
    return optimizer, CyclicLR(optimizer, base_lr=1e-5, max_lr=1e-2, step_size_up=10, cycle_momentum=False)


def attached(params):
    optimizer = torch.optim.Adam(params)
    wd.attach(optimizer, "independent", 0.01)
    return optimizer


@pytest.mark.parametrize("build", [wd.AdamC, attached], ids=["our step", "the hook of torch's"])
def test_of_a_peak_that_rises(build):
    optimizer, scheduler = cyclic(build)
    optimizer.step()
    scheduler.step()
    with pytest.warns(UserWarning, match="pass the largest lr of the schedule as lr_max") as caught:
        optimizer.step()
    assert line(caught) == "optimizer.step()"


@pytest.mark.parametrize("attach", [False, True], ids=["ours", "attached"])
def test_of_what_loading_changes(attach):
    def made(lam):
        if not attach:
            return wd.AdamW([one()], weight_decay=lam)
        optimizer = torch.optim.AdamW([one()], weight_decay=lam)
        wd.attach(optimizer, "cautious")
        return optimizer

    new, saved = made(0.3), made(0.1).state_dict()
    with pytest.warns(UserWarning, match="loading has replaced") as caught:
        new.load_state_dict(saved)
    assert line(caught) == "new.load_state_dict(saved)"
