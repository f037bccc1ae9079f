"""`weightdecay rules`: what there is."""

import json

import click
from rich.table import Table

import weightdecay as wd
from weightdecay.cli.console import OUT, escaped
from weightdecay.rule import as_typed


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the rules as JSON.")
def rules(as_json: bool) -> None:
    """List every penalty, direction and decay."""
    if as_json:
        click.echo(json.dumps(wd.rules().to_dict(), indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "rule", "numbers", "what it does"):
        table.add_column(column, overflow="fold")
    for rule in wd.rules().values():
        given = ", ".join(f"{name}={as_typed(value)}" for name, value in rule.defaults.items())
        table.add_row(rule.kind, f"[bold]{rule.name}[/]", given, escaped(rule.summary))
    OUT.print(table)
