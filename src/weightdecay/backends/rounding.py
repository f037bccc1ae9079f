"""How a float32 result becomes a bfloat16 or float16 weight: nearest, stochastic, or compensated by the 16 bits that were cut.

Rounding belongs to the backend, never to a rule. What is here is integer arithmetic on bit patterns, so that every backend can
produce the same bits.
"""

import sys
from typing import Any

import torch
from torch import Tensor

LOW_PRECISION = (torch.bfloat16, torch.float16)
_MASK = 0xFFFFFFFF


def resolve(rounding: str, dtype: torch.dtype) -> str:
    """Return how weights of this dtype are rounded: to nearest but for bfloat16 and float16, whose decay that loses."""
    if dtype not in LOW_PRECISION:
        return "nearest"
    return "stochastic" if rounding == "auto" else rounding


def keys(seed: int, t: Any, index: int) -> tuple[Any, Any]:
    """Return two 32-bit keys for the random bits of one parameter (its place in the optimizer) at step t.

    They depend on nothing else, so a resumed run draws what the first would have drawn. t is a whole number, or an integer
    tensor, which gives tensors and is not read by the host; `counting.drawn_from` makes it of a float32 count.
    """
    first, second = 0x9E3779B9, 0x85EBCA6B
    for counter in (seed & _MASK, seed >> 32, index, t):
        first, second = (_scramble((key * 0x01000193 + counter) & _MASK) for key in (first, second))
    return first, second


def _scramble(x: Any) -> Any:
    """Mix 32 bits, a number's or those of an int64 tensor: MurmurHash3's finaliser with better constants (Wellons 2018)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def random_bits(like: Tensor, key: tuple[Any, Any]) -> Tensor:
    """Return 16 uniform bits per element (int64), a function of the key and the element's place.

    The place is counted in dense memory, so that a kernel can count it as it goes. A part of a distributed tensor draws what
    the whole, contiguous, would have drawn there.
    """
    if _is_distributed(like):
        return spread_like(like, halves(places_in_whole(like), key))
    bits = torch.empty_like(like, dtype=torch.int64, memory_format=torch.preserve_format)
    places = torch.arange(bits.numel(), device=bits.device, dtype=torch.int64)
    bits.as_strided((bits.numel(),), (1,)).copy_(halves(places, key))
    return bits


def spread_bits(like: Tensor, key: tuple[Any, Any], count: int) -> Tensor:
    """Return 16 bits per element (int64) that are uniform over the elements at each count, and over the counts at each element.

    From one count to the next they move on by the golden section. What is rounded with them over and over stays about one
    unit from what it should be, where independent bits walk away from it.
    """
    return (random_bits(like, key) + (count & 0xFFFF) * 0x9E37) & 0xFFFF


def halves(place: Tensor, key: tuple[Any, Any]) -> Tensor:
    """Return the 16 random bits of each place in dense memory."""
    drawn: Tensor = mixed(place >> 1, key)
    return (drawn >> ((place & 1) * 16)) & 0xFFFF


def mixed(pair: Any, key: tuple[Any, Any]) -> Any:
    """Return the 32 random bits that two neighbours share: the even place has the lower half, the odd one the upper."""
    return _scramble((pair & _MASK) ^ (((pair >> 32) * 0x9E3779B9) & _MASK) ^ key[0]) ^ key[1]


def _is_distributed(tensor: Tensor) -> bool:
    """Tell whether this is a DTensor; who never imports that class does not pay for it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def spread_like(like: Any, local: Tensor) -> Tensor:
    """Return a DTensor of this local part, laid out as another."""
    layout = {"shape": like.shape, "stride": like.stride(), "run_check": False}
    spread: Tensor = type(like).from_local(local, like.device_mesh, like.placements, **layout)
    return spread


