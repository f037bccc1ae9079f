"""What a decay does in the corners: without a gradient, under `maximize`, in bfloat16, with a tensor lr, on every path.

Each experiment is a function of a subject and of what is known of its law, and returns a finding with its numbers. An
experiment that the optimizer refuses finds that.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from weightdecay.audit.identify.harness import LAMBDA, LR, Run, StepError, Subject, Weights, described
from weightdecay.audit.identify.hypotheses import FITS, Powers
from weightdecay.display.record import Record
from weightdecay.optim.optimizer import Optimizer

_STEPS = 6
_LOW_STEPS, _LOW_LR, _LOW_LAMBDA, _LOW_SHRINK = 25, 1e-3, 0.4, 4e-4
_LOW_SHAPE = (64, 64)
"""Enough weights for the mean of a stochastic rounding to be told to two digits."""


@dataclass(frozen=True)
class Finding(Record):
    """What one experiment found."""

    name: str
    verdict: str
    """One word or two that programs can compare: "stays", "moves", "same", "differs", "refused", "not told", …"""
    text: str
    """What people read."""
    numbers: Mapping[str, Any] = field(default_factory=dict)


def no_gradient(subject: Subject) -> Finding:
    """Leave one of two tensors without a gradient, from the start."""
    start = [subject.weights(seed=2), subject.weights()]
    run = Run(subject, start, lr=LR, lam=LAMBDA)
    run.all([[None, g] for g in subject.gradients(_STEPS)])
    return _moved("grad=None", run.weights[0], start[0])


def frozen(subject: Subject) -> Finding:
    """Freeze one of two tensors after two steps, as a schedule that thaws layers does: requires_grad=False, grad=None."""
    run = Run(subject, [subject.weights(seed=2), subject.weights()], lr=LR, lam=LAMBDA)
    gradients = subject.gradients(_STEPS)
    run.all([[g, g] for g in gradients])
    before = run.weights[0]
    run.params[0].requires_grad_(False)
    run.all([[None, g] for g in gradients])
    return _moved("frozen", run.weights[0], before)


def zero_gradient(subject: Subject) -> Finding:
    """Give a tensor gradients of zeros from the start, with λ and without."""
    start = subject.weights()
    zeros = [[torch.zeros_like(start)]] * _STEPS
    with_decay, without = (Run(subject, [start], lr=LR, lam=lam).all(zeros)[-1][0] for lam in (LAMBDA, 0.0))
    if not with_decay.isfinite().all():
        return Finding("zero gradient", "not finite", "the weights become NaN or infinite")
    if torch.equal(with_decay, without):
        return Finding("zero gradient", "stays", "does not decay")
    kept = with_decay / without
    numbers = {"steps": _STEPS, "least_kept": kept.min().item(), "most_kept": kept.max().item()}
    if (kept.max() - kept.min()).item() < FITS * (1 - kept).abs().max().item():
        share = 1 - kept.mean().item() ** (1 / _STEPS)
        return Finding("zero gradient", "decays", f"decays: every weight by {share:.3g} a step", numbers)
    return Finding("zero gradient", "decays", "decays, every weight by another share", numbers)


def lr_zero(subject: Subject) -> Finding:
    """Step at lr = 0 with gradients of zeros, as distributed checkpointing does when it is asked for the state."""
    start = subject.weights()
    run = Run(subject, [start], lr=LR, lam=LAMBDA)
    run.step([torch.zeros_like(start)], lr=0.0)
    return _moved("lr=0", run.weights[0], start)


def maximize(reference: "Reference") -> Finding | None:
    """Climb along the opposite gradients: the weights have to be those of the descent, decay and all."""
    subject = reference.subject
    if not subject.takes("maximize"):
        return None
    opposite = [[-g for g in each] for each in reference.gradients]

    def climbed(lam: float, *, maximize: bool = True) -> Weights:
        return Run(subject, reference.start, lr=LR, lam=lam, maximize=maximize).all(opposite)[-1]

    found = reference.compared("maximize", lambda: climbed(LAMBDA), same="the decay still shrinks")
    if found.verdict != "differs":
        return found
    without = climbed(0.0)
    steps_alike = reference.apart(without, reference.without) <= FITS
    if not steps_alike and reference.apart(without, climbed(0.0, maximize=False)) <= FITS:
        return Finding("maximize", "ignored", "does not climb: `maximize` does nothing", found.numbers)
    pairs = zip(climbed(LAMBDA), without, reference.plain, reference.without, strict=True)
    if sum(((a - b) * (c - d)).sum().item() for a, b, c, d in pairs) < 0:
        return Finding("maximize", "flipped", "the decay GROWS the weights", found.numbers)
    if not steps_alike:
        return Finding(
            "maximize", "other steps", "climbs by other steps than it descends; the decay still shrinks", found.numbers
        )
    return found


def bfloat16(subject: Subject, strength: Powers | None) -> Finding:
    """Train bfloat16 weights without a gradient and say which share of the decay they took that exact ones would have taken.

    A step takes 4e-4 of a weight where λ can be chosen so, a fifth of what would round to another bfloat16 or less.
    """
    lam = strength.for_strength(_LOW_SHRINK, _LOW_LR) if strength is not None else _LOW_LAMBDA
    shape = _LOW_SHAPE if len(subject.shape) == 2 else (_LOW_SHAPE[0] * _LOW_SHAPE[1],)
    start = subject.weights(shape).bfloat16()

    def taken(of: Subject) -> Tensor:
        w = start.to(of.dtype)
        zeros = [[torch.zeros_like(w)]] * _LOW_STEPS
        ran = [Run(of, [w], lr=_LOW_LR, lam=each).all(zeros)[-1][0].double() for each in (lam, 0.0)]
        return ran[0] - ran[1]

    ideal = taken(subject)
    size = ideal.square().sum().item()
    if not size or not ideal.isfinite().all():
        return Finding("bfloat16", "not told", "not told: nothing decays without a gradient")
    share = (taken(replace(subject, dtype=torch.bfloat16)) * ideal).sum().item() / size
    if not math.isfinite(share):
        return Finding("bfloat16", "not finite", "the weights become NaN or infinite")
    numbers = {"share": share, "steps": _LOW_STEPS, "lr": _LOW_LR, "weight_decay": lam}
    verdict = "kept" if share > 0.9 else "lost" if share < 0.1 else "partly"
    return Finding("bfloat16", verdict, f"{100 * share:.0f} % of the decay reaches the weights", numbers)


def schedule(reference: "Reference") -> Finding:
    """Write another λ into the groups of a running optimizer, as a schedule of λ does."""
    subject = reference.subject
    changed = Run(subject, reference.start, lr=LR, lam=LAMBDA / 2)
    if subject.knob not in changed.group:
        return Finding("λ in the groups", "absent", f"the groups have no {subject.knob!r}: no schedule can write it")
    changed.set(subject.knob, LAMBDA)
    found = reference.compared("λ in the groups", lambda: changed.all(reference.gradients)[-1])
    if found.verdict == "same":
        return Finding(found.name, "read", "read at every step: a schedule can write it", found.numbers)
    if found.verdict == "differs":
        return Finding(found.name, "not read", "WRITTEN INTO THE GROUPS, IT IS NOT READ", found.numbers)
    return found


def tensor_lr(reference: "Reference") -> Finding:
    """Pass the learning rate as a tensor."""
    lr = torch.tensor(LR, dtype=torch.float64, device=reference.subject.device)
    return reference.compared("tensor lr", lambda: reference.run(lr=lr))


def paths(reference: "Reference", *, compiled: bool) -> Iterator[Finding]:
    """Run the same steps on every implementation that the factory offers."""
    for flag in ("foreach", "fused"):
        if reference.subject.takes(flag):
            yield reference.compared(flag, lambda flag=flag: reference.run(**{flag: True}))  # type: ignore[misc]
    try:
        made = Run(reference.subject, reference.start, lr=LR, lam=LAMBDA).optimizer
    except StepError:  # on two tensors, where it runs on one
        made = None
    if isinstance(made, Optimizer) and made.backend != "eager":
        yield reference.compared("backend='eager'", lambda: reference.run(backend="eager"))
    if compiled:
        yield reference.compared("compiled", lambda: reference.run(compiled=True))


class Reference:
    """What the factory does by itself with two tensors at once: every other way to run is compared with it."""

    def __init__(self, subject: Subject) -> None:
        shapes = [(subject.shape, 0), ((*subject.shape[:-1], subject.shape[-1] // 2), 2)]
        self.subject = subject
        self.start = [subject.weights(shape, seed) for shape, seed in shapes]
        steps = zip(*(subject.gradients(_STEPS, shape, seed + 1) for shape, seed in shapes), strict=True)
        self.gradients = [list(step) for step in steps]

    def run(self, *, lr: Any = LR, lam: float = LAMBDA, compiled: bool = False, **more: Any) -> Weights:
        """Train with other keywords and return the weights."""
        run = Run(self.subject, self.start, lr=lr, lam=lam, **more)
        return (run.compiled() if compiled else run).all(self.gradients)[-1]

    @cached_property
    def plain(self) -> Weights:
        """Return the weights with λ."""
        return self.run()

    @cached_property
    def without(self) -> Weights:
        """Return the weights without."""
        return self.run(lam=0.0)

    def apart(self, found: Weights, wanted: Weights) -> float:
        """Return how far weights lie apart, in shares of the decay's effect; NaN where one is not finite."""
        effect = max((w - v).abs().max().item() for w, v in zip(self.plain, self.without, strict=True))
        distances = [(w - v).abs().max().item() for w, v in zip(found, wanted, strict=True)]
        return max(distances) / effect if all(map(math.isfinite, distances)) and effect else math.nan

    def compared(self, name: str, other: Callable[[], Weights], same: str = "the same weights") -> Finding:
        """Compare another way to run."""
        try:
            if all(map(torch.equal, self.plain, self.without)):
                return Finding(name, "not told", f"not told: {_STEPS} steps do not decay")
            apart = self.apart(other(), self.plain)
        except Exception as error:  # whatever an unknown optimizer raises is its refusal
            return Finding(name, "refused", f"refused ({described(error)})")
        if math.isnan(apart):
            return Finding(name, "not finite", "THE WEIGHTS BECOME NaN OR INFINITE")
        if apart <= FITS:
            return Finding(name, "same", same, {"difference": apart})
        return Finding(name, "differs", f"OTHER WEIGHTS, by {apart:.2g} of the decay's effect", {"difference": apart})


