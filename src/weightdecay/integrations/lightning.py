"""A meter in a Lightning `Trainer`. Needs lightning: `pip install 'weightdecay[integrations]'`."""

import warnings
from collections.abc import Collection
from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("lightning is not installed: pip install 'weightdecay[integrations]'") from error

from weightdecay.audit.meter.meter import EVERY, Meter
from weightdecay.audit.meter.metrics import METRICS, asked_for


class MeterCallback(Callback):
    """Log what the decay does with the Trainer's loggers, each sample once and at its step.

    Give it to the Trainer as `callbacks=[MeterCallback()]`, at any place among others. The latest numbers are in
    `trainer.callback_metrics` as well, for callbacks that watch one. With several optimizers the numbers of each stand under
    `weight_decay/optimizer0/…` and so on.

    Args:
        every: measure every so many steps of an optimizer, and more often at the start.
        roles: log the sums by role as well, told from the module; the meter has them in any case, to print and to plot.
        metrics: which quantities to log, as in `weightdecay.audit.meter.metrics.Reading`, or "all".

    Raises:
        ValueError: `metrics` names none.
    """

    def __init__(self, *, every: int = EVERY, roles: bool = False, metrics: str | Collection[str] = METRICS) -> None:
        super().__init__()
        self.every, self.roles, self.metrics = every, roles, asked_for(metrics)
        self.meters: list[Meter] = []
        """One for each optimizer of the run that can be measured; they stay after its end."""
        self._logged: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach a meter to each optimizer."""
        self._detach()
        batches = trainer.num_training_batches
        per_epoch = -(-batches // trainer.accumulate_grad_batches) if isinstance(batches, int) else None
        start = trainer.global_step // max(len(trainer.optimizers), 1)  # which counts the steps of all optimizers
        self.meters = []
        for optimizer in trainer.optimizers:
            try:
                meter = Meter(optimizer, every=self.every, roles=pl_module, steps_per_epoch=per_epoch, start=start)
                self.meters.append(meter)
            except TypeError as error:  # DeepSpeed's and others have no step that could be hooked: the run goes on
                warnings.warn(f"MeterCallback measures nothing of an optimizer in this run: {error}", stacklevel=2)
        self._logged = [0] * len(self.meters)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log a new sample."""
        for place, meter in enumerate(self.meters):
            if meter.waiting and meter.step > self._logged[place]:
                self._logged[place] = meter.step
                prefix = "weight_decay" if len(self.meters) == 1 else f"weight_decay/optimizer{place}"
                metrics = meter.metrics(prefix, self.metrics, roles=self.roles)
                for logger in trainer.loggers:  # the module's own log() would leave out what lies between two of its steps
                    logger.log_metrics(metrics, step=trainer.global_step)
                pl_module.log_dict(metrics, logger=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the meters off."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the meters off."""
        self._detach()

    def _detach(self) -> None:
        for meter in self.meters:
            meter.detach()
