"""The public names. `import weightdecay` imports this module when the first of them is asked for.

Each stands here by itself: a type checker sees Any behind a name that comes through a star.
"""

from typing import TYPE_CHECKING

from weightdecay.analysis.decomposition import Decomposition, decompose
from weightdecay.analysis.remaining import remaining
from weightdecay.analysis.run_plan import Plan, plan
from weightdecay.analysis.split import Split
from weightdecay.analysis.transfer import normalized, transfer
from weightdecay.analysis.units import convert, half_life, timescale
from weightdecay.audit.doctor.doctor import doctor
from weightdecay.audit.doctor.findings import Report
from weightdecay.audit.identify.identify import DecayLaw, identify
from weightdecay.audit.meter.meter import Meter
from weightdecay.groups import param_groups, scale_invariant
from weightdecay.optim.attach import Attachment, attach
from weightdecay.optim.migrate import migrate
from weightdecay.optim.optimizer import Optimizer
from weightdecay.optim.presets import (
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
from weightdecay.optim.schedulers import WarmRestarts, WeightDecayScheduler
from weightdecay.sweeps import Data, Grid, Task, sweep
from weightdecay.update_rules import decay, direction, penalty
from weightdecay.update_rules.lint import RuleError
from weightdecay.update_rules.registry import rules

if TYPE_CHECKING:
    from weightdecay.analysis.derivation import Derivation, derive

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
    "Plan",
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
    "plan",
    "remaining",
    "rules",
    "scale_invariant",
    "sweep",
    "timescale",
    "transfer",
]
