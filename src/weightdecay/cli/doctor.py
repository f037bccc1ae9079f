"""`weightdecay doctor`: the mistakes with weight decay in a training set-up."""

import json
from pathlib import Path
from typing import Any

import click

import weightdecay as wd
from weightdecay.cli.console import Refusal, load, show, users_code
from weightdecay.cli.options import CHECKS

_STYLES = {
    r"\A.*": "bold",
    r"(?m)^D\d+ +error": "bold red",
    r"(?m)^D\d+ +warning": "bold yellow",
    r"(?m)^D\d+ +info": "bold cyan",
}


def _ids(context: click.Context, option: click.Parameter, text: str | None) -> list[str]:
    """Read "D1,D3"."""
    found = [each.strip().upper() for each in (text or "").split(",") if each.strip()]
    for each in found:
        if each not in CHECKS:
            raise click.BadParameter(f"{each!r} is no check: there are {', '.join(CHECKS)}")
    return found


@click.command()
@click.argument("setup", required=False, metavar="MODULE:ATTRIBUTE")
@click.option("--steps", type=click.IntRange(min=1), help="The length of the run in steps.")
@click.option("--steps-per-epoch", type=float, help="The steps of an epoch, for a scheduler that counts epochs.")
@click.option(
    "--pretrained/--from-scratch",
    default=None,
    help="Whether the weights were trained before; else frozen layers and norms tell it.",
)
@click.option("--only", callback=_ids, metavar="D1,D3", help="Make these checks alone.")
@click.option("--ignore", callback=_ids, metavar="D9", help="Leave these checks out.")
@click.option("--strict", is_flag=True, help="Fail on warnings, too.")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as a page, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--checks", "list_checks", is_flag=True, help="List the checks.")
def doctor(
    setup: str | None,
    steps: int | None,
    steps_per_epoch: float | None,
    pretrained: bool | None,
    only: list[str],
    ignore: list[str],
    strict: bool,
    page: Path | None,
    as_json: bool,
    list_checks: bool,
) -> None:
    """Look for mistakes with weight decay in a training set-up; exit with 1 if there is an error.

    The set-up is your own: a function that returns (model, optimizer) or (model, optimizer, scheduler); several optimizers or
    schedulers are lists. For example: `weightdecay doctor train:setup --steps 10000`.
    """
    if list_checks:
        from weightdecay.audit.doctor.checks import CHECKS as ALL

        show("\n".join(f"{each.id:<4}{each.title}" for each in ALL.values()))
        return
    if setup is None:
        raise click.UsageError("a set-up is missing, as in: weightdecay doctor train:setup")
    parts = _parts(setup)
    with users_code():
        report = wd.doctor(
            *parts, steps=steps, steps_per_epoch=steps_per_epoch, only=only, ignore=ignore, pretrained=pretrained
        )
    if page is not None:
        from weightdecay.audit.doctor.page import write_examination

        try:
            write_examination(page, report, setup)
        except OSError as error:
            raise Refusal(f"{page} cannot be written: {error.strerror or error}") from error
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1, ensure_ascii=False))
    else:
        show(report.text(), _STYLES, verbatim=" " * 7)  # where the code of a cure starts
    if report.failed(strict=strict):
        click.get_current_context().exit(1)


def _parts(name: str) -> tuple[Any, ...]:
    """Return the user's model, optimizer and, if there is one, scheduler, by module:attribute."""
    found = load(name, "set-up")
    if callable(found):
        with users_code(f"{name}()"):
            found = found()
    if not isinstance(found, tuple | list) or len(found) not in (2, 3):
        length = f" of {len(found)}" if isinstance(found, tuple | list) else ""
        raise Refusal(
            f"{name} gives a {type(found).__name__}{length}; let it return (model, optimizer) or (model, optimizer, scheduler)"
            ", with lists of optimizers or schedulers where there are several"
        )
    return tuple(found)
