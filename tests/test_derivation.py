"""A derivation is the step that runs: its expressions against the rules on floats, its closed forms against runs, and what it
shows against the results in the literature."""

import functools
import importlib.util
import json
import math
import operator
import random
import re
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import sympy as sp
import torch
from matplotlib.mathtext import MathTextParser
from runs import RULES, assert_close, decays_of_ones_own, fits, numbers_of, reduced, same_bits, walk

import weightdecay as wd
from weightdecay.update_rules.equation import Equation, step
from weightdecay.update_rules.ops import where

ROOT = Path(__file__).parent.parent
TOLERANCE, STEPS = 1e-12, 100
LR, LR_MAX = 0.05, 0.2
LAMBDA = {"penalty": 0.3, "decay": 0.2}
BY_KIND = {kind: [rule for rule in RULES if rule.kind == kind] for kind in wd.update_rules.rule.KINDS}


@functools.cache
def _derived(direction, penalty, decay, settings):
    return wd.derive(direction, penalty, decay, **dict(settings))


def derived(direction, penalty=None, decay=None, **settings):
    """Return a derivation, which all tests share."""
    return _derived(direction, penalty, decay, tuple(sorted(settings.items())))


@functools.cache
def printed(derivation):
    """Return a derivation's text, which is made once."""
    return str(derivation)


@functools.cache
def latex(derivation):
    """Return a derivation's TeX, which is made once."""
    return derivation.latex


def settings_of(direction):
    """Return what a direction may be set to so that it is another formula: nothing, and each of its switches."""
    found = [{}]
    if direction.name == "sgd":
        found += [{"momentum": 0}, {"nesterov": True}, {"dampening": 0.25}]
    return found


def combinations():
    """Return sgd and adam with every penalty and every decay, in each of their settings, and the others with l2 and decoupled.

    One direction of each kind, linear in the gradient or not, is enough: what stands beside it knows u alone.
    """
    pairs = [(None, None), *((p, None) for p in BY_KIND["penalty"]), *((None, d) for d in BY_KIND["decay"])]
    lambdas = [[rule for rule in BY_KIND[kind] if "lam" in rule.numbers] for kind in ("penalty", "decay")]
    both = next(((p, d) for p in lambdas[0] for d in lambdas[1] if (p.name, d.name) == ("l2", "cautious")), None)
    found = []
    for direction in BY_KIND["direction"]:
        for penalty, decay in [*pairs, *([both] if both else [])]:
            switched = {rule and rule.name for rule in (penalty, decay)} <= {None, "l2", "decoupled"}
            if not switched and direction.name not in ("sgd", "adam"):
                continue
            if decay is not None and not fits(decay, direction.name):
                continue
            for settings in settings_of(direction)[: None if switched else 2]:
                names = [rule and rule.name for rule in (direction, penalty, decay)]
                shown = [name for name in names if name] + [f"{key}={value}" for key, value in settings.items()]
                marks = []
                if decay is not None and decay.name == "half_threshold" and settings.get("momentum") != 0:
                    marks.append(pytest.mark.slow)  # five steps of Newton's are long in every form
                if direction.whole:
                    marks.append(pytest.mark.skip(reason="it sees whole tensors, and has no formula per element"))
                found.append(pytest.param(*names, settings, id="-".join(shown), marks=marks))
    return found


def shown():
    """Return as many combinations as show every rule and every form that a result has: to print each takes half a second."""
    usual = {None, "l2", "decoupled"}
    found = []
    for case in combinations():
        direction, penalty, decay, settings = case.values
        if direction == "adam" or settings.get("momentum") == 0 or {penalty, decay} <= usual:
            found.append(case)
    return found


every_shown = pytest.mark.parametrize(("direction", "penalty", "decay", "settings"), shown())
every_combination = pytest.mark.parametrize(("direction", "penalty", "decay", "settings"), combinations())


def rules_of(direction, penalty, decay):
    registry = wd.rules()
    return Equation(
        penalty and registry["penalty", penalty], registry["direction", direction], registry["decay", decay or "none"]
    )


class Column(list):
    """A value per element, which a penalty's may be added to."""

    def __add__(self, other):
        return Column(map(operator.add, self, other))


def on_columns(function):
    """Return a rule as a function of columns of floats: the function as typed, row by row."""

    def read(*columns, **numbers):
        rows = [function(*row, **numbers) for row in zip(*columns, strict=True)]
        if isinstance(rows[0], tuple):
            return tuple(Column(column) for column in zip(*rows, strict=True))
        return Column(rows)

    return read


