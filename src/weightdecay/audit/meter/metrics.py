"""What the sums of a step say of a group or a role, as numbers, beside what the rules let one expect."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any

from torch import Tensor

from weightdecay.analysis.next_step import Upcoming
from weightdecay.analysis.units import Settings
from weightdecay.audit.meter import equilibrium
from weightdecay.audit.meter.sums import AFTER, BEFORE
from weightdecay.display.record import Record
from weightdecay.display.table import aligned
from weightdecay.update_rules.rule import Rule
from weightdecay.update_rules.traits import steps_to_halve
from weightdecay.validation import choice

_ORTHOGONAL = 1e-4
"""Where the cosine between a weight and its gradient is below, the length of the weight is taken not to change the loss."""
_LARGE = 1e6
"""A gradient beside which every eps is nothing."""
_RESCALING = frozenset({"norm_u", "norm_r"})
"""What a decay asks for to give the step a length of its own, not u's."""

GROUP = "group"
"""What the label of a group begins with, before its number."""

Sums = Mapping[str, float]


@dataclass(frozen=True)
class Expected:
    """What the rules of a group imply for each of its tensors."""

    lr: float
    degree: float
    """The power of the gradient's size with which u grows: 1 for SGD, 0 for Adam and all that normalise, NaN if unknown."""
    shrink: float | None
    """Of every weight, in the long run; None where that is the measured one, NaN where there is no such number."""
    balance: Callable[[int, Sums], float] | None
    """The norm at which a tensor of so many weights settles."""

    @classmethod
    def of(cls, step: Upcoming) -> "Expected":
        """Read the rules and numbers of a step."""
        penalty, decay, shrink = step.equation.penalty, step.equation.decay, step.shrink()
        if penalty is not None:
            is_l2 = penalty.name == "l2" and decay.name == "none"
            lam, gain = _plain(step.given["penalty"].get("lam", math.nan)), _gain(step)
            shrink = _plain(step.given["decay"]["eta"]) * lam * gain if is_l2 else math.nan
        return cls.shrinking(step, shrink)

    @classmethod
    def shrinking(cls, step: Upcoming, shrink: float | None) -> "Expected":
        """Read the direction of a step, with a decay that takes this share of every weight."""
        direction, numbers = step.equation.direction, _numbers(step)
        eta = _plain(step.given["decay"]["eta"])
        rescaled = not _RESCALING.isdisjoint(step.equation.decay.reductions)
        degree = math.nan if rescaled else _degree(direction, numbers)
        return cls(eta, degree, shrink, _balance(direction, numbers, eta, shrink, _gain(step)))


def _numbers(step: Upcoming) -> dict[str, Any]:
    """Return the direction's numbers; one of whole tensors may take words and pairs as well."""
    return {name: _plain(x) for name, x in step.given["direction"].items()}


def _plain(x: Any) -> Any:
    """Return a tensor of one element as a float, and all else as it is."""
    return float(x) if isinstance(x, Tensor) else x


def _gain(step: Upcoming) -> float:
    """Return how often SGD's momentum applies a gradient in all; NaN of any other direction."""
    numbers = _numbers(step)
    if step.equation.direction.name != "sgd" or numbers["mu"] >= 1:
        return math.nan
    between = Settings(("coupled", "torch"), momentum=numbers["mu"], dampening=numbers["dampening"])
    return between.to_torch("coupled", 1.0)


def _degree(direction: Rule, numbers: Mapping[str, float]) -> float:
    """Return the power of the gradient's size with which u grows, NaN if unknown."""
    starts = {each.name: each.start for each in direction.keeps if not each.per_element}
    given = {**starts, **numbers}
    if direction.whole or not all(isinstance(given.get(name), float | int) for name in direction.numbers):
        return math.nan
    return _asked(direction, tuple(given[name] for name in direction.numbers))


@lru_cache(maxsize=256)
def _asked(direction: Rule, values: tuple[Any, ...]) -> float:
    """Ask the rule itself what twice the gradient does to u."""
    state, given = [0.0] * (len(direction.elements) - 1), dict(zip(direction.numbers, values, strict=True))
    try:
        found = [direction.function(g, *state, **given) for g in (_LARGE, 2 * _LARGE)]
        once, twice = (each[0] if direction.returned else each for each in found)
        degree = math.log2(twice / once)
        return round(degree) if abs(degree - round(degree)) < 0.01 else math.nan
    except (ArithmeticError, ValueError):
        return math.nan


