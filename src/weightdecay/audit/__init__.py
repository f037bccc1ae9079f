"""Find out what a decay really does: by experiment, on any optimizer."""
