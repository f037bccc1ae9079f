"""What tensors are and where their elements lie.

A kernel knows a tensor by its address, and torch's own operations look no closer than that. Whoever has a tensor may turn it
into another one where it stands (`.data =`, `resize_`, `swap_tensors`, `untyped_storage().resize_(0)`), and nothing says so.
So before anything is written, what is about to be read and written is compared with what it was or has to be.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, compress
from numbers import Real
from typing import Any

import torch
from torch import Tensor

ORDINARY = {Tensor, torch.nn.Parameter}
"""What a tensor is an instance of that has no other meaning of an operation."""
WEIGHTS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)
"""What parameters may be."""
ONLY = f"only {', '.join(str(dtype).removeprefix('torch.') for dtype in WEIGHTS)} parameters can be optimized"
"""What to say of all others."""
_ADDRESSED = ("cpu", "cuda")
"""The devices of which it is known that an address says where the elements lie."""


# What a tensor is -------------------------------------------------------------------------------------------------------


def form(tensor: Any) -> Any:
    """Return what a tensor is, but for where it lies; of anything else, its class."""
    if not isinstance(tensor, Tensor):
        return type(tensor)
    kind = Tensor if type(tensor) in ORDINARY else type(tensor)
    strides = _strides(tensor) if tensor.layout == torch.strided else None
    marks = tensor.is_neg(), tensor.is_conj(), tensor._is_zerotensor()
    return kind, tensor.dtype, tensor.device, tensor.layout, tensor.shape, strides, marks


def contiguous_form(param: Tensor, dtype: torch.dtype) -> Any:
    """Return the form of an ordinary contiguous tensor of another dtype that belongs to a contiguous parameter."""
    _, _, device, layout, shape, strides, _ = form(param)
    return Tensor, dtype, device, layout, shape, strides, (False, False, False)


def _strides(tensor: Tensor) -> tuple[int | None, ...]:
    """Return the strides that matter: not those of dimensions with one element."""
    return tuple(stride if size > 1 else None for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


class Likeness:
    """Tells whether tensors have the forms that they have to have, fast enough to ask before each step.

    torch's compiler asks the same of the arguments of every call. Its guards compare all tensors in one call; they are taken
    where this torch has them, and what they do not pass is looked at in Python.
    """

    def __init__(self, forms: Sequence[Any]) -> None:
        self._forms = list(forms)
        self._which: Sequence[bool] | None = None
        self._guards: Any = None

    def holds(self, tensors: list[Tensor], which: list[bool] | None = None) -> bool:
        """Return whether tensors have these forms; with `which`, those forms of which it is true."""
        if self._guards is not None and which == self._which and self._guards.check(*tensors):
            return True
        forms = self._forms if which is None else list(compress(self._forms, which))
        if list(map(form, tensors)) != forms:
            return False
        self._guards, self._which = _guards(tensors), which
        return True


def _guards(tensors: list[Tensor]) -> Any:
    """Return torch's guards for tensors such as these; None where there are none, or they would never pass."""
    known = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    guards = getattr(known, "TensorGuards", None)
    if guards is None or not tensors or len(set(map(id, tensors))) < len(tensors):  # guards want each tensor once
        return None
    sizes, strides = [list(tensor.shape) for tensor in tensors], [list(_strides(tensor)) for tensor in tensors]
    try:
        return guards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    except (TypeError, ValueError, RuntimeError):  # another torch's, that are made in another way
        return None


