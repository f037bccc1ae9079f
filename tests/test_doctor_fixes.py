"""What the doctor's fixes do to the weights: the run leaves what the text says, and no more is taken than may be."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import weightdecay as wd

STEPS = 150


def block(trained):
    """Return a small model whose gain is one as at the start, or is not."""
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 8)).double()
    with torch.no_grad():
        model[1].weight.add_(0.1 * trained)
    return model


def adamw(model, lr=1e-2, lam=0.1, **more):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=lam, **more)


class Sgdw(torch.optim.Optimizer):
    """SGD of somebody else, whose decay subclasses get wrong."""

    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def shrink(self, w, lr, lam):
        w.mul_(1 - lr * lam)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self.shrink(w, group["lr"], group["weight_decay"])
                    w.sub_(group["lr"] * w.grad)


class Constant(Sgdw):
    def shrink(self, w, lr, lam):
        w.sub_(lr * lam)


class Dead(Sgdw):
    def shrink(self, w, lr, lam):
        w * (1 - lr * lam)


class MovesAll(Sgdw):
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                self.shrink(w, group["lr"], group["weight_decay"])
                if w.grad is not None:
                    w.sub_(group["lr"] * w.grad)


def one(params, **more):
    return lambda model: torch.optim.AdamW([{"params": params(model), **more}], lr=1e-2)


def by_layers(model):
    """Three learning rates and two λ, everything decaying: as fine-tuning scripts do it."""
    numbers = [(1e-3, 0.1), (2e-3, 0.1), (1e-2, 0.2)]
    return torch.optim.AdamW(
        [{"params": each.parameters(), "lr": lr, "weight_decay": lam} for each, (lr, lam) in zip(model, numbers, strict=True)]
    )


def by_named_layers(model):
    groups = by_layers(model).param_groups
    names = {param: name for name, param in model.named_parameters()}
    pairs = [[(names[param], param) for param in group["params"]] for group in groups]
    numbers = [{"lr": group["lr"], "weight_decay": group["weight_decay"]} for group in groups]
    return torch.optim.AdamW([{"params": each, **more} for each, more in zip(pairs, numbers, strict=True)])


def swapped(model):
    weights = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW([{"params": vectors, "weight_decay": 0.1}, {"params": weights, "weight_decay": 0.0}], lr=1e-2)


def asking(model):
    model[2].weight._no_weight_decay = True
    return adamw(model)


def some_missing(named):
    def make(model):
        pairs = list(model[2].named_parameters(prefix="2"))
        return torch.optim.AdamW(pairs if named else [p for _, p in pairs], lr=1e-2, weight_decay=0.1)

    return make


def twice(model):
    optimizer = adamw(model)
    optimizer.param_groups[0]["params"].append(model[0].weight)
    return optimizer


def of_another(model):
    return adamw(copy.deepcopy(model))


def frozen(model):
    optimizer = adamw(model)
    model[0].requires_grad_(False)
    for param in model[0].parameters():
        param.grad = torch.zeros_like(param)
    return optimizer


def without_gradient(model):
    optimizer = MovesAll(wd.param_groups(model, 0.1), lr=1e-2)
    model[2].weight.grad = torch.zeros_like(model[2].weight)
    return optimizer


def stale(model):
    optimizer = adamw(model, lam=0.3)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = 0.02
    return optimizer


def negative(model):
    optimizer = adamw(model)
    optimizer.param_groups[0]["weight_decay"] = -0.5
    return optimizer


def negative_rate(model):
    optimizer = adamw(model)
    optimizer.param_groups[0]["lr"] = -1e-2
    return optimizer


def penalty_and_decay(model):
    return wd.Optimizer(
        model.parameters(), 1e-2, direction="sgd", penalty="l2", penalty_weight=0.1, decay="decoupled", weight_decay=0.1
    )


def penalty_of_vectors(model):
    return wd.Optimizer(model.parameters(), 1e-2, direction="adam", penalty="l2", penalty_weight=0.1)


def attached(model):
    optimizer = adamw(model)
    wd.attach(optimizer, "decoupled")
    return optimizer


def attached_before(model):
    other, optimizer = attached(model), adamw(model, lam=0.0)
    optimizer.load_state_dict(other.state_dict())
    return optimizer


def lora(model):
    model.lora_A = nn.Linear(8, 2, bias=False).double()
    return adamw(model)


def positions(model):
    model.pos_embed = nn.Parameter(torch.ones(1, 4, 8, dtype=torch.float64))
    return adamw(model)


def independent(model):
    return wd.Optimizer(wd.param_groups(model, 0.05), 1e-2, direction="adam", decay="independent")


FIXES = {
    "D1": (adamw, "D1"),
    "D1, layers with numbers of their own": (by_layers, "D1"),
    "D1, and names": (by_named_layers, "D1"),
    "D1, swapped": (swapped, "D1"),
    "D1, absurd": (partial(adamw, lam=5.0), "D1"),
    "D1, attached": (attached, "D1"),
    "D1, SGD with L2": (lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01), "D1"),
    "D1, a penalty": (penalty_of_vectors, "D1"),
    "D2, asked": (asking, "D2"),
    "D4": (lambda model: torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1), "D4"),
    "D4, absurd": (lambda model: torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=100.0), "D4"),
    "D4, others": (lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-2, weight_decay=0.1), "D4"),
    "D4, ours": (lambda model: wd.Adam(model.parameters(), lr=1e-2, weight_decay=0.1), "D4"),
    "D4, a penalty": (penalty_of_vectors, "D4"),
    "D4, a constant": (lambda model: Constant(model.parameters(), lr=1e-2, weight_decay=0.1), "D4"),
    "D5, destroys": (partial(adamw, lam=30.0), "D5"),
    "D5, destroys more": (partial(adamw, lr=1.0, lam=1.5), "D5"),
    "D5, independent": (independent, "D5"),
    "D5, cannot matter": (partial(adamw, lr=1e-5, lam=0.1), "D5"),
    "D6, some missing": (some_missing(named=False), "D6"),
    "D6, some missing, names": (some_missing(named=True), "D6"),
    "D6, twice": (twice, "D6"),
    "D6, of another model": (of_another, "D6"),
    "D6, frozen": (frozen, "D6"),
    "D6, without gradient": (without_gradient, "D6"),
    "D7, stale": (stale, "D7"),
    "D8, does nothing": (lambda model: Dead(model.parameters(), lr=1e-2, weight_decay=0.1), "D8"),
    "D8, negative": (negative, "D8"),
    "D8, a negative rate": (negative_rate, "D8"),
    "D8, misspelt": (one(nn.Module.parameters, wd=0.3), "D8"),
    "D8, in no group": (lambda model: torch.optim.AdamW(wd.param_groups(model, 0.1), lr=1e-2, weight_decay=0.3), "D8"),
    "D8, both": (penalty_and_decay, "D8"),
    "D8, attached before": (attached_before, "D8"),
    "D9, LoRA": (lora, "D9"),
    "D9, positions": (positions, "D9"),
}
SAYS_NOTHING = {"D6, twice", "D6, frozen", "D6, without gradient"}
"""Fixes that take tensors out, and leave every λ as it is."""
NOBODY_KNOWS = {"D1, a penalty"}
"""L2 through Adam takes no one share."""
GOES_ON = {"D8, a negative rate", "D8, attached before"}
"""Fixes that let a run do what it was told, or did before, whatever that takes: no λ is theirs to choose."""


def kept(model, optimizer, scheduler=None):
    """Train without gradients, and return by tensor the least share that is left of a weight."""
    start = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(STEPS):
        for param in held:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    shares = [(p.detach() / w)[w != 0] for p, w in zip(held, start, strict=True)]
    return {id(p): share.min().item() for p, share in zip(held, shares, strict=True) if share.numel()}


def fixed(found, model, optimizer, scheduler=None):
    """Apply a fix to copies; return the model and what it made of the optimizer."""
    model, optimizer = copy.deepcopy((model, optimizer))
    names = {"model": model, "optimizer": optimizer, "torch": torch, type(optimizer).__name__: type(optimizer)}
    exec(found.fix, names)
    return names["model"], names["optimizer"]


@pytest.mark.parametrize("pretrained", [False, True, None])
@pytest.mark.parametrize("label", FIXES)
def test_a_fix_leaves_what_it_says_and_enough(label, pretrained):
    make, check = FIXES[label]
    torch.manual_seed(0)
    model = block(trained=pretrained is None)
    optimizer = make(model)
    findings = wd.doctor(model, optimizer, steps=STEPS, only=[check], pretrained=pretrained).findings
    assert findings
    careful = pretrained is not False
    for found in findings:
        if not found.fix:
            assert found.severity == "info"
            assert careful
            assert label == "D5, cannot matter"
            continue
        if label in SAYS_NOTHING | NOBODY_KNOWS:
            assert found.leaves is None
            fixed(found, model, optimizer)
            continue
        left = min(kept(*fixed(found, model, optimizer)).values())
        assert left == pytest.approx(found.leaves, rel=0.02)  # SGD's momentum starts empty
        assert f"leaves {found.leaves:.3g} of a weight that decays" in found.fix
        if label.startswith(("D8, negative", "D8, a negative")):
            before = 1.0
        else:
            before = min([1.0, *kept(*copy.deepcopy((model, optimizer))).values()])
        if careful and label not in GOES_ON:
            assert left >= min(0.9, before) - 1e-3
        assert wd.doctor(*fixed(found, model, optimizer), steps=STEPS, only=["D5"], pretrained=pretrained).counts["error"] == 0


def test_a_fix_for_weights_that_forget():
    model = nn.Linear(8, 8, bias=False).double()
    for pretrained, left in ((False, math.exp(-1)), (True, 0.9)):
        optimizer = adamw(model, lam=5.0)
        (found,) = wd.doctor(model, optimizer, steps=4000, only=["D5"], pretrained=pretrained).findings
        assert (found.severity, found.leaves) == ("warning", pytest.approx(left, abs=0.03))
        _, after = fixed(found, model, optimizer)
        share = after.param_groups[0]["lr"] * after.param_groups[0]["weight_decay"]
        assert (1 - share) ** 4000 == pytest.approx(found.leaves)


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_fix_for_what_rounding_loses_takes_what_it_says(pretrained):
    torch.manual_seed(0)
    model = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0)
    (found,) = wd.doctor(model, optimizer, steps=STEPS, only=["D3"], pretrained=pretrained).findings
    assert "stochastically" in found.fix
    assert found.leaves == pytest.approx(0.9 if pretrained else (1 - 1e-3) ** STEPS, abs=0.005)
    model, after = fixed(found, model, optimizer)
    start = model.weight.detach().double()
    kept(model, after)
    assert (model.weight.detach().double() * start).sum() / (start * start).sum() == pytest.approx(found.leaves, abs=0.01)


def test_a_fix_changes_no_number_but_lambda_of_groups_that_differ():
    """Two learning rates, a scheduler that has begun, an embedding without λ on purpose: all stays, vectors stop decaying."""
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    optimizer = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "weight_decay": 0.0},
            {"params": model[1].parameters(), "lr": 1e-4, "betas": (0.8, 0.9)},
            {"params": [*model[2].parameters(), *model[3].parameters()]},
        ],
        lr=1e-3,
        weight_decay=0.1,
    )
    lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10)
    (found,) = wd.doctor(model, optimizer, only="D1").findings
    model, after = fixed(found, model, optimizer)
    numbers = {p: (g["lr"], g["betas"], g["weight_decay"]) for g in after.param_groups for p in g["params"]}
    names = dict(model.named_parameters())
    assert {name: numbers[param] for name, param in names.items()} == {
        "0.weight": (1e-3, (0.9, 0.999), 0.0),
        "1.weight": (1e-4, (0.8, 0.9), 0.1),
        "1.bias": (1e-4, (0.8, 0.9), 0.0),
        "2.weight": (1e-3, (0.9, 0.999), 0.0),
        "2.bias": (1e-3, (0.9, 0.999), 0.0),
        "3.weight": (1e-3, (0.9, 0.999), 0.1),
        "3.bias": (1e-3, (0.9, 0.999), 0.0),
    }


def test_fine_tuning_gets_no_harmful_cure():
    """lr 2e-5, λ 0.01, 3,000 steps: λ cannot matter, and one that did would take what the model knows."""
    model = block(trained=True)
    optimizer = torch.optim.AdamW(wd.param_groups(model, 0.01), lr=2e-5)
    (found,) = wd.doctor(model, optimizer, steps=3000, only="D5").findings
    assert (found.severity, found.fix, found.leaves) == ("info", "", None)
    (found,) = wd.doctor(model, optimizer, steps=3000, only="D5", pretrained=False).findings
    assert found.leaves == pytest.approx(math.exp(-1), abs=0.03)
    assert f"leaves {found.leaves:.3g}" in found.fix


@pytest.mark.parametrize(
    ("build", "pretrained"),
    [
        (lambda: block(trained=False), False),
        (lambda: block(trained=True), True),
        (lambda: nn.Linear(4, 4), None),
        (lambda: nn.Sequential(nn.BatchNorm1d(4)), False),
        (lambda: nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 4)), None),
        (lambda: nn.LayerNorm(4, device="meta"), None),
    ],
)
def test_what_the_norms_say_of_training(build, pretrained):
    model = build()
    report = wd.doctor(model, torch.optim.AdamW(wd.param_groups(model, 0.1)), steps=10)
    assert report.subject["pretrained"] is pretrained
    assert wd.doctor(model, torch.optim.AdamW(wd.param_groups(model, 0.1)), pretrained=True).subject["pretrained"] is True


def test_frozen_matrices_say_that_a_model_was_trained():
    """Frozen gains alone do not: some freeze them from the start."""
    for name, trained in (("0.weight", True), ("1.weight", False)):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
        model.get_parameter(name).requires_grad_(False)
        assert wd.doctor(model, adamw(model), steps=10).subject["pretrained"] is trained


def test_a_fix_for_training_from_scratch_says_how_it_knows():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    said = "# assumes training from scratch, as no norm has moved: pass pretrained=True"
    for told, says in ((None, True), (False, False)):
        optimizer = torch.optim.AdamW(wd.param_groups(model, 0.01), lr=2e-5)
        (found,) = wd.doctor(model, optimizer, steps=3000, only="D5", pretrained=told).findings
        assert found.leaves < 0.5
        assert (said in found.fix) == says


def test_a_batch_norm_that_has_counted_was_trained():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model(torch.randn(8, 4))
    assert wd.doctor(model, adamw(model), steps=10).subject["pretrained"] is True
    with pytest.raises(TypeError, match="pretrained='yes' is not True, False or None"):
        wd.doctor(model, adamw(model), pretrained="yes")