class Case:
    """One combination with numbers: what the rules make of five weights on floats, and how to evaluate an expression."""

    def __init__(self, direction, penalty, decay, settings, *, t=7, count=5, without_lambda=False, seed=0):
        draw = random.Random(f"{direction}{penalty}{decay}{t}{seed}")
        self.equation = rules_of(direction, penalty, decay)
        self.derivation = derived(direction, penalty, decay, **settings)
        given = {"momentum": 0.8, **settings} if self.equation.direction.name == "sgd" else settings
        self.numbers = {
            rule.kind: numbers_of(
                rule, t=t, lam=0.0 if without_lambda else LAMBDA.get(rule.kind), eta=LR, eta_max=LR_MAX, **given
            )
            for rule in self.equation.rules
        }
        self.w = Column(draw.choice([-1, 1]) * draw.uniform(0.5, 2) for _ in range(count))
        self.g = Column(draw.choice([-1, 1]) * draw.uniform(0.5, 2) for _ in range(count))
        kept = [kept.name for rule in self.equation.rules for kept in rule.keeps if kept.per_element]
        self.kept = {name: Column(draw.uniform(0.3, 2) for _ in range(count)) for name in kept}
        self.asked = {name: 0.7 for rule in self.equation.rules for name in rule.shared}
        self.numbers = self.equation.with_shared(self.numbers, self.asked)
        values = {"w": self.w, "g": self.g, **self.kept}
        self.after = step(self.equation, self.numbers, values, bind=on_columns, reduce=self._reduce)

    def _reduce(self, reduction, values, numbers):
        value = reduced(reduction, values, numbers)
        self.asked[next(name for name, known in wd.update_rules.reductions.REDUCTIONS.items() if known is reduction)] = value
        return value

    def symbols(self, place):
        """Return the number for every symbol of what a step starts from, at one place of the tensor."""
        names = {"lam": "lambda", "eps": "epsilon"}
        found = {names.get(name, name): value for given in self.numbers.values() for name, value in given.items()}
        if self.equation.penalty is not None and "lam" in self.equation.decay.numbers:
            found |= {f"lambda_{kind}": LAMBDA[kind] if "lam" in self.numbers[kind] else 0.0 for kind in LAMBDA}
            found |= {f"lambda_{kind}": self.numbers[kind]["lam"] for kind in LAMBDA}
        found |= self.asked | {"w": self.w[place], "∇L": self.g[place]}
        found |= {name: column[place] for name, column in self.kept.items()}
        return {
            self.derivation.symbols[name]: mpmath.mpf(value) for name, value in found.items() if name in self.derivation.symbols
        }

    def evaluated(self, x, env):
        """Evaluate an expression with 50 digits."""
        env = {**{symbol: mpmath.mpf(symbol.name) for symbol in x.free_symbols if is_decimal(symbol)}, **env}
        missing = x.free_symbols - set(env)
        assert not missing, f"{missing} of {x} stand for nothing"
        arguments = sorted(x.free_symbols, key=str)
        return _function(x, tuple(arguments))(*(env[symbol] for symbol in arguments))

    def everywhere(self, x):
        with mpmath.workdps(50):
            return [float(self.evaluated(x, self.symbols(place))) for place in range(len(self.w))]

    def with_lines(self, place):
        """Return the numbers at a place, those that the lines of the system define with them."""
        env = self.symbols(place)
        for line in self.derivation.system:
            if line.left.name not in self.asked:  # a sum over the tensor, which stands in env
                env[line.left] = self.evaluated(line.right, env)
        return env


def is_decimal(symbol):
    """Tell whether a symbol stands for a settled number, 0.25, in a line as typed."""
    return symbol.name.replace(".", "", 1).isdigit()


@functools.cache
def _function(x, arguments):
    return sp.lambdify(arguments, x, "mpmath")


def as_steps(t):
    return f"t={t}"


# The expressions are the rules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1, 7], ids=as_steps)
@every_combination
def test_the_step_is_what_the_rules_compute(direction, penalty, decay, settings, t):
    if decay == "half_threshold" and (direction, t, settings) != ("sgd", 7, {}):
        pytest.skip("five steps of Newton's in one expression take SymPy long; the lines of the step are tested everywhere")
    case, effect = seen(direction, penalty, decay, settings, t)
    assert_close(case.everywhere(case.derivation.step), case.after[0], tolerance=TOLERANCE, effect=effect)
    assert set(case.derivation.state) == set(case.after[1])
    for key, x in case.derivation.state.items():
        assert_close(case.everywhere(x), case.after[1][key], tolerance=TOLERANCE)


RARELY_SEEN = ({"lion", "l2"}, {"signum", "l2"}, {"sgd", "selective_projection"})
"""What needs a sign that λ turns round, or a gradient that points back and a step that leads away."""


def seen(direction, penalty, decay, settings, t):
    """Return a case, and how much λ does in it: among some draws there is one in which a sign or a condition feels it."""
    for seed in range(20):
        case, without = (Case(direction, penalty, decay, settings, t=t, seed=seed, without_lambda=off) for off in (False, True))
        if not has_lambda(case):
            return case, None
        effect = max(abs(x - y) for x, y in zip(case.after[0], without.after[0], strict=True))
        if effect > 0:
            return case, effect
    assert {direction, penalty or decay} in RARELY_SEEN, "λ does nothing in twenty cases"
    return case, None


def has_lambda(case):
    return any("lam" in given for given in case.numbers.values())


def split_combinations(*steps):
    """Return every combination at every step."""
    return [pytest.param(*c.values, t, id=f"{c.id}-t={t}", marks=c.marks) for c in combinations() for t in steps]


@pytest.mark.parametrize(("direction", "penalty", "decay", "settings", "t"), split_combinations(1, 7))
def test_the_lines_and_the_split_are_the_step(direction, penalty, decay, settings, t):
    """The last line is w_t, and g·w − η·h with what the lines define is the same; g and h may hold from the second step on."""
    case = Case(direction, penalty, decay, settings, t=t)
    derivation = case.derivation
    later_only = any("from the second step on" in note for note in derivation.notes)
    with mpmath.workdps(50):
        for place in range(len(case.w)):
            env = case.with_lines(place)
            scale = abs(case.w[place]) + abs(case.after[0][place])
            last = env[derivation.system[-1].left]
            assert abs(last - case.after[0][place]) <= TOLERANCE * scale
            if t == 1 and later_only:
                continue
            split = case.evaluated(derivation.g, env) * case.w[place] - LR * case.evaluated(derivation.h, env)
            assert abs(split - last) <= TOLERANCE * scale


@pytest.mark.parametrize(("direction", "penalty", "decay", "settings", "t"), split_combinations(7))
def test_g_and_h_hold_nothing_that_is_not_defined(direction, penalty, decay, settings, t):
    derivation = derived(direction, penalty, decay, **settings)
    given = derivation.step.free_symbols.union(*(x.free_symbols for x in derivation.state.values()), [derivation.symbols["w"]])
    lines = {line.left for line in derivation.system}
    assert (derivation.g.free_symbols | derivation.h.free_symbols) <= given | lines


@every_combination
def test_lambda_zero_leaves_g_at_one(direction, penalty, decay, settings):
    case = Case(direction, penalty, decay, settings, without_lambda=True)
    if not has_lambda(case) and (penalty or decay):
        pytest.skip("it has no λ")
    with mpmath.workdps(50):
        for place in range(len(case.w)):
            assert abs(case.evaluated(case.derivation.g, case.with_lines(place)) - 1) <= TOLERANCE


