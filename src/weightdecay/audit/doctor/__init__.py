"""Check a training setup: `doctor.py` runs the `checks/` on a `setup.py` and reports `findings.py`."""
