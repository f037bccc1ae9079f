"""What a decay does in the corners: without a gradient, under `maximize`, in bfloat16, with a tensor lr, on every path.

Each experiment is a function of a subject and of what is known of its law, and returns a finding with its numbers. An
experiment that the optimizer refuses finds that.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from weightdecay.audit.hypotheses import FITS, Powers
from weightdecay.audit.trial import LAMBDA, LR, Run, Subject, described
from weightdecay.optimizer import Optimizer

_STEPS = 6
_LOW_STEPS, _LOW_LR, _LOW_LAMBDA, _LOW_SHRINK = 100, 1e-3, 0.1, 1e-4
_LOW_SHAPE = (64, 64)
"""Enough weights for the mean of a stochastic rounding to be told to two digits."""


@dataclass(frozen=True)
class Finding:
    """What one experiment found."""

    name: str
    verdict: str
    """One word or two that programs can compare: "stays", "moves", "same", "differs", "refused", "not told", …"""
    text: str
    """What people read."""
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"verdict": self.verdict, "text": self.text, "numbers": dict(self.numbers)}


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


def maximize(subject: Subject) -> Finding | None:
    """Climb, and compare with descending along the opposite gradient: the decay has to be the same."""
    if not subject.takes("maximize"):
        return None
    gradients = subject.gradients(_STEPS)
    up, opposite = [[g] for g in gradients], [[-g] for g in gradients]

    def ran(along: list[list[Tensor]], lam: float, **more: Any) -> Tensor:
        return Run(subject, [subject.weights()], lr=LR, lam=lam, **more).all(along)[-1][0]

    climbed, wanted, without = (
        ran(up, LAMBDA, maximize=True), ran(opposite, LAMBDA), ran(opposite, 0.0),
    )  # fmt: skip
    unclimbed = ran(up, 0.0, maximize=True)
    effect = (wanted - without).abs().max().item()
    if not effect:
        return Finding("maximize", "not told", f"not told: {_STEPS} steps do not decay")
    apart = (climbed - wanted).abs().max().item() / effect
    numbers = {"difference": apart, "difference_without_decay": (unclimbed - without).abs().max().item() / effect}
    if apart <= FITS:
        return Finding("maximize", "same", "the decay still shrinks", numbers)
    if numbers["difference_without_decay"] > FITS:
        return Finding("maximize", "ignored", "does not climb: `maximize` does nothing", numbers)
    own, theirs = climbed - unclimbed, wanted - without
    if (own * theirs).sum() < 0:
        return Finding("maximize", "flipped", "the decay GROWS the weights", numbers)
    return Finding("maximize", "differs", f"another decay, by {apart:.2g} of its effect", numbers)


def bfloat16(subject: Subject, strength: Powers | None) -> Finding:
    """Train bfloat16 weights without a gradient and say which share of the decay they took that exact ones would have taken.

    The step takes 1e-4 of a weight where λ can be chosen so: less than half of bfloat16's last place.
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
    return Finding("bfloat16", verdict, f"{_percent(share)} of the decay reaches the weights", numbers)


def schedule(subject: Subject) -> Finding:
    """Write another λ into the groups of a running optimizer, as a schedule of λ does."""
    gradients = [[g] for g in subject.gradients(_STEPS)]
    made_so = [Run(subject, [subject.weights()], lr=LR, lam=lam) for lam in (LAMBDA, LAMBDA / 2)]
    changed = Run(subject, [subject.weights()], lr=LR, lam=LAMBDA)
    if subject.knob not in changed.group:
        return Finding("λ in the groups", "absent", f"the groups have no {subject.knob!r}: no schedule can write it")
    changed.set(subject.knob, LAMBDA / 2)
    first, wanted, found = (run.all(gradients)[-1][0] for run in (*made_so, changed))
    effect = (first - wanted).abs().max().item()
    if not effect:
        return Finding("λ in the groups", "not told", f"not told: {_STEPS} steps do not decay")
    if (found - wanted).abs().max().item() <= FITS * effect:
        return Finding("λ in the groups", "read", "read at every step: a schedule can write it")
    return Finding("λ in the groups", "not read", "WRITTEN INTO THE GROUPS, IT IS NOT READ")


