"""What every preset is: an optimizer whose name fixes its rules, and whose arguments are explained in one place."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self, TypedDict

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from weightdecay.optim.hyperparameters import refuse_unknown, unify
from weightdecay.optim.optimizer import Optimizer, Schedule
from weightdecay.update_rules.equation import Equation

Number = float | Tensor
Betas = tuple[Number, Number]


class Settings(TypedDict, total=False):
    """The keywords that no optimizer of torch's takes by position, and most do not have."""

    weight_decay_schedule: Schedule | None
    fused: bool | None
    backend: str
    rounding: str
    seed: int


class Flags(Settings, total=False):
    """The same, and the flags that all but RMSprop of torch's take as keywords alone."""

    maximize: bool
    capturable: bool
    differentiable: bool


class Options(Flags, total=False):
    """The keywords that every preset takes: what help(weightdecay.Optimizer) says of them holds."""

    foreach: bool | None


_MEANINGS = {
    "params": "tensors, (name, tensor) pairs or groups, as torch takes them. A group may have any of the numbers below.",
    "lr": "η, the length of a step in units of the direction.",
    "momentum": "what the buffer keeps of itself at each step; 0 is no momentum.",
    "dampening": "what a gradient loses on its way into the momentum.",
    "nesterov": "look ahead: step along the momentum as it will be. Needs momentum and no dampening.",
    "betas": "what the mean of g and the mean of g² keep of themselves at each step, in [0, 1).",
    "eps": "ε, which is added where a root is divided by.",
    "alpha": "what the mean of g² keeps of itself at each step.",
    "centered": "divide by the standard deviation of g: subtract the square of its mean.",
    "rho": "what the means of g² and of the squared steps keep of themselves at each step.",
    "lr_decay": "how fast steps get shorter: after 1/lr_decay steps they are half as long.",
    "initial_accumulator_value": "where the sum of g² starts.",
    "momentum_decay": "how fast the momentum rises, from half of β₁ to β₁.",
    "amsgrad": "divide by the largest second moment so far.",
    "decoupled_weight_decay": "shrink the weights beside the step, not through the gradient; λ is then per unit of lr.",
    "ns_coefficients": "a, b and c of an iteration, which takes a singular value s to a·s + b·s³ + c·s⁵.",
    "ns_steps": "how many iterations.",
    "adjust_lr_fn": '"original" or None scales up the steps of tall matrices, "match_rms_adamw" all to the size of AdamW\'s.',
    "beta2_decay": "the mean of g² forgets the share t^beta2_decay at step t.",
    "d": "the largest root mean square of a step before it is scaled.",
    "p": "the power in Σ|w|^p.",
    "delta": "δ, the size of a weight from which on the pull is constant.",
    "ratio": "the share of its starting norm that a tensor decays to; 0 is AdamW.",
    "kappa": "κ, the bound of a tensor's sum of squares Σw².",
    "kappa_update": "how fast the multiplier answers, per step.",
    "capturable": "keep step counts on the device, so that a CUDA graph may capture the step.",
    "foreach": "changes nothing; taken as torch takes it.",
    "maximize": "ascend; the decay still shrinks.",
    "differentiable": "let autograd see through the step.",
    "options": "maximize, backend, rounding, … as weightdecay.Optimizer takes them.",
}


class Preset(Optimizer):
    """An optimizer whose name fixes its rules. A subclass sets `direction` and `penalty` or `decay`."""

    penalty: str | None = None
    direction: str
    decay: str = "none"
    unit: ClassVar[str] = "per unit of lr: lr·λ is what a step takes"
    """The unit of the decay's λ."""
    meanings: ClassVar[Mapping[str, str]] = {}
    """What arguments mean here, where that is something else than in most presets."""
    _lambdas: ClassVar = {"penalty": "weight_decay", "decay": "weight_decay"}

    def __init_subclass__(cls) -> None:
        """Complete the docstring: say before its example what the arguments mean."""
        super().__init_subclass__()
        text, prompt, example = inspect.cleandoc(cls.__doc__ or "").partition("\n\n>>> ")
        if text and "Args:" not in text:
            unit = "of the penalty: λ·w joins the gradient" if cls.decay == "none" else cls.unit
            meanings = {**_MEANINGS, "weight_decay": f"λ, {unit}.", **cls.meanings}
            names = [name for name in inspect.signature(cls.__init__).parameters if name in meanings]
            arguments = "\n".join(f"    {name}: {meanings[name]}" for name in names)
            cls.__doc__ = f"{text}\n\nArgs:\n{arguments}{prompt}{example}"

    def __init__(self, params: ParamsT, *, options: Settings, **numbers: Any) -> None:
        scheduled = set() if self.has_lambda() else {"weight_decay", "weight_decay_schedule"}
        for name in scheduled.intersection(options):
            raise TypeError(
                f"{type(self).__name__} takes no {name!r}: the decay {self.decay} has no λ; leave it out. A group that "
                "is not to decay has decay=None in weightdecay.Optimizer"
            )
        refuse_unknown(options, {*numbers, *Options.__annotations__} - scheduled, type(self).__name__)
        self._start(params, {"weight_decay": 0.0, **numbers}, **options)

    @classmethod
    def looking_at(cls, groups: Iterable[Mapping[str, Any]], state: Mapping[Any, Any]) -> Self:
        """Return an optimizer with the groups and the state of another, to be looked at and not stepped.

        What a user may not mean is in somebody's optimizer all the same: nothing is checked, and what is missing gets defaults.
        """
        found = cls([torch.zeros(0, 0)])  # type: ignore[call-arg]  # which any takes: for what it sets by default
        found.state.clear()
        found.state.update(state)
        found.param_groups = []
        for group in groups:
            given = {key: value for key, value in group.items() if value is not None or found.defaults.get(key) is None}
            found.param_groups.append({**found.defaults, **given, "params": list(group["params"])})
        for group in found.param_groups:
            found._fill(group)
            unify(group, found.equation(group))
        return found

    @classmethod
    def has_lambda(cls) -> bool:
        """Return whether there is a λ: some decays bound or hold a norm instead."""
        return "weight_decay" in inspect.signature(cls).parameters

    def equation(self, group: Mapping[str, Any]) -> Equation:
        """Return the three rules that a parameter group is trained with."""
        return Equation.of(self.direction, self.penalty, self.decay)


class Flagged(Preset):
    """A preset whose rules torch's flags choose, by group: `decoupled_weight_decay`, and `amsgrad` where there is one."""

    penalty: str | None = "l2"

    def equation(self, group: Mapping[str, Any]) -> Equation:
        """Return the three rules that a parameter group is trained with."""
        direction = "amsgrad" if group.get("amsgrad") else self.direction
        return Equation.of(direction, decay="decoupled") if group["decoupled_weight_decay"] else Equation.of(direction, "l2")


class Decoupled(Flagged):
    """A preset that keeps `decoupled_weight_decay`, whatever a checkpoint says. As torch.optim.AdamW."""

    penalty = None
    decay = "decoupled"

    def _merged(self, saved: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
        return {**super()._merged(saved, live), "decoupled_weight_decay": True}
