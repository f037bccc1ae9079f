"""Weight decay for PyTorch: every step is w_t = g(λ)·w_{t−1} − η·h(∇L), from rules that are each written once, as math.

>>> import torch, weightdecay as wd
>>> model = torch.nn.Linear(2, 1)
>>> optimizer = wd.AdamW(wd.param_groups(model, weight_decay=0.1), lr=1e-3)
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from weightdecay.display.near_names import nearest

if TYPE_CHECKING:
    from weightdecay.api import *  # noqa: F403

    __version__: str

_WITH_SYMPY = ("Derivation", "derive")
"""What needs SymPy, which takes as long to import as all the rest but torch."""


def __dir__() -> list[str]:
    return [*import_module("weightdecay.api").__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Import what a name needs when it is asked for: the command line prints its help without waiting for torch."""
    if name == "__version__":
        return str(import_module("weightdecay.display.version").installed_version())
    if name in _WITH_SYMPY:
        return getattr(import_module("weightdecay.analysis.derivation"), name)
    if name == "__all__" or not name.startswith("_"):
        if find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        api = import_module("weightdecay.api")
        known = globals()
        known["__all__"] = api.__all__
        known.update({each: getattr(api, each) for each in api.__all__ if each not in _WITH_SYMPY})
        if name in known:
            return known[name]
        if near := nearest(name, api.__all__):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}: did you mean {near[0]!r}?")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