def _balance(
    direction: Rule, numbers: Mapping[str, float], eta: float, shrink: float | None, gain: float
) -> Callable[[int, Sums], float] | None:
    """Return the norm at equilibrium, as a function of the number of weights and the sums."""
    if shrink is None or not 0 < shrink < 1 or eta <= 0:
        return None
    if direction.name == "adam":
        return lambda count, _: equilibrium.adam(count, eta=eta, shrink=shrink, beta1=numbers["beta1"])
    if direction.name == "lion":
        betas = {name: numbers[name] for name in ("beta1", "beta2")}
        return lambda count, _: equilibrium.lion(count, eta=eta, shrink=shrink, **betas)
    if direction.name == "sgd" and not math.isnan(gain):
        return lambda _, sums: _of_invariant(sums, eta=eta, shrink=shrink, gain=gain)
    return None


def _of_invariant(sums: Sums, *, eta: float, shrink: float, gain: float) -> float:
    """Return SGD's equilibrium for a tensor whose gradient stands at right angles to it, NaN for another."""
    gradient = math.sqrt(sums["w²"] * sums["gradient²"])
    if not 0 < gradient < math.inf or abs(sums["w·gradient"]) > _ORTHOGONAL * gradient:
        return math.nan
    return equilibrium.sgd(gradient, eta=eta, shrink=shrink, gain=gain)


# From sums to numbers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What is known of a tensor without a look at its weights."""

    labels: tuple[str, ...]
    """The group and, if it has one, the role."""
    count: int
    """Of weights; a complex one is two."""
    is_matrix: bool
    expected: Expected | None


@dataclass(frozen=True)
class Measured:
    """One tensor at one sample."""

    known: Known
    sums: Sums

    @classmethod
    def of(cls, known: Known, row: Sequence[float]) -> "Measured":
        """Name the sums."""
        return cls(known, dict(zip((*BEFORE, *AFTER), row, strict=True)))

    def angle(self) -> float:
        """Return the angle between the weights before and after, exact where it is small; NaN if they are not finite."""
        w, along, change = (self.sums[name] for name in AFTER)
        square = w * change - along * along
        return math.nan if math.isnan(square) else math.atan2(math.sqrt(max(0.0, square)), w + along)

    def balance(self) -> float:
        """Return the norm at equilibrium; NaN where no law applies."""
        expected = self.known.expected
        if expected is None or expected.balance is None or not self.known.is_matrix:
            return math.nan
        return expected.balance(self.known.count, self.sums)

    def effective_lr(self) -> float:
        """Return the learning rate that would turn weights of norm 1 as far."""
        expected = self.known.expected
        return math.nan if expected is None else expected.lr / math.sqrt(self.sums["w²"]) ** (1 + expected.degree)

    def forgotten(self) -> float:
        """Return the shrink of the long run, times ‖w‖²."""
        expected = self.known.expected
        if expected is None:
            return math.nan
        return self.sums["w·decay"] if expected.shrink is None else expected.shrink * self.sums["w²"]


