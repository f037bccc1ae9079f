"""Decays: how a weight takes its step and shrinks. One rule per file; the folder is the index."""
