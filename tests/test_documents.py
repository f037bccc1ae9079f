"""What the documents show is run: the decay of CONTRIBUTING, the task of docs/your-own-task.md, the figures of the README."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import weightdecay as wd

ROOT = Path(__file__).parent.parent


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def test_the_readmes_lines_print_what_it_shows(capsys):
    lines, page = blocks("README.md", "python")
    exec(compile(lines, "README.md", "exec"), {})
    (shown,) = blocks("README.md", "text")
    assert capsys.readouterr().out == shown
    source = ROOT / "src/weightdecay/decays/decoupled.py"
    assert page == source.read_text(encoding="utf-8")


def test_the_decay_of_contributing_works_as_typed(tmp_path, own_registry):
    (page,) = blocks("CONTRIBUTING.md", "python")
    assert len(page.splitlines()) < 25
    path = tmp_path / "implicit.py"
    path.write_text(page)
    spec = importlib.util.spec_from_file_location("implicit", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    w = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = wd.Optimizer([w], 0.5, direction="sgd", decay="implicit", weight_decay=2.0)
    w.grad = torch.tensor([0.5])
    optimizer.step()
    assert w.item() == module.implicit(1.0, 0.5, eta=0.5, lam=2.0) == 0.375


def test_the_task_of_the_docs_sweeps_as_typed(tmp_path):
    (module,) = blocks("docs/your-own-task.md", "python")
    (command,) = blocks("docs/your-own-task.md", "console")
    (tmp_path / "my_task.py").write_text(module)
    program, *arguments = shlex.split(command)
    assert program == "weightdecay"
    subprocess.run([sys.executable, "-m", "weightdecay", *arguments], cwd=tmp_path, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "runs/cancer/results.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 5 * 5 * 3
    assert max(row["test_accuracy"] for row in rows) > 0.9
    assert (tmp_path / "runs/cancer/index.html").is_file()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/your-own-task.md"])
def test_every_link_into_the_repository_leads_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text):
        if not target.startswith("http"):
            assert ((ROOT / document).parent / target).exists(), target


def test_make_names_every_command_of_the_documents():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"^make (\w+)", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)) <= targets
