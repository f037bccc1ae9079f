"""What every command prints with, refuses with and finds a user's own code with."""

import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.console import Console

ERR = Console(stderr=True, highlight=False)
OUT = Console(highlight=False)


class Refusal(click.ClickException):
    """A user's mistake: its reason on standard error, exit code 1."""

    def show(self, file: Any = None) -> None:
        """Print the reason."""
        ERR.print(f"[bold red]error:[/] {escaped(self.message)}", soft_wrap=True)


def escaped(text: str) -> str:
    """Return the text as rich prints it, brackets and all."""
    return text.replace("[", r"\[")


def explained(error: Exception) -> str:
    """Return what went wrong and, where it was not this package that said so, where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error) or type(error).__name__
    if Path(last.filename).is_relative_to(Path(__file__).parents[1]):
        return text
    if isinstance(error, SyntaxError):  # which says itself where it is
        return f"{type(error).__name__}: {text}"
    context = click.get_current_context(silent=True)
    shows = context is not None and any(each.name == "show_traceback" for each in context.command.params)
    hint = "; --traceback shows the way there" if shows else ""
    return f"{type(error).__name__}: {text} ({last.filename}:{last.lineno}{hint})"


def look_in(folder: str | None) -> None:
    """Import modules from this folder, too."""
    if folder is not None:
        sys.path.insert(0, str(Path(folder).resolve()))


def load_module(name: str) -> Any:
    """Import a user's module, or refuse with what went wrong."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise Refusal(
                f"there is no module {error.name!r}; if it is a file in this folder: weightdecay --app-dir . …"
            ) from None
        raise Refusal(f"importing {name} failed: {error}") from error
    except Exception as error:
        raise Refusal(f"importing {name} failed: {explained(error)}") from error


def load(name: str, what: str) -> Any:
    """Return a user's own object by module:attribute; `what` says what it is, for an error."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise Refusal(f"{what} {name!r}: what is your own is written module:attribute")
    found = load_module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise Refusal(f"{what} {name!r}: {module_name} has no {attribute!r}")
        found = getattr(found, part)
    return found
