"""What moves under the cpu backend, which knows tensors by their addresses: every such change means what it means to torch."""

import concurrent.futures
import functools
import gc
import importlib
import pickle
import random
import subprocess
import sys
import threading
import weakref
import zlib

import pytest
import torch
from runs import name
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Linear, Parameter
from training import (
    BACKENDS,
    COMBINATIONS,
    EXACT,
    all_params,
    apart,
    bits,
    everything,
    noise,
    output,
    parameters,
    refused,
    set_gradients,
    train,
)

import weightdecay as wd
from weightdecay.backends import rounding

LAM = {"lr": 0.05, "weight_decay": 0.1}


# Changes between the steps ----------------------------------------------------------------------------------------------


def build(backend, **options):
    """Return an optimizer of parameters that lie in memory in every way, in two groups."""
    plain = {"matrix": (4, 3), "square": (3, 3), "one": (1,), "number": (), "empty": (0, 2), "long": (70,)}
    params = parameters(torch.float32, plain)
    params["transposed"] = Parameter(noise((3, 4), torch.float32, 20).t())
    params["strided"] = Parameter(noise((3, 8), torch.float32, 21)[:, ::2])
    others = {"low": Parameter(noise((33,), torch.bfloat16, 22)), "wide": Parameter(noise((5,), torch.float64, 23))}
    groups = [{"params": list(params.items())}, {"params": list(others.items()), "lr": 0.1}]
    return wd.Optimizer(groups, 0.05, **{**EXACT, **options}, backend=backend)


def history(backend, event, *, steps=6, **options):
    """Return all that an optimizer holds after each step; the event happens before it, when the gradients are there."""
    optimizer = build(backend, **options)
    named = dict(zip((n for g in optimizer.param_groups for n in g["param_names"]), all_params(optimizer), strict=True))
    seen = []
    for t in range(1, 1 + steps):
        set_gradients(optimizer, t)
        with torch.no_grad():
            event(optimizer, named, t)
        optimizer.step()
        seen.append(everything(optimizer))
    return seen


@functools.cache
def undisturbed():
    return history("eager", lambda *_: None)


CHANGES, KEEPS = {}, {}
"""What may happen between two steps, by name: what leads to other numbers, and what does not."""


def event(table, *steps):
    """Enter an event under its name, to happen at some steps or, without them, before each."""

    def enter(function):
        def happens(optimizer, named, t):
            if not steps:
                function(optimizer, named, t)
            elif t in steps:
                function(optimizer, named)

        table[function.__name__.replace("_", " ")] = happens
        return function

    return enter


@event(CHANGES)
def gradients_come_and_go(optimizer, named, t):
    for place, param in enumerate(named.values()):
        if (place + t) % 3 == 0:
            param.grad = None


@event(CHANGES, 1, 2, 3)
def some_gradients_come_late(optimizer, named):
    for key in ("square", "strided", "low"):
        named[key].grad = None


@event(CHANGES, 1, 3)
def no_gradient_at_all(optimizer, named):
    optimizer.zero_grad(set_to_none=True)


@event(KEEPS)
def gradients_are_kept_and_written_into(optimizer, named, t):
    kept = optimizer.__dict__.setdefault("kept", {})
    for key, param in named.items():
        param.grad = kept.setdefault(key, torch.empty_like(param.grad)).copy_(param.grad)


@event(KEEPS)
def gradients_lie_another_way_each_time(optimizer, named, t):
    for place, param in enumerate(named.values()):
        if param.ndim == 2 and (place + t) % 2:
            param.grad = param.grad.t().contiguous().t()


@event(KEEPS)
def gradients_lie_with_gaps_now_and_then(optimizer, named, t):
    for place, param in enumerate(named.values()):
        if param.ndim and (place + t) % 3 == 0:
            param.grad = param.grad.repeat_interleave(2, -1)[..., ::2]


@event(CHANGES)
def gradients_are_expanded_now_and_then(optimizer, named, t):
    for place, param in enumerate(named.values()):
        if (place + t) % 3 == 0:
            param.grad = torch.full((), 0.3, dtype=param.dtype).expand(param.shape)


@event(KEEPS)
def gradients_are_lazy_negatives_now_and_then(optimizer, named, t):
    for place, param in enumerate(named.values()):
        if (place + t) % 2:
            param.grad = torch._neg_view(-param.grad)


@event(KEEPS, 2, 5)
def a_contiguous_gradient_is_a_lazy_negative(optimizer, named):
    named["matrix"].grad = torch._neg_view(-named["matrix"].grad)


@event(KEEPS, 2, 5)
def a_gradient_is_a_parameter(optimizer, named):
    named["matrix"].grad = Parameter(named["matrix"].grad)


@event(CHANGES)
def a_kept_gradient_is_turned_in_place(optimizer, named, t):
    kept = optimizer.__dict__.setdefault("kept", named["square"].grad)
    named["square"].grad = kept
    if t == 3:
        kept.t_()


@event(CHANGES)
def a_kept_gradient_has_other_data(optimizer, named, t):
    kept = optimizer.__dict__.setdefault("kept", named["square"].grad)
    named["square"].grad = kept
    if t == 3:
        kept.data = torch.ones(3, 3)
    if t == 5:
        kept.data = noise((3, 3), torch.float32, 7).t()


@event(CHANGES, 3)
def a_gradient_is_the_weight_itself(optimizer, named):
    for key in ("matrix", "strided", "low"):
        named[key].grad = named[key].detach()


@event(KEEPS)
def two_parameters_share_a_gradient(optimizer, named, t):
    named["one"].grad = named["long"].grad[:1].clone()
    named["number"].grad = named["long"].grad[0]
    named["one"].grad = named["number"].grad.reshape(1)


@event(KEEPS, 3)
def the_data_of_weights_is_a_copy(optimizer, named):
    for param in named.values():
        param.data = param.data.clone()


@event(KEEPS, 2, 4)
def the_data_of_weights_lies_another_way(optimizer, named):
    for key in ("matrix", "square", "transposed", "strided"):
        named[key].data = named[key].data.t().contiguous().t()


@event(KEEPS, 3)
def the_data_of_weights_are_lazy_negatives(optimizer, named):
    for key in ("matrix", "transposed"):
        named[key].data = torch._neg_view(-named[key].data)


@event(CHANGES, 3)
def the_data_of_a_weight_is_turned_where_it_lies(optimizer, named):
    named["square"].data = named["square"].data.t()


@event(CHANGES, 3)
def a_weight_is_turned_in_place(optimizer, named):
    named["square"].t_()


@event(CHANGES, 2)
def the_data_of_weights_goes_to_a_flat_buffer(optimizer, named):
    flat = noise((200,), torch.float32, 9)
    for start, key in ((1, "matrix"), (20, "square"), (30, "one"), (40, "transposed")):
        named[key].data = flat[start : start + named[key].numel()].view(named[key].shape)


@event(CHANGES, 3)
def weights_become_float64(optimizer, named):
    for key in ("matrix", "transposed", "strided", "one"):
        grad = named[key].grad.double()
        named[key].grad = None
        named[key].data = named[key].data.double()
        named[key].grad = grad


@event(CHANGES, 3)
def weights_become_bfloat16(optimizer, named):
    for key in ("matrix", "long", "one"):
        grad = named[key].grad.bfloat16()
        named[key].grad = None
        named[key].data = named[key].data.bfloat16()
        named[key].grad = grad


@event(KEEPS, 3)
def weights_move_to_shared_memory(optimizer, named):
    for key in ("matrix", "strided", "low"):
        named[key].share_memory_()


