"""A contributor adds a decay by adding one file; a third party by decorating a function anywhere. Nothing else is edited."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from runs import walk

import weightdecay as wd
from weightdecay.cli import main

TESTS = Path(__file__).parent
ROOT = TESTS.parent

NEW_RULE = '''\
"""Sign decay: every weight loses the same amount, whatever its size."""

from weightdecay.update_rules import decay
from weightdecay.update_rules.ops import sign


@decay(source="a test of this package")
def signed(w, u, *, eta, lam):
    """Step by −η·u and by ηλ towards zero.

    >>> signed(1.0, 0.5, eta=0.5, lam=0.5)
    0.5
    """
    return w - eta * lam * sign(w) - eta * u
'''

TRAIN = """\
import torch, weightdecay as wd
w = torch.nn.Parameter(torch.tensor([2.0, -2.0]))
w.grad = torch.tensor([1.0, 1.0])
wd.Optimizer([w], lr=0.5, direction="sgd", decay="signed", weight_decay=0.5).step()
print(wd.__file__, *w.tolist(), wd.rules()["decay", "signed"].summary, sep="|")
"""

THIRD_PARTY = '''\
"""Somebody else's module."""

import weightdecay as wd
from weightdecay.update_rules.ops import where


@wd.decay(source="https://example.com/a-blog", domain={"radius": "(0, inf)"})
def ball(w, u, *, eta, lam, norm_w, radius=1.0):
    """Shrink a tensor only while it is longer than a radius."""
    return where(norm_w > radius, 1 - eta * lam, 1) * w - eta * u
