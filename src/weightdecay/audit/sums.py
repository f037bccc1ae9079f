"""What a step does to each tensor, as a few sums over its weights that stay on the tensors' device.

They come in two halves, before and after the step, and no number is read back to the host in either. Each product is made of
float64 copies of some thousands of weights at a time, so that large tensors need no memory and small ones no time of their own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weightdecay.attachment import PENDING, Intended
from weightdecay.decomposition import Upcoming
from weightdecay.readers import eager, rounding

BEFORE = ("w·decay", "decay²", "step²", "w·undecayed", "w·gradient", "gradient²")
"""Sums before a step w_t = g·w − η·h: w is the stored weight, `decay` (1 − g)·w, `step` η·h, `undecayed` by what w − η·h would
differ from w if it was stored, and `gradient` that of the loss."""
AFTER = ("w²", "w·change", "change²")
"""Sums after it; `change` is by what the stored weight has become another."""
_AT_ONCE = {"cpu": 2**15, "cuda": 2**22}
"""How many weights are computed with at once: on a CPU what its caches hold, on a GPU what keeps it busy."""


@dataclass(eq=False)
class Tally:
    """The sums of one tensor, in the middle of a step."""

    param: Tensor
    states: Mapping[Any, Mapping[str, Any]]
    """The optimizer's state, by parameter."""
    how: str
    """How the optimizer rounds it, which decides what is stored."""
    before: Tensor = field(init=False)
    """The stored weights as they were, this rank's part."""
    sums: dict[tuple[str, ...], list[Tensor]] = field(default_factory=lambda: {BEFORE: [], AFTER: []})
    """One or more parts of them, to be added."""
    attached: bool = False
    """Whether the decay is attached, so that the optimizer's own step begins or ends with other weights than the whole one."""
    begun: Tensor | None = None
    """What the optimizer's own step began with, if a decay came first."""
    ended: Tensor | None = None
    """What it ended with, if a decay comes after it."""
    shrink: float = 0.0
    """What an attached decay is to take of every weight alike."""

    def __post_init__(self) -> None:
        self.before = self.stored().clone()

    def stored(self) -> Tensor:
        """Return the weights that the next step starts from, with what is kept beside them: remainders, or a pending decay."""
        weights, entry = self.param.detach(), self.states.get(self.param, {})
        if self.how == "compensated" and entry.get("compensation") is not None:
            weights = rounding.restored(weights, entry["compensation"])
        if entry.get(PENDING):
            weights = (1 - entry[PENDING]) * weights.to(eager.compute_dtype(weights.dtype))
        weights = _local(weights, self.param)
        return torch.view_as_real(weights) if weights.is_complex() else weights

    def refuse(self) -> None:
        """Say that the step cannot be taken apart."""
        self.sums[BEFORE] = [torch.full((len(BEFORE),), torch.nan, dtype=torch.float64, device=self.before.device)]

    def total(self) -> Tensor:
        """Return `BEFORE` and `AFTER` as one row."""
        nothing = {names: torch.zeros(len(names), dtype=torch.float64, device=self.before.device) for names in self.sums}
        return torch.cat([sum(parts, start=nothing[names]) for names, parts in self.sums.items()])


def _local(tensor: Any, like: Any) -> Tensor:
    """Return this rank's part of what is laid out as another tensor, or will be."""
    found: Tensor = tensor
    if hasattr(tensor, "to_local"):
        found = tensor.redistribute(like.device_mesh, like.placements).to_local()
    return found


# Before the step ----------------------------------------------------------------------------------------------------------

Key = tuple[Any, Any]
Draw = Callable[[slice], Tensor]
Pairs = Sequence[tuple[Tensor, Tensor]]


@dataclass(eq=False)
class _Batch:
    """Pieces of tensors whose steps differ in nothing but their weights."""

    pieces: list[tuple[Tally, Upcoming, dict[str, Tensor], Draw, slice]] = field(default_factory=list)
    size: int = 0

    def add_up(self, shared: Mapping[str, float]) -> None:
        """Give each tensor the sums over its pieces, and let go of them."""
        if not self.pieces:
            return
        tally, step, flat, *_ = self.pieces[0]
        nothing = torch.zeros((), dtype=torch.float64, device=tally.before.device)
        joined = {name: _joined([values[name][cut] for _, _, values, _, cut in self.pieces]) for name in flat}
        values = {name: joined.get(name, nothing) for name in step.values}
        bits = _joined([draw(cut) for _, _, _, draw, cut in self.pieces]) if step.result == "stochastic" else None
        _share(_factors(tally, step, values, bits, shared), [(each.sums[BEFORE], cut) for each, *_, cut in self.pieces])
        self.pieces, self.size = [], 0