@every_combination
def test_g_is_one_number_where_it_says_so(direction, penalty, decay, settings):
    case = Case(direction, penalty, decay, settings)
    if case.derivation.is_number:
        with mpmath.workdps(50):
            g = [float(case.evaluated(case.derivation.g, case.with_lines(place))) for place in range(len(case.w))]
        assert max(g) - min(g) <= TOLERANCE
        assert not any("vector" in note for note in case.derivation.notes)
    else:
        assert any("vector" in note for note in case.derivation.notes)


def test_a_reduction_has_a_line_of_its_own():
    derivation = derived("sgd", "norm")
    line = derivation.system[0]
    total = next(symbol for name, symbol in derivation.symbols.items() if name.startswith("sum("))
    assert line.left == derivation.symbols["norm_n_w"]
    assert sp.simplify(line.right - total ** (1 / derivation.symbols["n"])) == 0


@every_shown
def test_symbols_have_the_names_that_they_are_documented_under(direction, penalty, decay, settings):
    derivation = derived(direction, penalty, decay, **settings)
    printed(derivation)
    assert {"w", "∇L", "eta"} <= set(derivation.symbols)
    assert all(symbol.name == name for name, symbol in derivation.symbols.items())
    assert derivation.g.free_symbols | derivation.h.free_symbols <= set(derivation.symbols.values())


# Where a step leads ---------------------------------------------------------------------------------------------------------


def optimizer_of(derivation, params, lr=LR, lams=LAMBDA, **settings):
    """Return an optimizer that does a derivation's step."""
    equation = derivation.equation
    given = {rule.kind: rule.name for rule in equation.rules}
    given |= {key: lams[kind] for kind, key in (("penalty", "penalty_weight"), ("decay", "weight_decay")) if kind in given and
              any(rule.kind == kind and "lam" in rule.numbers for rule in equation.rules)}  # fmt: skip
    if "eta_max" in equation.decay.numbers:
        given["lr_max"] = LR_MAX
    return wd.Optimizer(params, lr, **given, **settings)


def inserted(x, derivation, **values):
    """Return an expression with numbers, and with those of this file for what is not given."""
    equation = derivation.equation
    defaults = {name: value for rule in equation.rules for name, value in rule.defaults.items()}
    known = {**defaults, "eta": LR, "eta_max": LR_MAX, "epsilon": 1e-8}
    known |= {"mu": 0.8} if equation.direction.name == "sgd" else {}
    known["lambda"] = LAMBDA["penalty" if equation.penalty else "decay"]
    known |= {f"lambda_{kind}": value for kind, value in LAMBDA.items()} | values
    with mpmath.workdps(50):
        arguments = sorted(x.free_symbols, key=str)
        return _function(x, tuple(arguments))(*(mpmath.mpf(known[symbol.name]) for symbol in arguments))


def with_momentum(equation, settings):
    return {**settings, "momentum": settings.get("momentum", 0.8)} if equation.direction.name == "sgd" else settings


CLOSED = (
    {(direction, None, "decoupled") for direction in ("amsgrad", "lion", "radam", "rmsprop")}
    | {
        (direction, None, decay)
        for direction in ("adam", "sgd")
        for decay in ("cautious", "decoupled", "implicit", "independent")
    }
    | {("sgd", penalty, None) for penalty in ("elastic_net", "l1", "l2")}
)


@pytest.mark.slow
def test_there_are_closed_forms_where_there_should_be():
    found = {
        (direction, penalty, decay)
        for direction, penalty, decay, settings in (case.values for case in combinations())
        if derived(direction, penalty, decay, **settings).closed_form is not None
    }
    assert found >= CLOSED
    assert derived("adam", "l2").closed_form is None
    assert derived("adam", "l2").half_life is None


@every_combination
def test_the_closed_form_is_what_a_hundred_steps_make(direction, penalty, decay, settings):
    derivation = derived(direction, penalty, decay, **settings)
    if derivation.closed_form is None:
        pytest.skip("it has no closed form")
    w = torch.tensor([40.0, -30.0, 35.0], dtype=torch.float64)  # no penalty of this file brings them to zero in 100 steps
    param = torch.nn.Parameter(w.clone())
    full = with_momentum(derivation.equation, settings)
    seen = walk(optimizer_of(derivation, [param], **full), [torch.zeros(3)] * STEPS)
    assert (seen.sign() == w.sign()).all() or penalty == "l2"
    for k in (1, 2, 3, 10, STEPS):
        expected = [
            float(mpmath.re(inserted(derivation.closed_form, derivation, w_0=x, k=k, **user_numbers(full)))) for x in w.tolist()
        ]
        effect = (seen[k - 1] - w).abs().max() if derivation.half_life is not None else None
        assert_close(seen[k - 1], expected, tolerance=TOLERANCE, effect=effect)


def user_numbers(settings):
    names = {"momentum": "mu"}
    return {names.get(name, name): value for name, value in settings.items()}


@every_combination
def test_the_half_life_halves(direction, penalty, decay, settings):
    derivation = derived(direction, penalty, decay, **settings)
    if derivation.half_life is None:
        assert derivation.closed_form is None or derivation.closed_form == derivation.symbols["w_0"]
        return
    full = user_numbers(with_momentum(derivation.equation, settings))
    numbers = {**full, "eta": 0.005, "w_0": -3.0}  # so small a step that the spring of momentum and L2 does not swing
    half = inserted(derivation.half_life, derivation, **numbers)
    assert half > 0
    with mpmath.workdps(50):
        begin = 0 if derivation.at_rest.condition == "" or "sign" in derivation.at_rest.condition else 2000
        before, after = (inserted(derivation.closed_form, derivation, **{**numbers, "k": k}) for k in (begin, begin + half))
    assert float(abs(after / before)) == pytest.approx(0.5, rel=1e-9)


def test_there_is_no_closed_form_where_the_rule_divides_zero_by_zero():
    param = torch.nn.Parameter(torch.ones(1))
    seen = walk(wd.AdamW([param], lr=LR, weight_decay=0.1, eps=0.0), [torch.zeros(1)])
    assert seen.isnan().all()
    assert derived("adam", decay="decoupled", eps=0).closed_form is None


