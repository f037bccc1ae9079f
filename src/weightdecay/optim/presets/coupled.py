"""torch.optim's own, with L2: λ·w joins the gradient, and all that the optimizer makes of it."""

from typing import Any, ClassVar, Unpack

from torch.optim.optimizer import ParamsT

from weightdecay.optim.optimizer import why_unsteppable
from weightdecay.optim.presets.preset import Betas, Flagged, Flags, Number, Options, Preset, Settings


class SGD(Preset):
    """Descend with momentum, with L2: `weight_decay` enters the gradient and so the momentum. As torch.optim.SGD.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = SGD([w], lr=0.5, momentum=0.9, weight_decay=0.25)
    >>> w.grad = torch.tensor([1.0])
    >>> optimizer.step()
    >>> w.item()
    1.25
    """

    penalty: str | None = "l2"
    direction = "sgd"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: Number = 0.0,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        momenta = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        super().__init__(params, lr=lr, weight_decay=weight_decay, **momenta, options=options)


class Adam(Flagged):
    """Adam with L2: `weight_decay` enters the gradient, is divided by √v̂ with it, and so shrinks every weight differently.

    As torch.optim.Adam, its flags included, per group.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = Adam([w], lr=0.5, weight_decay=0.25, eps=0.0)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.5
    """

    direction = "adam"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 0.0,
        amsgrad: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        flags = {"amsgrad": amsgrad, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **flags, options=options)


class NAdam(Flagged):
    """Adam with Nesterov's look-ahead and a momentum that warms up, with L2. As torch.optim.NAdam.

    The product of the momenta so far is kept in float64. torch keeps it in float32 unless float64 is the default dtype, and
    then differs in the eighth digit.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = NAdam([w], lr=0.5, betas=(0.0, 0.999), weight_decay=0.25, eps=0.0)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.5

    Source: Dozat 2016.
    """

    direction = "nadam"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        own = {"momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **own, options=options)


class RAdam(Flagged):
    """Adam that is momentum until it knows its second moment well enough, with L2. As torch.optim.RAdam.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = RAdam([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.75

    Source: Liu et al. 2020, arXiv:1908.03265.
    """

    direction = "radam"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 0.0,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, **numbers, decoupled_weight_decay=decoupled_weight_decay, options=options)


class Adamax(Preset):
    """Adam with the largest recent |g| in place of the root mean square, with L2. As torch.optim.Adamax.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = Adamax([w], lr=0.5, weight_decay=0.25, eps=0.0)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.5

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 2.
    """

    penalty: str | None = "l2"
    direction = "adamax"
    meanings: ClassVar = {"betas": "what the mean gradient and the largest |g| keep of themselves at each step, in [0, 1)."}

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number = 0.0,
        foreach: bool | None = None,
        **options: Unpack[Flags],
    ) -> None:
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, **numbers, options=Options(foreach=foreach, **options))


class Adagrad(Preset):
    """Divide by the root of the sum of all squared gradients, with L2. As torch.optim.Adagrad.

    The sum starts where the parameter's group says; torch gives every group the constructor's `initial_accumulator_value`.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = Adagrad([w], lr=0.5, weight_decay=0.25, eps=0.0)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.5

    Source: Duchi, Hazan & Singer 2011.
    """

    penalty: str | None = "l2"
    direction = "adagrad"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: Number = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        **options: Unpack[Flags],
    ) -> None:
        own = {"lr_decay": lr_decay, "initial_accumulator_value": initial_accumulator_value, "eps": eps}
        super().__init__(params, lr=lr, weight_decay=weight_decay, **own, options=Options(foreach=foreach, **options))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking every value in it, and give it its state at once, as torch's Adagrad does."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for param in group["params"]:
            if why_unsteppable(param) is None:
                self._init_state(group, param, self.numbers(group, 0))


class Adadelta(Preset):
    """Adagrad that forgets, in units of its own past steps, with L2. As torch.optim.Adadelta.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = Adadelta([w], lr=0.5, rho=0.0, eps=0.75, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> round(w.item(), 6)
    1.783494

    Source: Zeiler 2012, arXiv:1212.5701.
    """

    penalty: str | None = "l2"
    direction = "adadelta"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: Number = 0.0,
        foreach: bool | None = None,
        **options: Unpack[Flags],
    ) -> None:
        numbers = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, **numbers, options=Options(foreach=foreach, **options))


class RMSprop(Preset):
    """Divide by the root of the mean squared gradient, with L2. As torch.optim.RMSprop.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = RMSprop([w], lr=0.5, alpha=0.75, eps=0.0, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.0

    Source: Tieleman & Hinton 2012; centred, Graves 2013, arXiv:1308.0850.
    """

    penalty: str | None = "l2"
    direction = "rmsprop"

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: Number = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **options: Unpack[Settings],
    ) -> None:
        own = {"alpha": alpha, "eps": eps, "momentum": momentum, "centered": centered}
        flags = Options(capturable=capturable, foreach=foreach, maximize=maximize, differentiable=differentiable, **options)
        super().__init__(params, lr=lr, weight_decay=weight_decay, **own, options=flags)
