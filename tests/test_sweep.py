"""The sweep: a stacked run is the run alone, results survive a kill, and a user's own task works."""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import weightdecay as wd
from weightdecay.sweeps import SweepError, tasks
from weightdecay.sweeps.grid import DEFAULT_OPTIMIZERS, Run, choose
from weightdecay.sweeps.results import Results, key
from weightdecay.sweeps.train import Alone, NotStackable, Stack, begin, train, train_alone, train_stacked


def double(task):
    """The task in float64, where the two ways of training can differ by their arithmetic's order alone."""
    return replace(
        task,
        model=lambda: task.model().double(),
        data=lambda seed: wd.Data(*((x.double(), y.double() if y.is_floating_point() else y) for x, y in task.data(seed))),
    )


def final_weights(task, choice, runs):
    """Return every run's weights after training, as a stack and alone, by parameter's name."""
    model, data = begin(task, runs[0].seed)
    stack = Stack(task, model, choice, runs)
    train(task, stack, data, runs[0].seed)
    for index, run in enumerate(runs):
        model, data = begin(task, run.seed)
        train(task, Alone(task, model, choice, run), data, run.seed)
        for name, param in model.named_parameters():
            yield run, name, stack.params[name][index], param.detach()


@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, 240 if name == "AdamW" else 80) for name in DEFAULT_OPTIMIZERS]
    + [(name, 40) for name in ("adam+cautious", "sgd+independent", "adam+norm", "amsgrad+l1")],
)
def test_a_stacked_run_is_the_run_alone(name, steps):
    """In every weight to 1e-5, at a small and at a large learning rate; λ moves the weights far more."""
    task, choice = double(replace(tasks.load("digits"), steps=steps)), choose(name)
    grid = choice.grid(task)
    runs = [Run(name, lr, lam, 1) for lr in (grid.lr[0], grid.lr[4]) for lam in (0.0, grid.weight_decay[4])]
    ends = {}
    for run, parameter, stacked, alone in final_weights(task, choice, runs):
        assert torch.allclose(stacked, alone, rtol=0, atol=1e-5), (run, parameter)
        ends[run, parameter] = alone
    effect = max((ends[runs[2], p] - end).abs().max() for (run, p), end in ends.items() if run == runs[3])
    assert effect > 100 * 1e-5


@pytest.mark.parametrize("name", ["SGD", "SGDW"])
def test_a_stacked_run_is_the_run_alone_in_float32(name):
    """To 1e-5 as well at learning rates that do not make training chaotic.

    Not so for Adam: where a gradient is nothing but rounding, m̂/√v̂ makes steps of full size of it.
    """
    task, choice = tasks.load("digits"), choose(name)
    grid = choice.grid(task)
    runs = [Run(name, lr, lam, 0) for lr in grid.lr[1:3] for lam in (0.0, grid.weight_decay[5])]
    for run, parameter, stacked, alone in final_weights(task, choice, runs):
        assert torch.allclose(stacked, alone, rtol=0, atol=1e-5), (run, parameter)


def test_decay_matters_on_the_digits():
    """At a large learning rate AdamW with its best λ beats λ = 0 by more than 4 points, and its weights are smaller."""
    without, best = train_stacked(tasks.load("digits"), choose("AdamW"), [Run("AdamW", 0.0119, lam, 0) for lam in (0.0, 10.0)])
    assert best["test_accuracy"] > without["test_accuracy"] + 0.04
    assert best["weight_norm"] < 0.5 * without["weight_norm"]
    assert without["history"]["step"] == [0, 30, 60, 90, 120, 150, 180, 210, 240]


def blobs(seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(120, 5, generator=random)
    y = (x[:, 0] > 0).long()
    return wd.Data((x[:60], y[:60]), (x[60:90], y[60:90]), (x[90:], y[90:]))


def right(output, target):
    return (output.argmax(-1) == target).float().mean()


TINY = wd.Task("tiny", lambda: nn.Linear(5, 2), blobs, nn.functional.cross_entropy, right, steps=6, batch_size=20)
SMALL_GRID = {"optimizers": ["SGD", "AdamW"], "lr": [1e-2, 1e-1], "weight_decay": [0, 1e-1], "seeds": 2}


def test_every_point_is_run_once(tmp_path):
    result = wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)
    runs = [key(row) for row in result.rows]
    assert len(set(runs)) == len(runs) == 2 * 2 * 2 * 2
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        assert 0 <= row["test_right"] <= 1
        assert {"optimizer", "lr", "weight_decay", "seed", "train_loss", "weight_norm", "versions"} <= row.keys()
        assert row["stacked"] is True
    assert json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["grid"]["SGD"]["lr"] == [1e-2, 1e-1]


