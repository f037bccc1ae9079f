"""The decorators that make a rule of a function."""

import inspect
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from weightdecay.update_rules.lint import RuleError, lint
from weightdecay.update_rules.reductions import REDUCTIONS
from weightdecay.update_rules.registry import REGISTRY
from weightdecay.update_rules.rule import _FIRST_ARGUMENTS, CONTEXT, FLAGS, TAKEN, Function, Kind, Rule
from weightdecay.update_rules.state import Kept, Shape
from weightdecay.validation import Choice, Interval


def penalty(
    *,
    source: str = "",
    reference: Mapping[str, str] | None = None,
    domain: Mapping[str, str] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Function], Function]:
    """Register a penalty: a function (w, *reference, *, lam, …) that returns what the penalty adds to the gradient.

    `source` is the paper, `domain` an interval per hyper-parameter such as {"p": "(0, inf)"}, and `check` a function of the
    hyper-parameters that raises ValueError where they make no sense together, in a new group: later they are written one by
    one, as schedules do. `reference={"w_0": "reference"}` keeps what w
    was before the first step under that key of the optimizer's state; a number such as norm_w_0 is what norm_w was.
    """
    return _registering("penalty", source, domain, check, _kept({}, reference, {}, {}))


def direction(
    *,
    source: str = "",
    state: Mapping[str, str] | None = None,
    memory: Mapping[str, tuple[str, float | str]] | None = None,
    optional: Mapping[str, str] | None = None,
    beside: Mapping[str, str] | None = None,
    start: Mapping[str, str] | None = None,
    domain: Mapping[str, str | tuple[str | None, ...]] | None = None,
    check: Callable[..., None] | None = None,
    whole: bool = False,
    ndim: int | None = None,
    shapes: Mapping[str, Shape] | None = None,
) -> Callable[[Function], Function]:
    """Register a direction: a function (g, *state, *, t, …) that returns u and the new state.

    `state` names each moment's key in the optimizer's `state_dict`, in the order of the arguments; a moment starts at
    zero, or at the hyper-parameter that `start` names. With `optional={"m": "mu"}` the moment m is neither kept nor read
    while mu is 0, and with `beside={"dampening": "mu"}` the dampening is 0 then, too. `memory` is the same as `state` for
    numbers, one per tensor, each with its key and its start.

    With `whole=True` the function is not math per element but a function of whole tensors, in torch's operations (an
    orthogonalised momentum, say); the decay beside it is an ordinary rule. It may ask for reductions of w. `ndim` is the
    number of dimensions that it needs, and `shapes={"row": rows}` gives a moment another shape than the parameter's: what
    rows(shape) returns, or no such moment where that is None. Its hyper-parameters may also be tuples of numbers, and words,
    of which `domain` then lists the allowed. The rest is as in `penalty`.
    """
    kept = _kept(state or {}, {}, memory or {}, optional or {}, start or {}, shapes or {})
    return _registering("direction", source, domain, check, kept, whole, ndim, beside or {})


def decay(
    *,
    source: str = "",
    reference: Mapping[str, str] | None = None,
    memory: Mapping[str, tuple[str, float | str]] | None = None,
    domain: Mapping[str, str] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Function], Function]:
    """Register a decay: a function (w, u, *reference, *, eta, lam, …) that returns the next weight, and its memory.

    `memory={"multiplier": ("multiplier", 0.0)}` keeps one number per tensor, with its key and its start. The rest is as
    in `penalty`.
    """
    return _registering("decay", source, domain, check, _kept({}, reference, memory or {}, {}))


def _kept(
    state: Mapping[str, str],
    reference: Mapping[str, str] | None,
    memory: Mapping[str, tuple[str, float | str]],
    optional: Mapping[str, str],
    start: Mapping[str, str] | None = None,
    shapes: Mapping[str, Shape] | None = None,
) -> tuple[Kept, ...]:
    """Return what a rule keeps, in the order of its arguments."""
    starts, shapes = start or {}, shapes or {}
    fixed = {name: (key, name.removesuffix("_0")) for name, key in (reference or {}).items()}
    return (
        *(
            Kept(name, key, True, True, starts.get(name, 0.0), optional.get(name), shapes.get(name))
            for name, key in state.items()
        ),
        *(Kept(name, key, True, False, of) for name, (key, of) in fixed.items() if of not in REDUCTIONS),
        *(Kept(name, key, False, True, value) for name, (key, value) in memory.items()),
        *(Kept(name, key, False, False, of) for name, (key, of) in fixed.items() if of in REDUCTIONS),
    )


def _registering(
    kind: Kind,
    source: str,
    domain: Mapping[str, Any] | None,
    check: Callable[..., None] | None,
    keeps: tuple[Kept, ...],
    whole: bool = False,
    ndim: int | None = None,
    beside: Mapping[str, str] | None = None,
) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        name = getattr(function, "__name__", repr(function))
        if not isinstance(source, str) or not source.strip():
            raise RuleError(f"{kind} {name} needs source=…: the paper or the code that it comes from")
        if not isinstance(function, types.FunctionType):
            raise RuleError(f"{kind} {name} is not written with a plain def")
        rule = _describe(function, kind, source, domain or {}, check, keeps, whole, ndim, beside or {})
        if not whole:
            rule = replace(rule, body=lint(function, kind))
            _run_once(rule)
        REGISTRY.add(rule)
        function.rule = rule  # type: ignore[attr-defined]
        return function

    return register


