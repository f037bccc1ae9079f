"""Every picture that the package draws can be read: no text leaves its canvas, none lies on another, in light and dark."""

import importlib.util
import itertools
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.backends.backend_agg import RendererAgg
from test_report import flat, hurting, ridge, sweep
from torch import nn

import weightdecay as wd
from weightdecay.analysis.plot import spread
from weightdecay.analysis.split import Summary
from weightdecay.audit.meter.metrics import Reading, Sample
from weightdecay.audit.meter.plot import _COLOURS, colours, course
from weightdecay.display import figure as drawing
from weightdecay.display.figure import DARK, PAPER, Canvas
from weightdecay.groups.roles import ROLES
from weightdecay.sweeps.report import verdict
from weightdecay.sweeps.report.heat_maps import heat_maps
from weightdecay.sweeps.report.training_curves import curves, norms

LONG = "an_optimizer_with_a_name_that_nobody_can_say"


@pytest.fixture
def drawn(monkeypatch):
    """Return the canvases that are drawn from now on."""
    seen = []
    encode = Canvas.encode

    def encoded(self, kind):
        if self not in seen:
            seen.append(self)
        return encode(self, kind) if kind == "svg" else b""  # a PNG takes as long again and says no more

    monkeypatch.setattr(Canvas, "encode", encoded)
    return seen


# Where the texts stand ----------------------------------------------------------------------------------------------------


def texts(figure):
    """Return what is drawn of words, and the corners of the box that they fill, in pixels; turned texts are turned boxes."""
    renderer, seen = RendererAgg(figure.bbox.width, figure.bbox.height, figure.dpi), []
    draw = renderer.draw_text

    def noted(*arguments, mtext=None, **given):
        seen.append(mtext)
        draw(*arguments, mtext=mtext, **given)

    renderer.draw_text = noted  # an axis has more texts than it draws
    figure.draw(renderer)
    for text in seen:
        angle = text.get_rotation()
        turn = math.radians(angle if angle % 90 else 0)
        cos, sin = math.cos(turn), math.sin(turn)
        anchor = text.get_transform().transform(text.get_position())
        text.set_rotation(0 if turn else angle)  # the box before it was turned about its anchor, which stays where it is
        box = text.get_window_extent(renderer)
        text.set_rotation(angle)
        corners = [(x - anchor[0], y - anchor[1]) for x in (box.x0, box.x1) for y in (box.y0, box.y1)]
        around = [corners[place] for place in (0, 1, 3, 2)]
        yield text.get_text(), [(float(anchor[0] + x * cos - y * sin), float(anchor[1] + x * sin + y * cos)) for x, y in around]