def test_a_finished_sweep_trains_nothing_again(tmp_path):
    first = wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)
    before = (tmp_path / "results.jsonl").read_bytes()
    again = wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert first.rows == again.rows


def test_a_larger_grid_keeps_what_is_there(tmp_path):
    wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)
    before = (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    result = wd.sweep(TINY, tmp_path, **{**SMALL_GRID, "lr": [1e-3, 1e-2, 1e-1]}, report=False)
    after = (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    assert after.startswith(before)
    assert len(result.rows) == 24 == len(after.splitlines())


SLOW_SWEEP = """
import sys, time, torch, weightdecay as wd
sys.path.insert(0, sys.argv[2])
import test_sweep
result = wd.sweep(test_sweep.TINY, sys.argv[1], optimizers=["SGD", "AdamW"], lr=[0.01, 0.1], weight_decay=[0, 0.1], seeds=15,
                  report=False)
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    """SIGKILL at growing delays until it gets through: no finished run is lost, doubled or half-written."""
    command = [sys.executable, "-c", SLOW_SWEEP, str(tmp_path), os.path.dirname(__file__)]
    results, kept, kills = tmp_path / "results.jsonl", b"", 0
    for attempt in range(60):
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        delay = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < delay:
            if results.exists() and results.stat().st_size > len(kept) and kills < 4:
                time.sleep(0.013 * attempt)  # another moment of the loop each time
                process.send_signal(signal.SIGKILL)
            time.sleep(0.001)
        if process.wait() == 0:
            break
        kills += 1
        now = results.read_bytes()
        whole = now[: now.rfind(b"\n") + 1]
        assert whole.startswith(kept)
        kept = whole
    assert kills >= 2
    assert process.returncode == 0
    assert results.read_bytes().startswith(kept)
    runs = [key(json.loads(line)) for line in results.read_text(encoding="utf-8").splitlines()]
    assert len(runs) == len(set(runs)) == 2 * 2 * 2 * 15


def test_a_torn_line_is_cut_off_and_run_again(tmp_path):
    wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert len(wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False).rows) == 16
    assert len([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]) == 16


def test_another_tasks_folder_is_refused(tmp_path):
    wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(SweepError, match="steps 6 → 7"):
        wd.sweep(replace(TINY, steps=7), tmp_path, **SMALL_GRID, report=False)
    assert (tmp_path / "results.jsonl").read_bytes() == before
    fresh = wd.sweep(replace(TINY, steps=7), tmp_path, **SMALL_GRID, report=False, fresh=True)
    assert {row["steps"] for row in fresh.rows} == {7}


def test_a_changed_task_is_refused(tmp_path, monkeypatch):
    """The same settings with another model's code would mix results that cannot be compared."""
    module = tmp_path / "mine.py"
    module.write_text(
        "from torch import nn\nimport weightdecay as wd\nimport test_sweep\n\n"
        "def model():\n    return nn.Linear(5, 2)\n\n"
        "loss, metric = nn.functional.cross_entropy, test_sweep.right\n"
        "task = wd.Task('mine', model, test_sweep.blobs, loss, metric, steps=6, batch_size=20)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("mine")
    wd.sweep(mine.task, tmp_path / "out", **SMALL_GRID, report=False)
    changed = module.read_text(encoding="utf-8").replace("nn.Linear(5, 2)", "nn.Linear(5, 2, bias=False)")
    module.write_text(changed, encoding="utf-8")
    with pytest.raises(SweepError, match=r"holds results of another task \(code"):
        wd.sweep(importlib.reload(mine).task, tmp_path / "out", **SMALL_GRID, report=False)
    del sys.modules["mine"]


def scaled(factor):
    return lambda output, target: factor * nn.functional.cross_entropy(output, target)


class Model(nn.Linear):
    def __init__(self, width=5):
        super().__init__(width, 2)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"schedule": lambda step, steps: 1.0}, {"schedule": lambda step, steps: 0.5}),
        ({"loss": scaled(1.0)}, {"loss": scaled(2.0)}),
        ({"loss": functools.partial(nn.functional.cross_entropy, label_smoothing=0.0)},
         {"loss": functools.partial(nn.functional.cross_entropy, label_smoothing=0.1)}),
        ({"model": Model}, {"model": lambda: nn.Linear(5, 2)}),
    ],
    ids=["schedule", "closure", "partial", "class"],
)  # fmt: skip
def test_what_a_function_closes_over_is_part_of_the_task(tmp_path, first, second):
    first, second = replace(TINY, **first), replace(TINY, **second)
    wd.sweep(first, tmp_path, **SMALL_GRID, report=False)
    assert len(wd.sweep(first, tmp_path, **SMALL_GRID, report=False).rows) == 16
    with pytest.raises(SweepError, match="code"):
        wd.sweep(second, tmp_path, **SMALL_GRID, report=False)


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path, monkeypatch):
    with Results(tmp_path, TINY.fingerprint()) as results:
        run = {"optimizer": "SGD", "lr": 0.1, "weight_decay": 0.0, "seed": 0}
        results.append([run])
        before = results.path.read_bytes()
        real = os.write

        def full(descriptor, data):
            if len(data) > 10:
                return real(descriptor, data[:10])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(SweepError, match=r"results\.jsonl: No space left.*kept"):
            results.append([{**run, "seed": 1}])
        monkeypatch.undo()
        assert results.path.read_bytes() == before
        results.append([{**run, "seed": 2}])
    assert [json.loads(line)["seed"] for line in results.path.read_text(encoding="utf-8").splitlines()] == [0, 2]