def test_lp_at_two_is_l2_twice_in_the_long_run_too():
    bridge, ridge = derived("sgd", "lp", p=2), derived("sgd", "l2")
    lam = ridge.symbols["lambda"]
    assert same(bridge.g, ridge.g.subs(lam, 2 * lam))
    assert bridge.closed_form is not None


def test_the_spring_of_momentum_and_l2_may_swing():
    """Where ηλ > (1 − √μ)² the z are complex, and the closed form is still what the steps make."""
    derivation = derived("sgd", "l2")
    param = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = wd.SGD([param], lr=0.5, momentum=0.9, weight_decay=0.5)
    seen = walk(optimizer, [torch.zeros(1)] * 60)[:, 0]
    assert seen.min() < -0.1
    values = {"eta": 0.5, "lambda": 0.5, "mu": 0.9, "w_0": 1.0}
    expected = [inserted(derivation.closed_form, derivation, **values, k=k + 1) for k in range(60)]
    assert max(abs(mpmath.im(x)) for x in expected) < 1e-40
    assert_close(seen, [float(mpmath.re(x)) for x in expected], tolerance=TOLERANCE, effect=1.0)


POINTS = {("sgd", None, "decoupled"), ("adam", None, "decoupled"), ("adam", None, "independent"), ("sgd", "l2", None),
          ("adam", "l2", None), ("sgd", "lp", None), ("sgd", "elastic_net", None)}  # fmt: skip


def test_there_are_fixed_points_where_there_should_be():
    for combination in POINTS:
        assert derived(*combination).fixed_point is not None
    assert derived("sgd").fixed_point is None
    assert derived("sgd", "l1").fixed_point is None


def moved_from(derivation, w, gradient, settings):
    """Return how far one step moves each weight once the state has settled under this gradient."""
    param = torch.nn.Parameter(w.clone())
    optimizer = optimizer_of(derivation, [param], lr=0.0, **settings)
    walk(optimizer, [gradient] * 300)
    assert same_bits(param.detach(), w)
    optimizer.param_groups[0]["lr"] = LR
    return (walk(optimizer, [gradient])[0] - w).abs()


@every_combination
def test_a_weight_at_the_fixed_point_stays(direction, penalty, decay, settings):
    derivation = derived(direction, penalty, decay, **settings)
    if derivation.fixed_point is None:
        pytest.skip("it has no formula for the fixed point")
    if any(rule.keeps for rule in derivation.equation.rules if rule.kind != "direction"):
        pytest.skip("it leads back to where training began, which this test puts at the fixed point itself")
    if direction == "adadelta":
        pytest.skip("its means take a hundred million steps to settle")
    short = {"radam": {"betas": (0.9, 0.9)}, "rmsprop": {"alpha": 0.9}}.get(direction, {})  # memories of these 300 steps
    full = {**with_momentum(derivation.equation, settings), **short}
    gradient = torch.tensor([0.7, -1.3, 2.0], dtype=torch.float64)
    w = [float(inserted(derivation.fixed_point, derivation, **{"∇L": g}, **user_numbers(full))) for g in gradient.tolist()]
    w = torch.tensor(w, dtype=torch.float64)
    # Adam divides what is left of the gradient, a rounding error, by itself: there it is as large a step as any, but for ε.
    stays = {**full, "eps": 1.0} if penalty and "eps" in derivation.equation.direction.defaults else full
    assert (moved_from(derivation, w, gradient, stays) <= 1e-11 * w.abs()).all()
    assert (moved_from(derivation, 1.25 * w, gradient, stays) > 1e-9 * w.abs()).all()


def test_the_elastic_net_balances_no_gradient_that_its_l1_part_is_stronger_than():
    """The formula's weight would have the gradient's sign, and zero is left at once: the subgradient there is 0."""
    derivation = derived("sgd", "elastic_net", momentum=0)
    (balanced, condition), *others = derivation.fixed_point.args
    assert not others
    assert float(inserted(balanced, derivation, **{"∇L": 0.5})) < 0
    values = {derivation.symbols["lambda"]: 0.3, derivation.symbols["l1_ratio"]: 0.5}
    assert [bool(condition.subs({**values, derivation.symbols["∇L"]: x})) for x in (0.01, -0.01, 0.2, -0.2)] == [0, 0, 1, 1]


def test_what_changes_later_than_the_second_step_is_not_settled(own_registry):
    @wd.direction(source="nobody", state={"m": "buffer"})
    def late(g, m, *, t):
        m = where(t > 100, 0.5 * m + g, g)
        return m, m

    d = wd.derive(late, "l2")
    assert d.h.has(sp.Piecewise)
    assert d.closed_form is None


def test_a_rules_own_k_is_not_the_number_of_steps(own_registry):
    @wd.penalty(source="nobody")
    def stiff(w, *, lam, k=2.0):
        return lam * k * w

    d = wd.derive("sgd", stiff, momentum=0)
    free = {symbol.name for symbol in d.closed_form.free_symbols}
    assert free == {"eta", "lambda", "k", "k'", "w_0"}


@pytest.mark.parametrize("name", ["m", "w", "m_t", "t", "∇L"])
def test_an_expression_may_not_mean_something_else(name):
    with pytest.raises(ValueError, match="means something else"):
        wd.derive("sgd", "l2", momentum=sp.Symbol(name) / 2)


@pytest.mark.parametrize(("preset", "rules"), [(wd.AdamW, ("adam", None, "decoupled")), (wd.SGD, ("sgd", "l2", None))])
def test_a_preset_is_its_rules(preset, rules):
    expected = str(wd.derive(*rules))
    assert str(wd.derive(preset)) == str(wd.derive(preset.__name__)) == expected
    with pytest.raises(ValueError, match="of its own"):
        wd.derive(preset, decay="cautious")


