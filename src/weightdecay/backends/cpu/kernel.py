"""From three rules and the dtypes at hand to machine code: one function that steps every tensor of a list.

The code is made by LLVM at the first step and kept in memory, of the last 64 kernels and of those in use. That takes tens of
milliseconds, so there is no cache on disk, and none that could be stale.

A kernel's table names tensors by their addresses. Each tensor is cut into chunks of `CHUNK` elements, the chunks of all
tensors into parts, and every thread takes the next part until there are none. What a number comes to therefore depends
neither on the number of threads nor on which of them computed it.

A pass before the last leaves one partial sum per chunk.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from llvmlite import ir

from weightdecay.backends import counting, param_table, rounding
from weightdecay.backends.cpu.jit import Code, compiled, converts_float16, counted
from weightdecay.backends.cpu.ops import DOUBLE, FLOAT, I32, I64, POINTER, Value, Writer
from weightdecay.backends.expressions import Pair
from weightdecay.backends.passes import Pass, Passes, Sum
from weightdecay.backends.recent import Recent

CHUNK = 4096
"""Elements per chunk: a partial sum covers one, whoever computes it."""
JOB = ("ticket", "parts", "part_table", "tensors", "columns", "rows", "partials", "chunks")
"""The words of a job, the argument of every pass."""
PART = ("tensor", "chunk", "end")
"""The words of a part: the tensor it starts in, and its first and last chunk among the chunks of all tensors."""
FIXED_COLUMNS = ("chunk", "end", "elements", "row", "index", "g")
"""What the table holds of every tensor, before the addresses of its weight and state."""
_AHEAD = 2048
"""How many bytes ahead of the loop memory is asked for; decisions/0008 has the measurement."""
_LINE = 64


class Signature(param_table.Signature):
    """All that a kernel depends on."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the table's columns."""
        return (*FIXED_COLUMNS, *self.addresses, *self.next)


@dataclass(frozen=True)
class Kernel:
    """Machine code for one signature."""

    signature: Signature
    advance: int
    """The address of the function that counts the step of every tensor that has a gradient."""
    passes: tuple[int, ...]
    """The addresses of the passes over the elements; the last one writes."""
    begun: int
    """After how many of them the numbers of all tensors are found."""
    shares: tuple[int, ...]
    """Which sums those are, in the order of the signature."""
    sums: int
    """How many sums a chunk leaves."""
    settle: int
    """The address of the function that moves on the numbers that are kept per tensor."""
    code: Code
    """What the addresses are of."""


KERNELS: Recent[Kernel] = Recent(64)
"""About a megabyte each."""


def kernel(signature: Signature) -> Kernel:
    """Return the kernel for a signature, which lives as long as whoever has it, and a while longer."""
    return KERNELS.get(signature, lambda: _compile(signature))


def can_hold(dtype: torch.dtype) -> bool:
    """Return whether this processor's kernels can read and write a dtype."""
    return dtype != torch.float16 or converts_float16()


def _compile(signature: Signature) -> Kernel:
    module = ir.Module(name=str(signature.equation))
    passes = Passes(signature)
    for place in range(len(passes.wanted)):
        _Pass(module, signature, passes, place).write()
    _write_advance(module, signature)
    _write_settle(module, signature)
    code = compiled(module)
    order = tuple(code.addresses[f"pass{place}"] for place in range(len(passes.wanted)))
    advance, settle = code.addresses["advance"], code.addresses["settle"]
    return Kernel(signature, advance, order, passes.begun, passes.shares, len(passes.sums), settle, code)


