"""The verdict on a sweep: sentences to read, numbers to compute with."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from weightdecay.sweeps.report.comparison import Comparison, Judgement, compare, judge
from weightdecay.sweeps.report.results_grid import Row, Sweep
from weightdecay.sweeps.report.summary_text import (
    about_all,
    about_comparison,
    about_coverage,
    about_decay,
    about_learning_rates,
    about_movement,
)

__all__ = ["Verdict", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """What a sweep found. It prints as its sentences, `to_dict` has the numbers behind them."""

    sweep: Sweep
    judgements: tuple[Judgement, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def coverage(self) -> str:
        """Say how much of the sweep there is."""
        return about_coverage(self.sweep)

    @property
    def summary(self) -> str:
        """Say in one sentence which optimizers decay helps."""
        return about_all(self.judgements)

    def about(self, found: Judgement) -> list[str]:
        """Say what one optimizer's grid shows."""
        said = about_decay(self.sweep, found), about_learning_rates(self.sweep, found), about_movement(self.sweep, found)
        return [sentence for sentence in said if sentence]

    @property
    def compared(self) -> list[str]:
        """Say how coupled and decoupled decay differ."""
        return [about_comparison(self.sweep, pair) for pair in self.comparisons]

    @property
    def sentences(self) -> list[str]:
        """Say all of it."""
        each = [f"{found.grid.name}: {sentence}" for found in self.judgements for sentence in self.about(found)]
        return [self.coverage, self.summary, *each, *self.compared]

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def to_dict(self) -> dict[str, Any]:
        """Return sentences and numbers as JSON can hold them."""
        sweep = self.sweep
        return {
            "task": sweep.task,
            "metric": sweep.metric,
            "goal": "max" if sweep.sign > 0 else "min",
            "runs": {"expected": sweep.expected, "finished": sweep.finished, "diverged": sweep.diverged},
            "sentences": self.sentences,
            "optimizers": [found.to_dict() for found in self.judgements],
            "comparisons": [pair.to_dict() for pair in self.comparisons],
        }


def verdict(rows: Iterable[Row], manifest: Row) -> Verdict:
    """Judge the rows of a sweep by its manifest.

    Settings are chosen by the validation metric, averaged over seeds, and reported on the test metric.
    """
    sweep = Sweep.of(rows, manifest)
    judgements = tuple(judge(grid) for grid in sweep.grids)
    return Verdict(sweep, judgements, compare(sweep, judgements))
