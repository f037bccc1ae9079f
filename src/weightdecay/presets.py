"""The optimizers people know by name: each a choice of three rules, with torch.optim's arguments and defaults where torch
has it.

`weight_decay` is λ as torch means it: of the penalty in SGD and Adam, of the decay, per unit of lr, in SGDW and AdamW.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, TypedDict, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from weightdecay.hyperparameters import refuse_unknown
from weightdecay.optimizer import Optimizer, Schedule
from weightdecay.step import Equation


class Options(TypedDict, total=False):
    """The keywords that every preset takes: what help(weightdecay.Optimizer) says of them holds."""

    weight_decay_schedule: Schedule | None
    maximize: bool
    capturable: bool
    differentiable: bool
    foreach: bool | None
    fused: bool | None
    reader: str
    rounding: str
    seed: int


class Preset(Optimizer):
    """An optimizer whose name fixes its rules. A subclass sets `direction` and `penalty` or `decay`."""

    penalty: str | None = None
    direction: str
    decay: str = "none"
    _lambdas: ClassVar = {"penalty": "weight_decay", "decay": "weight_decay"}

    def __init__(
        self, params: ParamsT, *, lr: float | Tensor, weight_decay: float | Tensor, options: Options, **numbers: Any
    ) -> None:
        refuse_unknown(options, {"lr", "weight_decay", *numbers, *Options.__annotations__}, type(self).__name__)
        self._start(params, {"lr": lr, "weight_decay": weight_decay, **numbers}, **options)

    def equation(self, group: Mapping[str, Any]) -> Equation:
        """Return the three rules that a parameter group is trained with."""
        return Equation.of(self.direction, self.penalty, self.decay)


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
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        momenta = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        super().__init__(params, lr=lr, weight_decay=weight_decay, options=options, **momenta)


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


class Adam(Preset):
    """Adam with L2: `weight_decay` enters the gradient, is divided by √v̂ with it, and so shrinks every weight differently.

    As torch.optim.Adam, `amsgrad` and `decoupled_weight_decay` (which makes it AdamW) included, per group.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = Adam([w], lr=0.5, weight_decay=0.25, eps=0.0)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.5
    """

    penalty = "l2"
    direction = "adam"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 0.0,
        amsgrad: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        numbers = {"betas": betas, "eps": eps, "amsgrad": amsgrad, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, lr=lr, weight_decay=weight_decay, options=options, **numbers)

    def equation(self, group: Mapping[str, Any]) -> Equation:
        """Return the rules, which two of torch's flags choose."""
        direction = "amsgrad" if group["amsgrad"] else "adam"
        return Equation.of(direction, decay="decoupled") if group["decoupled_weight_decay"] else Equation.of(direction, "l2")


class AdamW(Adam):
    """Adam that shrinks every weight by the same lr·weight_decay, beside the step. As torch.optim.AdamW.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = AdamW([w], lr=0.5, weight_decay=0.25)
    >>> w.grad = torch.tensor([0.0])
    >>> optimizer.step()
    >>> w.item()
    1.75
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True, **options)

    def _merged(self, saved: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
        return {**super()._merged(saved, live), "decoupled_weight_decay": True}
