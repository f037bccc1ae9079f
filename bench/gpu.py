"""Measure the GPU backend against torch.optim: `python -m bench.gpu --out runs/bench/gpu.json`, where there is a CUDA GPU."""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

import weightdecay as wd
from bench import command, peers, values
from bench.result import Check, Demand, Result
from bench.steps import ADAMW, FOREACH, FUSED, OURS, Make, Params, Step, ours, torch_paths
from bench.timing import Options, Turn, race
from bench.values import ALLOWED, DECAY, LR, MI, ULPS, WARM_UP, Shape
from weightdecay import backends

DEVICE = "cuda"
COPY = "c.copy_(b)"
_LARGE = values.one(64 * MI)
_SMALL = [(64, 64), (64,)] * 200
_RULES_OF_PEERS: dict[str, dict[str, Any]] = {
    "cautious": {"direction": "adam", "decay": "cautious", "eps": peers.EPS},
    "lion": {"direction": "lion", "decay": "decoupled"},
    "corrected": {"direction": "adam", "decay": "corrected", "eps": peers.EPS},
}
"""What makes an optimizer of each rule that other packages have too."""
STEPS = 10
"""Of a turn whose steps are short: the device works while Python makes ready the next one, as it does in training."""
TINY = 1e-9
"""The learning rate of contestants that share their weights, which so many steps must leave finite."""


def on_device(step: Callable[[], object], count: int = 1) -> Turn:
    """Return a turn that does some steps and tells the seconds per step, by the device's own clock.

    Time in which the device waits for Python counts, as it does in training.
    """

    def turn() -> Mapping[str, float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        torch.cuda.synchronize()
        start.record()
        for _ in range(count):
            step()
        end.record()
        end.synchronize()
        return {"step": start.elapsed_time(end) / 1000 / count}

    return turn


def copying(elements: int = 256 * MI) -> Step:
    """Return a step that copies a gigabyte from the device's memory to there."""
    b = torch.ones(elements, device=DEVICE)
    return partial(torch.empty_like(b).copy_, b)


def _race(result: Result, steps: Mapping[str, Step], options: Options, count: int = 1) -> None:
    """Let everyone do the first steps, and then take turns."""
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    raced = race({name: on_device(step, count) for name, step in steps.items()}, options.rounds)
    result.seconds, result.others = raced.seconds["step"], raced.others


def _compared(result: Result, makers: Mapping[str, Make], to: str, shapes: list[Shape], dtype: torch.dtype) -> None:
    """Check that contestants end at the same weights, on tensors of their own."""
    found = {}
    for name in makers:
        found[name] = values.parameters(shapes, dtype, DEVICE)
        step = makers[name](found[name])
        for _ in range(WARM_UP):
            step()
    for name in makers:
        if name != to:
            apart = values.ulps_apart(found[name], found[to])
            scale = 1.0 if dtype == torch.float32 else torch.finfo(torch.float32).eps / torch.finfo(dtype).eps
            unit = ULPS if dtype == torch.float32 else f"{dtype} units in the last place"
            allowed = ALLOWED if dtype == torch.float32 else 1.0
            result.checks.append(Check(f"{name} and {to} after {WARM_UP} steps", apart * scale, allowed, unit))


# Every rule at the speed of the memory -----------------------------------------------------------------------------------


def rules(options: Options) -> Iterator[Result]:
    """Time plain AdamW and every rule that no reduction delays against a copy on the device, by bytes per second."""
    for name, arguments in _elementwise().items():
        result = Result(f"rule {name}", f"{name}, float32, one tensor of 64 Mi", COPY, facts={"elements": 64 * MI})
        backends = {backend: ours(wd.Optimizer, backend=backend, **arguments) for backend in ("gpu", "eager")}
        _compared(result, backends, "eager", [(2**16 + 3,), (2**12,)], torch.float32)
        params = values.parameters(_LARGE, device=DEVICE)
        optimizer = wd.Optimizer(params, backend="gpu", **arguments)
        steps: dict[str, Callable[[], object]] = {OURS: optimizer.step, COPY: copying()}
        _race(result, steps, options, STEPS)
        group = optimizer.param_groups[0]
        _, kept, _ = optimizer.way(group)
        per_element = 12 + sum(8 if each.changes else 4 for each in kept if each.per_element)
        result.bytes = {OURS: per_element * 64 * MI, COPY: 8 * 256 * MI}
        share = result.rate(OURS) / result.rate(COPY)
        result.demands.append(Demand(f"bytes per second of {OURS} / {COPY}", share, 0.9, at_most=False))
        yield result
        del params, optimizer, steps, group
        torch.cuda.empty_cache()


def _elementwise() -> dict[str, dict[str, Any]]:
    """Return what makes an optimizer of each rule without a reduction: with Adam, and a direction with decoupled decay."""
    found: dict[str, dict[str, Any]] = {"AdamW": {"direction": "adam", "decay": "decoupled", "weight_decay": DECAY, "lr": LR}}
    for rule in wd.rules().values():
        if rule.reductions or rule.memory or rule.whole:
            continue
        key = {"penalty": "penalty_weight", "decay": "weight_decay"}.get(rule.kind)
        strength: dict[str, Any] = {key: DECAY} if key and "lam" in rule.numbers else {}
        momentum = {"momentum": 0.9} if "mu" in rule.defaults else {}
        direction = rule.name if rule.kind == "direction" else "adam"
        rest: dict[str, Any] = {} if rule.kind == "direction" else {rule.kind: rule.name}
        found[f"{rule.kind} {rule.name}"] = {"lr": LR, "direction": direction, **rest, **strength, **momentum}
    return found


# A language model --------------------------------------------------------------------------------------------------------


def language_model(dtype: torch.dtype, options: Options) -> Iterator[Result]:
    """Time AdamW on 1.3 billion weights, which all contestants share: their states alone fill what memory there is."""
    name = str(dtype).removeprefix("torch.")
    shapes = values.language_model()
    result = Result(
        f"adamw-1.3b-{name}", f"AdamW, {name}, a decoder of 1.3 billion weights", FUSED,
        facts={"elements": values.count(shapes), "tensors": len(shapes)},
    )  # fmt: skip
    if dtype == torch.float32:
        makers = {**torch_paths(torch.optim.AdamW, **ADAMW), OURS: ours(wd.AdamW, **ADAMW)}
        _compared(result, makers, FUSED, values.pairs(20), dtype)
    else:  # torch's own moments are bfloat16, which ends elsewhere
        backends = {backend: ours(wd.AdamW, backend=backend, **ADAMW) for backend in ("gpu", "eager")}
        _compared(result, backends, "eager", values.pairs(20), dtype)
    numbers = {"lr": TINY, "weight_decay": DECAY}
    makers = {**torch_paths(torch.optim.AdamW, **numbers), OURS: ours(wd.AdamW, **numbers)}
    params = values.parameters(shapes, dtype, DEVICE)
    steps = {each: makers[each](params) for each in (FUSED, FOREACH, OURS)}
    who = OURS
    if dtype != torch.float32:  # ours are float32, for which twice the memory has to be moved
        who = f"{OURS}, moments as torch's"
        steps[who] = _with_moments_like(params, **numbers)
    _race(result, steps, options)
    result.demand(who, 0.95)
    result.demand(who, 0.5, to=FOREACH)
    yield result


def _with_moments_like(params: Params, **numbers: Any) -> Step:
    """Return a step of AdamW with moments of its weights' dtype, as torch has them."""
    optimizer = wd.AdamW(params, **numbers)
    optimizer.step()
    for param, state in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key].to(param.dtype)
    return optimizer.step


