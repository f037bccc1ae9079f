"""What every test starts from: a known seed, one thread, a plain terminal, and the same examples of Hypothesis."""

import os
import re

import pytest
import torch

from weightdecay.update_rules.registry import REGISTRY

try:
    import hypothesis
except ImportError:  # a machine with a GPU may have no more than torch and pytest, which is enough for test_gpu_device
    hypothesis = None


class TorchRandom:
    """Torch's generator as Hypothesis wants to see it, so that an example draws the same tensors whenever it is run."""

    seed, getstate, setstate = torch.manual_seed, torch.get_rng_state, torch.set_rng_state


if hypothesis is not None:
    hypothesis.register_random(TorchRandom)
    hypothesis.settings.register_profile("laws", max_examples=40, deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("laws")


def pytest_collection_modifyitems(items):
    """Skip what the processor that WEIGHTDECAY_CPU names cannot do: the oldest has no float16, and its kernels refuse it."""
    if "WEIGHTDECAY_CPU" not in os.environ:
        return
    from weightdecay.backends.cpu import jit

    if not jit.converts_float16():
        mark = pytest.mark.skip(reason=f"{os.environ[jit.VARIABLE]} has no instruction for float16")
        for item in items:
            if re.search(r"(?<!b)float16", item.nodeid):
                item.add_marker(mark)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The tensors are small: a second thread costs more than it does."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def plain_terminal():
    """What somebody has told programs about their terminal is no matter of what ours print; a test sets what it is about."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def own_registry(monkeypatch):
    """Let a test register rules that no other test sees."""
    monkeypatch.setattr(REGISTRY, "_registered", dict(REGISTRY._rules))
