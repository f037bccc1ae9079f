"""Where a step leads when it is repeated: the closed form without a gradient, the half-life, and the fixed point with one.

Each is derived where a formula exists, and is None where there is none: Adam with L2 has no closed form, because v̂ follows
the weight.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp

from weightdecay.analysis.notation import Notation
from weightdecay.analysis.symbolic import Line, System, evaluated, vocabulary


@dataclass(frozen=True)
class AtRest:
    """What becomes of a weight in k steps with zero gradient, from an optimizer that remembers nothing yet."""

    lines: tuple[Line, ...]
    """The weight w_k after k steps, last, after what it is made of."""
    half_life: sp.Expr | None
    """The number of steps in which the weight halves; None where it does not shrink."""
    condition: str = ""
    """When it holds, where it does not always."""

    def inserted(self, x: sp.Expr) -> sp.Expr:
        """Return an expression of the lines' symbols without them."""
        for line in reversed(self.lines[:-1]):
            x = x.subs(line.left, line.right)
        return x


def at_rest(system: System, notation: Notation) -> AtRest | None:
    """Return the closed form of a weight without a gradient, if its step is affine in the weight and the state."""
    if system.equation.direction.whole:
        return None
    size = sp.Dummy(positive=True)
    empty = dict.fromkeys(system.moments.values(), sp.Integer(0))
    later, first = ([x.subs(system.gradient, 0) for x in _flat(system, decide)] for decide in (system.generic, system.at_first))
    later, first = ([x.subs(sp.Abs(system.w) * sp.sign(system.w), system.w) for x in each] for each in (later, first))
    after = later[0].xreplace(empty)  # all at once, since 0/√0 is no number
    kept = {system.t, *system.reductions, *system.memory.values(), *system.references.values()}
    if after.free_symbols & kept or after.has(sp.nan) or first[0].xreplace(empty) != after:
        return None
    if later[0].free_symbols & set(empty) and any(x.xreplace(empty) != 0 for x in later[1:]):
        return None if any(system.t in x.free_symbols for x in later) else _spring(later, system, notation)
    above, below = after.subs(system.w, size), after.subs(system.w, -size)
    factor, shift = _affine(above, size)
    if factor is None:
        return None
    w_0, k = notation.at("w", "0"), notation.fresh("k")
    is_odd = sp.simplify(above + below) == 0
    if not is_odd and _affine(below, size) != (-factor, shift):
        return None
    start = sp.Abs(w_0) if is_odd and shift != 0 else w_0
    if factor == 1:
        reached = start + k * shift
        half = -start / (2 * shift) if shift != 0 else None
    else:
        limit = tidy(sp.simplify(shift / (1 - factor)))
        reached = factor**k * (start - limit) + limit
        half = sp.log((start / 2 - limit) / (start - limit)) / sp.log(factor) if shift != 0 else -sp.log(2) / sp.log(factor)
    if start != w_0:
        reached = sp.sign(w_0) * reached
    condition = "As long as the weight keeps its sign; then it stays within a step of zero." if start != w_0 else ""
    if factor != 1 and not condition:
        condition = "The half-life is that of a factor between 0 and 1."
    return AtRest((Line(notation.at("w", "k"), reached),), half, condition)


def _flat(system: System, decide: Callable[[Any], Any]) -> list[sp.Expr]:
    w, state = system.step(decide)
    return [w, *(state[name] for name in system.moments)]


def _affine(x: sp.Expr, by: sp.Symbol) -> tuple[sp.Expr | None, sp.Expr]:
    """Return x as (factor, shift) with x = factor·by + shift, or (None, 0)."""
    if x.has(sp.Piecewise) or not x.is_polynomial(by) or sp.degree(x, by) > 1:
        return None, sp.Integer(0)
    factor = sp.diff(x, by)
    return factor, sp.simplify(x - factor * by)


def _spring(later: Sequence[sp.Expr], system: System, notation: Notation) -> AtRest | None:
    """Return the closed form where weight and momentum pull at each other: the powers of a matrix of two by two."""
    both = [system.w, *system.moments.values()]
    if len(both) != 2 or any(x.has(sp.sign, sp.Abs, sp.Piecewise) for x in later):
        return None
    matrix = sp.Matrix([[sp.diff(x, y) for y in both] for x in later])
    if matrix.free_symbols & set(both) or sp.expand(matrix * sp.Matrix(both) - sp.Matrix(later)) != sp.zeros(2, 1):
        return None
    trace, determinant = sp.expand(matrix.trace()), sp.simplify(matrix.det())
    root = sp.sqrt(trace**2 - 4 * determinant)
    z1, z2, share, k = (notation.fresh(name) for name in ("z_1", "z_2", "A", "k"))
    w_0, half = notation.at("w", "0"), sp.Rational(1, 2)
    lines = (
        Line(z1, sp.Mul(half, trace + root, evaluate=False)),
        Line(z2, sp.Mul(half, trace - root, evaluate=False)),
        Line(share, (matrix[0, 0] - z2) / (z1 - z2)),
        Line(notation.at("w", "k"), w_0 * (share * z1**k + (1 - share) * z2**k)),
    )
    return AtRest(lines, -sp.log(2) / sp.log(z1), "The half-life is that of the long run, while both z are real and positive.")


