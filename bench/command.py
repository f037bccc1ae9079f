"""The command of a benchmark: its options, what it prints, the JSON file, the exit code."""

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.result import Result, table
from bench.timing import Options
from weightdecay.display import files

Works = Mapping[str, Callable[[Options], Iterator[Result]]]

QUIET = 0.1
"""So many cores may be busy with something else."""


def main(
    name: str, works: Works, arguments: list[str] | None = None, *, lack: Callable[[], str | None] = lambda: None
) -> int:  # fmt: skip
    """Run the works that were asked for; return 1 for a wrong result, or, if strict, for a missed ratio.

    `lack` says what the machine must have first and does not.
    """
    parser = _parser(name, works)
    asked = parser.parse_args(arguments)
    missing = lack()
    if missing is not None:
        parser.error(missing)
    options = Options(asked.rounds, asked.inductor)
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "git": machine.commit(),
        "options": {"rounds": asked.rounds, "inductor": asked.inductor, "only": asked.only},
    }
    print(_headline(about))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for name in asked.only or works:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        for result in works[name](options):
            print(f"\n{result.name}: {result.title}\n{result}", flush=True)
            results.append(result)
            _write(asked.out, about, results)  # after each, so that a run that is stopped leaves what it has
        gc.collect()  # gigabytes, held by cycles
        torch.compiler.reset()
    return _close(results, asked.out, strict=asked.strict)


def _parser(name: str, works: Works) -> argparse.ArgumentParser:
    title = f"Measure the {name.upper()} backend against torch.optim."
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=title)
    parser.add_argument("--out", type=Path, default=Path(f"runs/bench/{name}.json"), help="the JSON file  [%(default)s]")
    parser.add_argument("--rounds", type=_positive, default=30, help="turns of every contestant  [%(default)s]")
    parser.add_argument("--only", nargs="+", choices=works, metavar="WORK", help=f"of {', '.join(works)}")
    parser.add_argument("--inductor", action="store_true", help="measure torch.compile, too: minutes of compiling")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a demanded ratio is missed")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} rounds measure nothing: at least 1")
    return number


def _headline(about: dict[str, Any]) -> str:
    host, git = about["machine"], about["git"]
    memory = f", {host['memory_bytes'] / 2**30:.0f} GiB" if host["memory_bytes"] else ""
    commit = f"{git['commit'][:12]}{' and changes' if git['dirty'] else ''}" if git["commit"] else "unknown"
    where = f"{host['processor']}, {host['usable_cores']} cores, {host['torch_threads']} threads{memory}"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    return f"{where}\n{versions}\ncommit {commit}"


def _write(out: Path, about: dict[str, Any], results: Iterable[Result]) -> None:
    content = {**about, "works": [result.to_dict() for result in results]}
    files.write(out, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def _close(results: list[Result], out: Path, *, strict: bool) -> int:
    """Print what became of every demand and what was wrong, and return the exit code."""
    demands = [(result.name, demand) for result in results for demand in result.demands]
    wrong = [(result.name, check) for result in results for check in result.checks if not check.holds]
    missed = [demand for _, demand in demands if not demand.met]
    rows = [(name, demand.what, demand.verdict, demand.asked, f"{demand.measured:.3f}") for name, demand in demands]
    if rows:
        print("", *table([("work", "", "", "demanded", "measured"), *rows], left=3), sep="\n")
    print(f"\n{len(demands) - len(missed)} of {len(demands)} demands met; written to {out}", flush=True)
    for result in results:
        if result.others is not None and result.others > QUIET:
            print(f"warning: {result.name}: {result.others:.2f} cores were busy otherwise: measure again", file=sys.stderr)
    for name, check in wrong:
        print(f"error: {name}: {check}", file=sys.stderr)
    return int(bool(wrong) or (strict and bool(missed)))
