"""A rule is a function of plain math: the decorators that register one, the registry, the binding that reads it.

There are three kinds, and `weightdecay.update_rules.equation` says how they make one optimizer step:

    penalty(w, *, lam, ...)             → what the penalty adds to the gradient
    direction(g, *state, *, t, ...)     → (u, *state), or u alone where there is no state
    decay(w, u, *, eta, lam, ...)       → the next weight

Left of the `*` stands one value per element, right of it one number per tensor. A number with a default is a hyper-parameter;
the others are given by the optimizer (`CONTEXT`) or computed from the whole tensor (`weightdecay.update_rules.reductions`).
"""

import ast
import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from typing import Any, Literal, TypeVar

from weightdecay.columns import aligned
from weightdecay.interval import Choice, Interval
from weightdecay.near import hint, nearest
from weightdecay.update_rules.lint import RuleError, lint
from weightdecay.update_rules.reductions import REDUCTIONS

Kind = Literal["penalty", "direction", "decay"]
Function = TypeVar("Function", bound=Callable[..., Any])

Shape = Callable[[tuple[int, ...]], tuple[int, ...] | None]

KINDS: tuple[Kind, ...] = ("penalty", "direction", "decay")
CONTEXT = {
    "eta": "the learning rate of this step",
    "lam": "the penalty's or the decay's λ",
    "t": "the number of this step, from 1",
    "eta_max": "the peak of the learning rate",
}
TAKEN = (
    "params", "param_names", "lr", "lr_max", "lr_at_start", "largest_lr", "initial_lr", "max_lr", "min_lr", "weight_decay",
    "penalty_weight", "betas", "momentum", "direction", "penalty", "decay", "seed", "rounding", "reader", "maximize",
    "foreach", "fused", "capturable", "differentiable", "amsgrad", "decoupled_weight_decay", "weight_decay_schedule",
    "penalty_weight_schedule", "initial_weight_decay", "initial_penalty_weight", "base_lr", "base_momentum", "max_momentum",
    "swa_lr", "optimizer", "self",
)  # fmt: skip
"""The keys of a parameter group that are not a rule's own numbers, and so no names for one."""
FLAGS = ("nesterov", "centered")
"""The hyper-parameters that are True or False in every rule."""
_FIRST_ARGUMENTS = {"penalty": ("w",), "direction": ("g",), "decay": ("w", "u")}


