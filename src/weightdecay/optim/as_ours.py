"""An optimizer of torch's as the optimizer of this package that does the same step."""

from torch.optim import Optimizer as TorchOptimizer

from weightdecay.optim.attach import Attachment
from weightdecay.optim.optimizer import Optimizer
from weightdecay.optim.torch_equivalents import TORCH
from weightdecay.optim.unwrap import innermost

_AS_TORCH = {"differentiable": False, "rounding": "nearest", "seed": 0, "weight_decay_schedule": None}
"""What of torch's step matters here or could be taken for ours: another may keep something under these keys of a group."""


def as_ours(optimizer: TorchOptimizer, *, attached: bool = False) -> Optimizer:
    """Return one of this package's optimizers that does the same step; it shares the state and only reads it.

    With `attached`, it is the step without the decay that may be attached; else such an optimizer is refused.
    """
    optimizer = innermost(optimizer)
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, TorchOptimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, not an optimizer: pass what has the step() method")
    row = TORCH.get(type(optimizer))
    if row is None or row.preset is None:
        known = ", ".join(f"torch.optim.{cls.__name__}" for cls, row in TORCH.items() if row.preset)
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, whose rules are not known here: only this package's optimizers, "
            f"{known} can be taken apart; the same rules as a weightdecay.Optimizer can be"
        )
    attachment = Attachment.of(optimizer)
    if attachment is not None and not attached:
        raise ValueError(
            f"the {attachment.decay.name} decay is attached to this {type(optimizer).__name__}, whose own rules know nothing "
            "of it: weightdecay.Meter(optimizer) measures what it does, and what can be taken apart is a "
            f"weightdecay.Optimizer(…, decay={attachment.decay.name!r})"
        )
    return row.preset.looking_at(({**group, **_AS_TORCH} for group in optimizer.param_groups), optimizer.state)