def _moved(name: str, found: Tensor, start: Tensor) -> Finding:
    if torch.equal(found, start):
        return Finding(name, "stays", "left alone")
    moved = (found / start - 1).abs().max().item()
    return Finding(name, "moves", f"MOVES, by {moved:.2g} of a weight", {"moved": moved})


def all_of(subject: Subject, strength: Powers | None, *, compiled: bool) -> list[Finding]:
    """Do every experiment; what an optimizer raises is a finding, too."""
    reference = Reference(subject)
    trials: dict[str, Callable[[], Finding | None]] = {
        "grad=None": lambda: no_gradient(subject),
        "frozen": lambda: frozen(subject),
        "zero gradient": lambda: zero_gradient(subject),
        "lr=0": lambda: lr_zero(subject),
        "maximize": lambda: maximize(reference),
        "λ in the groups": lambda: schedule(reference),
        "bfloat16": lambda: bfloat16(subject, strength),
        "tensor lr": lambda: tensor_lr(reference),
    }
    found = []
    for name, trial in trials.items():
        try:
            finding = trial()
        except Exception as error:  # see Reference.compared
            finding = Finding(name, "refused", f"refused ({described(error)})")
        if finding is not None:
            found.append(finding)
    return [*found, *paths(reference, compiled=compiled)]
