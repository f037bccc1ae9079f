"""What a decay may be, each as a prediction of the next weight from the same optimizer without decay.

The optimizer at λ = 0 is a black box that says where a gradient takes a weight. A coupled decay is that box, given a
gradient to which the penalty was added; a decay beside the step is a rule of the registry that is given the step which the
box took. So no formula stands here: what explains an optimizer is one of the rules, or nothing that is known.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from weightdecay.audit.identify.harness import LAMBDA, LR, LRS, Run, Subject
from weightdecay.optim import hyperparameters
from weightdecay.optim.attach import LAMBDA as ATTACHED
from weightdecay.optim.attach import attach
from weightdecay.optim.optimizer import Optimizer
from weightdecay.update_rules.registry import REGISTRY
from weightdecay.update_rules.rule import Rule

FITS = 1e-4
"""The share of the decay's effect that a hypothesis may leave unexplained: rounding leaves 1e-5 in float32, the hypotheses here
lie more than 100 times as much apart."""
_HOPELESS = 0.1
"""The share at which a hypothesis is given up, and its later steps are not tried."""
_CONVERGED = 1e-9
_ITERATIONS = 12

Prediction = Callable[[Tensor, Tensor, float, float], Tensor]
"""(w, gradient, lr, λ) → the next weight."""


@dataclass(frozen=True)
class Observed:
    """What an optimizer did with λ, and what it would have done without."""

    weights: list[Tensor]
    """Before the first step, and after each."""
    without: list[Tensor]
    gradients: list[Tensor]
    lrs: Sequence[float]
    """The first is the one that the optimizer was made with."""
    lr: float
    lam: float

    @property
    def effect(self) -> float:
        """Return the largest distance between the weights with λ and without, in one step of the run on average."""
        return (self.weights[-1] - self.without[-1]).abs().max().item() / len(self.gradients)

    @property
    def rounding(self) -> float:
        """Return how much of the effect rounding may be: residuals below it are all the same."""
        smallest = torch.finfo(self.weights[0].dtype).eps * self.weights[0].abs().max().item()
        return 10 * smallest / self.effect if self.effect else math.inf

    @property
    def is_measurable(self) -> bool:
        """Return whether the effect stands far enough above rounding for hypotheses to be told apart."""
        return self.rounding < FITS

    def to_dict(self) -> dict[str, float | list[float]]:
        """Return the setting and the effect."""
        return {"lr": self.lr, "lrs": list(self.lrs), "weight_decay": self.lam, "effect_per_step": self.effect}


def observe(subject: Subject, lam: float = LAMBDA, lr: float = LR, lrs: Sequence[float] = LRS) -> Observed:
    """Train with λ and without, on the same gradients."""
    start, gradients = subject.weights(), subject.gradients(len(lrs))

    def seen(lam: float) -> list[Tensor]:
        return [start, *(w for (w,) in Run(subject, [start], lr=lr, lam=lam).all([[g] for g in gradients], lrs))]

    return Observed(seen(lam), seen(0.0), gradients, lrs, lr, lam)


class Hypothesis(ABC):
    """One idea of what λ does."""

    rule: str | None
    """The rule of the registry that it is."""

    @abstractmethod
    def begin(self, subject: Subject, start: Tensor, lr: float) -> Prediction:
        """Return what predicts step after step of a run that is made with this learning rate."""


@dataclass(frozen=True)
class Coupled(Hypothesis):
    """The penalty is added to the gradient."""

    rule: str

    def begin(self, subject: Subject, start: Tensor, lr: float) -> Prediction:
        """See Hypothesis."""
        box = _Box(subject, start, lr)
        numbers = _numbers(REGISTRY["penalty", self.rule], box.run)
        judge = _Judge(start, 1.0, penalty=self.rule, penalty_weight=LAMBDA, **numbers)

        def predict(w: Tensor, g: Tensor, lr: float, lam: float) -> Tensor:
            pull = w - judge.step(w, torch.zeros_like(w), 1.0, lam, "penalty_weight")
            return box.step(w, g + pull, lr)

        return predict

    def __str__(self) -> str:
        return f"the penalty {self.rule} added to the gradient"


@dataclass(frozen=True)
class Beside(Hypothesis):
    """A decay beside the step, which reads the old weight, or the new one, or shrinks the weight before the step is made."""

    rule: str
    order: str = "old"

    def begin(self, subject: Subject, start: Tensor, lr: float) -> Prediction:
        """See Hypothesis."""
        box = _Box(subject, start, lr)
        rule = REGISTRY["decay", self.rule]
        numbers = _numbers(rule, box.run)
        if rule.measures_gradient and self.order == "old":
            measuring = _MeasuringJudge(start, lr, self.rule, numbers)
            return lambda w, g, lr, lam: measuring.step(w, box.step(w, g, lr), g, lr, lam)
        judge = _Judge(start, lr, decay=self.rule, weight_decay=LAMBDA, **numbers)

        def predict(w: Tensor, g: Tensor, lr: float, lam: float) -> Tensor:
            none = torch.zeros_like(w)
            if self.order == "before":
                return box.step(judge.step(w, none, lr, lam, "weight_decay"), g, lr)
            stepped = box.step(w, g, lr)
            if self.order == "new":
                return judge.step(stepped, none, lr, lam, "weight_decay")
            return judge.step(w, (w - stepped) / lr, lr, lam, "weight_decay")

        return predict

    def __str__(self) -> str:
        where = {"old": "on the old weight", "new": "on the new weight", "before": "before the step is made"}
        return f"the decay {self.rule} {where[self.order]}"


@dataclass(frozen=True)
class Constant(Hypothesis):
    """A bug that has shipped: lr·λ is subtracted from every weight, whatever its size and sign."""

    rule: str | None = None

    def begin(self, subject: Subject, start: Tensor, lr: float) -> Prediction:
        """See Hypothesis."""
        box = _Box(subject, start, lr)
        return lambda w, g, lr, lam: box.step(w, g, lr) - lr * lam

    def __str__(self) -> str:
        return "the same number subtracted from every weight"


class _Box:
    """The optimizer without decay."""

    def __init__(self, subject: Subject, start: Tensor, lr: float) -> None:
        self.run = Run(subject, [start], lr=lr, lam=0.0)

    def step(self, w: Tensor, gradient: Tensor, lr: float) -> Tensor:
        self.run.put([w])
        return self.run.step([gradient], lr)[0]


class _Judge:
    """The rule under a plain step: this package's optimizer, which is given the step instead of a gradient."""

    def __init__(self, start: Tensor, lr: float, **settings: object) -> None:
        self._w = torch.nn.Parameter(start.clone())
        self._optimizer = Optimizer([self._w], lr, direction="sgd", backend="eager", rounding="nearest", **settings)  # type: ignore[arg-type]

    def step(self, w: Tensor, u: Tensor, lr: float, lam: float, knob: str) -> Tensor:
        with torch.no_grad():
            self._w.copy_(w)
        self._w.grad = u
        self._optimizer.param_groups[0].update({"lr": lr, knob: lam})
        self._optimizer.step()
        return self._w.detach().clone()


