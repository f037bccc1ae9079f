"""A rule is a function of plain math: the decorators that register one, the lint that keeps it plain, the binding that
reads it.

There are three kinds, and `weightdecay.step` says how they make one optimizer step:

    penalty(w, *, lam, ...)             → what the penalty adds to the gradient
    direction(g, *state, *, t, ...)     → (u, *state), or u alone where there is no state
    decay(w, u, *, eta, lam, ...)       → the next weight

Left of the `*` stands one value per element, right of it one number per tensor. A number with a default is a hyper-parameter;
the others are given by the optimizer (`CONTEXT`) or computed from the whole tensor (`weightdecay.reductions`).
"""

import ast
import inspect
import math
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from weightdecay import words
from weightdecay.reductions import REDUCTIONS

Kind = Literal["penalty", "direction", "decay"]
Function = TypeVar("Function", bound=Callable[..., Any])

KINDS: tuple[Kind, ...] = ("penalty", "direction", "decay")
CONTEXT = {
    "eta": "the learning rate of this step",
    "lam": "the penalty's or the decay's λ",
    "t": "the number of this step, from 1",
    "eta_max": "the peak of the learning rate",
}
_FIRST_ARGUMENTS = {"penalty": ("w",), "direction": ("g",), "decay": ("w", "u")}


class RuleError(TypeError):
    """Say which construct of a rule is not plain math, and what to write instead."""


@dataclass(frozen=True)
class Interval:
    """A set of allowed values in the notation of mathematics, such as "[0, 1)"."""

    text: str
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        try:
            low, high = (float(end) for end in self.text[1:-1].split(","))
            if self.text[0] not in "[(" or self.text[-1] not in "])":
                raise ValueError
        except ValueError:
            raise RuleError(f'domain {self.text!r} is not an interval such as "[0, 1)" or "(0, inf)"') from None
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.text[0] == "[" else value > self.low
        below = value <= self.high if self.text[-1] == "]" else value < self.high
        return above and below

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Rule:
    """What the registry knows of a rule; everything but the source comes from the function itself."""

    name: str
    kind: Kind
    function: types.FunctionType
    source: str
    state: Mapping[str, str]
    """For each moment of a direction, its key in the optimizer's `state`, which is torch's where torch has one."""
    numbers: tuple[str, ...]
    """Every name right of the `*`."""
    defaults: Mapping[str, float]
    """The hyper-parameters, with their defaults."""
    domain: Mapping[str, Interval]
    check: Callable[..., None] | None
    stateless_without: str | None
    """The number without which (at zero) a direction needs no state."""

    @property
    def elements(self) -> tuple[str, ...]:
        """Return the per-element values that the rule takes, in order."""
        return (*_FIRST_ARGUMENTS[self.kind], *self.state)

    @property
    def reductions(self) -> tuple[str, ...]:
        """Return the numbers that are computed from the whole tensor."""
        return tuple(name for name in self.numbers if name in REDUCTIONS)

    @property
    def summary(self) -> str:
        """Return the first paragraph of the rule's page, or of its function where several share a file."""
        page = inspect.getmodule(self.function)
        is_page = page is not None and page.__name__.rpartition(".")[2] == self.name
        text = (page.__doc__ if page is not None and is_page else None) or self.function.__doc__ or ""
        return " ".join(text.strip().split("\n\n")[0].split())

    def keeps_state(self, numbers: Mapping[str, Any]) -> bool:
        """Return whether this direction needs its moments at these hyper-parameters."""
        if self.stateless_without is None:
            return bool(self.state)
        value = numbers[self.stateless_without]
        return not isinstance(value, int | float) or value != 0

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as plain data."""
        return {
            "name": self.name,
            "kind": self.kind,
            "summary": self.summary,
            "source": self.source,
            "numbers": list(self.numbers),
            "defaults": dict(self.defaults),
            "domain": {name: str(interval) for name, interval in self.domain.items()},
            "state": dict(self.state),
            "reductions": list(self.reductions),
        }


class Registry(Mapping[tuple[Kind, str], Rule]):
    """All rules by (kind, name); prints as a table."""

    def __init__(self) -> None:
        self._rules: dict[tuple[Kind, str], Rule] = {}

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
        close = get_close_matches(rule, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
        other = next((other for other in KINDS if (other, rule) in self), None)
        if other:
            hint = f"{rule!r} is a {other}; {hint}"
        raise ValueError(f"{kind}={rule!r} is unknown: {hint}")

    def add(self, rule: Rule) -> None:
        """Register a rule; a second one of the same kind and name may only come from the same file."""
        key = rule.kind, rule.name
        if key in self and self[key].function.__code__.co_filename != rule.function.__code__.co_filename:
            raise RuleError(f"a {rule.kind} named {rule.name!r} exists already, in {self[key].function.__module__}")
        self._rules[key] = rule

    def __str__(self) -> str:
        rows = [(rule.kind, rule.name, _as_typed(rule.defaults), rule.summary) for rule in self.values()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join("  ".join([*(c.ljust(n) for c, n in zip(row, widths)), row[3]]).rstrip() for row in rows)  # noqa: B905

    __repr__ = __str__

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rules as plain data, by kind."""
        return {kind: [rule.to_dict() for rule in self.of(kind).values()] for kind in KINDS}


