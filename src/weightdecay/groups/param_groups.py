"""Which parameters decay, and why: parameter groups for any torch optimizer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weightdecay import validation
from weightdecay.groups.overrides import Overrides, Settings, by_pattern, by_role, checked_number, marked
from weightdecay.groups.params import Param, params_of
from weightdecay.groups.roles import ROLES, role_of
from weightdecay.groups.styles import FROM_NAMES_ALONE, STYLES, Verdict
from weightdecay.groups.table import ParamGroups, Row

__all__ = ["param_groups"]


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
        role = role_of(self.param)[0].name
        return Row(name, role, list(self.param.tensor.shape), bool(decay), decay, group, reason, tied)


def param_groups(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    weight_decay: float | Tensor,
    *,
    style: str = "weightdecay",
    roles: Mapping[str, Any] | None = None,
    patterns: Overrides = (),
    scale_invariant: Iterable[str] = (),
    embeddings: bool = True,
    frozen: bool = False,
    names: bool = True,
) -> ParamGroups:
    """Split the parameters of a model into groups that decay and groups that do not, for any torch optimizer.

    Each tensor has one role (`weightdecay.groups.ROLES` is their table), and the role says whether it decays: weights and
    embeddings do; biases, what norms hold, positions, tokens, scalars and other vectors do not. A tensor that is flagged with
    `_no_weight_decay`, or named by the no_weight_decay() of any module, does not either. Groups come in model order, those
    that decay first; none is empty. Torch writes into the dicts, so call again for a second optimizer.

    Args:
        model: the module, bare or wrapped, or (name, parameter) pairs; from pairs, names and shapes alone decide.
        weight_decay: λ of what decays, finite and ≥ 0; a one-element tensor is passed on as it is.
        style: whose choices to make: "weightdecay" for those of the roles, or exactly those of Hugging Face's Trainer
            ("hf"), timm ("timm") or nanoGPT ("nanogpt"). Overrides go before the style.
        roles: {role: overrides}. Overrides are a number, for weight_decay, or a dict of hyper-parameters such as
            {"weight_decay": 0.3, "lr": 1e-4}. "lora" means lora.a and lora.b.
        patterns: {pattern: overrides}, or a list of such pairs. A pattern is a regular expression, searched for in the
            names that the table shows (in all names of a tied tensor); the first that matches wins, over roles too. The
            overrides hold for all that match, biases too.
        scale_invariant: names of weights that a norm follows, as `weightdecay.scale_invariant` finds them. Those that no
            other role takes get the role of that name, and so a group of their own if `roles` sets something for it.
        embeddings: whether nn.Embedding and nn.EmbeddingBag decay, tied or not; False is roles={"embedding": 0}.
        frozen: whether to keep parameters with requires_grad=False; if not, they are listed, in no group.
        names: whether "params" holds (name, tensor) pairs, which torch's optimizers keep as param_names and save, so that a
            resume can be checked and `weightdecay.migrate` can move a checkpoint into other groups. False is for what looks
            into "params" itself and takes tensors alone: torch's ZeroRedundancyOptimizer, optimizers that write a group's
            "params" down or sort them before torch does, and your own loops over the groups. An optimizer with names asks for
            names in every group that is added to it later.

    Names lose the `module`, `_orig_mod`, `_fsdp_wrapped_module` and `_checkpoint_wrapped_module` of wrappers, wherever
    all parameters of a parent go through that one part. So a module of your own called `module` keeps its name beside
    others; alone, it cannot be told from a wrapper.

    The parts of a parametrised tensor count as what they make. With weight_norm both decay: w = g·v/‖v‖ shrinks with g,
    and the length of v does not change w.

    Raises:
        TypeError, ValueError: for a λ that is no finite number ≥ 0, an unknown role or style, a pattern that is invalid or
            the first match of nothing, a model with nothing to train, a lazy parameter, parameters that FSDP1 has flattened.

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
    decay = checked_number(weight_decay, "weight_decay")
    validation.choice("style", style, STYLES)
    by_modules = isinstance(model, nn.Module)
    if not embeddings and not by_modules:
        raise ValueError("embeddings=False needs module types, and (name, parameter) pairs have none. Pass the model.")
    if style not in FROM_NAMES_ALONE and not by_modules:
        raise ValueError(f"style={style!r} needs the modules, and (name, parameter) pairs have none. Pass the model.")
    asked = by_role(roles or {})
    if not embeddings:
        asked = {role: ("embeddings=False", {"weight_decay": 0.0}) for role in ROLES.named("embedding")} | asked
    params = params_of(model)
    if not any(param.tensor.requires_grad for param in params):
        raise ValueError(
            f"model has no trainable parameters, only {len(params)} frozen ones. Unfreeze some of them."
            if params
            else "model has no trainable parameters, and no others."
        )
    kept = [param for param in params if frozen or param.tensor.requires_grad]
    matches = by_pattern(patterns, params, {param.name for param in kept})
    marked(scale_invariant, params)

    choices = {param.name: _choose(param, decay, style, matches.get(param.name), asked) for param in kept}
    choices |= {param.name: Choice(param, {}, False, "frozen") for param in params if param.name not in choices}
    keys = sorted(dict.fromkeys(choices[param.name].key for param in kept), key=lambda key: not key[0])
    groups = [_group([choices[param.name] for param in kept if choices[param.name].key == key], names) for key in keys]
    rows = [choice.row(keys.index(choice.key) if choice.settings else None) for choice in _in_order(choices, params)]
    others = STYLES if by_modules else FROM_NAMES_ALONE
    verdicts = {name: {param.name: STYLES[name](param) for param in kept} for name in others}
    verdicts[""] = {param.name: Verdict(choices[param.name].decays, choices[param.name].reason) for param in kept}
    return ParamGroups(groups, rows, verdicts)


def _in_order(choices: Mapping[str, Choice], params: Sequence[Param]) -> list[Choice]:
    return [choices[param.name] for param in params]


def _choose(
    param: Param,
    decay: float | Tensor,
    style: str,
    match: tuple[str, Settings] | None,
    asked: Mapping[str, tuple[str, Settings]],
) -> Choice:
    verdict = STYLES[style](param)
    role, called = role_of(param)
    reason = verdict.why if style == "weightdecay" else f"{called}; {style}: {verdict.why}"
    if not param.tensor.requires_grad:
        reason += "; frozen"
    settings: Settings = {"weight_decay": decay if verdict.decays else 0.0}
    match = match or asked.get(role.name)
    if match is None:
        return Choice(param, settings, verdict.decays, reason)
    who, overrides = match
    decays = overrides["weight_decay"] > 0 if "weight_decay" in overrides else verdict.decays
    changes = ", ".join(f"{key}={value}" for key, value in overrides.items()) or "nothing"
    return Choice(param, settings | overrides, bool(decays), f"{reason}; {who} sets {changes}")


def _group(choices: Sequence[Choice], names: bool) -> dict[str, Any]:
    params = [(choice.param.name, choice.param.tensor) if names else choice.param.tensor for choice in choices]
    return {"params": params, **choices[0].settings}