class _MeasuringJudge:
    """The rule under a step and the gradient that led to it: attached to an optimizer that goes where it is told."""

    def __init__(self, start: Tensor, lr: float, decay: str, numbers: Mapping[str, Any]) -> None:
        self._w = torch.nn.Parameter(start.clone())
        self._optimizer = _Told([self._w], {"lr": lr})
        attach(self._optimizer, decay, LAMBDA, rounding="nearest", **numbers)

    def step(self, w: Tensor, stepped: Tensor, g: Tensor, lr: float, lam: float) -> Tensor:
        with torch.no_grad():
            self._w.copy_(w)
        self._w.grad, self._optimizer.there = g.clone(), stepped
        self._optimizer.param_groups[0].update({"lr": lr, ATTACHED: lam})
        self._optimizer.step()
        return self._w.detach().clone()


class _Told(torch.optim.Optimizer):
    there: Tensor

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            self.param_groups[0]["params"][0].copy_(self.there)


def _numbers(rule: Rule, run: Run) -> dict[str, Any]:
    """Return the rule's hyper-parameters as the optimizer under test has them, where it has some of these names."""
    return {name: run.group[name] for name in hyperparameters.defaults([rule]) if name in run.group}


# Which hypothesis holds -----------------------------------------------------------------------------------------------------

LIKELY: tuple[Hypothesis, ...] = (
    Coupled("l2"),
    Beside("decoupled"),
    Beside("decoupled", "before"),
    Beside("decoupled", "new"),
    Beside("independent"),
    Beside("corrected"),
)
MEASURED: tuple[Hypothesis, ...] = (
    *LIKELY[:4],
    Beside("implicit"),
    Beside("cautious"),
    Beside("soft_threshold"),
    Constant(),
)
"""What may hold with another factor than the rule's: the factor is measured."""


