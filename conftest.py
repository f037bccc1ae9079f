"""Which modules have no doctests to run here: those that import what is not installed. `make integrations` installs it."""

from importlib.util import find_spec

collect_ignore = [
    f"src/weightdecay/integrations/{framework}.py"
    for framework in ("lightning", "transformers")
    if find_spec(framework) is None
]
