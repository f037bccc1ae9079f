"""A rule is a function of plain math: what is known of one, and how a backend binds it.

There are three kinds, and `weightdecay.update_rules.equation` says how they make one optimizer step:

    penalty(w, *, lam, ...)             → what the penalty adds to the gradient
    direction(g, *state, *, t, ...)     → (u, *state), or u alone where there is no state
    decay(w, u, *, eta, lam, ...)       → the next weight

Left of the `*` stands one value per element, right of it one number per tensor. A number with a default is a hyper-parameter;
the others are given by the optimizer (`CONTEXT`) or computed from the whole tensor (`weightdecay.update_rules.reductions`).
"""

import ast
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

from weightdecay.update_rules.reductions import REDUCTIONS
from weightdecay.update_rules.state import Kept
from weightdecay.validation import Choice, Interval

Kind = Literal["penalty", "direction", "decay"]
Function = TypeVar("Function", bound=Callable[..., Any])


KINDS: tuple[Kind, ...] = ("penalty", "direction", "decay")
CONTEXT = {
    "eta": "the learning rate of this step",
    "lam": "the penalty's or the decay's λ",
    "t": "the number of this step, from 1",
    "eta_max": "the peak of the learning rate",
}
TAKEN = (
    "params", "param_names", "lr", "lr_max", "lr_at_start", "largest_lr", "initial_lr", "max_lr", "min_lr", "weight_decay",
    "penalty_weight", "betas", "momentum", "direction", "penalty", "decay", "seed", "rounding", "backend", "maximize",
    "foreach", "fused", "capturable", "differentiable", "amsgrad", "decoupled_weight_decay", "weight_decay_schedule",
    "penalty_weight_schedule", "initial_weight_decay", "initial_penalty_weight", "base_lr", "base_momentum", "max_momentum",
    "swa_lr", "optimizer", "self",
)  # fmt: skip
"""The keys of a parameter group that are not a rule's own numbers, and so no names for one."""
FLAGS = ("nesterov", "centered")
"""The hyper-parameters that are True or False in every rule."""
_FIRST_ARGUMENTS = {"penalty": ("w",), "direction": ("g",), "decay": ("w", "u")}


