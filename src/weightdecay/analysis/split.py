"""The two parts of a step, as numbers."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from weightdecay.update_rules.traits import steps_to_halve

_MOST_SORTED = 2**20
"""Of a larger tensor every n-th weight is looked at for a quantile; the ends are exact."""
_QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, eq=False)
class Split:
    """The next step of one parameter: w becomes g·w − lr·h, before it is rounded to the parameter's dtype.

    The tensors have the parameter's shape, in float32 or float64, as the step computes; a complex parameter's are those of
    `torch.view_as_real`. torch's optimizers compute bfloat16 and float16 parameters in that dtype and round each operation, so
    that what they do to one is g·w − lr·h only roughly, and a decay that is smaller than the rounding is lost.
    """

    name: str
    g: Tensor
    h: Tensor
    shrink: Tensor
    """1 − g, computed in float64: of a small one, g in float32 has lost the digits."""
    lr: float
    decoupled: float
    """The shrink that every weight gets from the decay, or would get from λ if that were decoupled; NaN if no one number."""
    rounding: float
    """The shrink up to which a decay alone changes no weight of the dtype; 0 where nothing is lost."""

    def summary(self) -> "Summary":
        """Return what the factors have in common: quantiles of the shrink 1 − g, its half-life, its spread."""
        shrink: Tensor = self.shrink.full_tensor() if hasattr(self.shrink, "full_tensor") else self.shrink  # of every rank
        shrink = shrink.double().flatten()
        if not shrink.numel():
            shrink = torch.zeros(1, dtype=torch.double)
        some = shrink[:: max(1, shrink.numel() // _MOST_SORTED)]
        low, median, high = torch.quantile(some, torch.tensor(_QUANTILES, dtype=torch.double, device=some.device)).tolist()
        weakest, strongest = shrink.min().item(), shrink.max().item()
        acting = shrink[shrink > 0]
        ratio = math.nan if math.isnan(strongest) else strongest / acting.min().item() if acting.numel() else 1.0
        return Summary(
            self.name, list(self.g.shape), weakest, low, median, high, strongest,
            acting.numel() / shrink.numel(), steps_to_halve(median), ratio,
            int(((shrink > 0) & (shrink <= self.rounding)).sum()) / shrink.numel(),
        )  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """One tensor's shrinks: 0.01 takes a hundredth of a weight away in one step."""

    name: str
    shape: list[int]
    weakest: float
    low: float
    median: float
    high: float
    strongest: float
    acting: float
    """The share of the weights that shrink at all."""
    half_life: float
    """In how many steps with just this g the median weight halves; with L2 past penalties in the momentum come on top."""
    ratio: float
    """The strongest shrink over the weakest that is not zero."""
    lost: float
    """The share of the weights whose shrink alone is rounded away."""

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data; what is not finite is None."""
        values = asdict(self)
        return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in values.items()}

    def cells(self) -> tuple[str, ...]:
        """Return the line of the table."""
        share = f"{self.acting:.0%}"
        shrinks = (f"{x:.3g}" for x in (self.weakest, self.median, self.strongest))
        life = f"{self.half_life:,.0f}" if math.isfinite(self.half_life) else str(self.half_life).replace("inf", "never")
        return self.name, str(tuple(self.shape)), *shrinks, share, f"{self.ratio:.3g}", life
