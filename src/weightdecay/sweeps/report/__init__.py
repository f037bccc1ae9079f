"""What a sweep over lr × weight decay found: a verdict in sentences, a table for the terminal, a page with pictures.

`verdict` needs the standard library only; `best_table` needs rich, and `write_report` needs matplotlib and jinja2.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from weightdecay.sweeps.report.verdict import Verdict, verdict

if TYPE_CHECKING:
    from weightdecay.sweeps.report.page import write_report
    from weightdecay.sweeps.report.terminal_table import best_table

__all__ = ["Verdict", "best_table", "verdict", "write_report"]

_HOME = {"best_table": "weightdecay.sweeps.report.terminal_table", "write_report": "weightdecay.sweeps.report.page"}


def __getattr__(name: str) -> Any:
    """Import what needs an optional dependency on its first use."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
