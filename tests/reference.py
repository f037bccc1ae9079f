"""The eager float64 reference, and beside each of its values how far any other computation of it may be from it.

A backend computes in float32 (float64 in float64), in whatever order its processor likes, and each operation is off by no
more units in the last place than `weightdecay.update_rules.ops.ULPS` grants it. `Near` takes a rule's values through the rule
together with a bound on what all these roundings add up to: a running error analysis. What a backend makes of one step has to
lie within; the rounding to a narrow dtype that comes last is done to both ends of the interval, with the step's own random
bits, so that another neighbour is right only where the float64 value is that near to the decision.
"""

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightdecay.backends import counting, eager, rounding
from weightdecay.update_rules import ops, rule
from weightdecay.update_rules.equation import Equation, step
from weightdecay.update_rules.reductions import REDUCTIONS

EXACTLY = eager.vocabulary(torch.float64)
"""The words of the reference, on plain floats and on float64 tensors."""
where, absolute, maximum, minimum, sqrt = (EXACTLY[name] for name in ("where", "absolute", "maximum", "minimum", "sqrt"))


def ulp(x: Any, of: torch.dtype) -> Any:
    """Return the unit in the last place of float64 numbers, as a format has it; infinite where they are beyond the format."""
    info, lowest = torch.finfo(of), {torch.float32: -125, torch.float64: -1021}[of]
    if not isinstance(x, Tensor):
        return info.eps * 2.0 ** (max(math.frexp(x)[1], lowest) - 1) if abs(x) <= info.max else math.inf
    unit = info.eps * torch.exp2((torch.frexp(x)[1].clamp(min=lowest) - 1).double())
    return torch.where(x.abs() <= info.max, unit, math.inf)


def nearest(x: Any) -> Any:
    """Return the nearest float32 of float64 numbers."""
    return x.float().double() if isinstance(x, Tensor) else ctypes.c_float(x).value


def expm1(x: Any) -> Any:
    return torch.expm1(x) if isinstance(x, Tensor) else math.expm1(x) if x < 700 else math.inf


def log1p(x: Any) -> Any:
    return torch.log1p(x) if isinstance(x, Tensor) else math.log1p(x) if x > -1 else -math.inf if x == -1 else math.nan


def product(x: Any, y: Any) -> Any:
    """Return x·y, where an error of nothing makes nothing of anything."""
    return where((x == 0) | (y == 0), 0.0, x * y)


@dataclass(frozen=True, eq=False)
class Truth:
    """What a comparison says, and where a backend may say the opposite."""

    value: Any
    open: Any
    each: bool


