"""A second opinion has to be right, too: each oracle against exact facts about its equation, and torch. No rule takes part."""

from importlib import import_module

import mpmath
import numpy as np
import pytest
import torch

STEPS, WEIGHTS, LR = 40, 7, 0.125
SEEDS = range(4)


def named(name):
    return import_module(f"oracles.{name}")


def settings(*names):
    return [pytest.param(name, given, id=f"{name}-{given}") for name in names for given in named(name).SETTINGS]


def data(seed):
    """Return weights, updates and a learning rate that rises and falls."""
    draw = np.random.default_rng(seed)
    updates = draw.normal(size=(STEPS, WEIGHTS)) * draw.lognormal(size=WEIGHTS)
    return draw.normal(size=WEIGHTS), updates, LR * np.abs(np.sin(np.arange(1, STEPS + 1)))


def walked(name, seed=0, *, lam=0.3, **given):
    w, updates, lrs = data(seed)
    return named(name).weights(w, updates, lrs, lam=lam, **given)


def proximal(name, y, tau, **given):
    """Return where a proximal decay puts a point: one step with no update, a learning rate of 1 and λ = τ."""
    return named(name).weights(y, np.zeros((1, len(y))), np.ones(1), lam=tau, **given)[0]


def still(name, w, steps, *, lr=LR, lam=0.3, **given):
    """Return what a decay alone does, without updates and at a constant learning rate."""
    return named(name).weights(w, np.zeros((steps, len(w))), np.full(steps, lr), lam=lam, **given)


def close(got, expected, tolerance=1e-12):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)))


# Penalties: their slopes, known in closed form.


@pytest.mark.parametrize(
    ("name", "given", "slope"),
    [
        ("group_norm", {}, lambda w: np.sqrt(len(w)) * w / np.linalg.norm(w)),
        ("huber", {"delta": 0.5}, lambda w: np.clip(w, -0.5, 0.5)),
        ("huber", {"delta": 100.0}, lambda w: w),
        ("log", {"scale": 0.1}, lambda w: np.sign(w) / (np.abs(w) + 0.1)),
    ],
)
def test_the_slope_of_a_penalty(name, given, slope):
    w, _, _ = data(1)
    value = named(f"penalty_{name}").value
    with mpmath.workdps(40):
        exact, h = [mpmath.mpf(x) for x in w], mpmath.mpf(10) ** -15
        for i, expected in enumerate(0.3 * slope(w)):
            up, down = ([*exact[:i], exact[i] + s * h, *exact[i + 1 :]] for s in (1, -1))
            assert abs((value(up, lam=0.3, **given) - value(down, lam=0.3, **given)) / (2 * h) - expected) < 1e-14
        assert value([mpmath.mpf(0)] * 3, lam=0.3, **given) == 0


def test_huber_is_torchs():
    w, _, _ = data(2)
    expected = torch.nn.functional.huber_loss(
        torch.tensor(w), torch.zeros(WEIGHTS, dtype=torch.float64), delta=0.5, reduction="sum"
    )
    assert abs(named("penalty_huber").value(w, lam=0.3, delta=0.5) - 0.3 * expected.item()) < 1e-14


# Proximal decays: nothing near or far has a lower ½(x − y)² + τR(x), and 0 is in x − y + τ∂R(x).

TERMS = {
    "soft_threshold": lambda x: np.abs(x),
    "half_threshold": lambda x: np.sqrt(np.abs(x)),
    "elastic_net": lambda x, l1_ratio=0.5: l1_ratio * np.abs(x) + (1 - l1_ratio) * x**2 / 2,
    "huber": lambda x, delta=1.0: np.where(np.abs(x) <= delta, x**2 / 2, delta * (np.abs(x) - delta / 2)),
    "implicit": lambda x: x**2 / 2,
}


@pytest.mark.parametrize(("name", "given"), settings(*(f"decay_{name}" for name in TERMS)))
@pytest.mark.parametrize("tau", [0.01, 0.3, 2.0])
def test_a_proximal_point_is_the_lowest_of_a_grid(name, given, tau):
    term = TERMS[name.removeprefix("decay_")]
    y = np.concatenate([np.linspace(-4, 4, 33), [1e-3, -1e-6]])
    x = proximal(name, y, tau, **given)
    grid = np.concatenate([np.linspace(-5, 5, 20001), np.geomspace(1e-9, 1e-3, 200), x, x + 1e-4, x - 1e-4])
    heights = (grid - y[:, None]) ** 2 / 2 + tau * term(grid, **given)
    assert np.all((x - y) ** 2 / 2 + tau * term(x, **given) <= heights.min(axis=1) + 1e-14)


