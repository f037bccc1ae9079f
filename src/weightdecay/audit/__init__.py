"""Find out what a decay really does: by experiment and by measurement, on any optimizer."""
