"""The step that an optimizer would do next."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightdecay.analysis import linear as lifting
from weightdecay.analysis.linear import is_factor
from weightdecay.analysis.split import Split
from weightdecay.backends import counting, eager, rounding
from weightdecay.backends.eager import Numbers, bound, reduce, vocabulary
from weightdecay.optim.optimizer import Optimizer
from weightdecay.optim.saved_state import count_in, known_name, moment_dtype, name_of
from weightdecay.update_rules import rule
from weightdecay.update_rules.equation import Equation
from weightdecay.update_rules.state import kept_for
from weightdecay.update_rules.traits import at_rest, is_uniform, rounded_away


class Upcoming:
    """The next step of one parameter, with all that it starts from."""

    def __init__(self, optimizer: Optimizer, index: int, place: int, names: Mapping[Tensor, str] | None = None) -> None:
        self.group = group = optimizer.param_groups[index]
        self.param = param = group["params"][place]
        self.name = name_of(group, index, place)
        if param.grad.layout != torch.strided:
            raise RuntimeError(f"the gradient of {self.name} is sparse ({param.grad.layout}), and no step is made with it")
        self.name = (names or {}).get(param) or known_name(group, place) or self.name
        self.equation, every, how = optimizer.way(group)
        self.kept = kept_for(param.shape, every)
        stored = optimizer.state.get(param)
        self.state = dict(stored) if isinstance(stored, Mapping) else {}
        held = [each for each in self.kept if self.state.get(each.key) is not None]
        counted = count_in(self.state)
        started = float(any(each.changes for each in held))
        self.t = counting.following_of_host(started if counted is None else counted)
        self.given = optimizer.numbers(group, self.t)
        for each in self.kept:
            if self.state.get(each.key) is None:
                self.state[each.key] = eager.start(each, param, self.equation.asking(each, self.given), moment_dtype(param))
        self.how = self.result = rounding.resolve(how, param.dtype)
        if self.state.get("compensation") is None and self.how == "compensated":
            self.how = "nearest"  # is how the weight has come to be; `result` is what becomes of the next
        grad = -param.grad if group["maximize"] else param.grad
        self.values = eager.operands(self.equation, param, grad, self.state, self.kept, self.how, 1.0)

    def numbers(self, dtype: torch.dtype) -> eager.Numbers:
        """Return what stands right of each rule's `*`, numbers of all tensors aside."""
        return eager.remembered(self.equation, eager.numbers_in(dtype, self.given), self.state, self.kept)

    def shrink(self) -> float | None:
        """Return the share that the step takes of every weight alike; None where there is no such number."""
        decay = self.equation.decay
        if self.equation.penalty is not None or not is_uniform(decay):
            return None
        return at_rest(decay, {name: float(x) for name, x in self.given["decay"].items()})

    def share(self, name: str) -> eager.Share:
        """Return what this parameter adds to a number of all tensors."""
        total, count = eager.share(self.equation, name, self.numbers(self.values["w"].dtype), self.values)
        return name, [total.item()], count

    def split(self, shared: Mapping[str, float]) -> Split:
        """Take the step apart."""
        dtype = self.values["w"].dtype
        factor, rest = split(self.equation, self.equation.with_shared(self.numbers(dtype), shared), self.values)
        numbers = self.equation.with_shared(self.numbers(torch.float64), shared)
        exact, _ = split(self.equation, numbers, {name: value.double() for name, value in self.values.items()})
        low = self.how == "nearest" and self.param.dtype in rounding.LOW_PRECISION
        return Split(
            self.name,
            factor,
            rest,
            (1 - exact).to(factor.dtype),
            float(self.group["lr"]),
            _one_shrink(self.equation, self.given),
            rounded_away(self.param.dtype) if low else 0.0,
        )


def shared_numbers(upcoming: Sequence[Upcoming]) -> dict[str, float]:
    """Return the numbers of all tensors that decays among these steps ask for."""
    asked = {name for each in upcoming for name in each.equation.decay.shared}
    return eager.means(each.share(name) for name in asked for each in upcoming if each.equation.supplies(name))


def _one_shrink(equation: Equation, numbers: Mapping[str, Mapping[str, Any]]) -> float:
    """Return what the decay takes of a weight at rest, or what λ of the penalty would take as a decoupled decay."""
    decay, given = equation.decay, {name: float(x) for name, x in numbers["decay"].items()}
    if "lam" in given:
        plain = not decay.reductions and not decay.keeps and is_factor(decay)
        return at_rest(decay, given) if plain else math.nan
    penalty = numbers.get("penalty", {}) if equation.penalty is not None else {}
    return given["eta"] * float(penalty.get("lam", 0.0))


def split(equation: Equation, numbers: Numbers, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return g and h of a step, with w_t = g·w − η·h; arguments as `step` takes them, without a stack.

    A factor that would not be finite (a constant pull on a tiny weight) is taken as 1, and the pull goes to h.
    """
    w = values["w"]
    dtype, words = w.dtype, lifting.lifted(vocabulary(w.dtype))

    def read(each: rule.Rule) -> Callable[..., Any]:
        if each.whole:
            return lambda g, *state, **given: bound(each.function, dtype)(lifting.whole(g), *state, **given)
        return rule.bind(each.function, words)

    def quotient(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        part = x / torch.where(w == 0, 1.0, w)
        holds = (w != 0) & part.isfinite()
        return torch.where(holds, 0.0, x), torch.where(holds, part, 0.0)

    eta = numbers["decay"]["eta"]
    if eta == 0 and (equation.decay.reductions or any(kept.per_element for kept in equation.decay.keeps)):
        # A pull to a reference is in h, or u times a ratio: its limit is that of a learning rate that no other term can feel.
        nearly = {**numbers, "decay": {**numbers["decay"], "eta": 2.0**-60}}
        return torch.ones_like(w), split(equation, nearly, values)[1]
    factor, rest = lifting.split(
        equation, numbers, values, read=read, reduce=reduce, quotient=quotient, by_eta=lambda x, u: u if eta == 0 else x / eta
    )
    return _like(factor, w), _like(rest, w)


def _like(value: Any, w: Tensor) -> Tensor:
    """Return a value of every weight, or one for all of them, in the shape and, if w is a DTensor, in the layout of w."""
    if not isinstance(value, Tensor) or (value.ndim == 0 and w.ndim > 0):
        same: Tensor = torch.zeros_like(w) + value
        return same
    return torch.as_tensor(value, dtype=w.dtype, device=w.device).expand_as(w).clone()