def test_exact_numbers_stay_exact():
    assert wd.derive("sgd", "l2", momentum=sp.Rational(1, 3)).settings["mu"] == sp.Rational(1, 3)
    assert wd.derive("sgd", "l2", momentum=torch.tensor(0.5)).settings["mu"] == sp.Rational(1, 2)


# The results of the literature ----------------------------------------------------------------------------------------------


def named(derivation, *names):
    return [derivation.symbols[name] for name in names]


def same(x, y):
    return sp.simplify(x - y) == 0


def test_momentum_sgd_with_l2():
    d = derived("sgd", "l2")
    eta, lam, mu, m, gradient, w = named(d, "eta", "lambda", "mu", "m", "∇L", "w")
    assert same(d.g, 1 - eta * lam)
    assert same(d.h, mu * m + gradient)
    assert d.is_number
    assert d.whole_effect
    later = d.step.subs(d.symbols["t"], 2)
    assert same(later, (1 - eta * lam) * w - eta * (mu * m + gradient))
    assert same(d.step.subs(d.symbols["t"], 1), (1 - eta * lam) * w - eta * gradient)
    assert any("m" in note and "penalties of past steps" in note and "depends on λ" in note for note in d.notes)


def test_adam_with_l2():
    d = derived("adam", "l2")
    str(d)
    eta, lam, b1, b2, t, eps, v_hat = named(d, "eta", "lambda", "beta1", "beta2", "t", "epsilon", "v_hat_t")
    m, v, gradient, w = named(d, "m", "v", "∇L", "w")
    assert same(d.g, 1 - eta * lam * (1 - b1) / (1 - b1**t) / (sp.sqrt(v_hat) + eps))
    assert same(d.h, (b1 * m + (1 - b1) * gradient) / (1 - b1**t) / (sp.sqrt(v_hat) + eps))
    assert not d.is_number
    assert not d.whole_effect
    assert same(d.state["v"], b2 * v + (1 - b2) * (gradient + lam * w) ** 2)
    notes = " ".join(d.notes)
    assert "g is a vector" in notes
    assert "penalties of past steps" in notes
    assert "v̂" in notes
    assert "depends on λ, too" in notes


def test_adamw():
    d = derived("adam", decay="decoupled")
    eta, lam, eps, m_hat, v_hat = named(d, "eta", "lambda", "epsilon", "m_hat_t", "v_hat_t")
    assert same(d.g, 1 - eta * lam)
    assert same(d.h, m_hat / (sp.sqrt(v_hat) + eps))
    assert d.is_number
    assert lam not in d.h.free_symbols
    assert not any(lam in x.free_symbols for x in d.state.values())
    assert not any("leaves out" in note for note in d.notes)


@pytest.mark.parametrize(
    ("direction", "decay"),
    [
        pytest.param(name, rule.name, marks=pytest.mark.slow if rule.name == "half_threshold" and name != "sgd" else ())
        for name in ("adam", "lion", "sgd")
        for rule in BY_KIND["decay"]
        if fits(rule, name)
    ],
)
def test_a_decay_leaves_nothing_in_the_state(direction, decay):
    d = derived(direction, decay=decay)
    lam = d.symbols.get("lambda")
    assert not any(lam in x.free_symbols for x in d.state.values())
    assert not any("leaves out" in note or "past steps" in note for note in d.notes)


WHOLE = [(penalty, settings) for penalty in ("l1", "l2", "lp", "elastic_net") for settings in
         ({}, {"nesterov": True}, {"dampening": 0.25})]  # fmt: skip


@pytest.mark.parametrize(("penalty", "settings"), WHOLE)
def test_the_whole_effect_is_the_run(penalty, settings):
    """Its lines, walked with numbers, are the optimizer's steps, and the buffer of λ has never seen a gradient."""
    d = derived("sgd", penalty, **settings)
    lines = {line.left.name: line.right for line in d.whole_effect}
    assert list(lines) == ["m∇_t", "mλ_t", "w_t"]
    mu = 0.8
    numbers = {"mu": mu, "eta": LR, "lambda": LAMBDA["penalty"], "p": 1.5, "l1_ratio": 0.5, **settings}
    w, history = 2.0, [math.sin(t) + 0.5 for t in range(40)]
    param = torch.nn.Parameter(torch.tensor([w], dtype=torch.float64))
    optimizer = wd.Optimizer(
        [param], LR, direction="sgd", penalty=penalty, penalty_weight=LAMBDA["penalty"], momentum=mu, **settings
    )
    gradients = [torch.tensor([g], dtype=torch.float64) for g in history]
    seen = walk(optimizer, gradients)[:, 0].tolist()

    def value(x, env):
        names = sorted((symbol for symbol in x.free_symbols if not is_decimal(symbol)), key=str)
        x = x.xreplace({symbol: sp.Rational(symbol.name) for symbol in x.free_symbols if is_decimal(symbol)})
        return float(_function(x, tuple(names))(*(mpmath.mpf(env[name.name]) for name in names)))

    pull = wd.rules()["penalty", penalty]
    part = {"g": history[0], "λ": pull.function(w, **{n: numbers["lambda" if n == "lam" else n] for n in pull.numbers})}
    env = {**numbers, "m∇": part["g"], "mλ": part["λ"]}
    ahead = 1 + mu if settings.get("nesterov") else 1
    expected = [w - LR * ahead * (part["g"] + part["λ"])]
    for g in history[1:]:
        env |= {"w": expected[-1], "∇L": g}
        for name, x in lines.items():
            env[name] = value(x, env)
        env |= {"m∇": env["m∇_t"], "mλ": env["mλ_t"]}
        expected.append(env["w_t"])
    plain = wd.Optimizer(
        [torch.nn.Parameter(torch.tensor([w], dtype=torch.float64))], LR, direction="sgd", momentum=mu, **settings
    )
    without = walk(plain, gradients)[:, 0].tolist()
    assert_close(seen, expected, tolerance=TOLERANCE, effect=abs(seen[-1] - without[-1]))