def places_in_whole(tensor: Any) -> Tensor:
    """Return the place of each local element in the whole tensor, counted in row-major order."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    place = torch.zeros((), dtype=torch.int64, device=tensor.to_local().device)
    for whole, length, start in zip(tensor.shape, shape, offset, strict=True):
        place = place[..., None] * whole + torch.arange(start, start + length, device=place.device)
    return place


def stochastic(w: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """Round float32 to one of its two neighbours in dtype, each with the probability that makes the mean exact.

    What is not finite, or would leave the dtype's range, is rounded to nearest.
    """
    rounded: Tensor = STOCHASTIC[dtype](w, bits)
    return rounded.to(dtype)


def compensated(w: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round float32 to nearest and return also what was lost, as the int16 distance of the two bit patterns.

    For bfloat16 the pair holds the float32 exactly; for float16 it does down to |w| = 2⁻¹⁶, and closely below. A tie goes up,
    so that the distance of a bfloat16 always fits.
    """
    nearest = NEAREST[dtype](w)
    return nearest.to(dtype), lost(w, nearest).to(torch.int16)


def restored(w: Tensor, compensation: Tensor) -> Tensor:
    """Return the float32 that `compensated` split."""
    whole: Tensor = restore(w.float(), compensation.to(torch.int32))
    return whole


# The arithmetic itself is written once for all backends, in the words below: torch's here, and another backend binds its own.


def pattern(x: Tensor) -> Tensor:
    """Return the bits of float32 as an integer."""
    return x.view(torch.int32)


def value(pattern: Tensor) -> Tensor:
    """Return the float32 that has these bits."""
    return pattern.to(torch.int32).view(torch.float32)


def number(integer: Tensor) -> Tensor:
    """Return an integer, or a truth, as float32."""
    return integer.to(torch.float32)


def whole(x: Tensor) -> Tensor:
    """Return whole numbers as integers."""
    return x.to(torch.int64)


def as_bfloat16(x: Tensor) -> Tensor:
    """Return float32 as the nearest bfloat16 holds it."""
    return x.bfloat16().float()


def as_float16(x: Tensor) -> Tensor:
    """Return float32 as the nearest float16 holds it."""
    return x.half().float()


where, finite, absolute, floor, copysign = torch.where, torch.isfinite, torch.abs, torch.floor, torch.copysign
BIT_WORDS = (
    "pattern", "value", "number", "whole", "as_bfloat16", "as_float16", "where", "finite", "absolute", "floor", "copysign"
)  # fmt: skip


def stochastic_bfloat16(w: Any, bits: Any) -> Any:
    rounded = value((pattern(w) + (bits & 0xFFFF)) & ~0xFFFF)
    return where(finite(w) & finite(rounded), rounded, w)


def stochastic_float16(w: Any, bits: Any) -> Any:
    # Below 2⁻¹⁴ float16 is a fixed grid of 2⁻²⁴, which cutting bits of a float32 would miss.
    normal = value((pattern(w) + (bits & 0x1FFF)) & ~0x1FFF)
    whole = floor(w * 2.0**24)
    up = w * 2.0**24 - whole > number(bits & 0xFFFF) * 2.0**-16
    grid = (whole + number(up)) * 2.0**-24
    rounded = where(absolute(w) < 2.0**-14, copysign(grid, w), normal)
    return where(finite(w) & (absolute(rounded) <= 65504.0), rounded, w)


def bfloat16_bits(w: Any) -> Any:
    """Return the bits of the nearest bfloat16, a tie to even, as torch rounds."""
    rounded = (pattern(w) + 0x7FFF + ((pattern(w) >> 16) & 1)) >> 16
    return where(w == w, rounded, 0x7FC0)


def nearest_bfloat16(w: Any) -> Any:
    rounded = value((pattern(w) + 0x8000) & ~0xFFFF)
    return as_bfloat16(where(finite(w) & finite(rounded), rounded, w))


def nearest_float16(w: Any) -> Any:
    return as_float16(w)


def lost(w: Any, nearest: Any) -> Any:
    distance = pattern(w) - pattern(nearest)
    distance = where(distance < -0x8000, -0x8000, where(distance > 0x7FFF, 0x7FFF, distance))
    return where(finite(nearest), distance, 0)


def restore(w: Any, compensation: Any) -> Any:
    # Someone else may have written the weight since: a distance that would take a zero through to the other sign, or that a
    # weight without a finite value carries, is not this weight's and is dropped.
    moved = pattern(w) + compensation
    own = ((pattern(w) ^ moved) >= 0) & finite(w)
    return value(where(own, moved, pattern(w)))


STOCHASTIC = {torch.bfloat16: stochastic_bfloat16, torch.float16: stochastic_float16}
NEAREST = {torch.bfloat16: nearest_bfloat16, torch.float16: nearest_float16}
