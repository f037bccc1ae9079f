"""The one equation. Every optimizer step in this package, on every backend, is these lines.

    g ← ∇L + penalty(w)              coupled: the penalty enters the gradient, and all that is made of it
    u, state ← direction(g, state)   momentum SGD, Adam, …
    w ← decay(w, u)                  how the weight takes the step and shrinks

The decay reads the old weight, the one the gradient was taken at: (1 − ηλ)·w − η·u, in torch as in the papers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from weightdecay.update_rules.reductions import REDUCTIONS, Reduction
from weightdecay.update_rules.registry import REGISTRY
from weightdecay.update_rules.rule import Kind, Rule
from weightdecay.update_rules.state import Kept

RuleLike = str | Callable[..., Any]
"""A rule's name, or the decorated function."""


@dataclass(frozen=True)
class Equation:
    """The three rules that make an optimizer; without a penalty the gradient stays as it is."""

    penalty: Rule | None
    direction: Rule
    decay: Rule

    @classmethod
    def of(cls, direction: RuleLike, penalty: RuleLike | None = None, decay: RuleLike | None = None) -> "Equation":
        """Return the equation of rules by name or as functions; without a decay the weight takes its step and no more."""
        found = cls(
            None if penalty is None else REGISTRY.find("penalty", penalty),
            REGISTRY.find("direction", direction),
            REGISTRY.find("decay", "none" if decay is None else decay),
        )
        for name in found.decay.shared:
            found.check_supply(name)
        return found

    def check_supply(self, name: str) -> None:
        """Refuse a direction that does not make what the decay asks it for."""
        for element in REDUCTIONS[name].elements:
            if element not in self.direction.made:
                others = [rule.name for rule in REGISTRY.of("direction").values() if element in rule.made]
                raise ValueError(
                    f"the decay {self.decay.name} asks for {name}, and the direction {self.direction.name} makes no {element}: "
                    f"{', '.join(others)} do"
                )

    def supplies(self, name: str) -> bool:
        """Return whether a tensor that is stepped so counts in this number of all tensors."""
        return self.direction.made.issuperset(REDUCTIONS[name].elements)

    @classmethod
    def given_u(cls, decay: RuleLike) -> "Equation":
        """Return the equation of a decay alone: u stands among the values, found by somebody else, beside the raw gradient."""
        return cls(None, _GIVEN_U, REGISTRY.find("decay", decay))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Return the rules in the order in which a step applies them."""
        return (self.direction, self.decay) if self.penalty is None else (self.penalty, self.direction, self.decay)

    def kept(self, numbers: Mapping[str, Mapping[str, Any]]) -> tuple[Kept, ...]:
        """Return what the rules keep from step to step at these hyper-parameters."""
        found = {kept.name: kept for rule in self.rules for kept in rule.keeps if kept.is_kept(numbers[rule.kind])}
        return tuple(found.values())

    def asking(self, kept: Kept, numbers: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the numbers of the rule that keeps this."""
        return next(numbers[rule.kind] for rule in self.rules if kept in rule.keeps)

    def halves(self) -> tuple["Equation", "Equation"]:
        """Return the equation in two: one that ends with u, and one that starts with u in the gradient's place.

        For a direction of whole tensors: it makes u in torch, and any backend does the rest.
        """
        return replace(self, decay=_UP_TO_U), Equation(None, _FROM_U, self.decay)

    def up_to(self, name: str) -> "Equation":
        """Return the equation that ends with what a line of the direction makes."""
        return replace(self, direction=self.direction.up_to(name), decay=_UP_TO_U)

    def with_shared(
        self, numbers: Mapping[str, Mapping[str, Any]], shared: Mapping[str, Any]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Return the numbers with those of all tensors that the decay asks for."""
        asked = {name: shared[name] for name in self.decay.shared if name in shared}
        return {**numbers, "decay": {**numbers["decay"], **asked}} if asked else numbers

    def __str__(self) -> str:
        return " + ".join(f"{rule.name} {rule.kind}" for rule in self.rules if rule.name != "none")


def step(
    equation: Equation,
    numbers: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Any],
    *,
    bind: Callable[[Callable[..., Any]], Callable[..., Any]],
    reduce: Callable[[Reduction, Mapping[str, Any], Mapping[str, Any]], Any],
) -> tuple[Any, dict[str, Any]]:
    """Return the next weight and, by their names in the rules, what the rules keep and change, without changing anything.

    `values` holds w, g and what is kept for every element by the names in the rules, `numbers` what stands right of each
    rule's `*`, by kind of rule. A backend says how to `bind` a rule to its backend and how to `reduce` a whole tensor to a
    number. A number of all tensors (`Reduction.of_all`) cannot be had from one, and has to be among the numbers.
    """
    values = dict(values)
    kept: dict[str, Any] = {}

    def apply(rule: Rule) -> Any:
        given = {name: numbers[rule.kind][name] for name in rule.numbers if name not in rule.reductions}
        asked = {name: ask(rule, name, given) for name in rule.reductions}
        found = bind(rule.function)(*(values[name] for name in rule.elements), **given, **asked)
        if not rule.returned:
            return found
        found, *changed = found
        kept.update(zip(rule.returned, changed, strict=True))
        return found

    def ask(rule: Rule, name: str, given: Mapping[str, Any]) -> Any:
        reduction = REDUCTIONS[name]
        if not reduction.of_all:
            return reduce(reduction, values, given)
        if name not in numbers[rule.kind]:
            raise ValueError(f"the {rule.kind} {rule.name} asks for {name}, which is of all tensors and has to be given")
        return numbers[rule.kind][name]

    if equation.penalty is not None:
        values["g"] = values["g"] + apply(equation.penalty)
    values["u"] = apply(equation.direction)
    return apply(equation.decay), kept


def step_on_floats(
    equation: Equation, numbers: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]
) -> tuple[Any, tuple[Any, ...]]:
    """Return the next weight and what the direction keeps, from the rules as typed, on Python's numbers; a reduction is NaN."""
    w, kept = step(equation, numbers, values, bind=lambda function: function, reduce=lambda *_: math.nan)
    return w, tuple(kept[name] for name in equation.direction.returned)


def _rule(kind: Kind, name: str, function: Any, keeps: tuple[Kept, ...] = ()) -> Rule:
    function.rule = Rule(name, kind, function, "", keeps=keeps, numbers=(), defaults={}, domain={}, check=None)
    found: Rule = function.rule
    return found


_UP_TO_U = _rule("decay", "none", lambda w, u: u)
_FROM_U = _rule("direction", "none", lambda g: g)
_GIVEN_U = _rule("direction", "none", lambda g, u: u, (Kept("u", "u", per_element=True, changes=False),))