'''


@pytest.fixture
def contributed(tmp_path):
    """Return a function that runs Python on a copy of the package with one more file."""
    shutil.copytree(Path(wd.__file__).parent, tmp_path / "weightdecay", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "weightdecay/update_rules/decays/signed.py").write_text(NEW_RULE, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False
        )
        assert not done.stderr, done.stderr
        return done.stdout

    return run


def test_a_decay_is_one_file_of_under_25_lines(contributed, tmp_path):
    assert len(NEW_RULE.splitlines()) < 25
    origin, *weights, summary = contributed("-c", TRAIN).strip().split("|")
    assert Path(origin).is_relative_to(tmp_path)
    assert [float(w) for w in weights] == [2 - 0.25 - 0.5, -2 + 0.25 - 0.5]
    assert summary.startswith("Sign decay")


def test_the_command_line_lists_it(contributed):
    listed = {rule["name"]: rule for rule in json.loads(contributed("-m", "weightdecay", "rules", "--json"))["decay"]}
    assert listed["signed"]["summary"].startswith("Sign decay")
    assert set(wd.rules().of("decay")) < set(listed)


@pytest.mark.slow
def test_the_tests_take_it_up(contributed, tmp_path):
    """The laws hold for it, its example is run, and the one test that fails asks for a second opinion on it."""
    paths = [TESTS / "test_rules.py", TESTS / "test_oracles.py", tmp_path / "weightdecay/update_rules/decays/signed.py"]
    options = ["-q", "-rA", "-k", "signed", "-p", "no:cacheprovider", "-c", TESTS.parent / "pyproject.toml"]
    report = contributed("-m", "pytest", *options, *paths)
    outcomes = re.findall(r"^(PASSED|FAILED) (\S+)", report, re.MULTILINE)
    assert sum("test_rules.py" in test for outcome, test in outcomes if outcome == "PASSED") > 30
    assert any(
        test.endswith("weightdecay.update_rules.decays.signed.signed") for outcome, test in outcomes if outcome == "PASSED"
    )
    (asked_for,) = [test for outcome, test in outcomes if outcome == "FAILED"]
    assert "test_every_rule_has_an_oracle" in asked_for
    assert "write tests/oracles/decay_signed.py" in report


@pytest.mark.slow
def test_the_tutorial_to_the_letter(tmp_path):
    """Whoever does what "A decay in ten minutes" says gets what it says: one test fails, and asks for the oracle."""
    for name in ("src", "tests", "docs", "conftest.py", "pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## A decay in ten minutes")[2]
    code = re.search(r"```python\n(.*?)```\n\nThat is all\.(.*?)\n\n", page, re.DOTALL)
    place = tmp_path / re.search(r"Save it as `(.*?)`", page).group(1)
    assert not place.exists()
    place.write_text(code[1], encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*command):
        command = [sys.executable, *command]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)

    said = re.findall(r"`(.*?)`", code[2].replace("\n", " "))
    listing, sweep, optimizer, tests = (
        next(each for each in said if each.startswith(start))
        for start in ("weightdecay rules", "weightdecay sweep", "wd.Optimizer", "pytest")
    )
    assert re.search(r"^decay +divided ", run("-m", *listing.split()).stdout, re.MULTILINE)
    swept = run("-m", *sweep.split())
    assert swept.returncode == 0, swept.stderr
    assert (tmp_path / "runs/digits/index.html").is_file()
    step = f"import torch, weightdecay as wd\nw = torch.nn.Parameter(torch.ones(2))\nparams, lr = [w], 0.1\no = {optimizer}\n"
    trained = run("-c", f"{step}w.grad = torch.zeros(2)\no.step()\nprint(w.tolist())")
    assert json.loads(trained.stdout) == pytest.approx([1 / 1.01] * 2)
    report = run("-m", *tests.split(), "-q", "-rA", "-p", "no:cacheprovider").stdout
    outcomes = re.findall(r"^(PASSED|FAILED|ERROR) (\S+)", report, re.MULTILINE)
    assert sum(outcome == "PASSED" for outcome, _ in outcomes) > 100
    assert [test for outcome, test in outcomes if outcome != "PASSED"] == [
        "tests/test_oracles.py::test_every_rule_has_an_oracle[decay-divided]"
    ]
    assert "write tests/oracles/decay_divided.py" in report


@pytest.fixture
def ball(tmp_path, monkeypatch, own_registry):
    """Import somebody else's module, and return its rule."""
    (tmp_path / "somebody_elses.py").write_text(THIRD_PARTY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "somebody_elses", raising=False)
    import somebody_elses

    return somebody_elses.ball


def vector(*values):
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("by_name", [True, False], ids=["by-name", "by-function"])
def test_a_third_partys_rule_is_a_rule(ball, by_name):
    """With a number of the whole tensor, and with a hyper-parameter of its own that a group may set."""
    short, long, wide = vector(0.0, 0.5), vector(3.0, 4.0), vector(3.0, 4.0)
    groups = [{"params": [short, long]}, {"params": [wide], "radius": 5.5}]
    optimizer = wd.Optimizer(groups, lr=0.5, direction="sgd", decay="ball" if by_name else ball, weight_decay=0.5)
    walk(optimizer, [torch.zeros(2)])
    assert [p.tolist() for p in (short, long, wide)] == [[0.0, 0.5], [2.25, 3.0], [3.0, 4.0]]
    assert [group["radius"] for group in optimizer.param_groups] == [1.0, 5.5]
    resumed = wd.Optimizer([vector(0.0), vector(1.0, 1.0)], lr=0.5, direction="sgd", decay="ball", radius=9.0)
    assert resumed.param_groups[0]["radius"] == 9.0


@pytest.mark.parametrize(
    ("radius", "error"), [(0.0, ValueError), (float("nan"), ValueError), ("far", TypeError), (None, TypeError)]
)
def test_a_third_partys_hyper_parameter_is_validated(ball, radius, error):
    for groups, radii in (([vector(1.0)], {"radius": radius}), ([{"params": [vector(1.0)], "radius": radius}], {})):
        with pytest.raises(error, match="radius"):
            wd.Optimizer(groups, lr=0.1, direction="sgd", decay=ball, **radii)


def test_a_misspelt_hyper_parameter_is_found(ball):
    with pytest.raises(TypeError, match="did you mean radius"):
        wd.Optimizer([vector(1.0)], lr=0.1, direction="sgd", decay=ball, raduis=1.0)
    with pytest.raises(ValueError, match="did you mean 'radius'"):
        wd.Optimizer([{"params": [vector(1.0)], "radiuss": 1.0}], lr=0.1, direction="sgd", decay=ball)
    with pytest.raises(TypeError, match="radius"):
        wd.Optimizer([vector(1.0)], lr=0.1, direction="sgd", decay="decoupled", radius=1.0)


def test_a_third_partys_rule_survives_a_checkpoint(ball):
    first, second = vector(3.0, 4.0), vector(0.0, 0.0)
    saved = wd.Optimizer([first], lr=0.5, direction="sgd", decay=ball, weight_decay=0.5, radius=2.0)
    loaded = wd.Optimizer([second], lr=0.5, direction="sgd", decay=ball)
    loaded.load_state_dict(saved.state_dict())
    with torch.no_grad():
        second.copy_(first)
    for optimizer in (saved, loaded):
        walk(optimizer, [torch.zeros(2)])
    assert first.tolist() == second.tolist() == [2.25, 3.0]


def test_the_command_line_imports_a_third_partys_module(ball):
    printed = CliRunner().invoke(main, ["--import", ball.__module__, "rules", "--json"], catch_exceptions=False).output
    found = next(rule for rule in json.loads(printed)["decay"] if rule["name"] == "ball")
    assert (found["defaults"], found["domain"], found["reductions"]) == ({"radius": 1.0}, {"radius": "(0, inf)"}, ["norm_w"])


def test_the_command_line_says_which_module_it_does_not_find(ball):
    done = CliRunner().invoke(main, ["--import", "nobodys_module", "rules"])
    assert done.exit_code == 1
    assert "nobodys_module" in done.stderr
