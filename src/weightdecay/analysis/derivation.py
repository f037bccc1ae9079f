"""What an optimizer does to a weight, derived from the rules that it runs: w_t = g(λ)·w_{t−1} − η·h(∇L)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from textwrap import fill, indent
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from weightdecay.analysis import symbolic
from weightdecay.analysis.closed_form import AtRest, at_rest, fixed_point
from weightdecay.analysis.notation import Notation, readable
from weightdecay.analysis.symbolic import Line, System
from weightdecay.optim import hyperparameters
from weightdecay.optim.presets import PRESETS, Preset
from weightdecay.update_rules.equation import Equation, RuleLike


def derive(direction: RuleLike, penalty: RuleLike | None = None, decay: RuleLike | None = None, **numbers: Any) -> "Derivation":
    """Derive what a direction with a penalty or a decay does to a weight, from the functions that run.

    Args:
        direction, penalty, decay: rules, by name or as functions; without a decay the step is w − η·u. A preset such as
            "AdamW" for the direction brings its own penalty or decay.
        numbers: the rules' hyper-parameters as optimizers take them (momentum=0, nesterov=True, betas=(0, 0.99)), a number
            or an expression each. What is not given stays a symbol, lr and λ too; but what is off by default stays off,
            momentum excepted.

    Raises:
        ValueError: a rule that is unknown, or of another kind; a number outside its domain; an expression of a symbol that
            means something else here.
        TypeError: a number that none of the rules takes.

    >>> derivation = derive("sgd", penalty="l2")
    >>> derivation.g, derivation.h
    (-eta*lambda + 1, m*mu + ∇L)
    >>> derive("adam", decay="decoupled").g
    -eta*lambda + 1

    Source: the shape is Loshchilov & Hutter 2019, arXiv:1711.05101; each rule names its own.
    """
    preset = direction if isinstance(direction, type) else PRESETS.get(direction) if isinstance(direction, str) else None
    if preset is not None and issubclass(preset, Preset):
        if penalty is not None or decay is not None:
            raise ValueError(f"{preset.__name__} has a penalty or decay of its own: name its direction, such as adam, instead")
        optimizer = preset([torch.nn.Parameter(torch.zeros(1, 1))], lr=1.0)  # type: ignore[call-arg]
        return Derivation(optimizer.equation(optimizer.param_groups[0]), numbers)
    return Derivation(Equation.of(direction, penalty, decay), numbers)


def _settings(equation: Equation, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters that are settled, under the rules' names.

    Numbers are checked as an optimizer checks them; of what stays a symbol, or is an expression, nothing is known.
    """
    every = hyperparameters.defaults(equation.rules)
    hyperparameters.refuse_unknown(given, every, equation)
    switches = {(kept.unless, rule) for rule in equation.rules for kept in rule.keeps if kept.unless is not None}
    open_ = {name for name, rule in switches if not isinstance(rule.defaults[name], bool)}
    group = {"rounding": "auto", "seed": 0, **every, **{hyperparameters.user_name(name): 0.5 for name in open_}}
    group.update({name: _plain(value, every[name]) for name, value in given.items()})
    hyperparameters.check(group, equation, "derive", is_new=True)
    found: dict[str, Any] = {}
    for rule in equation.rules:
        for name, default in rule.defaults.items():
            value = hyperparameters.given(name, given)
            if isinstance(value, sp.Expr) and (value.is_Rational or not value.is_number):
                found[name] = value
            elif isinstance(default, str | tuple):
                continue  # which is of a direction of whole tensors, and of that nothing is shown
            elif value is not None:
                found[name] = symbolic.number(hyperparameters.given(name, group))
            elif not default and name not in open_:
                found[name] = symbolic.number(default)
        found.update({name: sp.Integer(0) for name, other in rule.beside.items() if found.get(other) == 0})
    return found


