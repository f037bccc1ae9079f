"""Which weights a normalisation follows, found by scaling one weight at a time and looking at the output."""

import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from weightdecay.display.table import aligned
from weightdecay.groups.params import Param, params_of
from weightdecay.groups.roles import role_of
from weightdecay.groups.sharded import agreed, fully_sharded, noise_like, whole, written

__all__ = ["Invariance", "Response", "scale_invariant"]

FACTOR = 4.0
"""A power of two, so that scaling rounds nothing."""
NOTICEABLE = 0.05
ROUNDING = 64.0
"""How many units in the last place two outputs may differ by for rounding alone."""


@dataclass(frozen=True)
class Response:
    """How an output answers to the scale of one weight."""

    name: str
    change: float
    verdict: str

    def cells(self) -> tuple[str, str, str]:
        return self.name, f"{self.change:.1e}", self.verdict


class Invariance(Sequence[str]):
    """The names of the scale-invariant weights; print as a table of every weight that was tried."""

    def __init__(self, responses: Sequence[Response]) -> None:
        self.responses = tuple(responses)
        self._names = [each.name for each in responses if each.verdict == "scale-invariant"]

    def __getitem__(self, index: Any) -> Any:
        return self._names[index]

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        header = ("tensor", f"change at ×{FACTOR:g}", "verdict")
        summary = f"{len(self)} of {len(self.responses)} weights are scale-invariant."
        return "\n".join([*aligned([header, *(each.cells() for each in self.responses)]), "", summary])

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the rows for JSON: name, change (relative, of the output) and verdict of each weight."""
        return [asdict(each) for each in self.responses]


def scale_invariant(model: nn.Module, inputs: Any) -> Invariance:
    """Find the weights whose length does not matter to the output, since a normalisation follows.

    Each weight that decays by default is multiplied by 4 and by 16. A norm undoes that up to its eps, so that the output hardly
    changes, and less from 4 to 16 than from 1 to 4. What is left when the weight is replaced by noise tells a weight
    without any effect (behind a gain of zero, or unused) from a scale-invariant one.

    The model runs under no_grad and in eval mode, but for batch norms, which use the batch. Afterwards it is as it was, bit
    for bit, also if it raises: parameters and buffers are replaced for the call and not written, and modes and the random
    states of torch, NumPy and Python come back. Forward hooks run.

    A model after `fully_shard` gathers its own parameters when it runs, so there each rank writes its part of a weight in
    place and writes the old bits back; afterwards all of it is sharded. Where parameters are DTensors, call this on every rank:
    each may have a batch of its own, and all have the same answer, which is of the largest change on any of them.

    Args:
        model: the module, bare or wrapped.
        inputs: a batch: the model's one argument, a tuple of them, or a dict of keywords. More than a few samples if there
            are batch norms.

    Raises:
        ValueError: the output holds no floating-point tensor or is not finite, or the model computes in less than float32,
            whose rounding hides small effects.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = scale_invariant(model, torch.randn(16, 4))
    >>> list(found)
    ['0.weight']

    The list goes to `param_groups`, and so to the decay that is made for such weights:

    >>> import weightdecay as wd
    >>> groups = wd.param_groups(model, 0.1, scale_invariant=found, roles={"scale_invariant": {"decay": "corrected"}})
    >>> optimizer = wd.Optimizer(groups, lr=1e-3, direction="adam", decay="decoupled")

    Source: van Laarhoven 2017, arXiv:1706.05350; the corrected decay is of Defazio 2025, arXiv:2506.02285.
    """
    bare = _without_engine(model)
    with _as_it_was(bare) as output_with:
        params = [param for param in params_of(bare) if _may_decay(param)]
        raw = {id(tensor): name for name, tensor in bare.named_parameters()}
        largest = agreed(bare.parameters())
        reference = output_with(inputs, {})
        _refuse_unclear(reference, largest)

        def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
            return largest(_distance(one, other))

        responses = [_response(param, raw[id(param.tensor)], inputs, reference, output_with, distance) for param in params]
    return Invariance(responses)


def _without_engine(model: nn.Module) -> nn.Module:
    """Return what torch.compile and data parallelism call in the end: replaced parameters would not reach their engines."""
    while True:
        if "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def _may_decay(param: Param) -> bool:
    return param.tensor.requires_grad and param.tensor.numel() > 0 and role_of(param)[0].decays


Run = Callable[[Any, dict[str, Tensor]], list[Tensor]]
Distance = Callable[[Sequence[Tensor], Sequence[Tensor]], float]


def _response(
    param: Param, raw: str, inputs: Any, reference: Sequence[Tensor], output_with: Run, distance: Distance
) -> Response:
    weight = param.tensor.detach()

    def output(scaled: Tensor) -> list[Tensor]:
        return output_with(inputs, {raw: scaled})

    larger = output(FACTOR * weight)
    change = distance(larger, reference)
    if not change <= NOTICEABLE:
        return Response(param.name, change, "its length matters")
    rounding = ROUNDING * max(torch.finfo(each.dtype).eps for each in reference)
    largest = output(FACTOR**2 * weight)
    # What eps leaves falls with the square of the scale; what the length does to the output grows, or has been seen by now.
    if not distance(largest, larger) <= max(change / FACTOR, rounding):
        return Response(param.name, change, "its length matters")
    noise = noise_like(weight) * (whole(weight.abs().sum(dtype=torch.float32)) / weight.numel()).item()
    if distance(output(noise), reference) <= max(10 * change, rounding):
        return Response(param.name, change, "no effect on this output")
    return Response(param.name, change, "scale-invariant")


def _refuse_unclear(output: Sequence[Tensor], largest: Callable[[float], float]) -> None:
    if not output:
        raise ValueError("the model's output holds no floating-point tensor to look at. Give a model that returns some.")
    if largest(not all(each.isfinite().all() for each in output)):  # on any rank
        raise ValueError("the model's output is not finite on these inputs, so nothing can be compared with it. Give others.")
    if coarse := {each.dtype for each in output} - {torch.float32, torch.float64}:
        dtype = str(coarse.pop()).removeprefix("torch.")
        raise ValueError(f"the model's output is {dtype}, whose rounding hides small effects. Give model.float().")


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the largest relative distance of two outputs, tensor by tensor; what is no number is infinitely far."""
    pairs = zip(one, other, strict=True)
    distances = [float((a - b).double().norm() / b.double().norm().clamp_min(1e-300)) for a, b in pairs]
    return max(math.inf if math.isnan(each) else each for each in distances)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[Run]:
    """Lend a function that runs the model with some parameters replaced, and leave no trace of it."""
    modes = {module: module.training for module in model.modules()}
    gathering = fully_sharded(model)
    for module in gathering:
        module.reshard()  # the outermost keeps its gathered parameters after a forward
    shards = dict(model.named_parameters()) if gathering else {}
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    cuda = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(cuda), torch.no_grad(), _other_random_states():
        start = torch.random.get_rng_state(), [torch.cuda.get_rng_state(device) for device in cuda]

        def floating(output: Any) -> list[Tensor]:
            return [whole(each) for each in tree_leaves(output) if isinstance(each, Tensor) and each.is_floating_point()]

        def run(inputs: Any, replaced: Mapping[str, Tensor]) -> list[Tensor]:
            torch.random.set_rng_state(start[0])
            for device, state in zip(cuda, start[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            arguments, keywords = _arguments(tree_map_only(Tensor, Tensor.clone, inputs))
            if not gathering:
                return floating(torch.func.functional_call(model, {**buffers, **replaced}, arguments, keywords))
            with written(shards, replaced):  # what stands in place of a parameter that the model gathers is never read
                found = floating(torch.func.functional_call(model, buffers, arguments, keywords))
                found = [each.clone() for each in found]  # an output may be a gathered parameter itself
                for module in gathering:
                    module.reshard()
            return found

        try:
            for module in modes:
                module.training = hasattr(module, "running_mean")
            yield run
        finally:
            for module, training in modes.items():
                module.training = training
            for module in gathering:
                module.reshard()


@contextmanager
def _other_random_states() -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    states = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        if numpy is not None:
            numpy.random.set_state(states[1])


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})
