"""Any name that Python allows serves a rule: as a hyper-parameter, a moment, a number kept per tensor or a name of its own.

What it means elsewhere, to SymPy, LLVM, Triton, TeX or the optimizer, changes no result. The few names that cannot serve are
refused where the rule is written.
"""

import ast
from itertools import pairwise

import pytest
import sympy as sp
import torch
from runs import assert_close
from test_gpu_source import signature
from test_lint import define  # noqa: F401

import weightdecay as wd
from weightdecay.backends.gpu.codegen import source

SYMPY = """
    floor ceiling E I S N O Q C re im arg beta gamma zeta lambda_ Lambda pi oo zoo nan inf GoldenRatio Abs sin cos var
    symbols Symbol Function alpha delta nu rho tau sigma theta epsilon eps psi chi omega kappa Max Min Mul Add Pow
    Piecewise Integer Rational Eq Ne And Or Not ITE Dummy Derivative Integral Limit Sum Product factor expand simplify
    Poly solve test doctest ff rf binomial factorial Chi Ci Si Ei LambertW erf hyper polylog li frac sec cot tan bell
    euler catalan half_life fixed_point
"""
KERNELS = """
    tl triton pid program block mask offset ptr load store int float long double f32 f64 i32 bool fadd ret entry label
    kernel numbers state grad gradient weight param key bits first count size group part parts partials left skip
    unscale tensors tensor lane base whole begin end elements blocks row index BLOCK inside table of_tensor moment0
    total0 memory next compensation factor unit result value values args kwargs name names out start stop dtype device
    shape
"""
PYTHON = """
    max min sum pow abs len range print list dict tuple set type id cls math torch np numpy object open exit eval exec
    compile super _ __ _x __x x_ x__y _0 x1 xX aB T k i j n p q r s x y z a b c d f l o h v m A z_1 z_2 w0 u_ g_ h_ t_
    tt t1 λ μ ε η β1 γ_x é 名
"""
NOTATION = """
    eta_ lam_ lam0 lambda1 lam_penalty lam_decay lambda_penalty eps0 E1 I1 alpha1 alpha_1 beta_1 beta10 x_1_2 hat x_hat
    m_hat v_hat hathat bar vec dot ddot tilde prime norm subnorm max_ x_max that beatdot x_t m_t v_t w_t u_t g_t t_1
    w_new dL L nabla phi Gamma varepsilon hbar ell aleph scr mathbf bold step step_size norm_1 mean_v sum_w g_decay
    m_decay local_ grad_
"""
NAMES = list(dict.fromkeys(f"{SYMPY} {KERNELS} {PYTHON} {NOTATION}".split()))
TOGETHER = 24
CHUNKS = [NAMES[start : start + TOGETHER] for start in range(0, len(NAMES), TOGETHER)]
GRADIENTS = [1.0, 0.5, -2.0]


def decay_of(numbers, made, memory):
    """Return a decay with these hyper-parameters, each of another weight, names of its own, and this number per tensor."""
    takes = ", ".join(f"{name}={1 + place}" for place, name in enumerate(numbers))
    total = " + ".join(f"{name} * {(2 + place) / 512}" for place, name in enumerate(numbers))
    lines = "\n".join(f"    {name} = {before} * 0.75" for before, name in pairwise(made))
    return f'''
@decay(source="a test", memory={{"{memory}": ("kept", 0.25)}})
def odd(w, u, *, eta, lam, {memory}, {takes}):
    """Shrink by all of them."""
    {made[0]} = lam + {total}
{lines}
    {memory} = {memory} + lam * 0.5
    return (1 - eta * {made[-1]} * {memory}) * w - eta * u, {memory}
'''


def direction_of(states, made):
    """Return a direction with these moments, each moved otherwise, and a name of its own."""
    moved = "\n".join(f"    {name} = {name} * {(1 + place) / 16} + g" for place, name in enumerate(states))
    keys = ", ".join(f'"{name}": "key{place}"' for place, name in enumerate(states))
    return f'''
@direction(source="a test", state={{{keys}}})
def strange(g, {", ".join(states)}, *, t):
    """Add up."""
{moved}
    {made} = {" + ".join(states)}
    return {made}, {", ".join(states)}
'''


def stepped(backend, **rules):
    param = torch.nn.Parameter(torch.tensor([[2.0, -3.0, 0.5]], dtype=torch.float64))
    optimizer = wd.Optimizer([param], 0.1, weight_decay=0.5, backend=backend, **rules)
    for t in range(3):
        param.grad = torch.tensor([GRADIENTS], dtype=torch.float64) / (t + 1)
        optimizer.step()
    return param.detach()


def on_floats(rule, memory, numbers):
    """Return what sgd without momentum and the decay do to the weights in three steps."""
    weights, kept = [2.0, -3.0, 0.5], 0.25
    for t in range(3):
        rows = zip(weights, GRADIENTS, strict=True)
        results = [rule(w, g / (t + 1), eta=0.1, lam=0.5, **{memory: kept}, **numbers) for w, g in rows]
        weights, kept = [w for w, _ in results], results[0][1]
    return torch.tensor([weights], dtype=torch.float64)


def parsed(**rules):
    """Have Python read what Triton would."""
    optimizer = wd.Optimizer([torch.nn.Parameter(torch.ones(2, 2))], 0.1, weight_decay=0.5, backend="eager", **rules)
    for text in source(signature(optimizer)).passes:
        ast.parse(text)


def same(x, read, values, texts):
    """Tell whether an expression, and the text of it as SymPy reads it, have one value."""
    named = {texts[symbol]: value for symbol, value in values.items() if symbol in texts}
    return float(read.subs(named)) == pytest.approx(float(x.subs(values)), rel=1e-9)


