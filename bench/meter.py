"""What `wd.Meter` costs a training step: some steps are measured, the others pass by its hooks."""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from statistics import median
from typing import Any

import torch
from torch import Tensor

import weightdecay as wd
from bench.result import Result
from bench.timing import Options, Turn, race
from bench.values import DECAY
from weightdecay.audit.meter.meter import EVERY, is_due

_RUN = 10_000
WITHOUT, BETWEEN, SAMPLE, AMORTISED = "without a meter", "between samples", "at a sample", f"with a meter, over {_RUN:,} steps"
_WIDTH, _BATCH, _LENGTH = 256, 8, 32
_LR = 1e-4
_STEPS = 1000
_SHARE = sum(is_due(step, EVERY) for step in range(1, _RUN + 1)) / _RUN
"""Of the steps of a run, how many are measured; at the start more than later."""


def _fused(groups: list[dict[str, Any]], **given: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True, **given)


def _attached(groups: list[dict[str, Any]], **given: Any) -> torch.optim.Optimizer:
    optimizer = _fused(groups, **given)
    wd.attach(optimizer, "cautious")
    return optimizer


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": wd.AdamW,
    "Adam with L2": wd.Adam,
    "LAMB": wd.LAMB,
    "torch.optim.AdamW, fused": _fused,
    "torch.optim.AdamW, fused, with cautious decay attached": _attached,
}
"""A decay that is one factor, which is the common case; ones that have to be taken apart weight by weight, with LAMB's norms of
whole tensors as the dearest of all presets; and one that is attached."""


def measure(options: Options) -> Iterator[Result]:
    """Train one model without a meter, one between its samples, and one at a sample in every step."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(_WIDTH, nhead=4, dim_feedforward=4 * _WIDTH, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
    data, target = torch.randn(_BATCH, _LENGTH, _WIDTH), torch.randn(_BATCH, _LENGTH, _WIDTH)
    shapes = [tuple(param.shape) for param in model.parameters()]
    for name, build in OPTIMIZERS.items():
        turns = {who: _turn(deepcopy(model), build, who, data, target) for who in (WITHOUT, BETWEEN, SAMPLE)}
        for turn in turns.values():
            turn()
        raced = race(turns, options.rounds)
        seconds = raced.seconds["step"]
        # Of the step without, and not of the one between samples: those two differ by less than they scatter.
        rounds = zip(seconds[WITHOUT], seconds[SAMPLE], strict=True)
        seconds[AMORTISED] = [without + _SHARE * (sample - without) for without, sample in rounds]
        title = f"a training step with {name}: 4 layers of width {_WIDTH}, {_BATCH} × {_LENGTH} tokens"
        elements = sum(param.numel() for param in model.parameters())
        facts = {"elements": elements, "tensors": len(shapes), "every": EVERY, "measured": f"{_SHARE:.2%}"}
        result = Result(f"meter: {name}", title, WITHOUT, seconds=seconds, facts=facts, others=raced.others)
        result.demand(AMORTISED, 1.02)
        yield result
    yield _hooks(options)


def _hooks(options: Options) -> Result:
    """Time the steps of one tensor of four weights, beside which what a meter does between its samples shows."""
    turns = {who: _steps(who) for who in (WITHOUT, BETWEEN)}
    raced = race(turns, options.rounds)
    seconds = raced.seconds["step"]
    hooks = median(between - without for between, without in zip(seconds[BETWEEN], seconds[WITHOUT], strict=True))
    title = "torch.optim.SGD on four weights, by the step"
    facts = {"microseconds in the hooks": round(1e6 * hooks, 1)}
    return Result("meter: hooks", title, WITHOUT, seconds=seconds, facts=facts, others=raced.others)


def _steps(who: str) -> Turn:
    """Return a turn of many steps."""
    param = torch.nn.Parameter(torch.ones(4))
    param.grad = torch.ones(4)
    optimizer = torch.optim.SGD([param], lr=_LR, weight_decay=DECAY)
    if who == BETWEEN:
        wd.Meter(optimizer, every=10**9)  # which the optimizer's hooks keep
    optimizer.step()

    def turn() -> dict[str, float]:
        start = time.perf_counter()
        for _ in range(_STEPS):
            optimizer.step()
        return {"step": (time.perf_counter() - start) / _STEPS}

    return turn


def _turn(model: torch.nn.Module, build: Callable[..., torch.optim.Optimizer], who: str, data: Tensor, target: Tensor) -> Turn:
    """Return a turn that is one iteration of training; one that is measured is read as well."""
    optimizer = build(wd.param_groups(model, DECAY), lr=_LR)
    meter = None if who == WITHOUT else wd.Meter(optimizer, every=1 if who == SAMPLE else 10**9, roles=model)

    def turn() -> dict[str, float]:
        optimizer.zero_grad(set_to_none=True)
        start = time.perf_counter()
        torch.nn.functional.mse_loss(model(data), target).backward()
        optimizer.step()
        if who == SAMPLE and meter is not None:
            meter.metrics()
        return {"step": time.perf_counter() - start}

    return turn
