"""Formulas as MathML, set while the pages are built: no script and no network when they are read.

KaTeX comes in the PyPI package sphinxcontrib-katex and runs in mini-racer, a JavaScript engine. TeX that it cannot parse
is an error of the build. A browser without a font for mathematics gets STIX Two Math, cut down to what formulas need.
"""

import atexit
import functools
import html
import importlib.util
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.locale import _
from sphinx.util.math import get_node_equation_number

FONT = "STIXTwoMath.woff"
FONT_HOLDS = [(0x20, 0x7E), (0xA0, 0xFF), (0x2C6, 0x2DD), (0x300, 0x338), (0x370, 0x3FF), (0x2010, 0x2063), (0x20D0, 0x20EF),
              (0x2100, 0x214F), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2308, 0x230B), (0x239B, 0x23E1), (0x27C2, 0x27EF),
              (0x2A00, 0x2AFF), (0x1D400, 0x1D7FF)]  # fmt: skip
"""Latin, accents, Greek, operators, arrows, brackets and their pieces, letters of mathematics."""


MATHML = "{http://www.w3.org/1998/Math/MathML}"
SCRIPTED = ("msub", "msup", "msubsup", "munder", "mover", "munderover")
ElementTree.register_namespace("", MATHML[1:-1])


class TexError(SphinxError, ValueError):
    """Say what KaTeX cannot parse."""

    category = "TeX that KaTeX cannot parse"