@pytest.mark.parametrize("place", range(len(CHUNKS)), ids=lambda place: CHUNKS[place][0])
def test_any_name_serves_in_every_backend(define, place):  # noqa: F811
    """The names of a chunk as hyper-parameters; those of another as names of the rule's own and as a number kept."""
    numbers, others = CHUNKS[place], CHUNKS[place - 1]
    memory, odd = others[3], define(decay_of(numbers, others[:3], others[3])).odd
    given = {name: 2.0 + place for place, name in enumerate(numbers)}
    expected = on_floats(odd, memory, given)
    effect = (expected - on_floats(odd, memory, dict.fromkeys(given, 0.0))).abs().max()
    for backend in ("eager", "cpu"):
        assert_close(stepped(backend, direction="sgd", decay=odd, **given), expected, tolerance=1e-12, effect=effect)
    parsed(direction="sgd", decay=odd)
    found = wd.derive("sgd", None, odd, momentum=0)
    system = found._system
    known = system.numbers["decay"]
    values = {system.w: 2.0, system.gradient: 1.0, known["eta"]: 0.1, known["lam"]: 0.5, system.memory[memory]: 0.25}
    values |= {known[name]: given[name] for name in numbers}
    assert len(values) == 5 + len(numbers)  # no symbol stands for two things
    after, moved = odd(2.0, 1.0, eta=0.1, lam=0.5, **{memory: 0.25}, **given)
    values[system.notation.moved(memory)] = moved
    assert float(found.step.subs(values)) == pytest.approx(after, rel=1e-9)
    shown = found.to_dict()
    assert same(found.g, sp.sympify(shown["g"]["sympy"]), values, found.texts)
    for line, text in zip(found.system, shown["system"], strict=True):
        assert sp.sympify(text["name"]) == found.texts[line.left]
        assert same(line.right, sp.sympify(text["sympy"]), values, found.texts)
        values[line.left] = line.right.subs(values)
    assert str(found)
    assert found.latex.count("{") == found.latex.count("}")


@pytest.mark.parametrize("place", range(0, len(CHUNKS), 2), ids=lambda place: CHUNKS[place][0])
def test_any_name_serves_as_a_moment(define, place):  # noqa: F811
    states, made = CHUNKS[place], CHUNKS[place - 1][0]
    strange = define(direction_of(states, made)).strange
    eager, cpu = (stepped(backend, direction=strange, decay="decoupled") for backend in ("eager", "cpu"))
    without = stepped("eager", direction="sgd", decay="decoupled")
    assert_close(cpu, eager, tolerance=1e-12, effect=(eager - without).abs().max())
    parsed(direction=strange, decay="decoupled")
    found = wd.derive(strange, "l2")
    assert set(found.state) == set(states)
    for name, after in found.state.items():
        assert found._system.moments[name] in after.free_symbols
    assert str(found)
    for text in found.to_dict()["system"]:
        sp.sympify(text["sympy"])


def test_a_name_that_two_rules_use_means_two_things(define):  # noqa: F811
    """m is what sgd remembers, eps is Adam's ε, and `epsilon` and `m` are numbers of the decay."""
    rule = define('''
        @decay(source="a test")
        def odd(w, u, *, eta, lam, m=2.0, epsilon=3.0, g=5.0):
            """Shrink."""
            m_hat = m * epsilon * g
            return (1 - eta * lam * m_hat) * w - eta * u
    ''').odd
    found = wd.derive("adam", None, rule)
    assert str(found.g) == "-epsilon_decay*eta*g_decay*lambda*m_decay + 1"
    assert {"m", "epsilon", "m_decay"} <= found.symbols.keys()
    assert found.to_dict()["g"]["sympy"] == "-epsilon_decay*eta*g_decay*lam*m_decay + 1"
    set_ = wd.derive("adam", None, rule, m=0.5, epsilon=0.25, g=1)
    assert str(set_.g) == "-eta*lambda/8 + 1"


@pytest.mark.parametrize(("kept", "key"), [("m", "mine"), ("mine", "exp_avg")], ids=["name", "key"])
def test_what_two_rules_would_keep_in_one_place_is_refused(define, kept, key):  # noqa: F811
    rule = define(f"""
        @decay(source="a test", memory={{"{kept}": ("{key}", 0.25)}})
        def odd(w, u, *, eta, lam, {kept}):
            return (1 - eta * lam * {kept}) * w - eta * u, {kept}
    """).odd
    param = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"direction adam and the decay odd both keep something .* cannot be used together"):
        wd.Optimizer([param], 0.1, direction="adam", decay=rule, weight_decay=0.1)
    wd.Optimizer([param], 0.1, direction="adagrad", decay=rule, weight_decay=0.1)


REFUSED = {
    "seed": "means something else in a parameter group",
    "weight_decay_schedule": "means something else in a parameter group",
    "base_lr": "means something else in a parameter group",
    "sqrt": "is the name of a word",
    "where": "is the name of a word",
    "nesterov": "is a flag",
    "beta2": "beta1",
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_few_names_that_cannot_serve_are_refused_where_the_rule_is_written(define, name):  # noqa: F811
    with pytest.raises(wd.RuleError, match=REFUSED[name]):
        define(f"""
            @decay(source="a test")
            def odd(w, u, *, eta, lam, {name}=0.5):
                return (1 - eta * lam) * w - eta * u
        """)


@pytest.mark.parametrize("name", ["w", "g", "u"])
def test_what_a_step_is_made_of_is_no_moment(define, name):  # noqa: F811
    with pytest.raises((wd.RuleError, SyntaxError), match=f"{name}|duplicate"):
        define(f"""
            @direction(source="a test", state={{"{name}": "key"}})
            def odd(g, {name}, *, t):
                return g, {name}
        """)
