"""Optimizer steps by themselves: ours against torch's paths, on tensors that all start the same."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import weightdecay as wd
from bench import machine, values
from bench.result import Check, Demand, Result
from bench.timing import Options, race, stepping
from bench.values import ALLOWED, DECAY, LR, MI, ULPS, WARM_UP, Shape

Params = list[torch.nn.Parameter]
Step = Callable[[], object]
Make = Callable[[Params], Step]

FUSED, FOR_LOOP, FOREACH, INDUCTOR, COPY = "torch fused", "torch for-loop", "torch foreach", "inductor", "b.mul_(c)"
OURS = "wd"


@dataclass(frozen=True)
class Contest:
    """Contestants that have done their first steps, with what they stepped."""

    params: Mapping[str, Params]
    steps: Mapping[str, Step]
    first: Mapping[str, float]

    def weights(self, name: str) -> list[torch.Tensor]:
        """Return what a contestant has made of the weights."""
        return list(self.params[name])


def warmed_up(makers: Mapping[str, Make], shapes: list[Shape], dtype: torch.dtype = torch.float32) -> Contest:
    """Give every contestant its own copy of the tensors, and let it do the first steps."""
    params = {name: values.parameters(shapes, dtype) for name in makers}
    steps = {name: make(params[name]) for name, make in makers.items()}
    first = {}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        first[name] = time.perf_counter() - start
        for _ in range(WARM_UP - 1):
            step()
    return Contest(params, steps, first)


def copying(elements: int = 64 * MI) -> Step:
    """Return a step that does nothing but move memory: it reads two tensors of 256 MB and writes one of them."""
    b, c = torch.rand(elements), torch.ones(elements)
    return partial(b.mul_, c)


COPY_BYTES = 12 * 64 * MI


def torch_paths(optimizer: Callable[..., torch.optim.Optimizer], **numbers: Any) -> dict[str, Make]:
    """Return the implementations that torch has of an optimizer."""
    flags = {
        FUSED: {"fused": True},
        FOREACH: {"foreach": True, "fused": False},
        FOR_LOOP: {"foreach": False, "fused": False},
    }
    return {name: partial(_made, optimizer, {**numbers, **flag}) for name, flag in flags.items()}


def ours(optimizer: Callable[..., torch.optim.Optimizer], **numbers: Any) -> Make:
    """Return an optimizer of this package as a contestant."""
    return partial(_made, optimizer, numbers)


def compiled_by_inductor(params: Params) -> Step:
    """Return torch's AdamW with its whole step compiled. Its foreach path is what compiles and runs fastest."""
    return torch.compile(torch.optim.AdamW(params, lr=LR, weight_decay=DECAY, foreach=True).step)


def no_inductor(options: Options) -> str | None:
    """Return why nothing is compiled by inductor; None if it is."""
    if not options.inductor:
        return "compiling takes minutes; --inductor adds it"
    return None if machine.compiler() else "it needs a C++ compiler, and there is none"


def _made(optimizer: Callable[..., torch.optim.Optimizer], numbers: dict[str, Any], params: Params) -> Step:
    return optimizer(params, **numbers).step


@dataclass(frozen=True)
class Steps:
    """A work of float32 steps in which ours has to end at torch's weights."""

    name: str
    title: str
    shapes: Callable[[], list[Shape]]
    makers: Mapping[str, Make]
    limit: float
    """What ours may take, as a part of torch's fused path."""
    bytes_per_element: int | None
    """None where the tensors stay in the caches, of which these bytes say nothing."""
    steps_per_turn: int = 1
    against_copying: bool = False
    """Whether ours has to come near the bytes per second of a plain multiplication."""
    by_inductor: bool = False

    def measure(self, options: Options) -> Iterator[Result]:
        """Time it, and compare the weights."""
        shapes, makers = self.shapes(), dict(self.makers)
        elements = values.count(shapes)
        result = Result(self.name, self.title, FUSED, facts={"elements": elements, "tensors": len(shapes)})
        why_not = no_inductor(options)
        if self.by_inductor and why_not:
            result.skipped[INDUCTOR] = why_not
        elif self.by_inductor:
            makers[INDUCTOR] = compiled_by_inductor
        found = warmed_up(makers, shapes)
        result.checks += [
            Check(f"{name} and {FUSED} after {WARM_UP} steps", _apart(found, name), ALLOWED, ULPS)
            for name in makers
            if name != FUSED
        ]
        steps = dict(found.steps)
        moved = {} if self.bytes_per_element is None else dict.fromkeys(makers, self.bytes_per_element * elements)
        if self.against_copying:
            steps[COPY], moved[COPY] = copying(), COPY_BYTES
            steps[COPY]()
        turns = {name: stepping(step, self.steps_per_turn) for name, step in steps.items()}
        raced = race(turns, options.rounds)
        result.seconds, result.others = raced.seconds["step"], raced.others
        result.bytes, result.first = moved, found.first
        result.demand(OURS, self.limit)
        if self.against_copying:
            share = result.rate(OURS) / result.rate(COPY)
            result.demands.append(Demand(f"bytes per second of {OURS} / {COPY}", share, 0.9, at_most=False))
        if INDUCTOR in makers:
            result.facts["seconds to compile by inductor"] = found.first[INDUCTOR]
        yield result


def _apart(found: Contest, name: str) -> float:
    return values.ulps_apart(found.weights(name), found.weights(FUSED))


ADAMW: dict[str, Any] = {"lr": LR, "weight_decay": DECAY}
SGD: dict[str, Any] = {"lr": LR, "momentum": 0.9, "weight_decay": DECAY}
ADAMW_MAKERS = {**torch_paths(torch.optim.AdamW, **ADAMW), OURS: ours(wd.AdamW, **ADAMW)}
SGD_MAKERS = {**torch_paths(torch.optim.SGD, **SGD), OURS: ours(wd.SGD, **SGD)}
ADAMW_BYTES = 28
"""Of a float32 parameter: weight, gradient and two moments are read, all but the gradient written."""
SGD_BYTES = 20

WORKS = (
    Steps(
        "adamw-large", "AdamW, float32, one tensor of 64 Mi", partial(values.one, 64 * MI), ADAMW_MAKERS, 1.0, ADAMW_BYTES,
        against_copying=True,
    ),
    Steps(
        "adamw-transformer", "AdamW, float32, a transformer", values.transformer, ADAMW_MAKERS, 0.85, ADAMW_BYTES,
        against_copying=True, by_inductor=True,
    ),
    Steps(
        "adamw-small", "AdamW, float32, 100 × (64, 64) and (64,)", partial(values.pairs, 100), ADAMW_MAKERS, 0.2, None,
        steps_per_turn=10, by_inductor=True,
    ),
    Steps(
        "sgd-transformer", "SGD with momentum and L2, float32, a transformer", values.transformer, SGD_MAKERS, 0.85, SGD_BYTES,
    ),
)  # fmt: skip