REGISTRY = Registry()


def _as_typed(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in numbers.items())


def penalty(
    *, source: str, domain: Mapping[str, str] | None = None, check: Callable[..., None] | None = None
) -> Callable[[Function], Function]:
    """Register a penalty: a function (w, *, lam, …) that returns what the penalty adds to the gradient.

    `source` is the paper, `domain` an interval per hyper-parameter such as {"p": "(0, inf)"}, and `check` a function of the
    hyper-parameters that raises ValueError where they make no sense together.
    """
    return _registering("penalty", source, domain, check)


def direction(
    *,
    source: str,
    state: Mapping[str, str] | None = None,
    stateless_without: str | None = None,
    domain: Mapping[str, str] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Function], Function]:
    """Register a direction: a function (g, *state, *, t, …) that returns u and the new state.

    `state` names each moment's key in the optimizer's `state_dict`, in the order of the arguments; a moment starts at
    zero. With `stateless_without="mu"` the moments are neither kept nor read while mu is 0. The rest is as in `penalty`.
    """
    return _registering("direction", source, domain, check, state, stateless_without)


def decay(
    *, source: str, domain: Mapping[str, str] | None = None, check: Callable[..., None] | None = None
) -> Callable[[Function], Function]:
    """Register a decay: a function (w, u, *, eta, lam, …) that returns the next weight. Arguments as in `penalty`."""
    return _registering("decay", source, domain, check)


def rules() -> Registry:
    """Return every registered rule; prints as a table, `.of(kind)` is a dict by name, `.to_dict()` plain data.

    >>> import weightdecay as wd
    >>> sorted(wd.rules().of("decay"))[:2]
    ['cautious', 'decoupled']
    """
    return REGISTRY


