"""How the quantities of a step are written: one symbol each, with its TeX and its plain text."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter, greek_letters_set, tex_greek_dictionary
from sympy.printing.pretty.pretty import PrettyPrinter
from sympy.printing.pretty.stringpict import prettyForm

from weightdecay.update_rules.reductions import REDUCTIONS

_NAMES = {
    "lam": "lambda",
    "lam_penalty": "lambda_penalty",
    "lam_decay": "lambda_decay",
    "eps": "epsilon",
    "g": "∇L",
}
_TEX = {
    "lam_penalty": r"\lambda_{\mathrm{penalty}}",
    "lam_decay": r"\lambda_{\mathrm{decay}}",
    "eps": r"\varepsilon",
    "g": r"\nabla L",
}
_RESULTS = {
    "g": (r"g(\lambda)", "g(λ)"),
    "h": ("h", "h"),
    "half_life": ("k_{1/2}", "half-life in steps"),
    "fixed_point": ("w_*", "w*"),
}
_PLAIN = {
    "lam_penalty": "λ_penalty",
    "lam_decay": "λ_decay",
}


_GREEK = greek_letters_set | set(tex_greek_dictionary)


class Notation:
    """Makes symbols for the names of rules and prints expressions of them.

    A symbol is called what people call it: eta, lambda, beta1, w, ∇L. Of what changes from step to step the bare name is
    the old value and name_t the new one.
    """

    def __init__(self) -> None:
        self.tex_names: dict[sp.Symbol, str] = {}
        self.plain_names: dict[sp.Symbol, str] = {}
        self.values: dict[sp.Symbol, sp.Rational] = {}
        """The symbols that stand for a settled number."""
        self.elements: set[sp.Symbol] = set()
        """The symbols that have a value per weight."""

    def number(self, name: str) -> sp.Symbol:
        """Return the symbol of what stands right of a rule's `*`."""
        if name in REDUCTIONS:
            return self._symbol(name, *REDUCTIONS[name].written)
        tex = _TEX.get(name) or _tex(name)
        return self._symbol(symbol_name(name), tex, _PLAIN.get(name, symbol_name(name)))

    def value(self, number: sp.Expr) -> sp.Expr:
        """Return what stands for a settled number in a formula as typed, where SymPy would work a fraction into it."""
        text = decimal(number) if isinstance(number, sp.Rational) and number > 0 else ""
        if not text:
            return number
        self.values[sp.Symbol(text)] = number
        return sp.Symbol(text)

    def gradient(self) -> sp.Symbol:
        """Return the symbol of the loss's gradient."""
        return self._element("∇L", r"\nabla L", "∇L")

    def old(self, name: str, of: str = "") -> sp.Symbol:
        """Return the symbol of a value before the step; `of` marks a part of it."""
        return self._element(name + of, _tex(name, "t-1", of), f"{_plain(name)}{of}_t-1")

    def new(self, name: str, of: str = "") -> sp.Symbol:
        """Return the symbol of a value that the step makes."""
        return self._element(f"{name}{of}_t", _tex(name, "t", of), f"{_plain(name)}{of}_t")

    def named(self, name: str) -> sp.Symbol:
        """Return the symbol of a result: g, h, the half-life."""
        symbol = sp.Symbol(f"[{name}]")
        self.tex_names[symbol], self.plain_names[symbol] = _RESULTS[name]
        return symbol

    def at(self, name: str, step: str) -> sp.Symbol:
        """Return the symbol of a value at another step than this one."""
        return self._element(f"{name}_{step}", _tex(name, step), f"{name}_{step}")

    def remembered(self, name: str) -> sp.Symbol:
        """Return the symbol of a number that a tensor keeps, before the step."""
        if name.endswith("_0"):
            return self._symbol(name, _TEX.get(name[:-2], _tex(name[:-2])).replace("w", "w_0"), name)
        return self._symbol(name, _tex(name, "t-1"), f"{name}_t-1")

    def moved(self, name: str) -> sp.Symbol:
        """Return the symbol of a number that a tensor keeps, after the step."""
        return self._symbol(f"{name}_t", _tex(name, "t"), f"{name}_t")

    def fresh(self, name: str) -> sp.Symbol:
        """Return a symbol of this name, or one like it that no rule uses."""
        while sp.Symbol(name) in self.tex_names:
            name += "'"
        return self._symbol(name, name, name)

    def local(self, name: str) -> sp.Symbol:
        """Return the symbol of a name that a rule uses for itself."""
        return self._element(name, _tex(name), name)

    def total(self, term: sp.Expr) -> sp.Symbol:
        """Return the symbol of a sum over a whole tensor."""
        plain = re.sub(r"Abs\((\w+)\)", r"|\1|", str(term)).replace("**", "^")
        return self._symbol(f"sum({term})", rf"\textstyle\sum {self.tex(term)}", f"Σ {plain}")

    def mean(self, elements: Iterable[str]) -> sp.Symbol:
        """Return the symbol of a mean over all tensors of what a step makes."""
        made = [self.new(element) for element in elements]
        tex, plain = (" ".join(names[each] for each in made) for names in (self.tex_names, self.plain_names))
        return self._symbol(f"mean({plain})", rf"\mathrm{{mean}}\,{tex}", f"mean({plain})")

    def _element(self, name: str, tex: str, plain: str) -> sp.Symbol:
        symbol = self._symbol(name, tex, plain)
        self.elements.add(symbol)
        return symbol

    def _symbol(self, name: str, tex: str, plain: str) -> sp.Symbol:
        symbol = sp.Symbol(name)
        self.tex_names[symbol] = tex
        self.plain_names[symbol] = plain
        return symbol

    def arranged(self, x: sp.Expr) -> sp.Expr:
        """Return an expression in the order in which people write it: numbers, then λ and its like, then the weight's own."""
        if isinstance(x, sp.Rational):
            return sp.Mul(-1, self.value(-x), evaluate=False) if x < 0 and decimal(x) else self.value(x)
        if not x.args or isinstance(x, sp.logic.boolalg.Boolean):
            return x
        args = [self.arranged(each) for each in x.args]
        if isinstance(x, sp.Mul):
            if (
                x.args[0].is_Rational and x.args[0] < 0 and decimal(x.args[0])
            ):  # what stands for it is a symbol, which has no sign
                args = [sp.Integer(-1), self.arranged(-x.args[0]), *args[1:]]
            args = [part for each in args for part in _fraction(each)]
            return sp.Mul(*sorted(args, key=self._place), evaluate=False)
        if isinstance(x, sp.Add):
            first = [each for each in args if each.is_Number]
            rest = sorted((each for each in args if not each.is_Number), key=lambda each: self._place(each) != 3)
            plus_first = sorted(first + rest if first and first[0] > 0 else rest + first, key=_is_negative)
            return sp.Add(*plus_first, evaluate=False)
        if isinstance(x, sp.Pow):
            return sp.Pow(*args, evaluate=False)
        return x.func(*args, evaluate=False) if isinstance(x, sp.Piecewise) else x.func(*args)

    def _place(self, factor: sp.Expr) -> int:
        if factor.is_Number or factor in self.values:
            return 0
        if factor.free_symbols & self.elements:
            return 3
        return 1 if factor.is_Symbol else 2

    def tex(self, expression: Any) -> str:
        """Return an expression as TeX, its terms in the order in which it holds them."""
        return str(_Tex({"order": "none", "symbol_names": self.tex_names, "ln_notation": True}).doprint(expression))

    def plain(self, expression: Any) -> str:
        """Return an expression in two dimensions for a terminal."""
        return str(_Plain(self.plain_names).doprint(expression)).rstrip()