def is_wrapper(tensor: Tensor) -> bool:
    """Return whether a class of its own says what an operation on it does: its memory is not all there is to it."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


# Where it lies ----------------------------------------------------------------------------------------------------------


def has_memory(tensor: Tensor) -> bool:
    """Return whether the memory that a tensor names is there: its storage may have been freed or shrunk behind its back.

    True of a tensor without elements, and of one that has no address, such as a wrapper or one on the meta device.
    """
    if tensor.device.type not in _ADDRESSED or is_wrapper(tensor) or tensor.layout != torch.strided or tensor.numel() == 0:
        return True
    try:
        storage = tensor.untyped_storage()
        end = (tensor.storage_offset() + _extent(tensor)) * tensor.itemsize
        return end <= storage.nbytes() and storage.data_ptr() != 0
    except NotImplementedError:  # a wrapper of torch.func's, whose memory is another's
        return True
    except RuntimeError:  # a storage without memory, which `.data =` has taken from a wrapper
        return False


def is_readable(tensor: Tensor) -> bool:
    """Return whether a kernel can read a tensor's elements where it says that they are."""
    try:
        return tensor.numel() == 0 or (tensor.data_ptr() != 0 and has_memory(tensor))
    except RuntimeError:  # a wrapper of torch.func's, or a sparse tensor
        return False


def has_address(value: Any) -> bool:
    """Return whether a value is a tensor of which it can be told where it lies."""
    if (
        not isinstance(value, Tensor)
        or is_wrapper(value)
        or value.layout != torch.strided
        or value.device.type not in _ADDRESSED
    ):
        return False
    return not value._is_zerotensor() and is_readable(value)


def _extent(tensor: Tensor) -> int:
    """Return how many elements lie between the first and the last, both included."""
    if tensor.is_contiguous():  # as nearly every tensor is, at every step
        return tensor.numel()
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def span(tensor: Tensor) -> tuple[int, int]:
    """Return the address of the first element of a tensor that has some, and that behind the last."""
    start = tensor.data_ptr()
    return start, start + _extent(tensor) * tensor.itemsize


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill a piece of memory without gaps and without sharing a place, in any order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def lies_like(tensor: Tensor, layout: Tensor) -> bool:
    """Return whether two tensors of one shape have their elements in the same order in memory, without gaps."""
    sizes = zip(tensor.shape, tensor.stride(), layout.stride(), strict=True)
    return all(size == 1 or ours == theirs for size, ours, theirs in sizes)