def bind(function: Callable[..., Any], meaning: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function with other meanings for the words: the same code object, read by another backend.

    >>> from weightdecay.penalties.l1 import l1
    >>> bind(l1, {"sign": lambda w: f"sign({w})"})("w", lam=2)
    'sign(w)sign(w)'
    """
    assert isinstance(function, types.FunctionType)
    bound = types.FunctionType(
        function.__code__, {**function.__globals__, **meaning}, function.__name__, function.__defaults__, function.__closure__
    )
    bound.__kwdefaults__ = function.__kwdefaults__
    bound.__module__ = function.__module__
    return bound


def _registering(
    kind: Kind,
    source: str,
    domain: Mapping[str, str] | None,
    check: Callable[..., None] | None,
    state: Mapping[str, str] | None = None,
    stateless_without: str | None = None,
) -> Callable[[Function], Function]:
    if not isinstance(source, str) or not source.strip():
        raise RuleError(f"@{kind} needs source=…: the paper or the code that the rule comes from")

    def register(function: Function) -> Function:
        assert isinstance(function, types.FunctionType)
        rule = _describe(function, kind, source, domain or {}, check, state or {}, stateless_without)
        _lint(rule)
        _run_once(rule)
        REGISTRY.add(rule)
        function.rule = rule  # type: ignore[attr-defined]
        return function

    return register


def _describe(
    function: types.FunctionType,
    kind: Kind,
    source: str,
    domain: Mapping[str, str],
    check: Callable[..., None] | None,
    state: Mapping[str, str],
    stateless_without: str | None,
) -> Rule:
    """Read a rule's signature, and refuse one that a reader could not fill."""
    name = function.__name__
    parameters = inspect.signature(function).parameters.values()
    elements = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    numbers = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if len(elements) + len(numbers) != len(parameters):
        raise RuleError(f"{kind} {name}: *args and **kwargs have no meaning in a rule")
    expected = (*_FIRST_ARGUMENTS[kind], *state)
    if elements != expected:
        raise RuleError(f"{kind} {name}({', '.join(elements)}, *, …) must take ({', '.join(expected)}, *, …)")
    defaults = {name: value for name, value in numbers.items() if value is not inspect.Parameter.empty}
    for number in numbers:
        given = number in CONTEXT or number in REDUCTIONS
        if given and number in defaults:
            raise RuleError(f"{kind} {name}: {number} is given by the optimizer and takes no default")
        if not given and number not in defaults:
            known = ", ".join([*CONTEXT, *REDUCTIONS])
            raise RuleError(f"{kind} {name}: {number} needs a default; without one there are only {known}")
    for key, value in defaults.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RuleError(f"{kind} {name}: the default {key}={value!r} is not a finite number")
    for key in [*domain, *([stateless_without] if stateless_without else [])]:
        if key not in defaults:
            raise RuleError(f"{kind} {name}: {key} is not one of its hyper-parameters ({', '.join(defaults)})")
    intervals = {key: Interval(text) for key, text in domain.items()}
    return Rule(name, kind, function, source, dict(state), tuple(numbers), defaults, intervals, check, stateless_without)


_INSTEAD = {
    ast.If: "write where(condition, x, y)",
    ast.IfExp: "write where(condition, x, y)",
    ast.For: "a rule is straight-line math",
    ast.While: "a rule is straight-line math",
    ast.BoolOp: "multiply conditions into nested where(…)",
    ast.Pow: "write power(x, exponent)",
    ast.Attribute: "a rule knows only its arguments and the words",
    ast.Subscript: "a rule sees one element at a time",
    ast.Lambda: "a rule is straight-line math",
    ast.AugAssign: "write x = x + …",
    ast.Starred: "name every argument",
}
_ALLOWED = (
    ast.Assign, ast.Return, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Constant, ast.Name, ast.Tuple, ast.Load,
    ast.Store, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub, ast.UAdd, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq,
)  # fmt: skip


def _lint(rule: Rule) -> None:
    """Refuse everything but assignments, operators and words, and say where it stands."""
    function = rule.function

    def refuse(node: ast.AST | None, what: str, instead: str) -> None:
        line = function.__code__.co_firstlineno + getattr(node, "lineno", 1) - 1
        raise RuleError(f"{rule.kind} {rule.name}, {function.__code__.co_filename}:{line}: {what} is not allowed; {instead}")

    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except OSError:
        raise RuleError(f"{rule.kind} {rule.name} has no source text: write it in a file") from None
    if not isinstance(tree, ast.FunctionDef):
        raise RuleError(f"{rule.kind} {rule.name} is not written with def")
    body = tree.body[1:] if ast.get_docstring(tree, clean=False) is not None else tree.body
    if not body or not isinstance(body[-1], ast.Return) or body[-1].value is None:
        refuse(body[-1] if body else tree, "ending without a value", "end with return")
    local = set(function.__code__.co_varnames)
    for node in (node for statement in body for node in ast.walk(statement)):
        if not isinstance(node, _ALLOWED):
            what = "**" if isinstance(node, ast.Pow) else type(node).__name__.lower()
            refuse(node, what, _INSTEAD.get(type(node), "a rule is assignments, operators and words"))
        if isinstance(node, ast.Return) and node is not body[-1]:
            refuse(node, "an early return", "write where(condition, x, y)")
        if isinstance(node, ast.Compare) and len(node.ops) > 1:
            refuse(node, "a chain of comparisons", "compare two values at a time")
        if isinstance(node, ast.Constant) and not isinstance(node.value, int | float):
            refuse(node, repr(node.value), "a rule holds numbers only")
        if isinstance(node, ast.Call) and (not isinstance(node.func, ast.Name) or node.func.id not in words.WORDS):
            refuse(node, f"the call {ast.unparse(node.func)}(…)", f"the words are {', '.join(words.WORDS)}")
        if isinstance(node, ast.Call) and node.keywords:
            refuse(node, "a keyword argument", "words take their arguments by position")
        if isinstance(node, ast.Name) and node.id not in local:
            if node.id not in words.WORDS:
                refuse(node, f"the name {node.id!r}", "pass it as an argument, with a default")
            if function.__globals__.get(node.id) is not getattr(words, node.id):
                refuse(node, f"another {node.id!r}", f"import it: from weightdecay.words import {node.id}")


def _run_once(rule: Rule) -> None:
    """Run the rule on floats and compare what it returns with what its kind must return."""
    numbers = {**dict.fromkeys(rule.numbers, 0.5), **rule.defaults}
    result = rule.function(*[0.5] * len(rule.elements), **numbers)
    returned = len(result) if isinstance(result, tuple) else 1
    expected = 1 + len(rule.state)
    if returned != expected:
        order = ", ".join(["u", *rule.state]) if rule.kind == "direction" else "one value"
        raise RuleError(f"{rule.kind} {rule.name} returns {returned} values instead of {expected}: return {order}")
