"""What a rule keeps from step to step."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Shape = Callable[[tuple[int, ...]], tuple[int, ...] | None]


@dataclass(frozen=True)
class Kept:
    """What a rule keeps in the optimizer's state from one step to the next."""

    name: str
    """The rule's argument."""
    key: str
    """Its key in the optimizer's `state`, which is torch's where torch has one."""
    per_element: bool
    changes: bool
    """Whether the rule returns it anew; else it stays what it was before the first step."""
    start: float | str = 0.0
    """The value before the first step: a number, `w`, or the name of a reduction."""
    unless: str | None = None
    """The hyper-parameter without which (at zero) it is neither kept nor read."""
    shape: Shape | None = None
    """What makes its shape of the parameter's, if it has another."""

    def is_kept(self, numbers: Mapping[str, Any]) -> bool:
        """Return whether it is needed at these hyper-parameters."""
        value = numbers[self.unless] if self.unless is not None else 1
        return not isinstance(value, int | float) or value != 0

    def shape_of(self, param: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return its shape for a parameter of this shape; None if such a parameter has none of it."""
        if not self.per_element:
            return ()
        return param if self.shape is None else self.shape(param)


def kept_for(shape: tuple[int, ...], kept: Iterable[Kept]) -> tuple[Kept, ...]:
    """Return those of what rules keep that a parameter of this shape has."""
    return tuple(each for each in kept if each.shape_of(shape) is not None)
