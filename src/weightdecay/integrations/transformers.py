"""A meter in Hugging Face's `Trainer`. Needs transformers: `pip install 'weightdecay[integrations]'`."""

import sys
import warnings
from collections.abc import Collection
from typing import Any

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import CallbackHandler
except ImportError as error:
    raise ImportError("transformers is not installed: pip install 'weightdecay[integrations]'") from error

from weightdecay.audit.meter.meter import EVERY, Meter
from weightdecay.audit.meter.metrics import METRICS, asked_for


class MeterCallback(TrainerCallback):
    """Put what the decay does into the Trainer's logs, beside the first entry that follows each sample.

    Give it to the Trainer as `callbacks=[MeterCallback()]`, at any place among others. Whatever the Trainer reports to
    (TensorBoard, W&B and others in `report_to`) gets the numbers, too.

    Args:
        every: measure every so many optimizer steps, and more often at the start.
        roles: log the sums by role as well, told from the model; the meter has them in any case, to print and to plot.
        metrics: which quantities to log, as in `weightdecay.audit.meter.metrics.Reading`, or "all".

    Raises:
        ValueError: `metrics` names none.
    """

    meter: Meter | None = None
    """Of the run; it stays after the end."""

    def __init__(self, *, every: int = EVERY, roles: bool = False, metrics: str | Collection[str] = METRICS) -> None:
        self.every, self.roles, self.metrics = every, roles, asked_for(metrics)
        self._logged = 0

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
        self._go_first()
        try:
            per_epoch = -(-len(train_dataloader) // args.gradient_accumulation_steps)
        except TypeError:  # of a stream, nobody knows
            per_epoch = None
        start = state.global_step
        try:
            self.meter = Meter(optimizer, every=self.every, roles=model, steps_per_epoch=per_epoch, start=start)
        except TypeError as error:  # DeepSpeed's and others have no step that could be hooked: the run goes on
            self.meter = None
            warnings.warn(f"MeterCallback measures nothing in this run: {error}", stacklevel=2)
        self._logged = start

    def _go_first(self) -> None:
        """Move before all other callbacks: those that report read a log entry before a user's callbacks could add to it.

        An event brings no handler of callbacks along, so it is looked for among the callers.
        """
        frame: Any = sys._getframe(1)
        while frame is not None:
            handler = frame.f_locals.get("self")
            if isinstance(handler, CallbackHandler) and any(each is self for each in handler.callbacks):
                others = [each for each in handler.callbacks if each is not self]
                handler.callbacks[:] = [self, *others]  # in place: the handler is in the middle of them, and misses none
                return
            frame = frame.f_back

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Add a sample that was not logged yet, for reporters and for the Trainer's history."""
        if self.meter is not None and self.meter.step > self._logged:
            self._logged = self.meter.step
            metrics = self.meter.metrics(names=self.metrics, roles=self.roles)
            logs.update(metrics)
            if state.log_history:
                state.log_history[-1].update(metrics)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the meter off."""
        self._detach()

    def _detach(self) -> None:
        if self.meter is not None:
            self.meter.detach()
