"""`weightdecay doctor`: the mistakes with weight decay in a training set-up."""

import json
from pathlib import Path
from typing import Any

import click

from weightdecay.audit.checks import CHECKS
from weightdecay.audit.doctor import doctor as examined
from weightdecay.cli.console import OUT, Refusal, escaped, explained, load

_COLOURS = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}


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
    only: list[str],
    ignore: list[str],
    strict: bool,
    page: Path | None,
    as_json: bool,
    list_checks: bool,
) -> None:
    """Look for mistakes with weight decay in a training set-up; exit with 1 if there is an error.

    The set-up is your own: a function that returns (model, optimizer) or (model, optimizer, scheduler); several optimizers or
    schedulers are lists. For example: `weightdecay --app-dir . doctor train:setup --steps 10000`.
    """
    if list_checks:
        for each in CHECKS.values():
            click.echo(f"{each.id:<4}{each.title}")
        return
    if setup is None:
        raise click.UsageError("a set-up is missing, as in: weightdecay doctor train:setup")
    try:
        report = examined(*_parts(setup), steps=steps, steps_per_epoch=steps_per_epoch, only=only, ignore=ignore)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Refusal(str(error)) from error
    if page is not None:
        from weightdecay.report.examination import write_examination

        try:
            write_examination(page, report, setup)
        except OSError as error:
            raise Refusal(f"{page} cannot be written: {error.strerror or error}") from error
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1, ensure_ascii=False))
    else:
        first, *rest = str(report).split("\n\n")
        OUT.print(f"[bold]{escaped(first)}[/]", soft_wrap=True)
        for paragraph in rest:
            OUT.print(f"\n{_coloured(paragraph)}", soft_wrap=True)
    if report.failed(strict=strict):
        click.get_current_context().exit(1)


def _coloured(text: str) -> str:
    found = escaped(text)
    for word, colour in _COLOURS.items():
        found = found.replace(f" {word}: ", f" [{colour}]{word}[/]: ", 1)
    return found


def _parts(name: str) -> tuple[Any, ...]:
    """Return the user's model, optimizer and, if there is one, scheduler, by module:attribute."""
    found = load(name, "set-up")
    if callable(found):
        try:
            found = found()
        except Exception as error:
            raise Refusal(f"{name}() failed: {explained(error)}") from error
    if not isinstance(found, tuple | list) or len(found) not in (2, 3):
        length = f" of {len(found)}" if isinstance(found, tuple | list) else ""
        raise Refusal(
            f"{name} gives a {type(found).__name__}{length}; let it return (model, optimizer) or (model, optimizer, scheduler)"
            ", with lists of optimizers or schedulers where there are several"
        )
    return tuple(found)
