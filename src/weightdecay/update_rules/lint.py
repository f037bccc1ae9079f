"""Keeps a rule plain math: refuses, at import and by line, whatever some backend could not read."""

import ast
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import NoReturn

from weightdecay.update_rules import ops


class RuleError(TypeError):
    """Say what a rule may not hold or look like, and what to write instead."""


_STRAIGHT = "a rule is straight-line math"
_PLAIN = "a rule is assignments, the operators + - * /, comparisons and the words"
_OPERATORS: tuple[type[ast.AST], ...] = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub, ast.UAdd, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq,
)  # fmt: skip
_STATEMENTS = (ast.Assign, ast.Return)
_EXPRESSIONS = (ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Constant, ast.Name, ast.Tuple)
_REFUSED: dict[type[ast.AST], tuple[str, str]] = {
    ast.If: ("if", "write where(condition, x, y)"),
    ast.IfExp: ("if … else", "write where(condition, x, y)"),
    ast.For: ("for", _STRAIGHT),
    ast.While: ("while", _STRAIGHT),
    ast.Lambda: ("lambda", _STRAIGHT),
    ast.And: ("and", "nest one where(…) in another"),
    ast.Or: ("or", "nest one where(…) in another"),
    ast.Not: ("not", f"turn the comparison round; {_PLAIN}"),
    ast.Is: ("is", _PLAIN),
    ast.IsNot: ("is not", _PLAIN),
    ast.Pass: ("pass", "end with return"),
    ast.Pow: ("**", "write power(x, exponent)"),
    ast.FloorDiv: ("//", _PLAIN),
    ast.Mod: ("%", _PLAIN),
    ast.MatMult: ("@", _PLAIN),
    ast.AugAssign: ("+= and its like", "write x = x + …"),
    ast.Attribute: ("an attribute", "a rule knows only its arguments and the words"),
    ast.Subscript: ("a subscript", "a rule sees one element at a time"),
    ast.Starred: ("a starred argument", "name every argument"),
}


def lint(function: types.FunctionType, kind: str) -> tuple[ast.stmt, ...]:
    """Refuse a function whose body is anything but assignments, operators and words, and return the body as it was read.

    Raises:
        RuleError: with the rule, the file and line, the construct, and what to write instead.
    """
    return _Lint(function, kind).run()


