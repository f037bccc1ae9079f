"""The words and operators as lines of Triton: what a rule means while a kernel is being written.

A `Value` is one number per tensor (float64, computed once) or one per element of a block. Operators and words on it write
lines, so a rule that runs on Values writes its own kernel. Each operation rounds by itself, as torch's do, and every type is
spelt out: Triton's own promotion would make a float64 of a float32 next to a number.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from weightdecay.backends import rounding
from weightdecay.backends.expressions import ByComparison, Written
from weightdecay.update_rules import ops, rule

BOOL, INT16, INT32, INT64, HALF, FLOAT, DOUBLE = "int1", "int16", "int32", "int64", "float16", "float32", "float64"
_BITS = {BOOL: 1, INT16: 16, INT32: 32, INT64: 64, HALF: 16, FLOAT: 32, DOUBLE: 64}
STORAGE = {torch.float32: FLOAT, torch.float64: DOUBLE, torch.bfloat16: INT16, torch.float16: HALF, torch.int16: INT16}
"""How an element of each dtype lies in memory; bfloat16 as its bits, so that one arithmetic rounds it everywhere."""
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "xor": "^"}


class Value(Written):
    """A number of the kernel, by the name of its variable."""

    __slots__ = ("name", "of", "per_element")

    def __init__(
        self, writer: "Writer", name: str, of: str, *, per_element: bool = False, inverse: "Value | None" = None
    ) -> None:
        super().__init__(writer, inverse)
        self.name, self.of, self.per_element = name, of, per_element


class Writer(ByComparison):
    """Writes lines at two places: `once`, before the loop over a tensor's elements, and `each`, in it.

    What depends on numbers alone is written before the loop, and only once however often it is asked for.
    """

    wide = DOUBLE

    def __init__(self, real: str) -> None:
        self.real = real
        self.once: list[str] = []
        self.each: list[str] = []
        self.masked = False
        """Whether the loop at hand is over elements some of which are not there."""
        self._written: dict[tuple[str, str], Value] = {}
        self._count = 0
        self._bound: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.words: dict[str, Callable[..., Any]] = {name: getattr(self, name) for name in (*ops.WORDS, *rounding.BIT_WORDS)}

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of words as one that writes lines."""
        if function not in self._bound:
            self._bound[function] = rule.bind(function, self.words)
        return self._bound[function]

    # Lines --------------------------------------------------------------------------------------------------------------

    def emit(self, text: str, of: str, *operands: Value, per_element: bool | None = None) -> Value:
        """Write a line that names what a text computes, where its operands belong; `{}` in it stands for each of them."""
        if per_element is None:
            per_element = any(operand.per_element for operand in operands)
        text = text.format(*(operand.name for operand in operands))
        if not per_element and (text, of) in self._written:
            return self._written[text, of]
        self._count += 1
        made = Value(self, f"x{self._count}", of, per_element=per_element)
        (self.each if per_element else self.once).append(f"{made.name} = {text}")
        if not per_element:
            self._written[text, of] = made
        return made

    def constant(self, number: float, of: str) -> Value:
        """Return a number of the host as one of the kernel."""
        if of in (INT32, INT64):
            bits = _BITS[of]
            text = repr((int(number) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1))
        else:
            text = repr(float(number)) if math.isfinite(number) else f'float("{float(number)}")'
        return self.emit(f"tl.full((), {text}, tl.{of})", of)

    def converted(self, value: Value, of: str) -> Value:
        """Return the same number, or numbers, in another type."""
        return value if value.of == of else self.emit(f"{{}}.to(tl.{of})", of, value)

    def bits(self, value: Value, of: str) -> Value:
        """Return the same bits read as another type."""
        return self.emit(f"{{}}.to(tl.{of}, bitcast=True)", of, value)

    def with_inverse(self, value: Value, inverse: Value) -> Value:
        """Return a number by which to divide is to multiply by its inverse."""
        return Value(self, value.name, value.of, inverse=inverse)

    def alike(self, *operands: Any) -> tuple[Value, ...]:
        """Return the operands with one type: an element's goes before a number's."""
        values = [operand for operand in operands if isinstance(operand, Value)]
        of = max((value.of for value in [value for value in values if value.per_element] or values), key=_BITS.__getitem__)
        return tuple(self.converted(o, of) if isinstance(o, Value) else self.constant(o, of) for o in operands)

    def arithmetic(self, operation: str, x: Any, y: Any) -> Value:
        """Write x + y and its like."""
        if operation == "div" and isinstance(y, Value) and y.inverse is not None:
            operation, y = "mul", y.inverse
        x, y = self.alike(x, y)
        if operation == "shift":
            unsigned = f"tl.u{x.of}, bitcast=True"
            return self.emit(f"({{}}.to({unsigned}) >> {{}}.to({unsigned})).to(tl.{x.of}, bitcast=True)", x.of, x, y)
        if operation == "div" and x.of == FLOAT:
            return self.emit("tl.div_rn({}, {})", x.of, x, y)
        return self.emit(f"{{}} {_SIGNS[operation]} {{}}", x.of, x, y)

    def negated(self, x: Value) -> Value:
        """Write −x, of zero too."""
        return self.emit("-{}", x.of, x)

    def comparison(self, sign: str, x: Any, y: Any) -> Value:
        """Write x < y and its like; NaN compares as in IEEE 754."""
        return self.emit(f"{{}} {sign} {{}}", BOOL, *self.alike(x, y))

    # Memory -------------------------------------------------------------------------------------------------------------

    def load(self, pointer: str, dtype: torch.dtype) -> Value:
        """Read a block of elements, as numbers that this kernel computes with (int16 as integers)."""
        mask = ", mask=inside, other=0" if self.masked else ""
        raw = self.emit(f"tl.load({pointer} + base + lane{mask})", STORAGE[dtype], per_element=True)
        if dtype == torch.int16:
            return self.converted(raw, INT32)
        if dtype == torch.bfloat16:
            raw = self.bits(self.emit("({} << 16)", INT32, self.converted(raw, INT32)), FLOAT)
        return self.converted(raw, self.real)

    def store(self, value: Value, pointer: str, dtype: torch.dtype) -> None:
        """Write a block of elements, rounded to nearest."""
        if dtype == torch.bfloat16:
            value = self.bound(rounding.bfloat16_bits)(self.converted(value, FLOAT))
        if dtype == torch.float16:
            value = self.converted(value, FLOAT)  # as torch does it
        value = self.converted(value, STORAGE[dtype])
        mask = ", mask=inside" if self.masked else ""
        self.each.append(f"tl.store({pointer} + base + lane, {value.name}{mask})")

    # The words ----------------------------------------------------------------------------------------------------------

    def absolute(self, x: Any) -> Any:
        return self.emit("tl.abs({})", x.of, x) if isinstance(x, Value) else ops.absolute(x)

    def sqrt(self, x: Any) -> Any:
        if not isinstance(x, Value):
            return ops.sqrt(x)
        return self.emit("tl.sqrt_rn({})" if x.of == FLOAT else "tl.sqrt({})", x.of, x)

    def exp(self, x: Any) -> Any:
        return self.emit("words.exp({})", x.of, x) if isinstance(x, Value) else ops.exp(x)

    def log(self, x: Any) -> Any:
        return self.emit("words.log({})", x.of, x) if isinstance(x, Value) else ops.log(x)

    def power(self, x: Any, exponent: Any) -> Any:
        if not isinstance(x, Value) and not isinstance(exponent, Value):
            return ops.power(x, exponent)
        x, exponent = self._spread(*self.alike(x, exponent))
        return self.emit("words.power({}, {})", x.of, x, exponent)

    def debias(self, beta: Any, t: Any) -> Any:
        if not isinstance(beta, Value) and not isinstance(t, Value):
            return ops.debias(beta, t)
        if isinstance(beta, Value) and beta.per_element:  # float32 would lose it
            exact = 1 - self.power(self.converted(beta, DOUBLE), t)
            return self.converted(exact, beta.of)
        found = 1 - self.power(beta, t)
        if found.per_element:
            return found
        return self.with_inverse(found, 1 / found)  # at least 1 − β, and a division costs as much as all else

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        if not isinstance(condition, Value):
            return x if condition else y
        if condition.of != BOOL:
            condition = condition != 0
        if not isinstance(x, Value) and not isinstance(y, Value):
            of = self.real if condition.per_element else DOUBLE
            x, y = self.constant(x, of), self.constant(y, of)
        x, y = self.alike(x, y)
        if condition.per_element and not x.per_element and not y.per_element and x.of == DOUBLE:
            x, y = self.converted(x, self.real), self.converted(y, self.real)
        return self.emit("tl.where({}, {}, {})", x.of, condition, x, y)

    def _spread(self, *values: Value) -> tuple[Value, ...]:
        """Return the values one per element if any of them is: libdevice wants its arguments of one shape."""
        if not any(value.per_element for value in values):
            return values
        return tuple(
            value if value.per_element else self.emit("tl.broadcast_to({}, (BLOCK,))", value.of, value, per_element=True)
            for value in values
        )

    # The words of rounding ----------------------------------------------------------------------------------------------

    def pattern(self, x: Value) -> Value:
        return self.bits(x, INT32)

    def value(self, pattern: Value) -> Value:
        return self.bits(pattern, FLOAT)

    def number(self, integer: Value) -> Value:
        return self.converted(integer, FLOAT)

    def whole(self, x: Value) -> Value:
        return self.converted(x, INT64)

    def as_bfloat16(self, x: Value) -> Value:
        return self.bits(self.emit("({} << 16)", INT32, self.bound(rounding.bfloat16_bits)(x)), FLOAT)

    def as_float16(self, x: Value) -> Value:
        return self.converted(self.converted(x, HALF), FLOAT)

    def floor(self, x: Value) -> Value:
        return self.emit("tl.floor({})", x.of, x)

    def copysign(self, x: Value, y: Value) -> Value:
        return self.emit("words.copysign({}, {})", x.of, *self._spread(x, y))