class _Pass(Pass):
    """Writes one pass as a function of machine code."""

    writer: Writer

    def __init__(self, module: ir.Module, signature: Signature, passes: Passes, place: int) -> None:
        super().__init__(signature, passes, place)
        self.module = module
        asked = [which.reduction for which in self.wanted]
        self.reads_all = not asked or any(isinstance(k, str) or "u" in passes.reductions[k].elements for k in asked)
        """Whether it needs the step's u, and so all that is kept."""
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I64, POINTER]), f"pass{place}")
        self.real = DOUBLE if signature.weight == torch.float64 else FLOAT
        self.lanes = _LINE // (8 if self.real == DOUBLE else 4)

    def write(self) -> None:
        """Write the function: take a part, walk through the tensors it covers, and take the next."""
        b = ir.IRBuilder(self.function.append_basic_block("entry"))
        *_, job = self.function.args
        self.job = {name: _word(b, job, k, POINTER if name in _POINTERS else I64) for k, name in enumerate(JOB)}
        self.totals = [[_slot(b, ir.VectorType(DOUBLE, lanes)) for lanes in (self.lanes, 1)] for _ in self.wanted]
        take, part, walk, run, work, following, done = (
            b.append_basic_block(name) for name in ("take", "part", "walk", "run", "work", "following", "done")
        )
        b.branch(take)

        b.position_at_end(take)
        ticket = b.atomic_rmw("add", job, I64(1), "monotonic")
        b.cbranch(b.icmp_unsigned("<", ticket, self.job["parts"]), part, done)

        b.position_at_end(part)
        here = b.mul(ticket, I64(len(PART)))
        first_tensor, first_chunk, last = (_word(b, self.job["part_table"], b.add(here, I64(k)), I64) for k in range(len(PART)))
        b.branch(walk)

        b.position_at_end(walk)
        tensor, chunk = b.phi(I64), b.phi(I64)
        tensor.add_incoming(first_tensor, part)
        chunk.add_incoming(first_chunk, part)
        b.cbranch(b.icmp_unsigned("<", chunk, last), run, take)

        b.position_at_end(run)
        self.column = {
            name: _word(
                b,
                self.job["columns"],
                b.add(b.mul(self.job["tensors"], I64(k)), tensor),
                I64 if name in FIXED_COLUMNS else POINTER,
            )
            for k, name in enumerate(self.signature.columns)
        }
        end = self.column["end"]
        stop = b.select(b.icmp_unsigned("<", end, last), end, last)
        b.cbranch(b.icmp_unsigned("!=", self.column["g"], I64(0)), work, following)

        b.position_at_end(work)
        self.column["g"] = b.inttoptr(self.column["g"], POINTER)
        self.writer = Writer(self.module, b, self.real)
        self.number = self._numbers(b)
        self.partials: dict[Sum, Value] = {}
        elements = b.append_basic_block("elements")
        each = self.writer.each = ir.IRBuilder(elements)
        of_tensor = self.column["chunk"]
        if not self.wanted:
            self._span(each, each.sub(chunk, of_tensor), each.sub(stop, of_tensor))
        else:
            with counted(each, chunk, stop) as one:
                for slot in chain.from_iterable(self.totals):
                    each.store(ir.Constant(slot.allocated_type, [0.0] * slot.allocated_type.count), slot)
                start = each.sub(one, of_tensor)
                self._span(each, start, each.add(start, I64(1)))
                for place, (which, slots) in enumerate(zip(self.wanted, self.totals, strict=True), len(self.known)):
                    at = each.add(each.mul(self.job["chunks"], I64(place)), one)
                    each.store(self._folded(each, slots, which), each.gep(self.job["partials"], [at], source_etype=DOUBLE))
        each.branch(following)
        b.branch(elements)

        b.position_at_end(following)
        tensor.add_incoming(b.add(tensor, I64(1)), following)
        chunk.add_incoming(stop, following)
        b.branch(walk)

        b.position_at_end(done)
        b.ret_void()

    def _numbers(self, b: ir.IRBuilder) -> dict[tuple[str, str], Value]:
        """Load the numbers of one tensor: its row, and t."""
        names = self.signature.numbers
        row = b.mul(self.column["row"], I64(len(names)))
        found = {
            name: Value(self.writer, _word(b, self.job["rows"], b.add(row, I64(k)), I64 if name == ("", "seed") else DOUBLE))
            for k, name in enumerate(names)
        }
        for each in self.signature.kept:
            if not each.per_element:
                kept = b.load(self.column[f"memory_{each.name}"], typ=DOUBLE)
                found["kept", each.name] = Value(self.writer, kept)
        found["", "t"] = Value(self.writer, b.fpext(b.load(self.column["step"], typ=FLOAT), DOUBLE))
        return found

    def _span(self, each: ir.IRBuilder, first: ir.Value, last: ir.Value) -> None:
        """Write the loops over the elements of some chunks: line by line, and what is left one by one."""
        start, stop = each.mul(first, I64(CHUNK)), each.mul(last, I64(CHUNK))
        elements = self.column["elements"]
        stop = each.select(each.icmp_unsigned("<", stop, elements), stop, elements)
        for lanes in (self.lanes, 1):
            self.writer.lanes = lanes
            with counted(each, start, stop, lanes) as self.place:
                if lanes > 1 and self.reads_all:
                    self._ask_ahead(each, self.place)
                self.write_elements()
            start = self.place

    def load(self, column: str, dtype: torch.dtype) -> Value:
        return self.writer.load(self.column[column], dtype, self.place)

    def store(self, value: Value, column: str, dtype: torch.dtype) -> None:
        self.writer.store(value, self.column[column], dtype, self.place)

    def leave(self, value: Value, column: str) -> None:
        self.writer.once.store(value.ir, self.column[column])

    def add(self, term: Value, which: int) -> None:
        writer, (full, rest) = self.writer, self.totals[which]
        total = full if writer.lanes > 1 else rest
        (term,) = writer.alike(term)
        before = Value(writer, writer.each.load(total, typ=ir.VectorType(DOUBLE, writer.lanes)))
        after = writer.maximum(before, term) if self.wanted[which].largest else before + term
        writer.each.store(after.ir, total)

    def random_bits(self) -> Value:
        writer, each, lanes, place = self.writer, self.writer.each, self.writer.lanes, self.place
        t = writer.bound(counting.drawn_from)(self.number["", "t"])
        key = writer.bound(rounding.keys)(self.number["", "seed"], t, Value(writer, self.column["index"]))
        pairs = max(1, lanes // 2)
        vector = ir.VectorType(I32, pairs)
        zeros = ir.Constant(vector, [0] * pairs)

        def spread(word: ir.Value) -> ir.Value:
            first = each.insert_element(ir.Constant(vector, ir.Undefined), each.trunc(word, I32), I32(0))
            return each.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

        pair = each.lshr(place, I64(1))
        low = each.add(spread(pair), ir.Constant(vector, list(range(pairs))))
        writer.lanes = pairs
        drawn = writer.bound(rounding.mixed)(Pair(Value(writer, low), Value(writer, spread(each.lshr(pair, I64(32))))), key)
        writer.lanes = lanes
        if lanes == 1:
            odd = each.shl(each.and_(spread(place), ir.Constant(vector, [1])), ir.Constant(vector, [4]))
            return Value(writer, each.and_(each.lshr(drawn.ir, odd), ir.Constant(vector, [0xFFFF])))
        halves = each.bitcast(drawn.ir, ir.VectorType(ir.IntType(16), lanes))
        return Value(writer, each.zext(halves, ir.VectorType(I32, lanes)))

    def _ask_ahead(self, each: ir.IRBuilder, place: ir.Value) -> None:
        """Ask for the memory that the loop will need soon; the processor's own guesses end at every page."""
        signature = self.signature
        prefetch = self.module.globals.get("llvm.prefetch.p0") or ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32]), "llvm.prefetch.p0"
        )
        streams = [("w", signature.weight), ("g", signature.grad)]
        streams += [(f"moment{k}", dtype) for k, dtype in enumerate(signature.moments)]
        for name, dtype in streams:
            ahead = each.gep(self.column[name], [each.mul(place, I64(dtype.itemsize))], source_etype=ir.IntType(8))
            ahead = each.gep(ahead, [I64(_AHEAD)], source_etype=ir.IntType(8))
            each.call(prefetch, [ahead, I32(int(name != "g")), I32(3), I32(1)])

    def partial(self, which: Sum) -> Value:
        if which not in self.partials:
            b, writer = self.writer.once, self.writer
            base = b.mul(self.job["chunks"], I64(self.known.index(which)))
            slot = _slot(b, DOUBLE)
            b.store(ir.Constant(DOUBLE, 0.0), slot)
            with counted(b, self.column["chunk"], self.column["end"]) as chunk:
                at = b.gep(self.job["partials"], [b.add(base, chunk)], source_etype=DOUBLE)
                term, before = b.load(at, typ=DOUBLE), b.load(slot, typ=DOUBLE)
                b.store(_larger(b, before, term) if which.largest else b.fadd(before, term), slot)
            self.partials[which] = Value(writer, b.load(slot, typ=DOUBLE))
        return self.partials[which]

    def _folded(self, each: ir.IRBuilder, slots: list[ir.Value], which: Sum) -> ir.Value:
        """Return one number for the lanes of a chunk, taken in their order."""
        found = ir.Constant(DOUBLE, 0.0)
        for slot in slots:
            lanes = each.load(slot, typ=slot.allocated_type)
            for lane in range(slot.allocated_type.count):
                one = each.extract_element(lanes, I32(lane))
                found = _larger(each, found, one) if which.largest else each.fadd(found, one)
        return found