def test_zero_is_in_the_subdifferential_of_the_soft_threshold_and_of_the_elastic_net():
    y, tau = np.linspace(-2, 2, 101), 0.3
    for name, ratio, given in (("soft_threshold", 1.0, {}), ("elastic_net", 0.2, {"l1_ratio": 0.2})):
        x = proximal(f"decay_{name}", y, tau, **given)
        pull = y - x - tau * (1 - ratio) * x
        assert np.any(x == 0)
        close(pull[x != 0], tau * ratio * np.sign(x[x != 0]))
        assert np.all(np.abs(pull[x == 0]) <= tau * ratio * (1 + 1e-12))


def test_the_half_threshold_in_closed_form():
    """Xu et al. 2012 with τ for their λμ/2: (2/3)·y·(1 + cos(2π/3 − (2/3)·arccos(τ/4·(|y|/3)^(−3/2)))) above (3/2)·τ^(2/3)."""
    for tau in (1e-4, 0.3, 2.0):
        threshold = 1.5 * tau ** (2 / 3)
        y = threshold * np.array([-3.0, -1 - 1e-9, 1 + 1e-9, 1.1, 2, 1e3])
        angle = np.arccos(tau / 4 * (np.abs(y) / 3) ** -1.5)
        close(proximal("decay_half_threshold", y, tau), 2 / 3 * y * (1 + np.cos(2 * np.pi / 3 - 2 / 3 * angle)))
        assert np.all(proximal("decay_half_threshold", threshold * np.array([0, 0.5, 1 - 1e-9, 1e-9 - 1]), tau) == 0)
        jump = proximal("decay_half_threshold", np.array([threshold * (1 + 1e-12)]), tau)
        close(jump, [tau ** (2 / 3)], tolerance=1e-10)  # to two thirds of the threshold


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("tau", [0.5, 2.0, 10.0])
def test_the_group_threshold_is_a_minimum(seed, tau):
    y, _, _ = data(seed)
    x = proximal("decay_group_threshold", y, tau)
    np.testing.assert_allclose(x, y * max(0, 1 - tau / np.linalg.norm(y)), rtol=1e-14, atol=0)
    assert np.any(x) == (np.linalg.norm(y) > tau)

    def height(x):
        return ((x - y) ** 2).sum(axis=-1) / 2 + tau * np.linalg.norm(x, axis=-1)

    draw = np.random.default_rng(seed)
    others = x + draw.normal(size=(2000, WEIGHTS)) * np.geomspace(1e-6, 3, 2000)[:, None]
    assert np.all(height(x) <= np.concatenate([height(others), [height(0 * y), height(y)]]) + 1e-14)


def test_limits_of_the_proximal_decays():
    close(walked("decay_elastic_net", l1_ratio=1.0), walked("decay_soft_threshold"))
    close(walked("decay_elastic_net", l1_ratio=0.0), walked("decay_implicit"))
    close(walked("decay_huber", delta=100.0), walked("decay_implicit"))
    close(walked("decay_huber", lam=0.3 / 1e-9, delta=1e-9), walked("decay_soft_threshold"), tolerance=1e-8)


@pytest.mark.parametrize(
    "name", ["soft_threshold", "half_threshold", "elastic_net", "group_threshold", "huber", "implicit", "pnorm"]
)
def test_without_lambda_nothing_decays(name):
    w, updates, lrs = data(0)
    close(walked(f"decay_{name}", lam=0.0), w - np.cumsum(lrs[:, None] * updates, axis=0), tolerance=1e-14)


# Decays in closed form.


def test_corrected_is_adamw_at_a_constant_learning_rate_and_with_a_lambda_of_each_step():
    w, updates, lrs = data(0)
    rates = np.full(STEPS, LR)
    close(
        named("decay_corrected").weights(w, updates, rates, lam=0.3),
        named("decay_decoupled").weights(w, updates, rates, lam=0.3),
    )
    param = torch.nn.Parameter(torch.tensor(w))
    optimizer = torch.optim.AdamW([param], foreach=False)
    ours = torch.optim.Adam([twin := torch.nn.Parameter(torch.tensor(w))], foreach=False)
    steps = []
    for lr, gradient in zip(lrs.tolist(), updates, strict=True):
        param.grad = torch.tensor(gradient)
        optimizer.param_groups[0].update(lr=lr, weight_decay=0.3 * lr / lrs.max())
        optimizer.step()
        twin.data.zero_()
        twin.grad = torch.tensor(gradient)
        ours.param_groups[0].update(lr=1.0)
        ours.step()
        steps.append(-twin.detach().numpy().copy())
    found = named("decay_corrected").weights(w, np.array(steps), lrs, lam=0.3)
    close(found[-1], param.detach().numpy())
    close(still("decay_corrected", w, 9)[-1], w * (1 - LR * 0.3) ** 9)


