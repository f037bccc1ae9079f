"""The doctor: each check finds its mistake and is silent without it; ordinary set-ups pass; nothing is changed."""

import copy
import inspect
import json
import math
import random
import threading
from functools import partial

import numpy
import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

import weightdecay as wd
from weightdecay.audit.doctor.checks import CHECKS, Check
from weightdecay.audit.doctor.decay_law import laws_of
from weightdecay.optim import presets


class Block(nn.Module):
    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = norm(8), nn.Linear(8, 8), norm(8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.mlp(self.ln_2(x + self.attn(self.ln_1(x))))


class GPT(nn.Module):
    """As nanoGPT: wte tied to the head, wpe beside it."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(16, 8), nn.Embedding(4, 8)
        self.h, self.ln_f = nn.ModuleList([Block(), Block()]), nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 16, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[-1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.blocks, self.norm, self.head = nn.Sequential(Block(), Block()), nn.LayerNorm(8), nn.Linear(8, 10)

    def no_weight_decay(self):
        return {"cls_token", "pos_embed", "dist_token"}


def resnet():
    def layer(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, bias=False), nn.BatchNorm2d(b), nn.ReLU())

    return nn.Sequential(layer(3, 8), layer(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


class LoRA(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        nn.init.zeros_(self.lora_B.weight)


def cosine(optimizer, steps, warmup=10):
    ramp = lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [ramp, lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup)], [warmup])


def linear(optimizer, steps):
    return lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))


def ids(report, *severities):
    return [each.id for each in report.findings if not severities or each.severity in severities]


# No false alarm ---------------------------------------------------------------------------------------------------------------


def nanogpt():
    model = GPT()
    optimizer = torch.optim.AdamW(wd.param_groups(model, 0.1, style="nanogpt"), lr=6e-4, betas=(0.9, 0.95))
    model(torch.tensor([[1, 2, 3, 4]])).logsumexp(-1).sum().backward()
    return model, optimizer, cosine(optimizer, 600), 600


def vit():
    model = ViT()
    optimizer = torch.optim.AdamW(wd.param_groups(model, 0.05, style="timm"), lr=1e-3)
    return model, optimizer, cosine(optimizer, 3000), 3000


def resnet_sgd():
    model = resnet()
    optimizer = torch.optim.SGD(wd.param_groups(model, 5e-4), lr=0.1, momentum=0.9, nesterov=True)
    return model, optimizer, lr_scheduler.MultiStepLR(optimizer, [300, 600]), 900


def lora():
    model = LoRA()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.01)
    return model, optimizer, linear(optimizer, 1000), 1000


def trainer():
    """Hugging Face's Trainer as it comes: λ = 0, linear decay, groups by its own names."""
    model = GPT()
    return model, (optimizer := torch.optim.AdamW(wd.param_groups(model, 0.0), lr=5e-5)), linear(optimizer, 1000), 1000


def trainer_with_decay():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.LayerNorm(8))
    optimizer = torch.optim.AdamW(wd.param_groups(model, 0.01, style="hf"), lr=5e-5)
    return model, optimizer, linear(optimizer, 3000), 3000


def ours_in_bfloat16():
    model = GPT().to(torch.bfloat16)
    return model, wd.AdamW(wd.param_groups(model, 0.1), lr=3e-4, backend="eager"), None, 10_000


def muon():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    return model, torch.optim.Muon(model.parameters(), lr=0.02, weight_decay=0.1), None, 2000


def graphs():
    """L2 with Adam as graph networks use it."""
    model = nn.Linear(8, 8, bias=False)
    return model, torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4), None, 200


def resumed():
    model, optimizer, _, _ = trainer_with_decay()
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    scheduler.step()
    again = torch.optim.AdamW(wd.param_groups(model, 0.01, style="hf"), lr=5e-5)
    its = lr_scheduler.CosineAnnealingLR(again, 100)
    again.load_state_dict(optimizer.state_dict())
    its.load_state_dict(scheduler.state_dict())
    return model, again, its, 100


ORDINARY = (
    nanogpt, vit, resnet_sgd, lora, trainer, trainer_with_decay, ours_in_bfloat16, muon, graphs, resumed
)  # fmt: skip


@pytest.mark.parametrize("setup", ORDINARY, ids=lambda setup: setup.__name__)
def test_ordinary_set_ups_raise_no_alarm(setup):
    model, optimizer, scheduler, steps = setup()
    report = wd.doctor(model, optimizer, scheduler, steps=steps)
    assert ids(report, "error", "warning") == [], str(report)
    assert not report.failed(strict=True)
    assert list(report.checks) == list(CHECKS) == [f"D{number}" for number in range(1, 11)]


# Each check finds its mistake ------------------------------------------------------------------------------------------------


def adamw(model, lr=1e-3, lam=0.1, **more):
    return torch.optim.AdamW(wd.param_groups(model, lam), lr=lr, **more)


def only(check, model, optimizer, scheduler=None, **more):
    """Return the findings of one check, each of which says all that a finding has to."""
    found = wd.doctor(model, optimizer, scheduler, only=[check], **more).findings
    for each in found:
        assert each.id == check
        assert each.problem
        assert each.evidence
        assert each.severity == "info" or (each.fix and each.effect)
        if each.fix and "..." not in each.fix and "checkpoint" not in each.fix:
            model_, optimizer_ = copy.deepcopy((model, optimizer))
            names = {"model": model_, "optimizer": optimizer_, "torch": torch, "fully_shard": lambda model: model}
            exec(each.fix, {**names, type(optimizer).__name__: type(optimizer)})
    return found


def test_d1_norms_and_biases_that_decay_with_what_is_left_of_them():
    model = Block()
    (found,) = only("D1", model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1), steps=10_000)
    assert found.severity == "warning"
    assert found.tensors == ("ln_1.weight", "ln_1.bias", "attn.bias", "ln_2.weight", "ln_2.bias", "mlp.bias")
    assert (found.evidence["norm"], found.evidence["bias"]) == (2, 4)
    assert f"{(1 - 1e-4) ** 10_000:.3g}" in found.effect
    assert only("D1", model, adamw(model)) == ()
    (found,) = only("D1", model, torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01), steps=1000)
    assert found.severity == "info"  # 1e-4 of a gain


