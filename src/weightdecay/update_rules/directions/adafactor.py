"""Adafactor: Adam whose second moment is kept by rows and columns, with steps in proportion to the tensor itself."""

from typing import Any

import torch
from torch import Tensor

from weightdecay.update_rules import direction

Size = tuple[int, ...]


def rows(shape: Size) -> Size | None:
    """Return the shape of a mean over each row, the last dimension; a vector has none."""
    return (*shape[:-1], 1) if len(shape) > 1 else None


def columns(shape: Size) -> Size | None:
    """Return the shape of a mean over each column, the last dimension but one; a vector has none."""
    return (*shape[:-2], 1, shape[-1]) if len(shape) > 1 else None


def vector(shape: Size) -> Size | None:
    """Return the shape of a second moment that is kept whole, as it is of a vector or a number."""
    return None if len(shape) > 1 else shape


def at_least(low: float, x: Any) -> Any:
    """Return x, or low where that is more, without reading a tensor back."""
    return x.clamp(min=low) if isinstance(x, Tensor) else max(low, x)


@direction(
    source="Shazeer & Stern 2018, arXiv:1804.04235, as in torch.optim.Adafactor",
    whole=True,
    state={"row": "row_var", "column": "col_var", "v": "variance"},
    shapes={"row": rows, "column": columns, "v": vector},
    domain={"beta2_decay": "(-inf, 0]", "eps": "[0, inf)", "d": "[1, inf)"},
)
def adafactor(
    g: Tensor,
    row: Tensor,
    column: Tensor,
    v: Tensor,
    *,
    t: Any,
    eta: Any,
    norm_w: Any,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide the gradient by the root of its factored mean square, clip the result to a root mean square of d, and scale it.

    The step is max(ε₂, RMS(w))·min(η, 1/√t) times that, and so u has the factor min(1, 1/(η√t)); the decay beside it takes η as
    it is. eps is (ε₁, ε₂), and ε₁ = None the precision of the dtype that is computed in.

    >>> w, g = torch.full((2, 2), 3.0), torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    >>> zero = torch.zeros(())
    >>> u, row, column, _ = adafactor(g, torch.zeros(2, 1), torch.zeros(1, 2), zero, t=1, eta=0.5, norm_w=w.norm())
    >>> u, row.flatten()
    (tensor([[3., 3.],
            [3., 3.]]), tensor([ 2.5000, 10.0000]))
    """
    eps1, eps2 = eps
    eps1 = torch.finfo(g.dtype).eps if eps1 is None else eps1
    share = t**beta2_decay
    if g.ndim > 1:
        row = torch.lerp(row, g.square().mean(dim=-1, keepdim=True), share)
        column = torch.lerp(column, g.square().mean(dim=-2, keepdim=True), share)
        # Divided first: row @ column holds fourth powers of gradients, which leave float32 from 4e9 on.
        square = (row / row.mean(dim=-2, keepdim=True).clamp(min=eps1)) @ column
    else:
        square = v = torch.lerp(v, g.square(), share)
    u = g * square.clamp(min=eps1 * eps1).rsqrt()
    root = max(g.numel(), 1) ** 0.5
    u = u / at_least(1.0, u.norm() / (root * d))
    return at_least(eps2, norm_w / root) / at_least(1.0, eta * t**0.5) * u, row, column, v
