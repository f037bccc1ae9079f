"""What this package knows of torch's optimizers: one row for each class of `torch.optim`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from weightdecay.optim.presets import PRESETS, Preset
from weightdecay.optim.presets.preset import Flagged
from weightdecay.update_rules.reductions import REDUCTIONS
from weightdecay.update_rules.registry import REGISTRY

__all__ = ["TORCH", "TorchEquivalent"]

Kind = Literal["coupled", "decoupled", "none"]


@dataclass(frozen=True)
class TorchEquivalent:
    """What a class of torch.optim does, in terms of this package's rules."""

    preset: type[Preset] | None
    """The preset that does the same step; None if this package has no such direction."""
    kind: Kind
    """How its `weight_decay` acts: on the gradient, on the weight, or not at all because it takes none."""
    steps_by_gradient: bool | None = None
    """Whether its update is made of the gradient alone, of one call of the closure; None if the preset's direction says so."""

    def kind_in(self, group: Mapping[str, Any]) -> Kind:
        """Return how λ acts in a parameter group, whose `decoupled_weight_decay` decides where the class has that flag."""
        flag = group.get("decoupled_weight_decay")
        if flag is None or self.preset is None or not issubclass(self.preset, Flagged):
            return self.kind
        return "decoupled" if flag else "coupled"

    @property
    def reads_weight(self) -> bool:
        """Whether the update may depend on the weight, so that a decay before the step would change it."""
        if self.preset is None or self.steps_by_gradient is not None:
            return not self.steps_by_gradient
        return any("w" in REDUCTIONS[name].elements for name in REGISTRY["direction", self.preset.direction].reductions)


def _row_of(name: str) -> TorchEquivalent:
    """Return the row of a class whose preset has the same name: the preset's rules say how λ acts."""
    preset = PRESETS[name]
    return TorchEquivalent(preset, "decoupled" if preset.penalty is None else "coupled")


_NAMES = ("SGD", "Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Muon", "Adafactor")
TORCH: Mapping[type, TorchEquivalent] = {
    **{getattr(torch.optim, name): _row_of(name) for name in _NAMES},
    # Adam, since a group of AdamW's has Adam's flag and may turn it off.
    torch.optim.AdamW: TorchEquivalent(PRESETS["Adam"], "decoupled"),
    # Its step takes lr·λ of the weight through the gradient and averages the weights; docs/what-optimizers-do.md.
    torch.optim.ASGD: TorchEquivalent(None, "coupled", steps_by_gradient=False),
    torch.optim.LBFGS: TorchEquivalent(None, "none", steps_by_gradient=False),
    torch.optim.Rprop: TorchEquivalent(None, "none", steps_by_gradient=True),
    torch.optim.SparseAdam: TorchEquivalent(None, "none", steps_by_gradient=False),
}
"""Every optimizer of torch's by its class; a subclass may do anything, and has no row."""