@dataclass(frozen=True, eq=False)
class Near:
    """A value of the reference, one per element or one number per tensor, with the bound on a backend's error."""

    value: Any
    error: Any
    each: bool = False
    of: torch.dtype = torch.float64
    """The format in which a backend holds it: numbers per tensor are float64 in all of them."""

    @classmethod
    def rounded(cls, value: Any, error: Any, ulps: float, each: bool, of: torch.dtype) -> "Near":
        """Return the result of an operation that is off by some units in the last place, and by what its operands were."""
        reach = absolute(value) + error
        added = ulps * ulp(reach, of) if ulps else 0.0 * reach
        # What needs no rounding is not rounded: λ = 0 leaves a weight as it is.
        kept = (value == 0) | (nearest(value) == value if ulps == 0.5 and not (each and of == torch.float64) else False)
        return cls(value, where(kept & (error == 0), 0.0, error + added), each, of)

    def converted(self, of: torch.dtype) -> "Near":
        """Return the number as another format holds it."""
        if self.of == of or of == torch.float64:
            return Near(self.value, self.error, self.each, of)
        if not isinstance(self.value, Tensor) and self.error == 0:
            return Near(self.value, abs(self.value - nearest(self.value)), self.each, of)
        return Near.rounded(self.value, self.error, 0.5, self.each, of)

    def __add__(self, other: Any) -> "Near":
        x, y = alike(self, other)
        return Near.rounded(x.value + y.value, x.error + y.error, 0.5, x.each or y.each, x.of)

    def __sub__(self, other: Any) -> "Near":
        return self + -near(other)

    def __mul__(self, other: Any) -> "Near":
        x, y = alike(self, other)
        error = product(absolute(x.value), y.error) + product(absolute(y.value), x.error) + product(x.error, y.error)
        return Near.rounded(x.value * y.value, error, 0.5, x.each or y.each, x.of)

    def __truediv__(self, other: Any) -> "Near":
        by_number = self.each != near(other).each  # a backend may multiply by an inverse instead, or invert and multiply
        x, y = alike(self, other)
        value = quotient(x.value, y.value)
        safe = absolute(y.value) - y.error
        error = quotient(x.error + product(absolute(value), y.error), where(safe > 0, safe, 1.0))
        error = where((x.error == 0) & (y.error == 0), 0.0, where(safe > 0, error, math.inf))
        return Near.rounded(value, error, 1.5 if by_number else 0.5, x.each or y.each, x.of)

    def __neg__(self) -> "Near":
        return Near(-self.value, self.error, self.each, self.of)

    def __pos__(self) -> "Near":
        return self

    def __radd__(self, other: Any) -> "Near":
        return near(other) + self

    def __rsub__(self, other: Any) -> "Near":
        return near(other) - self

    def __rmul__(self, other: Any) -> "Near":
        return near(other) * self

    def __rtruediv__(self, other: Any) -> "Near":
        return near(other) / self

    def compared(self, other: Any, holds: Any) -> Truth:
        x, y = alike(self, other)
        reach = x.error + y.error
        is_open = (reach > 0) & (absolute(x.value - y.value) <= reach)
        return Truth(holds(x.value, y.value), is_open, x.each or y.each)

    def __lt__(self, other: Any) -> Truth:
        return self.compared(other, lambda x, y: x < y)

    def __le__(self, other: Any) -> Truth:
        return self.compared(other, lambda x, y: x <= y)

    def __gt__(self, other: Any) -> Truth:
        return self.compared(other, lambda x, y: x > y)

    def __ge__(self, other: Any) -> Truth:
        return self.compared(other, lambda x, y: x >= y)

    def __eq__(self, other: object) -> Any:
        return self.compared(other, lambda x, y: x == y)

    def __ne__(self, other: object) -> Any:
        return self.compared(other, lambda x, y: x != y)

    __hash__ = None  # type: ignore[assignment]


def near(x: Any) -> Near:
    """Return a number of Python's as one that no backend can miss."""
    return x if isinstance(x, Near) else Near(float(x), 0.0)


def alike(*operands: Any) -> list[Near]:
    """Return operands in one format: that of the elements among them."""
    every = [near(operand) for operand in operands]
    formats = [x.of for x in every if x.each] or [torch.float64]
    of = torch.float64 if torch.float64 in formats else formats[0]
    return [x.converted(of) for x in every]


def quotient(x: Any, y: Any) -> Any:
    """Return x/y as IEEE 754 has it, on Python's numbers, too."""
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return x / y
    return (torch.tensor(x, dtype=torch.float64) / y).item()


def root_of_total(x: Near) -> Any:
    """Return how far the root of a number can be from that of another in its reach."""
    low = where(x.value > x.error, x.value - x.error, 0.0)
    below = sqrt(x.value) + sqrt(low)
    error = where(x.error == 0, 0.0, x.error / where(below > 0, below, 1.0))
    return where(x.value >= x.error, error, math.inf)  # beyond, a backend may find a negative number, and NaN


