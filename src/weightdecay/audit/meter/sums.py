"""What a step does to each tensor, as a few sums over its weights that stay on the tensors' device.

They come in two halves, before and after the step, and no number is read back to the host in either. Each product is made of
float64 copies of some thousands of weights at a time, so that large tensors need no memory and small ones no time of their own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weightdecay.analysis.next_step import Upcoming, split
from weightdecay.backends import eager, rounding
from weightdecay.optim.attach import PENDING, Intended
from weightdecay.update_rules.equation import Equation

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
    """Pieces of tensors whose steps differ in nothing but their weights, and what the decay multiplies all of these by."""

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
        uniform = self._uniform(values["w"])
        _share(
            _factors(tally, step, values, bits, shared, uniform), [(each.sums[BEFORE], cut) for each, *_, cut in self.pieces]
        )
        self.pieces, self.size = [], 0

    def _uniform(self, w: Tensor) -> "Uniform":
        """Return η and the shrink of each weight: as numbers, or as a tensor each where the pieces differ in them."""
        found = {_uniform(step): None for _, step, *_ in self.pieces}
        if len(found) == 1:
            return next(iter(found))
        sizes = torch.tensor([cut.stop - cut.start for *_, cut in self.pieces], device=w.device)
        rows = torch.tensor([_uniform(step) for _, step, *_ in self.pieces], dtype=torch.float64, device=w.device)
        eta, shrink = torch.repeat_interleave(rows.T, sizes, dim=1, output_size=self.size)
        return eta.to(w.dtype), shrink


Uniform = tuple[Any, Any]
"""η, and the share that the step takes of every weight alike, or None where there is none."""


def _uniform(step: Upcoming) -> Uniform:
    return step.given["decay"]["eta"], step.shrink()


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
            tally.sums[BEFORE].append(_dots(_factors(tally, step, step.values, bits, shared, _uniform(step))))
            continue
        kind = _alike(step), tally.param.dtype, device, step.result
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


def _alike(step: Upcoming) -> Any:
    """Return what two steps share that are computed in one go: rules and numbers, but for η and a shrink of all weights alike.

    Groups with a learning rate each, as layer-wise decay makes them, then are one batch.
    """
    kinds = step.given if step.shrink() is None or isinstance(step.given["decay"]["eta"], Tensor) else ["direction"]
    return step.equation, tuple((kind, name, value) for kind in kinds for name, value in step.given[kind].items())


def _factors(
    tally: Tally,
    step: Upcoming,
    values: Mapping[str, Tensor],
    bits: Tensor | None,
    shared: Mapping[str, float],
    uniform: Uniform,
) -> Pairs:
    """Return what is multiplied for `BEFORE`, of this rank's weights in float64."""
    dtype = tally.param.dtype.to_real() if tally.param.dtype.is_complex else tally.param.dtype
    (eta, shrink), gradient = uniform, values["g"]
    if shrink is None:
        # In float32, 1 − g has lost the digits of a small shrink.
        equation, numbers, values = _exact(step, values, dtype)
        exact = {name: value.double() for name, value in values.items()}
        g, h = split(equation, equation.with_shared(numbers, shared), exact)
        w, factor, h = (_local(x, tally.param).reshape(-1) for x in (exact["w"], g, h))
        decay, moved = (1 - factor) * w, float(eta) * h
    else:
        u, _ = eager.step(step.equation.halves()[0], step.numbers(eager.compute_dtype(dtype)), values)
        w, moved = _local(values["w"], tally.param).reshape(-1), eta * _local(u, tally.param).reshape(-1)
        decay = shrink * w.double()
    undecayed = (w - moved).to(eager.compute_dtype(dtype))
    if step.result == "stochastic":
        assert bits is not None
        undecayed = rounding.stochastic(undecayed, dtype, bits.reshape(-1))
    elif step.result == "nearest":
        undecayed = undecayed.to(dtype)
    w, moved, gradient = (x.double() for x in (w, moved, _local(gradient, tally.param).reshape(-1)))
    return [(w, decay), (decay, decay), (moved, moved), (w, undecayed.double() - w), (w, gradient), (gradient, gradient)]


def _exact(
    step: Upcoming, values: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Equation, eager.Numbers, Mapping[str, Tensor]]:
    """Return what of a step has to be computed in float64, which takes twice as long.

    Where no penalty mixes the weight into u, that is the decay alone; u then is as precise as the optimizer's own.
    """
    equation, numbers = step.equation, step.numbers(torch.float64)
    decay = equation.decay
    if equation.penalty is not None or decay.shared or decay.measures_gradient:
        return equation, numbers, values
    first, second = equation.halves()
    u, _ = eager.step(first, step.numbers(eager.compute_dtype(dtype)), values)
    kept = {each.name: values[each.name] for each in decay.keeps if each.per_element}
    return second, {"direction": {}, "decay": numbers["decay"]}, {**kept, "w": values["w"], "g": u}


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
    factor, rest = split(intended.equation, numbers, exact)
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
    if len(owners) == 1:
        owners[0][0].append(_dots(pairs))
        return
    lengths = torch.tensor([cut.stop - cut.start for _, cut in owners], device=pairs[0][0].device)
    # `unsafe` leaves out a look at the lengths, for which the host would wait.
    columns = [torch.segment_reduce(x * y, "sum", lengths=lengths, unsafe=True) for x, y in pairs]
    for (sums, _), row in zip(owners, torch.stack(columns, dim=1).unbind(), strict=True):
        sums.append(row)


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
        rows = torch.cat([_added(names, [tallies[place] for place in places]) for names in (BEFORE, AFTER)], dim=1)
        found.append((places, rows if spread is None else _over_ranks(rows, *spread)))
    return found


def _added(names: tuple[str, ...], tallies: Sequence[Tally]) -> Tensor:
    """Return the sums of these names, a row for each tensor."""
    device = tallies[0].before.device
    parts = [part for each in tallies for part in each.sums[names]]
    if not parts:
        return torch.zeros(len(tallies), len(names), dtype=torch.float64, device=device)
    lengths = torch.tensor([len(each.sums[names]) for each in tallies], device=device)
    return torch.segment_reduce(torch.stack(parts), "sum", lengths=lengths, unsafe=True)


def _over_ranks(rows: Tensor, mesh: Any, placements: Sequence[Any]) -> Tensor:
    """Add up what the ranks have of the same tensors, in one reduction for all of them."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    parts = [Partial() if each.is_shard() else Replicate() for each in placements]
    whole: Tensor = DTensor.from_local(rows, mesh, parts, run_check=False).full_tensor()
    return whole