def add_before(splits: Iterable[tuple[Tally, Upcoming, Key]], shared: Mapping[str, float]) -> None:
    """Add what the steps of all tensors are about to do.

    Args:
        splits: the tensors with their steps and the keys of their random bits, one after the other.
        shared: the numbers of all tensors that a decay asks for.
    """
    batches: dict[Any, _Batch] = {}
    for tally, step, key in splits:
        w, device = step.values["w"], tally.before.device
        if step.equation.direction.whole or any(rule.reductions or rule.memory for rule in step.equation.rules):
            # It asks for numbers of the whole tensor, or has some of its own: it is neither cut up nor joined with others.
            bits = _local(rounding.random_bits(w, key), tally.param) if step.result == "stochastic" else None
            tally.sums[BEFORE].append(_dots(_factors(tally, step, step.values, bits, shared)))
            continue
        kind = id(step.group), step.t, tally.param.dtype, device, step.result
        batch, draw = batches.setdefault(kind, _Batch()), _drawing(w, tally.param, key)
        names = ("w", "g", *(each.name for each in step.kept if each.per_element))
        flat = {name: _local(step.values[name], tally.param).reshape(-1) for name in names}
        start, most = 0, _at_once(device)
        while start < flat["w"].numel():
            stop = min(flat["w"].numel(), start + most - batch.size)
            batch.pieces.append((tally, step, flat, draw, slice(start, stop)))
            batch.size += stop - start
            start = stop
            if batch.size == most:
                batch.add_up(shared)
    for batch in batches.values():
        batch.add_up(shared)


def _factors(
    tally: Tally, step: Upcoming, values: Mapping[str, Tensor], bits: Tensor | None, shared: Mapping[str, float]
) -> Pairs:
    """Return what is multiplied for `BEFORE`, of this rank's weights in float64."""
    dtype = tally.param.dtype.to_real() if tally.param.dtype.is_complex else tally.param.dtype
    shrink = step.shrink()
    if shrink is None:
        # In float32, 1 − g has lost the digits of a small shrink.
        exact = {name: value.double() for name, value in values.items()}
        g, h = eager.split(step.equation, step.equation.with_shared(step.numbers(torch.float64), shared), exact)
        w, factor, h = (_local(x, tally.param).reshape(-1) for x in (exact["w"], g, h))
        decay, moved = (1 - factor) * w, float(step.given["decay"]["eta"]) * h
    else:
        u, _ = eager.step(step.equation.halves()[0], step.numbers(eager.compute_dtype(dtype)), values)
        w, moved = _local(values["w"], tally.param).reshape(-1), step.given["decay"]["eta"] * _local(u, tally.param).reshape(-1)
        decay = shrink * w.double()
    undecayed = (w - moved).to(eager.compute_dtype(dtype))
    if step.result == "stochastic":
        assert bits is not None
        undecayed = rounding.stochastic(undecayed, dtype, bits.reshape(-1))
    elif step.result == "nearest":
        undecayed = undecayed.to(dtype)
    w, moved, gradient = (x.double() for x in (w, moved, _local(values["g"], tally.param).reshape(-1)))
    return [(w, decay), (decay, decay), (moved, moved), (w, undecayed.double() - w), (w, gradient), (gradient, gradient)]


def _drawing(w: Tensor, param: Tensor, key: Key) -> Draw:
    """Return what draws the random bits of some of a tensor's weights: the same that the step draws."""
    if hasattr(w, "to_local") or not w.is_contiguous():
        bits: list[Tensor] = []

        def drawn(cut: slice) -> Tensor:
            if not bits:
                bits.append(_local(rounding.random_bits(w, key), param).reshape(-1))
            return bits[0][cut]

        return drawn
    return lambda cut: rounding.halves(torch.arange(cut.start, cut.stop, device=w.device), key)


# Around the step of an optimizer with an attached decay --------------------------------------------------------------------


def add_gradient(tally: Tally, step: Upcoming) -> None:
    """Add what the gradient is, as the optimizer sees it."""
    w, gradient = (_local(step.values[name], tally.param).reshape(-1).double() for name in ("w", "g"))
    _add(tally, {"w·gradient": torch.dot(w, gradient), "gradient²": torch.dot(gradient, gradient)})


