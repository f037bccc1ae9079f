"""From three rules and the dtypes at hand to Triton's text: a few functions that step every tensor of a list.

A kernel's table names tensors by their addresses, and lies on the device itself. Each tensor is cut into parts of some
blocks of `BLOCK` elements, and a program does one part. Where all of a tensor's addresses are multiples of 16 bytes its
whole blocks are read and written 16 bytes at a time; the rest of it, and a tensor of which that is not so, with a mask.

A rule that asks for a reduction costs a further launch, which writes nothing but one partial sum per part. Reductions that do
not wait for one another share it. A number of all tensors has a launch of its own, after which everybody's sums are added up.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import torch

from weightdecay.readers import rounding, table
from weightdecay.readers.gpu.values import DOUBLE, FLOAT, INT32, INT64, STORAGE, Value, Writer
from weightdecay.readers.written import Pair
from weightdecay.reductions import REDUCTIONS, Reduction
from weightdecay.step import Equation, step

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
class Signature(table.Signature):
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
    known: list[_Sum] = []
    passes: list[str] = []
    name = re.sub(r"\W", "_", "_".join(rule.name for rule in signature.equation.rules))

    def write(share: str | None) -> list[_Sum]:
        writing = _Pass(signature, known, share)
        passes.append(writing.source(f"{name}_{'sum' if writing.found else 'step'}{len(passes)}"))
        known.extend(writing.found)
        return writing.found

    shares = [_Sum(share, largest=False) for share in signature.shares]
    for share in shares:
        while share not in known:  # each pass finds the sums that wait for no other
            write(str(share.reduction))
    begun = len(passes)
    while write(None):
        pass
    settle = _settle(signature, f"{name}_settle") if signature.counted or signature.next else None
    return Source(tuple(passes), begun, tuple(map(known.index, shares)), settle, len(known))


@dataclass(frozen=True)
class _Sum:
    """A reduction's terms added up, or the largest element, in whose units they are taken."""

    reduction: int | str
    """Which of the reductions that the rules ask for, in the order of the step; one of all tensors by its name."""
    largest: bool


