"""Handwritten digits with a quarter of the training labels wrong: a task that over-fits, so that decay has something to do."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from weightdecay.sweeps.task import Data, Task

TRAIN, VALID, FLIPPED = 400, 600, 0.25


def model() -> nn.Module:
    """Return a small classifier with LayerNorm."""
    return nn.Sequential(
        nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(),
        nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip


def data(seed: int) -> Data:
    """Return 400 digits to train on, a quarter of their labels wrong, 600 to choose by and 797 to report."""
    digits = load_digits()
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.target), generator=random)
    x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(digits.target)[order]
    noisy = y[:TRAIN].clone()
    wrong = torch.randperm(TRAIN, generator=random)[: int(FLIPPED * TRAIN)]
    noisy[wrong] = (noisy[wrong] + torch.randint(1, 10, wrong.shape, generator=random)) % 10
    choose = slice(TRAIN, TRAIN + VALID)
    report = slice(TRAIN + VALID, None)
    return Data((x[:TRAIN], noisy), (x[choose], y[choose]), (x[report], y[report]))


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Return the share of right answers."""
    return (output.argmax(-1) == target).float().mean()


task = Task(
    "digits",
    model,
    data,
    nn.functional.cross_entropy,
    accuracy,
    description="scikit-learn's 8 × 8 handwritten digits: 400 to train on, a quarter of them with a wrong label, 600 to choose "
    "the hyper-parameters by and 797 to report; a network of two hidden layers of 32 with LayerNorm, cosine schedule.",
)