_POINTERS = ("part_table", "columns", "rows", "partials")


def _word(builder: ir.IRBuilder, base: ir.Value, place: Any, of: ir.Type) -> ir.Value:
    """Read one of the 8-byte words that a job is made of."""
    place = I64(place) if isinstance(place, int) else place
    return builder.load(builder.gep(base, [place], source_etype=I64), typ=of)


def _slot(builder: ir.IRBuilder, of: ir.Type) -> ir.Value:
    """Return a variable of the function, which lies at its entry so that a loop does not make it again."""
    with builder.goto_entry_block():
        return builder.alloca(of)


def _larger(builder: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Return the larger of two, or the NaN among them."""
    keep = builder.or_(builder.fcmp_ordered(">=", x, y), builder.fcmp_unordered("uno", x, x))
    return builder.select(keep, x, y)


def _write_advance(module: ir.Module, signature: Signature) -> None:
    """Write the function that counts one more step for every tensor that has a gradient."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I64, POINTER]), "advance")
    b = ir.IRBuilder(function.append_basic_block())
    tensors, column = _columns(b, function.args[-1], signature)
    with counted(b, I64(0), tensors) as tensor, b.if_then(b.icmp_unsigned("!=", column("g", tensor, I64), I64(0))):
        count = column("step", tensor, POINTER)
        writer = Writer(module, b, FLOAT)
        after = writer.bound(counting.following)(Value(writer, b.load(count, typ=FLOAT)))
        b.store(after.ir, count)
    b.ret_void()


def _write_settle(module: ir.Module, signature: Signature) -> None:
    """Write the function that takes over, for every tensor that has a gradient, the numbers that the step has left."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I64, POINTER]), "settle")
    b = ir.IRBuilder(function.append_basic_block())
    tensors, column = _columns(b, function.args[-1], signature)
    with counted(b, I64(0), tensors) as tensor, b.if_then(b.icmp_unsigned("!=", column("g", tensor, I64), I64(0))):
        for name in signature.next:
            left = b.load(column(name, tensor, POINTER), typ=DOUBLE)
            b.store(left, column(name.replace("next", "memory", 1), tensor, POINTER))
    b.ret_void()


def _columns(b: ir.IRBuilder, job: ir.Value, signature: Signature) -> tuple[ir.Value, Any]:
    """Return the number of tensors, and what reads a column of one."""
    tensors, columns = (
        _word(b, job, JOB.index(name), I64 if name == "tensors" else POINTER) for name in ("tensors", "columns")
    )

    def column(name: str, tensor: ir.Value, of: ir.Type) -> ir.Value:
        return _word(b, columns, b.add(b.mul(tensors, I64(signature.columns.index(name))), tensor), of)

    return tensors, column