def package(name: str) -> Path:
    """Return the folder of an installed module, which need not be imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"the documentation needs {name}: pip install 'weightdecay[docs]'")
    return Path(spec.origin).parent


@functools.cache
def engine() -> Any:
    """Return a JavaScript engine that has read KaTeX."""
    from py_mini_racer import MiniRacer

    context = MiniRacer()
    atexit.register(context.close)  # while its threads can still be asked to end
    context.eval((package("sphinxcontrib.katex") / "katex.min.js").read_text(encoding="utf-8"))
    # Errors return as text: mini-racer's own would carry the line that failed, and KaTeX is one line.
    context.eval("""
        function set(tex, displayMode) {
            try { return JSON.stringify([katex.renderToString(tex, {output: "mathml", displayMode, strict: false}), null]) }
            catch (error) { return JSON.stringify([null, String(error.message)]) }
        }
    """)
    return context


@functools.cache
def mathml(tex: str, display: bool = False) -> str:
    """Return TeX as a <math> element, or raise `TexError`.

    >>> mathml("x").startswith("<math") and "<mi>x</mi>" in mathml("x")
    True
    """
    found, error = json.loads(engine().eval(f"set({json.dumps(tex)}, {json.dumps(display)})"))
    if error is not None:
        raise TexError(f"{error.removeprefix('KaTeX parse error: ')}\nin {tex}")
    return _for_browsers(str(found).removeprefix('<span class="katex">').removesuffix("</span>"))


def _for_browsers(text: str) -> str:
    """Write for MathML Core, which is what browsers set: operators' spaces and tables' columns as KaTeX would have them."""
    root = ElementTree.fromstring(text)
    for element in root.iter(MATHML + "mrow"):
        _join(element)
    for parent in root.iter():
        name = parent.tag.removeprefix(MATHML)
        children = list(parent)
        for place, element in enumerate(children):
            symbol = (element.text or "").strip() if element.tag == MATHML + "mo" else None
            if symbol == "⁡" and name in SCRIPTED:  # as in η_max, where KaTeX gives the index a third part
                parent.remove(element)
            before = children[place - 1] if place else None
            if name in SCRIPTED and place:
                for operator in element.iter(MATHML + "mo"):  # no spaces in an index
                    operator.attrib.update(lspace="0", rspace="0")
            if symbol in ("∥", "∣"):  # bars that enclose, not the relations of these names
                element.text = {"∥": "‖", "∣": "|"}[symbol]
                element.attrib.update(lspace="0", rspace="0")
            elif symbol == "^" and name == "mover":
                element.text = "ˆ"
                element.attrib.update(stretchy="false")
            elif symbol == "⁡" and place + 1 < len(children) and not _opens(children[place + 1]):
                element.attrib.update(rspace="0.1667em")  # after the name of a function: ln 2
            elif symbol in ("−", "+") and (before is None or _precedes_a_sign(before)):
                element.attrib.update(form="prefix", lspace="0", rspace="0")
        if name == "mtable":
            _align(parent)
        if name in ("mrow", "mstyle", "mtd", "msqrt"):
            for place in reversed(range(1, len(children))):
                left, right = children[place - 1 : place + 1]
                if (_is_word(left) or _is_word(right)) and MATHML + "mo" not in (left.tag, right.tag):
                    parent.insert(place, ElementTree.Element(MATHML + "mspace", width="0.1667em"))
    return ElementTree.tostring(root, encoding="unicode")


def _join(row: ElementTree.Element) -> None:
    r"""Make one name of the upright letters of \mathrm{name}."""
    letters = [part.tag == MATHML + "mi" and part.get("mathvariant") == "normal" for part in row]
    if letters and letters[0] and all(letter or part.tag == MATHML + "mn" for letter, part in zip(letters, row, strict=True)):
        name = "".join(part.text or "" for part in row)
        row.clear()
        row.tag, row.text = MATHML + "mi", name
        if len(name) == 1:
            row.set("mathvariant", "normal")


def _is_word(element: ElementTree.Element) -> bool:
    """Tell whether it is the name of a function or of a number, of more than one letter."""
    while element.tag.removeprefix(MATHML) in SCRIPTED:
        element = element[0]
    return element.tag == MATHML + "mi" and len(element.text or "") > 1


def _opens(element: ElementTree.Element) -> bool:
    first = element[0] if element.tag == MATHML + "mrow" and len(element) else element
    return first.tag == MATHML + "mo" and (first.text or "") in "([{|‖"


def _precedes_a_sign(element: ElementTree.Element) -> bool:
    return element.tag == MATHML + "mo" and (element.text or "") in "([{=,≈≤≥<>⋅"


def _align(table: ElementTree.Element) -> None:
    sides = table.get("columnalign", "center").split()
    tight = table.get("columnspacing") == "0em"
    for row in table:
        for place, cell in enumerate(row):
            side = sides[min(place, len(sides) - 1)]
            cell.set("style", f"text-align: {side}; text-align: -webkit-{side}" + ("; padding: 0.3em 0" if tight else ""))


def write_font(folder: Path) -> None:
    """Write the font for mathematics, as far as formulas need it."""
    from fontTools import subset
    from fontTools.ttLib import TTFont

    options = subset.Options(flavor="woff", layout_features=["*"], notdef_outline=True, name_IDs=["*"])
    font = TTFont(package("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf")
    cut = subset.Subsetter(options)
    cut.populate(unicodes=[code for first, last in FONT_HOLDS for code in range(first, last + 1)])
    cut.subset(font)
    folder.mkdir(parents=True, exist_ok=True)
    subset.save_font(font, str(folder / FONT), options)


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _display(writer: Any, node: nodes.math_block) -> None:
    tex = node.astext().strip()
    if "\\\\" in tex and "\\begin" not in tex:
        tex = rf"\begin{{aligned}} {tex} \end{{aligned}}"
    number = ""
    if node["number"]:
        number = f'<span class="eqno">({get_node_equation_number(writer, node)})'
        writer.body.append(writer.starttag(node, "div", CLASS="formula"))
        number += (
            f'<a class="headerlink" href="#{html.escape(node["ids"][0])}" title="{_("Link to this equation")}">#</a></span>'
        )
    else:
        writer.body.append(writer.starttag(node, "div", CLASS="formula"))
    writer.body.append(f'<div class="scroll">{mathml(tex, True)}</div>{number}</div>\n')
    raise nodes.SkipNode


def _finish(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html" and not (Path(app.outdir) / "_static" / FONT).exists():
        write_font(Path(app.outdir) / "_static")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("katex", (_inline, None), (_display, None))
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