def test_d1_the_fix_mends_it():
    model = Block()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.8, 0.9))
    names = {"model": model, "torch": torch}
    exec(only("D1", model, optimizer)[0].fix, names)
    assert wd.doctor(model, names["optimizer"], steps=1000).findings == ()
    assert names["optimizer"].param_groups[0]["betas"] == (0.8, 0.9)


def test_d1_swapped_group_lists():
    model = Block()
    decay, no_decay = (list(group["params"]) for group in wd.param_groups(model, 0.1, names=False))
    groups = [{"params": no_decay, "weight_decay": 0.1}, {"params": decay, "weight_decay": 0.0}]
    (found,) = only("D1", model, torch.optim.AdamW(groups, lr=1e-3))
    assert found.severity == "error"
    assert "swapped" in found.problem


def test_d1_knows_gains_around_one():
    class PlusOneNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8))

        def forward(self, x):
            return x * (1.0 + self.weight)

    model = nn.Sequential(nn.Linear(8, 8, bias=False), PlusOneNorm())
    assert only("D1", model, torch.optim.AdamW(model.parameters(), weight_decay=0.1)) == ()


class Asking(Block):
    def no_weight_decay(self):
        return {"attn.weight"}


class Outdated(Block):
    def no_weight_decay(self):
        return {"pos_embed"}


def test_d2_what_asks_for_no_decay_and_is_not_heard():
    model = nn.ModuleDict({"backbone": Asking()})
    plain = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim < 2]},
    ]
    (found,) = only("D2", model, torch.optim.AdamW(plain, lr=1e-3, weight_decay=0.1))
    assert found.tensors == ("backbone.attn.weight",)
    assert only("D2", model, adamw(model)) == ()


def test_d2_a_list_that_names_nothing():
    model = Outdated()
    (found,) = only("D2", model, adamw(model))
    assert found.evidence["named"] == ["pos_embed"]


def test_d2_a_weight_that_a_substring_exempts():
    model = nn.ModuleDict({"normalizer": nn.Linear(8, 8), "up": nn.Linear(8, 8)})
    decay = [p for n, p in model.named_parameters() if not any(word in n for word in ("bias", "norm"))]
    rest = [p for p in model.parameters() if all(p is not q for q in decay)]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    (found,) = only("D2", model, torch.optim.AdamW(groups, lr=1e-3))
    assert found.tensors == ("normalizer.weight",)


@pytest.mark.parametrize("flags", [{"foreach": False}, {"fused": True}])
def test_d3_bfloat16_weights_that_keep_no_decay(flags):
    model = nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, **flags)
    (found,) = only("D3", model, optimizer, steps=10_000)
    assert (found.severity, found.evidence["lost_up_to"]) == ("error", 2**-9)
    assert "0% is taken" in found.effect
    assert only("D3", model, wd.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, backend="eager")) == ()
    nearest = wd.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, rounding="nearest", backend="eager")
    assert only("D3", model, nearest)[0].severity == "error"
    compensated = wd.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, rounding="compensated", backend="eager")
    assert only("D3", model, compensated) == ()


def test_d3_float32_at_the_learning_rates_of_fine_tuning():
    model = nn.Linear(8, 8, bias=False)
    (found,) = only("D3", model, adamw(model, lr=1e-6, lam=0.01), steps=1000)
    assert found.severity == "info"  # 1e-5 of a weight, in all
    assert only("D3", model, adamw(model, lr=1e-4, lam=0.01), steps=1000) == ()


def test_d4_adam_with_the_decay_of_adamw():
    model = nn.Linear(8, 8, bias=False)
    (found,) = only("D4", model, torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1))
    assert found.severity == "warning"
    assert found.evidence["a_first_step_without_gradient_takes"] > 10 * found.evidence["a_decoupled_decay_would_take"]
    assert only("D4", model, torch.optim.Adam(model.parameters(), weight_decay=0.1, decoupled_weight_decay=True)) == ()
    assert only("D4", model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.05)) == ()
    assert [each.id for each in only("D4", model, wd.Adam(model.parameters(), weight_decay=0.1, backend="eager"))] == ["D4"]


def test_d5_decay_that_destroys_forgets_or_cannot_matter():
    model = nn.Linear(8, 8, bias=False)
    params = list(model.parameters())
    (found,) = only("D5", model, adamw(model, lr=1.0, lam=1.5))
    assert (found.severity, found.evidence["share_per_step"]) == ("error", 1.5)
    independent = partial(wd.Optimizer, params, direction="adam", decay="independent", backend="eager")
    (found,) = only("D5", model, independent(lr=1e-3, weight_decay=0.05))
    assert found.severity == "warning"
    assert found.evidence["half_life_in_steps"] == pytest.approx(13.51, abs=0.01)
    assert only("D5", model, independent(lr=1e-3, weight_decay=1e-4), steps=10_000) == ()
    (found,) = only("D5", model, adamw(model, lr=0.02, lam=0.5), steps=20_000)
    assert "hundredth" in found.problem
    (found,) = only("D5", model, adamw(model, lr=1e-6, lam=0.01), steps=1000)
    assert found.severity == "info"
    assert only("D5", model, adamw(model), steps=10_000) == ()


def test_d5_looks_at_the_learning_rates_to_come():
    model = nn.Linear(8, 8, bias=False)
    optimizer = adamw(model, lr=1e-3, lam=0.5)
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=200)
    (found,) = only("D5", model, optimizer, scheduler)
    assert found.evidence["lr"] == pytest.approx(0.5, rel=1e-3)