@pytest.mark.parametrize(("penalty", "settings"), WHOLE)
def test_all_of_lambda_is_in_its_own_buffer(penalty, settings):
    d = derived("sgd", penalty, **settings)
    lines = {line.left.name: line.right for line in d.whole_effect}
    lam, buffer = d.symbols["lambda"], d.symbols["mλ"]
    assert not lines["m∇_t"].free_symbols & {lam, buffer, d.symbols["w"]}
    scale = sp.Symbol("c", positive=True)
    grown = lines["mλ_t"].subs({lam: scale * lam, buffer: scale * buffer}, simultaneous=True)
    assert same(grown, scale * lines["mλ_t"])
    assert lines["mλ_t"].has(lam)
    if not settings.get("nesterov"):
        assert lam not in lines["w_t"].free_symbols


@pytest.mark.parametrize("direction", ["adam", "amsgrad"])
def test_there_is_no_whole_effect_where_the_direction_divides(direction):
    assert derived(direction, "l2").whole_effect == ()
    assert derived("sgd", "l2", momentum=0).whole_effect == ()
    assert derived("sgd").whole_effect == ()


# Loshchilov & Hutter 2019, propositions 1 to 3 ------------------------------------------------------------------------------


def at_peak(derivation):
    """Return the step of independent decay as the propositions have it, at a constant learning rate α = η = η_max."""
    return derivation.step.subs(derivation.symbols["eta_max"], derivation.symbols["eta"])


def test_proposition_1():
    """SGD with decay λ is SGD with L2 of λ' = λ/α, and with no other."""
    coupled, decoupled = derived("sgd", "l2", momentum=0), derived("sgd", decay="independent", momentum=0)
    alpha, lam, w = named(decoupled, "eta", "lambda", "w")
    assert same(coupled.step.subs(lam, lam / alpha), at_peak(decoupled))
    assert not same(coupled.step, at_peak(decoupled))
    other = sp.Symbol("other")
    solved = sp.solve(coupled.step.subs(lam, other) - at_peak(decoupled), other)
    assert solved == [lam / alpha]
    assert w not in solved[0].free_symbols


def test_proposition_2():
    """With Adam no λ' does it: the L2 that shrinks one weight as decay does needs another λ' for a weight of other v̂."""
    coupled, decoupled = derived("adam", "l2"), derived("adam", decay="independent")
    other, half = sp.Symbol("other", real=True), sp.Rational(1, 2)
    common = {"eta": half, "eta_max": half, "beta1": half, "beta2": half, "epsilon": 0, "t": 2, "w": 1}

    def needed(**case):
        values = {sp.Symbol(name): value for name, value in {**common, **case}.items()}
        wanted = decoupled.step.subs({**values, sp.Symbol("lambda"): sp.Rational(1, 10)})
        got = coupled.step.subs(sp.Symbol("lambda"), other).subs(values)
        found = sp.solve(got - wanted, other)
        assert all(abs(sp.N((got - wanted).subs(other, x), 30)) < 1e-25 for x in found)
        return found

    one, two = needed(**{"∇L": 1, "m": 1, "v": 1}), needed(**{"∇L": 4, "m": 4, "v": 16})
    assert one
    assert two
    assert min(abs(sp.N(x - y)) for x in one for y in two) > 0.01


@pytest.mark.parametrize("direction", ["adam", "amsgrad"])
def test_proposition_2_at_a_given_second_moment(direction):
    """The λ' for which both have the same factor g is another for every v̂."""
    coupled, decoupled = derived(direction, "l2"), derived(direction, decay="independent")
    other, v_hat = sp.Symbol("other"), coupled.symbols["v_hat_t"]
    wanted = decoupled.g.subs(decoupled.symbols["eta_max"], decoupled.symbols["eta"])
    (found,) = sp.solve(coupled.g.subs(coupled.symbols["lambda"], other) - wanted, other)
    assert not same(sp.diff(found, v_hat), 0)


def preconditioned():
    """Register a direction that divides each weight's gradient by a number of its own, which stays as it is."""

    @wd.direction(source="Loshchilov & Hutter 2019, arXiv:1711.05101, proposition 3", state={"s": "scale"})
    def scaled(g, s, *, t):
        return g / s, s

    return scaled


@pytest.mark.parametrize(("below", "holds"), [(lambda alpha: 2, True), (lambda alpha: 2 * alpha, False)], ids=["proof", "text"])
def test_proposition_3(own_registry, below, holds):
    """With a fixed preconditioner 1/s decay is the gradient of f + (λ'/2)·‖θ ⊙ √s‖², λ' = λ/α; the main text prints λ'/(2α)."""
    scaled = preconditioned()
    coupled, decoupled = wd.derive(scaled, "l2"), wd.derive(scaled, decay="independent")
    alpha, lam, w, s = named(decoupled, "eta", "lambda", "w", "s")
    pull = sp.diff(lam / alpha / below(alpha) * (w * sp.sqrt(s)) ** 2, w)
    assert same(coupled.step.subs(lam, pull / w), at_peak(decoupled)) == holds


# Rules of one's own ---------------------------------------------------------------------------------------------------------


def test_a_direction_of_whole_tensors_is_shown_as_a_function(own_registry):
    @wd.direction(source="nobody", state={"m": "buffer"}, whole=True)
    def turned(g, m, *, t, mu=0.5):
        """Turn."""
        return g + mu * m, m

    d = wd.derive(turned, decay="decoupled")
    assert same(d.g, 1 - d.symbols["eta"] * d.symbols["lambda"])
    assert "turned" in str(d)
    assert d.latex
    assert d.closed_form is None
    assert d.fixed_point is None
    assert not d.whole_effect
    d.to_dict()


def own_rules():
    """Register a decay of each shape that the library's have not: after the step, towards a norm, with a number."""

    found = decays_of_ones_own()

    @wd.decay(source="nobody")
    def strong(w, u, *, eta, lam, strength=3.0):
        return w - eta * (u + lam * strength * w)

    @wd.decay(source="nobody")
    def squared(w, u, *, eta, lam):
        return w - eta * u - eta * lam * w * w * w

    return [*found, strong, squared]


