"""What a user provides to have weight decay tuned: a model, data, a loss and a metric."""

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from weightdecay.optim.schedules import cosine

Pair = tuple[Tensor, Tensor]


class Data(NamedTuple):
    """Inputs and targets, (n, …) each: to train on, to choose hyper-parameters by, and to report."""

    train: Pair
    valid: Pair
    test: Pair


class Grid(NamedTuple):
    """The learning rates and weight decays of one optimizer."""

    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]


@dataclass(frozen=True)
class Task:
    """Describe a training job that a sweep can run many times.

    Args:
        name: what results and reports call it.
        model: makes a new model; torch's global seed is set before each call.
        data: makes the data of one seed, as `Data(train=(x, y), valid=(x, y), test=(x, y))`.
        loss: (output, target) → the scalar to minimise.
        metric: (output, target) → the scalar to choose by; the function's name is the metric's name in the results.
        goal: "max" where more of the metric is better, "min" where less is.
        steps, batch_size: the length of a run. An epoch is a random order of the training set; a short last batch is dropped.
        schedule: (step from 0, steps) → share of the peak lr.
        grids: learning rates and weight decays by optimizer, where the built-in ones do not fit.
        description: a sentence on the data, for the report.

    Models are stacked where torch.func can do that: all runs of an optimizer advance together. What it cannot stack (the
    running statistics of batch norm, for one) runs one by one. Dropout draws from torch's global random state, which
    stacks share: results with it differ a little from sweep to sweep.

    >>> import torch
    >>> def data(seed):
    ...     x = torch.randn(96, 4, generator=torch.Generator().manual_seed(seed))
    ...     y = x.sum(1, keepdim=True)
    ...     return Data((x[:32], y[:32]), (x[32:64], y[32:64]), (x[64:], y[64:]))
    >>> task = Task("sum", lambda: nn.Linear(4, 1), data, nn.functional.mse_loss, nn.functional.l1_loss, goal="min")
    >>> task.metric_name
    'l1_loss'
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[int], Data]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], Tensor]
    goal: Literal["max", "min"] = "max"
    steps: int = 240
    batch_size: int = 50
    schedule: Callable[[int, int], float] = cosine
    grids: Mapping[str, Grid] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"name={self.name!r} of a task is not a text")
        if self.goal not in ("max", "min"):
            raise ValueError(f'goal={self.goal!r} of task {self.name!r} is neither "max" nor "min"')
        for key in ("steps", "batch_size"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{key}={value!r} of task {self.name!r} is not a whole number of at least 1")
        for key in ("model", "data", "loss", "metric", "schedule"):
            if not callable(getattr(self, key)):
                raise TypeError(f"{key} of task {self.name!r} is not callable")

        if self.metric_name == "loss" and self.metric is not self.loss:
            raise ValueError(f"the metric of task {self.name!r} is called loss, as the loss is: give the function another name")

    @property
    def metric_name(self) -> str:
        """Return what the metric is called in results."""
        return str(getattr(self.metric, "__name__", "metric")).strip("<>")

    def checked_data(self, seed: int) -> Data:
        """Return the data of a seed, or say what is wrong with it."""
        try:
            data = Data(*self.data(seed))
            sizes = {part: (len(x), len(y)) for part, (x, y) in data._asdict().items()}
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"data({seed}) of task {self.name!r} is not Data(train=(x, y), valid=(x, y), test=(x, y)): {error}"
            ) from error
        for part, (inputs, targets) in sizes.items():
            if inputs != targets or inputs == 0:
                raise ValueError(f"task {self.name!r}: {part} has {inputs} inputs and {targets} targets")
        if sizes["train"][0] < self.batch_size:
            raise ValueError(f"task {self.name!r}: batch_size={self.batch_size} of only {sizes['train'][0]} training examples")
        return data

    def fingerprint(self) -> dict[str, Any]:
        """Return what makes results comparable: the settings, and a hash of the task's code and of the files that hold it."""
        code = hashlib.sha256()
        for function in (self.model, self.data, self.loss, self.metric, self.schedule):
            code.update(repr(_described(function)).encode())
        return {
            "task": self.name,
            "metric": self.metric_name,
            "goal": self.goal,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "code": code.hexdigest()[:16],
        }


def _described(value: Any, depth: int = 0) -> Any:
    """Return plain data that change when what a function computes changes: its code, its file, what it closes over."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if depth > 4:  # deep enough for partials of partials; a cycle of closures must end somewhere
        return type(value).__qualname__
    if isinstance(value, tuple | list | frozenset | set):
        return [_described(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return [(str(key), _described(item, depth + 1)) for key, item in value.items()]
    if isinstance(value, functools.partial):
        return [_described(part, depth + 1) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, types.CodeType):
        return [value.co_code.hex(), value.co_names, [_described(const, depth + 1) for const in value.co_consts]]
    if isinstance(value, types.MethodType):
        return [_described(value.__func__, depth + 1), _described(vars(value.__self__), depth + 1)]
    if isinstance(value, types.FunctionType):
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, closed)
        return [value.__qualname__, _file(value), *(_described(part, depth + 1) for part in parts)]
    if isinstance(value, type):
        return [value.__qualname__, _file(value)]
    return [type(value).__qualname__, _file(type(value))]


def _file(code: Any) -> str:
    """Return a hash of the file in which a user's function or class stands; an installed library's is its own business."""
    try:
        path = Path(inspect.getsourcefile(code) or "")
    except TypeError:
        return ""
    if not path.is_file() or "site-packages" in path.parts:
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()
