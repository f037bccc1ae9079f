"""`weightdecay groups`: which parameters of a model decay, and why."""

import json
from typing import TYPE_CHECKING, Any

import click

import weightdecay as wd
from weightdecay.cli.console import Refusal, load, show, users_code
from weightdecay.cli.options import STYLES, Word

if TYPE_CHECKING:
    from torch import nn


@click.command()
@click.argument("model", required=False, metavar="MODULE:ATTRIBUTE")
@click.option("--weight-decay", "-w", type=float, default=0.1, show_default=True, help="λ of what decays.")
@click.option("--style", type=Word(STYLES), default="weightdecay", show_default=True, help="Whose choices.")
@click.option("--diff", "other", type=Word(STYLES), help="Show what this style would do otherwise, alone.")
@click.option("--all", "every", is_flag=True, help="Give every tensor a line: else layers of one kind share one.")
@click.option("--roles", "list_roles", is_flag=True, help="List the roles that a parameter can have.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def groups(
    model: str | None, weight_decay: float, style: str, other: str | None, every: bool, list_roles: bool, as_json: bool
) -> None:
    """Print which parameters of a model decay, and why.

    The model is your own: a module, or a function or class that returns one when it is called. For example:
    `weightdecay groups train:make_model --diff hf`.
    """
    if list_roles:
        from weightdecay.groups import ROLES

        _print(ROLES, as_json)
        return
    if model is None:
        raise click.UsageError("a model is missing, as in: weightdecay groups train:make_model")
    made = _model(model)
    with users_code():
        found = wd.param_groups(made, weight_decay, style=style)
    table = found if other is None else found.diff(other)
    _print(table, as_json, table.table(every=every))


def _print(table: Any, as_json: bool, text: str = "") -> None:
    if as_json:
        click.echo(json.dumps(table.to_dict(), indent=1, ensure_ascii=False))
    else:
        show(text or str(table), {r"\A.*": "bold"})


def _model(name: str) -> "nn.Module":
    """Return a user's model by module:attribute."""
    from torch import nn

    found = load(name, "model")
    if callable(found) and not isinstance(found, nn.Module):
        with users_code(f"{name}()"):
            found = found()
    if not isinstance(found, nn.Module):
        raise Refusal(f"{name} is a {type(found).__name__}; name a torch.nn.Module, or a function that returns one")
    return found
