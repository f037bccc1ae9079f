"""The same with decoupled decay: a step shrinks every weight by lr·λ beside what the direction does to it."""

from typing import ClassVar, Unpack

from torch.optim.optimizer import ParamsT

from weightdecay.optim.presets.coupled import SGD, Adadelta, Adagrad, Adam, Adamax, NAdam, RAdam, RMSprop
from weightdecay.optim.presets.preset import Betas, Decoupled, Number, Options, Preset


class SGDW(SGD):
    """Descend with momentum and shrink the weights by lr·weight_decay beside it: the gradient never sees the decay.

    Loshchilov & Hutter 2019, algorithm 1, with λ per unit of lr as torch's AdamW has it, and lr outside the momentum
    buffer as torch's SGD has it: the paper's α·m and this m·lr agree while lr is constant.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = SGDW([w], lr=0.5, momentum=0.9, weight_decay=0.25)
    >>> w.grad = torch.tensor([1.0])
    >>> optimizer.step()
    >>> w.item()
    1.25
    """

    penalty = None
    decay = "decoupled"


class AdamW(Decoupled, Adam):
    """Adam that shrinks every weight by the same lr·weight_decay, beside the step. As torch.optim.AdamW.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = AdamW([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.75

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, with λ multiplied by lr.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 1e-2,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True, **options)


class NAdamW(Decoupled, NAdam):
    """NAdam that shrinks every weight by lr·weight_decay. As torch.optim.NAdam with `decoupled_weight_decay`.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = NAdamW([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.75
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 1e-2,
        momentum_decay: float = 4e-3,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay=True, **options)


class RAdamW(Decoupled, RAdam):
    """RAdam that shrinks every weight by lr·weight_decay. As torch.optim.RAdam with `decoupled_weight_decay`.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = RAdamW([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.75
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 1e-2,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True, **options)


class AdamaxW(Adamax):
    """Adamax that shrinks every weight by lr·weight_decay.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = AdamaxW([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.75
    """

    penalty = None
    decay = "decoupled"


class AdagradW(Adagrad):
    """Adagrad that shrinks every weight by lr·weight_decay, which its own falling step length does not touch.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = AdagradW([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.75
    """

    penalty = None
    decay = "decoupled"


class AdadeltaW(Adadelta):
    """Adadelta that shrinks every weight by lr·weight_decay; lr is 1 by default, so λ is what a step takes.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = AdadeltaW([w], weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.5
    """

    penalty = None
    decay = "decoupled"


class RMSpropW(RMSprop):
    """RMSprop that shrinks every weight by lr·weight_decay.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = RMSpropW([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.75
    """

    penalty = None
    decay = "decoupled"


class Lion(Preset):
    """Step by the sign of a mean gradient, and shrink every weight by lr·weight_decay.

    Every step is ±lr: lr is usually a third to a tenth of AdamW's, and λ as many times larger. Weights end up within ±1/λ.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = Lion([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([3.0])
    >>> optimizer.step()
    >>> w.item()
    1.25

    Source: Chen et al. 2023, arXiv:2302.06675.
    """

    direction = "lion"
    decay = "decoupled"
    meanings: ClassVar = {"betas": "what the mean gradient counts for in the sign, and what it keeps of itself at each step."}

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: Number = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, options=options)


class Signum(Preset):
    """Step by the sign of the mean gradient, and shrink every weight by lr·weight_decay. Without momentum it is signSGD.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = Signum([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([3.0])
    >>> optimizer.step()
    >>> w.item()
    1.25

    Source: Bernstein et al. 2018, arXiv:1802.04434.
    """

    direction = "signum"
    decay = "decoupled"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        momentum: float = 0.9,
        weight_decay: Number = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, options=options)


class LAMB(Preset):
    """Adam with λ·w in its step, and every tensor's step scaled to lr times the tensor's own norm. For large batches.

    The decay acts inside that length: without a gradient any λ > 0 shrinks a tensor by lr. Ports that decouple it instead are
    another optimizer.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = LAMB([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0, 0.0])
    >>> optimizer.step()
    >>> w.tolist()
    [1.5, 2.0]

    Source: You et al. 2020, arXiv:1904.00962.
    """

    direction = "adam"
    decay = "trust_ratio"
    unit = "against the step of Adam, which is about 1 per weight; it has no unit of lr"
    meanings: ClassVar = {"lr": "η, the length of a step in units of the tensor's norm."}

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: Number = 1e-2,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, options=options)


class Muon(Preset):
    """Momentum whose singular values are brought near 1, and every weight shrinks by lr·weight_decay. As torch.optim.Muon.

    For the matrices of hidden layers; embeddings, heads, gains and biases take another optimizer, AdamW usually.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([[2.0, -1.0]]))
    >>> optimizer = Muon([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.zeros(1, 2)
    >>> optimizer.step()
    >>> w.tolist()
    [[1.75, -0.875]]

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982.
    """

    direction = "muon"
    decay = "decoupled"
    unit = "per unit of lr as it is, before adjust_lr_fn"
    meanings: ClassVar = {
        "nesterov": "orthogonalise the momentum as it will be.",
        "eps": "the least norm that a momentum is divided by.",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        weight_decay: Number = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        momenta = {"momentum": momentum, "nesterov": nesterov}
        iterations = {"ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        super().__init__(params, lr=lr, weight_decay=weight_decay, **momenta, **iterations, options=options)


class Adafactor(Preset):
    """Adam that keeps a row and a column of a matrix's second moment, with steps in units of the tensor's own size.

    As torch.optim.Adafactor: the step is max(ε₂, RMS(w))·min(lr, 1/√t), and the decay lr·weight_decay with lr as it is.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = Adafactor([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.75

    Source: Shazeer & Stern 2018, arXiv:1804.04235.
    """

    direction = "adafactor"
    decay = "decoupled"
    unit = "per unit of lr as it is, whatever the step's length"
    meanings: ClassVar = {
        "lr": "η, the largest length of a step in units of the tensor's root mean square.",
        "eps": "ε₁, the least of a mean square (None: the dtype's precision), and ε₂, the least size of a tensor.",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: Number = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay, options=options)
