"""The tensors that are stepped, and how two results of a step are compared."""

from collections.abc import Sequence

import torch
from torch import Tensor

Shape = tuple[int, ...]
MI = 2**20
WARM_UP = 3
"""Steps before the clock runs: they compile, touch all memory, and are compared."""
ALLOWED = 4.0 * WARM_UP
"""Float32 units in the last place that the warm-up may end apart: the roundings of two orders of the same few operations."""
ULPS = "float32 units in the last place"
LR, DECAY = 1e-2, 0.1
"""So large that a missing decay would lie a thousand times farther off than rounding."""


def one(elements: int) -> list[Shape]:
    """Return the shapes of a single tensor."""
    return [(elements,)]


def pairs(count: int) -> list[Shape]:
    """Return the shapes of many small layers, each with a bias."""
    return [shape for _ in range(count) for shape in ((64, 64), (64,))]


def transformer() -> list[Shape]:
    """Return the shapes of a text encoder: an embedding, eight layers as torch makes them, a norm."""
    with torch.device("meta"):
        layer = torch.nn.TransformerEncoderLayer(384, nhead=6, batch_first=True)
        encoder = torch.nn.TransformerEncoder(layer, num_layers=8, norm=torch.nn.LayerNorm(384), enable_nested_tensor=False)
        model = torch.nn.ModuleList([torch.nn.Embedding(30522, 384), encoder])
    return [tuple(param.shape) for param in model.parameters()]


def language_model() -> list[Shape]:
    """Return the shapes of a decoder of 1.3 billion weights: 24 layers of width 2,048, its embedding and its head."""
    width, hidden, vocabulary = 2048, 5504, 32000
    layer = [(width, width)] * 4 + [(hidden, width)] * 2 + [(width, hidden)] + [(width,)] * 2
    return [(vocabulary, width), *layer * 24, (width,), (vocabulary, width)]


def count(shapes: Sequence[Shape]) -> int:
    """Return how many elements tensors of these shapes have together."""
    return sum(torch.Size(shape).numel() for shape in shapes)


def parameters(
    shapes: Sequence[Shape], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[torch.nn.Parameter]:  # fmt: skip
    """Return random parameters with random gradients: the same at every call, in memory of their own."""
    generator = torch.Generator(device).manual_seed(0)

    def random(shape: Shape) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device=device)
        drawn[drawn == 0] = 1.0  # of a gradient that is zero, implementations of one rule may take either sign
        return drawn.to(dtype)

    params = [torch.nn.Parameter(random(shape)) for shape in shapes]
    for param in params:
        param.grad = random(tuple(param.shape))
    return params


def ulps_apart(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the largest difference, in float32 units in the last place of the weight or, below 1, of 1; NaN stays NaN."""
    unit = torch.finfo(torch.float32).eps
    with torch.no_grad():
        found = [
            ((a.float() - b.float()).abs_() / b.float().abs().clamp_(min=1)).max()
            for a, b in zip(some, others, strict=True)
        ]  # fmt: skip
        return torch.stack(found).max().item() / unit


def bfloat16_ulps_apart(rounded: Tensor, exact: Tensor) -> float:
    """Return the largest difference of bfloat16 weights from float32 ones, in bfloat16 units in the last place of these."""
    with torch.no_grad():
        _, exponent = torch.frexp(exact)
        unit = torch.ldexp(torch.ones_like(exact), exponent - 8)  # frexp's mantissa is below 1: eight bits of it
        slack = ALLOWED * torch.finfo(torch.float32).eps * exact.abs().clamp(min=1)  # exact itself is rounded to float32
        return (((rounded.float() - exact).abs_() - slack).clamp_(min=0) / unit).max().item()