def _describe(
    function: types.FunctionType,
    kind: Kind,
    source: str,
    domain: Mapping[str, Any],
    check: Callable[..., None] | None,
    keeps: tuple[Kept, ...],
    whole: bool,
    ndim: int | None,
    beside: Mapping[str, str],
) -> Rule:
    """Read a rule's signature, and refuse one that a backend could not fill."""
    name = function.__name__
    parameters = inspect.signature(function).parameters.values()
    elements = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    numbers = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if len(elements) + len(numbers) != len(parameters):
        raise RuleError(f"{kind} {name}: *args and **kwargs have no meaning in a rule")
    expected = (*_FIRST_ARGUMENTS[kind], *(kept.name for kept in keeps if kept.per_element))
    memory = {kept.name for kept in keeps if not kept.per_element}
    if elements != expected:
        raise RuleError(f"{kind} {name}({', '.join(elements)}, *, …) must take ({', '.join(expected)}, *, …)")
    if function.__defaults__:
        raise RuleError(f"{kind} {name}: {elements[-1]} is one value per element and takes no default")
    for key in {kept.key for kept in keeps} & {"step", "compensation"}:
        raise RuleError(f"{kind} {name}: the optimizer's state keeps something else as {key!r}; choose another key")
    for kept in keeps:
        if not kept.changes and kept.name not in ("w_0", *(f"{reduction}_0" for reduction in REDUCTIONS)):
            raise RuleError(f"{kind} {name}: a reference is w_0 or a reduction with _0, such as norm_w_0, not {kept.name}")
    for kept in keeps:
        if kept.name in ("w", "g", "u"):
            raise RuleError(
                f"{kind} {name}: {kept.name} is the weight, the gradient or the step, and nothing that a rule keeps"
            )
    for number in memory - set(numbers):
        raise RuleError(f"{kind} {name}: {number} is one number per tensor and stands right of the *")
    for number in numbers:
        if number in TAKEN:
            raise RuleError(f"{kind} {name}: {number} means something else in a parameter group; choose another name")
    defaults = {number: value for number, value in numbers.items() if value is not inspect.Parameter.empty}
    for number in numbers:
        given = number in CONTEXT or number in REDUCTIONS or number in memory
        if given and number in defaults:
            raise RuleError(f"{kind} {name}: {number} is given by the optimizer and takes no default")
        if not given and number not in defaults:
            known = ", ".join([*CONTEXT, *REDUCTIONS])
            raise RuleError(f"{kind} {name}: {number} needs a default; without one there are only {known}")
    for number in FLAGS:
        if number in defaults and not isinstance(defaults[number], bool):
            raise RuleError(f"{kind} {name}: {number} is a flag, True or False; choose another name for a number")
    betas = sorted(number for number in defaults if re.fullmatch(r"beta\d", number))
    if betas != [f"beta{place}" for place in range(1, len(betas) + 1)]:
        raise RuleError(
            f"{kind} {name}: users write betas=(beta1, beta2, …), so {betas[-1]} needs those before it, from beta1 on"
        )
    used = [name for kept in keeps if kept.changes for name in (kept.unless, kept.start) if isinstance(name, str)]
    for key in (*domain, *used, *beside, *beside.values()):
        if key not in defaults:
            raise RuleError(f"{kind} {name}: {key} is not one of its hyper-parameters ({', '.join(defaults)})")
    try:
        allowed = {
            key: Choice(among) if whole and isinstance(among, tuple) else Interval(among) for key, among in domain.items()
        }
    except ValueError as error:
        raise RuleError(f"{kind} {name}: the domain {error}") from None
    for key, value in defaults.items():
        among = allowed.get(key, Interval("(-inf, inf)"))
        for each in value if whole and isinstance(value, tuple) else (value,):
            if isinstance(among, Interval) and each is None and isinstance(value, tuple):
                continue
            if isinstance(among, Interval) and (not isinstance(each, int | float) or not math.isfinite(each)):
                raise RuleError(f"{kind} {name}: the default {key}={value!r} is not a finite number")
            if each not in among:
                raise RuleError(f"{kind} {name}: the default {key}={value!r} is outside {among}")
    for number in numbers if kind != "decay" else ():
        if number in REDUCTIONS and not {"w", "g", "w_0"}.issuperset(REDUCTIONS[number].elements):
            raise RuleError(f"{kind} {name}: {number} is not there before the direction is: only a decay may ask for it")
    own = [number for number in numbers if number in REDUCTIONS and REDUCTIONS[number].elements != ("w",)]
    if whole and own:
        raise RuleError(f"{kind} {name} sees whole tensors and computes {', '.join(own)} itself")
    if not whole and (ndim is not None or any(kept.shape is not None for kept in keeps)):
        raise RuleError(f"{kind} {name} sees one element at a time: only whole=True knows ndim and shapes")
    return Rule(name, kind, function, source, keeps, tuple(numbers), defaults, allowed, check, whole, ndim, beside)


def _run_once(rule: Rule) -> None:
    """Run the rule on floats and compare what it returns with what its kind must return."""
    numbers = {**dict.fromkeys(rule.numbers, 0.5), **rule.defaults}
    result = rule.function(*(0.5 ** (place + 1) for place in range(len(rule.elements))), **numbers)
    returned = len(result) if isinstance(result, tuple) else 1
    expected = 1 + len(rule.returned)
    if returned != expected or (isinstance(result, tuple) and expected == 1):
        order = ", ".join(["u" if rule.kind == "direction" else "w", *rule.returned]) if rule.returned else "one value"
        raise RuleError(f"{rule.kind} {rule.name} returns {returned} values instead of {expected}: return {order}")