def tensor_lr(subject: Subject) -> Finding:
    """Pass the learning rate as a tensor."""
    gradients = [[g] for g in subject.gradients(_STEPS)]
    lr = torch.tensor(LR, dtype=torch.float64, device=subject.device)

    def make(start: Sequence[Tensor]) -> Run:
        return Run(subject, start, lr=lr, lam=LAMBDA)

    return _compared("tensor lr", subject, gradients, [(subject.shape, 0)], make)


def paths(subject: Subject, *, compiled: bool) -> list[Finding]:
    """Run the same steps on every implementation that the factory offers, on two tensors at once."""
    shapes = [(subject.shape, 0), ((*subject.shape[:-1], subject.shape[-1] // 2), 2)]
    steps = zip(*(subject.gradients(_STEPS, shape, seed + 1) for shape, seed in shapes), strict=True)
    gradients = [list(step) for step in steps]

    def run(**more: Any) -> Callable[[Sequence[Tensor]], Run]:
        return lambda start: Run(subject, start, lr=LR, lam=LAMBDA, **more)

    offered: dict[str, Callable[[Sequence[Tensor]], Run]] = {}
    for flag in ("foreach", "fused"):
        if subject.takes(flag):
            offered[flag] = run(**{flag: True})
    if _chooses_reader(subject):
        offered["reader='eager'"] = run(reader="eager")
    if compiled:
        offered["compiled"] = lambda start: run()(start).compiled()
    return [_compared(name, subject, gradients, shapes, make) for name, make in offered.items()]


def _chooses_reader(subject: Subject) -> bool:
    made = Run(subject, [subject.weights()], lr=LR, lam=LAMBDA).optimizer
    return isinstance(made, Optimizer) and made.reader != "eager"


def _compared(
    name: str,
    subject: Subject,
    gradients: list[list[Tensor]],
    shapes: Sequence[tuple[tuple[int, ...], int]],
    make: Callable[[Sequence[Tensor]], Run],
) -> Finding:
    """Compare a way to run with the one that the factory chooses by itself, in shares of the decay's effect."""
    start = [subject.weights(shape, seed) for shape, seed in shapes]
    plain, without = (Run(subject, start, lr=LR, lam=lam).all(gradients)[-1] for lam in (LAMBDA, 0.0))
    try:
        other = make(start).all(gradients)[-1]
    except Exception as error:  # whatever an unknown optimizer raises is its refusal
        return Finding(name, "refused", f"refused ({described(error)})")
    effect = max((w - v).abs().max().item() for w, v in zip(plain, without, strict=True))
    if not effect:
        return Finding(name, "not told", f"not told: {_STEPS} steps do not decay")
    apart = max((w - v).abs().max().item() for w, v in zip(plain, other, strict=True)) / effect
    if not math.isfinite(apart):
        return Finding(name, "not finite", "THE WEIGHTS BECOME NaN OR INFINITE")
    if apart <= FITS:
        return Finding(name, "same", "the same weights", {"difference": apart})
    return Finding(name, "differs", f"OTHER WEIGHTS, by {apart:.2g} of the decay's effect", {"difference": apart})


def _moved(name: str, found: Tensor, start: Tensor) -> Finding:
    if torch.equal(found, start):
        return Finding(name, "stays", "left alone")
    moved = (found / start - 1).abs().max().item()
    return Finding(name, "moves", f"MOVES, by {moved:.2g} of a weight", {"moved": moved})


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def all_of(subject: Subject, strength: Powers | None, *, compiled: bool) -> list[Finding]:
    """Do every experiment; what an optimizer raises is a finding, too."""
    trials: dict[str, Callable[[], Finding | None]] = {
        "grad=None": lambda: no_gradient(subject),
        "frozen": lambda: frozen(subject),
        "zero gradient": lambda: zero_gradient(subject),
        "lr=0": lambda: lr_zero(subject),
        "maximize": lambda: maximize(subject),
        "λ in the groups": lambda: schedule(subject),
        "bfloat16": lambda: bfloat16(subject, strength),
        "tensor lr": lambda: tensor_lr(subject),
    }
    found = []
    for name, trial in trials.items():
        try:
            finding = trial()
        except Exception as error:  # see _compared
            finding = Finding(name, "refused", f"refused ({described(error)})")
        if finding is not None:
            found.append(finding)
    return [*found, *paths(subject, compiled=compiled)]
