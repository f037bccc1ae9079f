"""Run an optimizer of which nothing is known on small tensors, step by step, with gradients that are given."""

import functools
import inspect
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

Factory = Callable[..., Any]
"""A class, a partial or a function: (params, lr=…, weight_decay=…) → optimizer."""
Weights = list[Tensor]
Gradients = Sequence[Tensor | None]

LR, LAMBDA = 0.1, 0.3
"""Large, so that a step takes 3 % of a weight: the effect of λ is what every number here is measured against."""
LRS = tuple(LR * share for share in (1.0, 0.5, 0.8, 0.25, 1.0, 0.6))
"""The learning rates of a run, as a scheduler might write them."""
_SHAPES = ((6, 8), (48,))
"""A matrix first: Muon takes nothing else."""
_DTYPES = (torch.float64, torch.float32)
_NONSENSE = {"a_keyword_of_no_optimizer": 0}
_LONGEST = 90
"""Characters of an error that are shown in a table."""


@dataclass(frozen=True)
class Subject:
    """An optimizer under test: how it is made, and on which tensors it runs."""

    factory: Factory
    knob: str = "weight_decay"
    name: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shape: tuple[int, ...] = _SHAPES[0]
    dtype: torch.dtype = _DTYPES[0]
    closure: bool = False
    """Whether `step` asks for one."""

    def that_runs(self) -> "Subject":
        """Return the subject with the first dtype, shape and way to call `step` with which two steps run.

        Raises:
            RuntimeError: nothing runs.
        """
        first: BaseException | None = None
        for closure in (False, True):
            for dtype in _DTYPES:
                for shape in _SHAPES:
                    found = replace(self, shape=shape, dtype=dtype, closure=closure)
                    try:
                        run = Run(found, [found.weights()], lr=LR, lam=0.0 if self.takes(self.knob) else None)
                        for gradient in found.gradients(2):
                            run.step([gradient])
                    except Exception as error:  # whatever an unknown optimizer raises says that it does not run
                        first = first or (error.__cause__ if isinstance(error, StepError) else error)
                        continue
                    w = run.weights[0]
                    if w.isfinite().all():
                        # Some compute float64 weights in float32, and so round what they do not move.
                        single = torch.equal(w.float().to(dtype), w)
                        return replace(found, dtype=torch.float32) if single else found
        reason = f"{type(first).__name__}: {first}" if first else "its weights are not finite"
        raise RuntimeError(f"{self.name} does not run on a matrix or a vector of float64 or float32: {reason}") from first

    def takes(self, keyword: str) -> bool:
        """Return whether the factory may do something with the keyword.

        It does not where its signature lacks it, or swallows any keyword and leaves no trace of this one in the groups.
        """
        try:
            parameters = inspect.signature(self.factory).parameters
        except (TypeError, ValueError):
            return True
        if keyword in parameters:
            return True
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            return False
        try:
            return self.refusal(**_NONSENSE) is not None or keyword in self._made().param_groups[0]
        except Exception:  # see that_runs
            return True

    def refusal(self, **keywords: Any) -> str | None:
        """Return why the optimizer cannot be made with these keywords, or None where it can."""
        try:
            self.build([torch.nn.Parameter(self.weights())], lr=LR, **keywords)
        except Exception as error:  # see that_runs
            return described(error)
        return None

    def default(self) -> float | None:
        """Return λ where none is passed, if it is a number in the groups."""
        try:
            value = self._made().param_groups[0].get(self.knob)
        except Exception:  # see that_runs: a factory may insist on λ
            return None
        return float(value) if isinstance(value, int | float) else None

    def _made(self) -> Any:
        return self.build([torch.nn.Parameter(self.weights())], lr=LR)

    def build(self, params: Sequence[Tensor], **keywords: Any) -> Any:
        """Make the optimizer, and refuse what is none."""
        optimizer = self.factory(params, **keywords)
        if not callable(getattr(optimizer, "step", None)) or not getattr(optimizer, "param_groups", None):
            raise TypeError(f"{self.name} made a {type(optimizer).__name__}, which has no step() or no param_groups")
        return optimizer

    def with_settings(self, **settings: Any) -> "Subject":
        """Return the subject with more keywords."""
        return replace(self, factory=functools.partial(self.factory, **settings))

    def weights(self, shape: tuple[int, ...] | None = None, seed: int = 0) -> Tensor:
        """Return weights of either sign and of sizes from 0.5 to 1.5."""
        return self._drawn(0.5, 1.5, shape or self.shape, seed)

    def gradients(self, steps: int, shape: tuple[int, ...] | None = None, seed: int = 1) -> list[Tensor]:
        """Return a gradient per step, of either sign and of sizes from 0.2 to 1."""
        return [self._drawn(0.2, 1.0, shape or self.shape, seed + 1000 * step) for step in range(steps)]

    def _drawn(self, least: float, most: float, shape: tuple[int, ...], seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        size = least + (most - least) * torch.rand(shape, generator=generator, dtype=torch.float64)
        sign = 2.0 * torch.randint(2, shape, generator=generator) - 1
        return (size * sign).to(self.device, self.dtype)


class StepError(RuntimeError):
    """An optimizer of which nothing is known raised something; that is the cause of this."""


@contextmanager
def _of_theirs(what: str) -> Iterator[None]:
    """Say that what is raised here comes from the optimizer under test."""
    try:
        yield
    except Exception as error:
        raise StepError(f"{what}: {type(error).__name__}: {error}") from error


class Run:
    """A training of a few tensors with gradients that are given; the same random numbers in every one."""

    def __init__(self, subject: Subject, weights: Sequence[Tensor], *, lr: Any, lam: float | None, **more: Any) -> None:
        torch.default_generator.manual_seed(0)
        self._subject = subject
        self.params = [torch.nn.Parameter(w.clone()) for w in weights]
        knob = {} if lam is None else {subject.knob: lam}
        self._steps = 0
        with _of_theirs("it cannot be made"):
            self.optimizer = subject.build(self.params, lr=lr, **knob, **more)
        train = getattr(self.optimizer, "train", None)  # schedule-free optimizers refuse to step without it
        if callable(train):
            train()
        self._call = self.optimizer.step
        self._random = torch.get_rng_state()

    @property
    def weights(self) -> Weights:
        """Return the weights as they are now."""
        return [param.detach().clone() for param in self.params]

    @property
    def group(self) -> dict[str, Any]:
        """Return the first parameter group."""
        group: dict[str, Any] = self.optimizer.param_groups[0]
        return group

    def compiled(self) -> "Run":
        """Step through torch.compile from now on."""
        self._call = torch.compile(self.optimizer.step)
        return self

    def set(self, key: str, value: float) -> None:
        """Write a number into every parameter group, as a scheduler does: a tensor stays one."""
        for group in self.optimizer.param_groups:
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)
            else:
                group[key] = value

    def put(self, weights: Sequence[Tensor]) -> None:
        """Move the weights to where they are wanted, behind the optimizer's back."""
        with torch.no_grad():
            for param, w in zip(self.params, weights, strict=True):
                param.copy_(w)

    def step(self, gradients: Gradients, lr: float | None = None) -> Weights:
        """Do a step with these gradients and return the weights."""
        if lr is not None:
            self.set("lr", lr)

        def closure() -> Tensor:
            for param, gradient in zip(self.params, gradients, strict=True):
                param.grad = None if gradient is None else gradient.clone()
            given = [(p, g) for p, g in zip(self.params, gradients, strict=True) if g is not None]
            return torch.stack([(p * g).sum() for p, g in given]).sum()

        torch.set_rng_state(self._random)  # runs take turns, and each draws as if it were alone
        with _of_theirs(f"its step {self._steps + 1} fails"):
            if self._subject.closure:
                self._call(closure)
            else:
                closure()
                self._call()
        self._steps += 1
        self._random = torch.get_rng_state()
        return self.weights

    def all(self, gradients: Sequence[Gradients], lrs: Sequence[float] | None = None) -> list[Weights]:
        """Do a step per gradient and return the weights after each."""
        return [self.step(each, None if lrs is None else lrs[t]) for t, each in enumerate(gradients)]


