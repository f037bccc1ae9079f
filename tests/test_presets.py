"""A preset is a name for rules: the same bits as weightdecay.Optimizer with them, and what the papers' algorithms do."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from training import PRESETS, everything, options_of, parameters, parameters_of, set_gradients, train

import weightdecay as wd

presets = pytest.mark.parametrize("preset", PRESETS, ids=lambda cls: cls.__name__)

RULES = {
    wd.SGD: ("sgd", "l2", None),
    wd.SGDW: ("sgd", None, "decoupled"),
    wd.Adam: ("adam", "l2", None),
    wd.AdamW: ("adam", None, "decoupled"),
    wd.NAdam: ("nadam", "l2", None),
    wd.NAdamW: ("nadam", None, "decoupled"),
    wd.RAdam: ("radam", "l2", None),
    wd.RAdamW: ("radam", None, "decoupled"),
    wd.Adamax: ("adamax", "l2", None),
    wd.AdamaxW: ("adamax", None, "decoupled"),
    wd.Adagrad: ("adagrad", "l2", None),
    wd.AdagradW: ("adagrad", None, "decoupled"),
    wd.Adadelta: ("adadelta", "l2", None),
    wd.AdadeltaW: ("adadelta", None, "decoupled"),
    wd.RMSprop: ("rmsprop", "l2", None),
    wd.RMSpropW: ("rmsprop", None, "decoupled"),
    wd.Lion: ("lion", None, "decoupled"),
    wd.Signum: ("signum", None, "decoupled"),
    wd.LAMB: ("adam", None, "trust_ratio"),
    wd.Muon: ("muon", None, "decoupled"),
    wd.Adafactor: ("adafactor", None, "decoupled"),
    wd.SGDC: ("sgd", None, "corrected"),
    wd.AdamC: ("adam", None, "corrected"),
    wd.SGDCWD: ("sgd", None, "cautious"),
    wd.AdamCWD: ("adam", None, "cautious"),
    wd.LionCWD: ("lion", None, "cautious"),
    wd.AdamS: ("adam", None, "stable"),
    wd.AdamProx: ("adam", None, "implicit"),
    wd.ProxSGD: ("sgd", None, "soft_threshold"),
    wd.ProxAdam: ("adam", None, "soft_threshold"),
    wd.PAdam: ("adam", None, "pnorm"),
    wd.AdamHD: ("adam", None, "huber"),
    wd.AdamWN: ("adam", None, "norm_control"),
    wd.AdamSPD: ("adam", None, "selective_projection"),
    wd.AdamCPR: ("adam", None, "constrained"),
    wd.AdamH: ("adam", None, "hyperball"),
    wd.MuonH: ("muon", None, "hyperball"),
}


def scheduled(optimizer, steps=6):
    """Train under a learning rate that falls, which corrected decay and the papers' units are about."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
    for t in range(steps):
        train(optimizer, 1, first=t)
        scheduler.step()


@presets
def test_a_preset_is_its_rules_bit_for_bit(preset):
    direction, penalty, decay = RULES[preset]
    options = options_of(preset)
    ours = preset(parameters_of(preset).values(), **options, backend="eager")
    lam = {"penalty_weight": options.pop("weight_decay")} if penalty else {}
    same = (
        ours.defaults.keys()
        & wd.Optimizer(parameters_of(preset).values(), 0.1, direction=direction, decay=decay).defaults.keys()
    )
    numbers = {key: ours.defaults[key] for key in same - {"penalty_weight", "weight_decay"}}
    rules = wd.Optimizer(
        parameters_of(preset).values(),
        direction=direction,
        penalty=penalty,
        decay=decay,
        **lam or {"weight_decay": ours.defaults["weight_decay"]},
        **numbers,
        backend="eager",
    )
    for optimizer in (ours, rules):
        scheduled(optimizer)
    assert everything(ours)[0] == everything(rules)[0]
    assert everything(ours)[1]["state"] == everything(rules)[1]["state"]


