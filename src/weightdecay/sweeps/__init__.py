"""Train a task over learning rate × weight decay, and see what weight decay does for it."""

from weightdecay.sweeps.results import SweepError
from weightdecay.sweeps.sweep import SweepResult, sweep
from weightdecay.sweeps.task import Data, Grid, Task

__all__ = ["Data", "Grid", "SweepError", "SweepResult", "Task", "sweep"]
