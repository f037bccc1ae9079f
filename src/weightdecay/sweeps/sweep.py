"""The sweep: every optimizer at every learning rate × weight decay, each finished run kept, a report at the end."""

import datetime
import os
import platform
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from weightdecay.display.version import installed_version
from weightdecay.sweeps import grid as grids
from weightdecay.sweeps import tasks
from weightdecay.sweeps.grid import DEFAULT_OPTIMIZERS, Choice, Run
from weightdecay.sweeps.results import Results, Row, SweepError, key
from weightdecay.sweeps.task import Grid, Task
from weightdecay.sweeps.train import NotStackable, Progress, train_alone, train_stacked

_MOST = 1_000_000


class Watcher(Protocol):
    """What a sweep tells while it runs."""

    def begin(self, totals: Mapping[str, int], done: Mapping[str, int]) -> None:
        """Hear how many runs each optimizer has, and how many were finished before."""

    def advance(self, optimizer: str, runs: float) -> None:
        """Hear that this many more runs are done; parts of a run count as parts."""

    def note(self, text: str) -> None:
        """Hear something that a person should know."""


class _Nobody:
    def begin(self, totals: Mapping[str, int], done: Mapping[str, int]) -> None: ...

    def advance(self, optimizer: str, runs: float) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep: its rows, as in results.jsonl, and its manifest. Prints as the verdict."""

    rows: list[Row]
    manifest: dict[str, Any]
    directory: Path
    report: Path | None

    def verdict(self) -> Any:
        """Return what the data say of weight decay."""
        from weightdecay.sweeps.report import verdict

        return verdict(self.rows, self.manifest)

    def __str__(self) -> str:
        return str(self.verdict())

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict and where the files are, as plain data."""
        report = None if self.report is None else str(self.report)
        return {
            "task": self.manifest["task"],
            "runs": len(self.rows),
            "verdict": self.verdict().to_dict(),
            "results": str(self.directory / "results.jsonl"),
            "report": report,
        }


def sweep(
    task: Task | str,
    out: str | Path,
    *,
    optimizers: Sequence[str] = DEFAULT_OPTIMIZERS,
    lr: Sequence[float] | None = None,
    weight_decay: Sequence[float] | None = None,
    seeds: int = 3,
    report: bool = True,
    fresh: bool = False,
    watcher: Watcher | None = None,
) -> SweepResult:
    """Train a task at every learning rate × weight decay for several optimizers, and write a report.

    A sweep that was stopped, even killed, goes on where it was: finished runs are kept in `out`/results.jsonl.

    Args:
        task: a `Task`, or a built-in one's name ("digits", "diabetes").
        out: the folder for results.jsonl, sweep.json, index.html and the pictures.
        optimizers: presets by name, or rules as in "adam+cautious".
        lr, weight_decay: values for every optimizer, instead of the task's own grid or the built-in one.
        seeds: how many seeds, from 0; a seed decides the data split, the initial weights and the order of the batches.
        report: whether to write the report (needs matplotlib and jinja2).
        fresh: throw away what `out` holds first.
        watcher: is told of the progress.

    Raises:
        SweepError: `out` holds another task's results, is locked by another sweep, or cannot be written.
        ValueError, TypeError: an unknown optimizer, an impossible grid or task.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = sweep("diabetes", out, optimizers=["AdamW"], lr=[1e-2], weight_decay=[0, 1], seeds=1, report=False)
    >>> [row["optimizer"] for row in result.rows]
    ['AdamW', 'AdamW']
    """
    task = tasks.load(task) if isinstance(task, str) else task
    watcher = watcher or _Nobody()
    optimizers = [optimizers] if isinstance(optimizers, str) else optimizers
    for name in task.grids:
        grids.choose(name)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise ValueError(f"seeds={seeds!r} is not a whole number of at least 1")
    choices = [grids.choose(name) for name in dict.fromkeys(optimizers)]
    if not choices:
        raise ValueError("a sweep needs at least one optimizer")
    chosen = {choice.name: _grid(choice, task, lr, weight_decay) for choice in choices}
    count = seeds * sum(len(grid.lr) * len(grid.weight_decay) for grid in chosen.values())
    if count > _MOST:
        raise ValueError(f"a sweep of {count:,} runs is more than {_MOST:,}: give fewer values or seeds (seeds={seeds})")
    directory = Path(out)
    with Results(directory, task.fingerprint(), fresh=fresh) as results:
        manifest = _manifest(task, choices, chosen, seeds)
        results.describe(manifest)
        wanted = {run for choice in choices for seed in range(seeds) for run in grids.runs(choice, chosen[choice.name], seed)}
        finished = {key(row) for row in results.rows} & wanted
        watcher.begin(_count(wanted), _count(finished))
        _Crew(task, results, manifest["versions"], watcher).train(_stacks(choices, chosen, seeds, finished))
        rows = sorted((row for row in results.rows if key(row) in wanted), key=lambda row: list(chosen).index(row["optimizer"]))
        page = None
        if report:
            from weightdecay.sweeps.report import write_report

            watcher.note("writing the report")
            try:
                page = write_report(directory, rows, manifest)
            except OSError as error:
                raise SweepError(f"cannot write the report to {directory}: {error.strerror}; all runs are kept") from error
    return SweepResult(rows, manifest, directory, page)