class _Lint:
    def __init__(self, function: types.FunctionType, kind: str) -> None:
        self.function, self.title = function, f"{kind} {function.__name__}"
        self.known = set(inspect.signature(function).parameters)
        """The names that have a value so far."""
        self.truths: set[str] = set()
        """Those among them that are what a comparison found."""

    def run(self) -> tuple[ast.stmt, ...]:
        try:
            source, first = inspect.getsourcelines(self.function)
        except OSError:
            raise RuleError(f"{self.title} has no source text: write it in a file") from None
        tree = ast.parse(textwrap.dedent("".join(source))).body[0]
        if not isinstance(tree, ast.FunctionDef):
            raise RuleError(f"{self.title} is not written with a plain def")
        self.offset = first - 1
        taken = self.known & set(ops.WORDS)
        if taken:
            self.refuse(tree, f"the argument {taken.pop()!r}", "it is the name of a word: choose another")
        body = tree.body[1:] if ast.get_docstring(tree, clean=False) is not None else tree.body
        for statement in body:
            if isinstance(statement, ast.Return) and statement is not body[-1]:
                self.refuse(statement, "an early return", "write where(condition, x, y)")
            self.check(statement, statement.lineno)
        if not body or not isinstance(body[-1], ast.Return) or body[-1].value is None:
            self.refuse(body[-1] if body else tree, "ending without a value", "end with return")
        return tuple(body)

    def check(self, node: ast.AST, line: int) -> None:
        """Check a node and all below it, in the order in which they are computed."""
        line = getattr(node, "lineno", line)
        if isinstance(node, (ast.Load, ast.Store, *_OPERATORS)):
            return
        if not isinstance(node, (*_STATEMENTS, *_EXPRESSIONS)):
            what, instead = _REFUSED.get(type(node), (type(node).__name__.lower(), _PLAIN))
            below = next((child for child in ast.iter_child_nodes(node) if isinstance(child, ast.boolop)), None)
            if below is not None:
                what, instead = _REFUSED[type(below)]
            self.refuse(line, what, instead)
        if isinstance(node, ast.Compare):
            self.refuse(line, "a comparison as a number", "put it first in where(condition, x, y)")
        if isinstance(node, ast.Constant) and not isinstance(node.value, int | float):
            self.refuse(line, repr(node.value), "a rule holds numbers only")
        if isinstance(node, ast.Call):
            self.check_call(node, line)
            if ast.unparse(node.func) == "where" and self.is_condition(node.args[0], line):
                node = ast.Call(node.func, node.args[1:], [])
        if isinstance(node, ast.Assign):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if isinstance(node.value, ast.Compare) and len(names) == len(node.targets):
                self.is_condition(node.value, line)
                self.truths |= names
                node = ast.Assign(node.targets, ast.Constant(0))
            else:
                self.truths -= names
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            self.check_name(node.id, line)
        for child in self.below(node):
            self.check(child, line)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id in ops.WORDS:
                self.refuse(line, f"assigning to {node.id!r}", "it is the name of a word: choose another")
            self.known.add(node.id)

    def below(self, node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.Assign):  # the value is computed before its name has it
            yield node.value
            yield from node.targets
        elif isinstance(node, ast.Call):
            yield from node.args
        else:
            yield from ast.iter_child_nodes(node)

    def check_call(self, node: ast.Call, line: int) -> None:
        name = ast.unparse(node.func)
        if not isinstance(node.func, ast.Name) or name not in ops.WORDS:
            self.refuse(line, f"the call {name}(…)", f"the words are {', '.join(ops.WORDS)}")
        word: Callable[..., float] = getattr(ops, name)
        if self.function.__globals__.get(name) is not word:
            self.refuse(line, f"a {name!r} that is not the word", f"write from weightdecay.update_rules.ops import {name}")
        if node.keywords:
            self.refuse(line, "a keyword argument", "words take their arguments by position")
        takes = len(inspect.signature(word).parameters)
        if len(node.args) != takes and not any(isinstance(argument, ast.Starred) for argument in node.args):
            self.refuse(line, f"{name}(…) with {len(node.args)} arguments", f"it takes {takes}")

    def is_condition(self, node: ast.AST, line: int) -> bool:
        """Check a comparison where it belongs, or its name; as a number, backends would not agree on what it is."""
        if isinstance(node, ast.Compare):
            if len(node.ops) > 1:
                self.refuse(line, "a chain of comparisons", "compare two values at a time")
            for child in ast.iter_child_nodes(node):
                self.check(child, line)
        return isinstance(node, ast.Compare) or (isinstance(node, ast.Name) and node.id in self.truths)

    def check_name(self, name: str, line: int) -> None:
        if name in self.truths:
            self.refuse(line, f"the comparison {name!r} as a number", "put it first in where(condition, x, y)")
        if name in self.known:
            return
        if name in ops.WORDS:
            self.refuse(line, f"the word {name!r} by itself", f"call it: {name}(…)")
        if name in self.function.__code__.co_varnames:
            self.refuse(line, f"{name!r} before it has a value", "assign it first")
        self.refuse(line, f"the name {name!r}", "pass it as an argument, with a default")

    def refuse(self, where: ast.AST | int, what: str, instead: str) -> NoReturn:
        line = self.offset + (where if isinstance(where, int) else getattr(where, "lineno", 1))
        path = self.function.__code__.co_filename
        raise RuleError(f"{self.title}, {path}:{line}: {what} is not allowed; {instead}")
