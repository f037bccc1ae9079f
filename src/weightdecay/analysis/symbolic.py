"""Reads a rule as SymPy expressions, statement by statement: what the derivations and the docs are made of.

It walks the statements that the lint has read and keeps, so every name in a rule can stand in the answer. Two readings
share the walk: `as_typed` builds each line as it stands in the page, with nothing reordered, and `evaluated` computes.
"""

import ast
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from weightdecay.analysis.linear import Linear, is_factor, lifted, pieces, split, whole
from weightdecay.analysis.notation import Notation, symbol_name, unknown_function
from weightdecay.update_rules.equation import Equation, step
from weightdecay.update_rules.reductions import REDUCTIONS, Reduction
from weightdecay.update_rules.rule import Rule, bind

Value = Any
"""An expression, or what is computed from expressions (`weightdecay.analysis.linear.Linear`)."""

_RELATIONS: dict[type[ast.cmpop], Callable[[Value, Value], Any]] = {
    ast.Lt: sp.Lt, ast.LtE: sp.Le, ast.Gt: sp.Gt, ast.GtE: sp.Ge, ast.Eq: sp.Eq, ast.NotEq: sp.Ne,
}  # fmt: skip
_EVALUATED: dict[type[ast.AST], Callable[..., Value]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def condition(given: Any) -> Any:
    """Return what `where` asks for as a truth: a comparison, or whether a number (a flag) is not zero."""
    return given if isinstance(given, sp.logic.boolalg.Boolean) else sp.Ne(given, 0)


def vocabulary(decide: Callable[[Any], Any] = lambda truth: truth, *, evaluate: bool = True) -> dict[str, Callable[..., Any]]:
    """Return the words on expressions; `decide` may settle a condition that holds in the case at hand.

    Without `evaluate`, a choice of two stays as it is typed.
    """

    def where(given: Any, x: Any, y: Any) -> Any:
        truth = decide(condition(given))
        if truth in (sp.true, sp.false):
            return x if truth == sp.true else y
        return x if x == y else sp.Piecewise((x, truth), (y, True), evaluate=evaluate)

    return {
        "absolute": sp.Abs, "sign": sp.sign, "sqrt": sp.sqrt, "exp": sp.exp, "log": sp.log, "power": sp.Pow,
        "maximum": sp.Max, "minimum": sp.Min, "where": where,
        "debias": lambda beta, t: sp.Integer(1) if beta == 0 else 1 - beta**t,
    }  # fmt: skip


def number(value: float) -> sp.Expr:
    """Return a number as it was typed: 0.1 is a tenth."""
    if isinstance(value, bool):
        return sp.Integer(int(value))
    return sp.Integer(value) if isinstance(value, int) else sp.Rational(repr(value))


def _over(x: Any, w: Any) -> Any:
    """Return x / w, divided where w stands: λ(r·sign(w) + (1 − r)·w) over w is λ(r/|w| + 1 − r)."""
    if isinstance(x, sp.Add):
        return sp.Add(*(_over(term, w) for term in x.args))
    if isinstance(x, sp.Piecewise):
        return sp.Piecewise(*((_over(value, w), truth) for value, truth in x.args))
    if isinstance(x, sp.Mul):
        inner = next((factor for factor in x.args if isinstance(factor, sp.Add) and factor.has(w)), None)
        if inner is not None:
            return _over(inner, w) * sp.Mul(*(factor for factor in x.args if factor is not inner))
        if sp.sign(w) in x.args:
            return sp.Mul(*(factor for factor in x.args if factor != sp.sign(w))) / sp.Abs(w)
    return 1 / sp.Abs(w) if x == sp.sign(w) else x / w


_LONG = 12
"""A factor names what a rule names where it takes more operations than this."""


class Walk:
    """Evaluates a rule's statements in order over a backend's operators and words."""

    def __init__(
        self, words: Mapping[str, Callable[..., Any]], operators: Mapping[type[ast.AST], Callable[..., Value]]
    ) -> None:
        self.words, self.operators = words, operators

    def statements(self, rule: Rule, names: dict[str, Value]) -> Iterator[tuple[tuple[str, ...], Value]]:
        """Yield each assignment's names with its value, and last, under no name, what is returned.

        `names` holds the arguments and gets the new names; who iterates may change what a name stands for.
        """
        for statement in rule.body:
            if isinstance(statement, ast.Return):
                assert statement.value is not None
                yield (), self.value(statement.value, names)
            elif isinstance(statement, ast.Assign):
                found = self.value(statement.value, names)
                for target in statement.targets:
                    targets = target.elts if isinstance(target, ast.Tuple) else [target]
                    values = found if isinstance(target, ast.Tuple) else [found]
                    for each, value in zip(targets, values, strict=True):
                        assert isinstance(each, ast.Name)
                        names[each.id] = value
                        yield (each.id,), value

    def value(self, node: ast.expr, names: Mapping[str, Value]) -> Value:
        """Evaluate an expression."""
        match node:
            case ast.Constant(value=bool() | int() | float() as constant):
                return number(constant)
            case ast.Name(id=name):
                return names[name]
            case ast.BinOp(left=left, op=op, right=right):
                return self.operators[type(op)](self.value(left, names), self.value(right, names))
            case ast.UnaryOp(op=op, operand=operand):
                return self.operators[type(op)](self.value(operand, names))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return _RELATIONS[type(op)](*(whole(self.value(side, names)) for side in (left, right)))
            case ast.Call(func=ast.Name(id=word), args=args):
                return self.words[word](*(self.value(argument, names) for argument in args))
            case ast.Tuple(elts=elements):
                return tuple(self.value(element, names) for element in elements)
        raise AssertionError(ast.dump(node))  # the lint lets nothing else through


def evaluated(words: Mapping[str, Callable[..., Any]] | None = None) -> Walk:
    """Return a walk that computes."""
    return Walk(vocabulary() if words is None else words, _EVALUATED)


def as_typed(decide: Callable[[Any], Any] = lambda truth: truth) -> Walk:
    """Return a walk that keeps a formula as it stands in the page, except for zeros and ones that settings put there."""

    def add(x: Value, y: Value) -> Value:
        return y if x == 0 else x if y == 0 else sp.Add(x, y, evaluate=_numbers(x, y))

    def subtract(x: Value, y: Value) -> Value:
        return x if y == 0 else negative(y) if x == 0 else sp.Add(x, negative(y), evaluate=_numbers(x, y))

    def multiply(x: Value, y: Value) -> Value:
        if x == 0 or y == 0:
            return sp.Integer(0)
        return y if x == 1 else x if y == 1 else sp.Mul(x, y, evaluate=_numbers(x, y))

    def divide(x: Value, y: Value) -> Value:
        return x if y == 1 else sp.Mul(x, sp.Pow(y, -1, evaluate=_numbers(y)), evaluate=_numbers(x, y))

    def negative(x: Value) -> Value:
        return sp.Mul(-1, x, evaluate=_numbers(x))

    def unevaluated(word: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *values: word(*values, evaluate=_numbers(*values))

    words = vocabulary(decide, evaluate=False)
    words.update({name: unevaluated(word) for name, word in words.items() if name not in ("sqrt", "where", "debias")})
    words["sqrt"] = lambda x: sp.Pow(x, sp.Rational(1, 2), evaluate=_numbers(x))
    words["power"] = lambda x, y: x if y == 1 else sp.Pow(x, y, evaluate=_numbers(x, y))
    words["debias"] = lambda beta, t: sp.Integer(1) if beta == 0 else subtract(sp.Integer(1), sp.Pow(beta, t, evaluate=False))
    typed: dict[type[ast.AST], Callable[..., Value]] = {
        ast.Add: add,
        ast.Sub: subtract,
        ast.Mult: multiply,
        ast.Div: divide,
        ast.USub: negative,
        ast.UAdd: lambda x: x,
    }
    return Walk(words, typed)


def _numbers(*values: Value) -> bool:
    return all(isinstance(value, sp.Number) for value in values)


@dataclass(frozen=True)
class Line:
    """One equation: the symbol on its left, and the expression on its right."""

    left: sp.Expr
    typed: sp.Expr
    """The right side as it is printed."""
    values: Mapping[sp.Symbol, sp.Rational] = field(default_factory=dict, compare=False, repr=False)
    """The settled numbers that it is printed with."""

    @property
    def right(self) -> sp.Expr:
        """Return the right side to compute with."""
        here = {symbol: self.values[symbol] for symbol in self.typed.free_symbols & set(self.values)}
        return self.typed.xreplace(here) if here else self.typed


def _unknown(rule: Rule, elements: Iterable[Any], numbers: Mapping[str, Any]) -> Any:
    """Return what a direction of whole tensors makes, as functions of which nothing is known."""
    names = (rule.name, *(f"{rule.name}_{name}" for name in rule.returned))
    found = tuple(unknown_function(name)(*elements, *(numbers[each] for each in rule.reductions)) for name in names)
    return found if rule.returned else found[0]


def _free(name: str, rule: Rule, taken: Iterable[str]) -> str:
    """Return a name of the rule's own whose symbol means nothing else: m_decay where m is what the direction remembers."""
    while symbol_name(name) in taken:
        name = f"{name}_{rule.kind}"
    return name


class System:
    """One step of an equation in symbols: as lines, as one expression, and taken apart into g and h."""

    def __init__(self, equation: Equation, settings: Mapping[str, sp.Expr], notation: Notation) -> None:
        self.equation, self.notation = equation, notation
        self.w, self.gradient = notation.old("w"), notation.gradient()
        kept = {each.name: each for rule in equation.rules for each in rule.keeps}
        self.moments = {name: notation.old(name) for name, each in kept.items() if each.per_element and each.changes}
        self.references = {name: notation.at("w", "0") for name, each in kept.items() if each.per_element and not each.changes}
        self.memory = {name: notation.remembered(name) for name, each in kept.items() if not each.per_element}
        self.t = notation.number("t")
        values = (self.w, self.gradient, self.t, *self.moments.values(), *self.references.values(), *self.memory.values())
        made = ("w", "g", "u", *self.moments, *self.memory, *equation.direction.made)
        given = {name for rule in equation.rules for name in rule.numbers if name not in rule.defaults} - self.memory.keys()
        self.taken = {symbol.name for symbol in values} | {f"{name}_t" for name in made} | {symbol_name(name) for name in given}
        """The names of symbols that have a meaning of their own here: what else is called so gets another name."""
        meant = {name: self._number(rule, name) for rule in equation.rules for name in rule.defaults}
        self.taken |= {symbol.name for symbol in meant.values()}
        self.numbers: dict[str, dict[str, Any]] = {
            rule.kind: {
                name: self.memory[name]
                if name in rule.memory
                else settings.get(name, meant[name] if name in meant else notation.number(name))
                for name in rule.numbers
            }
            for rule in equation.rules
        }
        if equation.penalty is not None and "lam" in equation.decay.numbers:  # two λ that have nothing to do with each other
            for kind in ("penalty", "decay"):
                self.numbers[kind]["lam"] = notation.number(f"lam_{kind}")
        self.reductions = {
            self.numbers[rule.kind][name]: REDUCTIONS[name] for rule in equation.rules for name in rule.reductions
        }
        self.typed = {
            kind: {name: notation.value(value) for name, value in given.items()} for kind, given in self.numbers.items()
        }

    def _number(self, rule: Rule, name: str) -> sp.Symbol:
        """Return the symbol of a hyper-parameter, such as m_decay where m is what the direction remembers."""
        others = {other for each in self.equation.rules for other in each.defaults if other != name}
        taken = self.taken | {symbol_name(other) for other in others if other != symbol_name(other)}
        return self.notation.number(_free(name, rule, taken))

    @property
    def values(self) -> dict[str, sp.Expr]:
        """Return what the step starts from, by the names in the rules."""
        return {"w": self.w, "g": self.gradient, **self.moments, **self.references}

    @property
    def shows_u(self) -> bool:
        """Tell whether the direction's u needs a name, because the decay uses it more than once."""
        names = [
            node.id for statement in self.equation.decay.body for node in ast.walk(statement) if isinstance(node, ast.Name)
        ]
        return names.count("u") > 1

    def generic(self, truth: Any) -> Any:
        """Settle a condition as it is from the second step on, for a weight that is not zero."""
        sizes = [symbol for symbol, reduction in self.reductions.items() if reduction.is_size]
        return settled(truth, self.w, self.t, [*sizes, self.numbers["decay"]["eta"]])

    def lines(self) -> tuple[Line, ...]:
        """Return the lines of a step as the rules have them, the new weight last."""
        found: list[Line] = []
        pulls: list[sp.Expr] = []
        notation = self.notation

        def named(left: sp.Symbol, right: sp.Expr) -> sp.Symbol:
            if left != right:
                found.append(Line(left, right, notation.values))
            return left

        def read(function: Callable[..., Any]) -> Callable[..., Any]:
            rule: Rule = function.rule  # type: ignore[attr-defined]

            def local(name: str, value: Any) -> sp.Symbol:
                taken = self.taken | {line.left.name for line in found}  # by a number, or by the other rule's own name
                return named(notation.local(_free(name, rule, taken)), value)

            def penalty(*elements: Any, **numbers: Any) -> Any:
                pulls.append(self.walked(rule, elements, numbers, as_typed(), local))
                return sp.Integer(0)

            def along(_: Any, /, *state: Any, **numbers: Any) -> Any:
                right = sp.Add(self.gradient, *pulls, evaluate=False) if pulls else self.gradient
                g = named(notation.new("g"), right)
                if rule.whole:
                    asked = (numbers[name] for name in rule.reductions)
                    u = named(notation.new("u"), unknown_function(rule.name)(g, *state, *asked))
                    return (u, *(notation.new(name) for name in rule.returned)) if rule.returned else u
                result = self.walked(rule, (g, *state), numbers, as_typed(), lambda n, v: named(notation.new(n), v))
                u, *new = result if isinstance(result, tuple) else (result,)
                u = named(notation.new("u"), u) if self.shows_u and not u.is_Symbol else u
                return (u, *new) if rule.returned else u

            def decay(*elements: Any, **numbers: Any) -> Any:
                for name in rule.shared:
                    named(numbers[name], notation.mean(REDUCTIONS[name].elements))

                def own(name: str, value: Any) -> sp.Symbol:
                    return named(notation.moved(name), value) if name in rule.memory else local(name, value)

                result = self.walked(rule, elements, numbers, as_typed(), own)
                for name, value in zip(rule.returned, result[1:] if rule.returned else (), strict=True):
                    named(notation.moved(name), value)
                return result

            return {"penalty": penalty, "direction": along, "decay": decay}[rule.kind]

        def reduced(reduction: Reduction, values: Mapping[str, Any], numbers: Mapping[str, Any]) -> Any:
            symbol = next(symbol for symbol, known in self.reductions.items() if known is reduction)
            term = bind(reduction.term, vocabulary())(
                *(values[name] for name in reduction.elements), **reduction.given(reduction.term, numbers)
            )
            finish = bind(reduction.finish, vocabulary())
            return named(symbol, finish(notation.total(term), **reduction.given(reduction.finish, numbers)))

        after, _ = step(self.equation, self.typed, self.values, bind=read, reduce=reduced)
        return (*found, Line(notation.new("w"), after, notation.values))

    def at_first(self, truth: Any) -> Any:
        """Settle a condition as it is at the first step."""
        return self.generic(truth.subs(self.t, 1))

    def step(self, decide: Callable[[Any], Any] = lambda truth: truth) -> tuple[sp.Expr, dict[str, sp.Expr]]:
        """Return the new weight and, by name, the new state, each as one expression of the old values."""

        def read(function: Callable[..., Any]) -> Callable[..., Any]:
            rule: Rule = function.rule  # type: ignore[attr-defined]
            if rule.whole:
                return lambda *elements, **numbers: _unknown(rule, elements, numbers)
            return lambda *elements, **numbers: self.walked(rule, elements, numbers, evaluated(vocabulary(decide)))

        return step(self.equation, self.numbers, self.values, bind=read, reduce=self.symbol_of)

    def split(self) -> tuple[sp.Expr, sp.Expr]:
        """Return g and h, of the weights, the gradient and what the lines give a name to."""
        words = lifted(vocabulary(self.generic))

        def opaque(name: str, value: Any) -> Any:
            symbol = self.notation.new(name)
            return Linear(symbol, value.rest, value.part) if isinstance(value, Linear) else symbol

        ends: list[sp.Symbol] = []

        def local(name: str, value: Any) -> Any:
            """Name what a tensor remembers, where the step ends before a decay that acts on it, and what is long from there."""
            if name in self.memory:
                return self.notation.moved(name)
            name = _free(name, self.equation.decay, self.taken)
            if isinstance(value, Linear) and not is_factor(self.equation.decay) and not ends:
                ends.append(self.notation.local(name))
                return Linear(ends[0], value.rest, value.part)
            if ends and not isinstance(value, Linear) and sp.count_ops(value) > _LONG:
                return self.notation.local(name)
            return value

        def read(rule: Rule) -> Callable[..., Any]:
            if rule.kind == "penalty":
                return lambda *elements, **numbers: self.walked(rule, elements, numbers, evaluated(words))
            if rule.kind == "decay":
                return lambda *elements, **numbers: self.walked(rule, elements, numbers, evaluated(words), local)

            def direction(g: Any, /, *state: Any, **numbers: Any) -> Any:
                g = Linear(self.notation.new("g"), g.rest, g.part) if isinstance(g, Linear) else g
                result = self.walked(rule, (g, *state), numbers, evaluated(words), opaque)
                u, *new = result if isinstance(result, tuple) else (result,)
                named = Linear(self.notation.new("u"), *pieces(u)) if self.shows_u and not whole(u).is_Symbol else u
                return (named, *new) if rule.returned else named

            def opaque_direction(_: Any, /, *state: Any, **numbers: Any) -> Any:
                found = (self.notation.new("u"), *(self.notation.new(name) for name in rule.returned))
                return found if rule.returned else found[0]

            return opaque_direction if rule.whole else direction

        def quotient(x: Any, w: Any) -> tuple[Any, Any]:
            return sp.Integer(0), sp.powsimp(_over(x, ends[0] if ends else w))

        eta = self.numbers["decay"]["eta"]
        g, h = split(
            self.equation, self.numbers, self.values, read=read, reduce=self.symbol_of, quotient=quotient,
            by_eta=lambda x, _: sp.Add(*(term / eta for term in sp.Add.make_args(x))),
        )  # fmt: skip
        return sp.factor_terms(sp.sympify(g)), sp.sympify(h)

    def parted(self) -> tuple[Line, ...]:
        """Return a step that carries the penalty's part of the state apart, if the direction only adds and scales.

        Each line is the direction's own, once for the gradient and once for the penalty, as it is from the second step on.
        """
        direction, penalty = self.equation.direction, self.equation.penalty
        if penalty is None or direction.whole or not self._adds_up():
            return ()
        lines: list[Line] = []

        def part(of: str, g: Any) -> Any:
            def named(name: str, value: Any) -> sp.Symbol:
                lines.append(Line(self.notation.new(name, of), value, self.notation.values))
                return lines[-1].left

            state = [self.notation.old(name, of) for name in direction.state]
            found = self.walked(direction, (g, *state), self.typed["direction"], as_typed(self.generic), named)
            return found[0] if isinstance(found, tuple) else found

        pull = self.walked(penalty, (self.w, *self.references.values()), self.typed["penalty"], as_typed(self.generic))
        u = sp.Add(part("∇", self.gradient), part("λ", pull), evaluate=False)
        decay = self.equation.decay
        after = self.walked(decay, (self.w, u), self.typed["decay"], as_typed(self.generic))
        return (*lines, Line(self.notation.new("w"), after, self.notation.values)) if lines else ()

    def _adds_up(self) -> bool:
        """Tell whether u and the new state are sums of multiples of the gradient and the old state, and all state is used."""
        if set(self.equation.decay.elements) != {"w", "u"} or self.memory or self.references:
            return False
        direction, g = self.equation.direction, sp.Dummy()
        old = [g, *self.moments.values()]
        found = self.walked(direction, old, self.numbers["direction"], evaluated(vocabulary(self.generic)))
        u, *new = found if isinstance(found, tuple) else (found,)
        return bool(u.free_symbols & set(old[1:])) and all(
            x.is_polynomial(*old) and sp.expand(x - sum(sp.diff(x, y).subs(dict.fromkeys(old, 0)) * y for y in old)) == 0
            for x in (u, *new)
        )

    def symbol_of(self, reduction: Reduction, values: Mapping[str, Any], numbers: Mapping[str, Any]) -> sp.Symbol:
        """Return the symbol of a reduction."""
        return next(symbol for symbol, known in self.reductions.items() if known is reduction)

    def walked(
        self,
        rule: Rule,
        elements: Iterable[Any],
        numbers: Mapping[str, Any],
        walk: Walk,
        rename: Callable[[str, Any], Any] = lambda name, value: value,
    ) -> Any:
        """Return what the rule returns; `rename` says what each name in it stands for from its assignment on."""
        names = {**dict(zip(rule.elements, elements, strict=True)), **numbers}
        value: Any = None
        for assigned, value in walk.statements(rule, names):
            for name in assigned:
                names[name] = rename(name, value)
        return value


def settled(truth: Any, w: sp.Symbol, t: sp.Symbol, positive: Iterable[sp.Symbol]) -> Any:
    """Return a condition as it is later than the first step, for a weight that is not zero and numbers that are positive."""
    known = {w: sp.Dummy(real=True, nonzero=True)} | {number: sp.Dummy(positive=True) for number in positive}
    found = truth.subs(t, 2 + sp.Dummy(integer=True, nonnegative=True)).xreplace(known)
    return found if found in (sp.true, sp.false) else truth


def formula(rule: Rule, notation: Notation, *, in_one_line: bool = False) -> tuple[Line, ...]:
    """Return one rule as lines, as its page has them: what the penalty makes of the gradient, u and the state, or w_t.

    A penalty or decay `in_one_line` is that of a weight which is not zero, without the names that the rule uses for itself.
    """
    lines: list[Line] = []
    starts = {"w": notation.old("w"), "g": notation.gradient() if rule.kind == "penalty" else notation.new("g")}
    starts |= {"u": notation.new("u"), **{name: notation.old(name) for name in rule.state}}
    starts |= {each.name: notation.at("w", "0") for each in rule.keeps if each.per_element and not each.changes}
    numbers = {name: notation.remembered(name) if name in rule.memory else notation.number(name) for name in rule.numbers}

    def named(name: str, value: Any) -> sp.Expr:
        if in_one_line and rule.kind != "direction":
            return value
        symbol = notation.new(name) if rule.kind == "direction" else notation.local(name)
        if name in rule.memory:
            symbol = notation.moved(name)
        lines.append(Line(symbol, value))
        return symbol

    def decide(truth: Any) -> Any:
        if not in_one_line:
            return truth
        sizes = [numbers[name] for name in rule.reductions if REDUCTIONS[name].is_size]
        return settled(truth, starts["w"], notation.number("t"), sizes)

    for name in rule.reductions:
        reduction = REDUCTIONS[name]
        if reduction.of_all:
            if not in_one_line:
                lines.append(Line(numbers[name], notation.mean(reduction.elements)))
            continue
        of = {"w_0": notation.at("w", "0"), **starts}
        term, finish = (bind(half, vocabulary()) for half in (reduction.term, reduction.finish))
        total = term(*(of[element] for element in reduction.elements), **reduction.given(reduction.term, numbers))
        if not in_one_line:
            ends = finish(notation.total(total), **reduction.given(reduction.finish, numbers))
            lines.append(Line(numbers[name], ends))
    names = {**{name: starts[name] for name in rule.elements}, **numbers}
    found: Any = None
    for assigned, found in as_typed(decide).statements(rule, names):
        for name in assigned:
            names[name] = named(name, found)
    if rule.kind == "penalty":
        return (*lines, Line(notation.new("g"), sp.Add(notation.gradient(), found, evaluate=False)))
    if rule.kind == "decay":
        found, *kept = found if rule.returned else (found,)
        for name, value in zip(rule.returned, kept, strict=True):
            named(name, value)
        return (*(line for line in lines if line.left != line.right), Line(notation.new("w"), found))
    lines.append(Line(notation.new("u"), found[0] if isinstance(found, tuple) else found))
    return tuple(line for line in lines if line.left != line.right)
