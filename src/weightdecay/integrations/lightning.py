"""A meter in a Lightning `Trainer`. Needs lightning: `pip install 'weightdecay[integrations]'`."""

from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("lightning is not installed: pip install 'weightdecay[integrations]'") from error

from weightdecay.audit.meter import EVERY, Meter


class MeterCallback(Callback):
    """Log what the decay does with the Trainer's loggers, each sample once and at its step.

    Give it to the Trainer as `callbacks=[MeterCallback()]`. With several optimizers the numbers of each stand under
    `weight_decay/optimizer0/…` and so on.

    Args:
        every: measure every so many steps of an optimizer.
        roles: sum up by role as well, told from the module.
    """

    def __init__(self, *, every: int = EVERY, roles: bool = True) -> None:
        super().__init__()
        self.every, self.roles = every, roles
        self.meters: list[Meter] = []
        """One for each optimizer of the run; they stay after its end."""
        self._logged: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach a meter to each optimizer."""
        self._detach()
        batches = trainer.num_training_batches
        per_epoch = -(-batches // trainer.accumulate_grad_batches) if isinstance(batches, int) else None
        roles = pl_module if self.roles else None
        self.meters = [
            Meter(optimizer, every=self.every, roles=roles, steps_per_epoch=per_epoch) for optimizer in trainer.optimizers
        ]
        self._logged = [0] * len(self.meters)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Log a new sample."""
        for place, meter in enumerate(self.meters):
            if meter.waiting and meter.step > self._logged[place]:
                self._logged[place] = meter.step
                prefix = "weight_decay" if len(self.meters) == 1 else f"weight_decay/optimizer{place}"
                for logger in trainer.loggers:
                    logger.log_metrics(meter.metrics(prefix), step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the meters off."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the meters off."""
        self._detach()

    def _detach(self) -> None:
        for meter in self.meters:
            meter.detach()
