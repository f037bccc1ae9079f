"""Where training ends: each decay's own optimum, from its objective, on scikit-learn's diabetes data."""

import numpy as np
import pytest
import torch
from runs import assert_close
from scipy.optimize import lsq_linear
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, MultiTaskLasso

import weightdecay as wd

LAMBDA = 0.1
X, Y = load_diabetes(return_X_y=True)
X, Y = (X - X.mean(axis=0)) / X.std(axis=0), (Y - Y.mean()) / Y.std()
N, FEATURES = X.shape
SECOND = np.stack([Y, X[:, 2] * Y, Y**2 - 1], axis=1)
"""Three targets, for what groups weights."""


def gradient(w, target=Y):
    """Return the gradient of half the mean squared error."""
    return X.T @ (X @ w - target) / N


def trained(optimizer, param, steps, target=Y, schedule=None):
    """Return the weights after so many steps over all the data."""
    x, y = torch.tensor(X), torch.tensor(target)
    lr = optimizer.param_groups[0]["lr"]
    for step in range(steps):
        if schedule:
            optimizer.param_groups[0]["lr"] = lr * schedule(step)
        param.grad = x.T @ (x @ param.detach() - y) / N
        optimizer.step()
    return param.detach().numpy()


def start(*shape):
    return torch.nn.Parameter(torch.randn(shape or (FEATURES,), dtype=torch.float64))


def steepest():
    """Return the largest learning rate with which each step of a proximal method lowers the objective: 1/L."""
    return 1 / np.linalg.eigvalsh(X.T @ X / N).max()


def proximal(param, decay, **numbers):
    return wd.Optimizer([param], steepest(), direction="sgd", decay=decay, weight_decay=LAMBDA, **numbers)


def test_the_soft_threshold_is_the_lasso_with_exact_zeros():
    param = start()
    found = trained(proximal(param, "soft_threshold"), param, 3000)
    expected = Lasso(alpha=LAMBDA, tol=1e-14, max_iter=100_000).fit(X, Y).coef_
    assert_close(found, expected, tolerance=1e-6, effect=abs(np.linalg.lstsq(X, Y)[0] - expected).max())
    assert ((found == 0) == (expected == 0)).all()
    assert (found == 0).sum() >= 4


def test_a_lambda_above_the_largest_correlation_leaves_nothing():
    param = start()
    optimizer = proximal(param, "soft_threshold")
    optimizer.param_groups[0]["weight_decay"] = 1.001 * abs(X.T @ Y).max() / N
    assert (trained(optimizer, param, 3000) == 0).all()


def test_the_proximal_elastic_net_is_scikit_learns():
    param = start()
    found = trained(proximal(param, "elastic_net", l1_ratio=0.7), param, 3000)
    expected = ElasticNet(alpha=LAMBDA, l1_ratio=0.7, tol=1e-14, max_iter=100_000).fit(X, Y).coef_
    assert_close(found, expected, tolerance=1e-6, effect=abs(np.linalg.lstsq(X, Y)[0] - expected).max())
    assert ((found == 0) == (expected == 0)).all()


def test_group_thresholds_are_the_multi_task_lasso():
    """A tensor is a group: a feature's weights for all three targets vanish together."""
    rows = [start(3) for _ in range(FEATURES)]
    groups = [{"params": [row]} for row in rows]
    optimizer = wd.Optimizer(groups, steepest(), direction="sgd", decay="group_threshold", weight_decay=LAMBDA)
    for _ in range(3000):
        w = np.stack([row.detach().numpy() for row in rows])
        for row, grad in zip(rows, gradient(w, SECOND), strict=True):
            row.grad = torch.tensor(grad)
        optimizer.step()
    found = np.stack([row.detach().numpy() for row in rows])
    expected = MultiTaskLasso(alpha=LAMBDA, tol=1e-14, max_iter=100_000).fit(X, SECOND).coef_.T
    assert_close(found, expected, tolerance=1e-6, effect=abs(np.linalg.lstsq(X, SECOND)[0] - expected).max())
    assert ((found == 0) == (expected == 0)).all()
    assert (found == 0).any()


