"""Which parameters decay, and why: parameter groups for any torch optimizer.

A weight decays. A bias, what a norm holds, a scalar and any other one-dimensional tensor do not. Why a tensor is exempt
is said by the functions in `EXEMPTIONS`: each takes a `Param` and returns its reason or None, and the first one counts.
A new reason is one more such function in the tuple.

Module types and shapes decide, since substrings of names fail: they miss norms called ln_f, and exempt T5's
relative_attention_bias, which is a table (huggingface/transformers #35927 and #42754, pytorch/pytorch #2639).
"""

import difflib
import html
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

__all__ = ["ParamGroups", "param_groups"]

# Torch's other norms hold vectors and have "norm" in the name of their class, which tells third parties' norms too.
NORMS_OF_ANY_SHAPE = (nn.LayerNorm, nn.RMSNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
BIAS = re.compile(r"(^|_)bias(_|$)")
PARAMETRISED = re.compile(r"(?:^|\.)parametrizations\.([^.]+)\.original\d*$")

Patterns = Mapping[str, Any] | Iterable[tuple[str, Any]]
Settings = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Param:
    """One tensor as the exemptions see it."""

    names: list[str]  # in model order; more than one if the tensor is tied
    tensor: Tensor
    modules: list[nn.Module]  # its owners; none where only names are known
    siblings: Mapping[str, Tensor]  # what stands beside the first name, itself too, by the last part of the name

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def leaf(self) -> str:
        """Return the last part of the name; a part of a parametrised tensor goes by the name of what it makes."""
        made = PARAMETRISED.search(self.name)
        return made[1] if made else self.name.rpartition(".")[2]

    @property
    def ndim(self) -> int:
        """Return the number of axes; a part of a parametrised tensor has those of what it makes."""
        parts = self.siblings.values() if PARAMETRISED.search(self.name) else [self.tensor]
        return max(part.ndim for part in parts)

    @property
    def one_vector(self) -> bool:
        """Tell whether at most one axis is longer than 1, as in the shapes (n,), (1, 1, n) and (1, n, 1, 1)."""
        return sum(length > 1 for length in self.tensor.shape) <= 1


def bias(param: Param) -> str | None:
    """Recognise a bias: named so, and one vector (attention's bias_k is (1, 1, n)) or one for each stacked weight."""
    if not BIAS.search(param.leaf):
        return None
    weights = (param.leaf.replace("bias", "weight"), param.leaf.removesuffix("_bias"))
    stacked = any(name in param.siblings and param.siblings[name].ndim == param.ndim + 1 for name in weights)
    return "bias" if param.one_vector or stacked else None


def norm(param: Param) -> str | None:
    """Recognise what a norm holds: by type, or as one vector in a class with "norm" in its name or a base's."""
    for module in param.modules:
        named = any("norm" in cls.__name__.lower() for cls in type(module).__mro__)
        if isinstance(module, NORMS_OF_ANY_SHAPE) or (named and param.one_vector):
            return f"norm ({type(module).__name__})"
    return None


def scalar(param: Param) -> str | None:
    """Recognise a scalar, such as a temperature."""
    return "scalar" if param.ndim == 0 else None


def vector(param: Param) -> str | None:
    """Recognise any other one-dimensional tensor, such as the slopes of a PReLU."""
    return "1-D tensor" if param.ndim == 1 else None


def embedding(param: Param) -> str | None:
    """Recognise the table of an embedding, by whichever of its owners."""
    return "embedding" if any(isinstance(module, EMBEDDINGS) for module in param.modules) else None


EXEMPTIONS: tuple[Callable[[Param], str | None], ...] = (bias, norm, scalar, vector)


@dataclass(frozen=True)
class Row:
    """One line of the table; what is in no group has no weight_decay."""

    name: str
    shape: list[int]
    decays: bool
    weight_decay: float | None
    group: int | None
    reason: str
    tied: list[str]

    def cells(self) -> tuple[str, ...]:
        group = "-" if self.group is None else str(self.group)
        decay = f"{self.weight_decay:g}" if self.decays else "no"
        return group, self.name, str(tuple(self.shape)), decay, self.reason


@dataclass(frozen=True, eq=False)
class Choice:
    """What was decided for one tensor; without settings it is in no group."""

    param: Param
    settings: Settings
    decays: bool
    reason: str

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what the tensors of a group share: all settings."""
        values = {name: id(v) if isinstance(v, Tensor) else repr(v) for name, v in self.settings.items()}
        # `decays` gives λ = 0 the same groups as any other λ, so that their state dicts fit each other.
        return (self.decays, *sorted(values.items()))

    def row(self, group: int | None) -> Row:
        name, *tied = self.param.names
        decay = None if group is None else float(self.settings["weight_decay"])
        reason = f"{self.reason}; tied with {', '.join(tied)}" if tied else self.reason
        return Row(name, list(self.param.tensor.shape), bool(decay), decay, group, reason, tied)


class ParamGroups(list[dict[str, Any]]):
    """Hold the groups for an optimizer; print as the table of what decays and why."""

    header = ("group", "tensor", "shape", "decay", "why")

    def __init__(self, groups: Iterable[dict[str, Any]], rows: Sequence[Row]) -> None:
        super().__init__(groups)
        self.rows = tuple(rows)

    def __repr__(self) -> str:
        table = [self.header, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
        return "\n".join([*lines, "", *self._totals()])

    def _repr_html_(self) -> str:
        def line(cells: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(row.cells(), "td") for row in self.rows)
        return f"<table><thead>{line(self.header, 'th')}</thead><tbody>{body}</tbody></table>"

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the rows for JSON, each with name, shape, decays, weight_decay, group, reason and tied."""
        return [asdict(row) for row in self.rows]

    def _totals(self) -> Iterator[str]:
        for group in sorted({row.group for row in self.rows}, key=lambda group: math.inf if group is None else group):
            rows = [row for row in self.rows if row.group == group]
            values = sum(math.prod(row.shape) for row in rows)
            title = "in no group" if group is None else f"group {group}"
            yield f"{title}: decay {rows[0].cells()[3]}, tensors {len(rows)}, values {values:,}"


def param_groups(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    weight_decay: float | Tensor,
    *,
    patterns: Patterns = (),
    embeddings: bool = True,
    frozen: bool = False,
    names: bool = False,
) -> ParamGroups:
    """Split the parameters of a model into groups that decay and groups that do not, for any torch optimizer.

    Weights decay. Biases, what norms hold, scalars and other 1-D tensors do not. Groups come in model order, those that
    decay first; none is empty. Torch writes into the dicts, so call again for a second optimizer.

    Args:
        model: the module, bare or wrapped, or (name, parameter) pairs; from pairs, names and shapes alone decide.
        weight_decay: λ of what decays, finite and ≥ 0; a one-element tensor is passed on as it is.
        patterns: {pattern: overrides}, or a list of such pairs. A pattern is a regular expression, searched for in the
            names that the table shows (in all names of a tied tensor); the first that matches wins. Overrides are a
            number, for weight_decay, or a dict of hyper-parameters such as {"weight_decay": 0.3, "lr": 1e-4}. They hold
            for all that match, biases too.
        embeddings: whether nn.Embedding and nn.EmbeddingBag decay, tied or not.
        frozen: whether to keep parameters with requires_grad=False; if not, they are listed, in no group.
        names: whether "params" holds (name, tensor) pairs, which torch keeps as param_names. ZeroRedundancyOptimizer
            takes plain tensors only.

    Names lose the `module`, `_orig_mod`, `_fsdp_wrapped_module` and `_checkpoint_wrapped_module` of wrappers, wherever
    all parameters of a parent go through that one part. So a module of your own called `module` keeps its name beside
    others; alone, it cannot be told from a wrapper.

    The parts of a parametrised tensor count as what they make. With weight_norm both decay: w = g·v/‖v‖ shrinks with g,
    and the length of v does not change w.

    Raises:
        TypeError, ValueError: for a λ that is no finite number ≥ 0, a pattern that is invalid or the first match of
            nothing, a model with nothing to train, a lazy parameter, parameters that FSDP1 has flattened.

    >>> import torch
    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    >>> groups = param_groups(model, 0.1, patterns={"1.weight": 0.3})
    >>> print(groups)
    group  tensor    shape   decay  why
    0      0.weight  (9, 4)  0.1    embedding
    1      1.weight  (4, 4)  0.3    weight; pattern '1.weight' sets weight_decay=0.3
    2      1.bias    (4,)    no     bias
    2      2.weight  (4,)    no     norm (LayerNorm)
    2      2.bias    (4,)    no     bias
    <BLANKLINE>
    group 0: decay 0.1, tensors 1, values 36
    group 1: decay 0.3, tensors 1, values 16
    group 2: decay no, tensors 3, values 12
    >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)

    Patterns follow torchtitan's optimizer configuration (pytorch/torchtitan, components/optimizer).
    """
    decay = _number(weight_decay, "weight_decay")
    if not embeddings and not isinstance(model, nn.Module):
        raise ValueError("embeddings=False needs module types, and (name, parameter) pairs have none. Pass the model.")
    params = _params(model)
    if not any(param.tensor.requires_grad for param in params):
        raise ValueError(f"model has no trainable parameters, only {len(params)} frozen ones. Unfreeze some of them.")
    kept = {param.name for param in params if frozen or param.tensor.requires_grad}
    matches = _first_matches(patterns, params, kept)
    exemptions = EXEMPTIONS if embeddings else (*EXEMPTIONS, embedding)

    choices = []
    for param in params:
        if param.name in kept:
            choices.append(_choose(param, decay, exemptions, matches.get(param.name)))
        else:
            choices.append(Choice(param, {}, False, "frozen"))
    keys = sorted(dict.fromkeys(choice.key for choice in choices if choice.settings), key=lambda key: not key[0])
    groups = [_group([choice for choice in choices if choice.key == key], names) for key in keys]
    return ParamGroups(groups, [choice.row(keys.index(choice.key) if choice.settings else None) for choice in choices])


def _choose(
    param: Param,
    decay: float | Tensor,
    exemptions: Iterable[Callable[[Param], str | None]],
    match: tuple[str, Settings] | None,
) -> Choice:
    exemption = next(filter(None, (exempt(param) for exempt in exemptions)), None)
    settings: Settings = {"weight_decay": 0.0 if exemption else decay}
    reason = exemption or embedding(param) or "weight"
    if not param.tensor.requires_grad:
        reason += "; frozen"
    if match is None:
        return Choice(param, settings, exemption is None, reason)
    pattern, overrides = match
    decays = overrides["weight_decay"] > 0 if "weight_decay" in overrides else exemption is None
    changes = ", ".join(f"{name}={value}" for name, value in overrides.items()) or "nothing"
    return Choice(param, settings | overrides, bool(decays), f"{reason}; pattern '{pattern}' sets {changes}")


def _group(choices: Sequence[Choice], names: bool) -> dict[str, Any]:
    params = [(choice.param.name, choice.param.tensor) if names else choice.param.tensor for choice in choices]
    return {"params": params, **choices[0].settings}


def _params(model: nn.Module | Iterable[tuple[str, Tensor]]) -> list[Param]:
    found = list(_walk(model) if isinstance(model, nn.Module) else _pairs(model))
    beside: dict[str, dict[str, Tensor]] = defaultdict(dict)
    params: dict[int, Param] = {}
    for name, (_, tensor, owners) in zip(_without_wrappers([name for name, _, _ in found]), found, strict=True):
        path, _, leaf = name.rpartition(".")
        if is_lazy(tensor):
            raise ValueError(f"'{name}' is lazy and has no shape yet. Run the model once, then build the groups.")
        if leaf in beside[path]:
            raise ValueError(f"'{name}' is given twice. Pass each name once, as model.named_parameters() does.")
        beside[path][leaf] = tensor
        param = params.setdefault(id(tensor), Param([], tensor, [], beside[path]))
        param.names.append(name)
        param.modules.extend(owners)
    return list(params.values())


def _walk(model: nn.Module) -> Iterator[tuple[str, Tensor, list[nn.Module]]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        if getattr(module, "_flat_param", None) is not None:
            raise ValueError(
                "FullyShardedDataParallel has flattened the parameters, so their shapes are gone. Use fully_shard, or "
                "build the groups before wrapping (with use_orig_params=True the parameters stay the same objects)."
            )
        made_by = path.rpartition("parametrizations.")[0].removesuffix(".")
        owner = modules[made_by] if isinstance(module, ParametrizationList) else module
        for leaf, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            yield f"{path}.{leaf}" if path else leaf, tensor, [owner]


def _pairs(pairs: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor, list[nn.Module]]]:
    for pair in pairs if isinstance(pairs, Iterable) else [pairs]:
        match pair:
            case (str() as name, Tensor() as tensor):
                yield name, tensor, []
            case _:
                got = type(pair).__name__
                raise TypeError(f"model must be a module or (name, parameter) pairs, got {got}. Pass the model itself.")


def _without_wrappers(names: Sequence[str]) -> list[str]:
    # A wrapper is the only way to what it holds, so no two names become equal without it.
    paths = [tuple(name.split(".")) for name in names]
    beside: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in paths:
        for depth, part in enumerate(path):
            beside[path[:depth]].add(part)

    def stays(path: tuple[str, ...], depth: int) -> bool:
        return path[depth] not in WRAPPERS or depth + 1 == len(path) or len(beside[path[:depth]]) > 1

    return [".".join(part for depth, part in enumerate(path) if stays(path, depth)) for path in paths]


def _first_matches(patterns: Patterns, params: Sequence[Param], kept: set[str]) -> dict[str, tuple[str, Settings]]:
    matches: dict[str, tuple[str, Settings]] = {}
    for pattern, overrides in map(_pattern, patterns.items() if isinstance(patterns, Mapping) else patterns):
        matching = [param.name for param in params if any(re.search(pattern, name) for name in param.names)]
        claimed = kept.intersection(matching) - matches.keys()
        if not claimed:
            taken = {name: matches[name][0] for name in matching if name in matches}
            raise ValueError(f"Pattern '{pattern}' {_why_no_match(pattern, matching, taken, params)}")
        matches.update(dict.fromkeys(claimed, (pattern, overrides)))
    return matches


def _why_no_match(pattern: str, matching: Sequence[str], taken: Mapping[str, str], params: Sequence[Param]) -> str:
    if taken:
        earlier = ", ".join(f"'{first}'" for first in dict.fromkeys(taken.values()))
        return f"comes too late: {_some(taken)} went to {earlier}, and the first match wins. Put it before, or drop it."
    if matching:
        return f"matches only what is frozen: {_some(matching)}. Unfreeze it, pass frozen=True, or drop the pattern."
    names = [name for param in params for name in param.names]
    nearest = difflib.get_close_matches(pattern, names, cutoff=0)
    return f"matches no parameter; the nearest are {_some(nearest)}. Correct it after the names that the table shows."


def _some(names: Iterable[str]) -> str:
    first, *others = [f"'{name}'" for name in names]
    return ", ".join([first, *others[:2]]) + (f" and {len(others) - 2} more" if len(others) > 2 else "")


def _pattern(pair: object) -> tuple[str, Settings]:
    match pair:
        case (str() as pattern, overrides):
            settings = dict(overrides) if isinstance(overrides, Mapping) else {"weight_decay": overrides}
        case _:
            raise TypeError(f"patterns must be {{pattern: overrides}} or a list of such pairs, got {pair!r} in it.")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"Pattern '{pattern}' is invalid: {error.msg} at position {error.pos}.") from None
    if reserved := settings.keys() & {"params", "param_names"}:
        raise ValueError(f"Pattern '{pattern}' sets {min(reserved)!r}. Set hyper-parameters only.")
    for name in settings.keys() & {"weight_decay", "lr"}:
        settings[name] = _number(settings[name], f"{name} of pattern '{pattern}'")
    return pattern, settings


def _number(value: object, name: str) -> float | Tensor:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name} must be a number or a one-element tensor, got {value!r}. Pass a float such as 0.1.")
    if not 0 <= float(number) < math.inf:
        raise ValueError(f"{name} must be finite and ≥ 0, got {value!r}. Pass a float such as 0.1, or 0 for none.")
    return value if isinstance(value, Tensor) else float(number)
