"""The command line of this package: a module here for each command.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 refused with a reason, 2 a
wrong command line, 130 interrupted.
"""

from importlib import import_module
from typing import ClassVar

try:
    import click
    import rich  # noqa: F401
except ImportError as error:
    raise SystemExit(f"the command line needs {error.name}: pip install 'weightdecay[sweep]'") from None

import weightdecay as wd
from weightdecay.cli.console import load_module, look_in


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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(wd.__version__, prog_name="weightdecay")
@click.option("--import", "modules", multiple=True, metavar="MODULE", help="Import a module that registers rules of its own.")
@click.option("--app-dir", type=click.Path(exists=True, file_okay=False), help="Look for your modules in this folder, too.")
def main(modules: tuple[str, ...], app_dir: str | None) -> None:
    """Weight decay for PyTorch that is right."""
    look_in(app_dir)
    for module in modules:
        load_module(module)