def test_d6_another_models_tensors_missing_ones_and_doubles():
    model, other = Block(), Block()
    (found,) = only("D6", model, adamw(other))
    assert found.severity == "error"
    assert len(found.tensors) == 8
    (found,) = only("D6", model, torch.optim.AdamW(model.attn.parameters()))
    assert found.evidence["tensors"] == 6
    with pytest.warns(UserWarning, match="duplicate"):
        doubled = torch.optim.AdamW([*model.parameters(), model.attn.weight])
    (found,) = only("D6", model, doubled)
    assert (found.severity, found.tensors) == ("error", ("attn.weight",))
    assert only("D6", model, adamw(model)) == ()


def test_d6_what_decays_without_a_gradient():
    model = Block()
    model(torch.randn(2, 8)).sum().backward()
    model.mlp.weight.grad.zero_()
    (found,) = only("D6", model, adamw(model), steps=1000)
    assert (found.severity, found.tensors) == ("warning", ("mlp.weight",))
    assert "0.905" in found.effect
    frozen = Block()
    frozen(torch.randn(2, 8)).sum().backward()
    frozen.mlp.requires_grad_(False)
    (found,) = only("D6", frozen, torch.optim.AdamW(frozen.parameters(), weight_decay=0.1))
    assert (found.severity, found.tensors) == ("error", ("mlp.weight", "mlp.bias"))
    for param in frozen.mlp.parameters():
        param.grad = None
    assert only("D6", frozen, torch.optim.AdamW(frozen.parameters(), weight_decay=0.1)) == ()


def stepped(model, lam, lr=1e-3, **more):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=lam, **more)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def test_d7_a_stale_decay_after_a_resume():
    model = nn.Linear(8, 8, bias=False)
    resumed = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.3)
    assert only("D7", model, resumed) == ()
    resumed.load_state_dict(stepped(model, 0.1).state_dict())
    (found,) = only("D7", model, resumed, steps=100)
    assert (found.severity, found.evidence["passed"], found.evidence["live"]) == ("warning", 0.3, [0.1])
    exec(found.fix, {"optimizer": resumed})
    assert resumed.param_groups[0]["weight_decay"] == 0.3
    assert only("D7", model, resumed) == ()


def test_d7_the_state_of_another_tensor():
    model = nn.ModuleDict({"a": nn.Linear(8, 8, bias=False), "b": nn.Linear(8, 8, bias=False)})
    pairs = list(model.named_parameters())
    saved, fresh = torch.optim.AdamW(pairs), torch.optim.AdamW(pairs[::-1])
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    saved.step()
    assert only("D7", model, fresh) == ()
    fresh.load_state_dict(saved.state_dict())
    (found,) = only("D7", model, fresh)
    assert found.severity == "error"
    assert found.evidence["state_of"] == {"b.weight": "a.weight", "a.weight": "b.weight"}


def test_d7_moments_of_another_shape():
    model = nn.Linear(4, 8, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.load_state_dict(stepped(nn.Linear(3, 8, bias=False), 0.01).state_dict())
    (found,) = only("D7", model, optimizer)
    assert "exp_avg" in str(found.evidence["shapes"])


def test_d7_schedulers_that_do_not_belong():
    model = nn.Linear(8, 8, bias=False)
    optimizer, old = adamw(model), adamw(model, lr=3e-4)
    (found,) = only("D7", model, optimizer, lr_scheduler.CosineAnnealingLR(old, 100))
    assert (found.severity, found.evidence["its_lr"]) == ("error", [3e-4])
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 100)
    assert only("D7", model, optimizer, scheduler) == ()
    optimizer.param_groups[0]["lr"] = 5e-4
    (found,) = only("D7", model, optimizer, scheduler)
    assert found.evidence["written"] == [1e-3]
    optimizer.add_param_group({"params": [("late", nn.Parameter(torch.ones(2)))]})
    assert "group" in only("D7", model, optimizer, scheduler)[0].problem


def test_d8_keys_that_nobody_reads():
    model = nn.Linear(8, 8, bias=False)
    for key in ("wd", "weight_deacy", "weight-decay"):
        (found,) = only("D8", model, torch.optim.AdamW([{"params": model.parameters(), key: 0.3}]))
        assert (found.severity, found.evidence[key]) == ("error", 0.3)
    (found,) = only("D8", model, torch.optim.AdamW([{"params": model.parameters(), "weight_decay": -1.0}]))
    assert "grow" in found.effect
    assert only("D8", model, adamw(model)) == ()


def test_d8_a_constructors_decay_in_the_shade_of_the_groups():
    model = nn.Linear(8, 8, bias=False)
    (found,) = only("D8", model, adamw(model, lam=0.1, weight_decay=0.3))
    assert (found.severity, found.evidence["passed"]) == ("warning", 0.3)


def test_d8_two_decays_on_the_same_tensors():
    model = nn.Linear(8, 8, bias=False)
    make = partial(wd.Optimizer, [model.weight], 1e-3, direction="adam", penalty="l2", decay="decoupled", backend="eager")
    (found,) = only("D8", model, make(weight_decay=0.1, penalty_weight=1e-3))
    assert "both" in found.problem or "beside" in found.problem
    assert only("D8", model, make(weight_decay=0.1)) == ()


def test_d8_lr_scale_without_timm():
    model = nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.AdamW([{"params": model.parameters(), "lr_scale": 0.5}], lr=1e-3)
    (found,) = only("D8", model, optimizer, lr_scheduler.StepLR(optimizer, 10))
    assert found.evidence["lr_scale"] == [0.5]


def test_d9_special_tensors():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.A_log, self.D, self.proj = nn.Parameter(torch.ones(8, 4)), nn.Parameter(torch.ones(8)), nn.Linear(8, 8)
            self.logit_scale = nn.Parameter(torch.tensor(2.6))

    model = Mixer()
    found = only("D9", model, torch.optim.AdamW(model.parameters(), weight_decay=0.1))
    assert [(each.severity, each.tensors) for each in found] == [("warning", ("A_log", "D")), ("warning", ("logit_scale",))]
    assert only("D9", model, adamw(model)) == ()
    model = LoRA()
    (found,) = only("D9", model, lora_optimizer := torch.optim.AdamW([model.lora_A.weight, model.lora_B.weight]))
    assert (found.severity, len(found.tensors)) == ("info", 2)
    exec(found.fix, {"optimizer": lora_optimizer})
    assert (found.leaves, only("D9", model, lora_optimizer)) == (1.0, ())  # they alone decayed, and stay in the same optimizer