def overlap(one, other, slack=1.0):
    """Tell whether two boxes have more than a pixel in common: no side of either divides them."""
    for box in (one, other):
        for (x0, y0), (x1, y1) in itertools.pairwise([*box, box[0]]):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            across = [[((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length for x, y in each] for each in (one, other)]
            if max(across[0]) - slack <= min(across[1]) or max(across[1]) - slack <= min(across[0]):
                return False
    return True


def assert_readable(canvas, columns=False):
    """Refuse a text that leaves the figure, or the column that a narrow page cuts out of it, and one that lies on another."""
    figure = canvas.figure
    found = list(texts(figure))
    assert found
    width, height = figure.bbox.width, figure.bbox.height
    dots = figure.dpi
    for words, corners in found:
        xs, ys = zip(*corners, strict=True)
        assert min(xs) >= 0, (words, min(xs))
        assert max(xs) <= width, (words, max(xs), width)
        assert min(ys) >= 0, (words, min(ys))
        assert max(ys) <= height, (words, max(ys), height)
        if columns:
            windows = [(dots * x, height - dots * (y + tall), dots * (x + canvas.column), height - dots * y)
                       for x, y, tall in canvas.boxes]  # fmt: skip
            assert any(x0 - 1 <= min(xs) and max(xs) <= x1 + 1 and y0 - 1 <= min(ys) and max(ys) <= y1 + 1
                       for x0, y0, x1, y1 in windows), (words, corners)  # fmt: skip
    for (words, one), (others, other) in itertools.combinations(found, 2):
        assert not overlap(one, other), (words, others)


def test_the_look_at_texts_sees_what_is_wrong():
    """A text that is cut off and two that lie on each other are found; two beside each other are not."""
    canvas = Canvas(1, 2.0, 1.0, drawing.Margins(0.5, 0.2, 0.2, 0.5, 0.0), 0)
    canvas.panels[0].set_xticks([0, 1], ["left", "right"])
    assert_readable(canvas)
    canvas.panels[0].set_ylabel("cut off")
    with pytest.raises(AssertionError, match="cut off"):
        assert_readable(canvas)
    canvas.panels[0].set_ylabel("")
    canvas.panels[0].set_xticks([0.0, 0.1], ["one word", "and another"])
    with pytest.raises(AssertionError, match="another"):
        assert_readable(canvas)
    canvas.panels[0].set_xticks([0.2, 0.4], ["turned words", "turned words"], rotation=60, ha="right", rotation_mode="anchor")
    canvas.panels[0].set_xlim(0, 1)
    with pytest.raises(AssertionError, match="turned"):
        assert_readable(canvas)
    big = Canvas(1, 2.0, 1.0, drawing.Margins(0.5, 0.2, 0.2, 1.0, 0.0), 0)
    big.panels[0].set_xticks([0.4, 0.8], ["turned words", "turned words"], rotation=60, ha="right", rotation_mode="anchor")
    assert_readable(big)


# The pictures -------------------------------------------------------------------------------------------------------------


def diverging(_, lr, decay):
    """Diverge at large rates."""
    return None if lr > 0.05 else 0.9 - 0.01 * abs(math.log10(lr) + 2)


SWEEPS = {
    "one optimizer": lambda: sweep(ridge(-1)),
    "two": lambda: sweep(ridge(-1), optimizers={"SGD": "coupled", "AdamW": "decoupled"}),
    "four, in percent": lambda: sweep(
        ridge(-1), optimizers={"SGD": "coupled", "SGDW": "decoupled", "Adam": "coupled", "AdamW": "decoupled"}
    ),
    "three, one with a long name": lambda: sweep(
        hurting, optimizers={LONG: "coupled", "b" * 21: "decoupled", "c": "decoupled"}, seeds=1
    ),
    "diverging and missing": lambda: _with_holes(sweep(diverging, optimizers={"SGD": "coupled", "AdamW": "decoupled"})),
    "diverging and missing, alone": lambda: _with_holes(sweep(diverging)),
    "another metric": lambda: sweep(flat, metric="mean_squared_error_on_a_very_long_list_of_things", goal="min"),
    "many rates": lambda: sweep(
        ridge(-1), lrs=[10 ** (power / 8) for power in range(-32, -7)], decays=[0, *(1.234e-5 * 2.0**k for k in range(22))],
        seeds=1,
    ),
    "one cell": lambda: sweep(flat, lrs=[0.01], decays=[0.1]),
}  # fmt: skip


def _with_holes(found):
    rows, manifest = found
    return [row for row in rows if not (row["lr"] < 1e-3 and row["weight_decay"] > 1)], manifest


@pytest.mark.parametrize("draw", [heat_maps, curves, norms], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("made", SWEEPS.values(), ids=SWEEPS)
def test_the_pictures_of_a_sweep_can_be_read(made, draw, drawn):
    picture = draw(verdict(*made()))
    (canvas,) = drawn
    assert_readable(canvas, columns=True)
    assert_themed(picture.svg)
    assert_themed(picture.narrow)


def reading(size):
    """Return a reading whose numbers are near some size."""
    return Reading(3, 1000, 12.3 * size, 1e-3, 2e-3 * size, 1e-3 * size, 1.01e-3 * size, 1.01, 0.5, 10.0 * size, 1.2,
                   693.0, math.nan, 1000.0, math.nan, 1e-4)  # fmt: skip


LABELS = {
    "groups": ["group0", "group1"],
    "a model's roles": ["group0", "group1", "weight", "bias", "norm", "embedding.tied", "position"],
    "LoRA": ["group0", "lora.a", "lora.b"],
    "every role there is": ["group0", *(role.name for role in ROLES)],
    "a user's own": ["group0", LONG, "head", *(f"stage {place} of the backbone" for place in range(5))],
    "a hundred groups": [f"group{place}" for place in range(100)],
}
STEPS = {
    "one sample": ([1], 1.0),
    "a short run": ([1, 2, 4, 8, 16, 32, 64, 128, 256], 1.1),
    "a long run over decades": ([1, *range(1000, 1_000_000, 20_000)], 1.3),
    "a level": ([1, 2, 4], 1.0),
}


@pytest.mark.parametrize(("labels", "steps"), [
    *((labels, "a short run") for labels in LABELS), *(("a model's roles", steps) for steps in STEPS if steps != "a short run"),
])  # fmt: skip
def test_the_picture_of_a_meter_can_be_read(labels, steps, drawn):
    labels, (steps, grows) = LABELS[labels], STEPS[steps]
    samples = [
        Sample(step, {label: reading(grows**place * (1 + number / 7)) for number, label in enumerate(labels)})
        for place, step in enumerate(steps)
    ]
    picture = course(samples)
    (canvas,) = drawn
    assert_readable(canvas)
    assert_themed(picture.svg)
    for panel in canvas.panels:  # one sees how large a thing is
        shown = [tick.label1.get_text() for tick in panel.yaxis.get_major_ticks()
                 if panel.get_ylim()[0] <= tick.get_loc() <= panel.get_ylim()[1]]  # fmt: skip
        assert len(shown) >= 2
        assert len(set(shown)) == len(shown)


def test_a_meter_that_has_nothing_to_show_draws_that_much(drawn):
    """Of an optimizer that nobody knows two panels stay empty."""
    optimizer = torch.optim.Rprop([nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    meter = wd.Meter(optimizer)
    optimizer.step()
    course(meter.history())
    assert_readable(drawn[0])


@pytest.mark.parametrize(("names", "wide", "title"), [
    (["w"], 1.0, "Adam"), ([f"layer{place}" for place in range(70)], 1e6, "Adam"), ([LONG + LONG, "b"], 1e6, LONG),
    ([f"layer{place}" for place in range(70)], 10.0, "direction=adam, penalty=elastic_net, decay=soft_threshold"),
], ids=["one", "many", "long", "many, with a long title"])  # fmt: skip
def test_the_picture_of_a_decomposition_can_be_read(names, wide, title, drawn):
    summaries = [Summary(name, [3, 4], 1e-5, 1e-5, 2e-5, 3e-5, 1e-5 * wide, 1.0, 100.0, wide, 0.0) for name in names]
    picture = spread(title, summaries, [1e-4 for _ in names])
    assert_readable(drawn[0])
    assert_themed(picture.svg)


def _generator():
    """Return docs/generate.py as a module."""
    path = Path(__file__).parent.parent / "docs/generate.py"
    spec = importlib.util.spec_from_file_location("generate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = _generator()


@pytest.mark.parametrize("rule", GENERATE.ours(), ids=lambda rule: f"{rule.kind}-{rule.name}")
def test_the_picture_of_a_rule_can_be_read(rule, drawn):
    svg = GENERATE.draw(rule)
    assert_readable(drawn[0])
    assert_themed(svg)


def test_the_picture_of_the_schedules_can_be_read(drawn):
    assert_themed(GENERATE.draw_schedules())
    assert_readable(drawn[0])


# Light and dark -----------------------------------------------------------------------------------------------------------


def luminance(colour):
    """Return the relative luminance of #rrggbb, as WCAG 2 has it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(factor * x for factor, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """Return the contrast of two colours: 1 if they are alike, 21 for black and white."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def assert_themed(svg):
    """Refuse a picture that is a white box on a dark page, or has a text that cannot be read in one of the two themes."""
    ElementTree.fromstring(svg)
    sheets = re.findall(r"<style>@media \(prefers-color-scheme: dark\)\{(.*?)\}</style>", svg)
    assert len(sheets) == 1
    dark = dict(re.findall(r'\[style\*="fill: (#\w{6})"\]\{fill:(#\w{6})!important\}', sheets[0]))
    assert dark[PAPER] == DARK[PAPER]
    written = re.findall(r"<text[^>]*style=\"([^\"]*)\"", svg)
    assert written
    for style in written:
        (colour,) = re.findall(r"fill: (#\w{6})", style) or [""]
        assert colour, f"a text in black, which no theme changes: {style}"
        assert contrast(colour, PAPER) >= 4.5
        assert contrast(dark[colour], DARK[PAPER]) >= 4.5


def test_lines_are_seen_in_both_themes_and_differ_from_each_other():
    for colour in _COLOURS:
        assert contrast(colour, PAPER) >= 3
        assert contrast(DARK[colour], DARK[PAPER]) >= 3
    for theme in (lambda colour: colour, DARK.get):
        assert len({theme(colour) for colour in _COLOURS}) == len(_COLOURS)


def test_the_colour_of_a_role_is_its_own():
    """Neither the order of the labels nor what else is there changes it."""
    models = [
        ["weight", "bias", "norm"], ["norm", "weight"], ["embedding", "norm", "bias", "weight"], ["position", "weight"],
        ["head", "weight"], ["weight", "head", "norm"],
    ]  # fmt: skip
    found = {}
    for labels in models:
        for label, colour in colours(labels).items():
            assert found.setdefault(label, colour) == colour
    assert len(set(found.values())) == len(found)
    assert colours(["group1"])["group1"] == colours(["group0", "group1"])["group1"]
    for labels in LABELS.values():
        few = [label for label in labels if not label.startswith("group")][: len(_COLOURS)]
        assert len(set(colours(few).values())) == len(few)


def test_two_pictures_of_one_run_are_one_file(drawn):
    found = verdict(*sweep(ridge(-1)))
    assert heat_maps(found).svg == heat_maps(found).svg
