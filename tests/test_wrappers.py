"""What frameworks wrap around optimizers and schedulers is taken off by all that looks at one."""

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import ExponentialLR

import weightdecay as wd


class Accelerated(torch.optim.Optimizer):
    """As accelerate's optimizer, which never calls `Optimizer.__init__`, and as Lightning's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        return self.optimizer.step(closure)


class AcceleratedScheduler:
    def __init__(self, scheduler):
        self.scheduler = scheduler

    def step(self):
        self.scheduler.step()


def one():
    w = Parameter(torch.ones(3, dtype=torch.float64))
    w.grad = torch.zeros_like(w)
    return w


@pytest.mark.parametrize("preset", [wd.AdamW, torch.optim.AdamW], ids=["ours", "torch"])
@pytest.mark.parametrize("of_the_wrapper", [False, True])
def test_what_remains_is_told_of_wrapped_optimizers_and_schedulers(preset, of_the_wrapper):
    bare = preset([one()], lr=0.1, weight_decay=0.5)
    optimizer = Accelerated(bare)
    scheduler = ExponentialLR(optimizer if of_the_wrapper else bare, 0.5)
    expected = 0.95 * 0.975 * 0.9875
    for each in (optimizer, bare):
        for its in (scheduler, AcceleratedScheduler(scheduler), [AcceleratedScheduler(scheduler)]):
            assert wd.remaining(each, its, steps=3).groups == (pytest.approx(expected, rel=1e-12),)
    assert bare.param_groups[0]["lr"] == 0.1
    with pytest.raises(ValueError, match="ExponentialLR is of another optimizer"):
        wd.remaining(Accelerated(preset([one()], lr=0.1)), AcceleratedScheduler(scheduler), steps=3)


def test_an_attached_decay_is_found_through_a_wrapper():
    optimizer = torch.optim.AdamW([one()], lr=0.1)
    assert wd.Attachment.of(Accelerated(optimizer)) is None
    attachment = wd.attach(optimizer, "cautious", weight_decay=0.1)
    assert wd.Attachment.of(Accelerated(optimizer)) is attachment