def tidy(x: sp.Expr) -> sp.Expr:
    """Return the expression with 1 − a where SymPy has a − 1."""
    for part in sorted(x.atoms(sp.Add), key=sp.count_ops):
        in_exponent = any(part in power.exp.atoms(sp.Add) for power in x.atoms(sp.Pow))
        if part.as_coeff_Add()[0] == -1 and len(part.args) == 2 and not in_exponent:
            turned = sp.Mul(-1, sp.Add(*(-term for term in part.args)), evaluate=False)
            x = x.subs(part, turned)
    return x


def fixed_point(system: System) -> sp.Expr | None:
    """Return the weight that stays where it is under a constant gradient, once all moments have settled."""
    if system.equation.direction.whole:
        return None
    known = {number: sp.Dummy(number.name, positive=True) for given in system.numbers.values() for number in given.values()
             if number.is_Symbol}  # fmt: skip
    back = {dummy: number for number, dummy in known.items()}
    g = sp.Dummy("g", real=True, nonzero=True)
    u = _settled_direction(system, g)
    if u is None:
        return None
    w, step = sp.Dummy("w", real=True), sp.Dummy("u", real=True)
    words = evaluated(vocabulary(system.generic))
    decay = system.equation.decay
    after = system.walked(decay, [w, step, *system.references.values()][: len(decay.elements)], system.numbers["decay"], words)
    if decay.returned or len(decay.elements) - 2 != len(system.references):
        return None
    if system.equation.penalty is None:
        factor, shift = _affine(after, w)
        if factor is None or factor == 1 or factor.has(step) or set(system.reductions) & after.free_symbols:
            return None
        found = (shift / (1 - factor)).subs(step, u).subs(g, system.gradient)
        return tidy(sp.simplify(found))
    if sp.simplify(after - (w - system.numbers["decay"]["eta"] * step)) != 0:
        return None
    y, x = sp.Dummy(positive=True), sp.Dummy(positive=True)
    if u.has(sp.sign) or u.subs(g, 0) != 0 or _solved(u.subs(g, y), y):
        return None  # a sign that is 0 at one point only balances nothing: what is next to it takes a whole step
    pull = system.walked(system.equation.penalty, [x], system.numbers["penalty"], evaluated(vocabulary(system.generic)))
    if pull.free_symbols & set(system.reductions) or pull.has(sp.Piecewise) or not pull.has(x):
        return None
    found = _solved(pull.xreplace(known) - y, x)
    if len(found) != 1 or sp.simplify(sp.diff(pull.xreplace(known), x)).is_negative:  # a pull that fades lets go
        return None
    gradient = system.gradient
    size: sp.Expr = tidy(sp.simplify(found[0])).xreplace(back).subs(y, sp.Abs(gradient))
    balanced = (-sp.sign(gradient) * size).subs(sp.sign(gradient) * sp.Abs(gradient), gradient)
    constant = sp.expand(pull).as_independent(x, as_Add=True)[0]
    # Against a constant pull that is the stronger, a weight comes to zero and, by a subgradient, steps around it.
    return balanced if constant == 0 else sp.Piecewise((balanced, sp.Abs(gradient) > constant))


def _solved(x: sp.Expr, of: sp.Symbol) -> list[sp.Expr]:
    """Return where an expression is zero, as far as SymPy can tell."""
    try:
        return list(sp.solve(x, of))
    except NotImplementedError:
        return []


def _settled_direction(system: System, g: Any) -> sp.Expr | None:
    """Return the u that a direction ends with when the gradient stays the same."""
    direction = system.equation.direction
    words = evaluated(vocabulary(system.generic))
    found = system.walked(direction, (g, *system.moments.values()), system.numbers["direction"], words)
    u, *new = found if isinstance(found, tuple) else (found,)
    settled: dict[sp.Symbol, sp.Expr] = {}
    if direction.memory:
        return None
    for moment, after in zip(system.moments.values(), new, strict=True):
        after = after.subs(settled)
        if not after.is_polynomial(moment) or sp.degree(after, moment) > 1:
            return None
        solved = sp.solve(after - moment, moment)
        if len(solved) != 1:
            return None
        settled[moment] = sp.simplify(solved[0])
    u = u.replace(lambda x: x.is_Pow and x.exp == system.t, lambda x: sp.Integer(0)).subs(settled)
    u = sp.simplify(u)
    return None if u.free_symbols & {system.t, *system.moments.values(), *system.reductions} else u
