"""A torch.optim.Optimizer around the one equation."""

import contextlib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from numbers import Real
from threading import RLock
from typing import Any, ClassVar, cast, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from weightdecay import backends
from weightdecay.backends import counting, eager, memory, rounding
from weightdecay.backends.dispatch import Kernels, Plan
from weightdecay.backends.param_table import Entry, Signature
from weightdecay.display.user_warning import warn
from weightdecay.optim import hyperparameters
from weightdecay.optim.checkpoint import Checkpointed
from weightdecay.optim.saved_state import moment_dtype, name_of
from weightdecay.update_rules.equation import Equation, RuleLike
from weightdecay.update_rules.registry import REGISTRY
from weightdecay.update_rules.rule import Rule
from weightdecay.update_rules.state import Kept, kept_for

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_SCHEDULED = {"lr", "largest_lr", "weight_decay", "penalty_weight"}
Schedule = str | Mapping[str, Any]
_FLAGS = {
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "rounding": "auto",
    "seed": 0,
}


class Optimizer(Checkpointed):
    r"""Train with any direction, any penalty and any decay.

    A step is :math:`w_t = g(\lambda)\,w_{t-1} - \eta\,h(\nabla L)`; the three rules say what g and h are.

    Args:
        params: tensors, (name, tensor) pairs or groups, as torch takes them. Any keyword below except `backend` may differ
            per group. bfloat16 and float16 are computed in float32 with float32 moments; complex tensors count as pairs
            of reals.
        lr: η, a number or a tensor of one element. A tensor may be filled between steps, as any number of a group may that is
            one; on the CPU each step looks at it, elsewhere only the first, as it would have to wait for the device.
        direction, penalty, decay: rules, by name or as functions; `weightdecay.rules()` lists them.
        weight_decay: λ of the decay, in the unit that the decay's page states: per unit of lr for most.
        penalty_weight: λ of the penalty.
        weight_decay_schedule, penalty_weight_schedule: by what λ is multiplied at each step, as plain data, so that a
            checkpoint holds it: {"name": "cosine", "steps": 1000}, or a name alone. By the step: "constant" (with a warm-up),
            "linear", "cosine", "step", "inverse_time"; by the learning rate: "constant_timescale", "follow_lr".
        rounding: how bfloat16 and float16 weights are rounded: "nearest", "stochastic", "compensated" (16 more bits per
            weight), or "auto", which is "stochastic", because "nearest" loses the decay. float32 and float64 are always
            rounded to nearest.
        seed: of the stochastic rounding. Equal seeds give equal bits, also after a resume.
        maximize: ascend; the decay still shrinks.
        capturable: keep step counts on the parameters' device and read no number back from it, so that a CUDA graph may
            capture the step. An lr or λ that is to change between replays is a tensor there.
        differentiable: let autograd see through the step.
        foreach, fused: taken as torch takes them, and warned of once: every step is fused as far as its backend can. With
            fused=True GradScaler hands its scale to the step, as it does to torch's fused optimizers: then gradients are
            unscaled in the step, and cannot be clipped before it.
        backend: "cpu" (compiled kernels, for parameters on the CPU), "gpu" (Triton's, for those on a CUDA device), "eager"
            (torch's operations), or "auto": kernels for all that they can do, and torch's operations for the rest. The
            state is the same, and a run may switch.
        numbers: the rules' hyper-parameters (betas, eps, momentum, p, …); and `lr_max` where one asks for the peak of the
            learning rate, for a scheduler that goes above the lr it starts with (CyclicLR).

    Raises:
        TypeError, ValueError: a value that cannot be meant, with its name and group. Nothing has changed then.
        ImportError: backend="gpu" without Triton.
        RuntimeError: from `step`, for a sparse gradient. With a backend of kernels what none can do is refused there, too.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    >>> optimizer = Optimizer([w], lr=0.5, direction="sgd", decay="cautious", weight_decay=0.5)
    >>> w.grad = torch.tensor([1.0, 1.0])
    >>> optimizer.step()
    >>> w.tolist()
    [0.25, -1.5]

    Source: the equation is Loshchilov & Hutter 2019, arXiv:1711.05101; each rule names its own.
    """

    _lambdas: ClassVar = {"penalty": "penalty_weight", "decay": "weight_decay"}
    """Which key of a group is λ, by kind of rule."""
    backend: str = "auto"
    """Which backend was asked for."""
    _plan: Plan | None = None
    _factor = 1.0

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        direction: RuleLike,
        penalty: RuleLike | None = None,
        decay: RuleLike | None = None,
        weight_decay: float | Tensor = 0.0,
        penalty_weight: float | Tensor = 0.0,
        weight_decay_schedule: Schedule | None = None,
        penalty_weight_schedule: Schedule | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        backend: str = "auto",
        rounding: str = "auto",
        seed: int = 0,
        **numbers: Any,
    ) -> None:
        names = {"direction": direction, "penalty": penalty, "decay": decay}
        rules = {kind: rule and REGISTRY.find(kind, rule).name for kind, rule in names.items()}  # type: ignore[arg-type]
        equation = self.equation(rules)
        takes = hyperparameters.defaults(equation.rules)
        of_lambdas = {"weight_decay_schedule": weight_decay_schedule, "penalty_weight_schedule": penalty_weight_schedule}
        hyperparameters.refuse_unknown(numbers, self._takes(equation, of_lambdas), equation)
        lambdas = {"weight_decay": weight_decay, "penalty_weight": penalty_weight}
        defaults = {"lr": lr, **rules, **lambdas, **takes, **numbers}
        self._start(
            params,
            defaults,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            foreach=foreach,
            fused=fused,
            backend=backend,
            rounding=rounding,
            seed=seed,
            **of_lambdas,
        )

    def _start(self, params: ParamsT, defaults: dict[str, Any], *, backend: str = "auto", **flags: Any) -> None:
        """Finish the construction of any optimizer of this package."""
        if isinstance(params, torch.nn.Module):
            raise TypeError("params is a module: pass model.parameters(), or weightdecay.param_groups(model, weight_decay=…)")
        self.backend = backends.resolve(backend)
        given = {key: flag for key, flag in flags.items() if flag is not None or key in _FLAGS}  # no schedule, no key
        defaults = {**defaults, **_FLAGS, **given}
        hyperparameters.unify(defaults, self.equation(defaults))
        super().__init__(params, defaults)
        # Again, since torch.compile around a construction forgets what came before torch's constructor.
        self.backend = backends.resolve(backend)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tell GradScaler whether to hand its scale to `step`, which unscales as it reads and skips a step whole.

        As with torch's: only with fused=True. Frameworks take it to mean that gradients cannot be unscaled, and so not
        clipped, before the step.
        """
        return bool(self.defaults["fused"])

    def _kernels(self, device: torch.device) -> Kernels | None:
        """Return the backend that makes kernels for a device; None where torch's operations do the step."""
        return backends.kernels(self.backend, device)

    def equation(self, group: Mapping[str, Any]) -> Equation:
        """Return the rules that a parameter group is trained with."""
        return Equation.of(group["direction"], group["penalty"], group["decay"])

    def _takes(self, equation: Equation, group: Mapping[str, Any]) -> set[str]:
        """Return the keys of a group that its rules and schedules read, besides those that every optimizer has."""
        peak = ["lr_max", "lr_at_start", "largest_lr"] if _needs_peak(equation, group) else []
        scheduled = (hyperparameters.SCHEDULES[key] for key in self._weighed(equation))
        return {*hyperparameters.defaults(equation.rules), *peak, *scheduled}

    def _weighed(self, equation: Equation) -> set[str]:
        """Return the keys of the λ that these rules take."""
        return {self._lambdas[rule.kind] for rule in equation.rules if "lam" in rule.numbers}

    def numbers(self, group: Mapping[str, Any], t: Any) -> dict[str, dict[str, Any]]:
        """Return what the rules of a group take at step t, under the rules' own names, by kind of rule."""
        return {
            rule.kind: hyperparameters.numbers(rule, group, lam=self._lambdas.get(rule.kind, ""), t=t)
            for rule in self.equation(group).rules
        }

    # The parameter groups -----------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking every value in it; a group that is refused leaves the optimizer as it was."""
        if not isinstance(param_group, dict):
            raise TypeError(f"a parameter group is a dict, not {type(param_group).__name__}")
        where = f"param_groups[{len(self.param_groups)}]"
        if "params" not in param_group:
            raise ValueError(f"{where} has no 'params'")
        group = dict(param_group)
        if isinstance(group["params"], Tensor):
            group["params"] = [group["params"]]
        if not isinstance(group["params"], set):  # of which torch says that it has no order
            group["params"] = list(group["params"])
            _refuse_unsteppable(group["params"], where)
        own = hyperparameters.defaults(self.equation({**self.defaults, **param_group}).rules)
        for key, value in hyperparameters.defaults(self.equation(self.defaults).rules).items():
            if own.get(key, value) != value and _as_seen(self.defaults.get(key)) == _as_seen(value):
                group.setdefault(key, own[key])  # other rules have defaults of their own: muon's eps is not adam's
        for key, value in self.defaults.items():
            group.setdefault(key, value)
        self._complete(group, where, is_new=True)
        equation = self.equation(group)
        hyperparameters.refuse_unused(param_group, {*self.defaults, *self._takes(equation, group)}, equation, where)
        with self._naming(group):
            super().add_param_group(group)
        if group["foreach"] or group["fused"]:
            _warn_of_implementations()

    @contextlib.contextmanager
    def _naming(self, group: dict[str, Any]) -> Iterator[None]:
        """Let a group without names stand among groups with names: torch wants all to have names, or none.

        Frameworks add groups of plain parameters to a running optimizer, and their parameters get their places for names.
        """
        if group["params"] and isinstance(group["params"], list) and any(each.get("param_names") for each in self.param_groups):
            at = len(self.param_groups)
            group["params"] = [
                each if isinstance(each, tuple) else (f"param_groups[{at}].params[{place}]", each)
                for place, each in enumerate(group["params"])
            ]
        named = any(isinstance(entry, tuple) for entry in group["params"])
        if not group["params"] and any("param_names" in each for each in self.param_groups):
            group.setdefault("param_names", [])
        nameless = [each for each in self.param_groups if named and not each["params"] and "param_names" not in each]
        for each in nameless:
            each["param_names"] = []
        try:
            yield
        except Exception:
            for each in nameless:
                del each["param_names"]
            raise

    def _fill(self, group: dict[str, Any]) -> None:
        """Fill in what the group's rules take."""
        equation = self.equation(group)
        for rule in equation.rules:
            if callable(group.get(rule.kind)):
                group[rule.kind] = rule.name
        for key, value in hyperparameters.defaults(equation.rules).items():
            group.setdefault(key, value)
        if _needs_peak(equation, group):
            lr = group["lr"]
            group.setdefault("lr_max", None)
            group.setdefault("lr_at_start", lr.item() if isinstance(lr, Tensor) else lr)
            group.setdefault("largest_lr", 0.0)
            if isinstance(lr, Tensor) and not isinstance(group["largest_lr"], Tensor):
                group["largest_lr"] = torch.full_like(lr.detach(), group["largest_lr"])  # which a captured step may fill

    def _complete(self, group: dict[str, Any], where: str, *, is_new: bool = False, is_loaded: bool = False) -> None:
        """Fill in what the group's rules take and refuse what cannot be meant."""
        group["lr"] = hyperparameters.check_number("lr", group["lr"], where, is_loaded=is_loaded)
        self._fill(group)
        equation = self.equation(group)
        if group["differentiable"] != self.defaults["differentiable"]:
            raise ValueError(f"differentiable={group['differentiable']} in {where}: it is set for all groups or for none")
        hyperparameters.check(group, equation, where, is_new=is_new, is_loaded=is_loaded)
        if equation.direction.whole:
            _refuse_shapes(equation.direction, group["params"], where)
        if self.backend not in ("auto", "eager") and (why := _refusal_of_rules(equation)):
            raise ValueError(f"backend={self.backend!r} cannot step {where}: {why}; use backend='auto' or 'eager'")
        used = self._weighed(equation)
        for key, schedule in hyperparameters.SCHEDULES.items():
            if group.get(schedule) is not None and key not in used:
                raise ValueError(f"{schedule} in {where} does nothing: {equation} takes no {key}; leave it out, or None there")
        for kind, key in self._lambdas.items():
            if key not in used and group[key] != 0:
                for rule in equation.rules:
                    if self._lambdas.get(rule.kind) == key and rule.name != "none":
                        raise ValueError(
                            f"{key}={group[key]} in {where} does nothing: the {rule.kind} {rule.name} has no λ; leave it "
                            f"out. A group that is not to decay has {rule.kind}=None in weightdecay.Optimizer"
                        )
                other = next((name for name in used if group[name] == 0), None)
                hint = f"; the λ of the {equation} is {other}" if other else ""
                raise ValueError(f"{key}={group[key]} in {where} does nothing without a {kind}: name one with {kind}=…{hint}")

    # The step -----------------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step on every parameter that has a gradient; a parameter whose `grad` is None stays, decay and all.

        A first step in which every lr and every gradient is zero makes the state and is not counted: torch's
        get_optimizer_state_dict does such a one before a run begins.

        Args:
            closure: recomputes the loss with its gradients and returns it.

        Returns:
            The closure's loss.

        Raises:
            RuntimeError: a gradient is sparse. No parameter has moved.
        """
        loss = None
        self._check_capture()
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not torch.compiler.is_compiling() and not self.state and self._is_asked_for_state():
            self._make_state()
            return loss
        differentiable = self.defaults["differentiable"]
        by_eager = differentiable or self.backend == "eager" or torch.compiler.is_compiling()
        with torch.set_grad_enabled(differentiable):
            scaling = _scaling(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
            if scaling is not None and (by_eager or not self._skips_on_device()):
                if scaling[0].item():
                    return loss
                factor, scaling = scaling[1].item(), None
            else:
                factor = 1.0
            if by_eager:
                self._step_with_eager(factor, differentiable)
            else:
                with self._one_at_a_time():
                    if not self._step_with_kernels(factor, scaling):
                        return loss
            asking = [(f"param_groups[{at}]", group) for at, group in enumerate(self.param_groups) if "lr_at_start" in group]
            if asking and not torch.compiler.is_compiling():
                hyperparameters.warn_above_peak(asking, type(self).__name__)
            for group in self.param_groups:
                hyperparameters.count(group)
        return loss

    def _is_asked_for_state(self) -> bool:
        """Return whether a first step makes the state and does no more: every lr and every gradient is zero.

        torch's get_optimizer_state_dict does such a one before a run begins. It can change no weight; counted, it would change
        what is made of the first gradients, and let a schedule of λ run ahead.
        """
        if _is_capturing():
            return False
        moving = [group for group in self.param_groups if any(param.grad is not None for param in group["params"])]
        grads = [param.grad for group in moving for param in group["params"] if param.grad is not None]
        return bool(moving) and all(_is_zero(group["lr"]) for group in moving) and all(map(_is_zero, grads))

    @torch.no_grad()
    def _make_state(self) -> None:
        """Give every parameter that has a gradient its state, as it is before the first step."""
        self._check_changes()
        self._check_tensors()
        for group in self.param_groups:
            self._init_group(group, [], [])

    def _one_at_a_time(self) -> AbstractContextManager[Any]:
        """Let one thread after the other do a step: tables and copies belong to the optimizer, not to the call.

        A child of `fork` has a lock of its own, since a thread that held the parent's is not there to let it go.
        """
        locks: dict[int, RLock] = self.__dict__.setdefault("_locks", {})
        return locks.setdefault(os.getpid(), RLock())

    def _check_capture(self) -> None:
        """Refuse to become part of a CUDA graph whose replays would all be the same step."""
        if not _is_capturing():
            return
        for index, group in enumerate(self.param_groups):
            if not group["capturable"]:
                raise RuntimeError(
                    f"param_groups[{index}] counts its steps on the host, and a CUDA graph would capture one of them: "
                    "make the optimizer with capturable=True"
                )
            if hyperparameters.counts(group):
                raise RuntimeError(
                    f"the λ of param_groups[{index}] follows a schedule that counts on the host, and a CUDA graph would "
                    "capture one value of it: give a tensor on the device, and fill it before each replay"
                )

    def _skips_on_device(self) -> bool:
        """Return whether the host need not know of a step in which GradScaler has found an overflow."""
        return all(
            group["capturable"] and not hyperparameters.counts(group) and (self.backend == "gpu" or param.device.type == "cuda")
            for group in self.param_groups
            for param in group["params"]
        )

    def _step_with_eager(self, factor: float, differentiable: bool) -> None:
        """Do the step with torch's operations, which autograd and compilers see."""
        if self.backend not in ("auto", "eager"):
            why = "under differentiable=True" if differentiable else "inside torch.compile"
            raise RuntimeError(
                f"backend={self.backend!r} writes where torch does not see it and cannot run {why}: use backend='auto'"
            )
        if not torch.compiler.is_compiling():
            self._check_changes()
            self._plan = None  # which would not hear of what has changed here
        self._check_tensors(by_torch=True)
        shared = eager.means(self._shares(self.ways(), factor, differentiable))
        first = 0
        for group in self.param_groups:
            self._step_group(group, first, factor, differentiable, shared)
            first += len(group["params"])

    def _step_with_kernels(self, factor: float, scaling: tuple[Tensor, Tensor] | None) -> bool:
        """Do the step with one kernel for all parameters of a kind, and what no kernel can do with torch's operations.

        Returns:
            False for a step that GradScaler skips, if the host knows of it.
        """
        untold = self._check_changes()
        plan, groups = self._plan, self.param_groups
        if (
            plan is None
            or plan.rules != REGISTRY.changes
            or not plan.holds(self.state, groups)
            or any(self.way(groups[index]) != plan.ways[index] for index in untold)
        ):
            self._plan = None
            self._check_tensors()
            plan = self._new_plan()
            self._plan = None if _is_capturing() else plan  # what is captured fills no table before the graph is replayed
            untold.update(range(len(groups)))
            if not plan.holds(self.state, groups):
                self._plan = None
                raise RuntimeError(
                    "parameters, gradients or state are never twice the same (does another thread replace them?): "
                    "use backend='eager'"
                )
            self._check_tensors(plan.left, by_torch=True)
        elif plan.by_torch:
            self._check_tensors(plan.by_torch, by_torch=plan.left)
        if scaling is not None and not plan.scale(*scaling):
            if scaling[0].item():
                return False
            factor = scaling[1].item()
        if factor != self._factor:
            self._factor = factor
            untold.update(range(len(groups)))
        for index in sorted(untold):
            group = groups[index]
            is_whole = plan.ways[index][0].direction.whole
            signed = -factor if group["maximize"] else factor
            plan.write_row(index, self.numbers(group, 0), 1.0 if is_whole else signed, group["seed"])
        untold.clear()  # only now: a step that was refused has told no kernel
        shared = eager.means([*self._shares(plan.ways, factor, left=plan.left), *plan.begin()])
        plan.run(self._direct, shared)
        first = 0
        for index, group in enumerate(groups):
            if index in plan.left:
                self._step_group(group, first, factor, differentiable=False, shared=shared, places=plan.left[index])
            first += len(group["params"])
        return True

    def _direct(self, entry: Entry) -> Tensor | None:
        """Return u of one parameter whose direction sees whole tensors, having written its moments."""
        if entry.param.grad is None:
            return None
        group = self.param_groups[entry.row]
        equation, _, rounding_ = self.way(group)
        numbers = self.numbers(group, _next_t(group, entry.state))
        return eager.direct(
            equation,
            eager.numbers_in(eager.compute_dtype(entry.param.dtype), numbers),
            entry.param,
            entry.param.grad,
            entry.state,
            kept=kept_for(entry.param.shape, equation.halves()[0].kept(numbers)),
            how=rounding.resolve(rounding_, entry.param.dtype),
            factor=-self._factor if group["maximize"] else self._factor,
        )

    def _new_plan(self) -> Plan:
        """Decide which backend steps which parameter, and give each that has a gradient its state."""
        entries: dict[int, tuple[Kernels, Signature, Entry]] = {}
        refused: dict[int, str] = {}
        waiting: list[Tensor] = []
        for index, place, number, param in self._every_param():
            refusal = self._refusal(index, param, self._state_of(param))
            if refusal is not None and param.grad is not None:
                self._refuse(index, place, refusal)
                refused[number] = refusal
        for group in self.param_groups:
            self._init_group(group, [], [])
        ways = self.ways()
        asked = _asked_of_all(ways)
        for index, _, number, param in self._every_param():
            state, backend = self._state_of(param), self._kernels(param.device)
            if number in refused or backend is None:
                continue
            if self._is_complete(index, param, state) and self._refusal(index, param, state) is None:
                entries[number] = (backend, *self._entry(backend, param, state, index, number, asked))
            elif param.grad is None:
                waiting.append(param)  # which has no state yet
            else:
                refused[number] = "its state is of a kind that no kernel knows"
        every = [(param, number) for *_, number, param in self._every_param() if number in entries or number in refused]
        written = [(tensor, k) for param, k in every for tensor in (param, *self._state_of(param).values())]
        grads = [(param.grad, number) for param, number in every if param.grad is not None]
        known = ([pair for pair in pairs if memory.has_address(pair[0])] for pairs in (written, grads))
        for number in memory.overlapping(*known) - refused.keys():
            index, place = next((i, p) for i, p, n, _ in self._every_param() if n == number)
            self._refuse(index, place, "it, its state or its gradient shares memory with a parameter or its state")
            refused[number] = ""
        kernels: dict[tuple[Kernels, Signature], list[Entry]] = {}
        halves: dict[tuple[Kernels, Signature], list[Entry]] = {}
        left: dict[int, list[int]] = {}
        for index, place, number, _ in self._every_param():
            if number in refused:
                left.setdefault(index, []).append(place)
            elif number in entries:
                backend, signature, entry = entries[number]
                is_whole = self.way(self.param_groups[index])[0].direction.whole
                (halves if is_whole else kernels).setdefault((backend, signature), []).append(entry)
        return Plan(self.state, self.param_groups, ways, REGISTRY.changes, kernels, halves, left, waiting)

    def _every_param(self) -> Iterator[tuple[int, int, int, Tensor]]:
        """Yield every parameter after its group, its place there and its place among all."""
        number = 0
        for index, group in enumerate(self.param_groups):
            for place, param in enumerate(group["params"]):
                yield index, place, number, param
                number += 1

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        """Return what is kept for a parameter: nothing where somebody has put something else there."""
        state = self.state.get(param, {})
        return state if isinstance(state, dict) else {}

    def _refusal(self, index: int, param: Tensor, state: Mapping[str, Any]) -> str | None:
        """Return why no kernel can step a parameter with its gradient and what it has of its state; None if one can."""
        group, backend = self.param_groups[index], self._kernels(param.device)
        if backend is None:
            return f"no kernel supports parameters on {param.device.type}"
        shapes = self._shapes(group, param)
        moments = [state[key] for key in shapes if key != "compensation" and isinstance(state.get(key), Tensor)]
        why = backend.refusal(param, param.grad, *moments)
        strange = (type(value).__name__ for value in state.values() if isinstance(value, Tensor) and memory.is_wrapper(value))
        kind = next(strange, None)
        if why is None and kind is not None:
            why = f"its state holds a {kind}, whose memory is not all there is to it"
        return _refusal_of_rules(self.equation(group)) if why is None else why

    def _is_complete(self, index: int, param: Tensor, state: Mapping[str, Any]) -> bool:
        """Return whether a state holds all that a kernel reads, in the dtypes in which it reads it."""
        group = self.param_groups[index]
        shapes, numbers = self._shapes(group, param), [each.key for each in self.way(group)[1] if not each.per_element]
        wanted = {key: (torch.int16 if key == "compensation" else None, shape) for key, shape in shapes.items()}
        for key, (dtype, shape) in {**wanted, **dict.fromkeys(numbers, (torch.float64, ()))}.items():
            value = state.get(key)
            if not isinstance(value, Tensor) or (value.dtype, value.shape) != (dtype or value.dtype, shape):
                return False
            if value.device != param.device or not memory.is_readable(value):
                return False
        step = state.get("step")
        return isinstance(step, Tensor) and _counts(step, group, param) and memory.is_readable(step)

    def _refuse(self, index: int, place: int, why: str) -> None:
        if self.backend != "auto":
            name = name_of(self.param_groups[index], index, place)
            raise ValueError(f"backend={self.backend!r} cannot step {name}: {why}; use backend='auto'")

    def _entry(
        self, backend: Kernels, param: Tensor, state: dict[str, Any], index: int, number: int, asked: Sequence[str]
    ) -> tuple[Signature, Entry]:
        """Return what a kernel needs to know of a parameter, and which kernel."""
        group = self.param_groups[index]
        equation, kept, how = self.way(group)
        resolved = rounding.resolve(how, param.dtype)
        grad = param.dtype if param.grad is None else param.grad.dtype
        if equation.direction.whole:  # torch makes u, and the kernel does the rest with u for a gradient
            grad, equation = eager.compute_dtype(param.dtype), equation.halves()[1]
            kept = tuple(each for each in kept if each in equation.decay.keeps)
        elements = [each for each in kept if each.per_element]
        moments = tuple(state[each.key].dtype for each in elements)
        shares = tuple(name for name in asked if equation.supplies(name))
        signature = backend.signature(
            param,
            group["capturable"],
            equation=equation,
            weight=param.dtype,
            grad=grad,
            kept=kept,
            moments=moments,
            how=resolved,
            shares=shares,
        )
        keys = [each.key for each in elements] + ["compensation"] * (resolved == "compensated")
        memory = (each.key for each in kept if not each.per_element)
        return signature, Entry(param, state, ("step", *keys, *memory), index, number)

    def way(self, group: Mapping[str, Any]) -> tuple[Equation, tuple[Kept, ...], str]:
        """Return what decides how a group is stepped: its equation, what its rules keep and the rounding."""
        equation = self.equation(group)
        lam = group[self._lambdas["penalty"]]
        if not isinstance(lam, Tensor) and lam == 0:
            equation = replace(equation, penalty=None)  # bit for bit: 0·w is not 0 for an infinite w
        return equation, equation.kept(self.numbers(group, 0)), group["rounding"]

    def ways(self) -> list[tuple[Equation, tuple[Kept, ...], str]]:
        """Return what decides how each group is stepped."""
        return [self.way(group) for group in self.param_groups]

    def _shares(
        self,
        ways: Sequence[tuple[Equation, Any, Any]],
        factor: float,
        differentiable: bool = False,
        left: Mapping[int, Container[int]] | None = None,
    ) -> Iterator[eager.Share]:
        """Yield what parameters, or those left to torch's operations, add to the numbers of all tensors that are asked for."""
        asked = _asked_of_all(ways)
        for index, group in enumerate(self.param_groups if asked else ()):
            equation, every, how = ways[index]
            names = [name for name in asked if equation.supplies(name)]
            places = None if left is None else left.get(index, ())
            for param, _, t, numbers in self._moving(group, places) if names and places != () else ():
                grad, kept = cast(Tensor, param.grad), kept_for(param.shape, every)
                numbers = eager.remembered(equation, numbers, self.state[param], kept)
                values = eager.operands(
                    equation,
                    param,
                    -grad if group["maximize"] else grad,
                    self.state[param],
                    kept,
                    rounding.resolve(how, param.dtype),
                    factor,
                    differentiable,
                )
                on_device = differentiable or isinstance(t, Tensor) or param.device.type != "cpu"
                for name in names:
                    total, count = eager.share(equation, name, numbers, values)
                    yield name, [total if on_device else total.item()], count

    def _moving(
        self, group: dict[str, Any], places: Container[int] | None = None
    ) -> Iterator[tuple[Tensor, int, Any, eager.Numbers]]:
        """Yield what has a gradient in a group, or at some places in it: the parameter, its place, its next t, its numbers."""
        params: list[Tensor] = []
        found: list[int] = []
        self._init_group(group, params, found)
        numbers: dict[Any, eager.Numbers] = {}
        for param, place in zip(params, found, strict=True):
            if places is not None and place not in places:
                continue
            t = _next_t(group, self.state[param])
            dtype = eager.compute_dtype(param.dtype)
            if (t, dtype) not in numbers:
                numbers[t, dtype] = eager.numbers_in(dtype, self.numbers(group, t))
            yield param, place, t, numbers[t, dtype]

    def _step_group(
        self,
        group: dict[str, Any],
        first: int,
        factor: float,
        differentiable: bool,
        shared: Mapping[str, Any],
        places: Container[int] | None = None,
    ) -> None:
        """Step a group, or what stands at some places in it, with torch's operations."""
        equation, kept, rounding_ = self.way(group)
        for param, place, t, numbers in self._moving(group, places):
            state = self.state[param]
            state["step"].fill_(t)
            how = rounding.resolve(rounding_, param.dtype)
            grad = cast(Tensor, param.grad)
            eager.update(
                equation,
                equation.with_shared(numbers, {name: eager.scalar(value, torch.float64) for name, value in shared.items()}),
                param,
                -grad if group["maximize"] else grad,
                state,
                kept=kept_for(param.shape, kept),
                how=how,
                key=rounding.keys(group["seed"], _drawn_from(state["step"], t), first + place)
                if how == "stochastic"
                else (0, 0),
                factor=factor,
                differentiable=differentiable,
            )

    def _init_group(self, group: dict[str, Any], params: list[Tensor], places: list[int]) -> None:
        """Collect the parameters that have a gradient, and give each its state before its first step."""
        numbers = self.numbers(group, 0)
        for place, param in enumerate(group["params"]):
            if param.grad is not None:
                params.append(param)
                places.append(place)
                self._init_state(group, param, numbers)
        for dtype in {param.dtype for param in params}:
            eager.prepare(self.equation(group), dtype)

    def _init_state(self, group: Mapping[str, Any], param: Tensor, numbers: Mapping[str, Mapping[str, Any]]) -> None:
        equation, state = self.equation(group), self.state[param]
        kept = kept_for(param.shape, equation.kept(numbers))
        step = state.get("step")
        device = param.device if group["capturable"] else torch.device("cpu")
        if step is None:
            if _is_capturing():
                raise RuntimeError(
                    "a parameter has no state yet, and a CUDA graph would start it anew at every replay: do one step before "
                    "the capture, in which every parameter has a gradient"
                )
            # torch's SGD counts no steps; a buffer that came with a checkpoint has seen at least one.
            started = any(state.get(each.key) is not None for each in kept if each.changes)
            state["step"] = torch.tensor(float(started), dtype=torch.float32, device=device)
        elif not (isinstance(step, Tensor) and step.dtype == torch.float32 and step.ndim == 0):
            state["step"] = torch.tensor(float(step), dtype=torch.float32, device=device)  # an old checkpoint's, or a user's
        elif step.device != device and not torch.compiler.is_compiling():
            state["step"] = step.to(device)  # capturable was set, or taken back
        for each in kept:
            value = state.get(each.key)
            if value is None:
                state[each.key] = eager.start(each, param, equation.asking(each, numbers), moment_dtype(param))
            elif not each.per_element and not group["differentiable"]:
                state[each.key] = _as_kept(value, torch.float64, param)  # it may be an old checkpoint's, or a user's
        if rounding.resolve(group["rounding"], param.dtype) == "compensated":
            value = state.get("compensation")
            state["compensation"] = (
                torch.zeros_like(param, dtype=torch.int16, memory_format=torch.preserve_format)
                if value is None
                else value.to(torch.int16)
            )

    def _shapes(self, group: Mapping[str, Any], param: Tensor) -> dict[str, tuple[int, ...]]:
        """Return the state's keys of all that a parameter keeps but numbers, with their shapes."""
        _, kept, how = self.way(group)
        return _shapes(kept, how, param)

    def _kept(self, group: Mapping[str, Any]) -> tuple[Kept, ...]:
        """Return what the group's rules keep, a penalty's with λ = 0 too: λ may change."""
        return self.equation(group).kept(self.numbers(group, 0))

    def _check_tensors(
        self, among: Mapping[int, Container[int]] | None = None, *, by_torch: bool | Mapping[int, Container[int]] = False
    ) -> None:
        """Refuse what no step can be taken with, while nothing has moved: of all parameters, or of those at places in groups.

        With `by_torch`, of all of them or by place, also what torch's operations would not write.
        """
        for index, group in enumerate(self.param_groups):
            places = None if among is None else among.get(index, ())
            written = by_torch if isinstance(by_torch, bool) else by_torch.get(index, ())
            equation, kept, how = self.way(group)
            numbers = [each.key for each in kept if not each.per_element]
            shapes: dict[Any, dict[str, tuple[int, ...]]] = {}
            for place, param in enumerate(group["params"]):
                if param.grad is None or (places is not None and place not in places):
                    continue
                name = name_of(group, index, place)
                if torch.compiler.is_compiling():  # memory is the compiler's affair
                    memory.refuse_sparse(name, param.grad)
                    continue
                state, kind = self.state.get(param, {}), (param.shape, param.dtype)
                if kind not in shapes:
                    shapes[kind] = _shapes(kept, how, param)
                memory.check(name, param, param.grad, state, shapes[kind], numbers, _counts_on(group, param))
                if written is True or (written is not False and place in written):
                    memory.check_written_by_torch(name, param, state)
            if equation.direction.whole:
                _refuse_shapes(equation.direction, group["params"], f"param_groups[{index}]")

    def _check_changes(self) -> set[int]:
        """Check every group again in which a value is another than at the last step, and return which no kernel knows yet.

        A tensor may have been filled anew: its group counts as changed, and the value is read where that takes no waiting.
        """
        seen: dict[int, dict[str, Any]] = self.__dict__.setdefault("_seen", {})
        untold: set[int] = self.__dict__.setdefault("_untold", set())
        for index, group in enumerate(self.param_groups):
            now = {key: _as_seen(value) for key, value in group.items() if key != "params"}
            before = seen.get(index)
            if before != now:
                where = f"param_groups[{index}]"
                keys = {key for key in {*now, *(before or ())} if before is None or before.get(key) != now.get(key)}
                if keys <= _SCHEDULED and before is not None and all(key in group and before.get(key, 0) != 0 for key in keys):
                    for key in keys:  # a schedule at work: every other check would find what it found before
                        group[key] = hyperparameters.check_number(key, group[key], where)
                    self._check_filled(group, where)
                else:
                    self._complete(group, where)
                seen[index] = {key: _as_seen(value) for key, value in group.items() if key != "params"}  # in one form now
                untold.add(index)
            elif self._check_filled(group, f"param_groups[{index}]") or hyperparameters.counts(group):
                untold.add(index)
        return untold

    def _check_filled(self, group: Mapping[str, Any], where: str) -> bool:
        """Refuse a tensor that was filled with what cannot be meant; return whether the group holds one that may be filled."""
        keys = [key for key, value in group.items() if holds_tensor(value)]
        if keys and not (group["capturable"] and self.backend == "gpu"):  # which reads no number back, in the interpreter too
            hyperparameters.check_filled(group, keys, self.equation(group), where)
        return bool(keys)