def test_d9_rows_that_no_token_reached():
    model = nn.Sequential(nn.Embedding(100, 4), nn.Linear(4, 4))
    model(torch.tensor([3, 7])).sum().backward()
    (found,) = only("D9", model, adamw(model))
    assert found.evidence["rows_without_gradient"] == pytest.approx(0.98)


def test_d10_flat_parameters():
    model = nn.Module()
    model.flat = nn.Parameter(torch.randn(72))
    model.flat._is_flat_param = True
    (found,) = only("D10", model, torch.optim.AdamW(model.parameters(), weight_decay=0.1))
    assert found.severity == "error"
    (found,) = only("D10", model, torch.optim.AdamW(model.parameters(), weight_decay=0.0))
    assert "nothing decays" in found.problem


# Optimizers of others, with a bug that was planted ----------------------------------------------------------------------------


class Sgdw(Optimizer):
    """SGD with momentum and a decay that subclasses get wrong."""

    def __init__(self, params, lr=0.1, weight_decay=0.0, momentum=0.9):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    def shrink(self, w, lr, lam):
        w.mul_(1 - lr * lam)

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for w in group["params"]:
                    if w.grad is not None:
                        m = self.state[w].setdefault("m", torch.zeros_like(w))
                        m.mul_(group["momentum"]).add_(w.grad)
                        self.shrink(w, group["lr"], group["weight_decay"])
                        w.sub_(group["lr"] * m)


class SubtractsAConstant(Sgdw):
    def shrink(self, w, lr, lam):
        w.sub_(lr * lam)


class DeadStore(Sgdw):
    def shrink(self, w, lr, lam):
        w * (1 - lr * lam)


class AdamWInName(torch.optim.Adam):
    pass


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [(SubtractsAConstant, "D4", "same number"), (DeadStore, "D8", "does nothing"), (AdamWInName, "D4", "its name")],
)
def test_planted_bugs_of_unknown_optimizers_are_errors(cls, check, words):
    model = nn.Linear(8, 8, bias=False)
    optimizer = cls(model.parameters(), lr=0.01, weight_decay=0.02)
    findings = [each for each in wd.doctor(model, optimizer, steps=1000).findings if each.severity == "error"]
    assert [each.id for each in findings] == [check]
    assert words in findings[0].problem


def test_an_unknown_optimizer_that_is_right_raises_no_alarm():
    model = Block()
    report = wd.doctor(model, Sgdw(wd.param_groups(model, 0.05), lr=0.02), steps=1000)
    assert report.findings == ()
    assert report.subject["laws"][0].startswith("decoupled")


def test_an_optimizer_that_cannot_be_tried_is_said_to_be_unknown():
    class Stubborn(Sgdw):
        def __init__(self, params, secret, **numbers):
            super().__init__(params, **numbers)

    model = nn.Linear(8, 8, bias=False)
    (found,) = wd.doctor(model, Stubborn(model.parameters(), 1, weight_decay=0.1), steps=1000).findings
    assert (found.id, found.severity) == ("D4", "info")


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4),
        partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
        partial(wd.SGDW, lr=0.1, weight_decay=0.1, backend="eager"),
        partial(Sgdw, lr=0.1, weight_decay=0.1),
    ],
    ids=lambda make: make.func.__name__,
)
def test_what_is_foreseen_is_what_training_without_a_gradient_leaves(make):
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = make([w])
    (law,) = laws_of(optimizer)
    share = law.share(optimizer.param_groups[0])
    for _ in range(400):
        before = w.detach().clone()
        w.grad = torch.zeros_like(w)
        optimizer.step()
    assert share > 1e-4
    assert (1 - w / before).max().item() == pytest.approx(share, rel=2e-2)


# The features of this package ----------------------------------------------------------------------------------------------


