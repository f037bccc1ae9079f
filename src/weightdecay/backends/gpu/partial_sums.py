"""How a program puts together what others have left of the parts of a tensor, in an order that is always the same."""

import triton
import triton.language as tl


@triton.jit
def total(partials, count, BLOCK: tl.constexpr):
    """Return the sum of so many numbers."""
    lane = tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        found += tl.load(partials + start + lane, mask=lane < count - start, other=0.0)
    return tl.sum(found)


@triton.jit
def largest(partials, count, BLOCK: tl.constexpr):
    """Return the largest of so many numbers, none of which is negative."""
    lane = tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        found = tl.maximum(found, tl.load(partials + start + lane, mask=lane < count - start, other=0.0))
    return tl.max(found)
