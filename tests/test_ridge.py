"""Linear regression, whose answers are known in closed form: what each decay minimises, on scikit-learn's diabetes data."""

import numpy as np
import pytest
import torch
from runs import assert_close, gradients, twin, walk, weights
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso, Ridge

import weightdecay as wd

LAMBDA = 0.1
X, Y = load_diabetes(return_X_y=True)
X, Y = (X - X.mean(axis=0)) / X.std(axis=0), Y / Y.std()
N, FEATURES = X.shape


@pytest.fixture
def model():
    return torch.nn.Linear(FEATURES, 1, dtype=torch.float64)


def train(model, optimizer, steps, schedule=None):
    """Minimise half the mean squared error over all the data, and return coefficients and intercept."""
    x, y = torch.tensor(X), torch.tensor(Y)
    scheduler = schedule and torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(x)[:, 0] - y).square().mean() / 2).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
    return torch.cat([model.weight.detach()[0], model.bias.detach()])


def ridge():
    """Return the ridge estimate; the sum over N samples of scikit-learn is N times our mean, and its α is N·λ."""
    found = Ridge(alpha=N * LAMBDA, solver="cholesky").fit(X, Y)
    return torch.tensor([*found.coef_, found.intercept_])


def fastest():
    """Return Polyak's learning rate and momentum for the largest and smallest curvature of the ridge objective."""
    smallest, *_, largest = np.sqrt(np.linalg.eigvalsh(X.T @ X / N) + LAMBDA)
    return {"lr": 4 / (largest + smallest) ** 2, "momentum": ((largest - smallest) / (largest + smallest)) ** 2}


def test_sgd_with_l2_on_the_weights_alone_is_ridge_regression(model):
    """(XᵀX + NλI) w = Xᵀy with centred X and y, and the mean of y as the intercept: the bias must not decay."""
    found = train(model, wd.SGD(wd.param_groups(model, LAMBDA), **fastest()), steps=200)
    closed = np.linalg.solve(X.T @ X + N * LAMBDA * np.eye(FEATURES), X.T @ (Y - Y.mean()))
    assert_close(found, [*closed, Y.mean()], tolerance=1e-12)
    unpenalised = np.linalg.lstsq(X, Y - Y.mean())[0]
    assert_close(found, ridge(), tolerance=1e-8, effect=abs(unpenalised - closed).max())


def test_a_bias_that_decays_is_another_regression(model):
    """It ends at ȳ/(1 + λ), so every prediction is too small."""
    found = train(model, wd.SGD(model.parameters(), weight_decay=LAMBDA, **fastest()), steps=200)
    assert_close(found[-1], Y.mean() / (1 + LAMBDA), tolerance=1e-12, effect=abs(found[-1] - ridge()[-1]))


@pytest.mark.parametrize(("optimizer", "is_ridge"), [(wd.Adam, True), (wd.AdamW, False)])
def test_adam_with_l2_is_ridge_regression_and_adamw_is_not(model, optimizer, is_ridge):
    """Decoupled, λw is weighed against the gradient divided by √v, whose fixed point is no minimum of the ridge objective."""
    steps, tolerance = 500, 1e-6
    found = train(model, optimizer(wd.param_groups(model, LAMBDA), lr=0.05), steps, lambda epoch: (1 - epoch / steps) ** 2)
    distance = (found - ridge()).abs().max()
    assert distance < tolerance if is_ridge else distance > 100 * tolerance


def test_the_subgradient_of_l1_comes_near_the_lasso_and_never_to_an_exact_zero(model):
    """Within 1e-2 of the largest coefficient; the zeros that make a lasso sparse take a proximal step."""
    lasso = Lasso(alpha=LAMBDA, tol=1e-12).fit(X, Y)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "penalty_weight": 0.0}]
    optimizer = wd.Optimizer(groups, lr=0.2, direction="sgd", penalty="l1", penalty_weight=LAMBDA)
    found = train(model, optimizer, 500, lambda epoch: 1 / (1 + epoch / 20))
    assert (abs(lasso.coef_) < 1e-12).sum() >= 4
    assert_close(found[:-1], lasso.coef_, tolerance=1e-2)
    assert (found != 0).all()
    assert found[-1].item() == pytest.approx(lasso.intercept_, abs=1e-4)


def test_without_momentum_sgdw_is_sgd(model):
    """Proposition 1 of Loshchilov & Hutter: with λ per unit of learning rate, step for step."""
    twins = [torch.nn.Linear(FEATURES, 1, dtype=torch.float64) for _ in range(2)]
    twins[1].load_state_dict(twins[0].state_dict())
    coupled, decoupled = (
        preset(m.parameters(), lr=0.1, weight_decay=LAMBDA) for preset, m in zip((wd.SGD, wd.SGDW), twins, strict=True)
    )
    for step in range(30):
        lr = 0.1 * abs(np.sin(step))
        coupled.param_groups[0]["lr"] = decoupled.param_groups[0]["lr"] = lr
        assert_close(train(twins[1], decoupled, 1), train(twins[0], coupled, 1), tolerance=1e-14)
    assert_close(train(twins[1], decoupled, 1), train(twins[0], coupled, 1), tolerance=1e-13, effect=LAMBDA * lr)


def test_sgdw_with_momentum_is_the_algorithm_of_the_paper():
    """Algorithm 1, with α the learning rate, η_t = 1 and λ = α times ours: m ← β₁m + α·g, θ ← θ − m − λθ."""
    param, history, alpha, beta1 = weights(), gradients(50), 0.05, 0.9
    theta, m = param.detach().flatten().clone(), torch.zeros(33, dtype=torch.float64)
    l2 = twin(param)
    seen = walk(wd.SGDW([param], lr=alpha, momentum=beta1, weight_decay=LAMBDA), history)
    coupled = walk(wd.SGD([l2], lr=alpha, momentum=beta1, weight_decay=LAMBDA), history)
    for t, g in enumerate(history):
        m = beta1 * m + alpha * g.double()
        theta = theta - m - alpha * LAMBDA * theta
        assert_close(seen[t], theta, tolerance=1e-12)
    assert_close(seen[-1], theta, tolerance=1e-12, effect=(seen[-1] - coupled[-1]).abs().max())
