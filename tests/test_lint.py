"""What is not plain math is refused where it is written, with the rule, the line, the construct and what to write instead."""

import importlib
import re
import sys
import textwrap

import pytest
import torch

import weightdecay as wd
from weightdecay.validation import Interval

HEADER = """
from weightdecay import decay, direction, penalty
from weightdecay.update_rules.ops import absolute, sign, sqrt, where

SCALE = 2.0
"""


@pytest.fixture
def define(tmp_path, monkeypatch, own_registry):
    """Return a function that imports rules from a file of their own, as a contributor's."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def define(code, header=HEADER):
        written.append(f"written_rules_{len(written)}")
        (tmp_path / f"{written[-1]}.py").write_text(header + textwrap.dedent(code), encoding="utf-8")
        return importlib.import_module(written[-1])

    yield define
    for name in written:
        sys.modules.pop(name, None)


def refusal(define, code):
    """Return what is said when a rule is refused, and where."""
    with pytest.raises(wd.RuleError) as caught:
        define(code)
    return str(caught.value)


def test_plain_math_is_a_rule(define):
    module = define('''
        @decay(source="a paper", domain={"p": "(0, inf)"})
        def plain(w, u, *, eta, lam, norm_w, p=1.5):
            """Docstrings, comments and annotations may say what they like: if, for, a.b[0] ** 2."""
            size, direction = absolute(w), sign(w)  # two at once
            agrees = w * u >= 0
            x = -size + +p / 2
            return where(agrees, (1 - eta * lam * x) * w, w) - eta * u * direction * norm_w
    ''')
    found = wd.rules()["decay", "plain"]
    assert module.plain.rule is found
    assert found.numbers == ("eta", "lam", "norm_w", "p")
    assert found.defaults == {"p": 1.5}
    assert found.reductions == ("norm_w",)
    assert isinstance(module.plain(1.0, 0.5, eta=0.1, lam=0.1, norm_w=1.0), float)


FORBIDDEN = {
    # a line: (what the message calls it, a regular expression; what it says to write)
    "if w > 0: w = -w": ("if", "where"),
    "w = w if w > 0 else -w": ("if", "where"),
    "for i in (1, 2): w = w / 2": ("for", "straight-line"),
    "while w > 1: w = w / 2": ("while", "straight-line"),
    "w = where(w > 0 and u > 0, w, u)": ("and", "where"),
    "w = where(w > 0 or u > 0, w, u)": ("or", "where"),
    "w = where(not w > 0, w, u)": ("not", "words"),
    "w = w ** 2": (r"\*\*", "power"),
    "w = w // 2": ("//", "words"),
    "w = w % 2": ("%", "words"),
    "w = w @ u": ("@", "words"),
    "w = where(w is u, w, u)": ("is", "words"),
    "w = w.real": (r"attribute|w\.real", "arguments and the words"),
    "w = w.abs()": (r"attribute|w\.abs", "words"),
    "w = w[0]": (r"subscript|w\[0\]", "one element"),
    "f = lambda x: x": ("lambda", "straight-line"),
    "w += u": (r"\+=", "x = x + …"),
    "w = w * SCALE": ("'SCALE'", "argument"),
    "w = abs(w)": ("abs", "absolute"),
    "w = max(w, u)": ("max", "maximum"),
    "w = normalise(w)": ("normalise", "words are"),
    "w = exp(w)": ("'exp'", "from weightdecay.update_rules.ops import exp"),
    "w = where(0 < w < 1, w, u)": ("chain", "two values"),
    "w = w * (w > u)": ("comparison as a number", "where"),
    "w = where((w > 0) > (u > 0), w, u)": ("comparison as a number", "where"),
    "up = w > u; w = up * w": ("comparison 'up' as a number", "where"),
    "return w": ("early return", "where"),
    "w = 'text'": ("'text'", "numbers only"),
    "w = None": ("None", "numbers only"),
    "w = 1j * w": ("1j", "numbers only"),
    "w = where(condition=w > 0, x=w, y=u)": ("keyword", "by position"),
    "w = where(*(w > 0, w, u))": ("starred", "every argument"),
    "w = [w, u]": (r"list|\[w, u\]", "words"),
    "w = (y := w)": ("namedexpr|:=", "words"),
    "w = sum(x for x in (w, u))": ("sum", "words"),
    "assert w > 0": ("assert", "words"),
    "import math": ("import", "words"),
    "global w0": ("global", "words"),
    "def inner(x): return x": ("functiondef|def", "words"),
    "print(w)": ("expr|print", "words"),
}


@pytest.mark.parametrize("line", FORBIDDEN)
def test_a_forbidden_construct_is_named_with_its_line(define, line):
    what, instead = FORBIDDEN[line]
    message = refusal(
        define,
        f'''
        @decay(source="a paper")
        def bent(
            w, u, *, eta, lam
        ):
            """Two lines of signature and two

            of docstring come first."""
            x = w
            {line}
            return w - eta * u
        ''',
    )
    assert "decay bent" in message
    assert f"{number_of(line, message)}: " in message
    refused, _, advice = message.rpartition(".py:")[2].partition(" is not allowed; ")
    assert re.search(what, refused)
    assert instead in advice


def number_of(line, message):
    """Return file:line as an editor shows it, from the file itself."""
    path = message.partition(", ")[2].partition(".py:")[0] + ".py"
    with open(path, encoding="utf-8") as file:
        return f"{path}:{next(n for n, text in enumerate(file, start=1) if text.strip() == line)}"


@pytest.mark.parametrize("body", ["pass", "return", "w = w - eta * u", '"""Say what it does."""'])
def test_a_rule_ends_with_its_value(define, body):
    message = refusal(
        define,
        f"""
        @decay(source="a paper")
        def endless(w, u, *, eta):
            {body}
        """,
    )
    assert "decay endless" in message
    assert "return" in message


REFUSED = {
    "another word of the same name": (
        """
        from math import sqrt
        @penalty(source="a paper")
        def bent(w, *, lam):
            return lam * sqrt(w)
        """,
        ("sqrt", "from weightdecay.update_rules.ops import sqrt"),
    ),
    "a word's name for an argument": (
        """
        @penalty(source="a paper")
        def bent(w, *, lam, sign=1.0):
            return lam * sign(w)
        """,
        ("sign",),
    ),
    "a word that is not called": (
        """
        @penalty(source="a paper")
        def bent(w, *, lam):
            return sqrt
        """,
        ("sqrt",),
    ),
    "a value before it has one": (
        """
        @penalty(source="a paper")
        def bent(w, *, lam):
            x = y
            y = w
            return lam * x
        """,
        ("y",),
    ),
    "a word with too many arguments": (
        """
        @penalty(source="a paper")
        def bent(w, *, lam):
            return lam * sqrt(w, w)
        """,
        ("sqrt",),
    ),
    "an empty source": (
        """
        @penalty(source=" ")
        def bent(w, *, lam):
            return lam * w
        """,
        ("source", "paper"),
    ),
    "no source": (
        """
        @penalty()
        def bent(w, *, lam):
            return lam * w
        """,
        ("source", "paper"),
    ),
    "a penalty that takes the step": (
        """
        @penalty(source="a paper")
        def bent(w, u, *, lam):
            return lam * w
        """,
        ("(w, u, *, …)", "(w, *, …)"),
    ),
    "a direction that takes the weight": (
        """
        @direction(source="a paper")
        def bent(w, *, t):
            return w
        """,
        ("(w, *, …)", "(g, *, …)"),
    ),
    "a decay without the step": (
        """
        @decay(source="a paper")
        def bent(w, *, eta):
            return w
        """,
        ("(w, *, …)", "(w, u, *, …)"),
    ),
    "a decay whose arguments are swapped": (
        """
        @decay(source="a paper")
        def bent(u, w, *, eta):
            return w - eta * u
        """,
        ("(u, w, *, …)", "(w, u, *, …)"),
    ),
    "a direction without the state that it declares": (
        """
        @direction(source="a paper", state={"m": "exp_avg"})
        def bent(g, *, t):
            return g, g
        """,
        ("(g, *, …)", "(g, m, *, …)"),
    ),
    "a moment under the optimizer's own key": (
        """
        @direction(source="a paper", state={"m": "step"})
        def bent(g, m, *, t):
            return g, g
        """,
        ("'step'",),
    ),
    "numbers left of the star": (
        """
        @decay(source="a paper")
        def bent(w, u, eta):
            return w - eta * u
        """,
        ("(w, u, eta, *, …)", "(w, u, *, …)"),
    ),
    "an element with a default": (
        """
        @decay(source="a paper")
        def bent(w, u=0.0, *, eta):
            return w - eta * u
        """,
        ("u", "default"),
    ),
    "args": (
        """
        @decay(source="a paper")
        def bent(w, u, *args, eta):
            return w - eta * u
        """,
        ("*args",),
    ),
    "kwargs": (
        """
        @decay(source="a paper")
        def bent(w, u, *, eta, **more):
            return w - eta * u
        """,
        ("**kwargs",),
    ),
    "a number without a default": (
        """
        @decay(source="a paper")
        def bent(w, u, *, eta, strength):
            return w - eta * u
        """,
        ("strength", "needs a default", "eta"),
    ),
    "a default for what the optimizer gives": (
        """
        @decay(source="a paper")
        def bent(w, u, *, eta=0.1, lam):
            return w - eta * u
        """,
        ("eta", "no default"),
    ),
    "a number with a name that users give to something else": (
        """
        @decay(source="a paper")
        def bent(w, u, *, eta, seed=3.0):
            return w - eta * u * seed
        """,
        ("seed",),
    ),
    "a number with the users' name of another": (
        """
        @decay(source="a paper")
        def bent(w, u, *, eta, momentum=0.5):
            return w - eta * u * momentum
        """,
        ("momentum",),
    ),
    "a default for a reduction": (
        """
        @decay(source="a paper")
        def bent(w, u, *, eta, norm_w=1.0):
            return w - eta * u
        """,
        ("norm_w", "no default"),
    ),
    "a default that is no number": (
        """
        @decay(source="a paper")
        def bent(w, u, *, eta, p="2"):
            return w - eta * u
        """,
        ("p='2'", "number"),
    ),
    "a default that is not finite": (
        """
        @decay(source="a paper")
        def bent(w, u, *, eta, p=float("nan")):
            return w - eta * u
        """,
        ("p=nan", "finite"),
    ),
    "a domain of nothing": (
        """
        @decay(source="a paper", domain={"q": "[0, 1]"})
        def bent(w, u, *, eta, p=0.5):
            return w - eta * u * p
        """,
        ("q", "p"),
    ),
    "a default outside its domain": (
        """
        @decay(source="a paper", domain={"p": "[0, 1)"})
        def bent(w, u, *, eta, p=1.0):
            return w - eta * u * p
        """,
        ("p", "1.0", "[0, 1)"),
    ),
    "more state than is returned": (
        """
        @direction(source="a paper", state={"m": "exp_avg", "v": "exp_avg_sq"})
        def bent(g, m, v, *, t):
            return g, m
        """,
        ("2", "3", "u, m, v"),
    ),
    "more returned than there is state": (
        """
        @direction(source="a paper")
        def bent(g, *, t):
            return g, g
        """,
        ("2", "1", "u"),
    ),
    "a decay that returns two": (
        """
        @decay(source="a paper")
        def bent(w, u, *, eta):
            return w - eta * u, w
        """,
        ("2", "1", "one value"),
    ),
    "a penalty that returns a tuple of one": (
        """
        @penalty(source="a paper")
        def bent(w, *, lam):
            return (lam * w,)
        """,
        ("one value",),
    ),
    "a coroutine": (
        """
        @penalty(source="a paper")
        async def bent(w, *, lam):
            return lam * w
        """,
        ("def",),
    ),
    "a class": (
        """
        @penalty(source="a paper")
        class bent:
            lam = 1
        """,
        ("def",),
    ),
    "a lambda": (
        """
        bent = penalty(source="a paper")(lambda w, *, lam: lam * w)
        """,
        ("def",),
    ),
    "shapes of single elements": (
        """
        @direction(source="a paper", state={"m": "m"}, shapes={"m": lambda shape: shape})
        def bent(g, m, *, t):
            return g, m
        """,
        ("whole=True", "shapes"),
    ),
    "dimensions of single elements": (
        """
        @direction(source="a paper", ndim=2)
        def bent(g, *, t):
            return g
        """,
        ("whole=True", "ndim"),
    ),
    "a word where none is listed": (
        """
        @direction(source="a paper", whole=True)
        def bent(g, *, t, how="up"):
            return g
        """,
        ("how='up'", "not a finite number"),
    ),
    "a default that is not among the words": (
        """
        @direction(source="a paper", whole=True, domain={"how": ("up", "down")})
        def bent(g, *, t, how="sideways"):
            return g
        """,
        ("how='sideways'", "{up, down}"),
    ),
    "a number of u before there is a u": (
        """
        @penalty(source="a paper")
        def bent(w, *, lam, norm_u):
            return lam * norm_u * w
        """,
        ("norm_u", "decay"),
    ),
    "a number of the gradient that is there whole": (
        """
        @direction(source="a paper", whole=True)
        def bent(g, *, t, norm_w, dot_gd):
            return g
        """,
        ("dot_gd", "itself"),
    ),
    "no source text": (
        """
        exec('@penalty(source="a paper")\\ndef bent(w, *, lam):\\n    return lam * w')
        """,
        ("source text", "file"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_backend_could_not_fill_is_refused(define, case):
    code, expected = REFUSED[case]
    message = refusal(define, code)
    assert ("bent" in message) or ("<lambda>" in message)
    assert [part for part in expected if part not in message] == [], message


@pytest.mark.parametrize("text", ["0, 1", "[0; 1]", "[0, 1, 2]", "{0, 1}", "[a, b]", "[1, 0]", "[nan, 1]", "", (0, 1)])
def test_a_domain_is_an_interval(define, text):
    message = refusal(
        define,
        f"""
        @decay(source="a paper", domain={{"p": {text!r}}})
        def bent(w, u, *, eta, p=0.5):
            return w - eta * u * p
        """,
    )
    assert "decay bent" in message
    assert repr(text) in message
    assert '"[0, 1)"' in message


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5, 0.999], [-1e-9, 1, 2]),
        ("(0, 1]", [1e-9, 1], [0, 1.001]),
        ("(0, inf)", [1e-300, 1e300], [0, float("inf")]),
        ("(-inf, inf)", [-1e300, 1e300], [float("nan")]),
        ("[2, 2]", [2], [1.9, 2.1]),
    ],
)
def test_an_interval_holds_what_mathematics_says(text, inside, outside):
    interval = Interval(text)
    assert all(x in interval for x in inside)
    assert not any(x in interval for x in outside)
    assert str(interval) == text


def test_a_name_is_taken_once(define):
    """By another file; the same file may be read again, as a notebook or a reload does."""
    code = '''
        @decay(source="a paper")
        def twice(w, u, *, eta):
            """{}"""
            return w - eta * u
    '''
    first = define(code.format("The first."))
    message = refusal(define, code.format("The second."))
    assert "'twice'" in message
    assert first.__name__ in message
    assert wd.rules()["decay", "twice"].summary == "The first."
    importlib.reload(first)
    assert wd.rules()["decay", "twice"] is first.twice.rule
    define(
        code.format("A penalty of that name.")
        .replace("decay", "penalty")
        .replace("u, *, eta", "*, lam")
        .replace("eta * u", "lam")
    )
    assert {kind for kind, name in wd.rules() if name == "twice"} == {"decay", "penalty"}


def test_a_refused_rule_is_not_registered(define):
    before = list(wd.rules())
    refusal(define, REFUSED["a decay that returns two"][0])
    assert list(wd.rules()) == before


def test_a_notebook_may_run_a_cell_again(define):
    """Each run of a cell has a file name of its own, and one module: __main__."""
    code = """
        @decay(source="a paper")
        def rerun(w, u, *, eta):
            return w - eta * u
    """
    first = define(code)
    first.rerun.__module__ = "__main__"
    again = """
        def rerun(w, u, *, eta):
            return w - eta * u

        rerun.__module__ = "__main__"
        rerun = decay(source="a paper")(rerun)
    """
    assert define(again).rerun.rule is wd.rules()["decay", "rerun"]


def test_rules_that_mean_different_things_by_one_name_are_not_combined(define):
    define(
        """
        @decay(source="a paper", domain={"p": "(0, 1]"})
        def sharing(w, u, *, eta, lam, p=0.5):
            return (1 - eta * lam * p) * w - eta * u
        """
    )
    with pytest.raises(ValueError, match=r"lp.*sharing.*number called p"):
        wd.Optimizer([torch.nn.Parameter(torch.zeros(2))], 0.1, direction="sgd", penalty="lp", decay="sharing")