BOUNDED = 4.0
"""λ so large that the box ‖w‖∞ ≤ 1/λ cuts off the largest coefficients."""


@pytest.mark.parametrize("preset", [wd.AdamW, "lion"], ids=["AdamW", "lion"])
def test_adaptive_steps_with_decoupled_decay_end_in_a_box(preset):
    """At the minimum of the loss under ‖w‖∞ ≤ 1/λ (Xie & Li 2024): no multiple of λ‖w‖² has anything to do with it."""
    param, steps = start(), 6000
    if preset == "lion":
        optimizer = wd.Optimizer([param], 0.02, direction="lion", decay="decoupled", weight_decay=BOUNDED)
    else:
        optimizer = preset([param], lr=0.02, weight_decay=BOUNDED, betas=(0.9, 0.95))  # √v follows the gradient to zero
    found = trained(optimizer, param, steps, schedule=lambda step: 1 / (1 + step / 300))
    expected = lsq_linear(X, Y, bounds=(-1 / BOUNDED, 1 / BOUNDED), tol=1e-14).x
    assert (abs(found) <= 1 / BOUNDED + 1e-6).all()
    assert (abs(expected) > 1 / BOUNDED - 1e-6).any()
    assert abs(found - expected).max() < 0.02 < abs(np.linalg.lstsq(X, Y)[0] - expected).max() / 5


@pytest.mark.parametrize("p", [0.8, 1.0, 1.5, 3.0])
def test_pnorm_decay_ends_where_its_objective_is_stationary(p):
    """∇L + λp·|w|^(p−2)·w = 0 in every weight that has not vanished."""
    param = start()
    found = trained(proximal(param, "pnorm", p=p), param, 6000)
    alive = abs(found) > 1e-6
    pull = LAMBDA * p * abs(found[alive]) ** (p - 2) * found[alive]
    assert alive.sum() >= 2
    assert_close(-gradient(found)[alive], pull, tolerance=1e-6, effect=abs(pull).max())


def test_decay_towards_the_start_ends_at_its_closed_form():
    """w = w₀ + (XᵀX + NλI)⁻¹Xᵀ(y − Xw₀): ridge regression of what the start leaves over."""
    for rules in ({"decay": "toward", "weight_decay": LAMBDA}, {"penalty": "l2_sp", "penalty_weight": LAMBDA}):
        param = start()
        w_0 = param.detach().numpy().copy()
        found = trained(wd.Optimizer([param], steepest(), direction="sgd", **rules), param, 1500)
        shift = np.linalg.solve(X.T @ X + N * LAMBDA * np.eye(FEATURES), X.T @ (Y - X @ w_0))
        assert_close(found, w_0 + shift, tolerance=1e-9, effect=abs(np.linalg.lstsq(X, Y)[0] - w_0 - shift).max())


def test_implicit_decay_of_plain_descent_is_ridge_regression():
    """Its fixed point is that of L2: (w − ηg)/(1 + ηλ) = w where g + λw = 0."""
    param = start()
    found = trained(proximal(param, "implicit"), param, 1500)
    expected = np.linalg.solve(X.T @ X + N * LAMBDA * np.eye(FEATURES), X.T @ Y)
    assert_close(found, expected, tolerance=1e-9, effect=abs(np.linalg.lstsq(X, Y)[0] - expected).max())


def test_cautious_decay_ends_at_a_minimum_of_the_loss_itself():
    """Where decoupled decay stops at a gradient of −λw, cautious decay goes on until there is none."""
    left = {}
    for decay in ("cautious", "decoupled"):
        param = start()
        optimizer = wd.Optimizer([param], 0.2, direction="sgd", decay=decay, weight_decay=LAMBDA)
        found = trained(optimizer, param, 3000, schedule=lambda step: 1 / (1 + step / 100))
        left[decay] = abs(gradient(found)).max() / abs(X.T @ Y / N).max()
    assert left["cautious"] < 0.01 < 0.03 < left["decoupled"]