class _Pass:
    """Writes one pass over all elements of all tensors: the sums that can be had by now, or the step itself."""

    def __init__(self, signature: Signature, known: Sequence[_Sum], share: str | None) -> None:
        self.signature, self.known = signature, known
        self.share = share
        """The number of all tensors for whose sake the pass is written, if it is not for the step."""
        self.found: list[_Sum] = []
        """The sums that this pass computes."""
        self.writer = Writer(DOUBLE if signature.weight == torch.float64 else FLOAT)
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
        inner += [f"total{place} = tl.zeros((BLOCK,), tl.float64)" for place in range(len(self.found))]
        inner += [f"at_{name} = tl.multiple_of({name}.to(tl.pointer_type(tl.{of})), 16)" for name, of in pointers]
        inner += ["for base in range(begin, whole, BLOCK):", indent(self.loops[0], "    ")]
        inner += [f"at_{name} = {name}.to(tl.pointer_type(tl.{of}))" for name, of in pointers]
        inner += ["for base in range(whole, end, BLOCK):", "    inside = lane < (end - base).to(tl.int32)"]
        inner += [indent(self.loops[1], "    ")]
        for place, sum_ in enumerate(self.found, len(self.known)):
            fold = "max" if sum_.largest else "sum"
            inner += [f"tl.store(partials + {place} * count + part, tl.{fold}(total{place - len(self.known)}))"]
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
        self._elements()
        return self.writer.each

    def _elements(self) -> None:
        """Write what happens to a block of elements: the step itself."""
        signature, writer = self.signature, self.writer
        equation, moments = signature.equation, list(zip(signature.elements, signature.moments, strict=True))
        number = self._numbers()
        w = writer.load("at_w", signature.weight)
        if signature.how == "compensated":
            w = writer.bound(rounding.restore)(w, writer.load("at_compensation", torch.int16))
        values: dict[str, Any] = {"w": w, "g": number["", "factor"] * writer.load("at_g", signature.grad)}
        values.update({kept.name: 0.0 for rule in equation.rules for kept in rule.keeps if kept.per_element})
        for k, (kept, dtype) in enumerate(moments):
            values[kept.name] = writer.load(f"at_moment{k}", dtype)
        numbers: dict[str, Any] = {
            rule.kind: {
                name: number["", name] if name == "t" or name in rule.memory else number[rule.kind, name]
                for name in rule.numbers
                if name in rule.shared or name not in rule.reductions
            }
            for rule in equation.rules
        }
        self.terms = list[tuple[_Sum, Value]]()
        if self.share is not None:
            self._known(_Sum(self.share, largest=False), self._term(REDUCTIONS[self.share], numbers, values))
        else:
            found, new = self._step(equation, numbers, values)
        if self.terms:
            self._add_up()
            return
        changed = [(f"at_moment{k}", kept, dtype) for k, (kept, dtype) in enumerate(moments) if kept.changes]
        found, *news, _ = writer.alike(found, *(new[kept.name] for _, kept, _ in changed), w)
        self._round_and_store(found, number)
        for (pointer, _, dtype), moment in zip(changed, news, strict=True):
            writer.store(moment, pointer, dtype)
        for k, name in enumerate(signature.next):
            (left, _) = writer.alike(new[name.removeprefix("next_")], number["", "t"])
            line = f"tl.store(left + {k} * tensors + tensor, {left.name}, mask=part == first)"
            if line not in writer.once:
                writer.once.append(line)

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
                found["", each.name] = self._loaded(f"memory_{each.name}", DOUBLE)
        if signature.counted:
            found["", "t"] = writer.converted(self._loaded("step", FLOAT), DOUBLE) + 1
        else:
            found["", "t"] = writer.converted(writer.emit(self._address("t"), INT64), DOUBLE)
        return found

    def _loaded(self, column: str, of: str) -> Value:
        """Write how a number is read whose address a column holds."""
        return self.writer.emit(f"tl.load({self._address(column)}.to(tl.pointer_type(tl.{of})))", of)

    def _round_and_store(self, w: Value, number: Mapping[tuple[str, str], Value]) -> None:
        signature, writer = self.signature, self.writer
        if signature.how == "stochastic":
            w = writer.bound(rounding.STOCHASTIC[signature.weight])(w, self._random_bits(number))
        elif signature.how == "compensated":
            nearest = writer.bound(rounding.NEAREST[signature.weight])(w)
            writer.store(writer.bound(rounding.lost)(w, nearest), "at_compensation", torch.int16)
            w = nearest
        writer.store(w, "at_w", signature.weight)

    def _random_bits(self, number: Mapping[tuple[str, str], Value]) -> Value:
        """Write 16 bits for each element: the halves, in turn, of what is drawn for each pair of neighbours."""
        writer = self.writer
        index = writer.emit(self._address("index"), INT64)
        key = writer.bound(rounding.keys)(number["", "seed"], writer.converted(number["", "t"], INT64), index)
        # A block starts at an even place, and no pair's upper half changes within one.
        base, block = "tl.full((), base, tl.int64)", {"per_element": True}
        low = writer.emit(f"({base} >> 1).to(tl.int32) + (lane >> 1)", INT32, **block)
        high = writer.emit(f"({base} >> 33).to(tl.int32)", INT32, **block)
        drawn = writer.bound(rounding.mixed)(Pair(low, high), key)
        odd = writer.emit("(lane & 1) * 16", INT32, **block)
        half: Value = (drawn >> odd) & 0xFFFF
        return half

    # Reductions ---------------------------------------------------------------------------------------------------------

    def _step(self, equation: Equation, numbers: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return what comes of a step, or of one that ends earlier: its reductions are counted from the first."""
        self.reduced = 0
        return step(equation, numbers, values, bind=self.writer.bound, reduce=self._reduce)

    def _term(self, reduction: Reduction, numbers: Mapping[str, Any], values: Mapping[str, Any]) -> Value:
        """Return an element's term of a number of all tensors, which is of what lines of the direction make."""
        writer = self.writer
        lines = [self._step(self.signature.equation.up_to(name), numbers, values)[0] for name in reduction.elements]
        elements = [writer.converted(writer.alike(line, values["w"])[0], DOUBLE) for line in lines]
        term: Value = writer.bound(reduction.term)(*elements)
        return term

    def _reduce(self, reduction: Reduction, values: Mapping[str, Any], given: Mapping[str, Any]) -> Value:
        """Return a number of the whole tensor if an earlier pass has found it; else see to it that this or a later one does."""
        writer, place = self.writer, self.reduced
        self.reduced += 1
        elements = [writer.converted(writer.alike(values[n], values["w"])[0], DOUBLE) for n in reduction.elements]
        unit: Any = 1.0
        if reduction.norm:
            (x,) = elements
            largest = self._known(_Sum(place, largest=True), writer.absolute(x))
            unit = writer.where(largest > 0, largest, 1.0)
            # The inverse of a float32 is a double, that of a double may be none.
            inverse = 1 / unit if writer.real == FLOAT else None
            elements = [x / Value(writer, unit.name, unit.of, pending=unit.pending, inverse=inverse)]
        term = writer.bound(reduction.term)(*elements, **reduction.given(reduction.term, given))
        total = self._known(_Sum(place, largest=False), term)
        found = writer.bound(reduction.finish)(total, **reduction.given(reduction.finish, given)) * unit
        return writer.converted(writer.converted(found, writer.real), DOUBLE)

    def _known(self, which: _Sum, term: Value) -> Value:
        """Return the sum, or the largest, of what an earlier pass has left for the parts of this tensor."""
        if which not in self.known:
            if not term.pending:
                self.terms.append((which, term))
            return Value(self.writer, "", DOUBLE, pending=True)
        fold = "largest" if which.largest else "total"
        place = self.known.index(which)
        return self.writer.emit(f"partials_of.{fold}(partials + {place} * count + first, of_tensor, BLOCK)", DOUBLE)

    def _add_up(self) -> None:
        """Write how this pass's terms are taken together, lane by lane."""
        writer = self.writer
        self.found = [which for which, _ in self.terms]
        for place, (which, term) in enumerate(self.terms):
            term = writer.converted(term, DOUBLE)
            if writer.masked:
                term = writer.emit("tl.where(inside, {}, 0.0)", DOUBLE, term, per_element=True)
            before = Value(writer, f"total{place}", DOUBLE, per_element=True)
            after = writer.maximum(before, term) if which.largest else before + term
            writer.each.append(f"{before.name} = {after.name}")


def _settle(signature: Signature, name: str) -> str:
    """Return the source of the function that counts a step and takes over the numbers that it has left."""
    columns = signature.columns
    address = "tl.load(table + {} * tensors + tensor, mask=there, other=0)"
    moves = []
    if signature.counted:
        moves += [f"step = {address.format(columns.index('step'))}.to(tl.pointer_type(tl.float32))"]
        moves += ["tl.store(step, tl.load(step, mask=there, other=0) + 1.0, mask=there)"]
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
