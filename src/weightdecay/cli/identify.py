"""`weightdecay identify`: what an optimizer's weight decay really does."""

import ast
import functools
import json
from typing import Any

import click

import weightdecay as wd
from weightdecay.cli.console import Refusal, load, show, users_code
from weightdecay.cli.options import LAWS, Word


def _settings(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """Read "momentum=0.9", "betas=(0.9, 0.99)", "nesterov=True" and "decay=cautious"."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{text!r} is not NAME=VALUE, as in momentum=0.9, nesterov=True or betas=(0.9,0.99)")
        if name in found:
            raise click.BadParameter(f"{name} is set twice")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


@click.command()
@click.argument("optimizer", metavar="MODULE:ATTRIBUTE")
@click.option(
    "--set", "settings", multiple=True, callback=_settings, metavar="NAME=VALUE", help="A keyword, as in momentum=0.9."
)
@click.option("--knob", default="weight_decay", show_default=True, help="The keyword that is λ.")
@click.option("--compiled", is_flag=True, help="Try torch.compile of the step, too: seconds, and a C++ compiler.")
@click.option("--device", default="cpu", show_default=True, help="Where the tensors are, such as cuda.")
@click.option("--expect", type=Word(LAWS), help="Fail, with exit code 1, where the decay is not this one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every number.")
def identify(
    optimizer: str,
    settings: dict[str, Any],
    knob: str,
    compiled: bool,
    device: str,
    expect: str | None,
    as_json: bool,
) -> None:
    """Find out by experiment what an optimizer's weight_decay does.

    For example: `weightdecay identify torch.optim:Adam`, or
    `weightdecay identify torch.optim:SGD --set momentum=0.9 --expect coupled`.
    """
    factory = load(optimizer, "optimizer")
    name = f"{optimizer}({', '.join(f'{key}={value!r}' for key, value in settings.items())})" if settings else optimizer
    made = functools.partial(factory, **settings) if settings and callable(factory) else factory
    with users_code():
        law = wd.identify(made, knob=knob, name=name, compiled=compiled, device=device)
    if as_json:
        click.echo(json.dumps(law.to_dict(), indent=1, ensure_ascii=False))
    else:
        show(str(law), {r"\A.*(?=: )": "bold"})
    if expect is not None:
        from weightdecay.audit.conformance import complaints

        found = [f"{check}: {text}" for check, text in complaints(law, expect)]
        if found:
            raise Refusal(f"{name} is not {expect} as it should be: {'; '.join(found)}")
