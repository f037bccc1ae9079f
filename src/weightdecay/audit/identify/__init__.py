"""Find out by experiment what an optimizer's weight decay does: `identify.py` is the entry."""