def test_the_table_of_the_readme_is_these_rules():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    found = {}
    for row in re.findall(r"^\| (`wd\.\w+`[^(\n]*) \|$", readme, re.MULTILINE):
        names, *cells = row.split(" |")
        names = re.findall(r"wd\.(\w+)", names)
        for place, name in enumerate(names):
            rules = [re.findall(r"`(\w+)`", cell) for cell in cells]
            if cells[0].strip() == "of that name":
                rules[0] = [name.lower().removesuffix("w")]
            found[getattr(wd, name)] = tuple(rule[place if len(rule) == len(names) else 0] if rule else None for rule in rules)
    assert found == RULES


@presets
def test_its_lambda_matters(preset):
    if not preset.has_lambda():
        with pytest.raises(TypeError, match="weight_decay"):
            preset(parameters_of(preset).values(), weight_decay=0.1)
        with pytest.raises(ValueError, match="has no λ"):
            preset([{"params": list(parameters_of(preset).values()), "weight_decay": 0.1}])
        return
    ours, without = (
        preset(parameters_of(preset).values(), **{**options_of(preset), **lam}, backend="eager")
        for lam in ({}, {"weight_decay": 0.0})
    )
    for optimizer in (ours, without):
        scheduled(optimizer)
    pairs = zip(ours.param_groups[0]["params"], without.param_groups[0]["params"], strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) > 1e-6


@presets
def test_help_says_what_every_argument_means_and_shows_an_example(preset):
    text = inspect.getdoc(preset)
    for name in inspect.signature(preset).parameters:
        assert f"\n    {name}: " in text, name
    assert text.index("Args:") < text.index(">>> ")
    first, *_ = text.split("\n")
    assert first.endswith(".")


@presets
def test_arguments_in_a_group_and_in_the_constructor_are_the_same(preset):
    """What help() says of every number: a group may have its own."""
    options = {key: value for key, value in options_of(preset).items() if key != "lr"}
    by_group, by_name = parameters_of(preset), parameters_of(preset)
    first = preset([{"params": list(by_group.values()), **options}], lr=0.05, backend="eager")
    second = preset(by_name.values(), lr=0.05, **options, backend="eager")
    for optimizer in (first, second):
        train(optimizer, 2)
    assert everything(first)[0] == everything(second)[0]


def test_a_subclass_keeps_its_own_words():
    class Mine(wd.AdamW):
        """My own.

        Args:
            lr: as I like it.
        """

    class Bare(wd.AdamW):
        pass

    assert inspect.cleandoc(Mine.__doc__) == "My own.\n\nArgs:\n    lr: as I like it."
    assert Bare.__doc__ is None


# The papers' algorithms, in NumPy, written from the papers and without the rules ---------------------------------------------

LR, LAMBDA, BETAS, EPS = 0.05, 0.4, (0.8, 0.9), 1e-6


class Written:
    """What an algorithm keeps, and Adam's step."""

    def __init__(self, w):
        self.start, self.m, self.v, self.multiplier = w.copy(), np.zeros_like(w), np.zeros_like(w), 0.0

    def adam(self, g, t):
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * g**2
        return self.m / (1 - BETAS[0] ** t) / (np.sqrt(self.v / (1 - BETAS[1] ** t)) + EPS)

    def lion(self, g):
        c = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.m = BETAS[1] * self.m + (1 - BETAS[1]) * g
        return np.sign(c)


def adam_c(w, g, t, lr, it):
    return w - lr * (it.adam(g, t) + LAMBDA * lr / LR * w)


def adam_cwd(w, g, t, lr, it):
    u = it.adam(g, t)
    return w - lr * (u + LAMBDA * (u * w >= 0) * w)


def adam_s(w, g, t, lr, it):
    u = it.adam(g, t)
    return w - lr * LAMBDA / np.sqrt(np.mean(it.v / (1 - BETAS[1] ** t))) * w - lr * u


def adam_prox(w, g, t, lr, it):
    return (w - lr * it.adam(g, t)) / (1 + lr * LAMBDA)


def prox_adam(w, g, t, lr, it):
    y = w - lr * it.adam(g, t)
    return np.sign(y) * np.maximum(np.abs(y) - lr * LAMBDA, 0)


def p_adam(w, g, t, lr, it):
    x = np.abs(w) ** (2 - 0.8)
    return (w - lr * it.adam(g, t)) * x / (x + 0.8 * lr * LAMBDA)