def test_two_sweeps_do_not_share_a_folder(tmp_path):
    with Results(tmp_path, TINY.fingerprint()), pytest.raises(SweepError, match="another sweep is writing"):
        wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)


DAMAGE = {
    "not json": "it is not JSON",
    '"\u2028': "it is not JSON",
    "[]": "it is no object",
    "[" * 5000: "it is nested too deeply",
    '{"optimizer": "SGD"}': "its lr is null",
    '{**row, "optimizer": 3}': "its optimizer is 3",
    '{**row, "lr": [0.1]}': r"its lr is \[0\.1\]",
    '{**row, "lr": "0.1"}': 'its lr is "0.1"',
    '{**row, "lr": True}': "its lr is true",
    '{**row, "weight_decay": 10**400}': "its weight_decay is 1000.*…",
    '{**row, "seed": 0.5}': r"its seed is 0\.5",
    '{**row, "test_right": "high"}': 'its test_right is "high"',
    '{**row, "valid_right": []}': r"its valid_right is \[\]",
    '{**row, "train_loss": 10**400}': "its train_loss is 1000",
    '{**row, "history": "long"}': 'its history is "long"',
    '{**row, "history": {"train_loss": 3}}': 'its history of "train_loss" is 3',
    '{**row, "history": {"train_loss": [10**400]}}': 'its history of "train_loss" is',
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda text: text[:50])
def test_a_damaged_line_is_named_and_the_others_are_kept(tmp_path, damage):
    before = wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)
    path = tmp_path / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] = json.dumps(eval(damage, {"row": json.loads(lines[4])})) if damage.startswith("{**row") else damage
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(SweepError, match=f"line 5: not a result of a sweep \\({DAMAGE[damage]}.*keeps the other 15 runs"):
        wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)
    assert path.read_text(encoding="utf-8") == "\n".join(lines) + "\n"
    path.write_text("\n".join(lines[:4] + lines[5:]) + "\n", encoding="utf-8")  # as the message says
    again = wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)
    assert path.read_text(encoding="utf-8").splitlines()[:15] == lines[:4] + lines[5:]
    assert {key(row) for row in again.rows} == {key(row) for row in before.rows}


def test_all_damaged_lines_are_named_at_once(tmp_path):
    wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)
    path = tmp_path / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(["x", *lines[1:8], "y", *lines[9:]]) + "\n", encoding="utf-8")
    with pytest.raises(SweepError, match=r"lines 1, 9: .*the other 14 runs"):
        wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)


@pytest.mark.parametrize(
    "text", ['{"identity": []}', "[]", "{", "[" * 5000, '{"identity": "mine"}', "3"], ids=lambda text: text[:20]
)
def test_a_damaged_description_is_refused(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text, encoding="utf-8")
    with pytest.raises(SweepError, match=r"sweep\.json is not a sweep's description"):
        wd.sweep(TINY, tmp_path, **SMALL_GRID, report=False)


