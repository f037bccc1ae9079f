"""What a sweep leaves on disk: `results.jsonl`, a line per finished run, and `sweep.json`, what the sweep is.

Lines are only ever appended, each stack's in one write, so that a sweep killed at any moment loses at most the stack in
flight; a torn last line is cut off at the next start. A lock keeps a second process out.
"""

import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from weightdecay.display import files
from weightdecay.sweeps.grid import Run

try:
    import fcntl
except ImportError:  # Windows has no flock; there a second process is the user's to avoid
    fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]


class SweepError(Exception):
    """Say what is wrong with a sweep's folder, in words for its user."""


def key(row: Row) -> Run:
    """Return which run a line is the result of."""
    return Run(row["optimizer"], row["lr"], row["weight_decay"], row["seed"])


class Results:
    """The results in a folder, open for one process.

    Args:
        directory: is made if need be.
        identity: what makes results comparable; a folder with another identity is refused.
        fresh: whether to throw away what the folder holds.
    """

    def __init__(self, directory: Path, identity: dict[str, Any], *, fresh: bool = False) -> None:
        self.directory, self.identity, self.fresh = directory, identity, fresh
        self.rows: list[Row] = []
        self._lock = self._file = -1

    @property
    def path(self) -> Path:
        """Return where the lines are."""
        return self.directory / "results.jsonl"

    def __enter__(self) -> Self:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_identity()
            if _kind(self.path, follow=False) not in ("", "a file"):  # nothing is cut off of what lies elsewhere
                raise SweepError(
                    f"{self.path} is {_kind(self.path, follow=False)}, not a file that results can be appended to; "
                    "choose another folder with --out"
                )
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._read()
        except BlockingIOError:
            self.__exit__(None, None, None)
            raise SweepError(
                f"another sweep is writing to {self.directory}; wait for it, or choose another folder with --out"
            ) from None
        except OSError as error:
            self.__exit__(None, None, None)
            raise SweepError(f"cannot write to {self.directory}: {error.strerror}; choose another folder with --out") from error
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock = self._file = -1

    def append(self, rows: Iterable[Row]) -> None:
        """Add finished runs; they are on the disk when this returns."""
        rows = list(rows)
        # allow_nan=False: a NaN would make a line that is not JSON.
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        size = os.fstat(self._file).st_size
        try:
            while text:
                text = text[os.write(self._file, text) :]
            os.fsync(self._file)
        except BaseException as error:
            os.ftruncate(self._file, size)
            if isinstance(error, OSError):
                raise SweepError(f"cannot write to {self.path}: {error.strerror}; the runs finished before are kept") from error
            raise
        self.rows += rows

    def describe(self, manifest: dict[str, Any]) -> None:
        """Write what the sweep is, beside its results."""
        text = json.dumps({**manifest, "identity": self.identity}, indent=1) + "\n"
        try:
            files.write(self.directory / "sweep.json", text.encode())
        except OSError as error:
            raise SweepError(f"cannot write to {self.directory}: {error.strerror}") from error

    def _check_identity(self) -> None:
        described = self.directory / "sweep.json"
        if self.fresh:
            self.path.unlink(missing_ok=True)
            described.unlink(missing_ok=True)
        if not _kind(described):
            if _kind(self.path) == "a file" and self.path.stat().st_size:
                raise SweepError(
                    f"{self.path} is there without sweep.json: not a sweep's folder, or a damaged one; choose another folder "
                    "with --out, or throw its results away with --fresh"
                )
            return
        try:
            found = json.loads(described.read_text(encoding="utf-8"))["identity"] if _kind(described) == "a file" else None
        except (ValueError, KeyError, TypeError, RecursionError):
            found = None
        if not isinstance(found, Mapping):
            raise SweepError(f"{described} is not a sweep's description; choose another folder with --out")
        differing = [name for name in self.identity if found.get(name) != self.identity[name]]
        if differing:
            changes = ", ".join(f"{name} {found.get(name)!r} → {self.identity[name]!r}" for name in differing)
            raise SweepError(
                f"{self.directory} holds results of another task ({changes}): choose another folder with --out, "
                "or throw its results away with --fresh"
            )

    def _read(self) -> None:
        data = b""
        while chunk := os.read(self._file, 1 << 20):
            data += chunk
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
            os.fsync(self._file)
        bad: dict[int, str] = {}
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
                refuse_impossible(row, self.identity["metric"])
            except RecursionError:
                bad[number] = "it is nested too deeply"
            except ValueError as error:
                unreadable = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
                bad[number] = "it is not JSON" if unreadable else str(error)
            else:
                self.rows.append(row)
        if bad:
            places = f"line {next(iter(bad))}" if len(bad) == 1 else f"lines {', '.join(map(str, list(bad)[:10]))}"
            rest = f" and {len(bad) - 10} more lines" if len(bad) > 10 else ""
            raise SweepError(
                f"{self.path}, {places}{rest}: not a result of a sweep ({next(iter(bad.values()))}). Take {places}{rest} "
                f"out of the file: the same command then keeps the other {len(self.rows)} runs and does what is missing"
            )


def refuse_impossible(row: Any, metric: str) -> None:
    """Refuse a line that no sweep has written.

    Raises:
        ValueError: with what is wrong.
    """
    if not isinstance(row, dict):
        raise ValueError("it is no object")
    if not isinstance(row.get("optimizer"), str):
        raise ValueError(f"its optimizer is {_shown(row.get('optimizer'))}")
    for name in ("lr", "weight_decay"):
        if not _is_number(row.get(name)):
            raise ValueError(f"its {name} is {_shown(row.get(name))}")
    if not isinstance(row.get("seed"), int) or isinstance(row["seed"], bool):
        raise ValueError(f"its seed is {_shown(row.get('seed'))}")
    parts = [f"{part}_{what}" for part in ("train", "valid", "test") for what in ("loss", metric)]
    for name in (*parts, "weight_norm", "initial_weight_norm"):
        if row.get(name) is not None and not _is_number(row[name]):
            raise ValueError(f"its {name} is {_shown(row[name])}")
    history = row.get("history") or {}
    if not isinstance(history, dict):
        raise ValueError(f"its history is {_shown(history)}")
    for name, values in history.items():
        if not isinstance(values, list) or any(value is not None and not _is_number(value) for value in values):
            raise ValueError(f"its history of {_shown(name)} is {_shown(values)}")


def _is_number(value: Any) -> bool:
    """Tell whether a value is a number that a float can be."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _kind(path: Path, *, follow: bool = True) -> str:
    """Return what is at a path, in words; nothing if nothing is."""
    try:
        mode = (path.stat() if follow else path.lstat()).st_mode
    except FileNotFoundError:
        return ""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe"}
    return kinds.get(stat.S_IFMT(mode), "a device")
