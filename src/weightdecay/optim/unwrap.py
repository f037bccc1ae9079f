"""What frameworks wrap around optimizers and schedulers: the hooks to use are those of the innermost optimizer."""

from typing import Any

from torch.optim import Optimizer


def innermost(optimizer: Any) -> Any:
    """Return the innermost optimizer of wrappers that hold one another as `.optimizer`, or what was given, if there is none."""
    found = inner = optimizer
    seen: set[int] = set()
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        found = inner if isinstance(inner, Optimizer) else found
        inner = getattr(inner, "optimizer", None)
    return found


def bare(scheduler: Any) -> Any:
    """Return the scheduler that a wrapper of accelerate's holds, or what was given, if it is no wrapper."""
    return getattr(scheduler, "scheduler", scheduler)


def calls_hooks(optimizer: Optimizer) -> bool:
    """Tell whether the step of an optimizer calls the hooks that are registered on it; many a wrapper does not."""
    return getattr(type(optimizer).step, "hooked", False) and hasattr(optimizer, "_optimizer_step_pre_hooks")
