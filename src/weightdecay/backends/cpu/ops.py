"""The words and operators as LLVM instructions: what a rule means while a kernel is being written.

A `Value` is one number per tensor (a double, computed once) or one per element (lanes of a vector, computed in the loop).
Operators and words on it emit instructions, so a rule that runs on Values writes its own machine code. Each operation rounds
by itself, as torch's do: nothing is contracted or reordered, and a weight comes out the same whatever lane it was in.
"""

import ctypes
import math
from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir

from weightdecay.backends import rounding
from weightdecay.backends.expressions import ByComparison, Written
from weightdecay.update_rules import ops, rule

BIT, I16, I32, I64 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)
FLOAT, DOUBLE, HALF = ir.FloatType(), ir.DoubleType(), ir.HalfType()
POINTER = ir.PointerType()
STORAGE = {torch.float32: FLOAT, torch.float64: DOUBLE, torch.bfloat16: I16, torch.float16: HALF, torch.int16: I16}
"""How an element of each dtype lies in memory; LLVM's own bfloat is left alone, since not every processor rounds it alike."""

_ROOT = 0x3F3504F3
"""The bits of √½ in float32."""
_STEEP = 2.0**40
"""An exponent beyond which every power of a float32 but 1 is zero or infinite."""

_REALS = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INTEGERS = {"add": "add", "sub": "sub", "mul": "mul", "and": "and_", "xor": "xor", "shift": "lshr"}


class Value(Written):
    """A number of the kernel: per tensor if its type is a scalar, per element if it is a vector."""

    __slots__ = ("ir",)

    def __init__(self, writer: "Writer", value: ir.Value, inverse: "Value | None" = None) -> None:
        super().__init__(writer, inverse)
        self.ir = value

    @property
    def per_element(self) -> bool:
        """Return whether there is one of these for every element."""
        return isinstance(self.ir.type, ir.VectorType)

    @property
    def of(self) -> ir.Type:
        """Return the type of one number."""
        return self.ir.type.element if self.per_element else self.ir.type