def _grid(choice: Choice, task: Task, lr: Sequence[float] | None, weight_decay: Sequence[float] | None) -> Grid:
    own = choice.grid(task)
    lrs = own.lr if lr is None else _values("lr", lr)
    decays = own.weight_decay if weight_decay is None else _values("weight_decay", weight_decay)
    return grids.checked(Grid(lrs, decays), choice.name)


def _values(key: str, values: Sequence[float] | float) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in (values if isinstance(values, Iterable) else [values]))
    except (TypeError, ValueError):
        raise TypeError(f"{key}={values!r} is neither a number nor a list of numbers") from None


def _stacks(
    choices: Sequence[Choice], chosen: Mapping[str, Grid], seeds: int, finished: set[Run]
) -> Iterator[tuple[Choice, list[Run]]]:
    """Yield what is still to do, in stacks of one optimizer and one seed, a whole grid before the next seed."""
    for seed in range(seeds):
        for choice in choices:
            runs = [run for run in grids.runs(choice, chosen[choice.name], seed) if run not in finished]
            if runs:
                yield choice, runs


def _count(runs: set[Run]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.optimizer] = counts.get(run.optimizer, 0) + 1
    return counts


def _manifest(task: Task, choices: Sequence[Choice], chosen: Mapping[str, Grid], seeds: int) -> dict[str, Any]:
    return {
        "task": task.name,
        "description": task.description,
        "metric": task.metric_name,
        "goal": task.goal,
        "optimizers": [
            {"name": choice.name, "rule": choice.rule(), "kind": choice.kind, "lr_tied": choice.lr_tied()} for choice in choices
        ],
        "grid": grids.to_dict(chosen),
        "seeds": list(range(seeds)),
        "steps": task.steps,
        "decay_unit": "as the page of each rule says; with the decay called decoupled, a step shrinks a weight by lr·λ",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "weightdecay": installed_version()},
        "machine": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}, {platform.system()}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


class _Stopped(Exception):  # noqa: N818
    """The sweep was interrupted; a worker's stack is of no use any more."""


class _Crew:
    """Trains stacks side by side, one thread each: small models keep one core busy, and waste the second."""

    def __init__(self, task: Task, results: Results, versions: dict[str, str], watcher: Watcher) -> None:
        self.task, self.results, self.versions, self.watcher = task, results, versions, watcher
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.alone: dict[str, str] = {}
        """The optimizers whose runs cannot be stacked, and why."""

    def train(self, stacks: Iterator[tuple[Choice, list[Run]]]) -> None:
        """Train all stacks; what is finished is in the results, also when this raises."""
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for future in as_completed([pool.submit(self._stack, choice, runs) for choice, runs in stacks]):
                future.result()
        finally:
            self.stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # the workers' 1 reaches parts of torch that are global

    def _stack(self, choice: Choice, runs: Sequence[Run]) -> None:
        if choice.name not in self.alone:
            try:
                self._keep(train_stacked(self.task, choice, runs, self._teller(choice, len(runs)), self.lock))
                return
            except NotStackable as reason:
                with self.lock:
                    if str(reason) not in self.alone.values():
                        self.watcher.note(f"{self.task.name} cannot be stacked, its runs go one by one: {reason}")
                    self.alone[choice.name] = str(reason)
        for run in runs:
            self._keep([train_alone(self.task, choice, run, self._teller(choice, 1), self.lock)])

    def _keep(self, rows: Sequence[Row]) -> None:
        with self.lock:
            self.results.append([{**row, "versions": self.versions} for row in rows])

    def _teller(self, choice: Choice, runs: int) -> Progress:
        told = 0.0

        def tell(share: float) -> None:
            nonlocal told
            if self.stop.is_set():
                raise _Stopped
            with self.lock:
                self.watcher.advance(choice.name, (share - told) * runs)
            told = share

        return tell
