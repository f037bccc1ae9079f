"""The exact laws of the literature, which tell the rules we have apart from each other and from what they are taken for."""

import cmath
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import DIRECTIONS, DTYPES, assert_close, gradients, name, numbers_of, same_bits, twin, walk, weights, zeros

import weightdecay as wd
from weightdecay.backends import eager
from weightdecay.update_rules.reductions import REDUCTIONS

SHRINKING = ("cautious", "decoupled", "independent")
"""The decays that do nothing but multiply a weight by a number from 0 to 1."""

every_direction = pytest.mark.parametrize("direction", [key for key in DIRECTIONS if not wd.rules()["direction", key].ndim])
number = st.floats(-100, 100).filter(lambda x: x == 0 or abs(x) > 1e-3)
schedules = st.lists(st.floats(1e-4, 0.9), min_size=1, max_size=12)
lambdas = st.floats(0.01, 1.0)


def scalar(value):
    return torch.nn.Parameter(torch.tensor([value], dtype=torch.float64))


# Coupled and decoupled: Loshchilov & Hutter 2019 ----------------------------------------------------------------------------


@given(lrs=schedules, lam=lambdas, w=number)
@every_direction
def test_decoupled_decay_alone_is_a_product(direction, lrs, lam, w):
    """Without a gradient w_T = w_0 Π (1 − η_tλ) whatever the direction is: what it remembers has never seen the decay."""
    optimizer = wd.Optimizer([scalar(w)], lr=0.1, direction=direction, decay="decoupled", weight_decay=lam)
    last = walk(optimizer, zeros(len(lrs), 1), lrs)[-1].item()
    assert last == pytest.approx(w * math.prod(1 - lr * lam for lr in lrs), rel=1e-14)


