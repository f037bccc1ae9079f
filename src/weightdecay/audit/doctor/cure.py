"""What a fix may do to the weights: which λ it may set, and what the run then leaves of them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import nn

from weightdecay.analysis.run_plan import MUCH
from weightdecay.groups.params import Param
from weightdecay.groups.roles import role_of

__all__ = ["MOST", "Cure", "Run", "destroys", "forgets", "tempered", "two_digits", "was_trained"]

MOST = 0.1
"""The share of weights that were trained before which the decay of a fix takes over the run at most."""
_SHORT, _STEEP = 0.01, 1e-3
"""Of the run, a timescale below which the weights average over almost nothing; and the share per step that makes it one."""


@dataclass(frozen=True)
class Run:
    """The steps to come of one group."""

    lrs: tuple[float, ...]
    lams: tuple[float, ...]
    shares: tuple[float, ...] | None
    """Of itself, what a weight without a gradient loses in each step; None where weights lose different shares."""

    @cached_property
    def left(self) -> float | None:
        """Return what the steps leave of a weight without a gradient."""
        if self.shares is None:
            return None
        if any(share >= 1 for share in self.shares):
            return math.prod(1 - share for share in self.shares)
        return math.exp(math.fsum(math.log1p(-share) for share in self.shares))

    @property
    def peak(self) -> float:
        """Return the largest learning rate, NaN aside."""
        return max((lr for lr in self.lrs if lr == lr), default=math.nan)

    @property
    def largest(self) -> float:
        """Return the largest share that a step takes, 0 where there is none to tell."""
        return max(self.shares or (0.0,))

    @property
    def mean(self) -> float:
        """Return the share that a step takes on average."""
        return math.fsum(self.shares) / len(self.shares) if self.shares else 0.0


class Cure(NamedTuple):
    """The last fields of a finding: code, and what it does."""

    fix: str
    leaves: float | None = None
    """What the run leaves, without a gradient, of the weights that decay by the numbers of the fix; None if unknown."""


def destroys(run: Run) -> bool:
    """Tell whether a step takes so much that no weight keeps what it learns."""
    return run.largest >= MUCH


def forgets(run: Run) -> bool:
    """Tell whether the weights average over less than a hundredth of the run."""
    return run.mean > 0 and 1 / run.mean < _SHORT * len(run.lrs) and run.largest > _STEEP


def tempered(lam: float, run_with: Callable[[float], Run], least: float) -> tuple[float, Run]:
    """Return the largest λ up to one that destroys nothing, forgets nothing and leaves enough of a weight, and its run.

    Args:
        lam: λ as it is wanted; it is returned as it is where nothing speaks against it.
        run_with: the steps to come with a λ.
        least: what the run has to leave of a weight, from 0 for anything to less than 1.
    """
    run = run_with(lam)
    if run.shares is None or lam <= 0 or not math.isfinite(lam):
        return lam, run
    if destroys(run) or forgets(run):  # to a timescale of the whole run
        lam = two_digits(lam / (len(run.lrs) * run.mean))
        run = run_with(lam)
    for _ in range(8):  # one is enough where the share is a multiple of λ
        if run.left is None or run.left >= least or not lam:
            break
        lam = two_digits(lam * math.log(least) / math.log(run.left))
        run = run_with(lam)
    return lam, run


def two_digits(lam: float) -> float:
    """Return λ with two digits, rounded down.

    >>> two_digits(0.010999), two_digits(33.7), two_digits(0.1)
    (0.01, 33.0, 0.1)
    """
    if not lam > 0:
        return 0.0
    place = math.floor(math.log10(lam)) - 1
    return float(f"{math.floor(lam / 10.0**place * (1 + 1e-9))}e{place}")


def was_trained(model: nn.Module, params: Iterable[Param]) -> bool | None:
    """Return whether a model's weights were trained before, as its frozen layers and its norms tell; None where it has neither.

    A frozen matrix of weights is taken as trained before. Gains of norms start at one, or at zero, and no training leaves
    all of them there; a BatchNorm counts its batches.
    """
    params = list(params)
    if any(role_of(each)[0].name in ("weight", "embedding") and not each.tensor.requires_grad for each in params):
        return True
    counts = [getattr(each, "num_batches_tracked", None) for each in model.modules()]
    if any(count is not None and not count.is_meta and count.item() > 0 for count in counts):
        return True
    gains = [each.tensor.detach() for each in params if role_of(each)[0].name.partition(".")[0] == "norm"]
    gains = [gain.to_local() if hasattr(gain, "to_local") else gain for gain in gains]
    known = [gain for gain in gains if gain.numel() and not gain.is_meta and gain.is_floating_point()]
    if not known:
        return None
    return not all(any(bool((gain == start).all()) for start in (0, 1)) for gain in known)