def test_no_preset_raises_a_false_alarm():
    """On groups by role, λ of AdamW's size for decays and of L2's for penalties, before a step and after."""
    for name in sorted(set(presets.__all__) - {"Preset"}):
        cls = getattr(presets, name)
        model = nn.Sequential(nn.Linear(8, 8, bias=False)) if name.startswith("Muon") else Block()
        if "weight_decay" in inspect.signature(cls).parameters:
            groups = wd.param_groups(model, 5e-3 if cls.decay == "none" else 0.05)
        else:
            groups = model.parameters()
        optimizer = cls(groups, lr=0.01, backend="eager")
        for _ in range(2):
            report = wd.doctor(model, optimizer, steps=500)
            assert report.findings == (), f"{name}: {report}"
            model(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()


@pytest.mark.parametrize("host", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9)])
def test_no_attached_decay_raises_a_false_alarm(host):
    for decay in [each for each in wd.rules().of("decay") if each != "stable"]:
        model = Block()
        optimizer = host(wd.param_groups(model, 5e-4 if decay == "independent" else 0.05), lr=0.01)
        wd.attach(optimizer, decay)
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 500)
        for _ in range(2):
            report = wd.doctor(model, optimizer, scheduler)
            assert report.findings == (), f"{decay}: {report}"
            model(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
            scheduler.step()


def test_what_an_attached_decay_does_is_examined():
    def attached(model, lam=0.1, groups=None, decay="decoupled", **more):
        optimizer = torch.optim.AdamW(groups or wd.param_groups(model, lam), lr=1e-3, weight_decay=lam)
        wd.attach(optimizer, decay, **more)
        return optimizer

    model = Block()
    (found,) = wd.doctor(model, attached(model, groups=[*model.parameters()], decay="cautious"), steps=1000).findings
    assert (found.id, found.evidence["weight_decay"]) == ("D1", [0.1])
    assert found.fix.endswith('wd.attach(optimizer, "cautious")')
    names = {"model": model, "torch": torch}
    exec(found.fix, names)
    assert wd.doctor(model, names["optimizer"], steps=1000).findings == ()
    (found,) = wd.doctor(model, attached(model, lam=1500.0), steps=1000).findings
    assert (found.id, found.evidence["share_per_step"]) == ("D5", pytest.approx(1.5))
    model = Block().bfloat16()
    assert wd.doctor(model, attached(model), steps=10_000).findings == ()  # deferred
    (found,) = wd.doctor(model, attached(model, rounding="nearest"), steps=10_000).findings
    assert (found.id, found.severity) == ("D3", "error")


def test_d8_an_attached_decay_that_is_missing_or_doubled():
    model = nn.Linear(8, 8, bias=False)
    saved = torch.optim.AdamW(wd.param_groups(model, 0.1))
    wd.attach(saved, "cautious")
    optimizer = torch.optim.AdamW(wd.param_groups(model, 0.1))
    optimizer.load_state_dict(saved.state_dict())
    (found,) = only("D8", model, optimizer)
    assert "no decay is attached" in found.problem
    exec(found.fix, {"optimizer": optimizer})
    assert only("D8", model, optimizer) == ()
    optimizer.param_groups[0]["weight_decay"] = 0.1
    (found,) = only("D8", model, optimizer)
    assert "a second time" in found.problem
    exec(found.fix, {"optimizer": optimizer})
    assert only("D8", model, optimizer) == ()


SCHEDULE = {"name": "linear", "steps": 1000}


def in_its_groups(params):
    return wd.AdamW(params, lr=0.01, weight_decay=0.2, weight_decay_schedule=SCHEDULE, backend="eager"), None


def by_a_scheduler(params):
    optimizer = torch.optim.AdamW(params, lr=0.01, weight_decay=0.2)
    return optimizer, wd.WeightDecayScheduler(optimizer, SCHEDULE)


def attached_and_by_a_scheduler(params):
    optimizer = torch.optim.AdamW(params, lr=0.01, weight_decay=0.2)
    wd.attach(optimizer, "decoupled")
    return optimizer, wd.WeightDecayScheduler(optimizer, SCHEDULE, key="attached_weight_decay")


@pytest.mark.parametrize("scheduled", [in_its_groups, by_a_scheduler, attached_and_by_a_scheduler])
def test_a_schedule_of_lambda_is_run_ahead(scheduled):
    """0.2 falls to 0 over 1,000 steps: half of what a constant λ would take."""
    model = nn.LayerNorm(8, elementwise_affine=True, bias=False)
    optimizer, scheduler = scheduled(model.parameters())
    (found,) = wd.doctor(model, optimizer, scheduler, steps=1000).findings
    assert found.id == "D1"
    left = math.prod(1 - 0.01 * 0.2 * (1 - step / 1000) for step in range(1000))
    assert f"at {left:.3g} of their start" in found.effect
    before = copy.deepcopy(optimizer.param_groups[0].get("weight_decay_schedule"))
    wd.doctor(model, optimizer, scheduler, steps=1000)
    assert optimizer.param_groups[0].get("weight_decay_schedule") == before


# Several optimizers -----------------------------------------------------------------------------------------------------------


def muon_and_adamw(model, lam=0.1):
    matrices = [param for param in model.parameters() if param.ndim == 2]
    rest = [param for param in model.parameters() if param.ndim != 2]
    return [torch.optim.Muon(matrices, lr=0.02, weight_decay=lam), torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.0)]


def test_several_optimizers_are_examined_together():
    model = Block()
    optimizers = muon_and_adamw(model)
    schedulers = [lr_scheduler.CosineAnnealingLR(each, 2000) for each in optimizers]
    report = wd.doctor(model, optimizers, schedulers)
    assert (report.findings, report.subject["tensors"], report.subject["groups"]) == ((), 8, 2)
    assert str(report) == "Muon and AdamW, 10 checks: nothing found."
    assert wd.doctor(model, tuple(optimizers), schedulers).findings == ()
    # One alone in a list is as one.
    (found,) = wd.doctor(model, optimizers[:1], steps=1000).findings
    assert (found.id, found.optimizer) == ("D6", "")


def test_findings_say_in_which_of_several_optimizers_and_their_fixes_mend_it():
    model = Block()
    optimizers = muon_and_adamw(model)
    for group in optimizers[1].param_groups:
        group["weight_decay"] = 0.1
    report = wd.doctor(model, optimizers, steps=1000)
    (found,) = report.findings
    assert (found.id, found.optimizer) == ("D1", "optimizers[1], AdamW")
    assert "severity  in                    tensors  finding" in str(report)
    assert "\n   in        optimizers[1], AdamW\n" in str(report)
    assert report.to_dict()["findings"][0]["optimizer"] == found.optimizer
    names = {"model": model, "optimizers": optimizers, "torch": torch}
    exec(found.fix, names)
    assert [len(group["params"]) for group in optimizers[1].param_groups] == [6]
    assert wd.doctor(model, optimizers, steps=1000).findings == ()


def test_d6_what_none_of_several_optimizers_trains_or_two_do():
    model = Block()
    muon, adamw = muon_and_adamw(model)
    left = adamw.param_groups[0]["params"].pop()
    (found,) = only_of_several(model, [muon, adamw])
    assert found.tensors == ("mlp.bias",)
    assert found.evidence["values"] == left.numel()
    adamw.add_param_group({"params": [model.attn.weight, left], "weight_decay": 0.0})
    (found,) = only_of_several(model, [muon, adamw])
    assert (found.severity, found.tensors, found.optimizer) == ("error", ("attn.weight",), "optimizers[1], AdamW")
    (found,) = wd.doctor(model, [muon_and_adamw(Block())[0], adamw], only="D6", steps=10).findings[:1]
    assert (found.severity, found.optimizer) == ("error", "optimizers[0], Muon")


