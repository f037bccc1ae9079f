"""Warnings that stand at the line of the user's code: how many calls of this package and of torch are in between differs."""

import sys
import warnings

__all__ = ["warn"]

_INSIDE = ("weightdecay", "torch")


def warn(text: str) -> None:
    """Give a `UserWarning` at the innermost line that is neither this package's nor torch's."""
    frame, level = sys._getframe(1), 2  # 1 would be this function
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)
