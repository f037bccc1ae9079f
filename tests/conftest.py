"""What every test starts from: a known seed, one thread, and examples of Hypothesis that are the same in every run."""

import pytest
import torch

from weightdecay.step import REGISTRY

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


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The tensors are small: a second thread costs more than it does."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def own_registry(monkeypatch):
    """Let a test register rules that no other test sees."""
    monkeypatch.setattr(REGISTRY, "_rules", dict(REGISTRY._rules))
