"""The command line: help everywhere, exit codes, no traceback for a user's mistake, JSON for scripts."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import weightdecay as wd
from weightdecay.cli import main, options

TASK = """
import torch
from torch import nn
import weightdecay as wd

def data(seed):
    x = torch.randn(90, 5, generator=torch.Generator().manual_seed(seed))
    y = (x[:, 0] > 0).long()
    return wd.Data((x[:30], y[:30]), (x[30:60], y[30:60]), (x[60:], y[60:]))

def accuracy(output, target):
    return (output.argmax(-1) == target).float().mean()

task = wd.Task("mine", lambda: nn.Linear(5, 2), data, nn.functional.cross_entropy, accuracy, steps=4, batch_size=10)

def make():
    return task

def broken():
    raise RuntimeError("no data today")

class Part:
    task = task

number = 3
failing = wd.Task("failing", lambda: nn.Linear(4, 2), data, nn.functional.cross_entropy, accuracy, steps=4, batch_size=10)
"""
GRID = ["--lr", "1e-2,1e-1", "--weight-decay", "0,1e-2:1e-1:2", "--seeds", "1", "-o", "AdamW"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a user's module of a name that no other test imports."""
    name = f"mine_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(TASK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def commands():
    return [[], *([name] for name in main.NAMES)]


