"""The mathematics: what a rule is, and every rule.

Start with `equation.py`: a step is a direction, and a penalty or a decay. `rule.py` is one rule, `ops.py` the operations
that its body may use, `lint.py` what it may not, `reductions.py` the numbers of a whole tensor that it may ask for,
`state.py` what it keeps between steps, `decorators.py` how a function becomes a rule, and `registry.py` the list of them.
`traits.py` says what follows from a rule alone. The rules stand in `penalties/`, `directions/` and `decays/`, one file each.
"""

from weightdecay.update_rules.decorators import decay, direction, penalty

__all__ = ["decay", "direction", "penalty"]
