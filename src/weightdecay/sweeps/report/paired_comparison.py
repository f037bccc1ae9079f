"""A comparison of settings that were chosen on the validation metric, measured on the test metric, and checked across seeds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from weightdecay.sweeps.report.estimate import Estimate
from weightdecay.sweeps.report.results_grid import Cell

__all__ = ["Contrast", "Outcome", "Pair", "contrast"]

Pair = tuple[Cell, Cell]
Choice = Callable[[tuple[int, ...]], list[Pair]]
Outcome = Literal["better", "worse", "unclear", "one seed"]
Doubt = Literal["spread", "noise", "choice"]

_LEVEL = 0.05


@dataclass(frozen=True)
class Contrast:
    """How much better, whatever the goal, the first cells of some pairs are than the second on the test metric.

    `gain` takes the pairs chosen on all seeds. `crossed` scores each seed at the pairs that the other seeds alone would
    choose: it is free of the luck by which the best of many cells looks better than it is. `noise` is the standard error
    that is typical of the grid.
    """

    pairs: tuple[Pair, ...]
    gain: Estimate
    crossed: Estimate | None
    noise: float | None

    @property
    def doubt(self) -> Doubt | None:
        """Say why the gain does not count as a difference, None if it does.

        It counts if Student's t over the seeds gives p < 0.05, if it exceeds two of the grid's typical standard errors
        (three seeds can agree by accident), and if at least half of it stays with each seed scored where the others chose.
        """
        p = self.gain.p
        if p is None or p >= _LEVEL:
            return "spread"
        if self.noise is not None and abs(self.gain.mean) <= 2 * self.noise / len(self.pairs) ** 0.5:
            return "noise"
        if self.crossed is None or self.crossed.mean / self.gain.mean < 1 / 2:
            return "choice"
        return None

    @property
    def outcome(self) -> Outcome:
        """Say what may be claimed."""
        if self.gain.error is None:
            return "one seed"
        if self.doubt:
            return "unclear"
        return "better" if self.gain.mean > 0 else "worse"

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and the settings as JSON can hold them."""
        return {
            "outcome": self.outcome,
            "doubt": self.doubt,
            "gain": self.gain.to_dict(),
            "crossed": self.crossed.to_dict() if self.crossed else None,
            "noise": self.noise,
            "pairs": [[{"lr": cell.lr, "weight_decay": cell.decay} for cell in pair] for pair in self.pairs],
        }


def contrast(choose: Choice, seeds: tuple[int, ...], sign: int, noise: float | None) -> Contrast | None:
    """Compare the pairs that `choose` names when it looks at the validation metric of some seeds; None if it finds none.

    A gain over several pairs is their mean for each seed, so that the standard error is over seeds.
    """
    pairs = choose(seeds)
    gains = _gains(pairs, seeds, sign)
    if not gains:
        return None
    crossed = {
        seed: gain
        for seed in gains
        if (gain := _gains(choose(tuple(other for other in seeds if other != seed)), [seed], sign).get(seed)) is not None
    }
    return Contrast(tuple(pairs), Estimate.of(gains.values()), Estimate.of(crossed.values()) if crossed else None, noise)


def _gains(pairs: list[Pair], seeds: Iterable[int], sign: int) -> dict[int, float]:
    """Return the mean gain over the pairs for each seed that all of them have."""
    scores = [(ours.scores("test"), theirs.scores("test")) for ours, theirs in pairs]
    return {
        seed: sign * sum(ours[seed] - theirs[seed] for ours, theirs in scores) / len(scores)
        for seed in seeds
        if scores and all(seed in ours and seed in theirs for ours, theirs in scores)
    }
