"""D10: sharding has taken the tensors' shapes from rules that need them, or the tensors from the optimizer.

Source: open_clip #358 and pytorch/pytorch #101343 (FSDP1's flat parameters have one axis), verl-project/verl #7215.
"""

from collections.abc import Iterator

from weightdecay.audit.doctor.cure import Cure
from weightdecay.audit.doctor.findings import Finding
from weightdecay.audit.doctor.fix_code import made
from weightdecay.audit.doctor.setup import Case

ID, TITLE = "D10", "sharding breaks the groups"


def check(case: Case) -> Iterator[Finding]:
    """Yield flat parameters that mix weights with norms, and an optimizer that was made before fully_shard."""
    params = [(each.name, each.tensor, each.lam) for each in case.members]
    flat = [(name, tensor, lam) for name, tensor, lam in params if getattr(tensor, "_is_flat_param", False)]
    if flat:
        lams = sorted({lam for _, _, lam in flat})
        many = any(lam > 0 for lam in lams)
        yield Finding(
            ID,
            "error",
            "FSDP1 has put weights, norms and biases into one flat vector: they can only decay together"
            if many
            else "FSDP1 has made every tensor a flat vector, and vectors are exempt: nothing decays",
            tuple(name for name, _, _ in flat),
            {"flat_parameters": len(flat), "groups": len(case.groups), "weight_decay": lams},
            "norms and biases decay with the weights" if many else f"no weight decays in {case.horizon}",
            *_sharded(case, "  # FSDP2 keeps the parameters and their shapes"),
        )
    sharded = [each for each in case.params if hasattr(each.tensor, "placements")]
    held = {id(each.tensor) for one in case.all for each in one.members}
    lost = [each for each in sharded if id(each.tensor) not in held]
    before = [name for name, tensor, _ in params if not hasattr(tensor, "placements")]
    if lost and before and len(before) == len(params):
        yield Finding(
            ID,
            "error",
            "the optimizer was made before fully_shard, and holds tensors that the model no longer has",
            tuple(before),
            {"sharded_parameters": len(sharded), "of_them_in_the_optimizer": len(sharded) - len(lost)},
            "the model does not train",
            *_sharded(case),
        )


def _sharded(case: Case, comment: str = "") -> Cure:
    found = made(case, anew=True)
    return found._replace(fix=f"fully_shard(model){comment}\n{found.fix}")
