"""Trains the runs of a sweep: all of one optimizer and seed together as a stack of models, or one by one.

Both ways start from the same weights, see the same batches and apply the same rules; a stacked run is the run alone.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from weightdecay.backends import eager
from weightdecay.groups import param_groups
from weightdecay.optim.optimizer import Optimizer
from weightdecay.sweeps.grid import Choice, Run
from weightdecay.sweeps.task import Data, Pair, Task

Row = dict[str, Any]
Record = dict[str, list[float]]
"""What is measured, by name, for every run that is trained together."""
Progress = Callable[[float], None]
RECORDS = 8
"""How many times a run is measured after its start; the last time is its result."""
_CURVES = ("train", "valid")
_NO_LOCK = nullcontext()


def _silent(_: float) -> None:
    pass


class NotStackable(Exception):  # noqa: N818
    """Say why torch.func cannot run many copies of this model at once."""


def train_stacked(
    task: Task, choice: Choice, runs: Sequence[Run], progress: Progress = _silent, lock: AbstractContextManager[Any] = _NO_LOCK
) -> list[Row]:
    """Train runs that share an optimizer and a seed as one stack of models, and return their results in order.

    `lock` is held while torch's global random state is in use.

    Raises:
        NotStackable: the model cannot be stacked. Nothing has been trained.
        Exception: what the task's own functions raise on a single model.
    """
    with lock:
        model, data = begin(task, runs[0].seed)
    stack = Stack(task, model, choice, runs)
    before = {name: (id(buffer), buffer._version) for name, buffer in model.named_buffers()}
    try:
        stack.gradients(*(part[: task.batch_size] for part in data.train))
        stack.measured(data, ("valid",))
    except Exception as error:
        try_alone(task, model, data)
        raise NotStackable(str(error).strip().split("\n")[0]) from error
    for name, buffer in model.named_buffers():
        if (id(buffer), buffer._version) != before.get(name):
            raise NotStackable(f"the forward pass changes the buffer {name!r}, which all copies would share")
    history = train(task, stack, data, runs[0].seed, progress)
    return [
        _row(task, run, [(step, {key: values[i] for key, values in record.items()}) for step, record in history], stacked=True)
        for i, run in enumerate(runs)
    ]


def try_alone(task: Task, model: nn.Module, data: Data) -> None:
    """Take one batch through a copy of the model as a user would: an error of the task's own comes out as what it is."""
    model = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        x, y = (part[: task.batch_size] for part in data.train)
        task.loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        model.eval()
        with torch.no_grad():
            x, y = data.valid
            task.metric(model(x), y)


def train_alone(
    task: Task, choice: Choice, run: Run, progress: Progress = _silent, lock: AbstractContextManager[Any] = _NO_LOCK
) -> Row:
    """Train one run with the optimizer as a user would, and return its result."""
    with lock:
        model, data = begin(task, run.seed)
    history = train(task, Alone(task, model, choice, run), data, run.seed, progress)
    single = [(step, {key: values[0] for key, values in record.items()}) for step, record in history]
    return _row(task, run, single, stacked=False)


