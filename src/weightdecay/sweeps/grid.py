"""The optimizers of a sweep and the learning rates × weight decays they run at."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from weightdecay.display.near_names import hint
from weightdecay.groups import param_groups
from weightdecay.optim.optimizer import Optimizer
from weightdecay.optim.presets import PRESETS, SGD
from weightdecay.sweeps.task import Grid, Task
from weightdecay.update_rules.equation import Equation
from weightdecay.update_rules.registry import REGISTRY
from weightdecay.validation import geometric

DEFAULT_OPTIMIZERS = ("SGD", "SGDW", "Adam", "AdamW")

_SGD_LR, _ADAM_LR = geometric(2e-3, 0.5, 8), geometric(5e-4, 0.1, 8)
_GRIDS = {
    ("sgd", "coupled"): Grid(_SGD_LR, (0.0, *geometric(1e-3, 1, 7))),
    ("sgd", "decoupled"): Grid(_SGD_LR, (0.0, *geometric(1e-2, 10, 7))),
    ("adam", "coupled"): Grid(_ADAM_LR, (0.0, *geometric(1e-3, 1, 7))),
    ("adam", "decoupled"): Grid(_ADAM_LR, (0.0, *geometric(1e-1, 1e2, 7))),
    ("sgd", "independent"): Grid(_SGD_LR, (0.0, *geometric(1e-4, 1e-1, 7))),
    ("adam", "independent"): Grid(_ADAM_LR, (0.0, *geometric(1e-4, 1e-1, 7))),
}


@dataclass(frozen=True)
class Run:
    """One point of a sweep."""

    optimizer: str
    lr: float
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Choice:
    """An optimizer to sweep: a preset's name, or rules as in "adam+cautious"."""

    name: str
    build: Callable[..., Optimizer]
    lam: str
    """Which key of a parameter group the sweep's weight decay sets."""

    def optimizer(self, model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
        """Return the optimizer of a run: decay on the weights, none on biases and norm gains, momentum 0.9 for sgd."""
        groups = param_groups(model, weight_decay=1.0)  # the same groups for every λ, 0 included
        own = [{**group, "weight_decay": 0.0, self.lam: weight_decay * group["weight_decay"]} for group in groups]
        return self.build(own, lr=lr)

    @property
    def kind(self) -> str:
        """Return "coupled" where λ enters the gradient and "decoupled" where it does not."""
        return "coupled" if self._equation().penalty is not None else "decoupled"

    def lr_tied(self) -> bool:
        """Return whether the decay shrinks every weight by lr·λ, found by trying it on floats with steps of either sign."""
        decay = self._equation().decay
        if set(decay.numbers) != {"eta", "lam"}:
            return False
        kept = {decay.function(1.0, u, eta=0.125, lam=0.5) + 0.125 * u for u in (-1.0, 0.0, 1.0)}
        return kept == {1 - 0.125 * 0.5}

    def rule(self) -> str:
        """Return the rules by name."""
        return str(self._equation())

    def grid(self, task: Task) -> Grid:
        """Return the task's grid for this optimizer, or the built-in one for its family."""
        if self.name in task.grids:
            return task.grids[self.name]
        equation = self._equation()
        family = "sgd" if equation.direction.name == "sgd" else "adam"
        unit = "independent" if equation.decay.name == "independent" else self.kind
        return _GRIDS[family, unit]

    def _equation(self) -> Equation:
        optimizer = self.optimizer(nn.Linear(1, 1, device="meta"), 1.0, 0.0)  # draws no random numbers
        return optimizer.equation(optimizer.param_groups[0])


def choose(name: str) -> Choice:
    """Return the optimizer that a name means: "AdamW", or a direction and a penalty or decay, as in "adam+cautious"."""
    if name in PRESETS:
        preset = PRESETS[name]
        if not preset.has_lambda():
            raise ValueError(f"optimizer {name!r} has no λ to sweep: its decay holds a norm or a bound instead")
        extra: dict[str, Any] = {"momentum": 0.9} if issubclass(preset, SGD) else {}
        return Choice(name, lambda groups, lr: preset(groups, lr=lr, **extra), "weight_decay")
    direction, plus, other = name.partition("+")
    if not plus:
        every = f"there are {', '.join(PRESETS)}, and rules as in adam+cautious (see weightdecay rules)"
        raise ValueError(f"optimizer {name!r} is unknown: {hint(name, PRESETS, otherwise=every)}")
    kinds = [kind for kind in ("penalty", "decay") if other in REGISTRY.of(kind)]
    kind, _, chosen = other.rpartition(":")
    if not kind:
        if len(kinds) > 1:
            raise ValueError(
                f"optimizer {name!r}: {other} is a penalty and a decay; write {direction}+penalty:{other} or +decay:{other}"
            )
        if not kinds:
            known = [name for kind in ("penalty", "decay") for name in REGISTRY.of(kind)]
            meant = hint(other, known, otherwise="see weightdecay rules")
            raise ValueError(f"optimizer {name!r}: {other!r} is neither a penalty nor a decay: {meant}")
        kind = kinds[0]
    if kind not in ("penalty", "decay"):
        raise ValueError(f"optimizer {name!r}: {kind!r} is neither penalty nor decay: {hint(kind, ('penalty', 'decay'))}")
    found = REGISTRY.find("direction", direction)
    rules: dict[str, Any] = {"direction": found.name, kind: REGISTRY.find(kind, chosen).name}  # type: ignore[arg-type]
    if "mu" in found.defaults:
        rules["momentum"] = 0.9
    return Choice(
        name, lambda groups, lr: Optimizer(groups, lr, **rules), "penalty_weight" if kind == "penalty" else "weight_decay"
    )


def runs(choice: Choice, grid: Grid, seed: int) -> Iterator[Run]:
    """Yield every point of an optimizer's grid for one seed."""
    for lr in grid.lr:
        for weight_decay in grid.weight_decay:
            yield Run(choice.name, lr, weight_decay, seed)


def checked(grid: Grid, name: str) -> Grid:
    """Refuse a grid with a value that no run could have."""
    for key, values in grid._asdict().items():
        if not values:
            raise ValueError(f"the grid of {name} has no {key}")
        for value in values:
            if not math.isfinite(value) or value < 0 or (key == "lr" and value == 0):
                raise ValueError(
                    f"{key}={value} in the grid of {name} is not a finite number {'> 0' if key == 'lr' else '≥ 0'}"
                )
        if len(set(values)) != len(values):
            raise ValueError(f"the grid of {name} names a {key} twice")
    return grid


def to_dict(grids: Mapping[str, Grid]) -> dict[str, dict[str, list[float]]]:
    """Return grids as plain data."""
    return {name: {key: list(values) for key, values in grid._asdict().items()} for name, grid in grids.items()}
