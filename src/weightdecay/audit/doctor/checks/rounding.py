"""D3: the decay is lost to rounding: w·(1 − s), rounded to nearest, is w.

Source: the thresholds are those of round-to-nearest; Zamirai et al. 2020, arXiv:2010.06192; Nerogar/OneTrainer #996.
"""

import math
from collections.abc import Collection, Iterator

import torch

from weightdecay.audit.doctor.cure import Cure, Run
from weightdecay.audit.doctor.findings import Finding
from weightdecay.audit.doctor.fix_code import attached, made, without_decay
from weightdecay.audit.doctor.setup import Case, Member, by_group, names
from weightdecay.optim import presets
from weightdecay.optim.optimizer import Optimizer
from weightdecay.update_rules.traits import rounded_away

ID, TITLE = "D3", "the decay is lost to rounding"
_NARROW = (torch.bfloat16, torch.float16, torch.float32)
_KEPT, _GONE = 0.95, 0.5
"""Shares of the intended decay that reach the weights: above the first all is well; below the second most is lost."""
_MATTERS = 0.05
"""The share of a weight that the run is to take for its loss to be an error."""


def check(case: Case) -> Iterator[Finding]:
    """Yield the tensors of each group and dtype whose decay does not reach them."""
    for index, members in by_group(case.decaying).items():
        run = case.runs[index]
        if run.shares is None or case.laws[index].kind == "coupled" or not run.largest:
            continue  # an L2 penalty is rounded with the gradient that it stands in
        for dtype in _NARROW:
            if concerned := [each for each in members if each.tensor.dtype == dtype]:
                yield from _lost(case, concerned, run, dtype)


def _lost(case: Case, members: list[Member], run: Run, dtype: torch.dtype) -> Iterator[Finding]:
    assert run.shares is not None
    edge = rounded_away(dtype)
    reaching = math.fsum(share for share in run.shares if share > edge) / math.fsum(run.shares)
    if reaching >= _KEPT:
        return
    shares = run.shares
    below = max((place for place, share in enumerate(shares) if 0 < share <= edge), key=shares.__getitem__)
    by_size = sorted(members, key=lambda each: each.tensor.numel(), reverse=True)
    # At half of the edge nearest rounding loses all of it still, and stochastic rounding moves an eighth of the values.
    lam = run.lams[below] * edge / (2 * shares[below])
    steps = (case.replay(each, lr=run.lrs[below], weight_decay=lam) for each in by_size)
    step = next((each for each in steps if each is None or each.before.any()), None)
    if step is None or step.moved > 0 or step.remembers:  # it rounds otherwise, or keeps what it could not write
        return
    meant = 1 - (run.left if run.left is not None else 0.0)
    short = str(dtype).removeprefix("torch.")
    yield Finding(
        ID,
        "info" if meant < _MATTERS / 5 else "error" if reaching < _GONE and meant >= _MATTERS else "warning",
        f"the decay of {short} weights is lost: it is smaller than half of the last place",
        names(members),
        {
            "share_per_step_at_most": run.largest,
            "lost_up_to": edge,
            "steps_that_lose_it": sum(0 < share <= edge for share in run.shares) / len(run.shares),
            "moved_by_a_step_of_half_of_that_on_a_copy": step.moved,
        },
        f"of the {meant:.3g} of a weight that {case.horizon} are to take, {reaching:.0%} is taken",
        *_fix(case, dtype, {each.group for each in members}),
    )


def _fix(case: Case, dtype: torch.dtype, groups: Collection[int]) -> Cure:
    """Return code with which λ does what it says: nothing in float32, where it is too small to matter, else what it should."""
    cls = type(case.optimizer).__name__
    if dtype == torch.float32:
        found = without_decay(case, groups)
        return found._replace(fix=f"# λ is too small for float32 to matter: without it, nothing changes\n{found.fix}")
    if isinstance(case.optimizer, Optimizer):
        return made(case, lost=True, rounding="stochastic")
    ours = next((name for name in (f"{cls}W", cls) if hasattr(presets, name)), None)
    if not type(case.optimizer).__module__.startswith("torch.optim.") or ours is None:
        return attached(case)  # which keeps what cannot be written yet
    found = made(case, call=f"wd.{ours}", lost=True)
    return found._replace(fix=f"# rounds these dtypes stochastically, which keeps the decay\n{found.fix}")
