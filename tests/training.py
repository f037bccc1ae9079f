"""What the tests train with: small parameters, gradients that follow from the step and the weights, comparison bit for bit."""

import contextlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import Parameter

import weightdecay as wd
from weightdecay.optim import presets

PRESETS = list(presets.PRESETS.values())
KINDS = (wd.SGD, wd.SGDW, wd.Adam, wd.AdamW, wd.NAdam, wd.Adagrad, wd.AdamSPD)
"""Presets for what does not depend on the formula: one of each kind of arguments and state."""
SHAPES = {"weight": (4, 3), "bias": (3,), "scale": ()}
LAYOUTS = {
    "transposed": lambda full: full.mT.contiguous().mT,
    "every second column": lambda full: full.repeat_interleave(2, -1)[..., ::2],
    "channels last": lambda full: full.to(memory_format=torch.channels_last),
    "offset": lambda full: torch.cat([full[:1], full])[1:],
}


DIRECTIONS = [name for name, rule in wd.rules().of("direction").items() if not rule.whole]
"""Those that take tensors of every shape; tests/test_whole_directions.py has the others."""


def _combinations():
    """Every such direction, and every decay and penalty that keeps something or asks for more than w and u.

    Together they are all the state there is and all the keys of a group.
    """
    rules = wd.rules()
    for direction in DIRECTIONS:
        momentum = {"momentum": 0.9} if "mu" in rules["direction", direction].defaults else {}
        yield direction, {"direction": direction, "decay": "independent", "penalty": "l2", "penalty_weight": 0.01, **momentum}
    for decay, rule in rules.of("decay").items():
        if "lam" in rule.numbers and (_asks_for_more(rule) or decay == "decoupled"):
            yield decay, {"direction": "adam", "decay": decay}
    for penalty, rule in rules.of("penalty").items():
        if _asks_for_more(rule) or penalty == "l2":
            yield penalty, {"direction": "adam", "decay": "decoupled", "penalty": penalty, "penalty_weight": 0.1}


def _asks_for_more(rule):
    return bool(rule.keeps or rule.reductions or "eta_max" in rule.numbers)


COMBINATIONS = dict(_combinations())
EXACT = {"direction": "sgd", "momentum": 0.9, "penalty": "l2", "penalty_weight": 0.1, "decay": "cautious", "weight_decay": 0.5}
"""Rules whose every operation IEEE 754 rounds in one way: two backends that do the same give the same bits."""
BACKENDS = ("cpu", "eager")


def noise(shape, dtype, seed):
    """Return normal numbers that depend on the seed alone, the same in every dtype but for rounding."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, dtype=wide, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameters(dtype=torch.float64, shapes=SHAPES, seed=0) -> dict[str, Parameter]:
    """Return named parameters with normal values."""
    return {name: Parameter(noise(shape, dtype, seed + place)) for place, (name, shape) in enumerate(shapes.items())}


def parameters_of(preset, dtype=torch.float64) -> dict[str, Parameter]:
    """Return parameters that a preset takes: matrices for one that takes no others."""
    return parameters(dtype, dict.fromkeys(SHAPES, (4, 3)) if preset.__name__.startswith("Muon") else SHAPES)


def options_of(preset) -> dict[str, float]:
    """Return hyper-parameters under which every part of a preset is at work."""
    given = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9, "dampening": 0.1}
    return {name: given[name] for name in inspect.signature(preset).parameters if name in given}


def copies(params: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Return parameters with the same values and no gradients."""
    return {name: Parameter(param.detach().clone()) for name, param in params.items()}


def all_params(optimizer: torch.optim.Optimizer) -> list[Parameter]:
    """Return the parameters in the optimizer's order."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def set_gradients(optimizer: torch.optim.Optimizer, t: int) -> None:
    """Give every parameter the gradient of a bowl at step t, plus noise: another weight has another gradient."""
    for place, param in enumerate(all_params(optimizer)):
        param.grad = (0.5 * param.detach() + noise(param.shape, param.dtype, 1000 * t + place)).to(param.dtype)


def train(optimizer: torch.optim.Optimizer, steps: int, *, first: int = 1) -> None:
    """Do the steps from number `first` on."""
    for t in range(first, first + steps):
        set_gradients(optimizer, t)
        optimizer.step()


def bits(tree: Any) -> Any:
    """Return dictionaries, lists and tensors as plain values that are equal where, and only where, every bit is.

    Parameters as keys become their order, tensors their dtype, shape and bytes; −0 differs from 0, and NaN equals itself.
    """
    if isinstance(tree, Tensor):
        flat = tree.detach().resolve_neg().contiguous().reshape(-1)
        flat = torch.view_as_real(flat.resolve_conj()).reshape(-1).resolve_neg() if flat.is_complex() else flat
        return str(tree.dtype), tuple(tree.shape), flat.view(torch.uint8).tolist()
    if isinstance(tree, Mapping):
        return {place if isinstance(key, Tensor) else key: bits(value) for place, (key, value) in enumerate(tree.items())}
    if isinstance(tree, list | tuple):
        return [bits(value) for value in tree]
    return repr(tree)


def everything(optimizer: torch.optim.Optimizer) -> Any:
    """Return the bits of all that an optimizer changes or keeps: parameters, state and groups."""
    return bits([all_params(optimizer), optimizer.state_dict()])


@contextlib.contextmanager
def refused(error, *words, unchanged=None):
    """Expect this error, its message with all of the words, and every bit of the optimizer as it was."""
    before = None if unchanged is None else everything(unchanged)
    with pytest.raises(error) as caught:
        yield
    for word in words:
        assert word in str(caught.value)
    assert unchanged is None or everything(unchanged) == before


@torch.no_grad()
def apart(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> float:
    """Return the largest difference of two optimizers' parameters, relative to the largest magnitude in each tensor."""
    pairs = zip(all_params(ours), all_params(theirs), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def output(script, *, timeout=60, **environment):
    """Return what a new Python prints, and demand that it says nothing else."""
    paths = [environment.pop("PYTHONPATH", ""), os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=given, capture_output=True, encoding="utf-8", timeout=timeout, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout.strip()


@contextlib.contextmanager
def default_dtype(dtype) -> Iterator[None]:
    """Let torch make tensors of this dtype; its NAdam keeps the product of its momenta, and all count steps, in it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def one_process() -> Iterator[DeviceMesh]:
    """Set up torch.distributed for this process alone, and yield its mesh."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()