def only_of_several(model, optimizers):
    """Return the findings of D6; their fixes mend what they find."""
    findings = wd.doctor(model, optimizers, only="D6").findings
    fixed = copy.deepcopy((model, optimizers))
    for each in findings:
        exec(each.fix, {"model": fixed[0], "optimizers": fixed[1]})
    assert wd.doctor(*fixed, only="D6").findings == ()
    return findings


def test_schedulers_belong_to_one_of_several_optimizers():
    model = Block()
    optimizers, others = muon_and_adamw(model), muon_and_adamw(model)
    stray = lr_scheduler.CosineAnnealingLR(others[0], 100)
    report = wd.doctor(model, optimizers, [lr_scheduler.CosineAnnealingLR(optimizers[1], 100), stray], only="D7")
    (found,) = report.findings
    assert "writes into another optimizer" in found.problem


def test_what_are_no_several_optimizers_is_refused():
    model = Block()
    muon, adamw = muon_and_adamw(model)
    for wrong, error, message in (
        ([], ValueError, "empty list"),
        ([muon, muon], ValueError, "twice"),
        ([muon, None], TypeError, "NoneType"),
        ({"muon": muon, "adamw": adamw}, TypeError, "several as a list"),
    ):
        with pytest.raises(error, match=message):
            wd.doctor(model, wrong)
    for scheduler in (lr_scheduler.StepLR, "cosine", [3]):
        with pytest.raises(TypeError, match="scheduler is "):
            wd.doctor(model, [muon, adamw], scheduler)


def test_d7_the_fix_loads_by_name():
    model = nn.ModuleDict({"a": nn.Linear(8, 8, bias=False), "b": nn.Linear(8, 8, bias=False)})
    pairs = list(model.named_parameters())
    saved = torch.optim.AdamW(pairs, weight_decay=0.1)
    for size, (_, param) in enumerate(pairs):
        param.grad = torch.full_like(param, 1.0 + size)
    saved.step()
    wrong = torch.optim.AdamW(pairs[::-1], weight_decay=0.3)
    wrong.load_state_dict(saved.state_dict())
    found, stale = only("D7", model, wrong)
    assert (found.severity, stale.evidence["live"]) == ("error", [0.1])
    anew = torch.optim.AdamW(pairs[::-1], weight_decay=0.3)
    exec(found.fix, {"model": model, "optimizer": anew, "checkpoint": {"optimizer": saved.state_dict()}})
    assert wd.doctor(model, anew, only="D7").findings == ()
    for param in model.parameters():
        assert torch.equal(anew.state[param]["exp_avg"], saved.state[param]["exp_avg"])


# Odd set-ups ----------------------------------------------------------------------------------------------------------------