@given(lam=st.floats(1e-3, 1e3), w=number.filter(bool), lr=st.floats(1e-4, 1.0))
@pytest.mark.parametrize("direction", ["adam", "amsgrad"])
def test_adam_divides_the_strength_of_l2_out(direction, lam, w, lr):
    """Without a gradient the first step of Adam with L2 is η·sign(w), for any λ."""
    optimizer = wd.Optimizer([scalar(w)], lr=lr, direction=direction, penalty="l2", penalty_weight=lam, eps=0.0)
    assert w - walk(optimizer, zeros(1, 1)).item() == pytest.approx(math.copysign(lr, w), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize(("lr", "lam", "momentum"), [(0.1, 0.01, 0.9), (0.5, 0.005, 0.5), (0.5, 0.5, 0.9), (1.0, 1.0, 0.99)])
def test_l2_under_momentum_is_a_damped_spring(lr, lam, momentum):
    """Without a gradient w_t = A·z₁ᵗ + B·z₂ᵗ with z² − (1 + μ − ηλ)z + μ = 0.

    Real roots shrink the weights; complex ones, from ηλ > (1 − √μ)² on, swing them through zero.
    """
    optimizer = wd.Optimizer([scalar(1.0)], lr=lr, direction="sgd", penalty="l2", penalty_weight=lam, momentum=momentum)
    seen = np.concatenate([[1.0], walk(optimizer, zeros(60, 1))[:, 0].numpy()])
    half = (1 + momentum - lr * lam) / 2
    z1, z2 = half + cmath.sqrt(half**2 - momentum), half - cmath.sqrt(half**2 - momentum)
    a = (1 - lr * lam - z2) / (z1 - z2)
    assert seen == pytest.approx([(a * z1**t + (1 - a) * z2**t).real for t in range(61)], abs=1e-12)
    assert (seen.min() < 0) == (lr * lam > (1 - math.sqrt(momentum)) ** 2)


@given(lrs=schedules, lam=lambdas, w=number, data=st.data())
def test_without_momentum_l2_is_decoupled_decay(lrs, lam, w, data):
    """Proposition 1, at every step of any schedule."""
    history = [torch.tensor([g]) for g in data.draw(st.lists(number, min_size=len(lrs), max_size=len(lrs)))]
    coupled = wd.Optimizer([scalar(w)], lr=0.1, direction="sgd", penalty="l2", penalty_weight=lam)
    decoupled = wd.Optimizer([scalar(w)], lr=0.1, direction="sgd", decay="decoupled", weight_decay=lam)
    assert walk(coupled, history, lrs).numpy() == pytest.approx(walk(decoupled, history, lrs).numpy(), rel=1e-14, abs=1e-12)


@pytest.mark.parametrize(
    ("direction", "settings", "part"), [("sgd", {"momentum": 0.9}, 1), ("adam", {}, 0), ("amsgrad", {}, 0)]
)
def test_with_a_memory_l2_is_not_decoupled_decay(direction, settings, part):
    """Momentum parts from it at the second step, when the buffer still holds the first penalty; Adam at the first."""
    param, history = weights(), gradients()
    other = twin(param)
    coupled = wd.Optimizer([param], lr=0.1, direction=direction, penalty="l2", penalty_weight=0.1, **settings)
    decoupled = wd.Optimizer([other], lr=0.1, direction=direction, decay="decoupled", weight_decay=0.1, **settings)
    apart = (walk(coupled, history) - walk(decoupled, history)).abs().amax(dim=1)
    assert (apart[:part] < 1e-13).all()
    assert (apart[part:] > 1e-3).all()


@given(scale=st.one_of(st.floats(1e-3, 0.5), st.floats(2.0, 1e3)))
@pytest.mark.parametrize("direction", ["adam", "amsgrad"])
def test_adam_with_decoupled_decay_does_not_know_the_scale_of_the_loss(direction, scale):
    """With ε = 0, multiply the loss by c and nothing changes; with the decay in the gradient, its share does."""

    def apart(**rules):
        param, history = weights(), gradients()
        other = twin(param)
        one, many = (wd.Optimizer([p], lr=0.1, direction=direction, eps=0.0, **rules) for p in (param, other))
        return (walk(one, history) - walk(many, [scale * gradient.double() for gradient in history])).abs().max()

    assert apart(decay="decoupled", weight_decay=0.5) < 1e-12
    assert apart(penalty="l2", penalty_weight=0.5) > 1e-4


@given(lrs=schedules, lam=lambdas)
@every_direction
def test_independent_decay_is_decoupled_decay_in_another_unit(direction, lrs, lam):
    """λ per step at the peak is η_max times λ per unit of learning rate, under any schedule."""
    param, history, peak = weights(), gradients(len(lrs)), max(lrs)
    other = twin(param)
    per_step = {"decay": "independent", "weight_decay": peak * lam, "lr_max": peak}
    independent = wd.Optimizer([param], lr=0.1, direction=direction, **per_step)
    decoupled = wd.Optimizer([other], lr=0.1, direction=direction, decay="decoupled", weight_decay=lam)
    assert_close(walk(independent, history, lrs), walk(decoupled, history, lrs), tolerance=1e-13)


@given(peak=st.floats(1e-4, 1.0))
def test_only_independent_decay_does_not_know_the_peak_learning_rate(peak):
    """A higher peak leaves its shrink as it is, and multiplies the decoupled one."""
    schedule = [0.5, 1.0, 0.25, 0.0]
    shrink = {"independent": [1 - s * 0.1 for s in schedule], "decoupled": [1 - peak * s * 0.1 for s in schedule]}
    for decay, factors in shrink.items():
        optimizer = wd.Optimizer([scalar(1.0)], lr=peak, direction="sgd", decay=decay, weight_decay=0.1)
        seen = walk(optimizer, zeros(4, 1), [peak * s for s in schedule])[:, 0]
        assert seen.tolist() == pytest.approx(list(itertools.accumulate(factors, lambda x, y: x * y)), rel=1e-14)


@pytest.mark.parametrize(
    ("peak", "options", "scheduler"),
    [
        (2.0, {"lr_max": 2.0}, lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5)),
        (8.0, {}, lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[4.0, 8.0], total_steps=10)),
        (0.75, {"lr": 0.75}, lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5)),
        (0.75, {"lr": torch.tensor(0.75)}, lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5)),
        (0.5, {}, lambda optimizer: optimizer.param_groups[1].update(lr=0.25)),
    ],
    ids=["lr_max", "max_lr", "initial_lr", "tensor", "first-lr"],
)
def test_the_peak_is_what_the_user_says_or_else_the_scheduler(peak, options, scheduler):
    """Each group has its own: timm takes the constructor's lr for all of them."""
    w = scalar(1.0)
    groups = [{"params": [scalar(1.0)], "lr": 3.0}, {"params": [w], **options}]
    optimizer = wd.Optimizer(groups, lr=0.5, direction="sgd", decay="independent", weight_decay=0.125)
    scheduler(optimizer)
    walk(optimizer, zeros(1, 1))
    assert 1 - w.item() == pytest.approx(float(optimizer.param_groups[1]["lr"]) / peak * 0.125)


