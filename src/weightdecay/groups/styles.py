"""The choices that other code makes for the same model, exactly: Hugging Face's Trainer, timm and nanoGPT."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import nn

from weightdecay.groups.params import Param
from weightdecay.groups.roles import role_of

__all__ = ["STYLES", "Verdict"]

# transformers 5.23, Trainer.get_decay_parameter_names: searched for in the lower-case name.
HF_NAMES = [re.compile(pattern) for pattern in (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")]


@dataclass(frozen=True)
class Verdict:
    """Whether a tensor decays, and what to say of it."""

    decays: bool
    why: str


def weightdecay(param: Param) -> Verdict:
    """Decide by the role, and by who asks that the tensor shall not decay."""
    role, called = role_of(param)
    if role.decays and param.asked:
        return Verdict(False, f"{called}; {param.asked} asks for none")
    return Verdict(role.decays, called)


def hf(param: Param) -> Verdict:
    """Decide as the Trainer of transformers: nothing inside an nn.LayerNorm, and no name that one of five patterns finds."""
    if any(isinstance(module, nn.LayerNorm) for module in param.above):
        return Verdict(False, "in an nn.LayerNorm")
    for pattern in HF_NAMES:
        if pattern.search(param.name.lower()):
            return Verdict(False, f"the name has '{pattern.pattern}'")
    return Verdict(True, "no pattern finds the name")


def timm(param: Param) -> Verdict:
    """Decide as timm.optim: no vectors, nothing called .bias, and nothing that the model's no_weight_decay() names."""
    if param.tensor.ndim <= 1:
        return Verdict(False, "at most one axis")
    if param.name.endswith(".bias"):
        return Verdict(False, "the name ends in .bias")
    if param.asked_by_model:
        return Verdict(False, "named by the model's no_weight_decay()")
    return Verdict(True, "two axes or more")


def nanogpt(param: Param) -> Verdict:
    """Decide as nanoGPT: what has two axes or more decays."""
    decays = param.tensor.ndim >= 2
    return Verdict(decays, "two axes or more" if decays else "at most one axis")


STYLES: Final[dict[str, Callable[[Param], Verdict]]] = {
    "weightdecay": weightdecay,
    "hf": hf,
    "timm": timm,
    "nanogpt": nanogpt,
}
FROM_NAMES_ALONE = ("weightdecay", "nanogpt")
"""The styles that (name, parameter) pairs are enough for."""