@event(CHANGES, 2, 5)
def somebody_else_writes_into_the_weights(optimizer, named):
    for param in named.values():
        param.mul_(0.5)


@event(KEEPS)
def lazy_copies_of_weights_are_taken(optimizer, named, t):
    copies = optimizer.__dict__.setdefault("copies", [])
    for copy, was in copies:
        assert bits(copy) == was
    copies.extend((copy := torch._lazy_clone(p.detach()), bits(p)) for p in named.values() if p.is_contiguous())
    assert copy is not None


def momenta(optimizer):
    return [state for state in optimizer.state.values() if state.get("momentum_buffer") is not None]


@event(KEEPS, 3)
def moments_are_replaced_by_copies(optimizer, named):
    for state in momenta(optimizer):
        state["momentum_buffer"] = state["momentum_buffer"].clone()


@event(CHANGES, 3)
def moments_have_other_data(optimizer, named):
    for state in momenta(optimizer):
        state["momentum_buffer"].data = torch.ones_like(state["momentum_buffer"])


@event(KEEPS, 2, 4)
def moments_lie_another_way(optimizer, named):
    for state in momenta(optimizer):
        if state["momentum_buffer"].ndim == 2:
            state["momentum_buffer"] = state["momentum_buffer"].t().contiguous().t()


@event(CHANGES, 3)
def a_moment_is_turned_where_it_lies(optimizer, named):
    buffer = optimizer.state[named["square"]]["momentum_buffer"]
    buffer.data = buffer.data.t()


@event(CHANGES, 3)
def moments_become_float64(optimizer, named):
    for state in momenta(optimizer):
        state["momentum_buffer"] = state["momentum_buffer"].double()


@event(CHANGES, 3)
def the_moment_of_a_strided_weight_alone_becomes_float64(optimizer, named):
    state = optimizer.state[named["strided"]]
    state["momentum_buffer"] = state["momentum_buffer"].double()


@event(CHANGES, 3)
def moments_of_contiguous_weights_become_bfloat16(optimizer, named):
    for key in ("matrix", "one", "long"):
        optimizer.state[named[key]]["momentum_buffer"] = optimizer.state[named[key]]["momentum_buffer"].bfloat16()


@event(CHANGES, 4)
def moments_are_none_as_in_a_checkpoint_of_torchs(optimizer, named):
    for state in optimizer.state.values():
        state["momentum_buffer"] = None


@event(CHANGES, 4)
def a_moment_is_deleted(optimizer, named):
    del optimizer.state[named["matrix"]]["momentum_buffer"]


@event(CHANGES, 4)
def a_moment_of_a_strided_weight_is_deleted(optimizer, named):
    del optimizer.state[named["strided"]]["momentum_buffer"]


@event(CHANGES, 4)
def the_state_of_a_weight_is_emptied(optimizer, named):
    optimizer.state[named["matrix"]].clear()


@event(CHANGES, 4)
def the_state_of_a_weight_is_another_dictionary(optimizer, named):
    state = optimizer.state[named["matrix"]]
    optimizer.state[named["matrix"]] = {**state, "momentum_buffer": torch.ones(4, 3)}


@event(CHANGES, 4)
def the_state_is_emptied(optimizer, named):
    optimizer.state.clear()


@event(CHANGES, 4)
def the_state_of_a_weight_is_dropped(optimizer, named):
    del optimizer.state[named["low"]]


@event(CHANGES, 3)
def the_step_count_is_set(optimizer, named):
    for key in ("matrix", "strided", "low"):
        optimizer.state[named[key]]["step"].fill_(0.0)


@event(CHANGES, 3)
def the_step_count_is_a_number(optimizer, named):
    for key in ("matrix", "strided"):
        optimizer.state[named[key]]["step"] = 7


@event(CHANGES, 3)
def the_step_count_is_an_integer_tensor(optimizer, named):
    for key in ("matrix", "strided"):
        optimizer.state[named[key]]["step"] = torch.tensor(7)


@event(CHANGES, 3)
def the_step_count_is_a_float64(optimizer, named):
    for key in ("matrix", "strided"):
        optimizer.state[named[key]]["step"] = torch.tensor(7.0, dtype=torch.float64)


@event(CHANGES, 3)
def a_group_joins(optimizer, named):
    late = Parameter(noise((6, 2), torch.float32, 30))
    late.grad = noise((6, 2), torch.float32, 31)
    optimizer.add_param_group({"params": [("late", late)], "lr": 0.2, "decay": "decoupled"})


@event(CHANGES, 3)
def a_parameter_leaves_its_group(optimizer, named):
    del optimizer.param_groups[0]["params"][1]
    del optimizer.param_groups[0]["param_names"][1]
    del optimizer.state[named["square"]]  # or torch's state_dict does not know whose it is


@event(CHANGES, 3)
def a_parameter_joins_a_group(optimizer, named):
    late = Parameter(noise((6, 2), torch.float32, 30))
    late.grad = noise((6, 2), torch.float32, 31)
    optimizer.param_groups[0]["params"].append(late)
    optimizer.param_groups[0]["param_names"].append("late")


@event(CHANGES, 3)
def groups_change_places(optimizer, named):
    optimizer.param_groups.reverse()


@event(CHANGES, 3)
def a_parameter_is_replaced(optimizer, named):
    fresh = Parameter(noise((4, 3), torch.float32, 30))
    fresh.grad = noise((4, 3), torch.float32, 31)
    optimizer.param_groups[0]["params"][0] = fresh
    del optimizer.state[named["matrix"]]


def sets(steps, **values):
    """Return an event that writes values into the first group and, at other steps, writes back what was there."""

    def write(optimizer, named, t):
        group = optimizer.param_groups[0]
        before = optimizer.__dict__.setdefault("before", {key: group[key] for key in values})
        group.update(values if t in steps else before)

    return write


CHANGES |= {
    "a learning rate changes": sets((2, 5), lr=0.2),
    "a learning rate of zero": sets((3, 4), lr=0.0),
    "a learning rate becomes a tensor": sets((3, 4), lr=torch.tensor(0.2)),
    "a decay changes": sets((3, 4), weight_decay=0.9),
    "a decay of zero": sets((3, 4), weight_decay=0.0),
    "a penalty changes": sets((3, 4), penalty_weight=0.9),
    "a penalty of zero": sets((3, 4), penalty_weight=0.0),
    "a momentum changes": sets((3, 4), momentum=0.5),
    "a momentum of zero": sets((3, 4), momentum=0.0),
    "a momentum becomes a tensor": sets((3, 4), momentum=torch.tensor(0.5)),
    "a look-ahead": sets((3, 4), nesterov=True),
    "a dampening": sets((3, 4), dampening=0.5),
    "an ascent": sets((3, 4), maximize=True),
    "another decay": sets((3, 4), decay="decoupled"),
    "another direction": sets((3, 4), direction="sgd", penalty="l1"),
}


@event(CHANGES)
def a_learning_rate_changes_at_every_step(optimizer, named, t):
    for group in optimizer.param_groups:
        group["lr"] = 0.1 / t


@event(CHANGES, 3, 5)
def the_low_precision_group_is_rounded_otherwise(optimizer, named):
    group = optimizer.param_groups[1]
    group["rounding"] = "compensated" if group["rounding"] == "auto" else "nearest"


@event(CHANGES, 3)
def the_low_precision_group_has_another_seed(optimizer, named):
    optimizer.param_groups[1]["seed"] = 5