@dataclass(frozen=True)
class Kept:
    """What a rule keeps in the optimizer's state from one step to the next."""

    name: str
    """The rule's argument."""
    key: str
    """Its key in the optimizer's `state`, which is torch's where torch has one."""
    per_element: bool
    changes: bool
    """Whether the rule returns it anew; else it stays what it was before the first step."""
    start: float | str = 0.0
    """The value before the first step: a number, `w`, or the name of a reduction."""
    unless: str | None = None
    """The hyper-parameter without which (at zero) it is neither kept nor read."""
    shape: Shape | None = None
    """What makes its shape of the parameter's, if it has another."""

    def is_kept(self, numbers: Mapping[str, Any]) -> bool:
        """Return whether it is needed at these hyper-parameters."""
        value = numbers[self.unless] if self.unless is not None else 1
        return not isinstance(value, int | float) or value != 0

    def shape_of(self, param: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return its shape for a parameter of this shape; None if such a parameter has none of it."""
        if not self.per_element:
            return ()
        return param if self.shape is None else self.shape(param)


def kept_for(shape: tuple[int, ...], kept: Iterable[Kept]) -> tuple[Kept, ...]:
    """Return those of what rules keep that a parameter of this shape has."""
    return tuple(each for each in kept if each.shape_of(shape) is not None)


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


class Registry(Mapping[tuple[Kind, str], Rule]):
    """All rules by (kind, name); prints as a table."""

    def __init__(self) -> None:
        self.changes = 0
        """How often a rule was added, so that what was made from the rules knows when to look again."""
        self.optimizers: dict[str, str] = {}
        """By the names of the optimizers that have one, such as AdamW, what each is made of: who asks for a direction by
        such a name is told."""

    @cached_property
    def _rules(self) -> dict[tuple[Kind, str], Rule]:
        """Return what is registered; whoever looks first brings the package's own rules in, before anybody else's."""
        found: dict[tuple[Kind, str], Rule] = {}
        self.__dict__["_rules"] = found  # where the pages put themselves, while this waits for them
        import_module("weightdecay.update_rules.load_all")
        return found

    def __getitem__(self, key: tuple[Kind, str]) -> Rule:
        return self._rules[key]

    def __iter__(self) -> Iterator[tuple[Kind, str]]:
        return iter(sorted(self._rules, key=lambda key: (KINDS.index(key[0]), key[1])))

    def __len__(self) -> int:
        return len(self._rules)

    def of(self, kind: Kind) -> dict[str, Rule]:
        """Return the rules of one kind by name."""
        return {name: self[key, name] for key, name in self if key == kind}

    def find(self, kind: Kind, rule: str | Callable[..., Any]) -> Rule:
        """Return the rule of this kind that a user means by a name or by the decorated function itself."""
        if callable(rule):
            known = getattr(rule, "rule", None)
            if isinstance(known, Rule) and known.kind == kind:
                return known
            found = f"a {known.kind}" if isinstance(known, Rule) else "not a rule"
            raise ValueError(f"{kind}={getattr(rule, '__name__', rule)} is {found}: decorate it with @{kind}")
        if not isinstance(rule, str):
            raise TypeError(f"{kind}={rule!r} is neither the name of a {kind} nor a function decorated with @{kind}")
        if (kind, rule) in self:
            return self[kind, rule]
        names = sorted(self.of(kind))
        made_of = self.optimizers if kind == "direction" else {}
        near = nearest(rule, [*names, *made_of])
        meant = hint(rule, names)
        if near and near[0] in made_of:
            is_one = near[0] == rule
            meant = f"{rule} is {made_of[rule]}" if is_one else f"did you mean {near[0]}: {made_of[near[0]]}?"
        other = next((other for other in KINDS if (other, rule) in self), None)
        if other:
            meant = f"{rule!r} is a {other}; {meant}"
        raise ValueError(f"{kind}={rule!r} is unknown: {meant}")

    def add(self, rule: Rule) -> None:
        """Register a rule; a second of the same kind and name may only come from the same file, or from a notebook again."""
        key = rule.kind, rule.name
        places = [(f.__code__.co_filename, f.__module__) for f in (rule.function, self[key].function)] if key in self else []
        again = not places or places[0][0] == places[1][0] or places[0][1] == places[1][1] == "__main__"
        if not again:
            raise RuleError(f"a {rule.kind} named {rule.name!r} exists already, in {self[key].function.__module__}")
        self._rules[key] = rule
        self.changes += 1

    def __str__(self) -> str:
        header = ("kind", "rule", "numbers", "what it does")
        rows = [(rule.kind, rule.name, rule.settings, rule.summary) for rule in self.values()]
        return "\n".join(aligned([header, *rows]))

    __repr__ = __str__

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rules as plain data, by kind."""
        return {kind: [rule.to_dict() for rule in self.of(kind).values()] for kind in KINDS}


REGISTRY = Registry()


def as_typed(value: Any) -> str:
    """Return a default as one would type it, and a number as short as it can be told."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def penalty(
    *,
    source: str = "",
    reference: Mapping[str, str] | None = None,
    domain: Mapping[str, str] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Function], Function]:
    """Register a penalty: a function (w, *reference, *, lam, …) that returns what the penalty adds to the gradient.

    `source` is the paper, `domain` an interval per hyper-parameter such as {"p": "(0, inf)"}, and `check` a function of the
    hyper-parameters that raises ValueError where they make no sense together, in a new group: later they are written one by
    one, as schedules do. `reference={"w_0": "reference"}` keeps what w
    was before the first step under that key of the optimizer's state; a number such as norm_w_0 is what norm_w was.
    """
    return _registering("penalty", source, domain, check, _kept({}, reference, {}, {}))


def direction(
    *,
    source: str = "",
    state: Mapping[str, str] | None = None,
    memory: Mapping[str, tuple[str, float | str]] | None = None,
    optional: Mapping[str, str] | None = None,
    beside: Mapping[str, str] | None = None,
    start: Mapping[str, str] | None = None,
    domain: Mapping[str, str | tuple[str | None, ...]] | None = None,
    check: Callable[..., None] | None = None,
    whole: bool = False,
    ndim: int | None = None,
    shapes: Mapping[str, Shape] | None = None,
) -> Callable[[Function], Function]:
    """Register a direction: a function (g, *state, *, t, …) that returns u and the new state.

    `state` names each moment's key in the optimizer's `state_dict`, in the order of the arguments; a moment starts at
    zero, or at the hyper-parameter that `start` names. With `optional={"m": "mu"}` the moment m is neither kept nor read
    while mu is 0, and with `beside={"dampening": "mu"}` the dampening is 0 then, too. `memory` is the same as `state` for
    numbers, one per tensor, each with its key and its start.

    With `whole=True` the function is not math per element but a function of whole tensors, in torch's operations (an
    orthogonalised momentum, say); the decay beside it is an ordinary rule. It may ask for reductions of w. `ndim` is the
    number of dimensions that it needs, and `shapes={"row": rows}` gives a moment another shape than the parameter's: what
    rows(shape) returns, or no such moment where that is None. Its hyper-parameters may also be tuples of numbers, and words,
    of which `domain` then lists the allowed. The rest is as in `penalty`.
    """
    kept = _kept(state or {}, {}, memory or {}, optional or {}, start or {}, shapes or {})
    return _registering("direction", source, domain, check, kept, whole, ndim, beside or {})


def decay(
    *,
    source: str = "",
    reference: Mapping[str, str] | None = None,
    memory: Mapping[str, tuple[str, float | str]] | None = None,
    domain: Mapping[str, str] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Function], Function]:
    """Register a decay: a function (w, u, *reference, *, eta, lam, …) that returns the next weight, and its memory.

    `memory={"multiplier": ("multiplier", 0.0)}` keeps one number per tensor, with its key and its start. The rest is as
    in `penalty`.
    """
    return _registering("decay", source, domain, check, _kept({}, reference, memory or {}, {}))


def _kept(
    state: Mapping[str, str],
    reference: Mapping[str, str] | None,
    memory: Mapping[str, tuple[str, float | str]],
    optional: Mapping[str, str],
    start: Mapping[str, str] | None = None,
    shapes: Mapping[str, Shape] | None = None,
) -> tuple[Kept, ...]:
    """Return what a rule keeps, in the order of its arguments."""
    starts, shapes = start or {}, shapes or {}
    fixed = {name: (key, name.removesuffix("_0")) for name, key in (reference or {}).items()}
    return (
        *(
            Kept(name, key, True, True, starts.get(name, 0.0), optional.get(name), shapes.get(name))
            for name, key in state.items()
        ),
        *(Kept(name, key, True, False, of) for name, (key, of) in fixed.items() if of not in REDUCTIONS),
        *(Kept(name, key, False, True, value) for name, (key, value) in memory.items()),
        *(Kept(name, key, False, False, of) for name, (key, of) in fixed.items() if of in REDUCTIONS),
    )


def rules() -> Registry:
    """Return every registered rule; prints as a table, `.of(kind)` is a dict by name, `.to_dict()` plain data.

    >>> import weightdecay as wd
    >>> sorted(wd.rules().of("decay"))[:2]
    ['cautious', 'constrained']
    """
    return REGISTRY


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


def _registering(
    kind: Kind,
    source: str,
    domain: Mapping[str, Any] | None,
    check: Callable[..., None] | None,
    keeps: tuple[Kept, ...],
    whole: bool = False,
    ndim: int | None = None,
    beside: Mapping[str, str] | None = None,
) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        name = getattr(function, "__name__", repr(function))
        if not isinstance(source, str) or not source.strip():
            raise RuleError(f"{kind} {name} needs source=…: the paper or the code that it comes from")
        if not isinstance(function, types.FunctionType):
            raise RuleError(f"{kind} {name} is not written with a plain def")
        rule = _describe(function, kind, source, domain or {}, check, keeps, whole, ndim, beside or {})
        if not whole:
            rule = replace(rule, body=lint(function, kind))
            _run_once(rule)
        REGISTRY.add(rule)
        function.rule = rule  # type: ignore[attr-defined]
        return function

    return register


def _describe(
    function: types.FunctionType,
    kind: Kind,
    source: str,
    domain: Mapping[str, Any],
    check: Callable[..., None] | None,
    keeps: tuple[Kept, ...],
    whole: bool,
    ndim: int | None,
    beside: Mapping[str, str],
) -> Rule:
    """Read a rule's signature, and refuse one that a reader could not fill."""
    name = function.__name__
    parameters = inspect.signature(function).parameters.values()
    elements = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    numbers = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if len(elements) + len(numbers) != len(parameters):
        raise RuleError(f"{kind} {name}: *args and **kwargs have no meaning in a rule")
    expected = (*_FIRST_ARGUMENTS[kind], *(kept.name for kept in keeps if kept.per_element))
    memory = {kept.name for kept in keeps if not kept.per_element}
    if elements != expected:
        raise RuleError(f"{kind} {name}({', '.join(elements)}, *, …) must take ({', '.join(expected)}, *, …)")
    if function.__defaults__:
        raise RuleError(f"{kind} {name}: {elements[-1]} is one value per element and takes no default")
    for key in {kept.key for kept in keeps} & {"step", "compensation"}:
        raise RuleError(f"{kind} {name}: the optimizer's state keeps something else as {key!r}; choose another key")
    for kept in keeps:
        if not kept.changes and kept.name not in ("w_0", *(f"{reduction}_0" for reduction in REDUCTIONS)):
            raise RuleError(f"{kind} {name}: a reference is w_0 or a reduction with _0, such as norm_w_0, not {kept.name}")
    for kept in keeps:
        if kept.name in ("w", "g", "u"):
            raise RuleError(
                f"{kind} {name}: {kept.name} is the weight, the gradient or the step, and nothing that a rule keeps"
            )
    for number in memory - set(numbers):
        raise RuleError(f"{kind} {name}: {number} is one number per tensor and stands right of the *")
    for number in numbers:
        if number in TAKEN:
            raise RuleError(f"{kind} {name}: {number} means something else in a parameter group; choose another name")
    defaults = {number: value for number, value in numbers.items() if value is not inspect.Parameter.empty}
    for number in numbers:
        given = number in CONTEXT or number in REDUCTIONS or number in memory
        if given and number in defaults:
            raise RuleError(f"{kind} {name}: {number} is given by the optimizer and takes no default")
        if not given and number not in defaults:
            known = ", ".join([*CONTEXT, *REDUCTIONS])
            raise RuleError(f"{kind} {name}: {number} needs a default; without one there are only {known}")
    for number in FLAGS:
        if number in defaults and not isinstance(defaults[number], bool):
            raise RuleError(f"{kind} {name}: {number} is a flag, True or False; choose another name for a number")
    betas = sorted(number for number in defaults if re.fullmatch(r"beta\d", number))
    if betas != [f"beta{place}" for place in range(1, len(betas) + 1)]:
        raise RuleError(
            f"{kind} {name}: users write betas=(beta1, beta2, …), so {betas[-1]} needs those before it, from beta1 on"
        )
    used = [name for kept in keeps if kept.changes for name in (kept.unless, kept.start) if isinstance(name, str)]
    for key in (*domain, *used, *beside, *beside.values()):
        if key not in defaults:
            raise RuleError(f"{kind} {name}: {key} is not one of its hyper-parameters ({', '.join(defaults)})")
    try:
        allowed = {
            key: Choice(among) if whole and isinstance(among, tuple) else Interval(among) for key, among in domain.items()
        }
    except ValueError as error:
        raise RuleError(f"{kind} {name}: the domain {error}") from None
    for key, value in defaults.items():
        among = allowed.get(key, Interval("(-inf, inf)"))
        for each in value if whole and isinstance(value, tuple) else (value,):
            if isinstance(among, Interval) and each is None and isinstance(value, tuple):
                continue
            if isinstance(among, Interval) and (not isinstance(each, int | float) or not math.isfinite(each)):
                raise RuleError(f"{kind} {name}: the default {key}={value!r} is not a finite number")
            if each not in among:
                raise RuleError(f"{kind} {name}: the default {key}={value!r} is outside {among}")
    for number in numbers if kind != "decay" else ():
        if number in REDUCTIONS and not {"w", "g", "w_0"}.issuperset(REDUCTIONS[number].elements):
            raise RuleError(f"{kind} {name}: {number} is not there before the direction is: only a decay may ask for it")
    own = [number for number in numbers if number in REDUCTIONS and REDUCTIONS[number].elements != ("w",)]
    if whole and own:
        raise RuleError(f"{kind} {name} sees whole tensors and computes {', '.join(own)} itself")
    if not whole and (ndim is not None or any(kept.shape is not None for kept in keeps)):
        raise RuleError(f"{kind} {name} sees one element at a time: only whole=True knows ndim and shapes")
    return Rule(name, kind, function, source, keeps, tuple(numbers), defaults, allowed, check, whole, ndim, beside)


def _run_once(rule: Rule) -> None:
    """Run the rule on floats and compare what it returns with what its kind must return."""
    numbers = {**dict.fromkeys(rule.numbers, 0.5), **rule.defaults}
    result = rule.function(*(0.5 ** (place + 1) for place in range(len(rule.elements))), **numbers)
    returned = len(result) if isinstance(result, tuple) else 1
    expected = 1 + len(rule.returned)
    if returned != expected or (isinstance(result, tuple) and expected == 1):
        order = ", ".join(["u" if rule.kind == "direction" else "w", *rule.returned]) if rule.returned else "one value"
        raise RuleError(f"{rule.kind} {rule.name} returns {returned} values instead of {expected}: return {order}")
