"""Muon: momentum with all singular values near 1, so that every direction in a matrix is learnt at one speed."""

import math

import torch
from torch import Tensor

from weightdecay.update_rules import direction


def orthogonalized(x: Tensor, coefficients: tuple[float, ...], steps: int, eps: float) -> Tensor:
    """Return a matrix with its singular values moved near 1, by Newton–Schulz iterations in its own dtype.

    Each iteration takes every singular value s to a·s + b·s³ + c·s⁵; all of them start in [0, 1].
    """
    a, b, c = map(float, coefficients)
    is_tall = x.shape[0] > x.shape[1]
    x = x.mT if is_tall else x  # of its two Gram matrices the smaller one
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        both = torch.addmm(gram, gram, gram, beta=b, alpha=c)  # rounded once per product, so that the bits are torch's
        x = torch.addmm(x, both, x, beta=a)
    return x.mT if is_tall else x


def gathered(x: Tensor) -> Tensor:
    """Return a distributed matrix whole on every rank: products of its parts, summed in bfloat16, would depend on the cut."""
    if not hasattr(x, "placements"):
        return x
    from torch.distributed.tensor import Replicate

    whole: Tensor = x.redistribute(placements=[Replicate()] * len(x.placements))  # type: ignore[attr-defined]
    return whole


@direction(
    source="Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982 (scale), "
    "as in torch.optim.Muon",
    whole=True,
    ndim=2,
    state={"m": "momentum_buffer"},
    domain={
        "mu": "[0, 1]",
        "nesterov": "[0, 1]",
        "eps": "[0, inf)",
        "ns_steps": "{0, …, 99}",
        "adjust_lr_fn": ("original", "match_rms_adamw", None),
    },
)
def muon(
    g: Tensor,
    m: Tensor,
    *,
    t: float,
    mu: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = "original",
) -> tuple[Tensor, Tensor]:
    """Orthogonalise the mean gradient in bfloat16 and scale it: by √max(1, rows/columns), or 0.2·√max(rows, columns).

    The second is adjust_lr_fn="match_rms_adamw", which gives the step the size of AdamW's. u is scaled and not the learning
    rate, so the decay beside it sees the learning rate as it is. For the matrices of hidden layers only; other tensors need a
    group with another direction.

    >>> g, exact = torch.diag(torch.tensor([2.0, 1.0])), {"ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 12}
    >>> u, m = muon(g, torch.zeros(2, 2), t=1, **exact)
    >>> u.round(decimals=2)
    tensor([[1., 0.],
            [0., 1.]])
    """
    m = torch.lerp(m, g, 1 - mu)
    ahead = torch.lerp(g, m, mu) if nesterov else m
    u = orthogonalized(gathered(ahead.bfloat16()), ns_coefficients, int(ns_steps), eps)
    rows, columns = g.shape
    like_adamw = adjust_lr_fn == "match_rms_adamw"
    scale = 0.2 * math.sqrt(max(rows, columns)) if like_adamw else math.sqrt(max(1, rows / max(columns, 1)))
    return scale * u.to(g.dtype), m
