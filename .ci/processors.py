"""Run the tests of the backends as other processors would: older ones, as far as this one can pass for them.

Torch is told by ATEN_CPU_CAPABILITY which of its loops to take (and MKL, where it obeys, by MKL_ENABLE_INSTRUCTIONS), and LLVM
by WEIGHTDECAY_CPU what to compile for. What this processor cannot run is skipped by name, with the reason. Further arguments
go to pytest.
"""

import os
import subprocess
import sys

from weightdecay.backends.cpu import jit

PROCESSORS = {
    "x86-64-v2": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "x86-64-v3": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "x86-64-v4": {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}
"""What each has in the environment beside its own name."""
TESTS = ["reference", "cpu_backend", "precision", "words", "laws", "fixed_points", "scale_invariance", "stable", "torch_parity"]
"""The files whose tests depend on how numbers are rounded."""


def say(line: str) -> None:
    """Write a line before the next process writes its own."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Return 0 if the tests pass on every processor that there can be here."""
    files = [f"tests/test_{name}.py" for name in TESTS]
    failed = []
    for level, variables in PROCESSORS.items():
        why = jit.refusal(level)
        if why is not None:
            say(f"{level}: skipped, {why}")
            continue
        given = {jit.VARIABLE: level, **variables}
        say(f"{level}: {' '.join(f'{key}={value}' for key, value in given.items())}")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sys.argv[1:], *files]
        if subprocess.run(command, env={**os.environ, **given}, check=False).returncode:
            failed.append(level)
    say(f"failed as {', '.join(failed)}" if failed else "passed on every processor that this one can pass for")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