def _shapes(kept: Iterable[Kept], how: str, param: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the keys and shapes of the tensors in a parameter's state, single numbers aside."""
    shapes = {each.key: shape for each in kept if each.per_element and (shape := each.shape_of(param.shape)) is not None}
    return {**shapes, "compensation": param.shape} if rounding.resolve(how, param.dtype) == "compensated" else shapes


def _scaling(scale: Tensor | None, found_inf: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Return GradScaler's found_inf and the inverse of its scale, as it unscales by itself; None where there is neither."""
    known = scale if found_inf is None else found_inf
    if known is None:
        return None
    inverse = torch.ones_like(known) if scale is None else scale.double().reciprocal().float()
    return torch.zeros_like(known) if found_inf is None else found_inf, inverse


def _is_zero(value: Any) -> bool:
    """Return whether a number, or every element of a tensor, of a whole DTensor, is zero."""
    if not isinstance(value, Tensor):
        return isinstance(value, Real) and value == 0  # what is no number is refused later
    if value.layout != torch.strided or value.device.type == "meta":
        return False
    total = value.detach().abs().sum()
    return bool((total.full_tensor() if hasattr(total, "full_tensor") else total).item() == 0)


def _is_capturing() -> bool:
    """Return whether a CUDA graph is being captured."""
    if torch.compiler.is_compiling() or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    return torch.cuda.is_current_stream_capturing()


def _next_t(group: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """Return the number of a parameter's next step, where its group keeps it: as a tensor if it is capturable."""
    if group["capturable"]:
        return counting.following(state["step"])
    if torch.compiler.is_compiling():
        return counting.following(state["step"]).item()
    return counting.following_of_host(state["step"].item())


def _drawn_from(step: Tensor, t: Any) -> Any:
    """Return what random bits depend on of a count, without a look at a device where t is there."""
    if isinstance(t, Tensor) or torch.compiler.is_compiling():
        return counting.drawn_from(step)
    return counting.drawn_from_of_host(t)


def _counts(step: Tensor, group: Mapping[str, Any], param: Tensor) -> bool:
    """Return whether a step count is one that a kernel knows, and where this group keeps it."""
    return step.dtype == torch.float32 and step.ndim == 0 and step.device == _counts_on(group, param)


def _as_kept(value: Any, dtype: torch.dtype, param: Tensor) -> Tensor:
    """Return one number of a parameter as its state keeps it: as it is, or converted into a tensor of its own."""
    if isinstance(value, Tensor) and (memory.is_wrapper(value) or (value.dtype, value.shape) == (dtype, ())):
        return value.to(param.device)
    return torch.as_tensor(value, dtype=dtype, device=param.device).detach().reshape(()).clone()


def _counts_on(group: Mapping[str, Any], param: Tensor) -> torch.device:
    """Return where a group keeps the step count of a parameter."""
    return param.device if group["capturable"] else torch.device("cpu")


def _refusal_of_rules(equation: Equation) -> str | None:
    """Return why no kernel can do the second half of a step whose u torch makes; None if one can, or does all of it."""
    if equation.direction.whole and equation.decay.measures_gradient:
        return f"{equation.decay.name} measures the gradient, of which {equation.direction.name} hands on u"
    return None


def _asked_of_all(ways: Iterable[tuple[Equation, Any, Any]]) -> tuple[str, ...]:
    """Return the numbers of all tensors that the decay of any group asks for."""
    return tuple(dict.fromkeys(name for equation, *_ in ways for name in equation.decay.shared))


def _needs_peak(equation: Equation, group: Mapping[str, Any]) -> bool:
    return any("eta_max" in rule.numbers for rule in equation.rules) or hyperparameters.looks_at_lr(group)


def _refuse_unsteppable(params: Iterable[Any], where: str) -> None:
    """Refuse parameters that no step can be made of; a frozen one never has a gradient, and may be anything."""
    for place, entry in enumerate(params):
        name, param = entry if isinstance(entry, tuple) else (f"{where}['params'][{place}]", entry)
        if isinstance(param, Tensor) and param.requires_grad and (why := why_unsteppable(param)):
            raise ValueError(f"{name} is {why}")


def why_unsteppable(param: Tensor) -> str | None:
    """Return what a parameter is that no step can be made of; None for any other."""
    if param.dtype not in memory.WEIGHTS:
        return f"a {param.dtype} tensor: {memory.ONLY}"
    if param.layout in _SPARSE:
        return f"sparse ({param.layout}), and decay touches every weight: to_dense() it first"
    if memory.is_expanded(param):
        return "expanded: several of its elements share a place in memory; clone() it first"
    return None


def _refuse_shapes(direction: Rule, params: Iterable[Any], where: str) -> None:
    """Refuse tensors that a direction of whole tensors could not take, if it looks at their dimensions."""
    looks = direction.ndim is not None or any(kept.shape is not None for kept in direction.keeps)
    for place, entry in enumerate(params):
        name, param = (repr(entry[0]), entry[1]) if isinstance(entry, tuple) else (f"{where}['params'][{place}]", entry)
        if isinstance(param, Tensor) and not param.requires_grad and param.grad is None:
            continue  # which is frozen
        elsewhere = "give it to another optimizer, such as AdamW, or in weightdecay.Optimizer to a group with direction='adam'"
        if isinstance(param, Tensor) and param.is_complex() and looks:  # a pair of reals is one dimension more
            raise ValueError(f"{name} is complex, and the direction {direction.name} takes real tensors only: {elsewhere}")
        if isinstance(param, Tensor) and direction.ndim not in (None, param.ndim):
            raise ValueError(
                f"{name} has shape {tuple(param.shape)}, and the direction {direction.name} takes tensors of {direction.ndim} "
                f"dimensions only: {elsewhere}"
            )


_TOLD: set[str] = set()


def _warn_of_implementations() -> None:
    """Say once what torch's flags of implementations do here."""
    if "implementations" not in _TOLD:
        _TOLD.add("implementations")
        warn(
            "foreach=True and fused=True choose between implementations of torch's; here every step runs on the fastest "
            "backend that can do it, fused where there is a kernel, with or without them. All that fused=True changes is that "
            "torch.amp.GradScaler hands its scale to the step, so that gradients cannot be unscaled and clipped before it"
        )


def _as_seen(value: Any) -> Any:
    """Return what of a group's value is compared between steps: of a tensor, or whatever else it may be, which one it is."""
    if isinstance(value, tuple):
        return tuple(_as_seen(each) for each in value)
    if isinstance(value, dict):  # a schedule, whose step is another one every time
        return {key: each for key, each in value.items() if key != "step"}
    return value if value is None or isinstance(value, bool | int | float | str) else id(value)


def holds_tensor(value: Any) -> bool:
    """Return whether a value of a group is a tensor, or a tuple with one in it."""
    return isinstance(value, Tensor) or (isinstance(value, tuple) and any(isinstance(each, Tensor) for each in value))