@dataclass(frozen=True, eq=False)
class Rule:
    """What the registry knows of a rule; everything but the source comes from the function itself."""

    name: str
    kind: Kind
    function: types.FunctionType
    source: str
    keeps: tuple[Kept, ...]
    """What it keeps from step to step, in the order in which it takes and returns it."""
    numbers: tuple[str, ...]
    """Every name right of the `*`."""
    defaults: Mapping[str, Any]
    """The hyper-parameters, with their defaults: numbers, and where tensors are seen whole also words and tuples."""
    domain: Mapping[str, Interval | Choice]
    check: Callable[..., None] | None
    whole: bool = False
    """Whether a direction sees whole tensors, as torch does, and is a function of torch's operations."""
    ndim: int | None = None
    """The number of dimensions that such a tensor must have, if it matters."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """Hyper-parameters that count only beside another, and are zero where that is zero."""
    body: tuple[ast.stmt, ...] = field(default=(), repr=False)
    """The statements of the function, as the lint read them; none of one of whole tensors."""
    _cut: dict[str, "Rule"] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Fill the properties that a step reads: torch.compile, which follows a step, stops where one is filled."""
        for name in ("elements", "state", "returned", "memory", "reductions", "shared", "measures_gradient", "made"):
            getattr(self, name)

    @cached_property
    def elements(self) -> tuple[str, ...]:
        """Return the per-element values that the rule takes, in order."""
        return (*_FIRST_ARGUMENTS[self.kind], *(kept.name for kept in self.keeps if kept.per_element))

    @cached_property
    def state(self) -> dict[str, str]:
        """Return the keys of what it keeps for every element and changes, by its names for them."""
        return {kept.name: kept.key for kept in self.keeps if kept.per_element and kept.changes}

    @cached_property
    def returned(self) -> tuple[str, ...]:
        """Return the names of what the function returns after its first result."""
        return tuple(kept.name for kept in self.keeps if kept.changes)

    @cached_property
    def memory(self) -> tuple[str, ...]:
        """Return the numbers that it keeps, one per tensor."""
        return tuple(kept.name for kept in self.keeps if not kept.per_element)

    @cached_property
    def reductions(self) -> tuple[str, ...]:
        """Return the numbers that are computed from the whole tensor."""
        return tuple(name for name in self.numbers if name in REDUCTIONS)

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """Return those among them that are of all tensors of the optimizer together."""
        return tuple(name for name in self.reductions if REDUCTIONS[name].of_all)

    @cached_property
    def measures_gradient(self) -> bool:
        """Return whether one of them is of the gradient."""
        return any("g" in REDUCTIONS[name].elements for name in self.reductions)

    @cached_property
    def made(self) -> frozenset[str]:
        """Return the names that the rule's lines make, such as m_hat and v_hat."""
        targets = (target for line in self.body if isinstance(line, ast.Assign) for target in line.targets)
        return frozenset(target.id for target in targets if isinstance(target, ast.Name))

    def counting(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the hyper-parameters with zero for each that does nothing, since the one it counts beside is zero."""
        found = dict(numbers)
        for name, other in self.beside.items():
            value, beside = found[name], found[other]
            if not isinstance(value, int | float) or value != 0:
                if not isinstance(beside, int | float):
                    found[name] = value * (beside != 0).double()  # a tensor, which nobody reads here
                elif beside == 0:
                    found[name] = 0.0
        return found

    def up_to(self, name: str) -> "Rule":
        """Return the rule that ends where this one has made a name, and returns that alone; the same one every time."""
        if name not in self._cut:
            self._cut[name] = self._up_to(name)
        return self._cut[name]

    def _up_to(self, name: str) -> "Rule":
        last = max(place for place, line in enumerate(self.body) if name in replace(self, body=(line,)).made)
        body = (*self.body[: last + 1], ast.Return(ast.Name(name, ast.Load())))
        lines = "".join(f"    {ast.unparse(line)}\n" for line in body)
        text = f"def {self.name}({', '.join(self.elements)}, *, {', '.join(self.numbers)}):\n{lines}"
        module = compile(text, f"<{self.name}, up to {name}>", "exec")
        code = next(each for each in module.co_consts if isinstance(each, types.CodeType))
        function = types.FunctionType(code, self.function.__globals__)
        rule = replace(self, function=function, body=body, keeps=tuple(replace(kept, changes=False) for kept in self.keeps))
        function.rule = rule  # type: ignore[attr-defined]
        return rule

    @property
    def summary(self) -> str:
        """Return the first paragraph of the rule's page, or of its function where several share a file."""
        page = inspect.getmodule(self.function)
        is_page = page is not None and page.__name__.rpartition(".")[2] == self.name
        text = (page.__doc__ if page is not None and is_page else None) or self.function.__doc__ or ""
        return " ".join(text.strip().split("\n\n")[0].split())

    @property
    def settings(self) -> str:
        """Return its hyper-parameters with their defaults, as one would type them."""
        return ", ".join(f"{name}={as_typed(value)}" for name, value in self.defaults.items())

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as plain data."""
        return {
            "name": self.name,
            "kind": self.kind,
            "summary": self.summary,
            "source": self.source,
            "numbers": list(self.numbers),
            "defaults": {name: list(value) if isinstance(value, tuple) else value for name, value in self.defaults.items()},
            "domain": {name: str(interval) for name, interval in self.domain.items()},
            "state": {kept.name: kept.key for kept in self.keeps},
            "reductions": list(self.reductions),
        }


def as_typed(value: Any) -> str:
    """Return a default as one would type it, and a number as short as it can be told."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def bind(function: Callable[..., Any], meaning: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function with other meanings for the words: the same code object, read by another backend.

    >>> from weightdecay.update_rules.penalties.l1 import l1
    >>> bind(l1, {"sign": lambda w: f"sign({w})"})("w", lam=2)
    'sign(w)sign(w)'
    """
    assert isinstance(function, types.FunctionType)
    # Without __name__, torch.compile looks a word up in these globals and not in the module of that name.
    known = {name: value for name, value in function.__globals__.items() if name != "__name__"}
    bound = types.FunctionType(
        function.__code__, {**known, **meaning}, function.__name__, function.__defaults__, function.__closure__
    )
    bound.__kwdefaults__ = function.__kwdefaults__
    bound.__module__ = function.__module__
    return bound
