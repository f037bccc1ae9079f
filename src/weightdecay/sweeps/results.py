"""What a sweep leaves on disk: `results.jsonl`, a line per finished run, and `sweep.json`, what the sweep is.

Lines are only ever appended, each stack's in one write, so that a sweep killed at any moment loses at most the stack in
flight; a torn last line is cut off at the next start. A lock keeps a second process out.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from weightdecay import files
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
            self._lock = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SweepError(f"cannot write to {self.directory}: {error.strerror}; choose another folder with --out") from error
        try:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_identity()
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._read()
        except BlockingIOError:
            os.close(self._lock)
            raise SweepError(
                f"another sweep is writing to {self.directory}; wait for it, or choose another folder with --out"
            ) from None
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
        if not described.exists():
            if self.path.exists() and self.path.stat().st_size:
                raise SweepError(
                    f"{self.path} is there without sweep.json: not a sweep's folder, or a damaged one; see --fresh"
                )
            return
        try:
            found = json.loads(described.read_text(encoding="utf-8"))["identity"]
        except (ValueError, KeyError, TypeError):
            raise SweepError(f"{described} is not a sweep's description; choose another folder with --out") from None
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
        for number, line in enumerate(data[:whole].decode("utf-8", errors="replace").splitlines(), 1):
            try:
                row = json.loads(line)
                key(row)
            except (ValueError, KeyError, TypeError):
                raise SweepError(f"{self.path}, line {number}, is not a result of a sweep; see --fresh") from None
            self.rows.append(row)