@dataclass(frozen=True)
class Reading(Record):
    """What one step did to a group or a role, all its tensors as one vector w unless it says otherwise; NaN is unknown.

    Of the step w_t = g·w − η·h, (1 − g)·w is the decay and η·h the update.
    """

    tensors: int
    """How many had a gradient, and so a step."""
    weights: int
    norm: float
    """‖w‖, before the step."""
    change: float
    """‖w_t − w‖/‖w‖ of the stored weights."""
    angle: float
    """Between w and w_t in radians; the mean over the tensors that are not 0."""
    shrink: float
    """⟨w, (1 − g)·w⟩/‖w‖², the share of w that the decay was to take: lr·λ if decoupled."""
    realised: float
    """⟨w, R(w − η·h) − w_t⟩/‖w‖², the share that it took: R rounds as the step does, with the same random bits.
    Of an attached decay, what it took of the stored weights; what is pending counts as taken."""
    kept: float
    """realised/shrink: 1 if no decay is lost, 0 if all of it is."""
    decay_to_update: float
    """‖(1 − g)·w‖/‖η·h‖."""
    equilibrium: float
    """The norm at which the rules hold the matrices of which a law is known, as one vector."""
    norm_to_equilibrium: float
    """The norm of those matrices over it."""
    half_life: float
    """In steps, at this step's lr and λ."""
    half_life_epochs: float
    timescale: float
    """In steps: over how many the weights average their updates."""
    timescale_epochs: float
    effective_lr: float
    """η/‖w‖² if u grows with the gradient, η/‖w‖ if it does not; the mean over the tensors that
    are not 0. NaN where the decay has u rescaled by its norm, as LAMB does."""

    @classmethod
    def of(cls, tensors: Sequence[Measured], steps_per_epoch: float | None = None) -> "Reading":
        """Sum up tensors."""

        def total(name: str) -> float:
            return _sum(each.sums[name] for each in tensors)

        square = total("w²")
        shrink = _quotient(total("w·decay"), square)
        realised = _quotient(total("w·undecayed") - total("w·change"), square)
        settling = [(balance, each.sums["w²"]) for each in tensors if not math.isnan(balance := each.balance())]
        balance = math.sqrt(_sum(norm * norm for norm, _ in settling)) if settling else math.nan
        forgotten = _quotient(_sum(each.forgotten() for each in tensors), square)
        half_life = steps_to_halve(forgotten)
        timescale = math.inf if forgotten <= 0 else 1 / forgotten  # a pull to a larger norm forgets nothing
        epoch = math.nan if steps_per_epoch is None else steps_per_epoch
        directed = [each for each in tensors if each.sums["w²"] != 0]  # a zero vector has no direction that could turn
        return cls(
            len(tensors),
            sum(each.known.count for each in tensors),
            math.sqrt(square),
            math.sqrt(_quotient(total("change²"), square)),
            _mean([each.angle() for each in directed]),
            shrink,
            realised,
            _quotient(realised, shrink),
            math.sqrt(_quotient(total("decay²"), total("step²"))),
            balance,
            _quotient(math.sqrt(_sum(norm for _, norm in settling)), balance),
            half_life,
            half_life / epoch,
            timescale,
            timescale / epoch,
            _mean([each.effective_lr() for each in directed]),
        )

    def numbers(self, names: Collection[str] | None = None) -> dict[str, float]:
        """Return what is known of these quantities, or of all."""
        values = {name: getattr(self, name) for name in QUANTITIES if names is None or name in names}
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def cells(self) -> tuple[str, ...]:
        """Return the line of the table."""
        shown = (self.norm, self.norm_to_equilibrium, self.angle, self.shrink, self.kept, self.decay_to_update)
        life = "never" if math.isinf(self.half_life) else _short(self.half_life, ",.0f")
        return f"{self.weights:,}", *map(_short, shown), life, _short(self.effective_lr)


QUANTITIES = tuple(each.name for each in fields(Reading)[2:])
"""What can be asked of a reading by name: all but its counts."""
METRICS = ("norm", "angle", "shrink", "kept", "decay_to_update")
"""What the callbacks log unless told otherwise."""


def asked_for(metrics: str | Collection[str]) -> tuple[str, ...]:
    """Return the quantities that somebody asks for by name; "all" is every one.

    Raises:
        ValueError: there is none of that name.

    >>> asked_for("kept"), asked_for(["norm", "half_life"]), len(asked_for("all"))
    (('kept',), ('norm', 'half_life'), 14)
    """
    if isinstance(metrics, str):
        metrics = QUANTITIES if metrics == "all" else [metrics]
    return tuple(choice("metrics", name, QUANTITIES) for name in metrics)


def _short(x: float, digits: str = ".3g") -> str:
    return "–" if math.isnan(x) else format(x, digits)


def _sum(terms: Iterable[float]) -> float:
    """Return the sum: of a run that diverges NaN or infinity, where math.fsum would raise."""
    terms = [*terms]
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):
        return sum(terms)


def _mean(terms: Sequence[float]) -> float:
    return _sum(terms) / len(terms) if terms else math.nan


def _quotient(x: float, y: float) -> float:
    """Return x/y, NaN where there is none."""
    return x / y if y else math.nan


