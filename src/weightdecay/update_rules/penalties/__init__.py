"""Penalties: what enters the gradient. One rule per file; the folder is the index."""
