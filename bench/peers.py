"""Cautious decay against the packages that have the same rule."""

from collections.abc import Callable, Iterator

import torch

import weightdecay as wd
from bench import machine, values
from bench.result import Check, Result
from bench.steps import FUSED, Make, Params, Step, ours, torch_paths, warmed_up
from bench.timing import Options, race, stepping
from bench.values import ALLOWED, DECAY, LR, MI, ULPS, WARM_UP

_SHAPES = values.one(16 * MI)
_OURS = "wd cautious"
EPS = 1e-16
"""Far below every √v̂, since not all add ε to it: heavyball takes the larger of the two."""


def measure(options: Options) -> Iterator[Result]:
    """Time every peer that is installed, and compare its weights with ours."""
    numbers = {"lr": LR, "eps": EPS, "weight_decay": DECAY}
    result = Result(
        "cautious", "Adam with cautious decay, float32, one tensor of 16 Mi", FUSED,
        facts={"elements": values.count(_SHAPES), "tensors": 1, f"decay of {FUSED}, shown for scale": "decoupled"},
    )  # fmt: skip
    peers = installed(result, "cautious")
    makers = {
        FUSED: torch_paths(torch.optim.AdamW, **numbers)[FUSED],
        **peers,
        _OURS: ours(wd.Optimizer, direction="adam", decay="cautious", **numbers),
    }
    found = warmed_up(makers, _SHAPES)
    result.checks += [
        Check(
            f"{_OURS} and {name} after {WARM_UP} steps",
            values.ulps_apart(found.weights(_OURS), found.weights(name)),
            ALLOWED,
            ULPS,
        )
        for name in peers
    ]
    raced = race({name: stepping(step) for name, step in found.steps.items()}, options.rounds)
    result.seconds, result.others = raced.seconds["step"], raced.others
    result.first = found.first
    if peers:
        fastest = min(peers, key=result.ratio)
        result.demand(_OURS, 0.25, to=fastest, what=f"{_OURS} / {fastest}, the fastest peer")
    else:
        result.skipped["the demand on it"] = "there is no peer to compare with"
    yield result


def installed(result: Result, rule: str) -> dict[str, Make]:
    """Return the peers of a rule that are there, and note why the others are not."""
    peers = {}
    for name, find in PEERS[rule].items():
        try:
            peers[name] = find()
        except ImportError as error:
            result.skipped[name] = f"{error.name} is not installed: bench/README.md says how"
    return peers


def _heavyball() -> Make:
    import heavyball
    from heavyball import utils

    if machine.compiler() is None:
        utils.compile_mode = None  # its slow way, which needs no C++ compiler

    def make(params: Params) -> Step:
        # consume_grad would drop the gradients, which the next step takes again.
        optimizer: torch.optim.Optimizer = heavyball.AdamW(
            params, lr=LR, betas=(0.9, 0.999), eps=EPS, weight_decay=DECAY, cautious_weight_decay=True, consume_grad=False
        )
        return optimizer.step

    return make


def _adv_optm() -> Make:
    from adv_optm import AdamW_adv

    # Not compiled: torch.compile makes it slower on a CPU.
    return ours(AdamW_adv, lr=LR, eps=EPS, weight_decay=DECAY, cautious_wd=True)


def _timm_lion() -> Make:
    from timm.optim import Lion

    return ours(Lion, lr=LR, weight_decay=DECAY)


def _lion_pytorch() -> Make:
    from lion_pytorch import Lion

    return ours(Lion, lr=LR, weight_decay=DECAY)


def _optimi_lion() -> Make:
    from optimi import Lion

    return ours(Lion, lr=LR, weight_decay=DECAY)


def _timm_corrected() -> Make:
    from timm.optim import AdamWLegacy

    return ours(AdamWLegacy, lr=LR, eps=EPS, weight_decay=DECAY, corrected_weight_decay=True)


PEERS: dict[str, dict[str, Callable[[], Make]]] = {
    "cautious": {"heavyball": _heavyball, "adv-optm": _adv_optm},
    "lion": {"timm": _timm_lion, "lion-pytorch": _lion_pytorch, "optimi": _optimi_lion},
    "corrected": {"timm": _timm_corrected},
}
"""Who else has a rule, by its name."""