@event(CHANGES, 3)
def a_seed_is_a_whole_float(optimizer, named):
    for group in optimizer.param_groups[:1]:
        group["seed"] = 5.0
        group["lr"] = 0.2


@event(CHANGES, 2)
def a_change_beside_one_that_is_refused(optimizer, named):
    """The step that fails must not have forgotten what it saw in the other group."""
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.param_groups[1]["lr"] = -1.0
    with refused(ValueError, "lr=-1.0", unchanged=optimizer):
        optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.1


@event(CHANGES, 2)
def a_change_in_a_step_whose_gradient_is_refused(optimizer, named):
    grad = named["matrix"].grad
    optimizer.param_groups[0]["lr"] = 0.2
    named["matrix"].grad = grad.to_sparse()
    with refused(RuntimeError, "sparse", "'matrix'", unchanged=optimizer):
        optimizer.step()
    named["matrix"].grad = grad


@event(CHANGES, 3)
def a_sparse_gradient_of_a_weight_that_is_not_contiguous(optimizer, named):
    grad = named["strided"].grad
    named["strided"].grad = grad.to_sparse()
    with refused(RuntimeError, "sparse", "'strided'", unchanged=optimizer):
        optimizer.step()
    named["strided"].grad = None


@pytest.mark.parametrize("what", CHANGES)
def test_after_a_change_the_backends_go_on_alike(what):
    happens = CHANGES[what]
    expected = history("eager", happens)
    assert expected != undisturbed()
    assert_same(history("cpu", happens), expected)


@pytest.mark.parametrize("what", KEEPS)
def test_what_changes_no_number_changes_no_bit(what):
    happens = KEEPS[what]
    assert_same(history("cpu", happens), history("eager", happens))


def assert_same(got, expected):
    """Compare histories without printing them: they are long."""
    wrong = [t for t, (some, others) in enumerate(zip(got, expected, strict=True), 1) if some != others]
    assert not wrong, f"from step {wrong[0]} on"


@pytest.mark.parametrize("key", ["lr", "weight_decay", "penalty_weight", "momentum"])
def test_a_tensor_among_the_numbers_may_be_filled_in_place(key):
    def trained(backend):
        number = torch.tensor({**EXACT, "lr": 0.05}[key], dtype=torch.float64)
        optimizer = wd.Optimizer(parameters(torch.float64).values(), **{**EXACT, "lr": 0.05, key: number}, backend=backend)
        seen = []
        for t in range(1, 7):
            train(optimizer, 1, first=t)
            number.mul_(0.5)
            seen.append(bits(all_params(optimizer)))
        return seen

    assert_same(trained("cpu"), trained("eager"))


def test_tensors_among_the_betas_may_be_filled_in_place():
    def trained(backend, factor):
        betas = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.95, dtype=torch.float64)
        optimizer = wd.AdamW(parameters().values(), lr=0.05, betas=betas, backend=backend)
        for t in range(1, 7):
            train(optimizer, 1, first=t)
            betas[0].mul_(factor)
        return optimizer

    ours, theirs, without = trained("cpu", 0.5), trained("eager", 0.5), trained("eager", 1.0)
    assert apart(without, theirs) >= 1e-3
    assert apart(ours, theirs) <= 1e-12


def test_the_betas_of_a_group_may_change():
    def trained(backend, betas):
        optimizer = wd.AdamW(parameters().values(), lr=0.05, backend=backend)
        for t in range(1, 7):
            optimizer.param_groups[0]["betas"] = betas if t % 2 else (0.9, 0.999)
            train(optimizer, 1, first=t)
        return optimizer

    ours, theirs, without = trained("cpu", (0.5, 0.9)), trained("eager", (0.5, 0.9)), trained("eager", (0.9, 0.999))
    assert apart(without, theirs) >= 1e-3
    assert apart(ours, theirs) <= 1e-12


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch gives a gradient its parameter's dtype")
def test_gradients_of_another_dtype_than_the_last_are_read_as_they_are():
    """grad_dtype lets a gradient be float32 at one step and bfloat16 at the next."""

    def trained(backend):
        params = [Parameter(noise((4, 3), torch.float32, 1)), Parameter(noise((3, 4), torch.float32, 2).t())]
        optimizer = wd.Optimizer(params, 0.05, **EXACT, backend=backend)
        for t, dtype in enumerate((torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32)):
            for param in params:
                param.grad = None
                param.grad_dtype = dtype
                param.grad = noise(param.shape, dtype, 10 + t)
            optimizer.step()
        return everything(optimizer)

    assert trained("cpu") == trained("eager")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_hundreds_of_small_parameters_some_of_which_wait(dtype):
    """Each at its place in the table, whoever has a gradient."""

    def trained(backend):
        params = [Parameter(noise((place % 40 + 1,), dtype, place)) for place in range(300)]
        optimizer = wd.Optimizer(params, 0.05, **EXACT, backend=backend)
        for t in range(5):
            for place, param in enumerate(params):
                param.grad = None if (place * 7 + t) % 5 == 0 else noise(param.shape, dtype, 1000 * t + place)
            optimizer.step()
        return everything(optimizer)

    assert trained("cpu") == trained("eager")


# What does not fit is refused: a kernel would write where it should not -------------------------------------------------


def test_a_moment_of_another_size_is_refused():
    """A view of a longer tensor, so that what a kernel writes behind its end is seen and does no harm."""
    for layout in (lambda w: w, lambda w: w.repeat_interleave(2, -1)[..., ::2]):
        param = Parameter(layout(noise((6,), torch.float32, 1)))
        optimizer = wd.Optimizer([param], 0.05, **EXACT, backend="cpu")
        train(optimizer, 1)
        longer = torch.arange(8.0)
        optimizer.state[param]["momentum_buffer"] = longer[:2]
        set_gradients(optimizer, 2)
        with pytest.raises((RuntimeError, ValueError)):
            optimizer.step()
        assert longer.tolist() == list(range(8))


def test_a_gradient_without_memory_is_left_to_torchs_operations():
    """A zero of torch's own, which has no elements to read and still means a step."""

    def trained(backend):
        optimizer = build(backend)
        for t in range(1, 5):
            set_gradients(optimizer, t)
            if t in (1, 3):
                for key in (0, 3):
                    all_params(optimizer)[key].grad = torch._efficientzerotensor(all_params(optimizer)[key].shape)
            optimizer.step()
        return everything(optimizer)

    assert trained("auto") == trained("eager")
    with refused(ValueError, "backend='cpu'", "backend='auto'", "'matrix'", "memory"):
        trained("cpu")


def test_a_weight_that_became_shorter_than_its_gradient_is_refused():
    longer = noise((6,), torch.float32, 1)
    param = Parameter(longer)
    optimizer = wd.SGDW([param], **LAM, backend="cpu")
    train(optimizer, 1)
    before = bits(longer)
    param.data = longer[:3]
    with pytest.raises((RuntimeError, ValueError)):
        optimizer.step()
    assert bits(longer) == before


