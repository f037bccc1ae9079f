"""`weightdecay sweep`: train a task at every learning rate × weight decay."""

import json
import math
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

import click

import weightdecay as wd
from weightdecay.cli.console import Refusal, err, escaped, explained, load, look_in, out, show, users_code
from weightdecay.cli.options import OPTIMIZERS, TASKS
from weightdecay.display.near_names import hint
from weightdecay.validation import geometric

if TYPE_CHECKING:
    from rich.progress import TaskID

    from weightdecay.sweeps import Task

_MOST = 1000


def _numbers(_: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Read "0,1e-3" or "1e-4:1e-1:8" (8 values in equal ratios) or both, joined by commas."""
    if text is None:
        return None
    values: list[float] = []
    for part in text.split(","):
        try:
            if ":" in part:
                first, last, count = part.split(":")
                if not 0 < float(first) < math.inf or not 0 < float(last) < math.inf or int(count) < 1:
                    raise ValueError
                if int(count) > _MOST:
                    raise click.BadParameter(f"{part!r} is more than {_MOST:,} values")
                values += geometric(float(first), float(last), int(count))
            else:
                values.append(float(part))
        except ValueError:
            raise click.BadParameter(f"{part!r} is neither a number nor FIRST:LAST:COUNT with FIRST and LAST above 0") from None
    return tuple(values)


@click.command()
@click.argument("task", metavar="TASK")
@click.option(
    "--out", "folder", type=click.Path(path_type=Path), help="The folder for results and report.  [default: runs/TASK]"
)
@click.option(
    "--optimizer", "-o", "optimizers", multiple=True, metavar="NAME",
    help=f"A preset, or rules as in adam+cautious; may be repeated.  [default: {', '.join(OPTIMIZERS)}]",
)  # fmt: skip
@click.option("--lr", callback=_numbers, metavar="VALUES", help="Learning rates, as 1e-3,1e-2 or 1e-4:1e-1:8.")
@click.option("--weight-decay", callback=_numbers, metavar="VALUES", help="Weight decays, as 0,1e-3:1:7.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="How many seeds.")
@click.option("--app-dir", type=click.Path(exists=True, file_okay=False), help="Look for your module in this folder, too.")
@click.option("--fresh", is_flag=True, help="Throw away what the folder holds, and start over.")
@click.option("--json", "as_json", is_flag=True, help="Print verdict and paths as JSON.")
@click.option("--traceback", "show_traceback", is_flag=True, help="Show where an error in your own task came from.")
def sweep(
    task: str,
    folder: Path | None,
    optimizers: tuple[str, ...],
    lr: tuple[float, ...] | None,
    weight_decay: tuple[float, ...] | None,
    seeds: int,
    app_dir: str | None,
    fresh: bool,
    as_json: bool,
    show_traceback: bool,
) -> None:
    """Train TASK at every learning rate × weight decay, and report what weight decay does.

    TASK is built in (digits, diabetes) or your own, as module:attribute: a weightdecay.Task, or a function that returns one.
    Your module is imported and so runs, as in `weightdecay sweep my_task:task`.

    A sweep that was stopped goes on where it was.
    """
    look_in(app_dir)
    found = _task(task)
    from weightdecay.sweeps import SweepError

    directory = folder or Path("runs") / (re.sub(r"[^\w-]+", "-", found.name).strip("-") or "task")
    watcher = _Watcher()
    try:
        with watcher, redirect_stdout(sys.stderr):  # what a task prints is no result
            result = wd.sweep(
                found,
                directory,
                optimizers=optimizers or OPTIMIZERS,
                lr=lr,
                weight_decay=weight_decay,
                seeds=seeds,
                fresh=fresh,
                watcher=watcher,
            )
    except KeyboardInterrupt:
        err().print(f"stopped; finished runs are kept in {directory}, the same command goes on from there")
        raise SystemExit(130) from None
    except SweepError as error:
        raise Refusal(str(error)) from error
    except Exception as error:
        if show_traceback:
            raise
        raise Refusal(explained(error)) from error
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=1))
        return
    from weightdecay.sweeps.report import best_table

    verdict = result.verdict()
    out().print(best_table(result.rows, result.manifest))
    show("λ is chosen on the validation part, the numbers are of the test part, ± one standard error over seeds", {".+": "dim"})
    show("\n".join(["", verdict.coverage, verdict.summary, *verdict.compared, ""]))
    show(f"report: {result.report} (each optimizer's verdict, heat maps, training curves)")


def _task(name: str) -> "Task":
    """Return a built-in task by its name, or a user's own by module:attribute."""
    if name not in TASKS and not set(name) & set(":./"):
        _refuse_task(name, hint(name, TASKS, otherwise=f"there are {', '.join(TASKS)}, and your own as module:attribute"))
    from weightdecay.sweeps import Task, tasks

    if name in TASKS:
        return tasks.load(name)
    found = load(name, "task")
    if callable(found) and not isinstance(found, Task):
        with users_code(f"task {name!r}: calling it"):
            found = found()
    if not isinstance(found, Task):
        _refuse_task(name, f"it is a {type(found).__name__}, neither a weightdecay.Task nor a function that returns one")
    return found


def _refuse_task(name: str, why: str) -> NoReturn:
    raise Refusal(f"task {name!r}: {why}")


class _Watcher:
    """Shows a sweep's progress: bars in a terminal, a few lines elsewhere."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars: dict[str, TaskID] = {}
        self._done: dict[str, float] = {}
        self._totals: Mapping[str, int] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err(),
            disable=not err().is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def begin(self, totals: Mapping[str, int], done: Mapping[str, int]) -> None:
        """Draw the bars."""
        self._totals = totals
        self._done = {name: float(done.get(name, 0)) for name in totals}
        if sum(done.values()):
            self.note(f"{sum(done.values())} of {sum(totals.values())} runs were finished before")
        for name, total in totals.items():
            self._bars[name] = self._progress.add_task(name, total=total, completed=done.get(name, 0))

    def advance(self, optimizer: str, runs: float) -> None:
        """Move a bar, or print a line at each quarter."""
        before, total = self._done[optimizer], self._totals[optimizer]
        self._done[optimizer] = after = before + runs
        self._progress.update(self._bars[optimizer], completed=round(after, 6))
        quarter = total / 4
        if self._progress.disable and (after + 1e-6) // quarter > (before + 1e-6) // quarter:
            err().print(f"{optimizer}: {after:.0f} of {total} runs")

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(escaped(text), soft_wrap=True)
