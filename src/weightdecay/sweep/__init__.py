"""Train a task over learning rate × weight decay, and see what weight decay does for it."""

from weightdecay.sweep.results import SweepError
from weightdecay.sweep.sweep import SweepResult, sweep
from weightdecay.sweep.task import Data, Grid, Task

__all__ = ["Data", "Grid", "SweepError", "SweepResult", "Task", "sweep"]