def test_pnorm():
    w, _, _ = data(0)
    close(still("decay_pnorm", w, 1, p=2.0)[0], w / (1 + 2 * LR * 0.3))
    close(still("decay_pnorm", w, 1, p=1.0)[0], w * np.abs(w) / (np.abs(w) + LR * 0.3))
    assert np.all(named("decay_pnorm").weights(np.zeros(2), np.ones((3, 2)), np.ones(3), lam=0.3) == 0)


@pytest.mark.parametrize("p", [0.8, 1.0, 1.5, 3.0])
def test_pnorm_comes_to_rest_where_the_loss_and_the_penalty_balance(p):
    """With the gradient as the update: at w ≠ 0, g + λ·p·|w|^(p−1)·sign(w) = 0, whatever the learning rate."""
    target, w = np.array([3.0, -2.0, 5.0]), np.array([2.0, -1.5, 4.0])
    for t in range(4000):
        lr = 0.05 * (1 + (t % 2))
        w = named("decay_pnorm").weights(w, (w - target)[None], np.array([lr]), lam=0.2, p=p)[0]
    close(w - target, -0.2 * p * np.abs(w) ** (p - 1) * np.sign(w), tolerance=1e-11)


def test_toward():
    w, updates, lrs = data(0)
    step = w
    for update, lr, after in zip(updates, lrs, walked("decay_toward"), strict=True):
        step = step + lr * 0.3 * (w - step) - lr * update
        close(after, step)
    assert np.array_equal(still("decay_toward", w, 5), np.tile(w, (5, 1)))
    close(
        named("decay_toward").weights(0 * w, updates, lrs, lam=0.3),
        named("decay_decoupled").weights(0 * w, updates, lrs, lam=0.3),
    )
    away = named("decay_toward").weights(w, np.vstack([updates[:1], 0 * updates[1:]]), np.full(STEPS, LR), lam=0.3)
    close(away - w, -LR * updates[0] * (1 - LR * 0.3) ** np.arange(STEPS)[:, None])
    jump = named("decay_toward").weights(w, updates, np.full(STEPS, LR), lam=1 / LR)
    close(jump, w - LR * updates)


def test_norm_control():
    w, updates, lrs = data(0)
    close(walked("decay_norm_control", ratio=0.0), walked("decay_decoupled"))
    for ratio in (0.5, 1.0, 3.0):
        norms = np.linalg.norm(still("decay_norm_control", w, 20, ratio=ratio), axis=1)
        start = np.linalg.norm(w)
        close(norms, ratio * start + (1 - LR * 0.3) ** np.arange(1, 21) * (start - ratio * start))
    found = still("decay_norm_control", w, 20, ratio=3.0)
    close(found / np.linalg.norm(found, axis=1)[:, None], np.tile(w / np.linalg.norm(w), (20, 1)))
    step = w
    for update, lr, after in zip(updates, lrs, walked("decay_norm_control", ratio=0.5), strict=True):
        step = step - lr * 0.3 * (1 - 0.5 * np.linalg.norm(w) / np.linalg.norm(step)) * step - lr * update
        close(after, step)
    assert np.all(still("decay_norm_control", np.zeros(3), 2) == 0)


def test_constrained():
    w, updates, lrs = data(0)
    plain = w - np.cumsum(lrs[:, None] * updates, axis=0)
    close(walked("decay_constrained", kappa=1e6), plain, tolerance=1e-14)
    kappa, rate = 2.0, 0.01
    sums = (still("decay_constrained", w, 400, kappa=kappa, kappa_update=rate) ** 2).sum(axis=1)
    assert (w**2).sum() > kappa
    assert np.all(np.diff(sums) <= 0)
    assert sums[-1] < kappa
    # What is left of a weight tells the multiplier: it rises while R > κ, falls by (μ/d)(κ − R) per step after, and ends at 0.
    before = np.concatenate([[(w**2).sum()], sums[:-1]])
    multiplier = (1 - np.sqrt(sums / before)) / 2
    expected = np.maximum(0, np.concatenate([[0], multiplier[:-1]]) + rate / WEIGHTS * (before - kappa))
    np.testing.assert_allclose(multiplier, expected, rtol=0, atol=1e-14)
    assert multiplier.max() > 1e-3
    assert multiplier[-1] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_hyperball(seed):
    w, updates, lrs = data(seed)
    found = walked("decay_hyperball", seed)
    close(np.linalg.norm(found, axis=1), np.full(STEPS, np.linalg.norm(w)), tolerance=1e-14)
    close(named("decay_hyperball").weights(w, 1e6 * updates, lrs), found)
    close(still("decay_hyperball", w, 3), np.tile(w, (3, 1)))
    across = updates[0] - (updates[0] @ w) / (w @ w) * w
    turned = named("decay_hyperball").weights(w, across[None], np.array([0.3]))[0]
    close(np.arccos(turned @ w / (w @ w)), np.arctan(0.3))


