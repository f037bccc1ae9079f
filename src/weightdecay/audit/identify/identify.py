"""Find out by experiment what an optimizer's `weight_decay` really does."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from weightdecay.audit.identify import experiments, hypotheses
from weightdecay.audit.identify.experiments import Finding
from weightdecay.audit.identify.harness import LAMBDA, LR, Factory, Run, StepError, Subject, alone, name_of
from weightdecay.audit.identify.hypotheses import FITS, Beside, Constant, Coupled, Hypothesis, Observed, Powers
from weightdecay.display.record import Record
from weightdecay.update_rules.registry import REGISTRY

KINDS = {
    "coupled": "the penalty enters the gradient, and all that is made of it",
    "decoupled": "beside the gradient, with a strength that follows lr",
    "independent": "beside the gradient, with a strength that does not depend on the peak lr",
    "proximal": "a proximal step: the decay reads the new weight",
    "toward": "towards another point than zero",
    "rescaled": "beside the moments, but scaled with the step, as by a ratio of norms",
    "constant": "the same number is subtracted from every weight",
    "coupled or decoupled": "the optimizer remembers nothing, and so the two are one",
    "none": "λ does nothing",
    "unknown": "no rule explains it",
}
"""What the kind of a law says."""
_TOWARD = {"toward", "selective_projection"}
_MEMORY = {"momentum": 0.9}
"""What gives an optimizer a memory that has none by default, so that coupled and decoupled are two."""


@dataclass(frozen=True)
class DecayLaw(Record):
    """What an optimizer's decay does; prints as a sentence and a table."""

    optimizer: str
    kind: str
    """One of "coupled", "decoupled", "independent", "proximal", "toward", "rescaled", "constant", "coupled or decoupled",
    "none" and "unknown"."""
    reason: str
    """One clause that says what the kind does not."""
    rule: str | None = None
    """The rule of the registry that it is, a penalty or a decay."""
    strength: Powers | None = None
    """What a step takes, in powers of λ and lr."""
    weight: str | None = None
    """Which weight the decay reads: "old", the one that the gradient was taken at, or "new"."""
    default: float | None = None
    """λ where none is passed."""
    findings: Mapping[str, Finding] = field(default_factory=dict)
    """What the experiments found, by name."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """The numbers: the run, and what every hypothesis leaves unexplained of the decay's effect."""

    @property
    def text(self) -> str:
        """Return the law in a sentence."""
        is_called = "makes nothing of λ" if self.kind == "none" else f"is {self.kind}"
        return f"{self.optimizer} {is_called}: {self.reason}."

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield what the table shows."""
        if self.rule is not None:
            yield "rule", self.rule
        if self.strength is not None:
            yield ("weight in the gradient" if self.kind == "coupled" else "share per step"), str(self.strength)
        if self.weight is not None:
            yield "reads", f"the {self.weight} weight"
        if self.default is not None:
            yield "λ by default", f"{self.default:g}"
        yield from ((each.name, each.text) for each in self.findings.values())

    def __str__(self) -> str:
        rows = list(self.rows())
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join([self.text, *([""] if rows else []), *(f"{name:<{width}}  {text}" for name, text in rows)])

    def to_dict(self) -> dict[str, Any]:
        """Return the law as plain data, every number that was measured included; one that is not finite is None."""
        found = {**super().to_dict(), "text": self.text}
        if self.strength is not None:
            found["strength"]["formula"] = str(self.strength)
        return found


def identify(
    factory: Factory,
    *,
    knob: str = "weight_decay",
    name: str | None = None,
    compiled: bool = False,
    device: str | torch.device = "cpu",
) -> DecayLaw:
    """Find out what an optimizer's `weight_decay` does, by training small tensors with it and without.

    Each rule of the registry predicts the next weight from what the same optimizer does at λ = 0; the law is the rule whose
    predictions hold to a ten-thousandth of the decay's effect, step after step, while lr changes. What no rule explains is
    "unknown", with the numbers; so is one whose steps fail.

    No random numbers of the caller's are drawn, torch's, Python's or NumPy's, and what an optimizer sets for the whole process,
    such as torch's default dtype, is put back.

    Args:
        factory: a class, a functools.partial, or a function of (params, lr=…, weight_decay=…) that returns an optimizer.
        knob: the keyword that is λ, where it has another name.
        name: what to call the optimizer.
        compiled: whether to try `torch.compile` of its step, too, which takes seconds and a C++ compiler.
        device: where the tensors are.

    Raises:
        TypeError: factory cannot be called.
        ValueError: a knob that it does not take.
        RuntimeError: no step runs, on a matrix or a vector, in float64 or float32, with a closure or without.

    >>> law = identify(torch.optim.Adam)
    >>> print(law.text)
    Adam is coupled: λ·w is added to the gradient, and goes through all that the optimizer makes of it.
    >>> law.findings["bfloat16"].verdict
    'lost'
    """
    if isinstance(factory, torch.optim.Optimizer):
        raise TypeError(f"factory is a {type(factory).__name__} that was made already: pass its class")
    if not callable(factory):
        raise TypeError(f"factory={factory!r} cannot be called: pass a class or a function of (params, lr=…, weight_decay=…)")
    with alone():
        subject = Subject(factory, knob, name or name_of(factory), torch.device(device))
        if not subject.takes(knob):
            refusal = subject.refusal()
            if refusal is not None:
                raise RuntimeError(f"{subject.name} takes no {knob}, and does not run: {refusal}")
            if knob != "weight_decay":  # a slip of the pen is no law
                raise ValueError(f"knob={knob!r}: {subject.name} takes no such keyword")
            return DecayLaw(subject.name, "none", f"it takes no {knob}")
        if subject.refusal() is None and (refusal := subject.refusal(**{knob: 0.0})) is not None:
            return DecayLaw(subject.name, "none", f"it refuses {knob} ({refusal})")
        subject = subject.that_runs()
        try:
            found = _law(subject)
        except StepError as error:
            return DecayLaw(subject.name, "unknown", f"it does not run on: {error}")
        if found.kind == "none":
            return found
        findings = experiments.all_of(subject, found.strength if found.kind != "coupled" else None, compiled=compiled)
        return replace(found, findings={each.name: each for each in findings})


def _law(subject: Subject) -> DecayLaw:
    """Return the law without the findings of the corners."""
    law = DecayLaw(subject.name, "none", "")
    refusal = subject.refusal(**{subject.knob: LAMBDA})
    if refusal is not None:
        return replace(law, reason=f"it refuses {subject.knob} ({refusal})")
    observed = hypotheses.observe(subject)
    evidence = {"dtype": str(subject.dtype), "shape": list(subject.shape), **observed.to_dict()}
    law = replace(law, default=subject.default(), evidence=evidence)
    if not math.isfinite(observed.effect):
        return replace(law, kind="unknown", reason=f"with {subject.knob}={LAMBDA:g} the weights become NaN or infinite")
    if observed.effect == 0:
        return replace(law, reason=f"it takes {subject.knob} and does nothing with it: no bit of a weight changes")
    if not observed.is_measurable:
        return replace(law, kind="unknown", reason=f"the effect of {subject.knob} is too small to be told from rounding")
    verdict = hypotheses.holding(hypotheses.LIKELY, subject, observed)
    if not verdict.fits:
        verdict = hypotheses.holding(tuple(hypotheses.every()), subject, observed)
    law = replace(law, evidence={**law.evidence, "unexplained": verdict.to_dict()})
    if len({isinstance(each, Coupled) for each in verdict.fits}) > 1:
        return _with_memory(subject, law, verdict.fits)
    if verdict.fits:
        return _explained(subject, law, verdict.fits, _powers(verdict.fits[0], subject, observed))
    return _measured(subject, law, observed) or _unexplained(subject, law, observed, verdict.nearest())


def _with_memory(subject: Subject, law: DecayLaw, fits: tuple[Hypothesis, ...]) -> DecayLaw:
    """Tell coupled and decoupled apart with a momentum, where the optimizer takes one."""
    more = subject.with_settings(**_MEMORY)
    coupled, beside = (next(each for each in fits if isinstance(each, kind)) for kind in (Coupled, Beside))
    same = f"it remembers nothing from step to step, and so {coupled} and {beside} are one"
    alike = replace(law, kind="coupled or decoupled", reason=same, strength=hypotheses.PER_LR, weight="old")
    if not all(subject.takes(key) for key in _MEMORY) or more.refusal() is not None:
        return alike
    found = _law(more)
    if found.kind in ("none", "coupled or decoupled"):
        return alike
    with_memory = {f"with {key}={value:g}": dict(found.evidence) for key, value in _MEMORY.items()}
    setting = ", ".join(f"{key}={value:g}" for key, value in _MEMORY.items())
    return replace(
        found,
        optimizer=law.optimizer,
        reason=f"{found.reason} (told with {setting}: as it comes it remembers nothing, and so coupled and decoupled are one)",
        evidence={**law.evidence, **with_memory},
    )


def _powers(hypothesis: Hypothesis, subject: Subject, observed: Observed) -> Powers | None:
    """Return the strength of what explains a run at the very λ that was passed, from other runs, at other numbers."""
    if isinstance(hypothesis, Coupled):
        other = hypotheses.observe(subject, 2 * LAMBDA, 2 * LR)
        if not other.is_measurable:  # where only signs count, λ may turn none
            return None
        left = hypotheses.residual(hypothesis, subject, other)
        return hypotheses.IN_GRADIENT if left <= 10 * FITS else None
    if isinstance(hypothesis, Beside) and hypothesis.rule in ("independent", "corrected"):
        hypothesis = Beside("decoupled", hypothesis.order)  # whose λ then takes the powers of lr that these rules have
    return Powers.measured(hypothesis, subject)


def _measured(subject: Subject, law: DecayLaw, observed: Observed) -> DecayLaw | None:
    """Look for a rule that holds with another strength than its own."""
    for hypothesis in hypotheses.MEASURED:
        powers = Powers.measured(hypothesis, subject)
        several = hypotheses.IN_GRADIENT_TOO if isinstance(hypothesis, Coupled) else ()
        for each in (*([powers] if powers else []), *several):
            left = each.explain(hypothesis, subject, observed)
            if left <= FITS:
                law = replace(law, evidence={**law.evidence, "unexplained_at_the_measured_strength": left})
                return _explained(subject, law, (hypothesis,), each)
    return None


def _explained(subject: Subject, law: DecayLaw, fits: tuple[Hypothesis, ...], powers: Powers | None) -> DecayLaw:
    """Put what holds into words."""
    best = fits[0]
    strength = str(powers) if powers else "λ"
    if isinstance(best, Constant):
        reason = f"{strength} is subtracted from every weight, whatever its size and sign"
        return replace(law, kind="constant", reason=reason, strength=powers)
    law = replace(law, rule=best.rule, strength=powers)
    if isinstance(best, Coupled):
        rule = best.rule
        pull = f"{strength}·w is added" if rule == "l2" else f"the penalty `{rule}` with λ = {strength} is added"
        reason = f"{pull} to the gradient, and goes through all that the optimizer makes of it"
        return replace(law, kind="coupled", reason=reason, weight="old")
    assert isinstance(best, Beside)
    new = any(isinstance(each, Beside) and each.order == "new" for each in fits)
    law = replace(law, weight="new" if new else "old")
    if best.rule in ("decoupled", "independent", "corrected"):
        return _shrinking(law, best, powers)
    kind = "toward" if best.rule in _TOWARD else "proximal" if new else "decoupled"
    summary = REGISTRY["decay", best.rule].summary.rstrip(".")
    rest = f", of strength {strength}" if powers and powers != hypotheses.PER_LR else ""
    return replace(law, kind=kind, reason=f"it is the decay `{best.rule}`{rest} ({summary})")


def _shrinking(law: DecayLaw, best: Beside, powers: Powers | None) -> DecayLaw:
    """Put a decay into words that takes the same share of every weight."""
    if powers is None:
        return replace(law, kind="decoupled", reason=f"it is the decay `{best.rule}`")
    where = {"old": "the old weight", "before": "the old weight, before the step is made", "new": "the NEW weight"}[best.order]
    takes = f"beside the gradient, a step takes {powers} of {where}"
    if powers.of_lr + powers.of_first_lr != 0:
        unusual = "" if powers.of_lr + powers.of_first_lr == 1 else ", which is not what a λ per unit of lr would take"
        return replace(law, kind="decoupled", reason=takes + unusual)
    scheduled = "whatever the lr, schedules included" if powers.of_lr == 0 else "where lr₀ is the lr at construction"
    rule = "independent" if powers == hypotheses.PER_PEAK else None
    return replace(law, kind="independent", rule=rule, reason=f"{takes}, {scheduled}")


def _unexplained(subject: Subject, law: DecayLaw, observed: Observed, nearest: tuple[Hypothesis, float]) -> DecayLaw:
    """Say what can be said of a decay that no rule explains."""
    found = hypotheses.parts(subject, observed)
    numbers = {"parts": [vars(part) for part in found], "nearest": str(nearest[0]), "nearest_leaves": nearest[1]}
    law = replace(law, kind="unknown", evidence={**law.evidence, **numbers})
    if all(part.rest <= FITS for part in found):
        shares = [part.share / (lr * observed.lam) for part, lr in zip(found, observed.lrs, strict=True)]
        span = f"{min(shares):.3g} to {max(shares):.3g} times lr·λ"
        wholes = {"old": [1.0] * len(found), "new": [1 - part.share for part in found]}
        for weight, scales in wholes.items():
            if all(abs(part.scale - scale) <= FITS for part, scale in zip(found, scales, strict=True)):
                of = weight if weight == "old" else weight.upper()
                reason = f"beside the gradient, a step takes a share of the {of} weight that changes from step to step: {span}"
                return replace(law, kind="decoupled", reason=reason, weight=weight)
        reason = f"the step and λ·w are scaled together, as by a ratio of norms; a step takes {span} of the old weight"
        return replace(law, kind="rescaled", reason=reason, weight="old")
    state = "λ changes the optimizer's state" if _changes_state(subject, observed) else "λ is not in the optimizer's state"
    share = found[0].share / (observed.lrs[0] * observed.lam)
    first = f"; the first step takes {share:.3g} times lr·λ of the weight" if found[0].rest <= FITS and share else ""
    leaves = f"{nearest[0]} comes nearest and leaves {nearest[1]:.2g} of the effect or more"
    return replace(law, reason=f"no rule explains it ({leaves}); {state}{first}")


def _changes_state(subject: Subject, observed: Observed) -> bool:
    """Return whether a run with λ leaves other tensors in the optimizer's state than one without."""
    runs = [Run(subject, observed.weights[:1], lr=observed.lr, lam=lam) for lam in (observed.lam, 0.0)]
    for run in runs:
        run.all([[g] for g in observed.gradients], observed.lrs)
    state, twin = (run.optimizer.state.get(run.params[0], {}) for run in runs)
    tensors = [(state[key], twin[key]) for key in state if key in twin and isinstance(state[key], torch.Tensor)]
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in tensors)
