"""The backends that read a rule. Each file is one; the optimizer's `reader` argument names it."""

READERS = ("eager",)
"""Every reader there is, best last."""


def resolve(reader: str) -> str:
    """Return the reader that `reader` means, or refuse it by name."""
    if reader == "auto":
        return "eager"
    if reader not in READERS:
        raise ValueError(f"reader={reader!r} is not in this version: there are auto, {', '.join(READERS)}")
    return reader
