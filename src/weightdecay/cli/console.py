"""What every command prints with, refuses with and finds a user's own code with."""

import importlib.util
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from weightdecay.display.near_names import nearest
from weightdecay.display.table import fitted

if TYPE_CHECKING:
    from rich.console import Console

_UNENDING = 100_000
"""How wide a pipe is: nothing that a program reads is folded."""


def out() -> "Console":
    """Return the console of what a command has found; where it is no terminal, lines are as long as they are."""
    from rich.console import Console

    terminal = sys.stdout is not None and sys.stdout.isatty()
    return Console(highlight=False, width=None if terminal else _UNENDING, no_color=None if terminal else True)


@cache
def err() -> "Console":
    """Return the console of progress and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def show(text: str, styles: Mapping[str, str] | None = None, *, verbatim: str = "") -> None:
    """Print a text, tables included: in a terminal as wide as that and in colours, elsewhere line for line as it is.

    Args:
        text: what to print.
        styles: rich's styles by the regular expressions of what has them.
        verbatim: what the lines start with that are never folded, such as code.
    """
    if sys.stdout is None or not sys.stdout.isatty():
        click.echo(text)
        return
    from rich.text import Text

    width = shutil.get_terminal_size().columns
    lines = text.split("\n")
    shown = Text("\n".join(each if verbatim and each.startswith(verbatim) else fitted(each, width) for each in lines))
    for pattern, style in (styles or {}).items():
        shown.highlight_regex(pattern, style)
    out().print(shown, soft_wrap=True)


class Refusal(click.ClickException):
    """A user's mistake: its reason on standard error, exit code 1."""

    def show(self, file: Any = None) -> None:
        """Print the reason."""
        err().print(f"[bold red]error:[/] {escaped(self.message)}", soft_wrap=True)


def escaped(text: str) -> str:
    """Return the text as rich prints it, brackets and all."""
    return text.replace("[", r"\[")


def explained(error: Exception) -> str:
    """Return what went wrong and, where it was not this package that said so, where."""
    text = str(error) or type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1]):
        return text
    if isinstance(error, SyntaxError):  # which says itself where it is
        return f"{type(error).__name__}: {text}"
    context = click.get_current_context(silent=True)
    shows = context is not None and any(each.name == "show_traceback" for each in context.command.params)
    hint = "; --traceback shows the way there" if shows else ""
    return f"{type(error).__name__}: {text} ({frames[-1].filename}:{frames[-1].lineno}{hint})"


@contextmanager
def users_code(what: str = "") -> Iterator[None]:
    """Run a user's code: what it prints goes to standard error, and what it raises becomes a refusal.

    Args:
        what: what is done with it, such as "importing train", for the refusal.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except click.ClickException:
        raise
    except SystemExit as error:
        raise Refusal(f"{what or 'the code'} ended the program, with exit code {error.code}") from None
    except Exception as error:
        raise Refusal(f"{what} failed: {explained(error)}" if what else explained(error)) from error


# Where a user's code is -----------------------------------------------------------------------------------------------


def look_in(folder: str | None) -> None:
    """Import modules from this folder and from the current one, too, after Python's own and what is installed.

    A `random.py` there then takes the place of nothing that other packages import.
    """
    for each in (folder, os.getcwd()):
        if each is not None and (path := str(Path(each).resolve())) not in sys.path:
            sys.path.append(path)


def load_module(name: str) -> ModuleType:
    """Import a user's module by its name or its file, or refuse with what went wrong."""
    import torch  # noqa: F401  # first: nothing in a user's folder is to be taken for a part of it

    with users_code(f"importing {name}"):
        if name.endswith(".py") or os.sep in name:
            return _from_file(Path(name))
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            near = nearest(error.name, [path.stem for path in Path.cwd().glob("*.py")])
            meant = f"did you mean {near[0]!r}?" if near else "another folder is named with --app-dir"
            raise Refusal(
                f"there is no module {error.name!r} in this folder or among the installed packages; {meant}"
            ) from None
        except ValueError:  # an empty part, as in "a..b"
            raise Refusal(f"{name!r} is not the name of a module") from None


def _from_file(path: Path) -> ModuleType:
    """Import a file; its neighbours can be imported, too."""
    path = path.resolve()
    if not path.is_file():
        near = nearest(path.name, [each.name for each in path.parent.glob("*.py")])
        raise Refusal(f"there is no file {path}" + (f"; did you mean {near[0]!r}?" if near else ""))
    look_in(str(path.parent))
    name = path.stem
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) and Path(str(known.__file__)).resolve() == path:
            return known
        name = f"{name} of {path.parent}"  # Python's own random stays what it is
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Refusal(f"{path} is not a file of Python code")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load(name: str, what: str) -> Any:
    """Return a user's own object by module:attribute, file.py:attribute or a dotted name; `what` says what it is."""
    place, colon, attribute = name.rpartition(":")
    if not colon and not name.endswith(".py"):  # train.make, as Python writes it
        place, _, attribute = name.rpartition(".")
    if not place or not attribute:
        example = f"{name.removesuffix(':') or 'train'}:make"
        raise Refusal(f"{what} {name!r}: what is your own is written module:attribute, as in {example}")
    found: Any = load_module(place)
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = nearest(part, [each for each in dir(found) if not each.startswith("_")])
            meant = f"; did you mean {near[0]!r}?" if near else ""
            here, there = Path(f"{place}.py"), str(getattr(found, "__file__", ""))
            if isinstance(found, ModuleType) and here.is_file() and there and here.resolve() != Path(there).resolve():
                meant = f"; it is {there}, write {here}:{attribute} for the file in this folder"
            raise Refusal(f"{what} {name!r}: {place} has no {attribute!r}{meant}")
        found = getattr(found, part)
    return found