@settings(max_examples=20)
@given(lrs=schedules, lam=st.floats(0.0, 1.0))
@pytest.mark.parametrize("decay", SHRINKING)
@every_direction
def test_without_a_gradient_no_weight_grows_or_changes_sign(direction, decay, lrs, lam):
    """While ηλ ≤ 1, under any schedule."""
    param = weights()
    start = param.detach().flatten().clone()
    optimizer = wd.Optimizer([param], lr=max(lrs), direction=direction, decay=decay, weight_decay=lam)
    seen = torch.cat([start[None], walk(optimizer, zeros(len(lrs)), lrs)])
    assert (seen * start >= 0).all()
    assert (seen[1:].abs() <= seen[:-1].abs()).all()


@given(w=number, u=number, c=st.integers(-40, 40), eta=st.floats(0, 1), lam=lambdas)
@pytest.mark.parametrize("decay", ["none", *SHRINKING])
def test_a_shrinking_decay_has_no_unit(decay, w, u, c, eta, lam):
    """Measured in units of 2^c, weights and steps give the same number of units, bit for bit."""
    rule = wd.rules()["decay", decay]
    numbers = numbers_of(rule, eta=eta, eta_max=1.0, lam=lam)
    assert rule.function(2.0**c * w, 2.0**c * u, **numbers) == 2.0**c * rule.function(w, u, **numbers)


# Penalties ------------------------------------------------------------------------------------------------------------------


def pull_of_norm(w, n):
    norm_n_w = eager.reduce(REDUCTIONS["norm_n_w"], {"w": w}, {"n": n})
    return eager.bound(wd.rules()["penalty", "norm"].function, w.dtype)(w, lam=1.0, norm_n_w=norm_n_w, n=n)


@given(scale=st.integers(-100, 100), n=st.sampled_from([1.0, 1.5, 2.0, 4.0]))
def test_the_pull_of_a_norm_does_not_know_the_size_of_the_tensor(scale, n):
    """‖cW‖ has the gradient of ‖W‖ over all the sizes that float32 has: a squared norm, as L2 is, has c times it."""
    w = torch.randn(20)
    assert_close(pull_of_norm(2.0**scale * w, n), pull_of_norm(w, n), tolerance=1e-6)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_the_pull_of_a_norm_is_there_for_every_n_that_is_allowed(size):
    """Its dual norm, (Σ|pull|^(n/(n−1)))^((n−1)/n), is λ: no pull is lost where |w|^n leaves the range of numbers."""
    n = min(wd.rules()["penalty", "norm"].domain["n"].high, 100.0)
    pull = pull_of_norm(size * torch.randn(20, dtype=torch.float64), n)
    assert np.linalg.norm(pull.numpy(), ord=n / (n - 1)) == pytest.approx(1.0, rel=1e-9)


@given(w=number.filter(bool), p=st.floats(0.1, 4.0))
def test_lp_is_homogeneous_of_its_degree(w, p):
    """Euler: w·∇|w|^p = p·|w|^p."""
    assert w * wd.rules()["penalty", "lp"].function(w, lam=0.5, p=p) == pytest.approx(p * 0.5 * abs(w) ** p, rel=1e-12)


