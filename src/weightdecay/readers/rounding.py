"""How a float32 result becomes a bfloat16 or float16 weight: nearest, stochastic, or compensated by the 16 bits that were cut.

Rounding belongs to the reader, never to a rule. What is here is integer arithmetic on bit patterns, so that every reader can
produce the same bits.
"""

import torch
from torch import Tensor

LOW_PRECISION = (torch.bfloat16, torch.float16)
_MASK = 0xFFFFFFFF


def resolve(rounding: str, dtype: torch.dtype) -> str:
    """Return how weights of this dtype are rounded: to nearest but for bfloat16 and float16, whose decay that loses."""
    if dtype not in LOW_PRECISION:
        return "nearest"
    return "stochastic" if rounding == "auto" else rounding


def keys(seed: int, t: int, index: int) -> tuple[int, int]:
    """Return two 32-bit keys for the random bits of one parameter (its place in the optimizer) at step t.

    splitmix64 over the three counters: the bits depend on nothing else, so a resumed run draws what the first would have drawn.
    """
    state = seed & 0xFFFFFFFFFFFFFFFF
    for counter in (t, index):
        state = (state + 0x9E3779B97F4A7C15 * (counter + 1)) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & _MASK, state >> 32


def random_bits(like: Tensor, key: tuple[int, int]) -> Tensor:
    """Return 32 uniform bits per element (int64), a function of the key and the element's place in dense memory.

    A counter-based generator: multiply and xor-shift rounds as in MurmurHash3's finaliser, keyed before and between them.
    """
    bits = torch.empty_like(like, dtype=torch.int64, memory_format=torch.preserve_format)
    position = torch.arange(bits.numel(), device=bits.device, dtype=torch.int64)
    bits.as_strided((bits.numel(),), (1,)).copy_(_mix(position, key))
    return bits


def _mix(position: Tensor, key: tuple[int, int]) -> Tensor:
    x = (position & _MASK) ^ key[0]
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    x = x ^ (x >> 16) ^ key[1] ^ (position >> 32)
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def stochastic(w: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """Round float32 to one of its two neighbours in dtype, each with the probability that makes the mean exact.

    What is not finite, or would leave the dtype's range, is rounded to nearest.
    """
    if dtype == torch.bfloat16:
        pattern = w.view(torch.int32).to(torch.int64) + (bits & 0xFFFF)
        rounded = _as_float(pattern & ~0xFFFF)
    else:
        # Below 2⁻¹⁴ float16 is a fixed grid of 2⁻²⁴, which cutting bits of a float32 would miss.
        pattern = w.view(torch.int32).to(torch.int64) + (bits & 0x1FFF)
        normal = _as_float(pattern & ~0x1FFF)
        grid = torch.floor(w * 2.0**24 + (bits & 0xFFFF) * 2.0**-16) * 2.0**-24
        rounded = torch.where(w.abs() < 2.0**-14, torch.copysign(grid, w), normal)
    return torch.where(rounded.abs() <= torch.finfo(dtype).max, rounded, w).to(dtype)


def _as_float(pattern: Tensor) -> Tensor:
    return pattern.to(torch.int32).view(torch.float32)


def compensated(w: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round float32 to nearest and return also what was lost, as the int16 distance of the two bit patterns.

    For bfloat16 the pair holds the float32 exactly; for float16 it does down to |w| = 2⁻¹⁶, and closely below. A tie goes up,
    so that the distance of a bfloat16 always fits.
    """
    if dtype == torch.bfloat16:
        pattern = w.view(torch.int32).to(torch.int64)
        nearest = _as_float((pattern + 0x8000) & ~0xFFFF)
        nearest = torch.where(torch.isfinite(nearest), nearest, w).to(dtype)
    else:
        nearest = w.to(dtype)
    distance = w.view(torch.int32).to(torch.int64) - nearest.float().view(torch.int32).to(torch.int64)
    distance = torch.where(torch.isfinite(nearest), distance, 0)
    return nearest, distance.clamp(-0x8000, 0x7FFF).to(torch.int16)


def restored(w: Tensor, compensation: Tensor) -> Tensor:
    """Return the float32 that `compensated` split."""
    return (w.float().view(torch.int32) + compensation.to(torch.int32)).view(torch.float32)