def lies_on(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same elements of the same memory, one by one."""
    return tensor.data_ptr() == other.data_ptr() and tensor.itemsize == other.itemsize and lies_like(tensor, other)


def is_expanded(tensor: Tensor) -> bool:
    """Return whether one place in memory stands for several elements, as `expand` makes them."""
    if tensor.layout == torch.strided and tensor.is_contiguous():
        return False
    strides = zip(tensor.stride(), tensor.shape, strict=True)
    return tensor.layout == torch.strided and any(stride == 0 and size > 1 for stride, size in strides)


def share_a_place(some: Tensor, other: Tensor) -> bool:
    """Return whether two tensors whose spans meet have a byte in common; True also where that is not easily told.

    Told are slices of one tensor. In units of all their strides, the largest first, each is a box; where a place has one
    set of coordinates only, they share places if, and only if, their boxes do.
    """
    first, second = sorted((some, other), key=Tensor.data_ptr)
    sizes: list[dict[int, int]] = []
    for tensor in (first, second):
        own = {stride * tensor.itemsize: size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1}
        if 0 in own or len(own) < sum(size > 1 for size in tensor.shape):
            return True
        sizes.append(own)
    if first.itemsize != second.itemsize:
        return True
    steps = sorted({*sizes[0], *sizes[1], first.itemsize}, reverse=True)
    distance, disjoint, reaches = second.data_ptr() - first.data_ptr(), False, []
    for step in steps:
        start, distance = divmod(distance, step)
        lengths = sizes[0].get(step, 1), sizes[1].get(step, 1)
        disjoint = disjoint or start >= lengths[0]
        reaches.append((max(lengths[0], start + lengths[1]) - 1) * step)
    beyond = list(accumulate(reversed(reaches)))  # how far one gets with the smallest steps, the two smallest, …
    unique = distance == 0 and all(step > reach for step, reach in zip(steps[-2::-1], beyond, strict=False))
    return not (unique and disjoint)


class Spans:
    """Where tensors lie, and which of them a piece of memory meets."""

    def __init__(self, tensors: Iterable[tuple[Tensor, int]]) -> None:
        """Take tensors, each with the number of its owner; those without elements lie nowhere."""
        found = [(*span(tensor), owner, tensor) for tensor, owner in tensors if tensor.numel()]
        found.sort(key=lambda each: each[:3])
        self._starts = [start for start, *_ in found]
        self._found = found
        self._ends = list(accumulate((stop for _, stop, *_ in found), max))
        """How far all up to one reach."""

    def meeting(self, tensor: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Yield the tensors with which one has a place in common, with their owners."""
        start, stop = span(tensor)
        place = bisect_left(self._starts, stop)
        while place > 0 and self._ends[place - 1] > start:
            place -= 1
            _, end, owner, other = self._found[place]
            if end > start and share_a_place(other, tensor):
                yield other, owner

    def foreign(self, tensor: Tensor, owner: int) -> Iterator[int]:
        """Yield the owners of what a tensor meets, but for that of its own owner's upon which it lies element by element."""
        for other, whose in self.meeting(tensor):
            if whose != owner or other.shape != tensor.shape or not lies_on(tensor, other):
                yield whose


def overlapping(written: Sequence[tuple[Tensor, int]], read: Iterable[tuple[Tensor, int]]) -> set[int]:
    """Return the owners of tensors that have to be stepped one after the other, because they share memory.

    Both are tensors with their owners' numbers; those that are only read may lie upon one that their owner writes, element
    by element: a gradient may be the weight itself.
    """
    spans, found = Spans(written), set[int]()
    for tensor, _ in written:
        meeting = list(spans.meeting(tensor)) if tensor.numel() else []
        if len(meeting) > 1:  # it meets itself
            found.update(whose for _, whose in meeting)
    for tensor, owner in read:
        if tensor.numel():
            found.update(each for whose in spans.foreign(tensor, owner) for each in (owner, whose))
    return found


# What is refused before anything has moved ------------------------------------------------------------------------------


def check(
    name: str,
    param: Tensor,
    grad: Tensor,
    state: Any,
    shapes: Mapping[str, tuple[int, ...]],
    numbers: Iterable[str],
    counts_on: torch.device,
) -> None:
    """Refuse a parameter, a gradient or what is kept for it, if no step could be taken with it.

    Args:
        name: what to call the parameter.
        param, grad: its weights, and their gradient.
        state: its entry in the optimizer's state; what is missing there is made anew.
        shapes: of what is kept for each element, by key.
        numbers: the keys of what is kept for the whole tensor, beside its step count.
        counts_on: the device of the step count.

    Raises:
        RuntimeError: the gradient is sparse, or the memory of a tensor was freed.
        ValueError: a tensor has another dtype, shape, device or class than a step can take, or is none.
    """
    refuse_sparse(name, grad)
    if param.dtype not in WEIGHTS:
        raise ValueError(f"{name} has become {param.dtype}: {ONLY}")
    _check_writable(name, param)
    what = f"the gradient of {name}"
    if grad.shape != param.shape:
        raise ValueError(f"{what} has shape {tuple(grad.shape)}, not {tuple(param.shape)}")
    if grad.is_complex() != param.is_complex():
        raise ValueError(f"{what} is {grad.dtype}, and the parameter is {param.dtype}")
    _check_device(what, grad, param)
    if not grad._is_zerotensor():
        _check_memory(what, grad)
    if not isinstance(state, dict):
        raise ValueError(f"the state of {name} is {_shown(state)}: state[parameter] is a dict of tensors by their keys")
    _check_number(f"the step of {name}", state.get("step"), param, counts_on)
    for key in numbers:
        _check_number(f"the {key} of {name}", state.get(key), param, param.device)
    for key, shape in shapes.items():
        value = state.get(key)
        if value is not None:
            _check_moment(f"the {key} of {name}", value, param, shape, whole=key == "compensation")


def refuse_sparse(name: str, grad: Tensor) -> None:
    """Refuse a sparse gradient, with a RuntimeError."""
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"the gradient of {name} is sparse ({grad.layout}): decay touches every weight; "
            "build the embedding with sparse=False, or give this tensor to torch.optim.SparseAdam"
        )