def symbol_name(name: str) -> str:
    """Return what the symbol of a rule's number is called.

    >>> symbol_name("lam"), symbol_name("beta1")
    ('lambda', 'beta1')
    """
    return _NAMES.get(name, name)


@cache
def readable(name: str) -> str:
    """Return a name that SymPy reads as a symbol: of E it makes a number, of floor a function, of print Python's own.

    >>> readable("beta1"), readable("floor"), readable("E")
    ('beta1', 'floor_', 'E_')
    """
    try:
        if sp.sympify(name) == sp.Symbol(name):
            return name
    except (sp.SympifyError, TypeError, AttributeError):
        pass
    return str(readable(f"{name}_"))


def unknown_function(name: str) -> Any:
    """Return a function of which nothing but its name is known, whatever SymPy calls so."""
    known = any(hasattr(printer, f"_print_{name}") for printer in (LatexPrinter, PrettyPrinter))
    return sp.Function(f"{name}_" if known else readable(name))


class _Tex(LatexPrinter):  # type: ignore[misc]
    def _print_Rational(self, e: sp.Rational) -> str:  # noqa: N802
        return decimal(e) or str(super()._print_Rational(e))


class _Plain(PrettyPrinter):  # type: ignore[misc]
    def __init__(self, names: Mapping[sp.Symbol, str]) -> None:
        super().__init__({"order": "none", "use_unicode": True, "wrap_line": False})
        self._names = names

    def _print_Symbol(self, e: sp.Symbol, bold_name: bool = False) -> prettyForm:  # noqa: N802
        name = self._names.get(e, e.name)
        if not name[0].isalpha():
            return prettyForm(name)
        if "_" in re.sub(r"(_max)?(_t(-1)?)?$", "", name):  # SymPy would lower what stands behind the line
            return prettyForm(name)
        return super()._print_Symbol(sp.Symbol(name), bold_name)

    def _print_Max(self, e: sp.Max) -> prettyForm:  # noqa: N802
        return self._helper_print_function(e.func, e.args, func_name="max")

    def _print_Min(self, e: sp.Min) -> prettyForm:  # noqa: N802
        return self._helper_print_function(e.func, e.args, func_name="min")

    def _print_Rational(self, e: sp.Rational) -> prettyForm:  # noqa: N802
        text = decimal(e)
        return prettyForm(text) if text else super()._print_Rational(e)