def against_peers(rule: str, arguments: Mapping[str, Any], options: Options) -> Iterator[Result]:
    """Time a rule against the packages that have the same one, on the weights of the language model."""
    shapes = values.language_model()
    result = Result(
        f"{rule}-1.3b", f"{rule}, float32, a decoder of 1.3 billion weights", FUSED,
        facts={"elements": values.count(shapes), f"what {FUSED} is, shown for scale": "AdamW"},
    )  # fmt: skip
    own, others = ours(wd.Optimizer, lr=LR, weight_decay=DECAY, **arguments), peers.installed(result, rule)
    _compared(result, {OURS: own, **others}, OURS, values.pairs(20), torch.float32)
    params = values.parameters(shapes, device=DEVICE)
    makers = {FUSED: torch_paths(torch.optim.AdamW, lr=LR, weight_decay=DECAY)[FUSED], OURS: own, **others}
    _race(result, {name: make(params) for name, make in makers.items()}, options)
    if others:
        fastest = min(others, key=result.ratio)
        result.demand(OURS, 0.25, to=fastest, what=f"{OURS} / {fastest}, the fastest peer")
    else:
        result.skipped["the demand on it"] = "there is no peer to compare with"
    yield result


def small(options: Options) -> Iterator[Result]:
    """Time AdamW on 400 small tensors, where Python's part of a step is what counts."""
    result = Result("adamw-small", "AdamW, float32, 200 × (64, 64) and (64,)", FUSED, facts={"tensors": len(_SMALL)})
    makers = {**torch_paths(torch.optim.AdamW, **ADAMW), OURS: ours(wd.AdamW, **ADAMW)}
    _compared(result, makers, FUSED, _SMALL, torch.float32)
    steps = {name: makers[name](values.parameters(_SMALL, device=DEVICE)) for name in (FUSED, FOREACH, OURS)}
    _race(result, steps, options, STEPS)
    result.demand(OURS, 0.7)
    yield result


WORKS: command.Works = {
    "rules": rules,
    "adamw-1.3b-float32": partial(language_model, torch.float32),
    "adamw-1.3b-bfloat16": partial(language_model, torch.bfloat16),
    **{f"{rule}-1.3b": partial(against_peers, rule, arguments) for rule, arguments in _RULES_OF_PEERS.items()},
    "adamw-small": small,
}


def _lack() -> str | None:
    """Return what is missing here; None if the measurements can start."""
    if not torch.cuda.is_available():
        return "it needs a CUDA GPU, and torch sees none"
    try:
        backends.resolve("gpu")
    except ImportError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(command.main("gpu", WORKS, lack=_lack))