def check_written_by_torch(name: str, param: Tensor, state: Mapping[str, Any]) -> None:
    """Refuse what torch's operations would not write into, while nothing has moved."""
    if torch.is_inference_mode_enabled():
        return
    for what, tensor in ((name, param), *((f"the {key} of {name}", value) for key, value in state.items())):
        if isinstance(tensor, Tensor) and tensor.is_inference():
            raise RuntimeError(f"{what} was made under torch.inference_mode() and is written only there: put a clone() of it")


def _check_moment(what: str, value: Any, param: Tensor, shape: tuple[int, ...], *, whole: bool) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} is {_shown(value)}, not a tensor: delete it, and it starts anew")
    if is_wrapper(value) and not is_wrapper(param):
        raise ValueError(f"{what} is a {type(value).__name__}, and the parameter is an ordinary tensor")
    if value.layout != param.layout:
        raise ValueError(f"{what} is {value.layout}, and the parameter is {param.layout}")
    if value.shape != shape:
        raise ValueError(f"{what} has shape {tuple(value.shape)}, not {tuple(shape)}")
    if whole:
        if value.is_complex() or value.dtype == torch.bool:
            raise ValueError(f"{what} is {value.dtype}, not torch.int16")
    elif value.is_complex() != param.is_complex() or not (value.is_complex() or value.is_floating_point()):
        raise ValueError(f"{what} is {value.dtype}, which cannot be a moment of a {param.dtype} parameter")
    _check_device(what, value, param)
    _check_writable(what, value)


def _check_number(what: str, value: Any, param: Tensor, device: torch.device) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor):
        if not isinstance(value, Real) or not _is_finite(value):
            raise ValueError(f"{what} is {_shown(value)}, not a finite number")
        return
    if value.numel() != 1 or value.layout != torch.strided or value.is_complex() or value.is_quantized:
        shown = f"shape {tuple(value.shape)} and dtype {value.dtype}"
        raise ValueError(f"{what} is a tensor of {shown}, not one real number")
    if is_wrapper(value) and not is_wrapper(param):
        raise ValueError(f"{what} is a {type(value).__name__}, and the parameter is an ordinary tensor")
    if value.is_meta and device.type != "meta":
        raise ValueError(f"{what} is on the meta device and has no value")
    _refuse_zero(what, value)
    _check_memory(what, value)


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _check_writable(what: str, tensor: Tensor) -> None:
    if tensor.layout == torch.strided and not is_wrapper(tensor) and is_expanded(tensor):
        raise ValueError(f"{what} is expanded: several of its elements share a place in memory; clone() it first")
    _refuse_zero(what, tensor)
    _check_memory(what, tensor)


def _refuse_zero(what: str, tensor: Tensor) -> None:
    """Refuse a zero that autograd makes without elements, where a step would write."""
    if tensor._is_zerotensor():
        raise ValueError(f"{what} is a zero of torch's own, which has no memory to write to: put a clone() of it")


def _check_device(what: str, tensor: Tensor, param: Tensor) -> None:
    if tensor.device != param.device:
        raise ValueError(f"{what} is on {tensor.device}, and the parameter is on {param.device}")


def _check_memory(what: str, tensor: Tensor) -> None:
    if not has_memory(tensor):
        raise RuntimeError(
            f"{what} has {tensor.numel()} elements and no memory for them: its storage was freed or shrunk "
            "(untyped_storage().resize_), and has to be as large as it was before the step"
        )


def _shown(value: Any) -> str:
    """Return what a value is, short enough for a message."""
    try:
        text = repr(value)
    except Exception:  # somebody's own
        text = ""
    return text if 0 < len(text) <= 60 else f"a {type(value).__name__}"