@dataclass(frozen=True)
class Sample:
    """What one step did, by group and role; prints as a table."""

    step: int
    """Of those that the meter has seen, from 1."""
    readings: Mapping[str, Reading]

    header = ("", "weights", "‖w‖", "of equilibrium", "angle", "shrink", "kept", "decay/update", "half-life", "effective lr")

    @staticmethod
    def is_group(label: str) -> bool:
        """Tell whether a label is a group's; the others are roles."""
        return label.startswith(GROUP)

    @classmethod
    def of(cls, step: int, tensors: Iterable[Measured], steps_per_epoch: float | None) -> "Sample":
        """Sum up the tensors of each label: the groups first, the roles as they come."""
        labelled: dict[str, list[Measured]] = {}
        for each in tensors:
            for label in each.known.labels:
                labelled.setdefault(label, []).append(each)
        labels = sorted(labelled, key=lambda label: not cls.is_group(label))
        return cls(step, {label: Reading.of(labelled[label], steps_per_epoch) for label in labels})

    def metrics(self, prefix: str, names: Collection[str] | None = None, *, roles: bool = True) -> dict[str, float]:
        """Return what is known of these quantities, or of all, as one flat dict, of the groups and the roles."""
        shown = {label: reading for label, reading in self.readings.items() if roles or self.is_group(label)}
        named = ((label, reading.numbers(names)) for label, reading in shown.items())
        return {f"{prefix}/{label}/{name}": value for label, numbers in named for name, value in numbers.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the sample as plain data; what is unknown or never ends is None."""
        return {"step": self.step, "readings": {label: reading.to_dict() for label, reading in self.readings.items()}}

    def __str__(self) -> str:
        rows = [self.header, *((label, *reading.cells()) for label, reading in self.readings.items())]
        return "\n".join([f"step {self.step:,}", *aligned(rows)])


# A run in a table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course(Record):
    """What the samples of a group or a role say of a run. Each stands for the steps since the one before it; NaN is unknown."""

    first: float
    """‖w‖ at the first sample."""
    last: float
    """‖w‖ at the last one."""
    norm_to_equilibrium: float
    """This and the others that are not said to be anything else are medians over the steps of the run."""
    angle: float
    shrink: float
    kept: float
    """What the decay took in the whole run over what it was to take."""
    decay_to_update: float
    half_life: float

    @classmethod
    def of(cls, readings: Sequence[tuple[int, Reading]]) -> "Course":
        """Sum up readings, each with the number of steps that it stands for."""

        def median(name: str) -> float:
            return _median([(getattr(each, name), steps) for steps, each in readings])

        known = [(steps, each) for steps, each in readings if math.isfinite(each.realised) and math.isfinite(each.shrink)]
        taken, intended = (_sum(steps * getattr(each, name) for steps, each in known) for name in ("realised", "shrink"))
        return cls(
            readings[0][1].norm,
            readings[-1][1].norm,
            median("norm_to_equilibrium"),
            median("angle"),
            median("shrink"),
            _quotient(taken, intended),
            median("decay_to_update"),
            median("half_life"),
        )

    def cells(self) -> tuple[str, ...]:
        """Return the line of the table."""
        norm = " → ".join(dict.fromkeys((_short(self.first), _short(self.last))))
        life = "never" if math.isinf(self.half_life) else _short(self.half_life, ",.0f")
        kept = "–" if math.isnan(self.kept) else f"{round(self.kept, 2) + 0.0:.0%}"
        shown = map(_short, (self.norm_to_equilibrium, self.angle, self.shrink))
        return norm, *shown, kept, _short(self.decay_to_update), life


def _median(values: Iterable[tuple[float, int]]) -> float:
    """Return the median of values that count so many times; NaN are left out."""
    known = sorted((value, count) for value, count in values if not math.isnan(value))
    half, seen = sum(count for _, count in known) / 2, 0
    for value, count in known:
        seen += count
        if seen >= half:
            return value
    return math.nan


@dataclass(frozen=True)
class Summary:
    """What a meter has measured in a run, by group and role; prints as a table."""

    first: int
    """The step of the first sample."""
    last: int
    samples: int
    courses: Mapping[str, Course]

    header = ("", "‖w‖, first → last", "of equilibrium", "angle", "shrink", "kept in all", "decay/update", "half-life")

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Summary":
        """Sum up samples, of which there is one at least."""
        steps = [each.step for each in samples]
        counts = [1, *(max(1, later - step) for step, later in pairwise(steps))]
        labelled: dict[str, list[tuple[int, Reading]]] = {}
        for count, sample in zip(counts, samples, strict=True):
            for label, reading in sample.readings.items():
                labelled.setdefault(label, []).append((count, reading))
        labels = sorted(labelled, key=lambda label: not Sample.is_group(label))
        return cls(steps[0], steps[-1], len(steps), {label: Course.of(labelled[label]) for label in labels})

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data; what is unknown or never ends is None."""
        courses = {label: course.to_dict() for label, course in self.courses.items()}
        return {"first": self.first, "last": self.last, "samples": self.samples, "courses": courses}

    def __str__(self) -> str:
        rows = [self.header, *((label, *course.cells()) for label, course in self.courses.items())]
        title = f"step {self.first:,}"
        if self.samples > 1:
            steps = f"steps {self.first:,} to {self.last:,}, {self.samples} of them measured"
            title = f"{steps}; medians where nothing else is said"
        return "\n".join([title, *aligned(rows)])
