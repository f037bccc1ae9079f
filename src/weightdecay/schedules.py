"""Schedules: the learning rate of each step, in shares of its peak."""

import math
from collections.abc import Callable

from weightdecay.arguments import choice, number, whole

SCHEDULES = ("constant", "linear", "cosine")


def cosine(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step, counted from 0: half a cosine from 1 down to 0.

    >>> cosine(0, 10), round(cosine(5, 10), 3)
    (1.0, 0.5)
    """
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def shares_of_peak(steps: int, schedule: str = "constant", warmup: int = 0, final: float = 0.0) -> tuple[float, ...]:
    """Return the learning rate of each step, in shares of its peak.

    >>> shares_of_peak(5, "linear", warmup=2)
    (0.5, 1.0, 1.0, 0.6666666666666667, 0.33333333333333337)
    """
    choice("schedule", schedule, SCHEDULES)
    count, rising = whole("steps", steps), whole("warmup", warmup, least=0)
    low = number("final", final, "[0, 1]")
    if rising >= count:
        raise ValueError(f"warmup={rising} is not shorter than the run of {count} steps")
    falling = count - rising
    down: dict[str, Callable[[int], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda place: 1 - place / falling,
        "cosine": lambda place: cosine(place, falling),
    }
    return (
        *((place + 1) / rising for place in range(rising)),
        *(low + (1 - low) * down[schedule](place) for place in range(falling)),
    )
