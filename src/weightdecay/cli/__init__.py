"""The command line of this package: a module here for each command.

Results go to standard output; progress, errors and whatever a user's own code prints go to standard error. Exit codes: 0 done,
1 refused with a reason, 2 a wrong command line, 130 interrupted. Help, the version and errors of usage import no torch.
"""

import io
import sys
from importlib import import_module
from typing import Any, ClassVar

try:
    import click
except ImportError as error:
    raise SystemExit(f"the command line needs {error.name}: pip install 'weightdecay[sweep]'") from None

from weightdecay.cli.console import err, load_module, look_in
from weightdecay.display.near_names import hint


class _Commands(click.Group):
    """Imports a command when it is asked for: each lives in the module of its name, and drags in what it needs."""

    NAMES: ClassVar = ("derive", "doctor", "groups", "identify", "plan", "rules", "sweep")

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(self.NAMES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return the command of that name, if there is one."""
        if name not in self.NAMES:
            return None
        command: click.Command = getattr(import_module(f"weightdecay.cli.{name}"), name)
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is meant, or refuse a name that is near to one."""
        if arguments and arguments[0] not in self.NAMES and not arguments[0].startswith("-"):
            context.fail(f"there is no command {arguments[0]!r}: {hint(arguments[0], self.NAMES)}")
        return super().resolve_command(context, arguments)

    def invoke(self, context: click.Context) -> Any:
        """Run a command; Ctrl-C ends it with a line and exit code 130."""
        try:
            return super().invoke(context)
        except ImportError as error:  # of what the commands need and the optimizers do not
            if error.name in ("rich", "matplotlib", "jinja2", "sklearn", "numpy"):
                raise click.ClickException(f"this needs {error.name}: pip install 'weightdecay[sweep]'") from None
            raise
        except KeyboardInterrupt:
            err().print("interrupted")
            raise SystemExit(130) from None


def _print_version(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        import weightdecay

        click.echo(f"weightdecay, version {weightdecay.__version__}")
        context.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version.")
@click.option("--import", "modules", multiple=True, metavar="MODULE", help="Import a module that registers rules of its own.")
@click.option(
    "--app-dir", type=click.Path(exists=True, file_okay=False), help="Look for your modules in this folder, before this one."
)
def main(modules: tuple[str, ...], app_dir: str | None) -> None:
    """Weight decay for PyTorch that is right.

    What is your own is named module:attribute, as in train:make, or by its file, as in src/train.py:make. Modules are
    looked for among the installed packages, and then in the current folder.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack λ, as in a file that Windows makes
            stream.reconfigure(errors="replace")
    look_in(app_dir)
    for module in modules:
        load_module(module)
