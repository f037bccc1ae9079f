"""What a figure depends on beside the code: the machine, the versions, the commit."""

import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "triton", "llvmlite", "weightdecay", "heavyball", "adv-optm")


def machine() -> dict[str, Any]:
    """Describe the machine."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """Return the version of Python and of every package that takes part; None for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def commit() -> dict[str, Any]:
    """Return the commit that is measured, and whether the tree held changes beside it; None without git."""
    found = _git("rev-parse", "HEAD")
    return {"commit": found, "dirty": None if found is None else bool(_git("status", "--porcelain"))}


def compiler() -> str | None:
    """Return the C++ compiler that torch.compile would call for a CPU, or None."""
    return shutil.which(os.environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++"))


class Others:
    """How many cores all other processes keep busy, from now on: with more than a little of one, times say little."""

    def __init__(self) -> None:
        self._before = self._seconds()

    def cores(self) -> float | None:
        """Return the average since the start, what a host takes from its guest included; None where it is not known."""
        now = self._seconds()
        if now is None or self._before is None:
            return None
        everybody, own, elapsed = (after - before for after, before in zip(now, self._before, strict=True))
        return max(0.0, (everybody - own) / elapsed)

    @staticmethod
    def _seconds() -> tuple[float, float, float] | None:
        """Return the processor seconds of everybody and of this process with its children, and the clock."""
        try:
            fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
        everybody = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return everybody, sum(os.times()[:4]), time.monotonic()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