class Writer(ByComparison):
    """Writes instructions at two places: `once`, before the loop over a tensor's elements, and `each`, in it.

    What depends on numbers alone is written before the loop, and only once however often it is asked for.
    """

    wide = DOUBLE

    def __init__(self, module: ir.Module, once: ir.IRBuilder, real: ir.Type) -> None:
        self.module, self.once, self.real = module, once, real
        self.each: ir.IRBuilder = once
        self.lanes = 1
        self._written: dict[Any, Value] = {}
        self._bound: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.words: dict[str, Callable[..., Any]] = {name: getattr(self, name) for name in (*ops.WORDS, *rounding.BIT_WORDS)}

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of words as one that writes instructions."""
        if function not in self._bound:
            self._bound[function] = rule.bind(function, self.words)
        return self._bound[function]

    # Instructions -------------------------------------------------------------------------------------------------------

    def emit(self, name: str, *operands: Value, typ: ir.Type | None = None, call: bool = False, flag: str = "") -> Value:
        """Write one instruction, or the call of an LLVM intrinsic, where its operands belong."""
        values = [operand.ir for operand in operands]
        each = any(operand.per_element for operand in operands)
        key = (name, flag, str(typ), *(id(value) for value in values))
        if not each and key in self._written:
            return self._written[key]
        builder = self.each if each else self.once
        if call:
            of = typ or values[0].type
            suffix = f"v{of.count}f{_bits(of.element)}" if isinstance(of, ir.VectorType) else f"f{_bits(of)}"
            title = f"llvm.{name}.{suffix}"
            function = self.module.globals.get(title)
            if function is None:
                function = ir.Function(self.module, ir.FunctionType(of, [value.type for value in values]), title)
            result = builder.call(function, values)
        elif flag:
            result = getattr(builder, name)(flag, *values)
        else:
            result = getattr(builder, name)(*values, *([typ] if typ is not None else []))
        made = Value(self, result)
        if not each:
            self._written[key] = made  # whose operands it keeps alive, and so their ids
        return made

    def constant(self, number: float, of: ir.Type) -> Value:
        """Return a number of the host as one of the kernel."""
        key = ("constant", repr(number), str(of))
        if key not in self._written:
            if isinstance(of, ir.IntType):
                number = int(number) % 2**of.width
            elif of == FLOAT:
                number = ctypes.c_float(number).value  # LLVM wants a float spelt as float32 holds it
            self._written[key] = Value(self, ir.Constant(of, number))
        return self._written[key]

    def spread(self, value: Value, of: ir.Type) -> Value:
        """Return a number per tensor as one per element."""
        value = self.converted(value, of)
        key = ("spread", id(value.ir), self.lanes)
        if key not in self._written:
            vector = ir.VectorType(of, self.lanes)
            first = self.once.insert_element(ir.Constant(vector, ir.Undefined), value.ir, I32(0))
            zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
            self._written[key] = Value(self, self.once.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros))
        return self._written[key]

    def converted(self, value: Value, of: ir.Type) -> Value:
        """Return the same number, or numbers, in another type."""
        if value.of == of:
            return value
        target = ir.VectorType(of, self.lanes) if value.per_element else of
        if isinstance(of, ir.IntType) and isinstance(value.of, ir.IntType):
            name = "trunc" if value.of.width > of.width else "zext" if value.of == BIT else "sext"
        elif isinstance(of, ir.IntType):
            name = "fptosi"
        elif isinstance(value.of, ir.IntType):
            name = "uitofp" if value.of == BIT else "sitofp"
        else:
            name = "fptrunc" if _bits(value.of) > _bits(of) else "fpext"
        return self.emit(name, value, typ=target)

    def with_inverse(self, value: Value, inverse: Value) -> Value:
        """Return a number by which to divide is to multiply by its inverse."""
        return Value(self, value.ir, inverse)

    def alike(self, *operands: Any) -> tuple[Value, ...]:
        """Return the operands with one type, per element if any of them is: an element's type goes before a number's."""
        values = [operand for operand in operands if isinstance(operand, Value)]
        lanes = [value for value in values if value.per_element]
        of = max((value.of for value in lanes or values), key=_bits)
        numbers = [self.converted(o if isinstance(o, Value) else self.constant(o, of), of) for o in operands]
        return tuple(self.spread(number, of) if lanes and not number.per_element else number for number in numbers)

    def arithmetic(self, operation: str, x: Any, y: Any) -> Value:
        """Write x + y and its like."""
        if operation == "div" and isinstance(y, Value) and y.inverse is not None:
            operation, y = "mul", y.inverse
        x, y = self.alike(x, y)
        table = _INTEGERS if isinstance(x.of, ir.IntType) else _REALS
        return self.emit(table[operation], x, y)

    def negated(self, x: Value) -> Value:
        """Write −x."""
        return self.emit("fneg", x)

    def comparison(self, sign: str, x: Any, y: Any) -> Value:
        """Write x < y and its like; NaN compares as in IEEE 754."""
        x, y = self.alike(x, y)
        if isinstance(x.of, ir.IntType):
            return self.emit("icmp_signed", x, y, flag=sign)
        return self.emit("fcmp_unordered" if sign == "!=" else "fcmp_ordered", x, y, flag=sign)

    def bits(self, value: Value, of: ir.Type) -> Value:
        """Return the same bits read as another type."""
        return self.emit("bitcast", value, typ=ir.VectorType(of, self.lanes) if value.per_element else of)

    # Memory -------------------------------------------------------------------------------------------------------------

    def load(self, pointer: ir.Value, dtype: torch.dtype, place: ir.Value) -> Value:
        """Read the elements at a place, as numbers that this kernel computes with (int16 as integers)."""
        of = STORAGE[dtype]
        at = self.each.gep(pointer, [place], source_etype=of)
        raw = Value(self, self.each.load(at, align=dtype.itemsize, typ=ir.VectorType(of, self.lanes)))
        if dtype == torch.int16:
            return self.converted(raw, I32)
        if dtype == torch.bfloat16:
            wide = Value(self, self.each.zext(raw.ir, ir.VectorType(I32, self.lanes)))
            raw = self.bits(Value(self, self.each.shl(wide.ir, self._splat(16, I32).ir)), FLOAT)
        return self.converted(raw, self.real)

    def store(self, value: Value, pointer: ir.Value, dtype: torch.dtype, place: ir.Value) -> None:
        """Write the elements at a place, rounded to nearest."""
        of = STORAGE[dtype]
        if dtype == torch.bfloat16:
            value = self.bound(rounding.bfloat16_bits)(self.converted(value, FLOAT))
        if of == HALF:
            value = self.converted(value, FLOAT)  # as torch does it, and as every processor can
        value = self.converted(value, of)
        self.each.store(value.ir, self.each.gep(pointer, [place], source_etype=of), align=dtype.itemsize)

    def _splat(self, number: float, of: ir.Type) -> Value:
        return self.spread(self.constant(number, of), of)

    # The words ----------------------------------------------------------------------------------------------------------

    def absolute(self, x: Any) -> Any:
        return self.emit("fabs", x, call=True) if isinstance(x, Value) else ops.absolute(x)

    def sqrt(self, x: Any) -> Any:
        return self.emit("sqrt", x, call=True) if isinstance(x, Value) else ops.sqrt(x)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        if not isinstance(condition, Value):
            return x if condition else y
        if condition.of != BIT:
            condition = condition != 0
        if not isinstance(x, Value) and not isinstance(y, Value):
            x = self._splat(x, self.real) if condition.per_element else self.constant(x, DOUBLE)
        x, y = self.alike(x, y)
        if condition.per_element and not x.per_element:
            x, y = (self.spread(side, self.real if x.of == DOUBLE else x.of) for side in (x, y))
        elif x.per_element and not condition.per_element:
            condition = self.spread(condition, BIT)
        return self.emit("select", condition, x, y)

    def debias(self, beta: Any, t: Any) -> Any:
        if not isinstance(beta, Value) and not isinstance(t, Value):
            return ops.debias(beta, t)
        if isinstance(beta, Value) and self._is_fast(beta):  # float32 would lose it, and no rule is in a hurry for it
            exact = 1 - self.emit("pow", *self.alike(self.converted(beta, DOUBLE), t), call=True)
            return self.converted(exact, beta.of)
        found = 1 - self.power(beta, t)
        if found.per_element:
            return found
        return self.with_inverse(found, 1 / found)  # at least 1 − β, and a division costs as much as all else

    def exp(self, x: Any) -> Any:
        if not isinstance(x, Value):
            return ops.exp(x)
        if not self._is_fast(x):
            return self.emit("exp", x, call=True)
        high, low = _split(math.log2(math.e))
        size = self.where(x < 200, self.where(x > -200, x, -200.0), 200.0)  # beyond, all is 0 or infinite
        whole = size * high
        found = self._exp2(whole, self._fma(size, high, -whole) + size * low)
        return self.where(x == x, found, x)

    def log(self, x: Any) -> Any:
        if not isinstance(x, Value):
            return ops.log(x)
        if not self._is_fast(x):
            return self.emit("log", x, call=True)
        k, high, low = self._log2(x)
        first, second = _split(math.log(2))
        found = k * first + (high * first + (low * first + (k + high) * second))
        found = self.where(x == 0, -math.inf, self.where(x == math.inf, x, found))
        return self.where(x >= 0, found, math.nan)

    def power(self, x: Any, exponent: Any) -> Any:
        if not isinstance(x, Value) and not isinstance(exponent, Value):
            return ops.power(x, exponent)
        if not isinstance(x, Value) or not self._is_fast(x):
            return self.emit("pow", *self.alike(x, exponent), call=True)
        of, x = x.of, self.converted(x, FLOAT)
        y = self.converted(exponent if isinstance(exponent, Value) else self.constant(float(exponent), DOUBLE), FLOAT)
        y = self.where(y > _STEEP, _STEEP, self.where(y < -_STEEP, -_STEEP, y))
        if y.per_element:
            return self.converted(self._any_power(x, y), of)
        found = self._either(
            self._is_simple(y),
            lambda: self._simple_power(x, y),
            lambda: self._either(self._all_normal(x, y == y), lambda: self._normal_power(x, y), lambda: self._any_power(x, y)),
        )
        return self.converted(found, of)

    # Powers and logarithms of float32, sixteen at a time where the C library takes one. A number here is often a sum of two
    # floats, the second being what the first has lost: 24 bits of an exponent leave the power with only a dozen.

    def _is_fast(self, x: Value) -> bool:
        return x.per_element and self.real == FLOAT

    def _either(self, condition: Value, one: Callable[[], Value], other: Callable[[], Value]) -> Value:
        """Write a branch on one truth for all lanes: unlike `where`, only what is asked for is computed."""
        found: list[tuple[ir.Value, ir.Block]] = []
        with self.each.if_else(condition.ir) as (then, otherwise):
            for branch, make in ((then, one), (otherwise, other)):
                with branch:
                    made = make()
                    found.append((made.ir, self.each.block))
        joined = self.each.phi(found[0][0].type)
        for value, block in found:
            joined.add_incoming(value, block)
        return Value(self, joined)

    def _is_simple(self, y: Value) -> Value:
        """Tell whether a power is a product of x, x and √x, as the defaults of most rules are."""
        doubled = y * 2
        simple: Value = (self.emit("floor", doubled, call=True) == doubled) & (y >= 0) & (y < 3)
        return simple

    def _simple_power(self, x: Value, y: Value) -> Value:
        half = self.emit("floor", y, call=True) != y
        found = self.where(y >= 1, x, 1.0) * self.where(y >= 2, x, 1.0)
        root: Value = found * self.where(half, self.sqrt(x), 1.0)
        return root

    def _all_normal(self, x: Value, beside: Value) -> Value:
        """Tell whether every lane is positive, finite and no subnormal, and another truth holds beside."""
        in_range = self.emit("icmp_unsigned", *self.alike(self.bits(x, I32) - 0x00800000, 0x7F000000), flag="<")
        packed = ir.IntType(self.lanes)
        every = self.each.icmp_unsigned("==", self.each.bitcast(in_range.ir, packed), ir.Constant(packed, -1))
        return Value(self, self.each.and_(every, beside.ir))

    def _normal_power(self, x: Value, y: Value) -> Value:
        k, high, low = self._log2_of_normal(x)
        return self._exp2(*self._product(self.alike(y, x)[0], k, high, low))

    def _any_power(self, x: Value, y: Value) -> Value:
        whole, half = self.emit("floor", y, call=True) == y, y * 0.5
        even = self.emit("floor", half, call=True) == half
        size = self.absolute(x)
        k, high, low = self._log2(size)
        found = self._exp2(*self._product(self.alike(y, x)[0], k, high, low))
        found = self.where(size == math.inf, self.where(y > 0, math.inf, 0.0), found)
        found = self.where(x == 0, self.where(y > 0, 0.0, math.inf), found)
        signed = found * self.where(even, 1.0, self.where(whole, -1.0, self.where(size == math.inf, 1.0, math.nan)))
        found = self.where(x < 0, signed, found)
        found = self.where(x == x, self.where(y == y, found, y), x)
        any_power: Value = self.where(y == 0, 1.0, self.where(x == 1, 1.0, found))
        return any_power

    def _fma(self, x: Any, y: Any, z: Any) -> Value:
        """Return x·y + z, rounded once."""
        return self.emit("fma", *self.alike(x, y, z), call=True)

    def _series(self, x: Value, *coefficients: float) -> Any:
        """Return a polynomial in x, its highest power first."""
        total: Any = coefficients[0]
        for coefficient in coefficients[1:]:
            total = self._fma(total, x, coefficient)
        return total

    def _log2(self, x: Value) -> tuple[Value, Value, Value]:
        """Return log₂ x, of positive x, as a whole number and two floats."""
        tiny = x < 2.0**-126
        k, high, low = self._log2_of_normal(self.where(tiny, x * 2.0**24, x))
        return k - self.where(tiny, 24.0, 0.0), high, low

    def _log2_of_normal(self, x: Value) -> tuple[Value, Value, Value]:
        """Return log₂ x of numbers that are not subnormal.

        x = 2ᵏ·z with z in [√½, √2), and log z = 2·artanh s with s = (z − 1)/(z + 1), whose series converges fast there.
        """
        pattern = self.bits(x, I32)
        from_root = pattern - _ROOT
        exponent = self.emit("ashr", from_root, self._splat(23, I32))
        k = self.converted(exponent, FLOAT)
        z = self.bits(pattern - (from_root & ~(2**23 - 1)), FLOAT)
        above, below = z - 1, z + 1
        s = above / below
        rest = self._fma(-s, below, above) - s * (z - (below - 1))
        s_low = rest * (0.5 - 0.5 * s)  # 1/(z + 1) is (1 − s)/2
        square = s * s
        high, low = _split(2 / math.log(2))
        first = s * high
        tail = square * s * self._series(square, *(2 / math.log(2) / odd for odd in (11, 9, 7, 5, 3)))
        return k, first, self._fma(s, high, -first) + (s * low + s_low * high + tail)

    def _product(self, y: Value, k: Value, high: Value, low: Value) -> tuple[Value, Value]:
        """Return y·(k + high + low) as two floats. k is 0 or the largest of the three."""
        a, b = y * k, y * high
        total = a + b
        return total, (b - (total - a)) + (self._fma(y, k, -a) + (self._fma(y, high, -b) + y * low))

    def _exp2(self, high: Value, low: Value) -> Value:
        """Return 2^(high + low)."""
        low = self.where(self.absolute(high) < 200, low, 0.0)
        high = self.where(high < 200, high, 200.0)
        high = self.where(high > -200, high, -200.0)
        whole = self.emit("nearbyint", high, call=True)
        rest = (high - whole) + low
        power = self._series(rest, *(math.log(2) ** n / math.factorial(n) for n in range(7, -1, -1)))
        n = self.converted(whole, I32)
        half = self.emit("ashr", n, self._splat(1, I32))
        for part in (half, n - half):  # in two halves, since 2ⁿ may be no float where the product is one
            power = power * self.bits(self.emit("shl", part + 127, self._splat(23, I32)), FLOAT)
        found: Value = power
        return found

    # The words of rounding ----------------------------------------------------------------------------------------------

    def pattern(self, x: Value) -> Value:
        return self.bits(x, I32)

    def value(self, pattern: Value) -> Value:
        return self.bits(pattern, FLOAT)

    def number(self, integer: Value) -> Value:
        return self.converted(integer, FLOAT)

    def whole(self, x: Value) -> Value:
        return self.converted(x, I64)

    def as_bfloat16(self, x: Value) -> Value:
        return self.bits(self.emit("shl", self.bound(rounding.bfloat16_bits)(x), self._splat(16, I32)), FLOAT)

    def as_float16(self, x: Value) -> Value:
        return self.converted(self.converted(x, HALF), FLOAT)

    def floor(self, x: Value) -> Value:
        return self.emit("floor", x, call=True)

    def copysign(self, x: Value, y: Value) -> Value:
        return self.emit("copysign", x, y, call=True)


def _split(number: float) -> tuple[float, float]:
    """Return a number as the sum of two float32."""
    high = ctypes.c_float(number).value
    return high, number - high


def _bits(of: ir.Type) -> int:
    return of.width if isinstance(of, ir.IntType) else {HALF: 16, FLOAT: 32, DOUBLE: 64}[of]
