"""What a step does, on paper and in numbers.

On paper: `derivation.py` (`wd.derive`), from `symbolic.py` (rules as SymPy expressions), `linear.py` (any step as
rest + part·w), `notation.py` (how it prints) and `closed_form.py` (many steps). In numbers: `decomposition.py`
(`wd.decompose`), from `next_step.py` and `split.py`; `remaining.py`, `units.py`, `transfer.py` and `run_plan.py`.
"""