def every() -> Iterator[Hypothesis]:
    """Yield every rule of the registry that takes λ, as a hypothesis; the likely ones first."""
    yield from LIKELY
    yield Constant()
    for (kind, name), rule in REGISTRY.items():
        if "lam" in rule.numbers:
            several: tuple[Hypothesis, ...] = ()
            if kind == "penalty":
                several = (Coupled(name),)
            elif kind == "decay":
                several = (Beside(name), Beside(name, "new"))
            yield from (each for each in several if each not in LIKELY)


def residual(hypothesis: Hypothesis, subject: Subject, observed: Observed, lams: Sequence[float] | None = None) -> float:
    """Return how much of the decay's effect a hypothesis leaves unexplained, from 0; infinite where it cannot be tried.

    From a tenth on it is a bound from below: the hypothesis is then given up.

    Every step is predicted from the weight that the optimizer really had before it. `lams` are other λ than the observed one,
    step by step.
    """
    lams = lams or [observed.lam] * len(observed.lrs)
    try:
        predict = hypothesis.begin(subject, observed.weights[0], observed.lr)
        worst = 0.0
        for t, (w, following) in enumerate(pairwise(observed.weights)):
            found = predict(w, observed.gradients[t], observed.lrs[t], lams[t])
            worst = max(worst, (found - following).abs().max().item())
            if worst > _HOPELESS * observed.effect:
                break
    except (ValueError, TypeError, ArithmeticError):  # a λ or a number that the rule does not take
        return math.inf
    return worst / observed.effect if math.isfinite(worst) else math.inf


def holding(hypotheses: Iterator[Hypothesis] | Sequence[Hypothesis], subject: Subject, observed: Observed) -> "Verdict":
    """Return which hypotheses hold at the very λ that was passed."""
    residuals = {each: residual(each, subject, observed) for each in hypotheses}
    best = min(residuals.values())
    alike = max(10 * best, observed.rounding)
    fits = tuple(each for each, left in residuals.items() if left <= alike) if best <= FITS else ()
    return Verdict(residuals, fits)


@dataclass(frozen=True)
class Verdict:
    """What each hypothesis leaves unexplained, and which of them hold."""

    residuals: Mapping[Hypothesis, float]
    fits: tuple[Hypothesis, ...]

    def nearest(self) -> tuple[Hypothesis, float]:
        """Return the hypothesis that leaves the least, and what."""
        return min(self.residuals.items(), key=lambda item: item[1])

    def to_dict(self) -> dict[str, float | None]:
        """Return the residuals by hypothesis; None for one that could not be tried."""
        return {str(each): left if math.isfinite(left) else None for each, left in self.residuals.items()}


# How the effect depends on lr and λ -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Powers:
    """A decay's strength: per step, coefficient · λ^of_lambda · lr^of_lr · (the lr at construction)^of_first_lr."""

    coefficient: float
    of_lambda: float
    of_lr: float
    of_first_lr: float

    @classmethod
    def measured(cls, hypothesis: Hypothesis, subject: Subject) -> "Powers | None":
        """Measure them in single steps, from the λ with which the hypothesis explains each; None where none does.

        The strength of a penalty is the λ in the gradient, that of a decay lr times the λ of its rule.
        """
        found = []
        for first, lr, lam in ((LR, LR, LAMBDA), (2 * LR, 2 * LR, LAMBDA), (LR, LR / 2, LAMBDA), (LR, LR, LAMBDA / 2)):
            fitting = _fitting_lambda(hypothesis, subject, observe(subject, lam, first, [lr]))
            if fitting is None:
                return None
            found.append(fitting if isinstance(hypothesis, Coupled) else fitting * lr)
        base, both, later, half = found
        of_lr, of_lambda = math.log2(base / later), math.log2(base / half)
        powers = [_whole(each) for each in (of_lambda, of_lr, math.log2(both / base) - of_lr)]
        coefficient = base / (LAMBDA ** powers[0] * LR ** (powers[1] + powers[2]))
        return cls(1.0 if abs(coefficient - 1) < FITS else coefficient, *powers)

    def strength(self, lam: float, lr: float, first_lr: float) -> float:
        """Return what a step at these numbers takes."""
        found: float = self.coefficient * lam**self.of_lambda * lr**self.of_lr * first_lr**self.of_first_lr
        return found

    def for_strength(self, strength: float, lr: float) -> float:
        """Return the λ with which a step at a constant lr takes so much."""
        if self.of_lambda == 0:
            return LAMBDA
        found: float = (strength / self.strength(1.0, lr, lr)) ** (1 / self.of_lambda)
        return found

    def explain(self, hypothesis: Hypothesis, subject: Subject, observed: Observed) -> float:
        """Return what the hypothesis leaves unexplained of a run when its λ is replaced by what was measured."""
        strengths = [self.strength(observed.lam, lr, observed.lr) for lr in observed.lrs]
        if not isinstance(hypothesis, Coupled):
            strengths = [strength / lr for strength, lr in zip(strengths, observed.lrs, strict=True)]
        return residual(hypothesis, subject, observed, strengths)

    def __str__(self) -> str:
        """Write the strength as people do.

        >>> str(Powers(1, 1, 1, 0)), str(Powers(0.5, 1, 2, -1)), str(Powers(1, 1, 0, 0))
        ('lr·λ', '0.5·lr²·λ/lr₀', 'λ')
        """
        below = -self.of_first_lr
        factors = [
            *([f"{self.coefficient:.6g}"] if self.coefficient != 1 else []),
            *([_power("lr", self.of_lr)] if self.of_lr else []),
            *([_power("lr₀", self.of_first_lr)] if self.of_first_lr > 0 else []),
            *([_power("λ", self.of_lambda)] if self.of_lambda else []),
        ]
        return ("·".join(factors) or "1") + (f"/{_power('lr₀', below)}" if below > 0 else "")


