"""D1: biases, gains of norms and other vectors decay.

Source: pytorch/pytorch #2639, huggingface/transformers #35927, verl-project/verl #5070.
"""

from collections import Counter
from collections.abc import Iterator

from weightdecay.audit.doctor.findings import Finding
from weightdecay.audit.doctor.fix_code import made
from weightdecay.audit.doctor.setup import Case, Member, names

ID, TITLE = "D1", "norms, biases and other vectors decay"
_VECTORS = ("norm", "bias", "scalar", "vector")
_NOTICEABLE = 0.05
"""The share of itself that a gain without a gradient has to lose for a warning: less is below what training moves it by."""


def check(case: Case) -> Iterator[Finding]:
    """Yield one finding for all vectors that decay; a gain around one is not among them, nor what the model itself names."""
    found = [each for each in case.decaying if each.role in _VECTORS and not each.param.asked]
    if not found:
        return
    kinds = dict(Counter(each.role for each in found))
    exempt = sum(each.role in _VECTORS and each.lam == 0 for each in case.members)
    weights = [each for each in case.members if each.decays and each.in_model]
    swapped = bool(weights) and all(each.lam == 0 for each in weights)
    yield Finding(
        ID,
        "error" if swapped else "warning" if _loss(case, found) >= _NOTICEABLE else "info",
        "the groups are swapped: norms and biases decay, and no weight does"
        if swapped
        else "norms, biases and other vectors decay, as if zero were their neutral value",
        names(found),
        {
            **kinds,
            "values": sum(each.tensor.numel() for each in found),
            "weight_decay": sorted({each.lam for each in found}),
            "vectors_that_do_not_decay": exempt,
            "weights_that_do_not_decay": sum(each.lam == 0 for each in weights),
        },
        case.left_in_words([each.group for each in found]),
        *made(case),
    )


def _loss(case: Case, found: list[Member]) -> float:
    """Return the largest share that any of them loses without a gradient; all of it where that cannot be told."""
    left = (case.runs[index].left for index in {each.group for each in found})
    return max(1.0 if each is None else 1 - each for each in left)