def test_only_files_are_read_and_appended_to(tmp_path):
    """Nothing is cut off of what a link leads to, and nobody waits for a pipe."""
    for place, make in enumerate((Path.mkdir, os.mkfifo)):
        folder = tmp_path / f"described{place}"
        folder.mkdir()
        make(folder / "sweep.json")
        with pytest.raises(SweepError, match=r"sweep\.json is not a sweep's description"):
            wd.sweep(TINY, folder, **SMALL_GRID, report=False)
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text("a torn line", encoding="utf-8")
    for kind, make in (
        ("a link", lambda path: path.symlink_to(elsewhere)), ("a pipe", os.mkfifo), ("a folder", Path.mkdir),
    ):  # fmt: skip
        folder = tmp_path / kind
        wd.sweep(TINY, folder, **SMALL_GRID, report=False)
        (folder / "results.jsonl").unlink()
        make(folder / "results.jsonl")
        with pytest.raises(SweepError, match=f"results\\.jsonl is {kind}"):
            wd.sweep(TINY, folder, **SMALL_GRID, report=False)
    assert elsewhere.read_text(encoding="utf-8") == "a torn line"
    with pytest.raises(SweepError, match="cannot write"):
        wd.sweep(TINY, tmp_path / "a folder", **SMALL_GRID, report=False, fresh=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SweepError, match="cannot write"):
        wd.sweep(TINY, tmp_path / "file" / "below", **SMALL_GRID, report=False)


def test_a_diverged_run_has_no_numbers(tmp_path):
    """NaN and infinity are not JSON: they become null, and the run is marked."""
    result = wd.sweep(TINY, tmp_path, optimizers=["SGD"], lr=[1e38], weight_decay=[0.0], seeds=1, report=False)
    assert result.rows[0]["diverged"] is True
    assert result.rows[0]["test_right"] is None
    for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=pytest.fail)


BATCH_NORM = replace(
    TINY, name="batch norm", model=lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
)


class Notes:
    def __init__(self):
        self.notes, self.advanced = [], 0.0

    def begin(self, totals, done):
        self.totals = totals

    def advance(self, optimizer, runs):
        self.advanced += runs

    def note(self, text):
        self.notes.append(text)


def test_what_cannot_be_stacked_runs_one_by_one_and_says_so(tmp_path):
    with pytest.raises(NotStackable):
        train_stacked(BATCH_NORM, choose("SGD"), [Run("SGD", 0.1, 0.0, 0)])
    watcher = Notes()
    result = wd.sweep(BATCH_NORM, tmp_path, **SMALL_GRID, report=False, watcher=watcher)
    assert len(result.rows) == 16
    assert not any(row["stacked"] for row in result.rows)
    assert len([note for note in watcher.notes if "one by one" in note]) == 1
    assert watcher.advanced == pytest.approx(16)


def mean_error(output, target):
    return float((output.argmax(-1) != target).float().mean())  # reads a number: no stack can