def _plain(value: Any, default: Any) -> Any:
    """Return a setting with Python's numbers for SymPy's, and the default for an expression."""
    if isinstance(value, tuple | list) and isinstance(default, tuple) and len(value) == len(default):
        return tuple(_plain(each, one) for each, one in zip(value, default, strict=True))
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if not isinstance(value, sp.Expr):
        return value
    if not value.is_number:
        return default
    return int(value) if value.is_Integer else float(value)


class Derivation:
    """A step as its rules make it, and as w_t = g·w_{t−1} − η·h. Prints as text, and as TeX in a notebook.

    Every expression is SymPy's. Its symbols are called eta, lambda, beta1, …, w, ∇L and, for what the direction remembers,
    by the rule's names: m is the old value and m_t the new one. `symbols` has them by those names.
    """

    def __init__(self, equation: Equation, given: Mapping[str, Any]) -> None:
        self.equation, self._given = equation, dict(given)
        self.settings: dict[str, sp.Expr] = _settings(equation, given)
        self.notation = Notation()
        self._system = System(equation, self.settings, self.notation)
        meant = {"t", "k", "u_t", "g_t", *(str(x) for x in (self._system.w, self._system.gradient))}
        meant |= {f"{name}{when}" for name in self._system.moments for when in ("", "_t")}
        for name, value in given.items():
            taken = meant & {str(symbol) for symbol in getattr(value, "free_symbols", ())}
            if taken:
                raise ValueError(f"{name}={value} has the symbol {min(taken)}, which means something else here: choose another")

    # The pieces of the answer ---------------------------------------------------------------------------------------------

    @property
    def symbols(self) -> dict[str, sp.Symbol]:
        """Return every symbol by its name."""
        _ = self.system, self.g, self.h, self.at_rest, self.whole_effect  # each may bring symbols of its own
        return {name: symbol for symbol in self.notation.tex_names if not (name := symbol.name).startswith("[")}

    @cached_property
    def texts(self) -> dict[sp.Symbol, sp.Symbol]:
        """Return what each symbol is called in `to_dict()`, whose texts SymPy reads."""
        every = [x for x in (self.g, self.h, self.closed_form, self.half_life, self.fixed_point) if x is not None]
        every += [x for line in (*self.system, *self.whole_effect) for x in (line.left, line.right)]
        return _texts(set().union(*(x.free_symbols for x in every)))

    @cached_property
    def system(self) -> tuple[Line, ...]:
        """Return the lines of one step as they stand in the rules, the weight last."""
        return self._system.lines()

    @cached_property
    def _stepped(self) -> tuple[sp.Expr, dict[str, sp.Expr]]:
        return self._system.step()

    @property
    def step(self) -> sp.Expr:
        """Return w_t as one expression of the old weight, the gradient, the old state and the numbers."""
        return self._stepped[0]

    @property
    def state(self) -> dict[str, sp.Expr]:
        """Return what the rules keep and change, after the step, by their names for it, as such expressions."""
        return self._stepped[1]

    @cached_property
    def _split(self) -> tuple[sp.Expr, sp.Expr]:
        return self._system.split()

    @property
    def g(self) -> sp.Expr:
        """Return the factor of the old weight, from the second step on and where the weight is not zero."""
        return self._split[0]

    @property
    def h(self) -> sp.Expr:
        """Return what is subtracted η times."""
        return self._split[1]

    @cached_property
    def whole_effect(self) -> tuple[Line, ...]:
        """Return the step with the penalty in a buffer of its own, where the direction adds up what it is given.

        A buffer of sums is the sum of a buffer of gradients and one of penalties, m = m^∇ + m^λ, so that λ's whole effect
        on a step stands apart. Empty where there is no penalty, no buffer, or no such sum: Adam divides by what it sees.
        """
        return self._system.parted() if self.equation.penalty is not None else ()

    @cached_property
    def at_rest(self) -> AtRest | None:
        """Return what k steps without a gradient make of a weight, and its half-life, where there is a formula."""
        return at_rest(self._system, self.notation)

    @property
    def closed_form(self) -> sp.Expr | None:
        """Return the weight after k steps with zero gradient, from an optimizer that remembers nothing yet."""
        return None if self.at_rest is None else self.at_rest.inserted(self.at_rest.lines[-1].right)

    @property
    def half_life(self) -> sp.Expr | None:
        """Return the number of steps in which a weight without a gradient halves."""
        if self.at_rest is None or self.at_rest.half_life is None:
            return None
        return self.at_rest.inserted(self.at_rest.half_life)

    @cached_property
    def fixed_point(self) -> sp.Expr | None:
        """Return the weight that stays where it is under a constant gradient, where there is a formula."""
        return fixed_point(self._system)

    @cached_property
    def is_number(self) -> bool:
        """Tell whether g is one number for all weights of a tensor, and not one for each."""
        per_element = {self._system.w, self._system.gradient, *self._system.moments.values()}
        return not self.g.free_symbols & (per_element | self._made)

    @property
    def _made(self) -> set[sp.Symbol]:
        of_the_tensor = {*self._system.reductions, *map(self.notation.moved, self._system.memory)}
        return {line.left for line in self.system} - of_the_tensor

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Return what has to be said with the split: where it holds, and what of λ it leaves out."""
        return tuple(_notes(self))

    # How it is shown ------------------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """Return the rules and settings in a line."""
        return ", ".join([str(self.equation), *(f"{name} = {value}" for name, value in self._given.items())])

    @property
    def latex(self) -> str:
        """Return the step and its split as TeX, for KaTeX, MathJax and LaTeX's amsmath."""
        return "\n\n".join(f"\\[\n{in_lines(self.notation, lines)}\n\\]" for _, lines, _ in self.sections() if lines)

    def sections(self) -> list[tuple[str, tuple[Line, ...], str]]:
        """Return what there is to show: a heading, equations, and a sentence."""
        notation, rest = self.notation, self.at_rest

        def result(name: str, x: sp.Expr) -> Line:
            return Line(notation.named(name), notation.arranged(x), notation.values)

        sections = [
            ("One step", self.system, ""),
            (f"As {_SHAPE}", (result("g", self.g), result("h", self.h)), " ".join(self.notes)),
        ]
        if self.whole_effect:
            sections.append(("The whole effect of λ: the penalty in a buffer of its own", self.whole_effect, ""))
        if rest is not None:
            half = () if rest.half_life is None else (result("half_life", rest.half_life),)
            lines = (*(Line(line.left, notation.arranged(line.right), notation.values) for line in rest.lines), *half)
            empty = ", from empty buffers" if self._system.moments else ""
            sections.append((f"k steps without a gradient{empty}", lines, rest.condition))
        if self.fixed_point is not None:
            sections.append(
                ("The weight at which λ balances a constant gradient", (result("fixed_point", self.fixed_point),), "")
            )
        return sections

    def __str__(self) -> str:
        parts = [self.title]
        for heading, lines, sentence in self.sections():
            shown = [indent(self.notation.plain(sp.Eq(line.left, line.typed, evaluate=False)), "  ") for line in lines]
            tall = any("\n" in each for each in shown)
            parts += [heading, ("\n\n" if tall else "\n").join(shown)]
            if sentence:
                parts.append(indent(fill(sentence, 76), "  "))
        return "\n\n".join(parts)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        """Return the derivation for a notebook."""
        parts = [f"**{self.title}**"]
        for heading, lines, sentence in self.sections():
            parts += [f"{heading}", f"$$\n{in_lines(self.notation, lines)}\n$$", sentence]
        return "\n\n".join(filter(None, parts))

    def to_dict(self) -> dict[str, Any]:
        """Return the derivation as plain data: every expression as TeX, and as text that SymPy reads, with lam for λ and
        grad for ∇L. A name that SymPy knows as something else ends in an underscore: `E_`, `floor_`.
        """

        def as_text(x: sp.Expr) -> str:
            return str(x.xreplace(self.texts))

        def both(x: sp.Expr | None) -> dict[str, str] | None:
            return None if x is None else {"sympy": as_text(x), "latex": self.notation.tex(x)}

        def listed(lines: Iterable[Line]) -> list[dict[str, Any]]:
            return [
                {"name": as_text(line.left), "sympy": as_text(line.right), "latex": self.notation.tex(line.typed)}
                for line in lines
            ]

        return {
            **{rule.kind: rule.name for rule in self.equation.rules},
            "settings": {name: str(value) for name, value in self.settings.items()},
            "system": listed(self.system),
            "g": both(self.g),
            "h": both(self.h),
            "g_is_one_number": self.is_number,
            "whole_effect": listed(self.whole_effect),
            "closed_form": both(self.closed_form),
            "half_life": both(self.half_life),
            "fixed_point": both(self.fixed_point),
            "notes": list(self.notes),
        }


