"""Examine a model and its optimizer for the ten mistakes that people make with weight decay, and change nothing."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from weightdecay.audit.doctor.checks import CHECKS, Check
from weightdecay.audit.doctor.findings import Finding, Report, ranked
from weightdecay.audit.doctor.setup import Case, cases_of
from weightdecay.audit.identify.harness import alone
from weightdecay.validation import choice

__all__ = ["doctor"]


def doctor(
    model: nn.Module,
    optimizer: TorchOptimizer | Sequence[TorchOptimizer],
    scheduler: Any = None,
    *,
    steps: int | None = None,
    steps_per_epoch: float | None = None,
    only: Iterable[str] = (),
    ignore: Iterable[str] = (),
    pretrained: bool | None = None,
) -> Report:
    """Look for mistakes with weight decay in a model, its optimizer and its scheduler, and change nothing.

    Ten checks look at roles of tensors, groups, λ, state and dtypes; a copy of the scheduler is run ahead, and single steps are
    made on copies of pieces of tensors. Where the class of the optimizer is unknown, `weightdecay.identify` tries it. Call it
    where training would start, or, for what only gradients tell, between backward() and step(). Where tensors
    are sharded, call it on every rank.

    Args:
        model: the module, bare or wrapped.
        optimizer: any torch optimizer, or a wrapper that holds one as `.optimizer`; a list of them where several train the
            model, such as Muon its matrices and AdamW the rest. Then each finding says in which it is, and what none of them
            trains is missing.
        scheduler: what steps its lr or λ, or a list of several in their order, of whichever optimizer; or None.
        steps: how many steps the run has; else what the scheduler was made for (total_steps, T_max), else 10,000, which the
            effects then say.
        steps_per_epoch: the steps of an epoch, for a scheduler that counts epochs: with it its length has to fit into `steps`.
        only: the ids of the checks to make, as "D1"; all by default.
        ignore: the ids of checks to leave out.
        pretrained: whether the weights were trained before. The decay of no fix then takes more than a tenth of them over the
            run, unless it takes more as it is. By default a frozen matrix of weights tells it, or the norms, whose gains are
            all one before training; where a model has neither, it is taken as trained before.

    Returns:
        The findings with id, severity ("error", "warning" or "info"), problem, tensors, evidence, effect and fix, the gravest
        first. A fix is code; `leaves` is what the run leaves of a weight that decays by the λ that the fix sets or keeps.

    Raises:
        TypeError, ValueError: what is no module, optimizer, scheduler, number of steps or id of a check.
        RuntimeError: a check failed, with its id, and from what. Nothing has changed then, either.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    >>> report = doctor(model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1), steps=10_000)
    >>> [(each.id, each.severity, each.tensors) for each in report.findings]
    [('D1', 'warning', ('0.bias', '1.weight', '1.bias'))]
    >>> report.findings[0].effect
    'without a gradient they end at 0.368 of their start: ∏(1 − s) over 10,000 steps'
    >>> matrix, gain, *biases = model[0].weight, model[1].weight, model[0].bias, model[1].bias
    >>> both = torch.optim.Muon([matrix], lr=0.02), torch.optim.AdamW([gain, *biases], lr=1e-3, weight_decay=0.1)
    >>> [(each.id, each.optimizer, each.tensors) for each in doctor(model, both, steps=10_000).findings]
    [('D1', 'optimizers[1], AdamW', ('1.weight', '0.bias', '1.bias'))]

    Sources: each check names its own.
    """
    chosen = [choice("check", each, CHECKS) for each in _ids(only)] or list(CHECKS)
    ignored = {choice("check", each, CHECKS) for each in _ids(ignore)}
    with _untouched():
        cases = cases_of(model, optimizer, scheduler, steps, steps_per_epoch, pretrained)
        made = [each for name, each in CHECKS.items() if name in chosen and name not in ignored]
        findings = [finding for each in made for case in cases for finding in _found(each, case)]
        first = cases[0]
        subject = {
            "optimizer": " and ".join(type(case.optimizer).__name__ for case in cases),
            "laws": list(dict.fromkeys(f"{law.kind} ({law.text})" for case in cases for law in case.laws)),
            "tensors": sum(len(case.members) for case in cases),
            "values": sum(each.tensor.numel() for case in cases for each in case.members),
            "groups": sum(len(case.groups) for case in cases),
            "steps": first.steps,
            "steps_assumed": first.told_steps is None,
            "pretrained": first.pretrained,
            "scheduler_foreseen": not any(case.unforeseen for case in cases),
        }
    return Report(ranked(findings), tuple(each.id for each in made), subject)


def _found(check: Check, case: Case) -> list[Finding]:
    """Return what a check finds in an optimizer, and in which, where there are several."""
    where = f"{case.name}, {type(case.optimizer).__name__}" if len(case.all) > 1 else ""
    try:
        return [replace(each, optimizer=each.optimizer or where) for each in check.run(case)]
    except Exception as error:
        what = f"check {check.id} ({check.title}) failed{f' in {where}' if where else ''}: {type(error).__name__}: {error}"
        raise RuntimeError(f"{what}; ignore=[{check.id!r}] leaves it out") from error


def _ids(given: Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


@contextmanager
def _untouched() -> Iterator[None]:
    """Let no hook hear of the copies that step, and leave no trace of what schedulers and optimizers of others draw and set."""
    everywhere: tuple[dict[int, Any], ...] = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
    hooks = [(each, dict(each)) for each in everywhere]
    for live, _ in hooks:
        live.clear()
    try:
        with alone():
            yield
    finally:
        for live, kept in hooks:
            live.update(kept)