@pytest.mark.parametrize("decay", ["my_soft", "my_divided", "my_by_norm", "strong", "squared"])
@pytest.mark.parametrize("direction", ["sgd", "adam"])
def test_a_decay_of_ones_own_is_split_as_it_steps(own_registry, direction, decay):
    own_rules()
    case = Case.__new__(Case)
    _derived.cache_clear()
    case.__init__(direction, None, decay, {})
    _derived.cache_clear()
    derivation = case.derivation
    assert_close(case.everywhere(derivation.step), case.after[0], tolerance=TOLERANCE, effect=1e-3)
    with mpmath.workdps(50):
        for place in range(len(case.w)):
            env = case.with_lines(place)
            split = case.evaluated(derivation.g, env) * case.w[place] - LR * case.evaluated(derivation.h, env)
            assert abs(split - case.after[0][place]) <= TOLERANCE * 4
    assert str(derivation)
    assert derivation.latex
    derivation.to_dict()


# What is printed ------------------------------------------------------------------------------------------------------------


def tex_of(derivation):
    """Return every line of TeX that a derivation shows, in the order in which it shows them."""
    blocks = latex(derivation).split("\n\n")
    rows = [row for block in blocks for row in "\n".join(block.splitlines()[2:-2]).split(" \\\\\n")]
    return [row.replace("&=", "=") for row in rows]


@functools.cache
def set_by_matplotlib(row):
    MathTextParser("path").parse(f"${row}$")


@every_shown
@pytest.mark.slow
def test_matplotlib_reads_the_tex(direction, penalty, decay, settings):
    known = [
        row for row in tex_of(derived(direction, penalty, decay, **settings)) if not re.search(r"\\(begin|textstyle)", row)
    ]
    assert len(known) >= 3  # matplotlib has neither environments nor \\textstyle
    for row in known:
        set_by_matplotlib(row)


def katex():
    """Return the renderer of the documentation's formulas, or skip."""
    path = ROOT / "docs" / "_ext" / "katex.py"
    if not path.exists():
        pytest.skip("docs/_ext/katex.py is not there")
    for module in ("py_mini_racer", "sphinx", "sphinxcontrib.katex"):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            pytest.skip(f"the renderer needs {module}: pip install 'weightdecay[docs]'")
    spec = importlib.util.spec_from_file_location("katex_of_the_documentation", path)
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    if not hasattr(module, "mathml"):
        spec.loader.exec_module(module)
    return module


@every_shown
def test_katex_reads_the_tex(direction, penalty, decay, settings):
    bridge, derivation = katex(), derived(direction, penalty, decay, **settings)
    for block in latex(derivation).split("\n\n"):
        found = bridge.mathml(block.removeprefix("\\[").removesuffix("\\]").strip(), True)
        assert found.startswith("<math")
    for line in derivation.system:
        assert bridge.mathml(derivation.notation.tex(sp.Eq(line.left, line.right, evaluate=False))).startswith("<math")


@every_shown
def test_the_tex_is_balanced_and_whole(direction, penalty, decay, settings):
    """Braces, environments and \\left…\\right close; no name of SymPy's own or of Python's is left in it."""
    text = latex(derived(direction, penalty, decay, **settings))
    assert text.count("{") == text.count("}")
    assert text.count(r"\begin") == text.count(r"\end")
    assert text.count(r"\left") == text.count(r"\right")
    assert "Piecewise" not in text
    assert "Dummy" not in text
    assert "nan" not in text
    assert "zoo" not in text


@every_shown
def test_it_prints_and_is_plain_data(direction, penalty, decay, settings):
    derivation = derived(direction, penalty, decay, **settings)
    data = json.loads(json.dumps(derivation.to_dict(), allow_nan=False))
    assert data["direction"] == direction
    assert data.get("penalty") == penalty
    assert [line["name"] for line in data["system"]][-1] == "w_t"
    names = {"lambda": "lam", "lambda_penalty": "lam_penalty", "lambda_decay": "lam_decay", "∇L": "grad"}
    renamed = derivation.g.xreplace({x: sp.Symbol(names.get(x.name, x.name)) for x in derivation.g.free_symbols})
    assert sp.sympify(data["g"]["sympy"]) == renamed
    assert data["g_is_one_number"] == derivation.is_number
    assert (data["closed_form"] is None) == (derivation.closed_form is None)
    text = printed(derivation)
    assert derivation.title.splitlines()[0] == text.splitlines()[0]
    for note in derivation.notes:
        assert " ".join(note.split()) in " ".join(text.split())


@pytest.mark.parametrize("direction", ["amsgrad"])
def test_a_maximum_is_printed_as_mathematics(direction):
    text = str(derived(direction))
    assert "Max(" not in text
    assert "v_t" not in text


def test_a_whole_number_keeps_its_sign_in_a_fraction():
    found = wd.derive("sgd", decay="decoupled", momentum=0.9)
    assert str(found).endswith("\n\n       -10⋅∇L\n  w* = ──────\n         λ")
    assert r"w_* &= - \frac{10 \nabla L}{\lambda}" in found.latex
    for momentum, shown in ((0.5, "-2⋅∇L"), (0.6, "-5⋅∇L"), (0.75, "-4⋅∇L"), (0.3, "-10⋅∇L")):
        for rules in ({"decay": "decoupled"}, {"penalty": "l2"}, {"decay": "implicit"}):
            text = str(wd.derive("sgd", momentum=momentum, **rules))
            assert shown in text or "penalty" in rules or "implicit" in rules.values()
            assert not re.search(r"(?<![\w.])1⋅|⋅─", text)


def test_two_lambdas_are_still_lambdas():
    d = derived("sgd", "l2", "cautious")
    assert "λ" in str(d.notation.plain(d.symbols["lambda_penalty"]))
    assert r"\lambda" in d.notation.tex(d.symbols["lambda_decay"])


def test_a_notebook_shows_the_same_formulas():
    derivation = derived("sgd", "l2")
    markdown = derivation._repr_markdown_()
    assert re.findall(r"\\begin\{aligned\}.*?\\end\{aligned\}", markdown, re.DOTALL) == re.findall(
        r"\\begin\{aligned\}.*?\\end\{aligned\}", derivation.latex, re.DOTALL
    )
    assert markdown.count("$$") == 2 * derivation.latex.count(r"\begin{aligned}") > 0
    assert all(note in markdown for note in derivation.notes)


