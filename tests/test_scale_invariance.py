"""A weight that a norm follows is found by what the model does, and the model does not notice that it was asked."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from test_groups import LAMBDA, Wrapper
from torch import nn
from torch.nn.utils import parametrizations

import weightdecay as wd


class Attention(nn.Module):
    """Causal attention whose queries and keys are normalised, or are not."""

    def __init__(self, width, normalised):
        super().__init__()
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.query_norm, self.key_norm = (nn.RMSNorm(width) if normalised else nn.Identity() for _ in range(2))

    def forward(self, x):
        y = self.norm(x)
        q, k = self.query_norm(self.query(y)), self.key_norm(self.key(y))
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, self.value(y), is_causal=True))


def language_model(normalised, width=16):
    torch.manual_seed(0)
    blocks = [Attention(width, normalised) for _ in range(2)]
    model = nn.Sequential(nn.Embedding(20, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 20))
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.02)
    return model, torch.randint(20, (2, 7))


def convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 4, 3, bias=False), nn.GroupNorm(2, 4),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    return model, torch.randn(8, 3, 8, 8)


@pytest.mark.parametrize("width", [8, 48])
@pytest.mark.parametrize("normalised", [False, True])
def test_queries_and_keys_are_scale_invariant_where_they_are_normalised(normalised, width):
    """At this spread the attention is nearly uniform: without norms, queries change the output by no more than an eps does."""
    model, tokens = language_model(normalised, width)
    assert set(wd.scale_invariant(model, tokens)) == (
        {f"{block}.{part}.weight" for block in (1, 2) for part in ("query", "key")} if normalised else set()
    )


@pytest.mark.parametrize("training", [False, True])
def test_convolutions_before_norms_are_scale_invariant_in_either_mode(training):
    model, images = convolutions()
    assert list(wd.scale_invariant(model.train(training), images)) == ["0.weight", "4.weight"]
    for wrapped in (Wrapper(model), torch.compile(Wrapper(torch.compile(model, backend="eager")), backend="eager")):
        assert list(wd.scale_invariant(wrapped, (images,))) == ["0.weight", "4.weight"]


def test_what_a_module_does_before_its_only_part_is_done():
    class Net(nn.Module):
        """A model whose only part happens to be called as a wrapper's is."""

        def __init__(self):
            super().__init__()
            self.module, _ = convolutions()

        def forward(self, x):
            return self.module(x.unflatten(1, (3, 8, 8)))

    assert list(wd.scale_invariant(Net(), torch.randn(8, 192))) == ["0.weight", "4.weight"]


def test_it_holds_in_float64_as_the_definition_says():
    model, images = convolutions()
    model, images = model.double().train(), images.double()
    found = wd.scale_invariant(model, images)
    model[3].p = 0.0
    before = model(images)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            with torch.no_grad():
                p.mul_(3.0)
                change = ((model(images) - before).norm() / before.norm()).item()
                p.div_(3.0)
            assert (change < 1e-3) == (name in found), name


def test_a_weight_that_nothing_depends_on_is_told_from_a_scale_invariant_one():
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4), "gated": nn.Linear(4, 4)})
    model.gain = nn.Parameter(torch.tensor(0.0))
    model.forward = lambda x: {"out": model["used"](x) + model.gain * model["gated"](x), "name": "x"}
    found = wd.scale_invariant(model, {"x": torch.randn(5, 4)})
    assert list(found) == []
    verdicts = {row["name"]: row["verdict"] for row in found.to_dict()}
    assert verdicts == {
        "used.weight": "its length matters",
        "unused.weight": "no effect on this output",
        "gated.weight": "no effect on this output",
    }
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    assert "0 of 3 weights are scale-invariant." in str(found)


def test_a_tied_and_a_parametrised_weight_are_scaled_as_one():
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    after_each = nn.Sequential(first, nn.LayerNorm(4), second, nn.LayerNorm(4))
    assert list(wd.scale_invariant(after_each, torch.randn(3, 4))) == ["0.weight"]
    after_one = nn.Sequential(first, nn.LayerNorm(4), second)
    assert list(wd.scale_invariant(after_one, torch.randn(3, 4))) == []
    model = parametrizations.weight_norm(nn.Linear(4, 4))
    assert list(wd.scale_invariant(model, torch.randn(3, 4))) == ["parametrizations.weight.original1"]


class Failing(nn.Module):
    """Draws random numbers, counts in a buffer, and fails at a call of one's choice."""

    def __init__(self, at):
        super().__init__()
        self.inner = convolutions()[0]
        self.register_buffer("calls", torch.zeros(()))
        self.at, self.seen = at, 0

    def forward(self, x):
        self.seen += 1
        self.calls += 1
        torch.rand(3), random.random(), np.random.rand()
        x.mul_(1.5)
        if self.seen == self.at:
            raise RuntimeError("out of memory")
        return self.inner(x)


@pytest.mark.parametrize("at", [0, 1, 4])
def test_nothing_changes_by_a_bit_even_if_the_model_raises(at):
    model, images = Failing(at).train(), convolutions()[1]
    model.inner[1].eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), "images": images}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), copy.deepcopy(np.random.get_state())
    if at:
        with pytest.raises(RuntimeError, match="out of memory"):
            wd.scale_invariant(model, images)
    else:
        assert len(wd.scale_invariant(model, images)) == 2
    assert model.seen > 0
    now = {**dict(model.named_parameters()), **dict(model.named_buffers()), "images": images}
    assert all(now[name] is tensors[name] and torch.equal(now[name], before[name]) for name in before)
    assert all(p.grad is grads[name] and torch.equal(p.grad, torch.ones_like(p)) for name, p in model.named_parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[2] == states[2][2]
    assert (np.random.get_state()[1] == states[2][1]).all()


def test_the_corrected_decay_takes_what_was_found():
    model, images = convolutions()
    found = wd.scale_invariant(model, images)
    groups = wd.param_groups(model, LAMBDA, scale_invariant=found, roles={"scale_invariant": {"decay": "corrected"}})
    optimizer = wd.Optimizer(groups, 0.1, direction="sgd", decay="decoupled", backend="eager")
    assert {name: group["decay"] for group in optimizer.param_groups for name in group["param_names"]} == {
        **dict.fromkeys(("0.weight", "4.weight"), "corrected"),
        **dict.fromkeys(("0.bias", "1.weight", "1.bias", "5.weight", "5.bias", "7.weight", "7.bias"), "decoupled"),
    }


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x.argmax(), "no floating-point tensor"),
        (lambda x: x / 0, "not finite"),
        (lambda x: x.bfloat16(), r"is bfloat16.*Give model.float\(\)"),
    ],
)
def test_an_output_that_nothing_can_be_told_from_is_refused(answer, message):
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda module, inputs, output: answer(output))
    with pytest.raises(ValueError, match=message):
        wd.scale_invariant(model, torch.ones(3, 2))