def with_state(backend):
    """Return an optimizer that has stepped and keeps all kinds of state, with a contiguous and a strided parameter by name.

    A number per tensor, an int16 compensation and two moments: each in the state of both parameters.
    """
    params = {"plain": noise((6,), torch.bfloat16, 1), "strided": noise((3, 4), torch.bfloat16, 2)[:, ::2]}
    params = {key: Parameter(value) for key, value in params.items()}
    rules = {"direction": "nadam", "decay": "constrained"}
    given = {"lr": 0.05, "rounding": "compensated"}
    optimizer = wd.Optimizer(list(params.items()), **rules, **given, backend=backend)
    train(optimizer, 1)
    return optimizer, params


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("which", ["plain", "strided"])
@pytest.mark.parametrize("key", ["mu_product", "multiplier"])
def test_a_number_of_a_tensor_may_come_in_any_form_and_stays_in_its_place(key, which, backend):
    """A kernel reads and writes it as a float64: it must be one."""

    def trained(change):
        optimizer, params = with_state(backend)
        state = optimizer.state[params[which]]
        state[key] = state[key].float().double()  # so that nothing is lost below
        beside = torch.full((4,), 7.0)
        state[key], kept = change(state[key], beside), beside.clone()
        train(optimizer, 2, first=2)
        assert beside.tolist() == kept.tolist()
        return everything(optimizer)

    def put(value, beside):
        beside[1] = value
        return beside[1]

    expected = trained(lambda value, _: value)
    for change in (
        put,
        lambda value, _: value.float(),
        lambda value, _: value.item(),
        lambda value, _: value.reshape(1, 1),
        lambda value, _: Parameter(value),
    ):
        assert trained(change) == expected


class Strange(torch.Tensor):
    """A tensor whose class says what operations do."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return "Strange"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return NotImplemented


def freed(tensor):
    tensor = tensor.clone() if tensor.numel() == tensor.untyped_storage().nbytes() // tensor.itemsize else tensor
    tensor.untyped_storage().resize_(0)
    return tensor


def shrunk(tensor):
    """A tensor at the end of a storage that was cut in half after it was freed, and may lie where it lay."""
    whole = torch.cat([tensor.reshape(-1), tensor.reshape(-1)])[tensor.numel() :].view(tensor.shape)
    size = whole.untyped_storage().nbytes()
    whole.untyped_storage().resize_(0)
    whole.untyped_storage().resize_(size // 2)
    return whole


IMPOSSIBLE = {
    "a word": lambda value: "3x",
    "a list": lambda value: [1.0, 2.0],
    "on meta": lambda value: value.to("meta"),
    "of no elements": lambda value: value.new_empty(0),
    "longer": lambda value: value.new_ones(40),
    "complex": lambda value: value.to(torch.complex64),
    "a wrapper": lambda value: Strange(value),
    "a zero": lambda value: torch._efficientzerotensor(value.shape, dtype=value.dtype),
    "freed": freed,
}
OF_MOMENTS = {
    "a number": lambda value: 0.5,
    "whole numbers": lambda value: value.to(torch.int64),
    "of another shape": lambda value: value.reshape(-1, 1, 1),
    "expanded": lambda value: value.new_ones(()).expand(value.shape),
    "sparse": lambda value: value.to_sparse(),
    "shrunk": shrunk,
}


@pytest.mark.parametrize("backend", ["auto", "cpu", "eager"])
@pytest.mark.parametrize("what", [*IMPOSSIBLE, *OF_MOMENTS])
@pytest.mark.parametrize("key", ["step", "mu_product", "multiplier", "exp_avg", "exp_avg_sq", "compensation"])
def test_a_state_that_cannot_be_is_refused_by_name_before_anything_moves(key, what, backend):
    change = {**IMPOSSIBLE, **(OF_MOMENTS if key in ("exp_avg", "exp_avg_sq", "compensation") else {})}.get(what)
    if change is None or (key == "compensation" and what == "whole numbers"):
        pytest.skip("not of this key")
    for which in ("plain", "strided"):
        optimizer, params = with_state(backend)
        set_gradients(optimizer, 2)
        optimizer.state[params[which]][key] = change(optimizer.state[params[which]][key])
        before = bits(list(params.values()))
        with pytest.raises((ValueError, RuntimeError), match=f"the {key} of '{which}'"):
            optimizer.step()
        assert bits(list(params.values())) == before


TENSORS = {
    "the weight's storage is freed": lambda param: param.untyped_storage().resize_(0),
    "the gradient's storage is freed": lambda param: param.grad.untyped_storage().resize_(0),
    "the gradient's storage is cut": lambda param: setattr(param, "grad", shrunk(param.grad)),
    "the weight is of whole numbers": lambda param: setattr(param.requires_grad_(False), "data", param.to(torch.int16)),
    "the weight is a wrapper's": lambda param: setattr(param, "data", Strange(param.detach())),
    "the weight is a zero": lambda param: setattr(param, "data", torch._efficientzerotensor(param.shape, dtype=param.dtype)),
    "the weight is expanded": lambda param: setattr(param, "data", param.new_ones(()).expand(param.shape)),
    "the weight has another shape": lambda param: setattr(param, "data", param.detach().reshape(-1, 1, 1)),
    "the gradient has another shape": lambda param: setattr(param.grad, "data", param.grad.reshape(-1, 1, 1)),
}


@pytest.mark.parametrize("backend", ["auto", "cpu", "eager"])
@pytest.mark.parametrize("what", TENSORS)
def test_a_weight_or_gradient_that_cannot_be_is_refused_by_name_before_anything_moves(what, backend):
    for which in ("plain", "strided"):
        optimizer, params = with_state(backend)
        set_gradients(optimizer, 2)
        TENSORS[what](params[which])
        others = [param for name, param in params.items() if name != which]
        before = bits(others)
        with pytest.raises((ValueError, RuntimeError), match=f"'{which}'"):
            optimizer.step()
        assert bits(others) == before


def broken(value, draw):
    """Return a tensor that is another in one of many ways, and what was done; the old one may be changed where it stands."""
    ways = {
        **IMPOSSIBLE,
        **OF_MOMENTS,
        "None": lambda value: None,
        "float16": lambda value: value.half(),
        "bfloat16": lambda value: value.bfloat16(),
        "float32": lambda value: value.float(),
        "float64": lambda value: value.double(),
        "int16": lambda value: value.to(torch.int16),
        "bool": lambda value: value.bool(),
        "transposed": lambda value: value.mT if value.ndim > 1 else value,
        "a copy with gaps": lambda value: value.repeat_interleave(2, -1)[..., ::2] if value.ndim else value,
        "a part": lambda value: value[:1] if value.ndim else value.reshape(1)[:0],
        "negated": torch._neg_view,
        "a parameter": lambda value: Parameter(value, requires_grad=False),
        "resized where it stands": lambda value: value.resize_(2),
        "freed where it stands": lambda value: (value.untyped_storage().resize_(0), value)[1],
        "shrunk where it stands": lambda value: (value.untyped_storage().resize_(value.untyped_storage().nbytes() // 2), value)[
            1
        ],
        "other data where it stands": lambda value: (setattr(value, "data", value.new_ones(3)), value)[1],
    }
    way = draw(list(ways))
    return ways[way](value), way


def fuzz(seed, cases):
    """Break one tensor of an optimizer that has stepped, and step again: by all kinds of optimizers, all kinds of breaks."""
    draws = random.Random(seed)
    made = {"compensated": torch.bfloat16, "stochastic": torch.bfloat16, "nearest": torch.float32}
    presets = [wd.AdamW, wd.NAdam, wd.AdamH, wd.AdamCPR]
    stepped, refusals, nameless = 0, 0, []
    for case in range(cases):
        preset, rounding_ = presets[case % 4], draws.choice(list(made))
        dtype = made[rounding_]
        params = {
            "plain": noise((6, 5), dtype, 1),
            "strided": noise((6, 10), dtype, 2)[:, ::2],
            "laid": noise((5, 6), dtype, 3).t(),
        }
        params = {key: Parameter(value) for key, value in params.items()}
        optimizer = preset(list(params.items()), lr=0.01, rounding=rounding_, backend=draws.choice(["auto", "auto", "cpu"]))
        train(optimizer, 2)
        set_gradients(optimizer, 3)
        which = draws.choice(list(params))
        param, state = params[which], optimizer.state[params[which]]
        what = draws.choice(["weight", "gradient", *state, *state])
        try:
            with torch.no_grad():
                if what == "weight":
                    value, way = broken(param.data, draws.choice)
                    param.data = value
                elif what == "gradient":
                    value, way = broken(param.grad, draws.choice)
                    param.grad = value
                else:
                    state[what], way = broken(state[what], draws.choice)
        except (TypeError, RuntimeError, AttributeError, IndexError):  # there is no such tensor, or torch takes none
            continue
        if (what, way) == ("gradient", "a wrapper"):  # whose class says in its own words that it can do nothing
            continue
        described = f"{preset.__name__} {rounding_} {optimizer.backend}: the {what} of {which} is {way}"
        print(described, flush=True)  # the last of these lines is what has ended the process
        try:
            for _ in range(2):
                optimizer.step()
            stepped += 1
        except Exception as error:
            refusals += 1
            if not (isinstance(error, ValueError | RuntimeError) and f"'{which}'" in str(error)):
                nameless.append(f"{described}: {error!r}")
    return stepped, refusals, nameless


FUZZ = """
import test_cpu_memory as tests
stepped, refusals, nameless = tests.fuzz({seed}, 250)
assert min(stepped, refusals) > 50, (stepped, refusals)
print("without the parameter's name:", nameless)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_becomes_of_a_tensor_a_step_is_done_or_refused_by_name(seed):
    """In a process of its own, which a signal would end."""
    assert (
        output(FUZZ.format(seed=seed), timeout=120, MALLOC_PERTURB_="165").splitlines()[-1]
        == "without the parameter's name: []"
    )


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_moment_that_was_resized_where_it_stands_is_refused(backend):
    for which in ("plain", "strided"):
        optimizer, params = with_state(backend)
        set_gradients(optimizer, 2)
        optimizer.state[params[which]]["exp_avg"].resize_(2)
        with refused(ValueError, "the exp_avg of", which, unchanged=optimizer):
            optimizer.step()


