"""Reads a rule as torch operations: the reference on tensors, for any device, layout and dtype that torch knows.

Everything is computed out of place in float32 (float64 stays float64) and rounded once, at the write.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from weightdecay.backends import rounding
from weightdecay.update_rules import ops as words
from weightdecay.update_rules import rule
from weightdecay.update_rules.equation import Equation
from weightdecay.update_rules.equation import step as one_step
from weightdecay.update_rules.reductions import OF_ALL, REDUCTIONS, Reduction
from weightdecay.update_rules.state import Kept

Numbers = Mapping[str, Mapping[str, Any]]
Share = tuple[str, list[Any], int]
"""What tensors add to a number of all tensors: its name, sums of terms, and how many terms there are."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which values of this one are computed."""
    real = dtype.to_real() if dtype.is_complex else dtype
    return torch.float32 if real in rounding.LOW_PRECISION else real


@cache
def vocabulary(dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the words as torch operations for values of this dtype; on plain numbers they stay what they are."""

    def lifted(word: str, on_tensors: Callable[..., Tensor]) -> Callable[..., Any]:
        on_numbers = getattr(words, word)

        def read(*values: Any) -> Any:
            if not any(isinstance(value, Tensor) for value in values):
                return on_numbers(*values)
            return on_tensors(*values)

        return read

    # Numbers are filled in, not copied to the device: a copy waits for it, and a CUDA graph can capture none.
    def tensors(values: Sequence[Any]) -> list[Tensor]:
        device = next(value.device for value in values if isinstance(value, Tensor))
        return [v if isinstance(v, Tensor) else torch.full((), v, dtype=dtype, device=device) for v in values]

    def between(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *values: operation(*tensors(values))

    def where(condition: Any, x: Any, y: Any) -> Any:
        if isinstance(condition, Tensor):
            condition = condition if condition.dtype == torch.bool else condition != 0
            device = condition.device
            x, y = (v if isinstance(v, Tensor) else torch.full((), v, dtype=dtype, device=device) for v in (x, y))
            if condition.ndim and not x.ndim and not y.ndim:  # numbers of the tensor, which are wider, become elements
                x, y = x.to(dtype), y.to(dtype)
            return torch.where(condition, x, y)
        return x if condition else y

    def debias(beta: Any, t: Any) -> Tensor:
        if isinstance(beta, Tensor):
            beta, t = tensors((beta, t))
            return -torch.expm1(t * torch.log(beta))
        if torch.compiler.is_compiling():  # a graph computes the logarithm of a number; Python's would be a constant in it
            return -torch.expm1(t * torch.log(torch.full((), beta, dtype=torch.float64, device=t.device)))
        return -torch.expm1(t * words.log(beta))  # log β in float64: 1 − β has few digits in float32

    return {
        "absolute": lifted("absolute", torch.abs),
        "sign": lifted("sign", lambda x: torch.where(x.isnan(), x, torch.sign(x))),  # torch's sign of NaN is 0
        "sqrt": lifted("sqrt", torch.sqrt),
        "exp": lifted("exp", torch.exp),
        "log": lifted("log", torch.log),
        "power": lifted("power", torch.pow),
        "maximum": lifted("maximum", between(torch.maximum)),
        "minimum": lifted("minimum", between(torch.minimum)),
        "where": where,
        "debias": lifted("debias", debias),
    }


_BOUND = {torch.float32: "_bound_float32", torch.float64: "_bound_float64"}


def bound(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """Return the function of words as a function of tensors; one of whole tensors is that already."""
    # Kept with the function: a table of all of them would have torch.compile compile again whenever it grows.
    found: Callable[..., Any] | None = getattr(function, _BOUND[dtype], None)
    if found is None:
        known = getattr(function, "rule", None)
        is_whole = known is not None and known.whole
        found = partial(_of_whole, function) if is_whole else rule.bind(function, vocabulary(dtype))
        setattr(function, _BOUND[dtype], found)
    return found


def _of_whole(function: Callable[..., Any], g: Tensor, /, *state: Tensor, **numbers: Any) -> Any:
    """Run a direction of whole tensors, and see to it that u is of g's kind."""
    found = function(g, *state, **numbers)
    u, *new = found if isinstance(found, tuple) else (found,)
    if u.shape != g.shape:
        name = function.__name__
        raise ValueError(f"the direction {name} made a u of shape {tuple(u.shape)} for a tensor of shape {tuple(g.shape)}")
    u = u.to(g.dtype)
    return (u, *new) if new else u


def prepare(equation: Equation, dtype: torch.dtype) -> None:
    """Bind all that a step of the equation needs, so that compiling the step meets functions and does not make them."""
    for each in equation.rules:
        bound(each.function, compute_dtype(dtype))
        for name in each.reductions:
            bound(REDUCTIONS[name].term, torch.float64)
            bound(REDUCTIONS[name].finish, torch.float64)
    for name in OF_ALL:
        if equation.supplies(name):
            for each in (rule for element in REDUCTIONS[name].elements for rule in equation.up_to(element).rules):
                bound(each.function, compute_dtype(dtype))
            bound(REDUCTIONS[name].term, torch.float64)


def reduce(reduction: Reduction, values: Mapping[str, Tensor], numbers: Mapping[str, Any], *, stacked: bool = False) -> Tensor:
    """Return the reduction over a whole tensor, a float64 number: the square of a float32 norm need not be a float32.

    With `stacked` the reduction over each of a stack along the first dimension, in the dtype of its elements.
    """
    elements = [values[name].double() for name in reduction.elements]
    each = tuple(range(1, elements[0].ndim))

    def over(fold: Callable[..., Tensor], x: Tensor) -> Tensor:
        if stacked:
            return fold(x, each, keepdim=True) if each else x
        return fold(x)

    unit: float | Tensor = 1.0
    if reduction.norm and elements[0].numel():
        (x,) = elements
        largest = over(torch.amax, x.abs())
        unit = torch.where(largest > 0, largest, 1.0)
        elements = [x / unit]
    total = over(torch.sum, bound(reduction.term, torch.float64)(*elements, **reduction.given(reduction.term, numbers)))
    finished: Tensor = bound(reduction.finish, torch.float64)(total, **reduction.given(reduction.finish, numbers)) * unit
    # One number per model has dimensions, and in float64 it would make float64 of every element. So the square of a stacked
    # float32 norm may leave the range: from a norm of 1.8e19 on, of a run that has diverged.
    return finished.to(values[reduction.elements[0]].dtype) if stacked else finished


def step(
    equation: Equation, numbers: Numbers, values: Mapping[str, Tensor], *, stacked: bool = False
) -> tuple[Tensor, dict[str, Any]]:
    """Return the weight after one step, and what the rules keep and change by their names, as new tensors.

    Args:
        equation: the three rules.
        numbers: what stands right of each rule's `*`, by kind of rule; floats, or tensors that broadcast against w.
        values: the weights w, the gradient g and what is kept for every element, of one shape, float32 or float64. With
            `stacked`, the first dimension counts independent models.
    """
    bind, over = partial(bound, dtype=values["w"].dtype), partial(reduce, stacked=stacked)
    w, kept = one_step(equation, numbers, values, bind=bind, reduce=over)
    return w.to(values["w"].dtype), kept  # which a number kept in float64 takes along where w is a number, too


def share(equation: Equation, name: str, numbers: Numbers, values: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Return what one tensor adds to a number of all tensors: the sum of its terms, in float64, and how many they are."""
    reduction, bind = REDUCTIONS[name], partial(bound, dtype=values["w"].dtype)
    lines = [one_step(equation.up_to(each), numbers, values, bind=bind, reduce=reduce)[0] for each in reduction.elements]
    terms = bound(reduction.term, torch.float64)(*(each.double() for each in lines))
    return _plain(terms.sum()), terms.numel()


def means(shares: Iterable[Share]) -> dict[str, Any]:
    """Return the numbers of all tensors from what each adds; where that is floats, in whatever order it comes."""
    sums: dict[str, list[Any]] = {}
    counts: dict[str, int] = {}
    for name, totals, count in shares:
        sums.setdefault(name, []).extend(totals)
        counts[name] = counts.get(name, 0) + count
    return {name: _sum(totals) / max(counts[name], 1) for name, totals in sums.items()}


def _sum(totals: Sequence[Any]) -> Any:
    device = next((total.device for total in totals if isinstance(total, Tensor)), None)
    if device is None:
        return sum(sorted(totals))
    return torch.stack([torch.as_tensor(total, dtype=torch.float64, device=device) for total in totals]).sum()


def numbers_in(dtype: torch.dtype, numbers: Numbers) -> dict[str, dict[str, Any]]:
    """Return the numbers with tensors among them as scalars of this dtype; floats stay what they are."""
    return {kind: {name: scalar(value, dtype) for name, value in given.items()} for kind, given in numbers.items()}


def scalar(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor of one element as a number of this dtype; a float stays what it is."""
    return value.to(dtype).reshape(()) if isinstance(value, Tensor) else value


def update(
    equation: Equation,
    numbers: Numbers,
    param: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    *,
    kept: Sequence[Kept],
    how: str,
    key: tuple[Any, Any] = (0, 0),
    factor: float = 1.0,
    differentiable: bool = False,
) -> None:
    """Do one step on a parameter and its entry in the optimizer's state.

    `kept` is what the rules keep there; `how` is the rounding, already resolved; `numbers` come from `numbers_in`; the
    gradient counts `factor` times. Complex tensors are read as pairs of reals, as torch does.
    """
    values = operands(equation, param, grad, state, kept, how, factor, differentiable)
    w, new = step(equation, remembered(equation, numbers, state, kept), values)
    write(param, w, state, how=how, key=key)
    if not differentiable:
        keep(kept, new, state)
        return
    for each in kept:
        if each.changes:  # writing in place would cut the graph through earlier steps
            state[each.key] = torch.view_as_complex(new[each.name]) if state[each.key].is_complex() else new[each.name]


def write(param: Tensor, w: Tensor, state: Mapping[str, Any], *, how: str, key: tuple[Any, Any] = (0, 0)) -> None:
    """Round a weight that was computed, as `how` says, and write it into its parameter."""
    if how == "compensated":
        w, lost = rounding.compensated(w, param.dtype)
        state["compensation"].copy_(lost)
    elif how == "stochastic":
        w = rounding.stochastic(w, param.dtype, rounding.random_bits(w, key))
    real(param).copy_(w)


def direct(
    equation: Equation,
    numbers: Numbers,
    param: Tensor,
    grad: Tensor,
    state: Mapping[str, Any],
    *,
    kept: Sequence[Kept],
    how: str,
    factor: float,
) -> Tensor:
    """Do the first half of a step, whose other half another backend does: return u, and write what the direction keeps."""
    first = equation.halves()[0]
    values = operands(first, param, grad, state, kept, how, factor)
    u, new = step(first, remembered(first, numbers, state, kept), values)
    keep([each for each in kept if each.name in new], new, state)
    return u


def start(each: Kept, param: Tensor, numbers: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """Return what a rule keeps, as it is before the first step."""
    if each.per_element and each.start == "w":
        return param.detach().to(dtype, copy=True)
    if each.start in REDUCTIONS:
        w = real(param.detach()).to(compute_dtype(param.dtype))
        value: Any = _plain(reduce(REDUCTIONS[str(each.start)], {"w": w}, numbers))
    else:
        value = numbers[each.start] if isinstance(each.start, str) else each.start
    shape = each.shape_of(param.shape)
    if each.shape is not None and shape is not None:
        return param.detach().new_full(shape, float(value), dtype=dtype)
    if each.per_element:
        fill = complex(float(value), float(value)) if param.is_complex() else float(value)  # a complex number is two
        return torch.full_like(param, fill, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False)
    return torch.as_tensor(value, dtype=torch.float64, device=param.device).clone()


def remembered(equation: Equation, numbers: Numbers, state: Mapping[str, Any], kept: Sequence[Kept]) -> Numbers:
    """Return the numbers with those that the rules keep for this tensor."""
    own = {each.name: state[each.key] for each in kept if not each.per_element}
    if not own:
        return numbers
    return {
        rule.kind: {**numbers[rule.kind], **{name: own[name] for name in rule.memory if name in own}} for rule in equation.rules
    }


def keep(kept: Sequence[Kept], new: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write what the rules have changed into the tensors of the state."""
    for each in kept:
        if not each.changes:
            continue
        old, value = state[each.key], new[each.name]
        if not each.per_element:
            old.copy_(torch.as_tensor(_plain(value), dtype=old.dtype, device=old.device))
        else:
            real(old).copy_(value)


def _plain(value: Any) -> Any:
    """Return a number of a whole DTensor as every rank's own: a checkpoint then holds it as it holds a step count."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as its pairs of reals, and any other as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def operands(
    equation: Equation,
    param: Tensor,
    grad: Tensor,
    state: Mapping[str, Any],
    kept: Sequence[Kept],
    how: str,
    factor: float,
    differentiable: bool = False,
) -> dict[str, Tensor]:
    """Return w, g and what is kept for every element, as they are computed with; what is not kept is zero."""
    dtype = compute_dtype(param.dtype)
    w, g = real(param).to(dtype), real(grad.resolve_conj()).to(dtype)
    if differentiable:  # the write must not reach what autograd has saved, nor a moment be the gradient itself
        w, g = w.clone(), g.clone()
    if factor != 1.0:
        g = g * factor
    if how == "compensated":
        w = rounding.restored(param, state["compensation"])
    nothing = torch.zeros((), dtype=dtype, device=w.device)
    found = {each.name: nothing for rule in equation.rules for each in rule.keeps if each.per_element}
    found.update({each.name: real(state[each.key]).to(dtype) for each in kept if each.per_element})
    return {**found, "w": w, "g": g}