class Words:
    """The words on `Near`, for elements that a backend computes in `real`."""

    def __init__(self, real: torch.dtype) -> None:
        self.real = real
        self.words = {name: getattr(self, name) for name in ops.WORDS}

    def bound(self, function: Any) -> Any:
        """Return a function of words as one of `Near`."""
        return rule.bind(function, self.words)

    def rounded(self, word: str, value: Any, error: Any, x: Near) -> Near:
        return Near.rounded(value, error, ops.ULPS[word], x.each, x.of)

    def absolute(self, x: Any) -> Near:
        x = near(x)
        return Near(absolute(x.value), x.error, x.each, x.of)

    def sign(self, x: Any) -> Near:
        x = near(x)
        value = EXACTLY["sign"](x.value)
        is_open = (x.error > 0) & (absolute(x.value) <= x.error)
        return Near(value, where(is_open, absolute(value) + 1, 0.0), x.each, x.of)

    def sqrt(self, x: Any) -> Near:
        x = near(x)
        return self.rounded("sqrt", sqrt(x.value), root_of_total(x), x)

    def exp(self, x: Any) -> Near:
        x = near(x)
        value = EXACTLY["exp"](x.value)
        return self.rounded("exp", value, product(value, expm1(x.error)), x)

    def log(self, x: Any) -> Near:
        x = near(x)
        return self.rounded("log", EXACTLY["log"](x.value), self._relative(x), x)

    def _relative(self, x: Near) -> Any:
        """Return how far the logarithm of a number can be from that of another in its reach."""
        share = quotient(x.error, where(x.value > x.error, x.value, 1.0))
        return where(x.error == 0, 0.0, where(x.value > x.error, -log1p(-share), math.inf))

    def power(self, x: Any, exponent: Any) -> Near:
        x, y = alike(x, exponent)
        of = x.of
        if x.each or y.each:  # of what is wider, too: a kernel has one power of elements
            x, y = x.converted(self.real), y.converted(self.real)
        value = EXACTLY["power"](x.value, y.value)
        size = absolute(EXACTLY["log"](x.value)) + self._relative(x)
        error = product(absolute(y.value) + y.error, self._relative(x)) + product(size, y.error)
        error = where(value == 0, error * 0.0, product(value, expm1(error)))
        each = x.each or y.each
        found = Near.rounded(value, error, ops.ULPS["power"], each, self.real if each else of)
        return Near(found.value, found.error, each, of)

    def maximum(self, x: Any, y: Any) -> Near:
        return self._extremum(maximum, x, y)

    def minimum(self, x: Any, y: Any) -> Near:
        return self._extremum(minimum, x, y)

    def _extremum(self, extremum: Any, x: Any, y: Any) -> Near:
        x, y = alike(x, y)
        chosen = extremum(x.value, y.value)
        # Which of the two a backend takes is open where they are near each other, and no more than one of them can be meant.
        far = absolute(x.value - y.value) > x.error + y.error
        error = where(far, where(chosen == x.value, x.error, y.error), maximum(x.error, y.error))
        return Near(chosen, error, x.each or y.each, x.of)

    def where(self, condition: Any, x: Any, y: Any) -> Near:
        if not isinstance(condition, Truth):
            condition = near(condition) != 0
        x, y = alike(x, y)
        if condition.each and not x.each and not y.each:
            x, y = x.converted(self.real), y.converted(self.real)
        chosen = where(condition.value, x.value, y.value)
        error = where(condition.value, x.error, y.error)
        either = maximum(absolute(x.value - chosen) + x.error, absolute(y.value - chosen) + y.error)
        either = where(chosen == chosen, either, error)
        return Near(chosen, where(condition.open, either, error), condition.each or x.each or y.each, x.of)

    def debias(self, beta: Any, t: Any) -> Near:
        x, t = near(beta), near(t)
        value = EXACTLY["debias"](x.value, t.value)
        if x.each or t.each:
            return Near.rounded(value, 0.0 * value, 4 * ops.ULPS["debias"], each=True, of=self.real)
        return Near(value, ops.ULPS["debias"] * ulp(1.0, torch.float64))  # of 1, which 1 − βᵗ is the rest of

    def reduced(self, reduction: Any, values: Any, given: Any) -> Near:
        """Return a reduction, whose terms a backend adds up in float64 and in any order."""
        elements = [values[name].converted(torch.float64) for name in reduction.elements]
        unit: Any = 1.0
        if reduction.norm and elements[0].value.numel():
            (x,) = elements
            largest = x.value.abs().max().item()
            unit = Near(largest, float(torch.as_tensor(x.error).max())) if largest else 1.0
            elements = [x / unit]
        term = self.bound(reduction.term)(*elements, **reduction.given(reduction.term, given))
        total = self.total(term)
        return self.bound(reduction.finish)(total, **reduction.given(reduction.finish, given)) * unit

    @staticmethod
    def total(term: Near) -> Near:
        """Return the sum of terms."""
        values, errors = (torch.as_tensor(x, dtype=torch.float64) for x in (term.value, term.error))
        errors = errors.expand(values.shape)
        added = values.numel() * torch.finfo(torch.float64).eps * values.abs().sum().item()
        return Near(values.sum().item(), errors.sum().item() + added)


