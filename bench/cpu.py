"""Measure the CPU backend against torch.optim: `python -m bench.cpu --out runs/bench/cpu.json`."""

import sys
from collections.abc import Callable, Iterator

from bench import bfloat16, command, first_step, loop, meter, peers, rules, steps
from bench.result import Result
from bench.timing import Options

LARGE, TRANSFORMER, SMALL, SGD = steps.WORKS
WORKS: dict[str, Callable[[Options], Iterator[Result]]] = {
    **{work.name: work.measure for work in (LARGE, TRANSFORMER, SMALL)},
    "adamw-bfloat16": bfloat16.measure,
    SGD.name: SGD.measure,
    "loop": loop.measure,
    "meter": meter.measure,
    "rules": rules.measure,
    "cautious": peers.measure,
    "first-step": first_step.measure,
}

if __name__ == "__main__":
    sys.exit(command.main("cpu", WORKS))