def adam_hd(w, g, t, lr, it):
    """The proximal map of λ times Huber's function with δ = ½, by its two cases."""
    y, tau = w - lr * it.adam(g, t), lr * LAMBDA
    return np.where(np.abs(y) <= (1 + tau) * 0.5, y / (1 + tau), y - tau * np.clip(y, -0.5, 0.5))


def adam_wn(w, g, t, lr, it):
    k = lr * LAMBDA
    return w - lr * it.adam(g, t) - k * (1 - 0.5 * np.linalg.norm(it.start) / np.linalg.norm(w)) * w


def adam_spd(w, g, t, lr, it):
    y = w - lr * it.adam(g, t)
    far, near = np.linalg.norm(y - it.start), np.linalg.norm(w - it.start)
    if -np.sum(g * (w - it.start)) < 0:
        y = y - LAMBDA * np.clip((far - near) / far, 0, 1) * (y - it.start)
    return y


def adam_cpr(w, g, t, lr, it):
    y = w - lr * it.adam(g, t)
    it.multiplier = max(0.0, it.multiplier + 1 / y.size * (np.sum(y**2) - 2.0))
    return y - it.multiplier * 2 * y


def adam_h(w, g, t, lr, it):
    radius, u = np.linalg.norm(it.start), it.adam(g, t)
    y = w - lr * radius * u / np.linalg.norm(u)
    return radius * y / np.linalg.norm(y)


def lamb(w, g, t, lr, it):
    """Algorithm 2 with φ the identity."""
    r = it.adam(g, t) + LAMBDA * w
    return w - lr * np.linalg.norm(w) / np.linalg.norm(r) * r


def lion(w, g, t, lr, it):
    return w - lr * (it.lion(g) + LAMBDA * w)


def lion_cwd(w, g, t, lr, it):
    u = it.lion(g)
    return w - lr * (u + LAMBDA * (u * w >= 0) * w)


def signum(w, g, t, lr, it):
    it.m = BETAS[0] * it.m + (1 - BETAS[0]) * g
    return w - lr * (np.sign(it.m) + LAMBDA * w)


_ADAM = {"betas": BETAS, "eps": EPS}
_LAMBDA = {"weight_decay": LAMBDA}
ALGORITHMS = {
    adam_c: (wd.AdamC, {**_ADAM, **_LAMBDA}),
    adam_cwd: (wd.AdamCWD, {**_ADAM, **_LAMBDA}),
    adam_s: (wd.AdamS, {**_ADAM, **_LAMBDA}),
    adam_prox: (wd.AdamProx, {**_ADAM, **_LAMBDA}),
    prox_adam: (wd.ProxAdam, {**_ADAM, **_LAMBDA}),
    p_adam: (wd.PAdam, {**_ADAM, **_LAMBDA}),
    adam_hd: (wd.AdamHD, {**_ADAM, **_LAMBDA, "delta": 0.5}),
    adam_wn: (wd.AdamWN, {**_ADAM, **_LAMBDA, "ratio": 0.5}),
    adam_spd: (wd.AdamSPD, {**_ADAM, **_LAMBDA}),
    adam_cpr: (wd.AdamCPR, {**_ADAM, "kappa": 2.0}),
    adam_h: (wd.AdamH, _ADAM),
    lamb: (wd.LAMB, {**_ADAM, **_LAMBDA}),
    lion: (wd.Lion, {"betas": BETAS, **_LAMBDA}),
    lion_cwd: (wd.LionCWD, {"betas": BETAS, **_LAMBDA}),
    signum: (wd.Signum, {"momentum": BETAS[0], **_LAMBDA}),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_thirty_steps_are_the_papers(algorithm):
    preset, options = ALGORITHMS[algorithm]
    params = parameters(shapes={"weight": (4, 3)})
    params["weight"].data *= 0.5
    optimizer = preset(params.values(), lr=LR, **options)
    w = params["weight"].detach().numpy().copy()
    it = Written(w)
    for t in range(1, 31):
        lr = LR * (1 - t / 40)
        set_gradients(optimizer, t)
        optimizer.param_groups[0]["lr"] = lr
        w = algorithm(w, params["weight"].grad.numpy(), t, lr, it)
        optimizer.step()
    assert np.abs(params["weight"].detach().numpy() - w).max() <= 1e-12 * np.abs(w).max()
