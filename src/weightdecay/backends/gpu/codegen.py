"""From three rules and the dtypes at hand to Triton's text: a few functions that step every tensor of a list.

A kernel's table names tensors by their addresses, and lies on the device itself. Each tensor is cut into parts of some
blocks of `BLOCK` elements, and a program does one part. Where all of a tensor's addresses are multiples of 16 bytes its
whole blocks are read and written 16 bytes at a time; the rest of it, and a tensor of which that is not so, with a mask.

A pass before the last, a launch each, leaves one partial sum per part. A number of all tensors has a pass of its own, after
which everybody's sums are added up.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import indent

import torch

from weightdecay.backends import counting, param_table, rounding
from weightdecay.backends.expressions import Pair
from weightdecay.backends.gpu.ops import DOUBLE, FLOAT, INT32, INT64, STORAGE, Value, Writer
from weightdecay.backends.passes import Pass, Passes, Sum

BLOCK = 1024
"""Elements that a program has in its registers at a time."""
FIRST_COLUMNS = ("first", "blocks", "elements", "row", "index")
"""What the table holds of every tensor, before addresses: its first program, and how many blocks a program of it does."""
ARGUMENTS = {"table": "*i64", "parts": "*i32", "partials": "*fp64", "left": "*fp64", "skip": "*fp32", "unscale": "*fp32"}
"""What every function of a kernel takes: the table with the rows of numbers behind it, the tensor of each part, partial sums,
what a step leaves of the numbers kept per tensor, and GradScaler's found_inf and inverse scale."""
SIZES = {"tensors": "i32", "count": "i32"}
"""How many tensors and parts there are."""


@dataclass(frozen=True)
class Signature(param_table.Signature):
    """All that a kernel depends on, and the device that its table is on."""

    device: torch.device
    counted: bool
    """Whether the step counts lie on the device and are counted there."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the table's columns; the last two change from step to step."""
        return (*FIRST_COLUMNS, *self.addresses, "g", "t")


@dataclass(frozen=True)
class Source:
    """The text of what steps the parameters of one signature."""

    passes: tuple[str, ...]
    """The functions that go over the elements, in order; the last one writes."""
    begun: int
    """How many of them come before the numbers of all tensors are known."""
    shares: tuple[int, ...]
    """Which of the partial sums are of these numbers, in the order of the signature."""
    settle: str | None
    """The function that counts the step and moves on the numbers that are kept per tensor, where there are any."""
    sums: int
    """How many partial sums a part leaves."""


def source(signature: Signature) -> Source:
    """Return the functions for a signature."""
    passes = Passes(signature)
    name = re.sub(r"\W", "_", "_".join(rule.name for rule in signature.equation.rules))
    texts = [
        _Pass(signature, passes, place).source(f"{name}_{'sum' if wanted else 'step'}{place}")
        for place, wanted in enumerate(passes.wanted)
    ]
    settle = _settle(signature, f"{name}_settle") if signature.counted or signature.next else None
    return Source(tuple(texts), passes.begun, passes.shares, settle, len(passes.sums))


