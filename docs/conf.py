"""The documentation, built by `make docs` into build/docs. Warnings are errors."""

import logging
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import weightdecay

project = "weightdecay"
author = "The weightdecay developers"
copyright = "The weightdecay developers, Apache-2.0"  # noqa: A001 (Sphinx's name)
version = release = weightdecay.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "katex"]
exclude_patterns = ["_ext"]
nitpicky = True
# Torch's names and Python's exceptions are documented elsewhere, and a build asks nobody for them.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|collections|typing|types|pathlib|Tensor|ParamsT|Unpack|Options|RuleLike|Patterns|Pair).*"),
    (r"py:exc", r"\w*(Error|Exception).*"),
]

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
default_role = "literal"  # what docstrings set in single backticks is code
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

smartquotes_action = "D"  # dashes alone: "auto" is something to type

html_theme = "furo"
html_title = "weightdecay"
html_math_renderer = "katex"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def escape(app: Any, what: str, name: str, object_: Any, options: Any, lines: list[str]) -> None:
    """Let docstrings say |w| and *state as they are: what reStructuredText would make of `|` and `*` is not meant in them."""
    in_doctest = False
    for place, line in enumerate(lines):
        in_doctest = line.lstrip().startswith(">>>") or (in_doctest and bool(line.strip()))
        if not in_doctest:
            bullet = re.match(r"\s*\* |", line)
            assert bullet is not None
            lines[place] = bullet[0] + re.sub(r"(?<!\\)([*|])", r"\\\1", line[bullet.end() :])
    if what in ("property", "attribute", "data") and ": " in lines[0]:
        before, _, after = lines[0].partition(": ")  # which napoleon would take for a type
        lines[:1] = [before + "\\", "\\: " + after]


def setup(app: Any) -> None:
    """Register the above, before napoleon rewrites the docstrings."""
    app.connect("autodoc-process-docstring", escape, priority=100)
    # A generator writes the pages of rules/; without them its glob is empty, and that is no mistake.
    logging.getLogger("sphinx.sphinx.directives.other").addFilter(lambda record: getattr(record, "subtype", "") != "empty_glob")
