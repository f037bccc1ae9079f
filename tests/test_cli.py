"""The command line: help everywhere, exit codes, no traceback for a user's mistake, JSON for scripts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import weightdecay as wd
from weightdecay.cli import main

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
    (tmp_path / f"{name}.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def commands():
    return [[], *([name] for name in main.commands)]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output
    context = click.Context(main)
    target = main.get_command(context, command[0]) if command else main
    for option in target.params:
        if isinstance(option, click.Option):
            assert option.help, f"{option.name} has no help"


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
        "    return (1 - eta * lam / share) * w - eta * u\n"
    )
    script = [sys.executable, "-m", "weightdecay", "--app-dir", ".", "--import", "more_rules", "derive", "sgd", "--decay"]
    shown = subprocess.run([*script, "thirding", "--json"], capture_output=True, text=True, check=True).stdout
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
    rows = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
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
        "    return w / 2 - eta * u\n"
    )
    script = [sys.executable, "-m", "weightdecay", "--app-dir", ".", "--import", "extra_rules"]
    listed = subprocess.run([*script, "rules", "--json"], capture_output=True, text=True, check=True).stdout
    assert "halving" in [rule["name"] for rule in json.loads(listed)["decay"]]
    grid = ["--lr", "0.1", "--weight-decay", "0.1", "--seeds", "1"]
    subprocess.run(
        [*script, "sweep", f"{folder}:task", "--out", "out", "-o", "adam+halving", *grid], check=True, capture_output=True
    )
    assert json.loads(Path("out/results.jsonl").read_text())["optimizer"] == "adam+halving"


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
    Path("fails.py").write_text("1 / 0\n")
    result = run("--app-dir", ".", "sweep", "fails:task")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.output
    Path("needs.py").write_text("import no_such_library\n")
    result = run("--app-dir", ".", "sweep", "needs:task")
    assert result.exit_code == 1
    assert "no_such_library" in result.output


def test_an_interrupted_sweep_says_that_it_can_go_on(folder):
    command = [sys.executable, "-m", "weightdecay", "sweep", "digits", "--out", "out", "--seeds", "1", "-o", "SGD"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
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
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
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
    Path(f"{folder}.py").write_text(MODELS)
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
    rules = ["--set", "direction=adam", "--set", "decay=cautious", "--set", "reader=eager", "--set", "betas=(0.8, 0.9)"]
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
    Path(f"{folder}.py").write_text(SETUPS)
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


def test_doctor_takes_several_optimizers(setups):
    command = ["--app-dir", ".", "doctor", f"{setups}:several", "--html", "out/report.html"]
    (found,) = json.loads(run(*command, "--json").output)["findings"]
    assert (found["id"], found["optimizer"]) == ("D1", "optimizers[1], AdamW")
    assert "in       optimizers[1], AdamW" in run(*command).output
    assert "In <code>optimizers[1], AdamW</code>" in Path("out/report.html").read_text()


def test_doctor_writes_a_page(setups):
    assert run("--app-dir", ".", "doctor", f"{setups}:bad", "--html", "out/report.html").exit_code == 1
    page = Path("out/report.html").read_text()
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
