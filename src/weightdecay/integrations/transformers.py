"""A meter in Hugging Face's `Trainer`. Needs transformers: `pip install 'weightdecay[integrations]'`."""

from typing import Any

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError("transformers is not installed: pip install 'weightdecay[integrations]'") from error

from weightdecay.audit.meter import EVERY, Meter


class MeterCallback(TrainerCallback):
    """Put what the decay does into the Trainer's logs, beside the first entry that follows each sample.

    Give it to the Trainer as `callbacks=[MeterCallback()]`. What reports elsewhere (TensorBoard and others in `report_to`)
    runs before a user's callbacks and would not see the numbers: `MeterCallback().first_in(trainer)` goes before it.

    Args:
        every: measure every so many optimizer steps.
        roles: sum up by role as well, told from the model.
    """

    meter: Meter | None = None
    """Of the run; it stays after the end."""

    def __init__(self, *, every: int = EVERY, roles: bool = True) -> None:
        self.every, self.roles = every, roles
        self._logged = 0

    def first_in(self, trainer: Trainer) -> "MeterCallback":
        """Join a Trainer before all of its callbacks."""
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any,
        optimizer: Any,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Attach a meter to the run's optimizer."""
        self._detach()
        try:
            per_epoch = -(-len(train_dataloader) // args.gradient_accumulation_steps)
        except TypeError:  # of a stream, nobody knows
            per_epoch = None
        roles = model if self.roles else None
        self.meter = Meter(optimizer, every=self.every, roles=roles, steps_per_epoch=per_epoch)
        self._logged = 0

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Add a sample that was not logged yet, for reporters and for the Trainer's history."""
        if self.meter is not None and self.meter.step > self._logged:
            self._logged = self.meter.step
            metrics = self.meter.metrics()
            logs.update(metrics)
            if state.log_history:
                state.log_history[-1].update(metrics)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the meter off."""
        self._detach()

    def _detach(self) -> None:
        if self.meter is not None:
            self.meter.detach()
