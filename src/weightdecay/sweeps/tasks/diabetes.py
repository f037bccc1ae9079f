"""Disease progression of 442 diabetes patients, a regression: real data of another kind, to show that the sweep is general."""

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from weightdecay.sweeps.task import Data, Task

TRAIN, VALID = 150, 140


def model() -> nn.Module:
    """Return a network far larger than ten measurements of 150 patients can pin down."""
    return nn.Sequential(nn.Linear(10, 48), nn.LayerNorm(48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 1))


def data(seed: int) -> Data:
    """Return 150 patients to train on, 140 to choose by and 152 to report, all standardised by the first 150."""
    patients = load_diabetes(scaled=False)
    order = torch.randperm(len(patients.target), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor(patients.data, dtype=torch.float32)[order]
    y = torch.tensor(patients.target, dtype=torch.float32)[order, None]
    x, y = ((v - v[:TRAIN].mean(0)) / v[:TRAIN].std(0) for v in (x, y))
    choose, report = slice(TRAIN, TRAIN + VALID), slice(TRAIN + VALID, None)
    return Data((x[:TRAIN], y[:TRAIN]), (x[choose], y[choose]), (x[report], y[report]))


def r2(output: Tensor, target: Tensor) -> Tensor:
    """Return the share of the target's variance that the output explains."""
    return 1 - (output - target).square().sum() / (target - target.mean()).square().sum()


task = Task(
    "diabetes",
    model,
    data,
    nn.functional.mse_loss,
    r2,
    batch_size=30,
    description="scikit-learn's diabetes data: ten measurements of 442 patients against their disease a year later, "
    "150 to train on, 140 to choose the hyper-parameters by and 152 to report; two hidden layers of 48, cosine schedule.",
)