def train(
    task: Task, trainee: "Stack | Alone", data: Data, seed: int, progress: Progress = _silent
) -> list[tuple[int, Record]]:
    """Take a trainee through all steps, and return what was measured on the way, by step."""
    history = [(0, trainee.measured(data, _CURVES))]
    for step, (x, y) in enumerate(_batches(data.train, task, seed), 1):
        trainee.advance(x, y, task.schedule(step - 1, task.steps))
        if step == task.steps:  # the test part is measured where nothing more can be chosen by it
            history.append((step, trainee.measured(data, Data._fields)))
        elif step % max(task.steps // RECORDS, 1) == 0:
            history.append((step, trainee.measured(data, _CURVES)))
        progress(step / task.steps)
    return history


class Alone:
    """One model and its optimizer, as a user would train them."""

    def __init__(self, task: Task, model: nn.Module, choice: Choice, run: Run) -> None:
        self.task, self.model, self.lr = task, model, run.lr
        self.optimizer = choice.optimizer(model, run.lr, run.weight_decay)
        self.decayed = _decayed(model)

    def advance(self, x: Tensor, y: Tensor, share: float) -> None:
        """Do one step at this share of the peak learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * share
        self.optimizer.zero_grad()
        self.task.loss(self.model(x), y).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    @torch.no_grad()
    def measured(self, data: Data, parts: Sequence[str]) -> Record:
        """Return the loss and metric on these parts of the data, and the norm of the decayed weights."""
        self.model.eval()
        record: Record = {}
        for part in parts:
            x, y = getattr(data, part)
            output = self.model(x)
            record[f"{part}_loss"] = [float(self.task.loss(output, y))]
            record[f"{part}_{self.task.metric_name}"] = [float(self.task.metric(output, y))]
        self.model.train()
        params = dict(self.model.named_parameters())
        record["weight_norm"] = [sum(float(params[name].square().sum()) for name in self.decayed) ** 0.5]
        return record


class Stack:
    """Many copies of a model with hyper-parameters of their own; every tensor has the copies along its first dimension."""

    def __init__(self, task: Task, model: nn.Module, choice: Choice, runs: Sequence[Run]) -> None:
        self.task, self.model = task, model
        optimizers = [choice.optimizer(model, run.lr, run.weight_decay) for run in runs]
        first = optimizers[0]
        self.equations = [first.equation(group) for group in first.param_groups]
        whole = {equation.direction.name for equation in self.equations if equation.direction.whole}
        if whole:
            raise NotStackable(f"the direction {', '.join(whole)} sees whole tensors")
        shared = {equation.decay.name for equation in self.equations if equation.decay.shared}
        if shared:
            raise NotStackable(f"the decay {', '.join(shared)} asks for a number of all tensors of a model")
        rules = {rule for equation in self.equations for rule in equation.rules}
        keeping = sorted(rule.name for rule in rules if any(not kept.per_element or kept.start != 0 for kept in rule.keeps))
        if keeping:
            raise NotStackable(f"{', '.join(keeping)} keeps more than moments")
        self.numbers = [_stacked_numbers(optimizers, index) for index in range(len(first.param_groups))]
        place = {id(p): index for index, group in enumerate(first.param_groups) for p in group["params"]}
        self.group = {name: place[id(p)] for name, p in model.named_parameters() if id(p) in place}
        self.decayed = _decayed(model)
        copies = len(runs)
        self.params = {
            name: p.detach().expand(copies, *p.shape).clone() for name, p in model.named_parameters() if name in self.group
        }
        self.state = {
            name: {key: torch.zeros_like(p) for key in self.equations[self.group[name]].direction.state}
            for name, p in self.params.items()
        }
        self.t = 0
        self._gradients = vmap(grad(self._loss), in_dims=(0, None, None), randomness="different")
        self._measure = vmap(self._loss_and_metric, in_dims=(0, None, None), randomness="different")

    def _loss(self, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.task.loss(functional_call(self.model, params, (x,)), y)

    def _loss_and_metric(self, params: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        output = functional_call(self.model, params, (x,))
        return self.task.loss(output, y), self.task.metric(output, y)

    def gradients(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return every copy's gradient on one batch."""
        found: dict[str, Tensor] = self._gradients(self.params, x, y)
        return found

    def advance(self, x: Tensor, y: Tensor, share: float) -> None:
        """Advance every copy by its own hyper-parameters, at this share of its peak learning rate."""
        self.t += 1
        gradients = self.gradients(x, y)
        for name, w in self.params.items():
            index = self.group[name]
            numbers = {
                kind: {key: _at(key, value, share, self.t, w) for key, value in given.items()}
                for kind, given in self.numbers[index].items()
            }
            self.params[name], self.state[name] = eager.step(
                self.equations[index], numbers, {"w": w, "g": gradients[name], **self.state[name]}, stacked=True
            )

    @torch.no_grad()
    def measured(self, data: Data, parts: Sequence[str]) -> Record:
        """Return every copy's loss and metric on these parts of the data, and the norm of its decayed weights."""
        self.model.eval()
        record: Record = {}
        for part in parts:
            x, y = getattr(data, part)
            loss, metric = self._measure(self.params, x, y)
            record[f"{part}_loss"] = loss.tolist()
            record[f"{part}_{self.task.metric_name}"] = metric.tolist()
        self.model.train()
        squares = [self.params[name].flatten(1).square().sum(1) for name in self.decayed]
        record["weight_norm"] = torch.stack(squares).sum(0).sqrt().tolist() if squares else [0.0] * len(loss)
        return record


def _stacked_numbers(optimizers: Sequence[Optimizer], index: int) -> dict[str, dict[str, Any]]:
    """Return one group's numbers of every optimizer: a float where all agree, else a tensor with one number per optimizer."""
    all_numbers = [optimizer.numbers(optimizer.param_groups[index], t=1) for optimizer in optimizers]
    stacked: dict[str, dict[str, Any]] = {}
    for kind, given in all_numbers[0].items():
        columns = {key: torch.tensor([float(n[kind][key]) for n in all_numbers], dtype=torch.float64) for key in given}
        stacked[kind] = {key: column[0].item() if (column == column[0]).all() else column for key, column in columns.items()}
    return stacked


def _at(key: str, value: Any, share: float, t: int, w: Tensor) -> Any:
    """Return a number as it stands at this step, shaped to meet the stacked tensor w."""
    if key == "t":
        return t
    if key == "eta":
        value = value * share
    return value.to(w.dtype).view(-1, *[1] * (w.ndim - 1)) if isinstance(value, Tensor) else value


def _decayed(model: nn.Module) -> list[str]:
    """Return the names of the parameters that a sweep's weight decay reaches."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups(model, weight_decay=1.0, names=False)
    return [names[id(p)] for group in groups if group["weight_decay"] > 0 for p in group["params"]]


def begin(task: Task, seed: int) -> tuple[nn.Module, Data]:
    """Return the model and the data that every run of a seed starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = copy.deepcopy(task.model())  # a factory may return the same model each time
    return model.train(), task.checked_data(seed)


def _batches(train: Pair, task: Task, seed: int) -> Iterator[Pair]:
    """Yield the batches of a run, in an order that depends on the seed alone."""
    x, y = train
    random = torch.Generator().manual_seed(seed)
    per_epoch = len(x) // task.batch_size
    for step in range(task.steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(x), generator=random)
        chosen = order[step % per_epoch * task.batch_size :][: task.batch_size]
        yield x[chosen], y[chosen]


def _row(task: Task, run: Run, history: Sequence[tuple[int, Mapping[str, float]]], *, stacked: bool) -> Row:
    """Return the line of results.jsonl; what is not finite becomes null, and a run that ends so has diverged."""
    last = history[-1][1]
    diverged = not math.isfinite(last["train_loss"])
    final = {key: None if diverged else _finite(value) for key, value in last.items()}
    curves = ("train_loss", "valid_loss", f"valid_{task.metric_name}", "weight_norm")
    return {
        "task": task.name,
        **asdict(run),
        "steps": task.steps,
        **final,
        "initial_weight_norm": history[0][1]["weight_norm"],
        "diverged": diverged,
        "stacked": stacked,
        "history": {
            "step": [step for step, _ in history],
            **{key: [_finite(record[key]) for _, record in history] for key in dict.fromkeys(curves)},
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
