"""`weightdecay derive`: a step rewritten as w_t = g·w_{t−1} − η·h."""

import json
from typing import Any

import click

import weightdecay as wd
from weightdecay.cli.console import Refusal, show


def _settings(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """Read "momentum=0.9", "nesterov=true" and "betas=0.9,0.99"."""
    found: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            values = [_LITERALS[part] if part in _LITERALS else float(part) for part in value.lower().split(",")]
        except ValueError:
            values = []
        name = name.strip().replace("-", "_")
        if not name or not values:
            raise click.BadParameter(f"{text!r} is not NAME=NUMBER, as in momentum=0.9, nesterov=true or betas=0.9,0.99")
        if name in found:
            raise click.BadParameter(f"{name} is set twice")
        found[name] = tuple(values) if len(values) > 1 else values[0]
    return found


_LITERALS = {"true": True, "false": False}


@click.command()
@click.argument("direction", required=False)
@click.option("--penalty", metavar="RULE", help="What enters the gradient: l2, l1, …")
@click.option("--decay", metavar="RULE", help="How the weight shrinks beside the step: decoupled, cautious, …")
@click.option(
    "--set", "settings", multiple=True, callback=_settings, metavar="NAME=NUMBER", help="Settle a number, as in momentum=0."
)
@click.option("--list", "list_rules", is_flag=True, help="List what can be put together.")
@click.option("--latex", "as_latex", is_flag=True, help="Print TeX.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def derive(
    direction: str | None,
    penalty: str | None,
    decay: str | None,
    settings: dict[str, Any],
    list_rules: bool,
    as_latex: bool,
    as_json: bool,
) -> None:
    """Rewrite a step as w_t = g·w_{t−1} − η·h, from the rules that run.

    For example: `weightdecay derive adam --penalty l2`, `weightdecay derive AdamW`, or
    `weightdecay derive sgd --decay decoupled --set momentum=0.9`.
    """
    if as_latex and as_json:
        raise click.UsageError("--latex and --json are two ways to print one thing: choose one")
    if list_rules or direction is None:
        if direction is None and (penalty or decay or settings):
            raise click.UsageError("a direction is missing, as in: weightdecay derive adam --penalty l2")
        names = {kind: list(wd.rules().of(kind)) for kind in wd.update_rules.rule.KINDS}
        if as_json:
            click.echo(json.dumps(names, indent=1))
            return
        for kind, known in names.items():
            show(f"{kind:<9}  {', '.join(known)}", {r"\A\w+": "bold"})
        show("\nweightdecay derive DIRECTION [--penalty RULE] [--decay RULE]")
        return
    try:
        found = wd.derive(direction, penalty, decay, **settings)
    except (TypeError, ValueError) as error:
        raise Refusal(str(error)) from error
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        click.echo(found.latex if as_latex else str(found))
