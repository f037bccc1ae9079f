"""`weightdecay plan`: what the decay of a planned run will do."""

import json
import math
from typing import Any

import click

import weightdecay as wd
from weightdecay.cli.console import Refusal, show
from weightdecay.cli.options import CONVENTIONS, DTYPES, SCHEDULES, Word


@click.command()
@click.option("--lr", type=float, required=True, help="The learning rate, at its peak.")
@click.option("--weight-decay", "-w", type=float, required=True, help="λ, in the unit of the convention or optimizer.")
@click.option("--steps", type=int, help="The length of the run in steps; or say --epochs.")
@click.option("--epochs", type=float, help="The length of the run in epochs; needs --steps-per-epoch.")
@click.option("--steps-per-epoch", type=float, help="To say and to see lengths in epochs.")
@click.option("--schedule", type=Word(SCHEDULES), default="constant", show_default=True, help="From the peak on.")
@click.option("--warmup", type=int, default=0, help="Steps of a linear warm-up to the peak.")
@click.option("--final", type=float, default=0.0, show_default=True, help="The share of the peak that the schedule ends at.")
@click.option("--optimizer", "-o", metavar="NAME", help="AdamW, SGDW, SGD, or rules as in adam+independent: whose λ it is.")
@click.option("--convention", type=Word(CONVENTIONS), help="Or what λ means.  [default: torch]")
@click.option("--momentum", type=float, default=0.0, help="Of SGD, for the λ of an L2 penalty.")
@click.option("--samples", type=float, help="How many examples there are, for Ridge's α.")
@click.option("--dtype", type=Word(DTYPES), default="float32", help="Of the weights.")
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
        found = wd.plan(lr, weight_decay, length, convention=unit, steps_per_epoch=steps_per_epoch, **others)
    except (TypeError, ValueError) as error:
        raise Refusal(str(error)) from error
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        show(str(found), {r"\A.*(?=;)": "bold", r"(?m)^the same decay as.*$": "bold", r"(?m)^warning:": "bold yellow"})


def _length(epochs: float, steps_per_epoch: float) -> int:
    if not 0.5 <= epochs * steps_per_epoch < math.inf:
        raise ValueError(f"epochs={epochs:g} of steps_per_epoch={steps_per_epoch:g} are no number of steps")
    return round(epochs * steps_per_epoch)


def _convention(optimizer: str) -> str:
    """Return what λ means to an optimizer, or say why no number tells what it takes."""
    from torch import nn

    from weightdecay.sweeps.grid import choose

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