class Running(nn.Module):
    """Keeps a buffer by assigning a new one, which torch.func does not see."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 2)
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return self.linear(x - self.mean)


@pytest.mark.parametrize("change", [{"metric": mean_error}, {"model": Running}], ids=["metric", "buffer"])
def test_what_stacks_only_by_half_runs_one_by_one(tmp_path, change):
    result = wd.sweep(replace(TINY, **change), tmp_path, optimizers=["SGD"], lr=[0.1], weight_decay=[0], seeds=1, report=False)
    assert result.rows[0]["stacked"] is False


def test_a_model_that_is_made_once_is_not_trained_on(tmp_path):
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    result = wd.sweep(replace(TINY, model=lambda: model), tmp_path, **SMALL_GRID, report=False)
    assert len({row["initial_weight_norm"] for row in result.rows}) == 1


def test_stacked_or_not_a_row_has_the_same_keys():
    run = Run("AdamW", 1e-2, 0.1, 0)
    stacked, alone = train_stacked(TINY, choose("AdamW"), [run])[0], train_alone(TINY, choose("AdamW"), run)
    assert stacked.keys() == alone.keys()
    assert {**stacked, "stacked": False, "history": 0} == pytest.approx({**alone, "history": 0}, abs=1e-5)


def test_the_seed_decides_weights_and_batches_and_leaves_the_callers_random_state(tmp_path):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    one = wd.sweep(TINY, tmp_path / "1", **SMALL_GRID, report=False).rows
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(8)
    two = wd.sweep(TINY, tmp_path / "2", **SMALL_GRID, report=False).rows
    order = sorted(one, key=lambda row: str(key(row))), sorted(two, key=lambda row: str(key(row)))
    assert order[0] == order[1]
    assert order[0][0]["train_loss"] != order[0][1]["train_loss"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optimizers": ["AdmaW"]}, "'AdmaW' is unknown: did you mean 'AdamW'"),
        ({"optimizers": ["nonsense"]}, "nonsense.*SGDW.*AdamW"),
        ({"seeds": 10**9}, "a sweep of 8,000,000,000 runs"),
        ({"optimizers": ["adam+cautius"]}, "did you mean 'cautious'"),
        ({"optimizers": []}, "at least one optimizer"),
        ({"lr": [0.0]}, "lr=0.0"),
        ({"lr": [float("nan")]}, "lr=nan"),
        ({"weight_decay": [-1.0]}, "weight_decay=-1.0"),
        ({"weight_decay": []}, "no weight_decay"),
        ({"lr": [0.1, 0.1]}, "twice"),
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": True}, "seeds=True"),
    ],
)
def test_an_impossible_sweep_is_refused_before_it_begins(tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        wd.sweep(TINY, tmp_path / "out", **{**SMALL_GRID, **change}, report=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"goal": "more"}, ValueError, "goal='more'"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"batch_size": 2.5}, ValueError, "batch_size=2.5"),
        ({"loss": "mse"}, TypeError, "loss .*not callable"),
        ({"name": ""}, ValueError, "name=''"),
        ({"name": 3}, ValueError, "name=3"),
    ],
)
def test_an_impossible_task_is_refused(change, error, says):
    with pytest.raises(error, match=says):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (lambda seed: 3, TypeError, "is not Data"),
        (lambda seed: ((1, 2), (3, 4)), TypeError, "is not Data"),
        (lambda seed: wd.Data(*[(torch.zeros(3, 5), torch.zeros(2))] * 3), ValueError, "3 inputs and 2 targets"),
        (lambda seed: wd.Data(*[(torch.zeros(3, 5), torch.zeros(3))] * 3), ValueError, "batch_size=20 of only 3"),
    ],
)
def test_impossible_data_are_refused(tmp_path, data, error, says):
    with pytest.raises(error, match=says):
        wd.sweep(replace(TINY, data=data), tmp_path, **SMALL_GRID, report=False)


def test_a_metric_does_not_take_the_name_of_the_loss():
    def loss(output, target):
        return output.mean()

    with pytest.raises(ValueError, match="called loss"):
        replace(TINY, metric=loss)


def test_numbers_and_names_need_no_list(tmp_path):
    result = wd.sweep(TINY, tmp_path, optimizers="SGD", lr=np.float32(0.5), weight_decay=0, seeds=1, report=False)
    assert [(row["optimizer"], row["lr"]) for row in result.rows] == [("SGD", 0.5)]
    with pytest.raises(ValueError, match="adamw"):
        wd.sweep(replace(TINY, grids={"adamw": wd.Grid((0.1,), (0.0,))}), tmp_path, report=False)


def test_an_error_in_a_users_loss_comes_through(tmp_path):
    """And nothing is said of stacking."""

    def loss(output, target):
        raise KeyError("my own mistake")

    watcher = Notes()
    with pytest.raises(KeyError, match="my own mistake"):
        wd.sweep(replace(TINY, loss=loss), tmp_path, **SMALL_GRID, report=False, watcher=watcher)
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8") == ""
    assert not watcher.notes


def test_a_custom_grid_of_the_task_is_used(tmp_path):
    task = replace(TINY, grids={"SGD": wd.Grid((0.3,), (0.0, 0.7))})
    result = wd.sweep(task, tmp_path, optimizers=["SGD"], seeds=1, report=False)
    assert [(row["lr"], row["weight_decay"]) for row in result.rows] == [(0.3, 0.0), (0.3, 0.7)]


@pytest.mark.parametrize(
    ("name", "tied"),
    [("SGDW", True), ("AdamW", True), ("adam+independent", False), ("adam+cautious", False), ("Adam", False)],
)
def test_only_a_decay_that_takes_lr_times_lambda_is_said_to(name, tied):
    """The report reads λ's unit from this: a sentence on lr × λ would be wrong for the others."""
    assert choose(name).lr_tied() is tied
