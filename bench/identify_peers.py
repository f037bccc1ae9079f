"""Identify the decay of every optimizer of torch and of the packages that are installed beside it.

    python -m bench.identify_peers docs/data/identify.json
    python -m bench.identify_peers docs/data/identify.json --only optimi lion-pytorch

Each package runs in a process of its own, so that one that dies takes no other with it. torch.compile is off: some packages
compile their steps by themselves, for minutes. `docs/generate.py` makes the tables of docs/what-optimizers-do.md from the file.
"""

import argparse
import functools
import importlib
import importlib.machinery
import importlib.util
import json
import pkgutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench import machine
from weightdecay.audit.conformance import CHECKS
from weightdecay.audit.identify.identify import DecayLaw, identify

_SECONDS = 120
"""For one optimizer."""
PACKAGES = {
    "torch": "torch.optim",
    "torch-optimi": "optimi",
    "lion-pytorch": "lion_pytorch",
    "schedulefree": "schedulefree",
    "bitsandbytes": "bitsandbytes.optim",
    "torchao": "torchao.optim",
    "heavyball": "heavyball",
    "timm": "timm.optim",
    "pytorch-optimizer": "pytorch_optimizer",
}
"""The distribution's name, and the module that has its optimizers."""
_MORE: dict[str, dict[str, dict[str, Any]]] = {
    "torch": {name: {"decoupled_weight_decay": True} for name in ("Adam", "NAdam", "RAdam")},
    "bitsandbytes": {f"{name}{bits}": {"momentum": 0.9} for name in ("SGD", "LARS") for bits in ("", "8bit", "32bit")},
    "timm": {"Adopt": {"decoupled": True}, "AdamWLegacy": {"corrected_weight_decay": True}},
    "torch-optimi": {"AdamW": {"decouple_lr": True}, "SGD": {"decouple_wd": True}},
    "pytorch-optimizer": {"AdaBelief": {"fixed_decay": True}},
}
"""Settings with which an optimizer becomes another one, or runs at all."""
_OF_HEAVYBALL = ("AdamW", "SGD", "NAdam", "ADOPT", "LaProp", "Muon", "SOAP")
"""Not all that it has: most others differ in the preconditioner alone and take minutes."""


def main() -> int:
    """Do what the command line asks for, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--only", nargs="+", choices=PACKAGES, default=list(PACKAGES), help="take these packages alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _identify_all(options.child, options.skip, options.out)
        return 0
    before = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    laws = before.get("packages", {})
    for package in options.only:
        try:
            installed = version(package)
        except PackageNotFoundError:
            sys.stderr.write(f"{package} is not installed\n")
            continue
        laws[package] = {"version": installed, "module": PACKAGES[package], "laws": _in_a_process(package)}
    found = {
        "command": "python -m bench.identify_peers docs/data/identify.json",
        "machine": machine.machine(),
        "python": machine.versions()["python"],
        "torch": torch.__version__,
        "packages": {package: laws[package] for package in PACKAGES if package in laws},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _in_a_process(package: str) -> dict[str, Any]:
    """Return the laws of a package by name; where its process dies, go on after the optimizer that killed it."""
    laws: dict[str, Any] = {}
    out = machine.ROOT / "runs" / "bench" / f"identify-{package}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    while True:
        out.write_text("", encoding="utf-8")
        command = [sys.executable, "-m", "bench.identify_peers", str(out), "--child", package, "--skip", str(len(laws))]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        laws |= {name: law for name, law in lines if law is not None}
        if done.returncode == 0:
            return laws
        if not lines:
            return {"all": {"error": "the package cannot be imported"}}
        laws[lines[-1][0]] = {"error": "the process died"}


def _identify_all(package: str, skip: int, out: Path) -> None:
    """Write a line per optimizer: its name before it runs, and its law after."""
    torch.compiler.set_stance("force_eager")
    signal.signal(signal.SIGALRM, _too_long)
    with out.open("a", encoding="utf-8") as file:

        def write(name: str, law: dict[str, Any] | None) -> None:
            file.write(json.dumps([name, law]) + "\n")
            file.flush()

        for name, factory in list(_optimizers(package))[skip:]:
            write(name, None)
            signal.alarm(_SECONDS)
            try:
                law = _short(identify(factory, name=name))
            except Exception as error:
                law = {"error": " ".join(str(error).split())[:200]}
            finally:
                signal.alarm(0)
            write(name, law)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"it takes longer than {_SECONDS} seconds")


def _optimizers(package: str) -> Iterator[tuple[str, Any]]:
    """Yield the names and classes of a package's optimizers."""
    for name, factory in sorted(_classes(package).items(), key=lambda item: item[0].lower()):
        yield name, factory
        if name in _MORE.get(package, {}):
            settings = _MORE[package][name]
            given = ", ".join(f"{key}={value}" for key, value in settings.items())
            yield f"{name}({given})", functools.partial(factory, **settings)


def _classes(package: str) -> dict[str, type]:
    if package == "heavyball":
        import heavyball

        heavyball.utils.compile_mode = None
        return {name: getattr(heavyball, name) for name in _OF_HEAVYBALL}
    modules = _without_torchvision("timm.optim") if package == "timm" else [importlib.import_module(PACKAGES[package])]
    return {
        name: each
        for module in modules
        for name, each in vars(module).items()
        if isinstance(each, type)
        and issubclass(each, torch.optim.Optimizer)
        and each is not torch.optim.Optimizer
        and not name.startswith("_")
        and (package == "torch" or not each.__module__.startswith("torch."))
    }


def _without_torchvision(package: str) -> list[types.ModuleType]:
    """Import the modules of a package without the packages around them, which would ask for torchvision."""
    path = None
    for name in ("timm", "timm.optim"):
        spec = importlib.util.find_spec(name) if path is None else importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        bare = types.ModuleType(name)
        path = bare.__path__ = list(spec.submodule_search_locations or [])
        sys.modules[name] = bare
    names = [each.name for each in pkgutil.iter_modules(path) if not each.name.startswith("_") and each.name != "optim_factory"]
    return [importlib.import_module(f"{package}.{name}") for name in names]


def _short(law: DecayLaw) -> dict[str, Any]:
    """Return what the tables show of a law."""
    found = law.to_dict()
    strength = found["strength"]
    findings = found["findings"]
    share = findings.get("bfloat16", {}).get("numbers", {}).get("share")
    return {
        **{key: found[key] for key in ("kind", "text", "rule", "weight", "default")},
        "strength": strength and strength["formula"],
        "dtype": found["evidence"].get("dtype"),
        "findings": {name: each["verdict"] for name, each in findings.items()},
        "remarks": {name: each["text"] for name, each in findings.items() if each["verdict"] in CHECKS[name]},
        "bfloat16_share": None if share is None else round(share, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
