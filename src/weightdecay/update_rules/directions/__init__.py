"""Directions: what an optimizer makes of the gradient. One rule per file; the folder is the index."""