@dataclass(frozen=True, eq=False)
class Bundle:
    """Parameters of which a step does the same with every element, end to end; one alone if it is measured whole."""

    places: list[int]
    params: list[Tensor]
    equation: Equation
    numbers: Any
    values: list[dict[str, Tensor]]
    kept: tuple[rule.Kept, ...]
    how: str
    seed: int
    t: int

    @property
    def real(self) -> torch.dtype:
        """Return the format in which a backend computes its elements."""
        return eager.compute_dtype(self.params[0].dtype)

    def near(self) -> dict[str, Near]:
        """Return its elements as they are before the step, exactly."""
        columns = {
            name: end_to_end([own[name].expand(param.shape) for own, param in zip(self.values, self.params, strict=True)])
            for name in self.values[0]
        }
        return {
            name: Near(x.double(), torch.zeros(len(x), dtype=torch.float64), True, self.real) for name, x in columns.items()
        }


def end_to_end(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


class Reference:
    """What the next step of an optimizer has to come to, of every weight and every number in its state.

    It is made before the step, of the weights, gradients and state that the optimizer has by then, and so each step is
    judged by itself. `equation` and `group` stand for the optimizer's own rules and numbers, to plant a fault in them.
    """

    def __init__(self, optimizer: Any, equation: Equation | None = None, **group: Any) -> None:
        self.optimizer = optimizer
        self.expected: dict[tuple[int, str], Near] = {}
        """By the number of a bundle, and "w" or the key in the state."""
        self.ends: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        """The least and the largest that each may be."""
        every = [({**own, **group}, param) for own in optimizer.param_groups for param in own["params"]]
        found: dict[Any, Bundle] = {}
        for place, (own, param) in enumerate(every):
            if param.grad is not None and param.numel():
                key, bundle = self._operands(place, param, own, equation)
                if key in found:
                    for theirs, ours in zip(
                        (found[key].places, found[key].params, found[key].values),
                        (bundle.places, bundle.params, bundle.values),
                        strict=True,
                    ):
                        theirs += ours
                else:
                    found[key] = bundle
        self.bundles = list(found.values())
        shared = self._shared()
        for number, bundle in enumerate(self.bundles):
            self._step(number, bundle, shared)

    def _operands(self, place: int, param: Tensor, group: Any, equation: Equation | None) -> tuple[Any, Bundle]:
        optimizer, state = self.optimizer, dict(self.optimizer.state.get(param, {}))
        used, kept, how = optimizer.way(group)
        if equation is not None:
            used, kept = equation, equation.kept(optimizer.numbers(group, 0))
        assert not used.direction.whole, "what torch does with whole tensors is bounded by no word"
        how = rounding.resolve(how, param.dtype)
        t = float(state.get("step", 0.0)) + 1
        numbers = optimizer.numbers(group, t)
        for each in kept:
            if each.key not in state:
                dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
                state[each.key] = eager.start(each, param, used.asking(each, numbers), dtype)
        if how == "compensated" and "compensation" not in state:
            state["compensation"] = torch.zeros_like(param, dtype=torch.int16)
        grad = -param.grad if group["maximize"] else param.grad
        values = eager.operands(used, param.detach(), grad, state, kept, how, 1.0)
        numbers = {
            kind: {name: float(value) for name, value in given.items()}
            for kind, given in eager.remembered(used, numbers, state, kept).items()
        }
        dtypes = tuple(str(tensor.dtype) for tensor in (param, *(state[each.key] for each in kept)))
        alone = place if any(set(rule.reductions) - set(rule.shared) for rule in used.rules) else -1
        key = (alone, how, group["seed"], str(numbers), dtypes, id(used.penalty), id(used.direction), id(used.decay))
        return key, Bundle([place], [param], used, numbers, [values], kept, how, group["seed"], int(t))

    def _shared(self) -> dict[str, Near]:
        """Return the numbers of all tensors."""
        found: dict[str, Near] = {}
        for name in {name for bundle in self.bundles for name in bundle.equation.decay.shared}:
            total, count = Near(0.0, 0.0), 0
            for bundle in self.bundles:
                if bundle.equation.supplies(name):
                    own = Words(bundle.real)
                    (element,) = REDUCTIONS[name].elements
                    numbers = near_numbers(bundle.numbers)
                    line, _ = step(bundle.equation.up_to(element), numbers, bundle.near(), bind=own.bound, reduce=own.reduced)
                    total, count = total + own.total(line), count + line.value.numel()
            found[name] = total / max(count, 1)
        return found

    def _step(self, number: int, bundle: Bundle, shared: dict[str, Near]) -> None:
        own, equation = Words(bundle.real), bundle.equation
        numbers = equation.with_shared(near_numbers(bundle.numbers), shared)
        w, new = step(equation, numbers, bundle.near(), bind=own.bound, reduce=own.reduced)
        bits = None
        if bundle.how == "stochastic":
            keys = [rounding.keys(bundle.seed, counting.drawn_from_of_host(bundle.t), place) for place in bundle.places]
            likes = [torch.zeros_like(param.detach(), dtype=torch.float32) for param in bundle.params]
            bits = end_to_end([rounding.random_bits(like, key) for like, key in zip(likes, keys, strict=True)])
        self._add(number, "w", w, bundle.params[0].dtype, bundle.how, bits)
        for each in bundle.kept:
            if each.changes:
                was = self.optimizer.state.get(bundle.params[0], {}).get(each.key)
                usual = bundle.real if each.per_element else torch.float64
                self._add(number, each.key, new[each.name], usual if was is None else was.dtype, "nearest", None)

    def _add(self, number: int, name: str, found: Near, dtype: torch.dtype, how: str, bits: Tensor | None) -> None:
        value, error = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float64) for x in (found.value, found.error)))
        self.expected[number, name] = Near(value, error, found.each, found.of)
        error = error * (2 if found.of == torch.float64 else 1)  # the reference is off, too, and by no more than that
        below, above = next_in(value - error, found.of, 1), next_in(value + error, found.of, -1)
        self.ends[number, name] = landed(below, dtype, how, bits), landed(above, dtype, how, bits)

    def got(self, number: int, name: str) -> Tensor:
        """Return what the optimizer has now, in the order of the reference."""
        params = self.bundles[number].params
        states = [self.optimizer.state[param] for param in params]
        if name != "w":
            each = [state[name] for state in states]
        elif self.bundles[number].how == "compensated":
            each = [rounding.restored(p.detach(), s["compensation"]) for p, s in zip(params, states, strict=True)]
        else:
            each = [param.detach() for param in params]
        return (end_to_end(each) if self.expected[number, name].each else each[0]).double()

    def outside(self) -> dict[str, str]:
        """Return what of the optimizer, which has stepped by now, is not where it may be: by its name, and in words."""
        found = {}
        for (number, name), (low, high) in self.ends.items():
            got, expected = self.got(number, name), self.expected[number, name]
            # No bound is no promise: where a difference may be anything, so may a quotient by it, NaN included.
            right = ((low <= got) & (got <= high)) | (got.isnan() & expected.value.isnan()) | ~expected.error.isfinite()
            if not right.all():
                unit = ulp(expected.value, expected.of)
                units, bound = ((got - expected.value).abs() / unit)[~right], (expected.error / unit)[~right]
                found[f"{name} of {self.bundles[number].places}"] = (
                    f"{(~right).sum()} elements of {right.numel()}, such as {got[~right].tolist()[:3]} and not "
                    f"{expected.value[~right].tolist()[:3]}: {units.max():.3g} units in the last place away, "
                    f"{bound[units.argmax()]:.3g} allowed"
                )
        return found

    def effect(self, other: "Reference", quantile: float = 0.75) -> float:
        """Return how many times its bound one value in four differs from another reference's, of that which differs most."""
        shares = [0.0]
        for key, found in self.expected.items():
            if key in other.expected:
                apart = (found.value - other.expected[key].value).abs()
                shares.append(torch.quantile(apart / found.error.clamp(min=1e-300), quantile).item())
        return max(shares)


def near_numbers(numbers: Any) -> dict[str, dict[str, Near]]:
    """Return the numbers of a step, which no backend can miss."""
    return {kind: {name: near(value) for name, value in given.items()} for kind, given in numbers.items()}


def next_in(x: Tensor, of: torch.dtype, towards: int) -> Tensor:
    """Return the next number of the format on one side: a backend's value is one, and cannot be beyond."""
    if of == torch.float64:
        return x
    found = x.to(of)
    beyond = found.double() < x if towards > 0 else found.double() > x
    return torch.where(beyond, torch.nextafter(found, torch.full_like(found, towards * math.inf)), found)


def landed(x: Tensor, dtype: torch.dtype, how: str, bits: Tensor | None) -> Tensor:
    """Return where a backend's value ends when it is written: of two values the larger never below the smaller one."""
    if how == "stochastic":
        x = rounding.stochastic(x, dtype, bits)
    elif how == "compensated":
        x = rounding.restored(*rounding.compensated(x, dtype))
    elif dtype in rounding.LOW_PRECISION or x.dtype == torch.float64 != dtype:
        x = x.float().to(dtype)
    return x.double()
