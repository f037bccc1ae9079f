"""Weight decay for PyTorch: every step is w_t = g(λ)·w_{t−1} − η·h(∇L), from rules that are each written once, as math.

>>> import torch, weightdecay as wd
>>> model = torch.nn.Linear(2, 1)
>>> optimizer = wd.AdamW(wd.param_groups(model, weight_decay=0.1), lr=1e-3)
"""

import pkgutil
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from weightdecay import decays, directions, penalties
from weightdecay.attachment import Attachment, attach
from weightdecay.audit.doctor import doctor
from weightdecay.audit.findings import Report
from weightdecay.audit.identify import DecayLaw, identify
from weightdecay.audit.meter import Meter
from weightdecay.decomposition import Decomposition, Split, decompose
from weightdecay.forecast import remaining
from weightdecay.groups import param_groups, scale_invariant
from weightdecay.lint import RuleError
from weightdecay.migration import migrate
from weightdecay.optimizer import Optimizer
from weightdecay.presets import (
    LAMB,
    SGD,
    SGDC,
    SGDCWD,
    SGDW,
    Adadelta,
    AdadeltaW,
    Adafactor,
    Adagrad,
    AdagradW,
    Adam,
    Adamax,
    AdamaxW,
    AdamC,
    AdamCPR,
    AdamCWD,
    AdamH,
    AdamHD,
    AdamProx,
    AdamS,
    AdamSPD,
    AdamW,
    AdamWN,
    Lion,
    LionCWD,
    Muon,
    MuonH,
    NAdam,
    NAdamW,
    PAdam,
    ProxAdam,
    ProxSGD,
    RAdam,
    RAdamW,
    RMSprop,
    RMSpropW,
    Signum,
)
from weightdecay.rule import decay, direction, penalty, rules
from weightdecay.schedulers import WarmRestarts, WeightDecayScheduler
from weightdecay.sweeps import Data, Grid, Task, sweep
from weightdecay.units import convert, half_life, normalized, timescale, transfer

if TYPE_CHECKING:
    from weightdecay.derivation import Derivation, derive

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
    "Attachment",
    "Data",
    "DecayLaw",
    "Decomposition",
    "Derivation",
    "Grid",
    "Lion",
    "LionCWD",
    "Meter",
    "Muon",
    "MuonH",
    "NAdam",
    "NAdamW",
    "Optimizer",
    "PAdam",
    "ProxAdam",
    "ProxSGD",
    "RAdam",
    "RAdamW",
    "RMSprop",
    "RMSpropW",
    "Report",
    "RuleError",
    "Signum",
    "Split",
    "Task",
    "WarmRestarts",
    "WeightDecayScheduler",
    "attach",
    "convert",
    "decay",
    "decompose",
    "derive",
    "direction",
    "doctor",
    "half_life",
    "identify",
    "migrate",
    "normalized",
    "param_groups",
    "penalty",
    "remaining",
    "rules",
    "scale_invariant",
    "sweep",
    "timescale",
    "transfer",
]

try:
    __version__ = version("weightdecay")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

for _folder in (penalties, directions, decays):
    for _page in pkgutil.iter_modules(_folder.__path__, _folder.__name__ + "."):
        import_module(_page.name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import what needs SymPy when it is asked for: that takes twice as long as all the rest."""
    if name in ("Derivation", "derive"):
        return getattr(import_module("weightdecay.derivation"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
