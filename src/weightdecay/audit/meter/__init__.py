"""Measure a run: `meter.py` samples steps, `metrics.py` is what a sample says, `sums.py` how it is computed."""
