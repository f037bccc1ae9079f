"""A meter in TensorBoard, or whatever has an `add_scalar`."""

from collections.abc import Collection
from typing import Any, Protocol

from weightdecay.audit.meter.meter import Meter
from weightdecay.audit.meter.metrics import METRICS, asked_for


class Writer(Protocol):
    """What torch.utils.tensorboard's SummaryWriter has."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> Any:
        """Write a number under a tag."""


def write_metrics(
    writer: Writer,
    meter: Meter,
    *,
    step: int | None = None,
    prefix: str = "weight_decay",
    metrics: str | Collection[str] = METRICS,
) -> None:
    """Write the last sample of a meter, one scalar for each number.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`, for which `pip install 'weightdecay[integrations]'`.
        meter: what has measured.
        step: where on the axis; the sample's own step if you do not say.
        prefix: what the tags begin with.
        metrics: which quantities, as in `weightdecay.audit.meter.metrics.Reading`, or "all".

    Raises:
        ValueError: `metrics` names none.

    >>> import torch
    >>> class Printing:
    ...     def add_scalar(self, tag, value, step):
    ...         print(tag, round(value, 3), step)
    >>> w = torch.nn.Parameter(torch.ones(4))
    >>> w.grad = torch.zeros(4)
    >>> optimizer = torch.optim.Rprop([w])
    >>> meter = Meter(optimizer)
    >>> optimizer.step()
    >>> write_metrics(Printing(), meter, step=7)
    weight_decay/group0/norm 2.0 7
    weight_decay/group0/angle 0.0 7
    """
    for tag, value in meter.metrics(prefix, asked_for(metrics)).items():
        writer.add_scalar(tag, value, meter.step if step is None else step)