IN_GRADIENT, PER_LR, PER_PEAK = Powers(1, 1, 0, 0), Powers(1, 1, 1, 0), Powers(1, 1, 1, -1)
"""λ as L2 takes it, as torch's AdamW takes it, and as the share of the first learning rate takes it."""
IN_GRADIENT_TOO = (IN_GRADIENT, PER_LR, Powers(2, 1, 0, 0), Powers(0.5, 1, 0, 0))
"""What may stand before w in the gradient: tried, since a first step of Adam's says nothing of it."""


def _power(name: str, exponent: float) -> str:
    if exponent == 1:
        return name
    return f"{name}²" if exponent == 2 else f"{name}^{exponent:.3g}"


def _whole(power: float) -> float:
    """Return the whole number that a measured power is, but for rounding."""
    return float(round(power)) if abs(power - round(power)) < 10 * FITS else power


def _fitting_lambda(hypothesis: Hypothesis, subject: Subject, observed: Observed) -> float | None:
    """Return the λ with which the hypothesis explains a single step, found by the secant method; None where none does."""
    if not observed.effect or not math.isfinite(observed.effect):
        return None
    (start, ended), (g,), (lr,) = observed.weights, observed.gradients, observed.lrs
    wanted = observed.without[-1] - ended
    size = wanted.square().sum().item()

    def share(lam: float) -> float:
        found = hypothesis.begin(subject, start, observed.lr)(start, g, lr, lam)
        return ((observed.without[-1] - found) * wanted).sum().item() / size

    try:
        before, lam = (0.0, 0.0), observed.lam
        for _ in range(_ITERATIONS):
            here = share(lam)
            slope = (here - before[1]) / (lam - before[0]) if lam != before[0] else 0.0
            if abs(here - 1) < _CONVERGED or not slope > 0:
                break
            before, lam = (lam, here), max(lam + (1 - here) / slope, 0.0)
        left = residual(hypothesis, subject, observed, [lam])
    except (ValueError, TypeError, ArithmeticError):
        return None
    return lam if left <= FITS and lam > 0 else None


@dataclass(frozen=True)
class Part:
    """What a step was made of, by least squares: scale · the step without decay − share · the old weight, and a rest."""

    scale: float
    share: float
    rest: float
    """Of the decay's effect on this step."""


def parts(subject: Subject, observed: Observed) -> list[Part]:
    """Split every step of a run, for a decay that scales the step too, or whose strength changes from step to step."""
    box, found = _Box(subject, observed.weights[0], observed.lr), []
    for t, (w, following) in enumerate(pairwise(observed.weights)):
        step = box.step(w, observed.gradients[t], observed.lrs[t]) - w
        made = following - w
        effect = (made - step).abs().max().item()
        if not effect:
            found.append(Part(1.0, 0.0, 0.0))
            continue
        columns = torch.stack([step.flatten(), w.flatten()], dim=1).double()
        scale, share = torch.linalg.lstsq(columns, made.flatten().double()[:, None]).solution.flatten().tolist()
        rest = (made - scale * step - share * w).abs().max().item()
        found.append(Part(scale, -share, rest / effect))
    return found
