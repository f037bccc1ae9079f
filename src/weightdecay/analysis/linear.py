"""Reads a step as `rest + part·w`, so that it falls into the seeds' shape w_t = g·w_{t−1} − η·h.

What is linear in the old weight stays in two pieces through every operation that allows it. Where an operation bends it (a
square, a sign), its value goes on in one piece: Adam's v̂ depends on λ too, and no factor of w can say how. The pieces are
whatever a backend computes with, torch's tensors or SymPy's expressions.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from weightdecay.update_rules import ops
from weightdecay.update_rules.equation import Equation, step
from weightdecay.update_rules.ops import WORDS
from weightdecay.update_rules.reductions import Reduction
from weightdecay.update_rules.rule import Rule, bind


class Linear:
    """A value of the step, and the same value as rest + part·w."""

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("part", "rest", "value")

    def __init__(self, value: Any, rest: Any, part: Any) -> None:
        self.value, self.rest, self.part = value, rest, part

    def each(self, do: Callable[[Any], Any]) -> "Linear":
        """Return the value and its pieces, each changed alike."""
        return Linear(do(self.value), do(self.rest), do(self.part))

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Linear):
            return Linear(self.value + other.value, self.rest + other.rest, self.part + other.part)
        return Linear(self.value + other, self.rest + other, self.part)

    def __sub__(self, other: Any) -> Any:
        if isinstance(other, Linear):
            return Linear(self.value - other.value, self.rest - other.rest, self.part - other.part)
        return Linear(self.value - other, self.rest - other, self.part)

    def __rsub__(self, other: Any) -> Any:
        return Linear(other - self.value, other - self.rest, -self.part)

    def __mul__(self, other: Any) -> Any:
        return self.value * other.value if isinstance(other, Linear) else self.each(lambda x: x * other)

    def __rmul__(self, other: Any) -> Any:
        return self.each(lambda x: other * x)

    def __truediv__(self, other: Any) -> Any:
        return self.value / other.value if isinstance(other, Linear) else self.each(lambda x: x / other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.value

    def __neg__(self) -> Any:
        return self.each(lambda x: -x)

    def __pos__(self) -> Any:
        return self

    def __lt__(self, other: Any) -> Any:
        return self.value < whole(other)

    def __le__(self, other: Any) -> Any:
        return self.value <= whole(other)

    def __gt__(self, other: Any) -> Any:
        return self.value > whole(other)

    def __ge__(self, other: Any) -> Any:
        return self.value >= whole(other)

    def __eq__(self, other: Any) -> Any:
        return self.value == whole(other)

    def __ne__(self, other: Any) -> Any:
        return self.value != whole(other)

    __radd__ = __add__


def whole(value: Any) -> Any:
    """Return a value in one piece."""
    return value.value if isinstance(value, Linear) else value


def pieces(value: Any) -> tuple[Any, Any]:
    """Return a value as (rest, part)."""
    return (value.rest, value.part) if isinstance(value, Linear) else (value, 0)


def lifted(vocabulary: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return a backend's words as words of linear values: a choice is linear where its sides are, all else bends."""

    def bending(word: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *values: word(*map(whole, values))

    def where(condition: Any, x: Any, y: Any) -> Any:
        choose, condition = vocabulary["where"], whole(condition)
        if not isinstance(x, Linear) and not isinstance(y, Linear):
            return choose(condition, x, y)
        sides = zip((whole(x), *pieces(x)), (whole(y), *pieces(y)), strict=True)
        return Linear(*(choose(condition, *both) for both in sides))

    return {name: where if name == "where" else bending(vocabulary[name]) for name in WORDS}


def split(
    equation: Equation,
    numbers: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Any],
    *,
    read: Callable[[Rule], Callable[..., Any]],
    reduce: Callable[[Reduction, Mapping[str, Any], Mapping[str, Any]], Any],
    quotient: Callable[[Any, Any], tuple[Any, Any]],
    by_eta: Callable[[Any, Any], Any],
) -> tuple[Any, Any]:
    """Return g and h of one step, for which w_t = g·w − η·h.

    Args:
        equation, numbers, values: as `weightdecay.update_rules.equation.step` takes them.
        read: binds a rule to the backend's words, `lifted`.
        reduce: reduces plain values.
        quotient: takes (x, w) apart into (rest, part), for which x = rest + part·w.
        by_eta: divides its first argument, which has a factor η, by η; where η is zero it returns the second.
    """
    w = Linear(values["w"], 0, 1)
    u: list[Any] = []

    def bound(function: Callable[..., Any]) -> Callable[..., Any]:
        rule: Rule = function.rule  # type: ignore[attr-defined]
        if rule.kind == "direction":
            return read(rule)

        def pulled(weight: Linear, /, *others: Any, **given: Any) -> Linear:
            found = read(rule)(weight, *others, **given)
            if isinstance(found, Linear) and isinstance(found.rest, int | float) and found.rest == 0:
                return found  # a factor of w already, as L2's is
            pull = whole(found)
            return Linear(pull, *quotient(pull, weight.value))

        def decayed(weight: Linear, step: Any, /, *others: Any, **given: Any) -> Any:
            u.append(step)
            found = read(rule)(weight, step, *others, **given)
            found, *kept = found if rule.returned else (found,)
            if not is_factor(rule):
                stepped = weight - given["eta"] * step
                rest, part = quotient(whole(found), stepped.value)
                found = stepped * part + rest
            return (found, *kept) if rule.returned else found

        return pulled if rule.kind == "penalty" else decayed

    def reduced(reduction: Reduction, given: Mapping[str, Any], numbers: Mapping[str, Any]) -> Any:
        return reduce(reduction, {name: whole(value) for name, value in given.items()}, numbers)

    found, _ = step(equation, numbers, {**values, "w": w}, bind=bound, reduce=reduced)
    rest, part = pieces(found)
    return part, by_eta(-rest, pieces(u[0])[0])


@cache
def is_factor(decay: Rule) -> bool:
    """Tell whether all that the decay does to a weight at rest is a factor; else it is one of the weight after its step.

    Decoupled decay is the first kind, a proximal one, which shrinks w − η·u, the second. Asked of the rule, on floats.
    """
    numbers = {**dict.fromkeys(decay.numbers, 0.5), **decay.defaults}
    read = bind(decay.function, lifted({name: getattr(ops, name) for name in WORDS}))
    more = [0.0] * (len(decay.elements) - 2)

    def after(w: float, u: float) -> tuple[Any, Any]:
        found = read(Linear(w, 0.0, 1.0), u, *more, **numbers)
        found = found[0] if decay.returned else found
        return whole(found), pieces(found)

    sizes = (-40.0, -1.5, 0.25, 1e-3)
    if any(after(w, 0.0)[1][0] for w in sizes):
        return False
    # A factor that differs from size to size of w − η·u, wherever that came from, is one of the weight after its step.
    differs = len({after(w, 0.0)[1][1] for w in map(abs, sizes)}) > 1
    return not differs or any(after(w, 1.0)[0] != after(w - numbers["eta"], 0.0)[0] for w in sizes)