_SHAPE = "wₜ = g·wₜ₋₁ − η·h"


def _texts(symbols: Iterable[sp.Symbol]) -> dict[sp.Symbol, sp.Symbol]:
    """Return a symbol for each whose name Python and SymPy read as one: lambda is a keyword, ∇L no name, E a number."""
    found: dict[sp.Symbol, sp.Symbol] = {}
    ours = re.compile(r"^lambda|∇")
    for symbol in sorted(symbols, key=lambda each: (not ours.search(each.name), each.name)):  # lam and grad are always λ and ∇L
        name = re.sub(r"^lambda", "lam", symbol.name).replace("∇L", "grad")
        name = re.sub(r"(?<=\w)∇", "_grad", re.sub(r"(?<=\w)λ(?=_t|$)", "_lam", name))
        name = readable(re.sub(r"\W", "_", name))
        while sp.Symbol(name) in found.values():
            name += "_"
        found[symbol] = sp.Symbol(name)
    return found


def in_lines(notation: Notation, lines: Iterable[Line]) -> str:
    """Return equations as TeX, one below the other."""
    rows = [f"{notation.tex(line.left)} &= {notation.tex(line.typed)}" for line in lines]
    return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"


def _notes(derivation: Derivation) -> Iterator[str]:
    """Say where the split holds, and what it leaves out."""
    system, notation = derivation._system, derivation.notation
    equation, g, h = derivation.equation, derivation.g, derivation.h
    lambdas = {given["lam"] for given in system.numbers.values() if "lam" in given}
    if not g.free_symbols & lambdas:
        if equation.penalty is not None:
            yield "No factor of w holds λ: the penalty acts only inside what the direction bends, and stays in h."
    elif derivation.is_number:
        yield "g is one number: every weight of a tensor shrinks alike."
    else:
        made = sorted(notation.plain(symbol) for symbol in g.free_symbols & (derivation._made | {system.w}))
        yield f"g is a vector, because of {' and '.join(made)}: different weights decay differently."
    if any(line.right.has(sp.Piecewise) and system.t in line.right.free_symbols for line in derivation.system):
        yield "g and h are those from the second step on."
    if equation.penalty is None:
        if h.free_symbols & lambdas:
            yield "h holds λ as well: the decay acts on the step, too."
        return
    if g.has(sp.Abs(system.w)):
        yield "A weight at zero has no factor, and needs none."
    after = system.step()[1]
    feeding = [name for name in system.moments if after[name].free_symbols & lambdas]
    past = [notation.plain(system.moments[name]) for name in feeding if system.moments[name] in h.free_symbols]
    bent = sorted(notation.plain(symbol) for symbol in derivation._made & (g.free_symbols | h.free_symbols)) if feeding else []
    if past:
        left_out = f"{' and '.join(past)} in h holds the penalties of past steps, so h depends on λ as well"
        yield f"What the split leaves out: {left_out}."
    if bent:
        opening = "And " if past else "What the split leaves out: "
        yield f"{opening}{' and '.join(bent)} is made of the gradient with the penalty in it, and so depends on λ, too."