def described(error: Exception) -> str:
    """Return what was raised, in one short line; what an optimizer raised, without what was said of it."""
    if isinstance(error, StepError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = " ".join(str(error).split())
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST].rsplit(' ', 1)[0]} …"
    return f"{type(error).__name__}: {short}" if text else type(error).__name__


def name_of(factory: Factory) -> str:
    """Return how people would write a factory.

    >>> name_of(torch.optim.AdamW), name_of(functools.partial(torch.optim.SGD, momentum=0.9))
    ('AdamW', 'SGD(momentum=0.9)')
    """
    if isinstance(factory, functools.partial):
        given = ", ".join(f"{key}={value!r}" for key, value in factory.keywords.items())
        return f"{name_of(factory.func)}({given})"
    return getattr(factory, "__qualname__", type(factory).__qualname__).rpartition("<locals>.")[2]


@contextmanager
def alone() -> Iterator[None]:
    """Let what runs here draw random numbers, warn and set what holds for the process without a trace.

    It has gradients whatever the caller has set. The tensors are small: a second thread costs more than it does.
    """
    threads = torch.get_num_threads()
    with _kept():
        torch.set_num_threads(1)
        try:
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad(), catch_warnings():
                simplefilter("ignore")
                yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _kept() -> Iterator[None]:
    """Put back the random states of Python and NumPy, and what torch is told for the whole process."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), None if numpy is None else numpy.random.get_state()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        random.setstate(states[0])
        if numpy is not None:
            numpy.random.set_state(states[1])
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.set_anomaly_enabled(*anomaly)
        torch.set_float32_matmul_precision(precision)
