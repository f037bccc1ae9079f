"""The words that options take, so that help and errors of usage need no torch. A test compares them with what they name."""

from typing import Any

import click

from weightdecay.display.near_names import nearest

CHECKS = ("D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "D10")
CONVENTIONS = ("torch", "independent", "coupled")
DTYPES = ("float32", "bfloat16", "float16")
LAWS = (
    "coupled", "decoupled", "independent", "proximal", "toward", "rescaled", "constant", "coupled or decoupled", "none",
    "unknown",
)  # fmt: skip
OPTIMIZERS = ("SGD", "SGDW", "Adam", "AdamW")
"""Those of a sweep that names none."""
SCHEDULES = ("constant", "linear", "cosine")
STYLES = ("weightdecay", "hf", "timm", "nanogpt")
TASKS = ("diabetes", "digits")


class Word(click.Choice):  # type: ignore[type-arg]  # which click 8.1 has no argument for
    """One of a few words; of another the nearest is named."""

    def convert(self, value: Any, option: click.Parameter | None, context: click.Context | None) -> str:
        """Return the word."""
        if value not in self.choices:
            near = nearest(value, self.choices)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            self.fail(f"{value!r} is not one of {', '.join(self.choices)}{meant}", option, context)
        return str(value)