class Holds:
    """A wrapper that is no optimizer itself."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_wrappers_in_wrappers_are_looked_into_and_circles_end():
    model = Block()
    a, b = adamw(model), adamw(model)
    assert wd.doctor(model, Holds(Holds(a)), steps=1000).findings == ()
    a.optimizer, b.optimizer = b, a
    assert wd.doctor(model, a, steps=1000).findings == ()


def test_what_is_refused_is_refused_with_what_to_do():
    model = Block()
    for wrong, error, message in (
        ((model, torch.optim.AdamW), TypeError, "optimizer is the class AdamW itself"),
        ((Block, adamw(model)), TypeError, "model is the class Block itself"),
        ((nn.LazyLinear(2), adamw(model)), ValueError, "^'weight' is lazy .* Run the model once"),
    ):
        with pytest.raises(error, match=message):
            wd.doctor(*wrong)


def test_frozen_tensors_do_not_decay_and_are_not_said_to():
    model = Block()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    model.attn.requires_grad_(False)
    (found,) = wd.doctor(model, optimizer, steps=1000).findings
    assert "attn.bias" not in found.tensors
    model.requires_grad_(False)
    assert wd.doctor(model, optimizer, steps=1000).findings == ()


def test_learning_rates_that_are_none():
    model = nn.Linear(8, 8, bias=False)
    for lr in (math.nan, math.inf, -1e-3, None):
        optimizer = adamw(model)
        optimizer.param_groups[0]["lr"] = lr
        if lr is None:
            del optimizer.param_groups[0]["lr"]
        (found,) = wd.doctor(model, optimizer, steps=1000).findings
        assert (found.id, found.severity) == ("D8", "error")
        json.dumps(found.to_dict(), allow_nan=False)
        exec(found.fix, {"optimizer": optimizer})
        assert wd.doctor(model, optimizer, steps=1000).findings == ()


@pytest.mark.parametrize("state", [None, 3, [], {"step": torch.ones(2)}, {"step": math.nan}, {"step": 10**400}, {3: 4}])
def test_a_state_of_any_kind_is_looked_at(state):
    model = Block()
    optimizer = adamw(model)
    optimizer.state[model.mlp.weight] = state
    assert wd.doctor(model, optimizer, steps=1000).findings == ()


@pytest.mark.parametrize("names", [None, 3, "abcdefgh", ["a"], range(2), [None] * 8])
def test_names_that_do_not_fit_are_none(names):
    model = Block()
    optimizer = adamw(model)
    for group in optimizer.param_groups:
        group["param_names"] = names
    assert wd.doctor(model, optimizer, steps=1000).findings == ()


@pytest.mark.parametrize("lr", [numpy.float32(1e-3), numpy.array(1e-3), torch.tensor([1e-3])])
def test_numbers_of_any_kind_are_read(lr):
    model = Block()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer.param_groups[0].update(lr=lr, weight_decay=numpy.float32(0.1))
    (found,) = wd.doctor(model, optimizer, steps=10_000).findings
    assert (found.id, found.leaves) == ("D1", pytest.approx(math.exp(-1), rel=1e-3))
    optimizer.param_groups[0]["weight_decay"] = 10**400
    assert ids(wd.doctor(model, optimizer, steps=1000), "error") == ["D8"]
    optimizer.param_groups[0].update(weight_decay=0.1, lr=10**400)
    assert "D8" in ids(wd.doctor(model, optimizer, steps=1000), "error")


FROZEN = [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FROZEN)
def test_a_quantised_frozen_base_raises_no_alarm(dtype):
    model = Block()
    model.attn.weight = nn.Parameter(torch.zeros(8, 8).to(dtype), requires_grad=False)
    for params in (wd.param_groups(model, 0.1, names=False), wd.param_groups(model, 0.1, names=False, frozen=True)):
        assert wd.doctor(model, torch.optim.AdamW([*params, {"params": []}], lr=1e-3), steps=1000).findings == ()


def test_a_gain_of_two_axes_that_decays_is_found():
    class Gains(nn.Linear):
        def __init__(self):
            super().__init__(8, 8, bias=False)
            self.ia3_l, self.log_std = nn.Parameter(torch.ones(8, 1)), nn.Parameter(torch.zeros(1, 6))
            self.lora_magnitude_vector = nn.ModuleDict({"default": nn.Conv2d(8, 1, 1, bias=False)})

    model = Gains()
    (found,) = only("D1", model, torch.optim.AdamW(model.parameters(), weight_decay=0.1))
    assert found.tensors == ("ia3_l", "log_std", "lora_magnitude_vector.default.weight")
    assert only("D1", model, adamw(model)) == ()
    prompts = nn.ModuleDict({"prompt_encoder": nn.ModuleDict({"embedding": nn.Embedding(4, 8)})})
    (found,) = only("D9", prompts, torch.optim.AdamW(prompts.parameters(), weight_decay=0.1))
    assert found.tensors == ("prompt_encoder.embedding.weight",)


def test_d5_a_schedule_that_goes_on_after_its_end():
    model = nn.Linear(8, 8, bias=False)
    optimizer = adamw(model)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 500)
    (found,) = wd.doctor(model, optimizer, scheduler, steps=1000).findings
    assert (found.id, found.severity, found.evidence["after_steps"]) == ("D5", "error", 501)
    report = wd.doctor(model, optimizer, scheduler)  # how long the run is nobody says
    assert (ids(report, "error", "warning"), report.subject["steps"]) == ([], 501)


def test_what_cannot_be_copied_is_left_where_it_is():
    model = nn.Linear(8, 8, bias=False)
    optimizer = adamw(model)
    optimizer.param_groups[0]["lock"] = lock = threading.Lock()
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    report = wd.doctor(model, optimizer, scheduler)
    assert (report.findings, report.subject["scheduler_foreseen"]) == ((), True)
    scheduler.lock = lock
    assert not wd.doctor(model, optimizer, scheduler).subject["scheduler_foreseen"]


class Unlisted(nn.Module):
    def named_parameters(self, *args, **kwargs):
        raise LookupError("not today")


def test_a_model_whose_parameters_cannot_be_listed_is_said_to_be_so_and_where():
    model = nn.Sequential(nn.Linear(2, 2), Unlisted())
    with pytest.raises(
        RuntimeError, match=r"of the model, a Sequential, cannot be listed: LookupError: not today .*test_doctor"
    ):
        wd.doctor(model, torch.optim.AdamW(model[0].parameters()))


def test_d7_names_of_a_part_of_the_model_are_no_damage():
    """model.backbone.named_parameters(), two parts in two groups or in one, and the network of a LightningModule."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    module = nn.ModuleDict({"net": nn.Linear(4, 4)})
    parts = [{"params": each.named_parameters()} for each in model[1]]
    both = [*model[1][0].named_parameters(), *((f"0.{name}", param) for name, param in model[0].named_parameters())]
    for whole, params in (
        (model, model[1].named_parameters()),
        (model, parts),
        (model, both),
        (module, wd.param_groups(module["net"], 0.1)),
        (model[1], model.named_parameters()),
    ):
        optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01)
        for _ in range(2):  # without a state, and with one
            assert only("D7", whole, optimizer) == ()
            for group in optimizer.param_groups:
                for param in group["params"]:
                    param.grad = torch.ones_like(param)
            optimizer.step()
    # Names of a part, one put for the other by a checkpoint.
    pairs = list(model[1].named_parameters())
    saved, fresh = torch.optim.AdamW(pairs), torch.optim.AdamW([pairs[2], pairs[1], pairs[0], pairs[3]])
    saved.step()
    fresh.load_state_dict(saved.state_dict())
    (found,) = only("D7", model, fresh)
    assert found.evidence["state_of"] == {"1.1.weight": "0.weight", "1.0.weight": "1.weight"}


def test_states_and_names_of_another_form_are_no_findings_of_their_own():
    model = Block()
    optimizer = torch.optim.AdamW(wd.param_groups(model, 0.1))
    optimizer.state[model.attn.weight] = torch.ones(2)
    optimizer.param_groups[0]["param_names"] = ["attn.weight"]
    assert only("D6", model, optimizer) == ()
    assert only("D7", model, optimizer) == ()


def test_a_class_that_is_only_made_in_another_way_does_what_its_parent_does():
    class Ready(torch.optim.Adam):
        def __init__(self, model):
            super().__init__(wd.param_groups(model, 0.1), lr=1e-3)

    class Stepping(Ready):
        def step(self, closure=None):
            return super().step(closure)

    model = nn.Linear(8, 8, bias=False)
    assert laws_of(Ready(model))[0].kind == "coupled"
    assert laws_of(Stepping(model))[0].kind == "unknown"


# Nothing is changed --------------------------------------------------------------------------------------------------------


