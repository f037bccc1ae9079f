"""`weightdecay plan`: what the decay of a planned run will do."""

import json
import math
from typing import Any

import click
from rich.table import Table
from torch import nn

from weightdecay.cli.console import OUT, Refusal, escaped
from weightdecay.plan import Plan
from weightdecay.plan import plan as planned
from weightdecay.schedules import SCHEDULES
from weightdecay.sweeps.grid import choose
from weightdecay.units import UNITS

CONVENTIONS = {"torch": "lr·λ", "independent": "λ at the peak lr", "coupled": "lr·λ/(1 − momentum)"}


@click.command()
@click.option("--lr", type=float, required=True, help="The learning rate, at its peak.")
@click.option("--weight-decay", "-w", type=float, required=True, help="λ, in the unit of the convention or optimizer.")
@click.option("--steps", type=int, help="The length of the run in steps; or say --epochs.")
@click.option("--epochs", type=float, help="The length of the run in epochs; needs --steps-per-epoch.")
@click.option("--steps-per-epoch", type=float, help="To say and to see lengths in epochs.")
@click.option("--schedule", type=click.Choice(SCHEDULES), default="constant", show_default=True, help="From the peak on.")
@click.option("--warmup", type=int, default=0, help="Steps of a linear warm-up to the peak.")
@click.option("--final", type=float, default=0.0, show_default=True, help="The share of the peak that the schedule ends at.")
@click.option("--optimizer", "-o", metavar="NAME", help="AdamW, SGDW, SGD, or rules as in adam+independent: whose λ it is.")
@click.option("--convention", type=click.Choice(tuple(CONVENTIONS)), help="Or what λ means.  [default: torch]")
@click.option("--momentum", type=float, default=0.0, help="Of SGD, for the λ of an L2 penalty.")
@click.option("--samples", type=float, help="How many examples there are, for Ridge's α.")
@click.option("--dtype", type=click.Choice(("float32", "bfloat16", "float16")), default="float32", help="Of the weights.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    lr: float,
    weight_decay: float,
    steps: int | None,
    epochs: float | None,
    steps_per_epoch: float | None,
    optimizer: str | None,
    convention: str | None,
    as_json: bool,
    **others: Any,
) -> None:
    """Tell what the decay of a planned run will do, in every unit, before it runs.

    For example: `weightdecay plan --lr 3e-4 -w 0.1 --epochs 10 --steps-per-epoch 1000 --schedule cosine --warmup 500`. What is
    said is of a weight without a gradient.
    """
    if (steps is None) == (epochs is None):
        raise click.UsageError("the length of the run is --steps, or --epochs with --steps-per-epoch: give one of the two")
    if optimizer is not None and convention is not None:
        raise click.UsageError("--optimizer and --convention both say what λ means: give one of the two")
    if steps is None and steps_per_epoch is None:
        raise click.UsageError("--epochs needs --steps-per-epoch")
    try:
        unit = convention or ("torch" if optimizer is None else _convention(optimizer))
        length = steps if steps is not None else _length(epochs or 0.0, steps_per_epoch or 0.0)
        found = planned(lr, weight_decay, length, convention=unit, steps_per_epoch=steps_per_epoch, **others)
    except (TypeError, ValueError) as error:
        raise Refusal(str(error)) from error
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
        return
    _print_plan(found)


def _length(epochs: float, steps_per_epoch: float) -> int:
    if not 0.5 <= epochs * steps_per_epoch < math.inf:
        raise ValueError(f"epochs={epochs:g} of steps_per_epoch={steps_per_epoch:g} are no number of steps")
    return round(epochs * steps_per_epoch)


def _convention(optimizer: str) -> str:
    """Return what λ means to an optimizer, or say why no number tells what it takes."""
    found = choose(optimizer).optimizer(nn.Linear(1, 1, device="meta"), 1.0, 0.0)
    equation = found.equation(found.param_groups[0])
    if equation.penalty is not None:
        if (equation.penalty.name, equation.direction.name) != ("l2", "sgd"):
            raise ValueError(f"{optimizer} is {equation}, which does not take the same share of every weight: no plan tells it")
        return "coupled"
    units = {"decoupled": "torch", "independent": "independent"}
    if equation.decay.name not in units:
        raise ValueError(
            f"{optimizer} is {equation}: only the decays {' and '.join(units)} take the same share of every weight"
        )
    return units[equation.decay.name]


def _print_plan(found: Plan) -> None:
    from weightdecay.report.numerals import setting

    def length(steps: float) -> str:
        if not math.isfinite(steps):
            return "none"
        count = f"{steps:,.0f}" if steps >= 100 else f"{steps:.3g}"
        epochs = f", {steps / found.steps_per_epoch:,.3g} epochs" if found.steps_per_epoch else ""
        return f"{count} step{'' if count == '1' else 's'}{epochs}"

    rises = f" after {found.warmup:,} steps of warm-up" if found.warmup else ""
    ends = f" to {found.final:g} of it" if found.schedule != "constant" and found.final else ""
    OUT.print(
        f"[bold]{length(found.steps)}[/] at lr {setting(found.lr)}, {found.schedule}{ends}{rises}; "
        f"λ {setting(found.weight_decay)} (a step takes {CONVENTIONS[found.convention]})\n",
        soft_wrap=True,
    )
    facts = Table(box=None, pad_edge=False, show_header=False)
    peak = " at the peak lr" if found.schedule != "constant" or found.warmup else ""
    facts.add_row("shrink per step", f"{setting(found.shrink)}{peak}")
    facts.add_row("half-life", f"{length(found.half_life)}{peak}")
    runs = f"; {found.runs:.3g} × the run" if math.isfinite(found.runs) else ""
    facts.add_row("timescale", f"{length(found.timescale.steps)}{peak}{runs}")
    facts.add_row("left at the end", f"{found.remaining:.4g} of a weight")
    facts.add_row("", found.picture())
    if found.lost:
        lost = ", ".join(f"{share:.0%} in {dtype}" for dtype, share in found.lost.items() if share >= 0.005)
        facts.add_row("lost if rounded to nearest", lost or "nothing")
    OUT.print(facts)
    units = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("the same decay as", "value", "which is"):
        units.add_column(column, overflow="fold")
    for unit, value in found.units.items():
        if value is not None:
            units.add_row(unit, setting(value) if math.isfinite(value) else "never", UNITS[unit])
        elif unit == "coupled":
            units.add_row(unit, "none", f"with momentum {found.momentum:g} no L2 shrinks a weight so fast: it would swing")
    OUT.print()
    OUT.print(units)
    for text in found.warnings.values():
        OUT.print(f"\n[bold yellow]warning:[/] {escaped(text)}", soft_wrap=True)
