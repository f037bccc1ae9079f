"""Runs that several test files share: a rule on floats, an optimizer with a rule, a walk of many steps."""

import itertools
import math

import torch

import weightdecay as wd
from weightdecay.optim import hyperparameters
from weightdecay.update_rules.ops import absolute, maximum, sign
from weightdecay.update_rules.reductions import REDUCTIONS

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
RULES = tuple(wd.rules().values())
WITH_LAMBDA = tuple(rule for rule in RULES if "lam" in rule.numbers)
NOT_THE_IDENTITY = ("trust_ratio",)
"""The rules that do something else than `none` at λ = 0."""
DIRECTIONS = tuple(wd.rules().of("direction"))
_PATTERN = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def name(value):
    """Return how pytest shows a rule or a dtype."""
    return f"{value.kind}-{value.name}" if isinstance(value, wd.update_rules.rule.Rule) else str(value).removeprefix("torch.")


def rules_with(rule):
    """Return what makes a `weightdecay.Optimizer` with a rule, every part of it at work: with SGD unless it asks for more."""
    weight = {"penalty": "penalty_weight", "decay": "weight_decay"}.get(rule.kind, "")
    strength = {weight: 0.5} if "lam" in rule.numbers else {}
    direction = "adam" if rule.shared else "sgd"
    momentum = {"momentum": 0.9} if "mu" in rule.defaults or (rule.kind != "direction" and direction == "sgd") else {}
    return {"direction": direction, rule.kind: rule.name, **strength, **momentum}


def weights(dtype=torch.float64, count=33):
    """Return a matrix, which every rule takes."""
    return torch.nn.Parameter(torch.randn(count).to(dtype).view(3, -1))


def laid_for(rule, values):
    """Return numbers in a row as a tensor that a rule takes: one of matrices is given a row."""
    return values.view(1, -1) if rule.ndim == 2 else values


def twin(param):
    return torch.nn.Parameter(param.detach().clone())


def gradients(steps=6, count=33):
    """Return a history whose size differs from weight to weight, as real ones do; every dtype holds it."""
    return list(torch.randn(steps, count) * torch.logspace(-2, 2, count))


def zeros(steps, count=33):
    return [torch.zeros(count)] * steps


def edges(dtype=torch.float64):
    """Return, with both signs, zero, the smallest numbers of a dtype, nearly the largest, and a few between.

    A quarter of the largest: the largest itself overflows in any m̂ = m/(1 − βᵗ) that rounds up.
    """
    info = torch.finfo(dtype)
    smallest, middle = info.smallest_normal, math.sqrt(info.smallest_normal)
    sizes = torch.tensor([0.0, smallest * info.eps, smallest, middle, 1.0, 1 / middle, info.max / 4], dtype=torch.float64)
    return torch.cat([sizes, -sizes]).to(dtype)


def optimizer_with(rule, params, *, lam=0.0, lr=0.1, direction="sgd", **options):
    """Return an optimizer with this rule, with sgd unless it says otherwise, and with nothing else."""
    if rule.kind == "direction":
        return wd.Optimizer(params, lr, direction=rule.name, **options)
    if not fits(rule, direction):
        direction = "adam"
    weight = "penalty_weight" if rule.kind == "penalty" else "weight_decay"
    given = {rule.kind: rule.name, **({weight: lam} if "lam" in rule.numbers else {})}
    return wd.Optimizer(params, lr, direction=direction, **given, **options)


def fits(rule, direction):
    """Return whether a direction makes all that the rule asks for; Adam does."""
    made = wd.rules()["direction", direction].made
    return all(made.issuperset(REDUCTIONS[key].elements) for key in rule.shared)


