"""The doctor's report as a page that needs nothing but itself."""

from pathlib import Path

from weightdecay.audit.doctor.checks import CHECKS
from weightdecay.audit.doctor.findings import Report, shown
from weightdecay.display import files
from weightdecay.display.html import templates

__all__ = ["write_examination"]


def write_examination(path: Path | str, report: Report, setup: str) -> Path:
    """Write the page, in full or not at all, and return its path; `setup` is its heading."""
    path = Path(path)
    environment = templates("weightdecay.audit.doctor")
    environment.filters |= {"shown": shown}
    titles = {each.id: each.title for each in CHECKS.values()}
    page = environment.get_template("page.html").render(report=report, setup=setup, titles=titles)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, page.encode())
    return path
