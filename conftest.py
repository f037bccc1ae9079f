"""Which modules have no doctests to run here: those that import what is not installed. `make integrations` installs it."""

from importlib.util import find_spec

FRAMEWORKS = ("lightning", "transformers")
collect_ignore = [f"src/weightdecay/integrations/{name}.py" for name in FRAMEWORKS if find_spec(name) is None]
