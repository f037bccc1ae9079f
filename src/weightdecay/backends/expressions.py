"""What the backends have in common that write code: a value whose operators write down what they would compute.

A rule that runs on such values writes itself, once, in the language of its backend.
"""

import math
from collections.abc import Callable
from typing import Any

from weightdecay.update_rules import ops


class Written:
    """A value of the code that is being written: every operator is handed to its writer."""

    __slots__ = ("inverse", "writer")

    def __init__(self, writer: Any, inverse: Any = None) -> None:
        self.writer = writer
        self.inverse = inverse
        """What to multiply by instead of dividing, for a number whose inverse leaves no float's range."""

    def __add__(self, other: Any) -> Any:
        return self.writer.arithmetic("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return self.writer.arithmetic("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return self.writer.arithmetic("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self.writer.arithmetic("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return self.writer.arithmetic("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return self.writer.arithmetic("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return self.writer.arithmetic("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self.writer.arithmetic("div", other, self)

    def __and__(self, other: Any) -> Any:
        return self.writer.arithmetic("and", self, other)

    def __xor__(self, other: Any) -> Any:
        return self.writer.arithmetic("xor", self, other)

    def __rshift__(self, other: int) -> Any:
        return self.writer.arithmetic("shift", self, other)

    def __neg__(self) -> Any:
        return self.writer.negated(self)

    def __pos__(self) -> Any:
        return self

    def __lt__(self, other: Any) -> Any:
        return self.writer.comparison("<", self, other)

    def __le__(self, other: Any) -> Any:
        return self.writer.comparison("<=", self, other)

    def __gt__(self, other: Any) -> Any:
        return self.writer.comparison(">", self, other)

    def __ge__(self, other: Any) -> Any:
        return self.writer.comparison(">=", self, other)

    def __eq__(self, other: object) -> Any:
        return self.writer.comparison("==", self, other)

    def __ne__(self, other: object) -> Any:
        return self.writer.comparison("!=", self, other)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("a value of the kernel has no truth while it is being written")


class Pair:
    """The number of each pair of neighbours in their tensor: 64 bits, of which a kernel holds two halves."""

    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = low, high

    def __and__(self, mask: int) -> Any:
        assert mask == 0xFFFFFFFF
        return self.low

    def __rshift__(self, bits: int) -> Any:
        assert bits == 32
        return self.high


class ByComparison:
    """The words that are made of comparisons alone, for a writer that has `where` and `absolute`."""

    where: Callable[..., Any]
    absolute: Callable[..., Any]
    alike: Callable[..., Any]

    def sign(self, x: Any) -> Any:
        if not isinstance(x, Written):
            return ops.sign(x)
        return self.where(x > 0, 1.0, self.where(x < 0, -1.0, self.where(x == 0, 0.0, x)))

    def finite(self, x: Any) -> Any:
        return self.absolute(x) < math.inf

    def maximum(self, x: Any, y: Any) -> Any:
        return self._extremum("maximum", lambda x, y: x >= y, x, y)

    def minimum(self, x: Any, y: Any) -> Any:
        return self._extremum("minimum", lambda x, y: x <= y, x, y)

    def _extremum(self, word: str, better: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
        if not isinstance(x, Written) and not isinstance(y, Written):
            return getattr(ops, word)(x, y)
        x, y = self.alike(x, y)
        return self.where(better(x, y), x, self.where(x == x, y, x))