def decimal(number: sp.Rational) -> str:
    """Return a number that is no multiple of a half as a decimal if it is a short one, else nothing.

    >>> decimal(sp.Rational(9, 10)), decimal(sp.Rational(1, 3))
    ('0.9', '')
    """
    text = repr(float(number))
    return text if number.q > 2 and sp.Rational(text) == number else ""


def _fraction(x: sp.Expr) -> list[sp.Expr]:
    """Return a fraction as its numerator and what it is divided by, which SymPy prints below a line."""
    if not isinstance(x, sp.Rational) or isinstance(x, sp.Integer):
        return [x]
    below = sp.Pow(sp.Integer(x.q), -1, evaluate=False)
    return [below] if x.p == 1 else [sp.Integer(x.p), below]


def _is_negative(term: sp.Expr) -> bool:
    return bool(term.is_Number and term < 0) or (isinstance(term, sp.Mul) and bool(term.args[0].is_negative))


def _tex(name: str, when: str = "", of: str = "") -> str:
    """Return a name as TeX: hats over their letter, words upright, all else in the subscript."""
    stem, _, suffix = name.partition("_")
    match = re.fullmatch(r"([a-z]+)(\d+)", stem)
    stem, digits = match.groups() if match else (stem, "")
    called = {"lam": "lambda", "eps": "varepsilon"}.get(stem, stem)
    if called in _GREEK:
        shown = str(tex_greek_dictionary.get(called, rf"\{called}"))
    else:
        shown = stem if len(stem) == 1 else rf"\mathrm{{{stem}}}"
    if suffix == "hat":
        shown, suffix = rf"\hat{{{shown}}}", ""
    elif suffix not in ("", "max"):
        shown, digits, suffix = rf"\mathrm{{{name}}}".replace("_", r"\_"), "", ""
    power = {"λ": r"^{\lambda}", "∇": r"^{\nabla}", "": ""}[of]
    below = ",".join(filter(None, [digits, suffix and r"\max", when]))
    return str(shown) + (f"_{{{below}}}" if below else "") + power


def _plain(name: str) -> str:
    return re.sub(r"_hat$", "hat", name)
