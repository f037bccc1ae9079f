"""What a rule costs: every registered penalty and decay against plain AdamW."""

from collections.abc import Iterator
from typing import Any

import weightdecay as wd
from bench import values
from bench.result import Check, Result
from bench.steps import Make, ours, warmed_up
from bench.timing import Options, race, stepping
from bench.values import ALLOWED, DECAY, LR, MI, ULPS, WARM_UP
from weightdecay.update_rules.reductions import REDUCTIONS

_SHAPES = values.one(16 * MI)
_PLAIN = "wd.AdamW"
_BYTES = 28
"""What AdamW moves per float32 weight."""


def measure(options: Options) -> Iterator[Result]:
    """Time each penalty and each decay with Adam's direction."""
    makers: dict[str, Make] = {_PLAIN: ours(wd.AdamW, lr=LR, weight_decay=DECAY)}
    limits: dict[str, float] = {}
    checks = []
    for rule in wd.rules().values():
        if rule.kind == "direction":
            continue
        name, arguments = f"{rule.kind} {rule.name}", _arguments(rule)
        makers[name] = ours(wd.Optimizer, **arguments)
        limits[name] = _limit(rule)
        checks.append(_same_on_both_backends(name, arguments))
    result = Result(
        "rules", "every penalty and decay with Adam, float32, one tensor of 16 Mi", _PLAIN, checks=checks,
        facts={"elements": values.count(_SHAPES), "tensors": 1},
    )  # fmt: skip
    found = warmed_up(makers, _SHAPES)
    raced = race({name: stepping(step) for name, step in found.steps.items()}, options.rounds)
    result.seconds, result.others = raced.seconds["step"], raced.others
    result.first = found.first
    for name, limit in limits.items():
        result.demand(name, limit)
    yield result


def _limit(rule: Any) -> float:
    """Return how much longer than plain AdamW a rule may take: it reads more, passes more often or computes more."""
    if rule.name == "half_threshold":
        return 3.5  # five steps of Newton's for every weight
    reads = (_BYTES + sum(4 for each in rule.keeps if each.per_element)) / _BYTES
    passes = 1 + bool(rule.reductions) + any(REDUCTIONS[name].norm for name in rule.reductions)
    return round(1.15 * reads * passes + ("power" in rule.function.__code__.co_names and not rule.reductions), 2)


def _arguments(rule: Any) -> dict[str, Any]:
    """Return what makes an optimizer of Adam's direction and one rule."""
    key = {"penalty": "penalty_weight", "decay": "weight_decay"}[rule.kind]
    strength = {key: DECAY} if "lam" in rule.numbers else {}
    return {"lr": LR, "direction": "adam", rule.kind: rule.name, **strength}


def _same_on_both_backends(name: str, arguments: dict[str, Any]) -> Check:
    """Compare the kernel's weights with those that torch's operations make of the same rule."""
    makers = {backend: ours(wd.Optimizer, backend=backend, **arguments) for backend in ("cpu", "eager")}
    found = warmed_up(makers, values.one(2**16 + 3))
    apart = values.ulps_apart(found.weights("cpu"), found.weights("eager"))
    return Check(f"{name}: backend cpu and eager after {WARM_UP} steps", apart, ALLOWED, ULPS)
