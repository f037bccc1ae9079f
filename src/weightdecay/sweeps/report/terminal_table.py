"""The best λ per learning rate, as a table for the terminal."""

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from weightdecay.sweeps.report.results_grid import Row
from weightdecay.sweeps.report.table_rows import best_lines
from weightdecay.sweeps.report.verdict import verdict

__all__ = ["best_table"]


def best_table(rows: Iterable[Row], manifest: Row) -> Table:
    """Lay out each optimizer's best λ > 0 per learning rate beside λ = 0.

    λ is chosen on validation; the numbers are means over seeds on test, ± one standard error. The best setting with decay is
    bold.
    """
    found = verdict(rows, manifest)
    sweep = found.sweep
    metric = sweep.units.heading(f"test {sweep.metric}")
    title = Text(f"{sweep.task}: the best λ > 0 at each learning rate ({metric})")
    # No lines between columns and no cell padded twice: it has to fit in 80 columns.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("")
    for heading in ("lr", "best λ", "with it", "λ = 0", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note")
    for judgement in found.judgements:
        for number, line in enumerate(best_lines(sweep, judgement)):
            name = judgement.grid.name if number == 0 else ""
            texts = (name, line.lr, line.decay, line.test, line.without, line.change, line.note)
            table.add_row(*map(Text, texts), style="bold" if line.chosen else None)
        table.add_section()
    return table
