"""SGD and Adam with the decays of papers, under the papers' names. What a paper found is said; what others found, too."""

from typing import ClassVar, Unpack

from torch.optim.optimizer import ParamsT

from weightdecay.optim.presets.coupled import SGD
from weightdecay.optim.presets.decoupled import Lion, Muon
from weightdecay.optim.presets.preset import Betas, Number, Options, Preset


class SGDC(SGD):
    """SGD with corrected decay: λ falls with lr, so that normalised layers keep their balance. See `AdamC`.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = SGDC([w], lr=0.5, weight_decay=0.25)
    >>> optimizer.param_groups[0]["lr"] = 0.25  # as a schedule does it: half the lr, half of λ
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.9375

    Source: Defazio 2025, arXiv:2506.02285.
    """

    penalty = None
    decay = "corrected"
    unit = (
        "per unit of lr at its peak: a step takes lr²/peak·λ. The peak is `lr_max` in a group, else the schedule's, and "
        "under one that rises above its start (CyclicLR) the largest lr so far, with one warning"
    )


class SGDCWD(SGD):
    """SGD with cautious weight decay: a weight shrinks by lr·weight_decay only while its step shrinks it, too.

    Not cautious SGD (arXiv:2411.16085), which masks the step. See `AdamCWD`.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0, -2.0]))
    >>> optimizer = SGDCWD([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([1.0, 1.0])
    >>> optimizer.step()
    >>> w.tolist()
    [1.25, -2.5]

    Source: Chen et al. 2025, arXiv:2510.12402.
    """

    penalty = None
    decay = "cautious"


class ProxSGD(SGD):
    """SGD with a soft threshold: after its step a weight moves lr·weight_decay towards zero and stops there.

    Zeros are exact, and it ends where the lasso does; an L1 penalty in the gradient only comes near. With full gradients and
    no momentum it is iterative soft thresholding, ISTA.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0, 0.1]))
    >>> optimizer = ProxSGD([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([1.0, 0.0])
    >>> optimizer.step()
    >>> w.tolist()
    [1.375, 0.0]

    Source: Daubechies, Defrise & De Mol 2004; Beck & Teboulle 2009.
    """

    penalty = None
    decay = "soft_threshold"


class OfAdam(Preset):
    """Adam with a decay of the subclass's, and the arguments of torch.optim.AdamW."""

    direction = "adam"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 1e-2,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, options=options)


class AdamC(OfAdam):
    """AdamW with corrected decay: λ falls with lr, so that normalised layers keep their balance to the end of a schedule.

    For weights that a normalisation follows; the paper gives the output layer ordinary decay. Under a constant lr it is
    AdamW. The gain is contested: arXiv:2512.08217 finds 76.98 ± 0.10 against AdamW's 76.92 ± 0.13 on ImageNet.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = AdamC([w], lr=0.5, weight_decay=0.25)
    >>> optimizer.param_groups[0]["lr"] = 0.25  # as a schedule does it: half the lr, half of λ
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.9375

    Source: Defazio 2025, arXiv:2506.02285.
    """

    decay = "corrected"
    unit = SGDC.unit


class AdamCWD(OfAdam):
    """AdamW with cautious weight decay: a weight shrinks by lr·weight_decay only while its step shrinks it, too.

    Not cautious AdamW (C-AdamW, arXiv:2411.16085), which masks the step and not the decay. About half of the weights decay
    at a time: compare it with AdamW at the same norm of the weights rather than at the same λ.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0, -2.0]))
    >>> optimizer = AdamCWD([w], lr=0.5, weight_decay=0.25, eps=0.0)
    >>> w.grad = torch.tensor([1.0, 1.0])
    >>> optimizer.step()
    >>> w.tolist()
    [1.25, -2.5]

    Source: Chen et al. 2025, arXiv:2510.12402.
    """

    decay = "cautious"