def test_numbers_are_shown_as_they_were_given():
    d = wd.derive("sgd", "l2", momentum=0.9)
    assert "0.9" in d.title
    assert "0.9" in str(d)
    assert "9/10" not in str(d)
    assert "0.9" in d.latex
    assert same(d.h, sp.Rational(9, 10) * d.symbols["m"] + d.symbols["∇L"])


def test_a_settled_number_is_a_number_in_the_lines():
    d = wd.derive("sgd", "l2", dampening=0.25)
    assert not any(is_decimal(symbol) for line in (*d.system, *d.whole_effect) for symbol in line.right.free_symbols)
    assert not any(is_decimal(symbol) for symbol in d.symbols.values())


def test_what_is_given_is_settled_and_what_is_not_stays_a_symbol():
    assert derived("sgd", "l2").settings == {"dampening": 0, "nesterov": 0}
    assert "mu" not in {x.name for x in derived("sgd", "l2", momentum=0).step.free_symbols}
    d = wd.derive("adam", "l2", betas=(0, 0.99), eps=0)
    assert not {"beta1", "beta2", "epsilon"} & {x.name for x in d.step.free_symbols}
    assert d.settings == {"beta1": 0, "beta2": sp.Rational(99, 100), "eps": 0}


def test_rules_are_taken_as_functions():
    from weightdecay.update_rules.decays.decoupled import decoupled
    from weightdecay.update_rules.directions.adam import adam

    assert wd.derive(adam, decay=decoupled).g == derived("adam", decay="decoupled").g


def test_without_a_momentum_nothing_is_dampened():
    damped, plain = wd.derive("sgd", "l2", momentum=0, dampening=0.5), wd.derive("sgd", "l2", momentum=0)
    assert (damped.g, damped.h) == (plain.g, plain.h)
    assert wd.derive("sgd", "l2", momentum=0.9, dampening=0.5).g != plain.g


# What is refused ------------------------------------------------------------------------------------------------------------

REFUSED = [
    (("adm",), {}, ValueError, "did you mean 'adam'"),
    (("l2",), {}, ValueError, "'l2' is a penalty"),
    (("adam",), {"decay": "l2"}, ValueError, "'l2' is a penalty"),
    (("adam", "decoupled"), {}, ValueError, "'decoupled' is a decay"),
    ((None,), {}, TypeError, "direction=None"),
    ((lambda g: g,), {}, ValueError, "@direction"),
    (("adam",), {"momentum": 0.9}, TypeError, "takes no 'momentum'"),
    (("adam",), {"beta1": 0.9}, TypeError, "betas=(beta1, beta2"),
    (("adam", "l2"), {"lam": 0.1}, TypeError, "rules' own name"),
    (("sgd",), {"momentun": 0.9}, TypeError, "did you mean momentum"),
    (("sgd",), {"momentum": -1}, ValueError, "[0, inf)"),
    (("sgd",), {"momentum": math.inf}, ValueError, "[0, inf)"),
    (("sgd",), {"momentum": math.nan}, ValueError, "[0, inf)"),
    (("sgd",), {"momentum": "0.9"}, TypeError, "is not a number"),
    (("sgd",), {"momentum": [0.9]}, TypeError, "is not a number"),
    (("adam",), {"betas": (0.9, 1.0)}, ValueError, "[0, 1)"),
    (("sgd", "lp"), {"p": 0}, ValueError, "(0, inf)"),
    (("sgd", "norm"), {"n": 0.5}, ValueError, "[1, inf)"),
    (("sgd", "elastic_net"), {"l1_ratio": 1.5}, ValueError, "[0, 1]"),
]


@pytest.mark.parametrize(
    ("rules", "numbers", "error", "says"), REFUSED, ids=lambda value: str(value).partition(" at 0x")[0][:40]
)
def test_what_cannot_be_meant_is_refused_in_words(rules, numbers, error, says):
    with pytest.raises(error) as found:
        wd.derive(*rules, **numbers)
    assert says in str(found.value)


SLIPS = [
    pytest.param(("sgd",), {"momentum": True}, TypeError, "momentum=True"),
    pytest.param(("sgd",), {"momentum": -1}, ValueError, "momentum=-1"),
    pytest.param(("adam",), {"betas": 0.9}, ValueError, "betas=0.9", ),
    pytest.param(("adam",), {"betas": (0.9,)}, ValueError, "betas="),
    pytest.param(("adam",), {"betas": (0.9, 0.99, 0.999)}, ValueError, "betas="),
    pytest.param(("sgd",), {"nesterov": 0.5}, TypeError, "nesterov=0.5"),
    pytest.param(("sgd",), {"momentum": 0, "nesterov": True}, ValueError, "does nothing"),
    pytest.param(("sgd",), {"momentum": 0.9, "nesterov": True, "dampening": 0.5}, ValueError, "dampening=0"),
    pytest.param(("sgd",), {"momentum": sp.Rational(-1)}, ValueError, "[0, inf)"),
    pytest.param(("sgd",), {"momentum": sp.nan}, ValueError, "[0, inf)"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "numbers", "error", "says"), SLIPS)
def test_what_an_optimizer_refuses_is_refused_here(rules, numbers, error, says):
    with pytest.raises(error) as found:
        wd.derive(*rules, **numbers)
    assert says in str(found.value)


def test_a_number_may_be_an_expression():
    d = wd.derive("sgd", "l2", momentum=sp.Symbol("a"))
    assert same(d.h, sp.Symbol("a") * d.symbols["m"] + d.symbols["∇L"])
    assert "momentum = a" in str(d)


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.int64(1)], ids=lambda value: type(value).__name__)
def test_numpy_numbers_are_numbers(value):
    assert same(wd.derive("sgd", "l2", momentum=value).settings["mu"], sp.Rational(float(value)))