def add_intended(tally: Tally, intended: Intended) -> None:
    """Add what an attached decay is about to do to weights that have taken the optimizer's step.

    What it changes beside the share of the old weight, as a pull to a reference does, belongs to the step.
    """
    if intended.shrink is not None:
        tally.shrink, tally.ended = intended.shrink, tally.stored().clone()
        return
    assert intended.equation is not None
    assert intended.values is not None
    exact = {name: value.double() for name, value in intended.values.items()}
    numbers = eager.numbers_in(torch.float64, {"direction": {}, "decay": intended.numbers})
    factor, rest = eager.split(intended.equation, numbers, exact)
    w, factor, rest = (_local(x, tally.param).reshape(-1) for x in (exact["w"], factor, rest))
    decay, tally.ended = (1 - factor) * w, w - float(intended.numbers["eta"]) * rest
    _add(tally, {"w·decay": torch.dot(w, decay), "decay²": torch.dot(decay, decay)})


def add_own_step(tally: Tally) -> None:
    """Add what the optimizer's own step has moved the stored weights by, which is their change without the decay."""
    begun = tally.before if tally.begun is None else tally.begun
    ended = tally.stored() if tally.ended is None else tally.ended
    most, flat = _at_once(tally.before.device), [x.reshape(-1) for x in (tally.before, begun, ended)]
    for start in range(0, flat[0].numel(), most):
        w, begun, ended = (x[start : start + most].double() for x in flat)
        moved, square = ended - begun, torch.dot(w, w)
        _add(tally, {
            "w·decay": tally.shrink * square, "decay²": tally.shrink**2 * square,
            "step²": torch.dot(moved, moved), "w·undecayed": torch.dot(w, moved),
        })  # fmt: skip


def _add(tally: Tally, sums: Mapping[str, Tensor]) -> None:
    nothing = torch.zeros((), dtype=torch.float64, device=tally.before.device)
    tally.sums[BEFORE].append(torch.stack([sums.get(name, nothing) for name in BEFORE]))


# After the step -----------------------------------------------------------------------------------------------------------


def add_after(tallies: Sequence[Tally]) -> None:
    """Add what the step has changed."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tally]] = {}
    for tally in tallies:
        if tally.attached:
            add_own_step(tally)
        kinds.setdefault((tally.before.dtype, tally.before.device), []).append(tally)
    for (_, device), alike in kinds.items():
        pairs = [(each.before.reshape(-1), each.stored().reshape(-1)) for each in alike]
        for batch in _batches([old.numel() for old, _ in pairs], device):
            w, now = (_joined([pairs[place][side][cut] for place, cut in batch]).double() for side in (0, 1))
            change = now - w
            _share([(w, w), (w, change), (change, change)], [(alike[place].sums[AFTER], cut) for place, cut in batch])


def _batches(sizes: Sequence[int], device: torch.device) -> Iterator[list[tuple[int, slice]]]:
    """Cut tensors of these sizes up and join the pieces, so that each batch has about as many weights as are good at once."""
    most = _at_once(device)
    batch: list[tuple[int, slice]] = []
    room = most
    for place, size in enumerate(sizes):
        start = 0
        while start < size:
            stop = min(size, start + room)
            batch.append((place, slice(start, stop)))
            room -= stop - start
            start = stop
            if room == 0:
                yield batch
                batch, room = [], most
    if batch:
        yield batch


def _at_once(device: torch.device) -> int:
    return _AT_ONCE.get(device.type, _AT_ONCE["cuda"])


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)  # type: ignore[arg-type]


def _share(pairs: Pairs, owners: Sequence[tuple[list[Tensor], slice]]) -> None:
    """Give each tensor the sums over its part of the products."""
    start = 0
    for sums, cut in owners:
        stop = start + cut.stop - cut.start
        sums.append(_dots([(x[start:stop], y[start:stop]) for x, y in pairs]))
        start = stop


def _dots(pairs: Pairs) -> Tensor:
    return torch.stack([torch.dot(x, y) for x, y in pairs])


def totals(tallies: Sequence[Tally]) -> list[tuple[list[int], Tensor]]:
    """Return the sums of all tensors, over all ranks: the places of some, and a row for each of them."""
    layouts: dict[Any, list[int]] = {}
    for place, tally in enumerate(tallies):
        param: Any = tally.param
        spread = (param.device_mesh, param.placements) if hasattr(param, "to_local") else None
        layouts.setdefault((tally.before.device, spread), []).append(place)
    found = []
    for (_, spread), places in layouts.items():
        rows = torch.stack([tallies[place].total() for place in places])
        found.append((places, rows if spread is None else _over_ranks(rows, *spread)))
    return found


def _over_ranks(rows: Tensor, mesh: Any, placements: Sequence[Any]) -> Tensor:
    """Add up what the ranks have of the same tensors, in one reduction for all of them."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    parts = [Partial() if each.is_shard() else Replicate() for each in placements]
    whole: Tensor = DTensor.from_local(rows, mesh, parts, run_check=False).full_tensor()
    return whole