class LionCWD(Lion):
    """Lion with cautious weight decay: a weight shrinks by lr·weight_decay only while its step shrinks it. See `AdamCWD`.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0, -2.0]))
    >>> optimizer = LionCWD([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([1.0, 1.0])
    >>> optimizer.step()
    >>> w.tolist()
    [1.25, -2.5]

    Source: Chen et al. 2025, arXiv:2510.12402.
    """

    decay = "cautious"


class AdamS(Preset):
    """Adam with stable weight decay: λ over the root mean square of all gradients, as Adam's own steps are.

    Loss and λ can be scaled together, and decay is strong where gradients are small. Not the AdamS of arXiv:2505.16363, which
    normalises by the momentum. Its SGDS is SGDW with weight_decay·(1 − dampening)/(1 − momentum) for λ.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0, 0.0]))
    >>> optimizer = AdamS([w], lr=0.5, weight_decay=0.5, eps=0.0)
    >>> w.grad = torch.tensor([0.5, -0.5])
    >>> optimizer.step()
    >>> [round(x, 6) for x in w.tolist()]
    [0.5, 0.5]

    Source: Xie, Xu, Zhang, Sato & Sugiyama 2023, arXiv:2011.11152.
    """

    direction = "adam"
    decay = "stable"
    unit = "per unit of lr and of gradient: λ/√v̄ is AdamW's λ, with v̄ the mean of v̂ over all weights of the optimizer"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 1e-4,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, options=options)


class AdamProx(OfAdam):
    """AdamW whose decay is implicit: step, then divide by 1 + lr·weight_decay. No λ is too large.

    While lr·λ is small it is nearly AdamW.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = AdamProx([w], lr=0.5, weight_decay=2.0)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.0

    Source: Zhuang et al. 2022, arXiv:2202.00089.
    """

    decay = "implicit"


class ProxAdam(OfAdam):
    """Adam with a soft threshold: after its step a weight moves lr·weight_decay towards zero and stops there.

    The threshold is the same for every weight, as AdamW's decay is, so it does not end where the lasso does; with the
    threshold divided by √v̂ (arXiv:2006.14484) it would.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0, 0.1]))
    >>> optimizer = ProxAdam([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0, 0.0])
    >>> optimizer.step()
    >>> w.tolist()
    [1.875, 0.0]

    Source: the threshold is Daubechies, Defrise & De Mol 2004; Adam is Kingma & Ba 2015, arXiv:1412.6980.
    """

    decay = "soft_threshold"


class PAdam(Preset):
    """Adam with p-norm decay, which makes weights vanish for p < 1. Not Padam, the partially adaptive Adam of 2018.

    With p < 2 zero holds a weight for good: leave out biases, and whatever else starts at zero. With p = 2 it is AdamProx
    with twice the λ.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0, 0.5]))
    >>> optimizer = PAdam([w], lr=0.5, weight_decay=2.0, p=1.0)
    >>> w.grad = torch.tensor([0.0, 0.0])
    >>> optimizer.step()
    >>> [round(x, 6) for x in w.tolist()]
    [1.333333, 0.166667]

    Source: Outmezguine & Levi 2024, arXiv:2404.10824.
    """

    direction = "adam"
    decay = "pnorm"
    unit = "per unit of lr and without a ½: a step divides a weight by 1 + lr·λ·p·|w|^(p − 2)"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 1e-2,
        p: float = 0.8,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, p=p, options=options)


class AdamHD(Preset):
    """Adam with Huber decay: small weights shrink in proportion, as with AdamProx, and large ones by a constant.

    The paper follows each layer's δ with a mean of its weights; here it is a number per group.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 1.0]))
    >>> optimizer = AdamHD([w], lr=0.5, weight_decay=2.0, delta=1.0)
    >>> w.grad = torch.tensor([0.0, 0.0])
    >>> optimizer.step()
    >>> w.tolist()
    [2.0, 0.5]

    Source: Guo & Fan 2025, arXiv:2511.14721.
    """

    direction = "adam"
    decay = "huber"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 1e-2,
        delta: float = 1.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, delta=delta, options=options)