@pytest.mark.parametrize("seed", SEEDS)
def test_selective_projection(seed):
    w, updates, lrs = data(seed)
    gradients = np.random.default_rng(seed + 100).normal(size=updates.shape)
    projected = 0
    for lam in (1.0, 0.3):
        found = named("decay_selective_projection").weights(w, updates, lrs, lam=lam, gradients=gradients)
        previous = np.vstack([w, found[:-1]])
        for t in range(STEPS):
            before, after = previous[t] - w, previous[t] - lrs[t] * updates[t] - w
            near, far = np.linalg.norm(before), np.linalg.norm(after)
            ratio = np.clip((far - near) / far, 0, 1) if -gradients[t] @ before < 0 else 0.0
            np.testing.assert_allclose(found[t], w + after - lam * ratio * after, rtol=0, atol=1e-13)
            if ratio > 0 and lam == 1:
                np.testing.assert_allclose(np.linalg.norm(found[t] - w), near, rtol=1e-12)
            projected += ratio > 0
    assert projected > 5
    steps = named("decay_selective_projection").weights(w, updates[:1], lrs[:1], lam=1.0)
    assert np.array_equal(steps[0], w + (w - lrs[0] * updates[0] - w))  # the first step starts at w0, so it is never projected


# Directions: torch's loop over tensors in float64, from weights of zero, of which each step leaves −lr·u with lr = 1.

TORCH = {
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
}


@pytest.fixture
def numbers_in_float64():
    """NAdam keeps the product of its momenta in torch's default dtype: in float32 it is wrong by 1e-7."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("numbers_in_float64")
@pytest.mark.parametrize(("name", "given"), settings(*(f"direction_{name}" for name in TORCH)))
def test_a_direction_is_torchs(name, given):
    for seed in SEEDS:
        _, gradients, _ = data(seed)
        param = torch.nn.Parameter(torch.zeros(WEIGHTS))
        optimizer = TORCH[name.removeprefix("direction_")]([param], lr=1.0, foreach=False, **given)
        found = []
        for gradient in gradients:
            param.data.zero_()
            param.grad = torch.tensor(gradient)
            optimizer.step()
            found.append(-param.detach().numpy().copy())
        close(named(name).updates(gradients, **given), np.array(found))


@pytest.mark.parametrize(("name", "given"), settings("direction_lion", "direction_signum"))
def test_a_sign_of_a_running_mean(name, given):
    """Lion: the sign is taken of the mean before it has seen g; Signum: after."""
    _, gradients, _ = data(0)
    lion = name == "direction_lion"
    beta1, beta2 = given.get("betas", (0.9, 0.99)) if lion else (given.get("momentum", 0.9),) * 2
    mean = np.zeros(WEIGHTS)
    for g, found in zip(gradients, named(name).updates(gradients, **given), strict=True):
        assert np.array_equal(found, np.sign(beta1 * mean + (1 - beta1) * g))
        mean = beta2 * mean + (1 - beta2) * g
    close(named(name).updates(1e6 * gradients, **given), named(name).updates(gradients, **given))


def test_a_lion_with_equal_betas_is_signum():
    _, gradients, _ = data(0)
    lion, signum = named("direction_lion"), named("direction_signum")
    close(lion.updates(gradients, betas=(0.9, 0.9)), signum.updates(gradients, momentum=0.9))


def test_radam_starts_at_the_sixth_step():
    """ρ_5 is 4.99 with β2 = 0.999: at the paper's threshold of 4 the fifth step would be rectified, at torch's 5 it is not."""
    _, gradients, _ = data(0)
    plain = np.array([named("moving").average(gradients, 0.9)[t] / (1 - 0.9 ** (t + 1)) for t in range(STEPS)])
    found = named("direction_radam").updates(gradients)
    close(found[:5], plain[:5])
    assert np.all(np.abs(found[5] - plain[5]) > 1e-3 * np.abs(plain[5]))