@pytest.mark.parametrize("command", commands(), ids=lambda words: " ".join(words) or "none")
def test_every_command_has_help(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output
    context = click.Context(main)
    target = main.get_command(context, command[0]) if command else main
    for option in target.params:
        if isinstance(option, click.Option):
            assert option.help, f"{option.name} has no help"


WITHOUT_TORCH = [
    (["--help"], 0),
    (["--version"], 0),
    ([], 2),
    (["swep"], 2),
    *(([name, "--help"], 0) for name in main.NAMES),
    *(([name, "--nothing"], 2) for name in main.NAMES),
    (["derive", "adam", "--latex", "--json"], 2),
    (["derive", "sgd", "--set", "momentum=much"], 2),
    (["doctor"], 2),
    (["doctor", "train:make", "--only", "D11"], 2),
    (["groups", "train:make", "--style", "gpt"], 2),
    (["identify"], 2),
    (["identify", "torch.optim:Adam", "--expect", "l2"], 2),
    (["plan", "--lr", "1"], 2),
    (["plan", "--lr", "1", "-w", "1", "--steps", "3", "--schedule", "cos"], 2),
    (["sweep"], 2),
    (["sweep", "digits", "--lr", "a"], 2),
    (["sweep", "digits", "--lr", "1e-3:1e-1:1000000000"], 2),
    (["sweep", "mnist"], 1),
]
SEEN = """
import contextlib, io, json, sys
from weightdecay.cli import main, options
seen = []
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(arguments)
    except SystemExit as end:
        seen.append([end.code, [name for name in ("torch", "sympy", "numpy") if name in sys.modules]])
print(json.dumps(seen))
"""


def test_help_and_errors_of_usage_import_no_torch():
    """In one process, since what one of them imports the next would have, too."""
    asked = json.dumps([arguments for arguments, _ in WITHOUT_TORCH])
    done = subprocess.run([sys.executable, "-c", SEEN, asked], capture_output=True, encoding="utf-8", check=True)
    for (arguments, code), (ended, modules) in zip(WITHOUT_TORCH, json.loads(done.stdout), strict=True):
        assert (ended, modules) == (code, []), arguments


def test_what_options_take_is_what_there_is():
    """They are written down a second time, for help to be quick."""
    from weightdecay import sweeps
    from weightdecay.analysis import run_plan
    from weightdecay.audit.doctor import checks
    from weightdecay.audit.identify import identify
    from weightdecay.groups import styles
    from weightdecay.optim import schedules

    assert tuple(checks.CHECKS) == options.CHECKS
    assert tuple(run_plan.CONVENTIONS) == options.CONVENTIONS
    assert tuple(run_plan._LOSING) == options.DTYPES
    assert tuple(identify.KINDS) == options.LAWS
    assert sweeps.grid.DEFAULT_OPTIMIZERS == options.OPTIMIZERS
    assert schedules.SCHEDULES == options.SCHEDULES
    assert tuple(styles.STYLES) == options.STYLES
    assert sweeps.tasks.NAMES == options.TASKS


def test_dir_has_the_public_names():
    assert set(dir(wd)) == {*wd.__all__, "__version__"}
    assert all(getattr(wd, name) is not None for name in dir(wd))
    assert {"plan", "derive", "AdamW", "rules"} <= set(dir(wd))
    assert not {"pkgutil", "import_module", "api", "decays"} & set(dir(wd))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        wd.nothing  # noqa: B018
    for slip, meant in (("adamw", "AdamW"), ("param_group", "param_groups"), ("Hyperbal", None)):
        with pytest.raises(AttributeError, match=f"no attribute '{slip}'" + (f": did you mean '{meant}'" if meant else "$")):
            getattr(wd, slip)
    assert not hasattr(wd, "Adamw")


NEAR = [
    (["swep"], "did you mean 'sweep'?"),
    (["derive", "adamw"], "did you mean AdamW: adam + decoupled?"),
    (["derive", "AdamaxWW"], "did you mean AdamaxW: adamax + decoupled?"),
    (["derive", "adam", "--decay", "Decoupled"], "did you mean 'decoupled'?"),
    (["derive", "sgd", "--set", "Momentum=0.9"], "did you mean momentum?"),
    (["sweep", "Digits"], "did you mean 'digits'?"),
    (["sweep", "digits", "-o", "admw"], "did you mean 'AdamW'?"),
    (["sweep", "digits", "-o", "sgd+L1"], "did you mean 'l1'?"),
    (["plan", "--lr", "1", "-w", "1", "--steps", "3", "--schedule", "Cosine"], "did you mean 'cosine'?"),
    (["groups", "train:net", "--style", "nano-gpt"], "did you mean 'nanogpt'?"),
    (["identify", "torch.optim:Adam", "--expect", "couple"], "did you mean 'coupled'?"),
    (["identify", "torch.optim:adamw"], "did you mean 'AdamW'?"),
]


@pytest.mark.parametrize(("arguments", "says"), NEAR, ids=lambda value: str(value)[:40])
def test_every_name_has_a_nearest_one(arguments, says):
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert says in " ".join(result.stderr.split())


# Where a user's code is -------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a user's code, some of it named as Python's own modules and as what the command line needs."""
    (tmp_path / "train.py").write_text(
        "import torch, near_by\nprint('on its way')\n"
        "def make():\n    print('made')\n    return near_by.net, torch.optim.AdamW(near_by.net.parameters(), lr=1e-3)\n"
        "class inner:\n    make = make\nnet = near_by.net\nmodel = lambda: near_by.net\n",
        encoding="utf-8",
    )
    (tmp_path / "near_by.py").write_text("import torch\nnet = torch.nn.Linear(4, 4)\n", encoding="utf-8")
    for name in ("random", "click", "rich", "statistics", "copy"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('this is not {name}')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outside(*arguments, script=True, **options):
    """Run the installed command, or the module, in a process of its own."""
    start = "import sys; sys.argv[0] = 'weightdecay'; from weightdecay.cli import main; main()"
    # As the installed script starts, with the script's folder and not the current one on the path.
    command = [sys.executable, "-P", "-c", start] if script else [sys.executable, "-m", "weightdecay"]
    return subprocess.run([*command, *arguments], capture_output=True, encoding="utf-8", check=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("script", [True, False], ids=["script", "module"])
def test_the_current_folder_is_looked_in_last(project, script):
    found = outside("doctor", "train:make", "--json", script=script)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["counts"]["warning"] == 1
    assert found.stderr.split("\n")[:2] == ["on its way", "made"]


def test_a_file_and_a_dotted_name_are_ways_to_it(folder, monkeypatch):
    Path("below").mkdir()
    Path("below/nearby_models.py").write_text("import torch\nlayer = torch.nn.Linear(4, 4)\n", encoding="utf-8")
    Path("below/random.py").write_text("from nearby_models import layer\n", encoding="utf-8")
    Path(f"{folder}.py").write_text(MODELS, encoding="utf-8")
    expected = run("groups", f"{folder}:model").output
    for name in (f"{folder}.py:model", f"./{folder}.py:make", f"{folder}.model", str(Path(f"{folder}.py:model").absolute())):
        assert run("groups", name).output == expected
    import random

    assert "4" in run("groups", "below/random.py:layer").output
    assert sys.modules["random"] is random
    monkeypatch.delitem(sys.modules, "nearby_models")


PLACES = [
    ("train:make", "did you mean 'trains'?"),
    ("trains.py:mak", "has no 'mak'; did you mean 'make'?"),
    ("trains:inner.mak", "did you mean 'make'?"),
    ("trian.py:make", "did you mean 'trains.py'?"),
    ("trains", "written module:attribute, as in trains:make"),
    ("trains.py", "written module:attribute, as in trains.py:make"),
    ("trains:", "module:attribute"),
    (":make", "module:attribute"),
    ("a..b:c", "no module 'a'"),
    ("exits:make", "importing exits ended the program, with exit code 3"),
    ("trains:leave", "trains:leave() ended the program, with exit code 4"),
    ("broken_here:make", "SyntaxError"),
]


@pytest.mark.parametrize(("name", "says"), PLACES)
def test_a_slip_in_where_it_is_gets_a_reason(folder, name, says):
    """With a file `trains.py`, which no other test imports."""
    Path("trains.py").write_text(
        "class inner:\n    make = None\ndef make(): ...\ndef leave():\n    raise SystemExit(4)\n", encoding="utf-8"
    )
    Path("exits.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    Path("broken_here.py").write_text("def (:\n", encoding="utf-8")
    try:
        result = run("doctor", name)
    finally:
        sys.modules.pop("trains", None)
    assert result.exit_code == 1
    assert says in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_a_module_that_is_another_than_the_file_here_says_so(folder):
    Path("statistics.py").write_text("def make(): ...\n", encoding="utf-8")
    result = run("doctor", "statistics:make")
    assert "write statistics.py:make for the file in this folder" in " ".join(result.stderr.split())


PRINTING = """
import torch
print("while imported")
class Loud(torch.optim.AdamW):
    def step(self, closure=None):
        print("stepping")
        super().step(closure)
def make():
    print("while made")
    net = torch.nn.Linear(4, 4)
    return net, Loud(net.parameters(), lr=1e-3)
def net():
    print("while made")
    return torch.nn.Linear(4, 4)
"""


@pytest.mark.parametrize("command", ["doctor {}:make", "identify {}:Loud", "groups {}:net", "--import {} rules"])
def test_what_a_users_code_prints_is_no_result(folder, command):
    Path(f"{folder}.py").write_text(PRINTING, encoding="utf-8")
    result = run(*command.format(folder).split(), "--json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    assert "while imported" in result.stderr


def test_what_a_task_prints_is_no_result(folder):
    with Path(f"{folder}.py").open("a", encoding="utf-8") as file:
        file.write("\nclean = data\ndef data(seed):\n    print('drawing')\n    return clean(seed)\n")
        file.write("from dataclasses import replace\nloud = replace(task, data=data)\n")
    result = run("sweep", f"{folder}:loud", "--out", "out", "--json", *GRID)
    assert json.loads(result.stdout)["runs"] == 6
    assert "drawing" in result.stderr


# Ctrl-C -----------------------------------------------------------------------------------------------------------------

INTERRUPTED = {
    "while imported": "raise KeyboardInterrupt\n",
    "while made": "def make():\n    raise KeyboardInterrupt\n",
    "while used": "import torch\nclass make(torch.optim.SGD):\n    def step(self):\n        raise KeyboardInterrupt\n",
}


@pytest.mark.parametrize("command", ["doctor", "identify", "groups", "sweep"])
@pytest.mark.parametrize("moment", INTERRUPTED)
def test_an_interrupt_is_a_line_and_130(folder, command, moment):
    if moment == "while used" and command != "identify":
        pytest.skip("nothing of the user's is used so")
    if moment == "while made" and command == "identify":
        pytest.skip("identify makes it itself")
    Path(f"{folder}.py").write_text(INTERRUPTED[moment], encoding="utf-8")
    result = run(command, f"{folder}:make")
    assert result.exit_code == 130
    assert (result.stdout, result.stderr) == ("", "interrupted\n")


# Terminals --------------------------------------------------------------------------------------------------------------


def in_terminal(columns, *arguments):
    """Return what a command prints in a terminal of so many columns, without its colours, and whether it has any."""
    import pty
    import re
    import threading

    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "weightdecay", *arguments], stdout=theirs, stderr=subprocess.PIPE, env=environment
    )
    os.close(theirs)
    parts = []

    def read():
        try:
            while part := os.read(ours, 1 << 16):
                parts.append(part)
        except OSError:  # the end of a terminal
            pass

    reader = threading.Thread(target=read)
    reader.start()
    _, errors = process.communicate(timeout=120)
    reader.join()
    os.close(ours)
    assert process.returncode == 0, errors.decode()
    text = b"".join(parts).decode().replace("\r\n", "\n")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return plain, plain != text


TABLES = [
    ["rules"],
    ["plan", "--lr", "1e-3", "-w", "0.1", "--steps", "1000", "--dtype", "bfloat16"],
    ["groups", "models_here:net"],
]


BLOCKS = re.compile("[▁▂▃▄▅▆▇█]")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", TABLES, ids=lambda words: words[0])
def test_tables_are_as_wide_as_the_terminal(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    net = "torch.nn.ModuleDict({'a_name_that_is_long' * 3: torch.nn.Linear(4, 4)})"
    Path("models_here.py").write_text(f"import torch\nnet = {net}\n", encoding="utf-8")
    piped = outside(*arguments, script=False, env={**os.environ, "COLUMNS": "20", "FORCE_COLOR": "1"}).stdout
    assert "\x1b" not in piped
    for columns in (40, 80, 300):
        shown, coloured = in_terminal(columns, *arguments)
        assert coloured
        assert max(map(len, shown.splitlines())) <= columns
        assert BLOCKS.sub("", "".join(shown.split())) == BLOCKS.sub("", "".join(piped.split()))  # only bars get shorter
    assert shown.split() == piped.split()


def test_a_pipe_has_a_line_for_each_row():
    lines = run("rules").stdout.splitlines()
    assert len(lines) == 1 + len(wd.rules())
    assert str(wd.rules()).splitlines() == lines
    plan = ["plan", "--lr", "1e-3", "-w", "0.1", "--steps", "1000"]
    assert run(*plan).stdout == f"{wd.plan(1e-3, 0.1, 1000)}\n"


def test_rules_prints_every_rule():
    result = run("rules")
    assert result.exit_code == 0
    for rule in wd.rules().values():
        assert rule.name in result.output


def test_rules_as_json_is_the_registry():
    assert json.loads(run("rules", "--json").output) == wd.rules().to_dict()


def test_derive_prints_the_derivation():
    result = run("derive", "adam", "--penalty", "l2")
    assert result.exit_code == 0
    assert result.stdout == f"{wd.derive('adam', penalty='l2')}\n"
    assert result.stderr == ""


def test_derive_takes_the_numbers_that_optimizers_take():
    shown = run("derive", "adam", "--decay", "decoupled", "--set", "betas=0,0.99", "--set", "eps=0", "--json")
    expected = wd.derive("adam", decay="decoupled", betas=(0, 0.99), eps=0).to_dict()
    assert json.loads(shown.stdout) == expected
    shown = run("derive", "sgd", "--penalty", "l2", "--set", "momentum=0.9", "--set", "nesterov=TRUE", "--json")
    assert json.loads(shown.stdout) == wd.derive("sgd", "l2", momentum=0.9, nesterov=True).to_dict()
    assert json.loads(shown.stdout)["settings"] == {"mu": "9/10", "dampening": "0", "nesterov": "1"}


def test_derive_as_latex_is_the_tex_alone():
    result = run("derive", "sgd", "--penalty", "l2", "--latex")
    assert result.exit_code == 0
    assert result.stdout == f"{wd.derive('sgd', 'l2').latex}\n"
    assert result.stdout.startswith("\\[\n\\begin{aligned}")


@pytest.mark.parametrize("arguments", [["derive"], ["derive", "--list"], ["derive", "adam", "--list"]], ids=" ".join)
def test_derive_lists_what_can_be_put_together(arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    for rule in wd.rules().values():
        assert rule.name in result.output
    assert "weightdecay derive DIRECTION" in result.output
    listed = json.loads(run(*arguments, "--json").stdout)
    assert listed == {kind: list(wd.rules().of(kind)) for kind in ("penalty", "direction", "decay")}


def test_derive_knows_the_rules_of_another_module(folder):
    Path("more_rules.py").write_text(
        "import weightdecay as wd\n\n"
        "@wd.decay(source='nobody')\n"
        "def thirding(w, u, *, eta, lam, share=3.0):\n"
        '    """A third."""\n'
        "    return (1 - eta * lam / share) * w - eta * u\n",
        encoding="utf-8",
    )
    script = [sys.executable, "-m", "weightdecay", "--app-dir", ".", "--import", "more_rules", "derive", "sgd", "--decay"]
    shown = subprocess.run([*script, "thirding", "--json"], capture_output=True, encoding="utf-8", check=True).stdout
    assert json.loads(shown)["g"]["sympy"] == "-eta*lam/share + 1"


DERIVE_MISTAKES = [
    (["adm"], 1, "did you mean 'adam'?"),
    (["l2"], 1, "'l2' is a penalty"),
    (["adam", "--penalty", "decoupled"], 1, "'decoupled' is a decay"),
    (["adam", "--decay", "l2"], 1, "'l2' is a penalty"),
    (["adam", "--set", "momentum=0.9"], 1, "takes no 'momentum'"),
    (["sgd", "--set", "momentun=0.9"], 1, "did you mean momentum?"),
    (["adam", "--set", "beta1=0.9"], 1, "betas=(beta1, beta2"),
    (["sgd", "--set", "momentum=-1"], 1, "number in [0, inf)"),
    (["sgd", "--set", "momentum=nan"], 1, "number in [0, inf)"),
    (["sgd", "--set", "momentum"], 2, "'momentum' is not NAME=NUMBER"),
    (["sgd", "--set", "momentum=much"], 2, "'momentum=much' is not NAME=NUMBER"),
    (["sgd", "--set", "momentum="], 2, "is not NAME=NUMBER"),
    (["sgd", "--latex", "--json"], 2, "choose one"),
    (["--penalty", "l2"], 2, "a direction is missing"),
    (["sgd", "adam"], 2, "adam"),
    (["sgd", "--penality", "l2"], 2, "--penalty"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), DERIVE_MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_in_what_to_derive_gets_a_reason(arguments, code, says):
    result = run("derive", *arguments)
    assert result.exit_code == code
    assert says in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


DERIVE_SLIPS = [
    (["adam", "--set", "betas=0.9"], "betas"),
    (["sgd", "--set", "=0.9"], "NAME=NUMBER"),
    (["sgd", "--set", "momentum=0.9,0.8"], "momentum"),
    (["sgd", "--set", "momentum=0.5", "--set", "momentum=0.9"], "momentum"),
]


@pytest.mark.parametrize(("arguments", "says"), DERIVE_SLIPS, ids=lambda value: str(value)[:40])
def test_a_slip_in_a_setting_is_refused_by_its_name(arguments, says):
    result = run("derive", *arguments)
    assert result.exit_code in (1, 2)
    assert says in " ".join(result.stderr.split())


def test_a_users_own_task_is_swept(folder):
    result = run("--app-dir", ".", "sweep", f"{folder}:task", "--out", "out", *GRID)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in Path("out/results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(row["lr"], row["weight_decay"]) for row in rows} == {(lr, wd) for lr in (0.01, 0.1) for wd in (0.0, 0.01, 0.1)}
    assert {row["optimizer"] for row in rows} == {"AdamW"}
    assert Path("out/index.html").is_file()


@pytest.mark.parametrize("attribute", ["make", "Part.task"])
def test_a_function_or_a_nested_name_gives_the_task(folder, attribute):
    assert run("--app-dir", ".", "sweep", f"{folder}:{attribute}", "--out", "out", *GRID).exit_code == 0


def test_json_is_all_that_standard_output_holds(folder):
    result = run("--app-dir", ".", "sweep", f"{folder}:task", "--out", "out", "--json", *GRID)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["runs"] == 6
    assert Path(found["report"]).is_file()
    assert Path(found["results"]).is_file()
    assert "verdict" in found


@pytest.mark.slow
def test_rules_of_another_module_join(folder):
    Path("extra_rules.py").write_text(
        "import weightdecay as wd\n\n"
        "@wd.decay(source='nobody')\n"
        "def halving(w, u, *, eta, lam):\n"
        '    """Halve."""\n'
        "    return w / 2 - eta * u\n",
        encoding="utf-8",
    )
    script = [sys.executable, "-m", "weightdecay", "--app-dir", ".", "--import", "extra_rules"]
    listed = subprocess.run([*script, "rules", "--json"], capture_output=True, encoding="utf-8", check=True).stdout
    assert "halving" in [rule["name"] for rule in json.loads(listed)["decay"]]
    grid = ["--lr", "0.1", "--weight-decay", "0.1", "--seeds", "1"]
    subprocess.run(
        [*script, "sweep", f"{folder}:task", "--out", "out", "-o", "adam+halving", *grid], check=True, capture_output=True
    )
    assert json.loads(Path("out/results.jsonl").read_text(encoding="utf-8"))["optimizer"] == "adam+halving"


MISTAKES = [
    (["sweep", "digit"], 1, "did you mean 'digits'?"),
    (["sweep", "mnist"], 1, "there are diabetes, digits"),
    (["sweep", "no_such_module:task"], 1, "--app-dir"),
    (["--app-dir", ".", "sweep", "{mine}:tsak"], 1, "has no 'tsak'"),
    (["--app-dir", ".", "sweep", "{mine}:number"], 1, "it is a int"),
    (["--app-dir", ".", "sweep", "{mine}:broken"], 1, "no data today"),
    (["--app-dir", ".", "sweep", "{mine}:failing"], 1, "RuntimeError: "),
    (["sweep", "digits", "-o", "adamz"], 1, "adamz"),
    (["sweep", "digits", "-o", "adam+cautius"], 1, "did you mean 'cautious'"),
    (["sweep", "digits", "-o", "adam+penalty:cautious"], 1, "'cautious' is a decay"),
    (["sweep", "digits", "--lr", "0"], 1, "lr=0.0"),
    (["sweep", "digits", "--lr", "a"], 2, "'a' is neither a number"),
    (["sweep", "digits", "--weight-decay", "0:1:3"], 2, "FIRST:LAST:COUNT"),
    (["sweep", "digits", "--seeds", "0"], 2, "--seeds"),
    (["sweep"], 2, "TASK"),
    (["swep"], 2, "swep"),
    (["--import", "no_such_module", "rules"], 1, "no_such_module"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_gets_a_reason_and_no_traceback(folder, arguments, code, says):
    arguments = [argument.format(mine=folder) for argument in arguments]
    result = run(*arguments, *(["--out", "out"] if "sweep" in arguments else []))
    assert result.exit_code == code
    assert says in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_traceback_shows_where_an_error_came_from(folder):
    result = run("--app-dir", ".", "sweep", f"{folder}:failing", "--out", "out", "--traceback", *GRID)
    assert isinstance(result.exception, RuntimeError)


def test_a_module_that_fails_to_import_says_why(folder):
    Path("fails.py").write_text("1 / 0\n", encoding="utf-8")
    result = run("--app-dir", ".", "sweep", "fails:task")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.output
    Path("needs.py").write_text("import no_such_library\n", encoding="utf-8")
    result = run("--app-dir", ".", "sweep", "needs:task")
    assert result.exit_code == 1
    assert "no_such_library" in result.output


@pytest.mark.slow
def test_an_interrupted_sweep_says_that_it_can_go_on(folder):
    command = [sys.executable, "-m", "weightdecay", "sweep", "digits", "--out", "out", "--seeds", "1", "-o", "SGD"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job starts with Ctrl-C ignored
    )
    deadline = time.monotonic() + 60
    while not Path("out/results.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors


def test_without_its_libraries_the_command_says_what_to_install():
    script = "import sys; sys.modules['click'] = None; import weightdecay.cli"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert result.returncode == 1
    assert "pip install 'weightdecay[sweep]'" in result.stderr
    assert "Traceback" not in result.stderr


# weightdecay groups -----------------------------------------------------------------------------------------------------

MODELS = """
from torch import nn

model = nn.ModuleDict({"ln_f": nn.RMSNorm(4), "head": nn.Linear(4, 4)})

def make():
    return model

class Small(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)

def broken():
    raise RuntimeError("no weights today")

frozen = nn.Linear(2, 2).requires_grad_(False)
number = 3
"""


@pytest.fixture
def models(folder):
    Path(f"{folder}.py").write_text(MODELS, encoding="utf-8")
    return folder


def test_groups_prints_the_table_that_the_library_makes(models):
    from torch import nn

    expected = wd.param_groups(nn.ModuleDict({"ln_f": nn.RMSNorm(4), "head": nn.Linear(4, 4)}), 0.3)
    for name in ("model", "make"):
        result = run("--app-dir", ".", "groups", f"{models}:{name}", "-w", "0.3")
        assert result.output == f"{expected}\n"
        assert result.exit_code == 0
    result = run("--app-dir", ".", "groups", f"{models}:model", "-w", "0.3", "--json")
    assert json.loads(result.output) == expected.to_dict()
    result = run("--app-dir", ".", "groups", f"{models}:Small", "--style", "timm", "--json")
    assert [row["weight_decay"] for row in json.loads(result.output)] == [0.1, 0.0]


def test_groups_folds_layers_of_one_kind_and_shows_all_if_asked(models):
    with open(f"{models}.py", "a", encoding="utf-8") as file:
        file.write("\ndeep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(32)))\n")
    assert "{0…31}.weight × 32" in run("--app-dir", ".", "groups", f"{models}:deep").output
    shown = run("--app-dir", ".", "groups", f"{models}:deep", "--all").output
    assert all(f"  {place}.weight " in shown for place in range(32))
    assert len(json.loads(run("--app-dir", ".", "groups", f"{models}:deep", "--json").output)) == 64


def test_groups_shows_what_a_style_would_do_otherwise_and_lists_the_roles(models):
    result = run("--app-dir", ".", "groups", f"{models}:model", "--diff", "hf")
    assert "1 of 3 tensors, 4 values, are treated otherwise by hf." in result.output
    result = run("--app-dir", ".", "groups", f"{models}:model", "--diff", "hf", "--json")
    assert [row["name"] for row in json.loads(result.output)] == ["ln_f.weight"]
    rows = json.loads(run("groups", "--roles", "--json").output)
    assert {"embedding", "norm.around_one", "lora.a"} <= {row["name"] for row in rows}
    assert "norm.around_one (does not decay)" in run("groups", "--roles").output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["number"], 1, "is a int; name a torch.nn.Module"),
        (["broken"], 1, "RuntimeError: no weights today"),
        (["frozen"], 1, "no trainable parameters"),
        (["nothing"], 1, "has no 'nothing'"),
        (["model", "-w", "-1"], 1, "weight_decay must be finite"),
        (["model", "--style", "gpt"], 2, "'gpt' is not one of"),
    ],
)
def test_groups_refuses_with_a_reason_and_no_traceback(models, arguments, code, message):
    result = run("--app-dir", ".", "groups", f"{models}:{arguments[0]}", *arguments[1:])
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output


def test_groups_needs_a_model():
    assert "a model is missing" in run("groups").output


def test_identify_prints_the_law_and_json():
    result = run("identify", "torch.optim:SGD", "--set", "momentum=0.9")
    assert result.exit_code == 0
    assert result.output.startswith("torch.optim:SGD(momentum=0.9) is coupled: ")
    found = json.loads(run("identify", "torch.optim:AdamW", "--json").output)
    assert (found["kind"], found["strength"]["formula"]) == ("decoupled", "lr·λ")
    assert found["evidence"]["unexplained"]["the decay decoupled on the old weight"] < 1e-9


def test_identify_sets_words_flags_and_pairs():
    rules = ["--set", "direction=adam", "--set", "decay=cautious", "--set", "backend=eager", "--set", "betas=(0.8, 0.9)"]
    assert "cautious" in run("identify", "weightdecay:Optimizer", *rules).output
    assert run("identify", "torch.optim:SGD", "--set", "momentum").exit_code == 2
    assert run("identify", "torch.optim:SGD", "--set", "lr=1", "--set", "lr=2").exit_code == 2


def test_identify_fails_where_the_decay_is_another():
    assert run("identify", "torch.optim:AdamW", "--expect", "decoupled").exit_code == 0
    result = run("identify", "torch.optim:Adam", "--expect", "decoupled")
    assert result.exit_code == 1
    assert "expected decoupled, found coupled (l2)" in " ".join(result.stderr.split())


def test_identify_refuses_what_is_no_optimizer():
    for name, reason in (
        ("torch.optim:Nothing", "has no 'Nothing'"),
        ("torch.nn:Linear", "does not run"),
        ("math:pi", "cannot be called"),
    ):
        result = run("identify", name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert reason in " ".join(result.stderr.split())


# weightdecay doctor -----------------------------------------------------------------------------------------------------

SETUPS = """
import torch
from torch import nn

def make(groups, lr=1e-3, **more):
    return torch.optim.AdamW(groups, lr=lr, weight_decay=0.1, **more)

def warned():
    model = nn.Linear(4, 4)
    return model, make(model.parameters())

def good():
    model = nn.Linear(4, 4, bias=False)
    optimizer = make(model.parameters())
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)

def bad():
    model = nn.ModuleDict({"<b>": nn.Linear(4, 4, bias=False)})
    return model, make(model.parameters(), lr=20.0)

def fine_tuned():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4, bias=False))
    torch.nn.init.constant_(model[1].weight, 1.5)
    groups = [{"params": [model[0].weight], "weight_decay": 0.01}, {"params": [model[1].weight], "weight_decay": 0.0}]
    return model, make(groups, lr=2e-5)

def several():
    model = nn.Linear(4, 4)
    muon = torch.optim.Muon([model.weight], lr=0.02)
    return model, [muon, make([model.bias])], [torch.optim.lr_scheduler.CosineAnnealingLR(muon, 1000)]

def four():
    return 1, 2, 3, 4

def broken():
    raise RuntimeError("no weights today")

number = 3
"""


@pytest.fixture
def setups(folder):
    Path(f"{folder}.py").write_text(SETUPS, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "found"),
    [
        (["good"], 0, []),
        (["warned"], 0, ["D1"]),
        (["warned", "--strict"], 1, ["D1"]),
        (["warned", "--strict", "--ignore", "d1"], 0, []),
        (["bad"], 1, ["D5"]),
        (["bad", "--only", "D1,D3"], 0, []),
    ],
)
def test_doctor_exits_with_1_on_errors(setups, arguments, code, found):
    command = ["--app-dir", ".", "doctor", f"{setups}:{arguments[0]}", *arguments[1:]]
    result = run(*command, "--json")
    assert result.exit_code == code
    assert [each["id"] for each in json.loads(result.output)["findings"]] == found
    shown = run(*command)
    assert shown.exit_code == code
    assert all(each in shown.output for each in found)
    assert shown.output.startswith("AdamW, ")


@pytest.mark.parametrize(("told", "pretrained"), [([], True), (["--pretrained"], True), (["--from-scratch"], False)])
def test_doctor_is_told_whether_the_weights_were_trained_before(setups, told, pretrained):
    """A λ that mattered over so short a run would take most of such weights, and is offered from scratch alone."""
    command = ["--app-dir", ".", "doctor", f"{setups}:fine_tuned", "--only", "D5", "--steps", "3000", *told]
    report = json.loads(run(*command, "--json").output)
    assert report["subject"]["pretrained"] is pretrained
    (found,) = report["findings"]
    assert found["id"] == "D5"
    assert bool(found["fix"]) is not pretrained


def test_output_in_an_encoding_without_greek_letters_is_no_error(tmp_path):
    """As in a file that a redirection makes on Windows."""
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "weightdecay", "derive", "adam", "--decay", "decoupled"]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path, check=True)
    assert b"adam" in done.stdout
    assert b"?" in done.stdout  # λ, which this encoding lacks
    assert b"Traceback" not in done.stderr


def test_doctor_takes_several_optimizers(setups):
    command = ["--app-dir", ".", "doctor", f"{setups}:several", "--html", "out/report.html"]
    (found,) = json.loads(run(*command, "--json").output)["findings"]
    assert (found["id"], found["optimizer"]) == ("D1", "optimizers[1], AdamW")
    assert "in        optimizers[1], AdamW" in run(*command).output
    assert "In <code>optimizers[1], AdamW</code>" in Path("out/report.html").read_text(encoding="utf-8")


def test_doctor_writes_a_page(setups):
    assert run("--app-dir", ".", "doctor", f"{setups}:bad", "--html", "out/report.html").exit_code == 1
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "the decay destroys the weights" in page
    assert "&lt;b&gt;.weight" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["number"], 1, "gives a int"),
        (["four"], 1, "gives a tuple of 4"),
        (["broken"], 1, "RuntimeError: no weights today"),
        (["nothing"], 1, "has no 'nothing'"),
        (["good", "--only", "D11"], 2, "'D11' is no check"),
        (["good", "--steps", "0"], 2, "0 is not in the range"),
    ],
)
def test_doctor_refuses_with_a_reason_and_no_traceback(setups, arguments, code, message):
    result = run("--app-dir", ".", "doctor", f"{setups}:{arguments[0]}", *arguments[1:])
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert "--traceback" not in result.output  # which is an option of sweep alone


def test_doctor_lists_its_checks_and_needs_a_set_up():
    assert run("doctor", "--checks").output.startswith("D1  norms")
    assert "a set-up is missing" in run("doctor").output
