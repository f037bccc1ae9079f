"""What it takes to try a model whose parameters are cut up over processes: each rank writes its part, and all decide alike."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from weightdecay.backends.rounding import places_in_whole, spread_like

__all__ = ["agreed", "fully_sharded", "noise_like", "whole", "written"]


def fully_sharded(model: nn.Module) -> list[Any]:
    """Return the modules that `fully_shard` was applied to, the outermost first."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())  # who never imports it has no such module
    return [module for module in model.modules() if isinstance(module, kind)]


def whole(tensor: Any) -> Tensor:
    """Return a DTensor as every rank's own tensor, and any other as it is."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def noise_like(weight: Tensor) -> Tensor:
    """Return normal noise in the layout of a tensor: of a DTensor each rank has its part of the same noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    if not hasattr(weight, "to_local"):
        return noise.to(weight)
    local = weight.to_local()
    return spread_like(weight, noise.flatten()[places_in_whole(weight).cpu()].to(local))


def agreed(tensors: Iterable[Tensor]) -> Callable[[float], float]:
    """Return a function that gives every rank the largest number of all that share these tensors.

    Who decides by such numbers decides alike on each rank: a rank that runs the model alone would wait for the others for ever.
    """
    meshes = dict.fromkeys(tensor.device_mesh for tensor in tensors if hasattr(tensor, "device_mesh"))

    def largest(number: float) -> float:
        for mesh in meshes:
            found = torch.tensor(number, dtype=torch.float64, device=mesh.device_type)
            for dimension in range(mesh.ndim):
                torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, mesh.get_group(dimension))
            number = found.item()
        return number

    return largest


@contextmanager
def written(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Write values into tensors of these names for a while; afterwards they are as they were, bit for bit."""
    kept = {name: tensors[name].detach().clone() for name in values}
    try:
        for name, value in values.items():
            tensors[name].copy_(value)
        yield
    finally:
        for name, value in kept.items():
            tensors[name].copy_(value)
