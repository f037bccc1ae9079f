"""Pages that need nothing but themselves: Jinja's environment for a folder with templates, and the style they share."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

__all__ = ["templates"]


def templates(package: str) -> Environment:
    """Return the templates of a folder; `page.css` stands in this one.

    Names of parameters, classes and tasks come from outside: nothing goes onto a page unescaped.
    """
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader(__package__, "")])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
