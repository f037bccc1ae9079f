"""`weightdecay rules`: what there is."""

import json

import click

import weightdecay as wd
from weightdecay.cli.console import show


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the rules as JSON.")
def rules(as_json: bool) -> None:
    """List every penalty, direction and decay."""
    if as_json:
        click.echo(json.dumps(wd.rules().to_dict(), indent=1))
        return
    show(str(wd.rules()), {r"\A.*": "bold", r"(?m)(?<=^penalty    )\w+|(?<=^direction  )\w+|(?<=^decay      )\w+": "bold"})
