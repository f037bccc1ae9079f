"""The optimizers people know by name: each a choice of three rules, with torch.optim's arguments and defaults where torch
has it.

`weight_decay` is λ as torch means it: of the penalty in SGD and Adam, of the decay, per unit of lr, in SGDW and AdamW. What
a class's λ is in units of, help() says.
"""

from weightdecay.optim.presets.coupled import SGD, Adadelta, Adagrad, Adam, Adamax, NAdam, RAdam, RMSprop
from weightdecay.optim.presets.decoupled import (
    LAMB,
    SGDW,
    AdadeltaW,
    Adafactor,
    AdagradW,
    AdamaxW,
    AdamW,
    Lion,
    Muon,
    NAdamW,
    RAdamW,
    RMSpropW,
    Signum,
)
from weightdecay.optim.presets.papers import (
    SGDC,
    SGDCWD,
    AdamC,
    AdamCPR,
    AdamCWD,
    AdamH,
    AdamHD,
    AdamProx,
    AdamS,
    AdamSPD,
    AdamWN,
    LionCWD,
    MuonH,
    PAdam,
    ProxAdam,
    ProxSGD,
)
from weightdecay.optim.presets.preset import Preset
from weightdecay.update_rules.registry import REGISTRY

__all__ = [
    "LAMB",
    "SGD",
    "SGDC",
    "SGDCWD",
    "SGDW",
    "Adadelta",
    "AdadeltaW",
    "Adafactor",
    "Adagrad",
    "AdagradW",
    "Adam",
    "AdamC",
    "AdamCPR",
    "AdamCWD",
    "AdamH",
    "AdamHD",
    "AdamProx",
    "AdamS",
    "AdamSPD",
    "AdamW",
    "AdamWN",
    "Adamax",
    "AdamaxW",
    "Lion",
    "LionCWD",
    "Muon",
    "MuonH",
    "NAdam",
    "NAdamW",
    "PAdam",
    "Preset",
    "ProxAdam",
    "ProxSGD",
    "RAdam",
    "RAdamW",
    "RMSprop",
    "RMSpropW",
    "Signum",
]

PRESETS: dict[str, type[Preset]] = {name: globals()[name] for name in __all__ if name != "Preset"}
"""Every preset by its name."""
REGISTRY.optimizers |= {name: f"{preset.direction} + {preset.penalty or preset.decay}" for name, preset in PRESETS.items()}