def walk(optimizer, history, lrs=None):
    """Return the weights after each step; an entry of the history is the gradient of every parameter, or a list of them."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    seen = []
    for t, entry in enumerate(history):
        for param, grad in zip(params, entry if isinstance(entry, list) else [entry] * len(params), strict=True):
            param.grad = None if grad is None else grad.to(param.dtype).view(param.shape)
        if lrs is not None:
            for group in optimizer.param_groups:
                group["lr"] = lrs[t]
        optimizer.step()
        seen.append(torch.cat([param.detach().flatten() for param in params]).clone())
    return torch.stack(seen)


def kept_at_start(rule, w, numbers):
    """Return what a rule keeps before the first step: columns of floats by name, and numbers by name."""
    columns, memory = {}, {}
    for kept in rule.keeps:
        if kept.start == "w":
            columns[kept.name] = list(w)
        elif kept.per_element:
            columns[kept.name] = [float(numbers.get(kept.start, kept.start))] * len(w)
        elif kept.start in REDUCTIONS:
            memory[kept.name] = reduced(REDUCTIONS[kept.start], {"w": list(w)}, numbers)
        else:
            memory[kept.name] = kept.start
    return columns, memory


def stepped_on_floats(rule, elements, numbers, columns, memory):
    """Apply a rule on floats and return its first result, having moved on what it keeps; `elements` are columns by name."""
    inputs = {**columns, **elements}
    found, *changed = on_floats(rule, [inputs[key] for key in rule.elements], {**numbers, **memory}, **elements)
    for key, column in zip(rule.returned, changed, strict=True):
        if key in columns:
            columns[key] = column
        else:
            memory[key] = column[0]
    return found


def on_floats(rule, elements, numbers, **others):
    """Apply a rule to whole tensors as typed, element by element on Python floats, and return a list per result.

    `elements` are lists of floats, in the rule's order; `numbers` are all that stands right of the `*` but the reductions,
    which are computed on floats, too; `others` are columns that only those need.
    """
    columns = {**others, **dict(zip(rule.elements, elements, strict=True))}
    asked = {key: reduced(REDUCTIONS[key], columns, numbers) for key in rule.reductions}
    results = [rule.function(*row, **numbers, **asked) for row in zip(*elements, strict=True)]
    rows = [result if isinstance(result, tuple) else (result,) for result in results]
    return [list(column) for column in zip(*rows, strict=True)]


def reduced(reduction, columns, numbers):
    """Compute a reduction on floats; a norm in units of the largest element, of which no power leaves the range of floats."""
    unit = max(map(abs, columns[reduction.elements[0]])) or 1.0 if reduction.norm else 1.0
    rows = zip(*(columns[element] for element in reduction.elements), strict=True)
    total = sum(reduction.term(*(x / unit for x in row), **reduction.given(reduction.term, numbers)) for row in rows)
    return reduction.finish(total, **reduction.given(reduction.finish, numbers)) * unit


def numbers_of(rule, *, t=1, lam=0.0, eta=0.1, eta_max=0.1, **settings):
    """Return what stands right of the rule's `*`, from settings under their users' names (momentum, betas)."""
    group = {**hyperparameters.defaults([rule]), **settings, "lr": eta, "lr_max": eta_max, "lam": lam}
    return {**hyperparameters.numbers(rule, group, lam="lam", t=t), **dict.fromkeys(rule.memory, 0.75)}


def specials(dtype):
    """Return NaN, and with both signs zero, subnormal, small, ordinary, huge and infinite numbers of a dtype, as floats."""
    info = torch.finfo(dtype)
    sizes = [0.0, info.smallest_normal * info.eps, info.smallest_normal, 0.125, 0.5, 1.0, 1.5, 100.0, info.max, math.inf]
    return [math.nan, *sizes, *(-size for size in sizes)]


def arguments(word, dtype=torch.float64):
    """Return all the combinations of special numbers that a word takes: a condition is true or not, a power is of x ≥ 0."""
    values = specials(dtype)
    positive = [x for x in values if not math.copysign(1, x) < 0]
    steps = [1.0, 2.0, 10.0, 1e3, 1e6]
    choices = {"power": (positive, values), "where": ([True, False], values, values), "debias": ([0.0, 0.5, 0.875], steps)}
    pairs = {"maximum", "minimum"}
    return list(itertools.product(*choices.get(word, (values, values) if word in pairs else (values,))))


def bits(tensor):
    """Return the bit pattern of each element, so that equality tells −0 from 0 and one NaN from another."""
    return tensor.detach().view(_PATTERN[tensor.element_size()])


def same_bits(x, y):
    return torch.equal(bits(x), bits(y))


def assert_close(got, expected, *, tolerance, effect=None):
    """Compare relative to the largest value, and refuse a comparison that could not have seen the effect under test."""
    got, expected = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64)
    bound = tolerance * expected.abs().max()
    if effect is not None:
        assert effect >= 100 * bound, f"the effect {effect:.1e} is too near the tolerance {bound:.1e}"
    assert (got - expected).abs().max() <= bound, f"{got.tolist()} is not {expected.tolist()}"


def decays_of_ones_own():
    """Register decays of shapes that the library may not have: after the step, and by norms. For tests with `own_registry`."""

    @wd.decay(source="nobody")
    def my_soft(w, u, *, eta, lam):
        stepped = w - eta * u
        return sign(stepped) * maximum(absolute(stepped) - eta * lam, 0)

    @wd.decay(source="nobody")
    def my_divided(w, u, *, eta, lam):
        return (w - eta * u) / (1 + eta * lam)

    @wd.decay(source="nobody")
    def my_by_norm(w, u, *, eta, lam, norm_w, norm_u):
        return (1 - eta * lam * norm_u / norm_w) * w - eta * u

    return [my_soft, my_divided, my_by_norm]


# What kernels are compared on -----------------------------------------------------------------------------------------

APPROXIMATED = {"exp", "log", "power"}
"""Words of which two libraries may give neighbouring numbers."""


def pairs():
    """Return what makes an optimizer of every rule that a kernel sees, with no powers in it where that is possible."""
    for rule in [rule for rule in RULES if not rule.whole]:
        rules = rules_with(rule)
        if rule.kind == "direction":
            yield {**rules, "decay": "decoupled", "weight_decay": 0.5}
        elif rule.kind == "penalty":
            yield {**rules, "penalty_weight": 2.0}
        elif rule.name in ("cautious", "hyperball"):
            yield {**{key: value for key, value in rules.items() if key != "momentum"}, "direction": "adam"}
        else:
            yield rules


def distance(got, expected):
    """Return the largest difference, in units of the largest value."""
    if not got.numel():
        return 0.0
    return ((got.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30)).item()


def is_exact(optimizer):
    """Tell whether the kernels' arithmetic has one right answer: sums are taken in another order, powers by other libraries."""
    rules = optimizer.equation(optimizer.param_groups[0]).rules
    return not any(rule.reductions or APPROXIMATED & set(rule.function.__code__.co_names) for rule in rules)