@given(w=number)
def test_the_penalties_meet_where_they_should(w):
    """lp is l1 and twice l2 at 1 and 2, the elastic net is l2 and l1 at its ends, and the norm of one weight is l1."""
    penalties = {key: rule.function for key, rule in wd.rules().of("penalty").items()}
    l1, l2 = penalties["l1"](w, lam=0.5), penalties["l2"](w, lam=0.5)
    assert penalties["lp"](w, lam=0.5, p=1.0) == l1
    assert penalties["lp"](w, lam=0.5, p=2.0) == 2 * l2
    assert penalties["elastic_net"](w, lam=0.5, l1_ratio=0.0) == l2
    assert penalties["elastic_net"](w, lam=0.5, l1_ratio=1.0) == l1
    assert penalties["norm"](w, lam=0.5, n=3.0, norm_n_w=abs(w)) == l1


# Cautious decay: Chen et al. 2025 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sense", "same_as"), [(1, "decoupled"), (0, "decoupled"), (-1, None)], ids=["with", "zero", "against"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_cautious_decay_is_all_or_nothing(dtype, sense, same_as):
    """With every step towards zero, or none, it is decoupled decay bit for bit; with every step away from zero it is none."""
    param = torch.nn.Parameter((torch.randn(33).sign() * (1 + torch.rand(33))).to(dtype))
    other = twin(param)
    cautious = wd.Optimizer([param], lr=0.125, direction="sgd", decay="cautious", weight_decay=0.5)
    known = wd.Optimizer([other], lr=0.125, direction="sgd", decay=same_as, weight_decay=0.5 if same_as else 0.0)
    for _ in range(4):
        towards_zero = sense * param.detach().sign().float()
        assert same_bits(walk(cautious, [towards_zero]), walk(known, [towards_zero]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
def test_cautious_decay_knows_a_sign_however_small(dtype):
    """The mask is 1[u·w ≥ 0] of real numbers: a product of opposite signs that underflows is not zero."""
    info = torch.finfo(dtype)
    rule = wd.rules()["decay", "cautious"].function
    for w, u in itertools.product([1.0, math.sqrt(info.smallest_normal), 4 * info.smallest_normal], repeat=2):
        w, u = torch.tensor(w, dtype=dtype), torch.tensor(-u, dtype=dtype)
        assert eager.bound(rule, dtype)(w, u, eta=0.5, lam=0.5) == w - 0.5 * u


@pytest.mark.parametrize(("direction", "settings"), [("sgd", {"momentum": 0.9}), ("adam", {}), ("amsgrad", {})])
def test_each_weight_of_a_cautious_step_is_decayed_or_is_not(direction, settings):
    """Which of the two is said by the whole step, momentum included, and not by the gradient."""
    param, decayed = weights(), 0
    rules = {"none": {}, "decoupled": {"weight_decay": 0.5}, "cautious": {"weight_decay": 0.5}}
    optimizers = {
        decay: wd.Optimizer([twin(param)], lr=0.1, direction=direction, decay=decay, **lam, **settings)
        for decay, lam in rules.items()
    }
    w = param.detach().flatten()
    for gradient in gradients(20):
        after = {}
        for decay, optimizer in optimizers.items():
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].copy_(w.view_as(param))
            after[decay] = walk(optimizer, [gradient])[0]
        agree = (w - after["none"]) * w >= 0
        assert same_bits(after["cautious"], torch.where(agree, after["decoupled"], after["none"]))
        decayed += agree.sum().item()
        w = after["cautious"]
    assert 100 < decayed < 20 * 33 - 100


@pytest.mark.parametrize(("decay", "share"), [("cautious", 1.0), ("decoupled", 1 / 1.25)])
def test_cautious_decay_ends_at_the_minimum_of_the_loss_itself(decay, share):
    """On ½(w − w*)² decoupled decay stops where the gradient balances λw, at w*/(1 + λ)."""
    target, param = torch.linspace(-2, 2, 9, dtype=torch.float64).view(3, 3), weights(count=9)
    optimizer = wd.Optimizer([param], lr=0.5, direction="sgd", decay=decay, weight_decay=0.25)
    for _ in range(200):
        walk(optimizer, [param.detach() - target])
    assert_close(param.detach(), share * target, tolerance=1e-12)