def everything(model, optimizer, scheduler):
    grads = [None if param.grad is None else param.grad.clone() for param in model.parameters()]
    return copy.deepcopy(
        [
            {name: value.clone() for name, value in model.state_dict().items()},
            grads,
            optimizer.state_dict(),
            optimizer.defaults,
            {key: value for key, value in vars(scheduler).items() if key not in ("optimizer", "lr_lambdas")},
            torch.get_rng_state(),
            random.getstate(),
            [param.requires_grad for param in model.parameters()],
            torch.get_num_threads(),
            sorted(vars(optimizer)),
        ]
    )


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_no_hook_hears_of_the_steps_of_copies():
    heard = []
    handle = register_optimizer_step_post_hook(lambda *given: heard.append(given))
    model = nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)
    try:
        assert wd.doctor(model, Sgdw(model.parameters(), lr=0.01, weight_decay=0.1)).findings
        assert heard == []
        stepped(model, 0.1)
        assert len(heard) == 1
    finally:
        handle.remove()


def test_a_scheduler_that_cannot_be_run_ahead_is_taken_to_stay():
    class ByEpoch(lr_scheduler.LRScheduler):
        def get_lr(self):
            return self.base_lrs

        def step(self, epoch=0):
            if self.last_epoch >= 2:
                raise TypeError("which epoch?")
            self.last_epoch += 1

    model = nn.Linear(8, 8, bias=False)
    optimizer = adamw(model)
    report = wd.doctor(model, optimizer, ByEpoch(optimizer), steps=10_000)
    assert report.findings == ()
    assert not report.subject["scheduler_foreseen"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("cls", [torch.optim.AdamW, Sgdw])
def test_nothing_changes_also_when_a_check_raises(cls, fails, monkeypatch):
    def jitter(step):
        return 1 + 0.1 * random.random() + 0.1 * torch.rand(()).item()

    model = GPT().to(torch.bfloat16)
    optimizer = cls(model.parameters(), lr=1e-3, weight_decay=0.1)
    scheduler = lr_scheduler.LambdaLR(optimizer, jitter)
    model(torch.tensor([[1, 2, 3]])).float().logsumexp(-1).sum().backward()
    optimizer.step()
    scheduler.step()
    before = everything(model, optimizer, scheduler)
    if fails:

        def broken(case):
            assert case.runs
            assert case.replay(case.members[0]) is not None
            raise ZeroDivisionError("oh")
            yield

        monkeypatch.setitem(CHECKS, "D10", Check("D10", "a broken one", broken))
        with pytest.raises(RuntimeError, match=r"check D10 \(a broken one\) failed: ZeroDivisionError: oh; ignore=\['D10'\]"):
            wd.doctor(model, optimizer, scheduler, steps=50)
        assert wd.doctor(model, optimizer, scheduler, steps=50, ignore=["D10"]).checks[-1] == "D9"
    else:
        assert wd.doctor(model, optimizer, scheduler, steps=50).findings
    assert_same(before, everything(model, optimizer, scheduler))


# The report ---------------------------------------------------------------------------------------------------------------


def test_the_report_prints_and_is_json():
    model = Block()
    report = wd.doctor(model, torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=1.5), steps=10)
    assert [each.severity for each in report.findings] == ["error", "warning"]
    text = str(report)
    assert text.startswith("AdamW, 10 checks: 1 error, 1 warning.\n\ncheck  severity  tensors  finding\nD5     error ")
    assert "fix\n       " in text
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["findings"][0]["evidence"]["share_per_step"] == 1.5
    assert report.failed()
    assert str(wd.doctor(model, adamw(model), only="D1")) == "AdamW, 1 check: nothing found."


def test_what_is_no_set_up_is_refused():
    model = Block()
    for wrong, error, message in (
        ((model.parameters(), adamw(model)), TypeError, "not a torch.nn.Module"),
        ((model, model), TypeError, "not a torch.optim.Optimizer"),
    ):
        with pytest.raises(error, match=message):
            wd.doctor(*wrong)
    with pytest.raises(ValueError, match="did you mean 'D1'"):
        wd.doctor(model, adamw(model), only=["D11"])
    with pytest.raises(ValueError, match="steps=0"):
        wd.doctor(model, adamw(model), steps=0)


def test_schedulers_by_the_epoch_and_those_that_wait_for_losses():
    model = nn.Linear(8, 8, bias=False)
    optimizer = adamw(model)
    scheduler = lr_scheduler.MultiStepLR(optimizer, [30, 60])
    left = [
        wd.doctor(model, optimizer, each, steps=9000, steps_per_epoch=100, only="D1").subject
        for each in (scheduler, lr_scheduler.ReduceLROnPlateau(optimizer))
    ]
    assert all(subject["scheduler_foreseen"] for subject in left)

    from weightdecay.audit.doctor.setup import Case

    lrs = Case(model, optimizer, scheduler, 9000, 100).runs[0].lrs
    assert (lrs.count(1e-3), len(lrs)) == (3000, 9000)


def test_wrappers_of_accelerate_are_looked_into():
    class Accelerated:
        def __init__(self, optimizer=None, scheduler=None):
            self.optimizer, self.scheduler = optimizer, scheduler

    model = Block()
    optimizer = adamw(model)
    scheduler = linear(optimizer, 1000)
    wrapped = Accelerated(optimizer), Accelerated(None, scheduler)
    assert wd.doctor(model, *wrapped, steps=1000).findings == wd.doctor(model, optimizer, scheduler, steps=1000).findings == ()


class Rounded(Sgdw):
    """A decay of bfloat16 weights that is rounded at random, as torchao's."""

    def shrink(self, w, lr, lam):
        bits = ((1 - lr * lam) * w.float()).view(torch.int32)
        bits += torch.randint_like(bits, 1 << 16)
        w.copy_((bits & -65536).view(torch.float32))


def test_d3_believes_an_optimizer_of_others_that_rounds_at_random():
    model = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    numbers = {"lr": 0.01, "weight_decay": 0.001}
    assert only("D3", model, Rounded(model.parameters(), **numbers)) == ()
    assert only("D3", model, Sgdw(model.parameters(), **numbers), steps=10_000)[0].severity == "error"