@pytest.mark.parametrize("layout", ["plain", "transposed"])
def test_a_model_that_moves_is_refused_without_its_state(layout):
    """The same object is then a tensor of another device."""
    for backend in BACKENDS:
        param = Parameter(noise((3, 4), torch.float32, 1).t() if layout == "transposed" else noise((3, 4), torch.float32, 1))
        optimizer = wd.AdamW([("weight", param)], lr=0.1, backend=backend)
        train(optimizer, 1)
        moved = Parameter(param.detach().to("meta"))
        moved.grad = torch.empty_like(moved)
        torch.utils.swap_tensors(param, moved)
        with pytest.raises(ValueError, match="'weight' is on cpu, and the parameter is on meta"):
            optimizer.step()


@pytest.mark.parametrize(
    "views",
    [
        lambda w: (w[:4], w[0:8:2]),
        lambda w: (w[0:8:2], w[1:8:2]),
        lambda w: (w[0:8:2], w[2:8:2]),
        lambda w: (w.view(4, 4)[:, :2], w.view(4, 4)[:, 2:]),
        lambda w: (w.view(4, 4)[:, :3], w.view(4, 4)[:, 2:]),
        lambda w: (w.view(4, 4).t()[1:3], w.view(4, 4)[1:3]),
    ],
)
def test_parameters_that_lie_between_each_other_are_stepped_one_after_the_other_where_they_meet(views):
    def trained(backend):
        w = torch.ones(16)
        params = [Parameter(view) for view in views(w)]
        optimizer = wd.SGDW(params, lr=0.1, momentum=0.0, backend=backend)
        for _ in range(3):
            for param in params:
                param.grad = torch.ones(param.shape)
            optimizer.step()
        return w.tolist()

    assert trained("auto") == trained("eager")


