"""D9: tensors decay for which zero is not the neutral value: positions, tokens, rates of forgetting, logit scales, LoRA.

Source: state-spaces/mamba #798, huggingface/pytorch-image-models #2712, unslothai/unsloth #5747, pytorch/torchtitan #2599.
"""

from collections.abc import Iterator

from weightdecay.audit.doctor.cure import Cure
from weightdecay.audit.doctor.findings import Finding
from weightdecay.audit.doctor.fix_code import made, without_decay
from weightdecay.audit.doctor.setup import Case, Member, names

ID, TITLE = "D9", "special tensors decay"
_KINDS = {
    "state_space": (
        "warning",
        "rates of a state space decay, whose zero is not neutral: e⁰ = 1 is a rate of forgetting",
    ),
    "logit_scale": ("warning", "a logit scale decays, which softens every prediction"),
    "position": ("info", "position embeddings decay: they are added whatever the input is, as a bias is"),
    "token": ("info", "class, register or mask tokens decay: they are inputs that every sample gets, as a bias is"),
}
_IDLE_ROWS = 0.5


def check(case: Case) -> Iterator[Finding]:
    """Yield one finding for each kind of special tensor that decays, unless the model itself asks for none (that is D2)."""
    decaying = [each for each in case.decaying if not each.param.asked]
    for role, (severity, problem) in _KINDS.items():
        found = [each for each in decaying if each.role == role]
        if found:
            yield _finding(case, found, severity, problem, made(case))
    lora = [each for each in decaying if each.role.startswith("lora.")]
    if lora:
        alone = len(lora) == len(decaying)  # without them no weight decays, and new groups would say nothing else
        groups = [each.group for each in lora]
        cure = without_decay(case, groups) if alone else made(case, options=', roles={"lora": 0.0}')
        yield _finding(case, lora, "info", "LoRA factors decay: their zero is the base model, not small weights", cure)
    for each in decaying:
        if each.role in ("embedding", "expert") and (idle := _idle_rows(each)) >= _IDLE_ROWS:
            options = f', roles={{"{each.role}": 0.0}}'
            problem = "rows decay that the last batch gave no gradient"
            yield _finding(case, [each], "info", problem, made(case, options=options), rows_without_gradient=idle)


def _finding(case: Case, found: list[Member], severity: str, problem: str, cure: Cure, **evidence: float) -> Finding:
    return Finding(
        ID,
        severity,
        problem,
        names(found),
        {"weight_decay": sorted({each.lam for each in found}), "largest_value": _largest(found), **evidence},
        case.left_in_words([each.group for each in found]),
        *cure,
    )


def _largest(found: list[Member]) -> float:
    values = (each.tensor.detach() for each in found if each.tensor.numel() and not each.tensor.is_meta)
    return max((value.abs().max().item() for value in values), default=0.0)


def _idle_rows(member: Member) -> float:
    """Return the share of rows whose gradient is zero."""
    gradient = member.tensor.grad
    if gradient is None or gradient.layout != member.tensor.layout or gradient.ndim < 2:
        return 0.0
    return 1 - gradient.flatten(1).any(1).float().mean().item()
