"""The report: a page that needs nothing but itself, and its pictures as files beside it."""

import re
import shlex
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from weightdecay.display import files
from weightdecay.display.figure import Picture
from weightdecay.display.html import templates
from weightdecay.sweeps.report.comparison import Judgement
from weightdecay.sweeps.report.heat_maps import heat_maps
from weightdecay.sweeps.report.results_grid import Row, Sweep
from weightdecay.sweeps.report.table_rows import BestLine, CellLine, best_lines, cell_lines
from weightdecay.sweeps.report.training_curves import curves, norms
from weightdecay.sweeps.report.verdict import Verdict, verdict

__all__ = ["write_report"]

_TIES = re.compile(r"(?<=±) | (?=[±%])|(?<=\bλ) (?=[\d=>])|(?<=λ.[=>]) |(?<=\blr) (?=\d)")
_CLAIMS = {
    "better": "weight decay helps",
    "worse": "weight decay hurts",
    "unclear": "no clear difference",
    "one seed": "one seed: no standard error",
}


def write_report(directory: Path | str, rows: Iterable[Row], manifest: Row) -> Path:
    """Write the report on a sweep into its directory and return the path of `index.html`.

    The pictures come first and the page last: where there is a page, there is everything.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    found = verdict(rows, manifest)
    pictures = heat_maps(found), curves(found), norms(found)
    for picture in pictures:
        files.write(directory / f"{picture.name}.svg", picture.svg.encode())
        files.write(directory / f"{picture.name}.png", picture.png)
    index = directory / "index.html"
    files.write(index, _render(found, *pictures).encode())
    return index


@dataclass(frozen=True)
class Card:
    """What the page shows of one optimizer."""

    name: str
    kind: str
    rule: str
    tone: str
    change: str
    claim: str
    sentences: list[str]
    best: list[BestLine]
    cells: list[CellLine]


def _card(found: Verdict, judgement: Judgement) -> Card:
    sweep, grid, contrast = found.sweep, judgement.grid, judgement.decay
    return Card(
        name=grid.name,
        kind=grid.kind,
        rule=grid.rule,
        tone="" if contrast is None else contrast.outcome.replace(" ", "-"),
        change="–" if contrast is None else sweep.units.change(contrast.gain.times(sweep.sign)),
        claim="nothing to compare" if contrast is None else f"test {sweep.metric}: {_CLAIMS[contrast.outcome]}",
        sentences=[sentence[0].upper() + sentence[1:] for sentence in found.about(judgement)],
        best=list(best_lines(sweep, judgement)),
        cells=list(cell_lines(sweep, grid)),
    )


def _render(found: Verdict, heat: Picture, curve: Picture, norm: Picture) -> str:
    environment = templates("weightdecay.sweeps.report")
    environment.filters |= {"data_uri": _data_uri, "tied": _tied}
    sweep = found.sweep
    return environment.get_template("page.html").render(
        sweep=sweep,
        verdict=found,
        design=_design(sweep),
        heading=sweep.units.heading(f"test {sweep.metric}"),
        unit=sweep.decay_unit,
        command=sweep.command or f"weightdecay sweep {shlex.quote(sweep.task)} --out DIR",
        cards=[_card(found, judgement) for judgement in found.judgements],
        heat_maps=heat,
        curves=curve,
        norms=norm,
    )


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"


def _tied(text: str) -> str:
    """Keep a number on one line with its error, its unit and the letter before it."""
    return _TIES.sub("\N{NO-BREAK SPACE}", text)


def _design(sweep: Sweep) -> str:
    """Say what was run."""
    about = sweep.description.strip()
    if about and about[-1] not in ".!?":
        about += "."
    names = ", ".join(grid.name for grid in sweep.grids)
    shapes = {(len(grid.lrs), len(grid.decays)) for grid in sweep.grids}
    lrs, decays = (f"{number} " for number in shapes.pop()) if len(shapes) == 1 else ("", "")
    steps = f" for {sweep.steps} steps" if sweep.steps is not None else ""
    seeds = f"{len(sweep.seeds)} seed{'' if len(sweep.seeds) == 1 else 's'}"
    run = f"{names}: each trained{steps} from {seeds} at every pair of its {lrs}learning rates and {decays}weight decays"
    chosen = f"Settings are chosen by validation {sweep.metric} and reported by test {sweep.metric}."
    return f"{about} {run}, {sweep.expected} runs in all. {chosen}".lstrip()