def test_slices_of_one_tensor_that_share_no_place_are_the_kernels():
    w = torch.ones(16)
    for views in ((w[0:8:2], w[1:8:2]), (w.view(4, 4)[:, :2], w.view(4, 4)[:, 2:]), (w[:4], w[4:])):
        train(wd.SGDW([Parameter(view) for view in views], lr=0.1, backend="cpu"), 2)
    with pytest.raises(ValueError, match="shares memory"):
        train(wd.SGDW([Parameter(w[:4]), Parameter(w[0:8:2])], lr=0.1, backend="cpu"), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_a_gradient_may_be_a_view_of_weights(dtype):
    """Shifted, of another parameter, or upon its own weight: each is read before, or after, what eager would have written."""

    def trained(backend):
        flat = noise((30_000,), dtype, 3)
        params = [Parameter(flat[:10_000]), Parameter(noise((10_000,), dtype, 4))]
        optimizer = wd.SGDW(params, lr=0.1, momentum=0.0, backend=backend)
        for grads in (
            (noise((10_000,), dtype, 5), noise((10_000,), dtype, 6)),
            (flat[1:10_001], noise((10_000,), dtype, 7)),
            (params[0].detach(), flat[:10_000]),
            (flat[20_000:], flat[10_000:20_000]),
        ):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizer.step()
        return params

    for ours, theirs in zip(trained("auto"), trained("eager"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_penalty_keeps_its_reference_beside_a_decay_that_has_the_same():
    """For a direction of whole tensors, whose two halves are stepped by two backends."""

    def trained(backend):
        w = Parameter(torch.full((4, 4), 3.0, dtype=torch.float64))
        rules = {"direction": "muon", "penalty": "l2_sp", "penalty_weight": 100.0, "decay": "toward", "weight_decay": 0.1}
        optimizer = wd.Optimizer([w], 0.1, **rules, backend=backend)
        for _ in range(3):
            w.grad = torch.eye(4, dtype=torch.float64)
            optimizer.step()
        return w.detach()

    assert (trained("cpu") - trained("eager")).abs().max() <= 1e-12
    assert (trained("eager") - 3.0).abs().max() <= 0.5  # L2 without its reference would have pulled from 3 towards 0


# Backends and checkpoints ------------------------------------------------------------------------------------------------

combinations = pytest.mark.parametrize("rules", COMBINATIONS.values(), ids=COMBINATIONS)


def form(state_dict):
    """Return a state_dict without its numbers: keys, dtypes, shapes."""
    entries = state_dict["state"].items()
    return {key: {name: (v.dtype, v.shape, v.stride()) for name, v in entry.items()} for key, entry in entries}


@combinations
def test_a_run_may_switch_backends_between_its_steps(rules):
    def trained(backends):
        optimizer = wd.Optimizer(parameters().values(), **LAM, **rules)
        for t, backend in enumerate(backends, 1):
            optimizer.backend = backend
            optimizer.param_groups[0]["lr"] = 0.05 / t  # which a backend must hear of that was not at work
            train(optimizer, 1, first=t)
        return optimizer

    switching, steady = trained(["cpu", "cpu", "eager", "eager", "cpu", "auto", "eager", "cpu"]), trained(["eager"] * 8)
    assert apart(switching, steady) <= 1e-12


@pytest.mark.parametrize(("dtype", "how"), [(torch.float64, "nearest"), (torch.bfloat16, "compensated")], ids=str)
@pytest.mark.parametrize(("saver", "loader"), [("cpu", "eager"), ("eager", "cpu"), ("cpu", "cpu")])
@combinations
def test_a_checkpoint_of_one_backend_goes_on_in_another(rules, saver, loader, dtype, how):
    def fresh(backend):
        params = parameters(dtype)
        params["laid"] = Parameter(noise((4, 3), dtype, 9).t())
        return wd.Optimizer(params.values(), **LAM, **rules, rounding=how, backend=backend)

    saved, loaded, steady = fresh(saver), fresh(loader), fresh("eager")
    train(saved, 3)
    train(steady, 3)
    assert form(saved.state_dict()) == form(steady.state_dict())
    train(loaded, 1)  # its own tables stand, and must not outlive the load
    loaded.load_state_dict(saved.state_dict())
    with torch.no_grad():
        for param, source in zip(all_params(loaded), all_params(saved), strict=True):
            param.copy_(source)
    train(loaded, 3, first=4)
    train(steady, 3, first=4)
    assert form(loaded.state_dict()) == form(steady.state_dict())
    restored = [
        [rounding.restored(p.detach(), o.state[p]["compensation"]) if how == "compensated" else p for p in all_params(o)]
        for o in (loaded, steady)
    ]
    pairs = zip(*restored, strict=True)
    assert all((a - b).abs().max() <= (1e-12 if dtype == torch.float64 else 1e-5) * b.abs().max() for a, b in pairs)


def test_an_optimizer_that_has_stepped_can_be_pickled_and_goes_on():
    optimizer = build("cpu")
    train(optimizer, 2)
    twin = pickle.loads(pickle.dumps(optimizer))
    assert twin.backend == "cpu"
    train(twin, 2, first=3)
    train(optimizer, 2, first=3)
    assert everything(twin) == everything(optimizer)


# Memory that is given back, and what autograd is told -------------------------------------------------------------------


def whole(g, m, *, t):
    m = 0.5 * m + g
    return m / m.norm(), m


@pytest.fixture(params=["plain", "whole"])
def direction(request, own_registry):
    """Return a direction of elements, and one of whole tensors."""
    if request.param == "plain":
        return {"direction": "adam"}
    return {"direction": wd.direction(source="a test of this package", whole=True, state={"m": "exp_avg"})(whole)}


def various(direction, **options):
    """Return an optimizer of parameters that lie in all ways, one of them complex and so left to torch's operations."""
    params = [*all_params(build("eager")), Parameter(noise((3,), torch.complex64, 1))]
    return wd.Optimizer(params, **LAM, decay="decoupled", **direction, **options)


@pytest.mark.parametrize("steps", [1, 3])
def test_no_gradient_outlives_zero_grad(direction, steps):
    """Not until the next step either: that is when the next backward pass wants the memory."""
    optimizer = various(direction)
    train(optimizer, steps)
    grads = [weakref.ref(param.grad) for param in all_params(optimizer)]
    storages = [StorageWeakRef(param.grad.untyped_storage()) for param in all_params(optimizer)]
    optimizer.zero_grad(set_to_none=True)
    assert [grad() for grad in grads] == [None] * len(grads)
    assert all(storage.expired() for storage in storages)


def test_a_deleted_optimizer_gives_its_memory_back(direction):
    optimizer = various(direction)
    train(optimizer, 2)
    kept = [value for state in optimizer.state.values() for value in state.values()] + all_params(optimizer)
    tensors = [weakref.ref(tensor) for tensor in kept]
    storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in kept]
    assert len(kept) > 20
    del optimizer, kept
    gc.collect()
    assert [tensor() for tensor in tensors] == [None] * len(tensors)
    assert all(storage.expired() for storage in storages)


def test_a_state_that_was_replaced_is_given_back_at_the_next_step(direction):
    optimizer = various(direction)
    train(optimizer, 2)
    storages = [StorageWeakRef(v.untyped_storage()) for state in optimizer.state.values() for v in state.values()]
    optimizer.state.clear()
    train(optimizer, 1)
    gc.collect()
    assert all(storage.expired() for storage in storages)


def test_a_parameter_that_left_is_given_back_at_the_next_step(direction):
    optimizer = various(direction)
    train(optimizer, 2)
    left = optimizer.param_groups[0]["params"].pop(0)
    storage = StorageWeakRef(left.untyped_storage())
    del optimizer.state[left], left
    train(optimizer, 1)
    gc.collect()
    assert storage.expired()


def test_every_weight_that_moves_has_another_version(direction):
    optimizer = various(direction)
    for t in range(1, 4):
        set_gradients(optimizer, t)
        still = all_params(optimizer)[t]
        still.grad = None
        before = [param._version for param in all_params(optimizer)]
        optimizer.step()
        for param, version in zip(all_params(optimizer), before, strict=True):
            assert (param._version > version) == (param is not still)


@pytest.mark.parametrize("laid", [False, True])
def test_a_backward_pass_through_a_weight_that_has_moved_raises(laid):
    w = noise((3, 3), torch.float32, 1)
    param = Parameter(w.t() if laid else w)
    optimizer = wd.SGDW([param], **LAM, backend="cpu")
    loss = (param**2).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_parameters_can_still_be_swapped():
    """torch.__future__.set_swap_module_params_on_conversion: what a module's conversion does when nobody else holds them."""

    def converted(backend):
        model = Linear(3, 2)
        optimizer = wd.SGDW(model.parameters(), **LAM, backend=backend)
        train(optimizer, 2)
        optimizer.zero_grad()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            model.double()
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        train(optimizer, 2, first=3)
        return bits(all_params(optimizer))

    torch.manual_seed(0)
    expected = converted("eager")
    torch.manual_seed(0)
    assert converted("cpu") == expected


# GradScaler -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:foreach=True and fused=True:UserWarning")
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scaled_gradient_is_unscaled_as_by_hand(backend, maximize, unscale_first):
    """Also where the scale is no power of two, and where it changes between the steps."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0, growth_factor=3.0, growth_interval=2)
    ours, theirs = (build(each, maximize=maximize, fused=True) for each in (backend, "eager"))
    scales = []
    for t in range(1, 7):
        scale = scaler.get_scale() if t > 1 else 1000.0
        scales.append(scale)
        inverse = torch.tensor(scale, dtype=torch.float64).reciprocal().float().item()
        for optimizer in (ours, theirs):
            set_gradients(optimizer, t)
            for param in all_params(optimizer):
                param.grad = scaler.scale(param.grad)
        for param in all_params(theirs):
            param.grad = (param.grad.to(torch.promote_types(param.dtype, torch.float32)) * inverse).to(param.grad.dtype)
        if unscale_first:
            scaler.unscale_(ours)
        else:
            for optimizer in (ours, theirs):  # bfloat16 is unscaled in float32 by the step, and rounded by unscale_
                all_params(optimizer)[-2].grad = None
        scaler.step(ours)
        scaler.update()
        theirs.step()
        assert everything(ours) == everything(theirs)
    assert len(set(scales)) > 2


@pytest.mark.filterwarnings("ignore:foreach=True and fused=True:UserWarning")
@pytest.mark.parametrize("fused", [True, None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_overflows_changes_nothing_not_even_the_count(backend, fused):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = build(backend, fused=fused)
    for t in range(1, 5):
        set_gradients(optimizer, t)
        for param in all_params(optimizer):
            param.grad = scaler.scale(param.grad)
        if t % 2 == 0:
            all_params(optimizer)[t - 1].grad.view(-1)[:1].fill_(float("inf"))
        before = everything(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert (everything(optimizer) == before) == (t % 2 == 0)
    assert {state["step"].item() for state in optimizer.state.values()} == {2.0}


# Threads and processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


LARGE = (20 * 4096 + 123, 4096, 70 * 4096, 5)
KINDS = {
    "plain": (torch.float32, {"direction": "adam", "decay": "decoupled"}),
    "stochastic": (torch.bfloat16, {"direction": "adam", "decay": "cautious"}),
    "float16": (torch.float16, {"direction": "sgd", "momentum": 0.9, "decay": "decoupled", "rounding": "compensated"}),
    "reduction": (
        torch.float32,
        {"direction": "adam", "decay": "decoupled", "penalty": "norm", "penalty_weight": 0.5, "n": 3.0},
    ),
    "reduction in float64": (
        torch.float64,
        {"direction": "sgd", "decay": "decoupled", "penalty": "norm", "penalty_weight": 0.5, "n": 1.0},
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def large_optimizer(kind):
    """Return an optimizer of parameters of many chunks, some of which have a gradient."""
    dtype, rules = KINDS[kind]
    params = [Parameter(noise((size,), dtype, place)) for place, size in enumerate(LARGE)]
    weight = {"weight_decay": 0.1} if "decay" in rules else {}
    optimizer = wd.Optimizer(params, 0.05, **weight, **rules, backend="cpu")
    give_large_gradients(optimizer, 1)
    return optimizer


def give_large_gradients(optimizer, t):
    for place, param in enumerate(all_params(optimizer)):
        param.grad = None if (place + t) % 4 == 0 else noise(param.shape, param.dtype, 100 * t + place)


def large(kind):
    """Return large parameters after some steps."""
    optimizer = large_optimizer(kind)
    for t in range(1, 4):
        give_large_gradients(optimizer, t)
        optimizer.step()
    return torch.cat([param.detach() for param in all_params(optimizer)])


@kinds
def test_the_number_of_threads_changes_no_bit(threads, kind):
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(large(kind))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_number_of_threads_may_change_between_the_steps(threads):
    def trained(counts):
        params = [Parameter(noise((30 * 4096,), torch.float32, place)) for place in range(2)]
        optimizer = wd.Optimizer(params, **LAM, **COMBINATIONS["norm"], backend="cpu")
        for t, count in enumerate(counts):
            threads(count)
            for place, param in enumerate(params):
                param.grad = noise(param.shape, torch.float32, 10 * t + place)
            optimizer.step()
        return torch.cat([param.detach() for param in params])

    assert torch.equal(trained([1, 3, 2, 1]), trained([1, 1, 1, 1]))


def test_python_threads_with_an_optimizer_each_give_what_they_give_alone(threads):
    threads(2)
    alone = {kind: large(kind) for kind in KINDS}
    together = list(KINDS) * 2
    gate = threading.Barrier(len(together))

    def work(kind):
        gate.wait(timeout=30)
        return large(kind)

    with concurrent.futures.ThreadPoolExecutor(len(together)) as pool:
        found = list(pool.map(work, together, timeout=60))
    for kind, got in zip(together, found, strict=True):
        assert torch.equal(got, alone[kind]), kind


ONE_OPTIMIZER = """
import threading, torch, weightdecay as wd
import test_cpu_memory as tests

def optimizer():
    params = [torch.nn.Parameter(tests.noise((300, 602), torch.float32, k)[:, ::2]) for k in range(6)]
    for k, param in enumerate(params):
        param.grad = tests.noise((301, 300), torch.float32, 10 + k).t()
    made = wd.AdamW(params, lr=0.01)
    made.step()
    return made

def step(optimizer, times):
    for _ in range(times):
        optimizer.step()

shared, alone = optimizer(), optimizer()
threads = [threading.Thread(target=step, args=(shared, 40)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
step(alone, 160)
print(tests.everything(shared) == tests.everything(alone))
"""


@pytest.mark.slow
def test_python_threads_may_share_an_optimizer_whose_tensors_are_copied():
    """One thread must not free what the kernel of another is writing to."""
    assert output(ONE_OPTIMIZER, timeout=120) == "True"


FIRST_STEPS = """
import concurrent.futures, threading
import torch
import test_cpu_memory as tests
torch.set_num_threads(2)
kinds = list(tests.KINDS) * 2
gate = threading.Barrier(len(kinds))
def work(kind):
    gate.wait(timeout=30)
    return tests.large(kind)
with concurrent.futures.ThreadPoolExecutor(len(kinds)) as pool:
    found = list(pool.map(work, kinds))
print(all(torch.equal(got, tests.large(kind)) for kind, got in zip(kinds, found)))
"""


@pytest.mark.slow
def test_python_threads_may_do_their_first_steps_at_once():
    """When nothing is compiled yet, and so everyone compiles, the same kernels even."""
    assert output(FIRST_STEPS, timeout=120) == "True"


FORK = """
import multiprocessing, warnings
import torch, weightdecay as wd
import test_cpu_memory as tests
warnings.simplefilter("ignore", DeprecationWarning)

def step_all():
    for optimizer in optimizers:
        optimizer.step()
    fresh.step()
    return b"".join(tests.raw(param) for optimizer in (*optimizers, fresh) for param in tests.all_params(optimizer))

def child(sender):
    sender.send_bytes(step_all())

torch.set_num_threads(2)
optimizers = [tests.large_optimizer(kind) for kind in tests.KINDS]
for optimizer in optimizers:
    optimizer.step()
fresh = wd.AdamW([torch.nn.Parameter(torch.ones(9))], backend="cpu")  # nothing of which is compiled
fresh.param_groups[0]["params"][0].grad = torch.ones(9)
context = multiprocessing.get_context("fork")
receiver, sender = context.Pipe(duplex=False)
context.Process(target=child, args=(sender,), daemon=True).start()
found = receiver.recv_bytes() if receiver.poll(30) else b"nothing"
print(found == step_all(), len(found))
"""


def raw(tensor):
    return tensor.detach().view(torch.uint8).numpy().tobytes()


def test_a_forked_child_steps_and_gives_the_same_bits():
    """OpenMP's threads stay with the parent, and who waits for them in the child waits for ever, as torch's operations do."""
    size = sum(LARGE) * sum(dtype.itemsize for dtype, _ in KINDS.values()) + 9 * 4
    assert output(FORK, timeout=90) == f"True {size}"


FIRST_STEP_IN_A_CHILD = """
import os, signal, torch
import test_cpu_memory as tests
torch.set_num_threads(2)
torch.ones(300_000).add_(1.0)  # on two threads, which stay here
optimizers = [tests.large_optimizer(kind) for kind in tests.KINDS]
child = os.fork()
if not child:
    signal.alarm(60)
    torch.set_num_threads(1)
    for optimizer in optimizers:
        optimizer.step()
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.slow
def test_a_first_step_in_a_forked_child_works_on_one_thread():
    """With more of them torch, which makes the state, would wait for those that stayed with the parent."""
    assert output(FIRST_STEP_IN_A_CHILD, timeout=90) == "0"


FORK_WHILE_COMPILING = """
import os, signal, threading, time
import torch, weightdecay as wd
from training import COMBINATIONS

def step(dtype, **rules):
    param = torch.nn.Parameter(torch.ones(8, dtype=dtype))
    param.grad = torch.ones_like(param)
    wd.Optimizer([param], 0.1, backend="cpu", **rules).step()

def compile_much():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for rules in COMBINATIONS.values():
            step(dtype, **rules)

step(torch.float32, direction="sgd")
threading.Thread(target=compile_much, daemon=True).start()
for _ in range(4):
    time.sleep(0.1)
    child = os.fork()
    if not child:
        signal.alarm(40)
        step(torch.float32, direction="sgd", decay="decoupled")
        os._exit(0)
    print(os.waitpid(child, 0)[1])
os._exit(0)
"""


def test_a_child_forked_while_another_thread_compiles_can_compile():
    """A lock that the other thread held is held in the child by nobody who could let it go."""
    assert output(FORK_WHILE_COMPILING, timeout=90, PYTHONUNBUFFERED="1").split() == ["0"] * 4


@pytest.mark.slow
def test_one_thread_of_openmp_gives_the_same_bits(threads):
    threads(2)
    script = "import torch, test_cpu_memory as t; print(torch.get_num_threads(), t.digest())"
    assert output(script, OMP_NUM_THREADS="1") == f"1 {digest()}"


def digest():
    """Return a number that follows from every bit of the large runs."""
    return zlib.crc32(b"".join(raw(large(kind)) for kind in KINDS))


# Kernels are never stale, and made at once ------------------------------------------------------------------------------

FIRST = """
import time, torch, weightdecay as wd
params = [torch.nn.Parameter(torch.randn(64, 64)) for _ in range(4)]
for param in params:
    param.grad = torch.randn(64, 64)
optimizer = wd.AdamW(params, backend="cpu")
start = time.perf_counter()
optimizer.step()
print(time.perf_counter() - start)
"""


def test_the_first_step_of_a_process_takes_less_than_two_seconds():
    assert 0 < float(output(FIRST)) < 2


RULE = '''\
import weightdecay as wd


@wd.decay(source="a test of this package")
def edited(w, u, *, eta, lam):
    """Change."""
    return w - {factor} * eta * u
'''
USE = """
import torch, weightdecay as wd, rule_of_a_test
w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
w.grad = torch.ones(2)
wd.Optimizer([w], lr=0.5, direction="sgd", decay="edited", backend="cpu").step()
print(*w.tolist())
"""


@pytest.fixture
def rule_file(tmp_path, monkeypatch):
    """Return a function that writes a rule with this factor; compiled files could not tell two edits of one second apart."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "rule_of_a_test.py"
    return lambda factor: path.write_text(RULE.format(factor=factor), encoding="utf-8") and tmp_path


@pytest.mark.slow
def test_an_edited_rule_is_compiled_anew_in_the_next_process(rule_file):
    for factor, expected in ((1, "0.5 1.5"), (20, "-9.0 -8.0")):
        assert output(USE, PYTHONPATH=str(rule_file(factor)), PYTHONDONTWRITEBYTECODE="1") == expected


def test_kernels_that_no_optimizer_uses_are_freed_but_for_the_last(monkeypatch):
    """A notebook that defines its rule again and again, or a search over rules, does not fill the memory with code."""
    from weightdecay.backends.cpu import kernel
    from weightdecay.backends.recent import Recent

    monkeypatch.setattr(kernel, "KERNELS", Recent(2))

    def stepped(decay):
        weight = Parameter(torch.ones(3))
        optimizer = wd.Optimizer([weight], 0.1, direction="sgd", decay=decay, weight_decay=0.5)
        weight.grad = torch.ones(3)
        optimizer.step()
        return optimizer, weight, weakref.ref(optimizer._plan.tables[0].kernel.code)

    kept, weight, in_use = stepped("decoupled")
    dropped = [stepped(decay)[2] for decay in ("cautious", "implicit", "independent", "soft_threshold")]
    gc.collect()
    assert [code() is not None for code in dropped] == [False, False, True, True]
    assert in_use() is not None
    weight.grad = torch.zeros(3)
    kept.step()
    torch.testing.assert_close(weight, torch.full((3,), (1 - 0.05) * ((1 - 0.05) * 1 - 0.1)))


@pytest.mark.slow
def test_the_memory_stays_flat_over_two_thousand_optimizers():
    script = """
import gc
import torch, weightdecay as wd
decays = [rule.name for rule in wd.rules().values() if rule.kind == "decay" and "lam" in rule.numbers]
dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
def drop(k):
    weight = torch.nn.Parameter(torch.ones(5, dtype=dtypes[k // 7 % 4]))
    direction = ("sgd", "adam", "lion", "rmsprop")[k % 4]
    optimizer = wd.Optimizer([weight], 0.01, direction=direction, decay=decays[k % len(decays)], weight_decay=0.01)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
for k in range(300):
    drop(k)
before = resident()
for k in range(300, 2000):
    drop(k)
print(resident() - before)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert not run.returncode, run.stderr
    assert float(run.stdout) < 60, run.stdout


def test_an_edited_rule_that_is_loaded_again_is_compiled_anew(rule_file, monkeypatch, own_registry):
    """By the next optimizer, and by one that is at work: the name in its group means the new rule, as torch's operations do."""
    monkeypatch.syspath_prepend(rule_file(1))
    module = importlib.import_module("rule_of_a_test")
    monkeypatch.setitem(sys.modules, "rule_of_a_test", module)
    params = {backend: Parameter(torch.tensor([1.0, 2.0])) for backend in BACKENDS}
    options = {"lr": 0.5, "direction": "sgd", "decay": "edited"}
    running = {backend: wd.Optimizer([param], **options, backend=backend) for backend, param in params.items()}

    def step_all():
        for backend, param in params.items():
            param.grad = torch.ones(2)
            running[backend].step()
        return [param.tolist() for param in params.values()]

    assert step_all() == [[0.5, 1.5]] * 2
    rule_file(20)
    importlib.reload(module)
    fresh = Parameter(torch.tensor([1.0, 2.0]))
    fresh.grad = torch.ones(2)
    wd.Optimizer([fresh], **options, backend="cpu").step()
    assert fresh.tolist() == [-9.0, -8.0]
    assert step_all() == [[-9.5, -8.5]] * 2


# Very large tensors -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tensor_of_more_than_two_to_the_31_elements_is_stepped_to_its_end():
    """It needs 9 GB. Rows of equal values, the last of them beyond 2³¹, step as one such row does."""
    row, rows = 2**20, 2**11 + 2
    w, g = noise((row,), torch.bfloat16, 1), noise((row,), torch.bfloat16, 2)
    param, small = Parameter(w.expand(rows, row).contiguous()), Parameter(w.clone())
    param.grad, small.grad = g.expand(rows, row).contiguous(), g
    assert param.numel() > 2**31
    groups = {"lr": 0.05, "weight_decay": 0.5, "rounding": "nearest"}
    optimizer = wd.SGDW([param], **groups, backend="cpu")
    optimizer.step()
    wd.SGDW([small], **groups, backend="eager").step()
    assert (small.detach() != w).double().mean() > 0.9
    assert all(torch.equal(each, small.detach()) for each in param.detach())
    optimizer.param_groups[0]["rounding"] = "stochastic"
    optimizer.step()
    exact = (1 - 0.05 * 0.5) * small.detach().float() - 0.05 * g.float()
    for place in (0, 1, 2**10, rows - 3, rows - 1):
        rounded = param.detach()[place]
        low, high = exact - exact.abs() * 2.0**-7, exact + exact.abs() * 2.0**-7
        assert ((rounded >= low) & (rounded <= high)).all()
        assert (rounded.float() - exact).mean().abs() < 1e-5
    assert not torch.equal(param.detach()[0], param.detach()[rows - 1])
