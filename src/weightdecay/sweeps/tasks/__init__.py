"""The built-in tasks, one per file: each has a `task`."""

import pkgutil
from importlib import import_module

from weightdecay.display.near_names import hint
from weightdecay.sweeps.task import Task

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> Task:
    """Return a built-in task by name."""
    if name not in NAMES:
        every = f"there are {', '.join(NAMES)}, and a weightdecay.Task of your own"
        raise ValueError(f"task {name!r} is unknown: {hint(name, NAMES, otherwise=every)}")
    task: Task = import_module(f"{__name__}.{name}").task
    return task
