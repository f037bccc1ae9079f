"""Find out what a decay really does, on any optimizer.

`doctor/` checks a training setup before and after it runs, `meter/` measures it while it runs, `identify/` finds out by
experiment what an unknown optimizer does, and `conformance.py` is a test suite for other people's optimizers.
"""