class AdamWN(Preset):
    """Adam with weight norm control: a tensor decays to a share of the norm that it started with, not to zero.

    A tensor that starts at zero, as biases do, has no norm to go to and decays as with AdamW.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = AdamWN([w], lr=0.5, weight_decay=1.0, ratio=0.5)
    >>> w.grad = torch.tensor([0.0, 0.0])
    >>> optimizer.step()
    >>> w.tolist()
    [2.25, 3.0]

    Source: Loshchilov 2023, arXiv:2311.11446.
    """

    direction = "adam"
    decay = "norm_control"
    unit = "per unit of lr: a step takes lr·λ of the way to the norm aimed at"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 1e-2,
        ratio: float = 1.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, ratio=ratio, options=options)


class AdamSPD(Preset):
    """Adam that, in fine-tuning, goes back towards where it started when the gradient points there, and not else.

    Of the distance by which a step left the start it takes back the share λ; 1, the default, ends at the old distance.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = AdamSPD([w], lr=0.5, betas=(0.5, 0.999))
    >>> for gradient in (-1.0, 0.25):  # the second points back, but momentum leads on
    ...     w.grad = torch.tensor([gradient])
    ...     optimizer.step()
    >>> w.item()
    2.5

    Source: Tian, Huang & Kira 2024, arXiv:2411.01713.
    """

    direction = "adam"
    decay = "selective_projection"
    unit = "per step, whatever lr is"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 1.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, options=options)


class AdamCPR(Preset):
    """Adam with constrained parameter regularisation: a tensor decays only while Σw² is above κ, and as much as it takes.

    There is no λ. κ is a number per group, so tensors that need their own take a group each; the paper sets it to a share of
    what Σw² is at the start, or when warm-up ends. Do set it: a large matrix has a Σw² of thousands, and the default of 1
    takes it to zero in a few steps.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = AdamCPR([{"params": [w], "kappa": 3.75}], lr=0.5)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.0

    Source: Franke, Hefenbrock, Koehler & Hutter 2023, arXiv:2311.09058.
    """

    direction = "adam"
    decay = "constrained"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        kappa: float = 1.0,
        kappa_update: float = 1.0,
        **options: Unpack[Options],
    ) -> None:
        numbers = {"lr": lr, "betas": betas, "eps": eps, "kappa": kappa, "kappa_update": kappa_update}
        super().__init__(params, **numbers, options=options)


class AdamH(Preset):
    """Adam on the hyperball: a matrix keeps the norm that it started with, and every step turns it by about lr.

    There is no λ. For matrices that a normalisation follows; the paper gives gains, biases and embeddings plain Adam.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = AdamH([w], lr=0.5)
    >>> w.grad = torch.tensor([[1.0, -1.0]])
    >>> optimizer.step()
    >>> round(w.norm().item(), 4)
    5.0

    Source: Wen et al. 2026, arXiv:2606.16899.
    """

    direction = "adam"
    decay = "hyperball"
    meanings: ClassVar = {"lr": "η, the length of a step in units of the tensor's norm."}

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, options=options)


class MuonH(Preset):
    """Muon on the hyperball: a matrix keeps the norm that it started with, and every step turns it by about lr.

    There is no λ. For the matrices of hidden layers, as Muon; the others take another optimizer.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = MuonH([w], lr=0.5)
    >>> w.grad = torch.tensor([[1.0, -1.0]])
    >>> optimizer.step()
    >>> round(w.norm().item(), 4)
    5.0

    Source: Wen et al. 2026, arXiv:2606.16899.
    """

    direction = "muon"
    decay = "hyperball"
    meanings: ClassVar = {**Muon.meanings, **AdamH.meanings}

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        **options: Unpack[Options],
    ) -> None:
        momenta = {"momentum": momentum, "nesterov": nesterov}
        iterations = {"ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps}
        super().__init__(params, lr=lr, **momenta, **iterations, options=options)