class _Pass(Pass):
    """Writes one pass as a function of Triton."""

    signature: Signature
    writer: Writer

    def __init__(self, signature: Signature, passes: Passes, place: int) -> None:
        super().__init__(signature, passes, place)
        self.writer = Writer(DOUBLE if signature.weight == torch.float64 else FLOAT)
        self.number = self._numbers()
        self.loops = ["\n".join(self._body(masked)) for masked in (False, True)]

    def source(self, name: str) -> str:
        """Return the text of the function."""
        pointers = list(self._pointers())
        aligned = " | ".join(name for name, _ in pointers)
        text = f"""
part = tl.program_id(0)
tensor = tl.load(parts + part)
lane = tl.arange(0, BLOCK)
first = {self._address("first")}
blocks = {self._address("blocks")}
elements = {self._address("elements")}
g = {self._address("g")}
if (g != 0) & (tl.load(skip) == 0):
    begin = (part - first) * blocks * BLOCK
    end = tl.minimum(begin + blocks * BLOCK, elements)
    of_tensor = (elements + blocks * BLOCK - 1) // (blocks * BLOCK)
"""
        inner = [f"{name} = {self._address(name)}" for name, _ in pointers if name != "g"]
        inner += [f"whole = tl.where((({aligned}) & 15) == 0, begin + (end - begin) // BLOCK * BLOCK, begin)"]
        inner += self.writer.once
        inner += [f"total{place} = tl.zeros((BLOCK,), tl.float64)" for place in range(len(self.wanted))]
        inner += [f"at_{name} = tl.multiple_of({name}.to(tl.pointer_type(tl.{of})), 16)" for name, of in pointers]
        inner += ["for base in range(begin, whole, BLOCK):", indent(self.loops[0], "    ")]
        inner += [f"at_{name} = {name}.to(tl.pointer_type(tl.{of}))" for name, of in pointers]
        inner += ["for base in range(whole, end, BLOCK):", "    inside = lane < (end - base).to(tl.int32)"]
        inner += [indent(self.loops[1], "    ")]
        for place, which in enumerate(self.wanted):
            fold = "max" if which.largest else "sum"
            inner += [f"tl.store(partials + {len(self.known) + place} * count + part, tl.{fold}(total{place}))"]
        return _definition(name, [*text.strip().splitlines(), indent("\n".join(inner), "    ")])

    def _address(self, column: str) -> str:
        return f"tl.load(table + {self.signature.columns.index(column)} * tensors + tensor)"

    def _pointers(self) -> Iterator[tuple[str, str]]:
        """Yield the columns of the tensors that are read or written per element, and how their elements lie there."""
        signature = self.signature
        dtypes = {"w": signature.weight, "g": signature.grad, "compensation": torch.int16}
        dtypes.update({f"moment{k}": dtype for k, dtype in enumerate(signature.moments)})
        for name in (*signature.addresses, "g"):
            if name in dtypes:
                yield name, STORAGE[dtypes[name]]

    def _body(self, masked: bool) -> list[str]:
        """Return the lines of a loop over blocks."""
        self.writer.each, self.writer.masked = [], masked
        self.write_elements()
        return self.writer.each

    def load(self, column: str, dtype: torch.dtype) -> Value:
        return self.writer.load(f"at_{column}", dtype)

    def store(self, value: Value, column: str, dtype: torch.dtype) -> None:
        self.writer.store(value, f"at_{column}", dtype)

    def leave(self, value: Value, column: str) -> None:
        place = self.signature.next.index(column)
        line = f"tl.store(left + {place} * tensors + tensor, {value.name}, mask=part == first)"
        if line not in self.writer.once:  # it stands before both loops
            self.writer.once.append(line)

    def add(self, term: Value, which: int) -> None:
        writer = self.writer
        term = writer.converted(term, DOUBLE)
        if writer.masked:
            term = writer.emit("tl.where(inside, {}, 0.0)", DOUBLE, term, per_element=True)
        before = Value(writer, f"total{which}", DOUBLE, per_element=True)
        after = writer.maximum(before, term) if self.wanted[which].largest else before + term
        writer.each.append(f"{before.name} = {after.name}")

    def partial(self, which: Sum) -> Value:
        fold = "largest" if which.largest else "total"
        place = self.known.index(which)
        return self.writer.emit(f"partials_of.{fold}(partials + {place} * count + first, of_tensor, BLOCK)", DOUBLE)

    def _numbers(self) -> dict[tuple[str, str], Value]:
        """Write how the numbers of a tensor are read: its row, what is kept for it, and t."""
        signature, writer = self.signature, self.writer
        names = signature.numbers
        row = writer.emit(f"{self._address('row')} * {len(names)} + {len(signature.columns)} * tensors", INT64)
        words = [writer.emit(f"tl.load(table + {{}} + {k})", INT64, row) for k in range(len(names))]
        found = {
            name: word if name == ("", "seed") else writer.bits(word, DOUBLE) for name, word in zip(names, words, strict=True)
        }
        unscale = writer.converted(writer.emit("tl.load(unscale)", FLOAT), DOUBLE)
        found["", "factor"] = found["", "factor"] * unscale
        for each in signature.kept:
            if not each.per_element:
                found["kept", each.name] = self._loaded(f"memory_{each.name}", DOUBLE)
        if signature.counted:
            t = writer.bound(counting.following)(self._loaded("step", FLOAT))
        else:
            t = writer.value(writer.emit(f"{self._address('t')}.to(tl.int32)", INT32))
        found["", "t"] = writer.converted(t, DOUBLE)
        return found

    def _loaded(self, column: str, of: str) -> Value:
        """Write how a number is read whose address a column holds."""
        return self.writer.emit(f"tl.load({self._address(column)}.to(tl.pointer_type(tl.{of})))", of)

    def random_bits(self) -> Value:
        writer, number = self.writer, self.number
        index = writer.emit(self._address("index"), INT64)
        t = writer.bound(counting.drawn_from)(number["", "t"])
        key = writer.bound(rounding.keys)(number["", "seed"], t, index)
        # A block starts at an even place, and no pair's upper half changes within one.
        base, block = "tl.full((), base, tl.int64)", {"per_element": True}
        low = writer.emit(f"({base} >> 1).to(tl.int32) + (lane >> 1)", INT32, **block)
        high = writer.emit(f"({base} >> 33).to(tl.int32)", INT32, **block)
        drawn = writer.bound(rounding.mixed)(Pair(low, high), key)
        odd = writer.emit("(lane & 1) * 16", INT32, **block)
        half: Value = (drawn >> odd) & 0xFFFF
        return half


def _settle(signature: Signature, name: str) -> str:
    """Return the source of the function that counts a step and takes over the numbers that it has left."""
    columns = signature.columns
    address = "tl.load(table + {} * tensors + tensor, mask=there, other=0)"
    moves = []
    if signature.counted:
        moves += [f"step = {address.format(columns.index('step'))}.to(tl.pointer_type(tl.float32))"]
        writer = Writer(FLOAT)
        after = writer.bound(counting.following)(writer.emit("tl.load(step, mask=there, other=0)", FLOAT))
        moves += [*writer.once, f"tl.store(step, {after.name}, mask=there)"]
    for k, following in enumerate(signature.next):
        column = columns.index(following.replace("next", "memory", 1))
        moves += [f"kept{k} = {address.format(column)}.to(tl.pointer_type(tl.float64))"]
        moves += [f"tl.store(kept{k}, tl.load(left + {k} * tensors + tensor, mask=there, other=0), mask=there)"]
    lines = [
        "tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)",
        "there = tensor < tensors",
        f"there = there & ({address.format(columns.index('g'))} != 0)",
        "if tl.load(skip) == 0:",
        indent("\n".join(moves), "    "),
    ]
    return _definition(name, lines)


def _definition(name: str, lines: Sequence[str]) -> str:
    """Return the text of a function of a kernel."""
    body = indent("\n".join(lines), "    ")
    return f"def {name}({', '.join([*ARGUMENTS, *SIZES, 'BLOCK: tl.constexpr'])}):\n{body}\n"
