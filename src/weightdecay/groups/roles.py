"""What a parameter is to its model: the roles, how each is recognised, whether it decays, and why.

`ROLES` is the table; the first role that recognises a tensor is its role. Module types and shapes decide where they can, since
substrings of names fail: they miss norms called ln_f, and take a weight called pos_proj for a position
(huggingface/transformers #35927 and #42754, pytorch/pytorch #2639). Where only a name can tell, the whole part of it counts.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from weightdecay.groups.params import PARAMETRISED, Param

__all__ = ["ROLES", "Role", "Roles", "role_of"]

# Torch's other norms hold vectors and have "norm" in the name of their class, which tells third parties' norms too.
NORMS_OF_ANY_SHAPE = (nn.LayerNorm, nn.RMSNorm)
NORM_CLASS = re.compile(r"norm|grn\b", re.IGNORECASE)
ONE_PLUS_GAIN = re.compile(r"\b1(\.0*)? \+ self\.(weight|gain|gamma|scale)\b|\bself\.(weight|gain|gamma|scale) \+ 1\b")
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
BIAS = re.compile(r"(^|_)bias(_|$)")
POSITION = re.compile(
    r"""
    (^|_) pos(ition|itions|itional)? (_emb\w*|_enc\w*|_bias\w*|_table)? (_[a-z0-9])? $  # pos_embed, rel_pos_h
    | (^|_) emb(ed)?(ding)?s? _ (pos|rel)\w* $                                                 # embed_positions, emb_rel_k
    | (^|_) rel(ative)? _ (embed\w*|attention_bias|bias_table) $                               # T5's relative_attention_bias
    | (^|_) attention_biases $ | ^ (row|col|column|distance)_embed\w* $ | ^ wpe $
    """,
    re.VERBOSE,
)
TOKEN = re.compile(
    r"""
    (^|_) (cls|class|reg|register|dist|distillation|detection|masks?|masked|group|latent|query|prompt|level|storage|bos|pad|sep)
    _? (reg|register)? _? (tokens?|emb|embeds?|embedding|latent|query|spec_embed) $      # cls_token, class_embedding
    | ^ (latents(_\w+)?|latent_queries|probe|dummy_node|adaption_prompt) $
    | ^ (image|view)_(newline|separator|sep|begin|end) $
    """,
    re.VERBOSE,
)
TABLE_OF_TOKENS = re.compile(
    r"^(cls|mask|iou|hq|obj_score|register|presence)_tokens?$|^(object_)?(query|queries)_(pos\w*|embed\w*)$"
)
PROMPT_ENCODER = "prompt_encoder"
"""Where PEFT keeps the virtual tokens of prompt tuning, prefix tuning and p-tuning: a table in it is their embedding."""
STATE_SPACE = re.compile(r"^(A_logs?|dt_bias|dt_projs?_bias|log_dt|time_decay|time_first|recurrent_param|log_state_decay)$")
LOGIT_SCALE = re.compile(r"(^|_)(logit_scales?|logits?_scale_\w+|temperature|temp|inv_temp\w*|logit_bias)(_[a-z])?$")
LORA = {side: re.compile(rf"^lora_(embedding_)?{side}$", re.IGNORECASE) for side in "AB"}
GENERIC = re.compile(r"^(\d+|weights|embeddings?)$")
MATRIX = re.compile(
    r"(^|_)(weights?|kernels?|proj|matrix|w\d*)(_(ih|hh|hr)_l\d+(_reverse)?|_[a-z])?$|^[A-Z]\d*$", re.IGNORECASE
)
"""What a bare matrix is called that has one row or column by its sizes alone; a gain of two axes is not."""
MAGNITUDE = re.compile(r"(^|_)magnitude(_vector)?$")
EXPERT = re.compile(r"(^|_)experts?$")


@dataclass(frozen=True)
class Role:
    """One row of the table of roles."""

    name: str
    recognise: Callable[[Param], str | None]
    """Return what to call the tensor in the table of the groups, or None if it has another role."""
    decays: bool
    how: str
    why: str


class Roles(tuple[Role, ...]):
    """The roles in the order in which they are tried; print as a table."""

    def __str__(self) -> str:
        return "\n\n".join(
            f"{role.name} ({'decays' if role.decays else 'does not decay'}): {role.how}\n    {role.why}" for role in self
        )

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the table for JSON: name, decays, how and why of each role."""
        return [{"name": r.name, "decays": r.decays, "how": r.how, "why": r.why} for r in self]

    def named(self, name: str) -> list[str]:
        """Return the roles that a name means: that role, or all that begin with it, as "lora" means lora.a and lora.b."""
        return [role.name for role in self if role.name == name or role.name.startswith(f"{name}.")]


def role_of(param: Param) -> tuple[Role, str]:
    """Return the role of a tensor and what to call it."""
    if param not in _FOUND:
        _FOUND[param] = next((role, called) for role in ROLES if (called := role.recognise(param)))  # the last takes everything
    return _FOUND[param]


_FOUND: WeakKeyDictionary[Param, tuple[Role, str]] = WeakKeyDictionary()
"""What was found already: to recognise a role takes several looks at the model."""


# How each role is recognised -------------------------------------------------------------------------------------------


def _tables(param: Param) -> list[str]:
    """Return what the embeddings that own the tensor are called in the model."""
    owners = zip(param.names, param.modules, strict=False)  # from pairs, there are no modules
    names = [PARAMETRISED.sub(".weight", name) for name, module in owners if isinstance(module, EMBEDDINGS)]
    return [name.split(".")[-2] for name in names if "." in name]


def _called(param: Param) -> str:
    """Return what the model calls a bare parameter, also where it is numbered or the only thing in what is called so."""
    return next((part for part in reversed(param.path) if not GENERIC.search(part)), param.leaf)


def _held_as(param: Param) -> str:
    """Return what a bare parameter is called; one in a list or a dict of adapters goes by the name of that."""
    return next((part for part in reversed(param.path) if not re.fullmatch(r"\d+|default", part)), param.leaf)


def _is_bare(param: Param) -> bool:
    """Tell whether the tensor is held by the model's own code: a layer's tensors are called weight and bias."""
    return param.leaf not in ("weight", "bias")


def _position(param: Param) -> str | None:
    tables = _tables(param)
    if len(tables) == len(param.modules) and any(map(POSITION.search, tables)):
        return "position"
    if any(isinstance(m, EMBEDDINGS) and "Position" in cls.__name__ for m in param.modules for cls in type(m).__mro__):
        return "position"
    return "position" if _is_bare(param) and POSITION.search(_called(param)) else None


def _token(param: Param) -> str | None:
    if any(map(TABLE_OF_TOKENS.search, _tables(param))):
        return "token"
    if PROMPT_ENCODER in param.path and param.path[-2:] == ["embedding", "weight"]:
        return "token"
    return "token" if _is_bare(param) and TOKEN.search(_called(param)) else None


def _state_space(param: Param) -> str | None:
    beside_a = param.leaf in ("D", "Ds") and any(name.startswith("A_log") for name in param.siblings)
    return f"state space ({param.leaf})" if beside_a or STATE_SPACE.search(param.leaf) else None


def _logit_scale(param: Param) -> str | None:
    return "logit scale" if param.one_vector and LOGIT_SCALE.search(param.leaf) else None


def _lora(side: str) -> Callable[[Param], str | None]:
    def recognise(param: Param) -> str | None:
        return f"LoRA {side}" if any(LORA[side].search(part) for part in param.path) else None

    return recognise


def _bias(param: Param) -> str | None:
    return "bias" if BIAS.search(param.leaf) else None


def _norm_of(param: Param) -> nn.Module | None:
    for module in param.modules:
        named = any(NORM_CLASS.search(cls.__name__) for cls in type(module).__mro__)
        if isinstance(module, NORMS_OF_ANY_SHAPE) or (named and param.one_vector):
            return module
    return None


@cache
def _adds_one(cls: type) -> bool:
    """Tell whether a norm multiplies by 1 + its gain, which only its code says."""
    try:
        return ONE_PLUS_GAIN.search(inspect.getsource(cls)) is not None
    except (OSError, TypeError):  # no source at hand: a gain like any other
        return False


def _norm_around_one(param: Param) -> str | None:
    module = _norm_of(param)
    kind: Any = type(module)
    return f"norm around one ({kind.__name__})" if module is not None and _adds_one(kind) else None


def _norm(param: Param) -> str | None:
    module = _norm_of(param)
    return f"norm ({type(module).__name__})" if module is not None else None


def _weight_norm(parts: tuple[str, str], name: str) -> Callable[[Param], str | None]:
    def recognise(param: Param) -> str | None:
        last = param.path[-1]
        halves = {"original0", "original1"} if PARAMETRISED.search(param.name) else {"weight_g", "weight_v"}
        return name if last in parts and halves <= set(param.siblings) else None

    return recognise


def _scalar(param: Param) -> str | None:
    return "scalar" if param.ndim == 0 else None


def _vector(param: Param) -> str | None:
    if param.ndim == 1:
        return "1-D tensor"
    if not param.one_vector or param.ndim < 2:
        return None
    if any(MAGNITUDE.search(part) for part in param.path):
        return "one vector"
    bare = not param.leaf.endswith("weight") if param.ndim > 2 else _is_bare(param) and not MATRIX.search(_held_as(param))
    return "one vector" if bare else None


def _embedding(param: Param) -> str | None:
    return "embedding" if any(isinstance(module, EMBEDDINGS) for module in param.modules) else None


def _embedding_tied(param: Param) -> str | None:
    others = [module for module in param.modules if not isinstance(module, EMBEDDINGS)]
    return _embedding(param) and ("embedding" if others else None)


def _scale_invariant(param: Param) -> str | None:
    return "scale-invariant weight" if param.scale_invariant else None


def _expert(param: Param) -> str | None:
    return "expert" if any(EXPERT.search(part) and "shared" not in part for part in param.path) else None


def _weight(param: Param) -> str:
    return "weight"


ROLES = Roles(
    [
        Role(
            "position",
            _position,
            False,
            "an embedding or a bare parameter that is called a position, absolute or relative (pos_embed, wpe, rel_pos_h, "
            "T5's relative_attention_bias)",
            "It is added whatever the input is, as a bias is. timm, DeiT, Swin and minGPT exempt it; nanoGPT and "
            "transformers decay it.",
        ),
        Role(
            "token",
            _token,
            False,
            "a bare parameter or a small table that is called a class, register, mask or query token (cls_token, latents); the "
            "virtual tokens of PEFT's prompt encoders",
            "It is an input that every sample gets, as a bias is. timm exempts it (huggingface/pytorch-image-models #2712).",
        ),
        Role(
            "state_space",
            _state_space,
            False,
            "A_log, dt_bias, D beside an A_log, and the decays of RWKV and Griffin, by the last part of the name",
            "Zero is no neutral value for it: e^0 = 1 is a rate of forgetting. Mamba's authors flag it with "
            "_no_weight_decay, which nobody reads (state-spaces/mamba #798, ServiceNow/Fast-LLM #545).",
        ),
        Role(
            "logit_scale",
            _logit_scale,
            False,
            "one value, or one per head, called logit_scale, logit_bias or temperature",
            "It scales the logits, often as an exponent; decay would soften every prediction. open_clip and Swin v2 exempt it.",
        ),
        Role(
            "lora.a",
            _lora("A"),
            True,
            "lora_A or lora_embedding_A in the name",
            "Decay of A and B pulls the weight to the base model, and not to zero (unslothai/unsloth #5747).",
        ),
        Role(
            "lora.b",
            _lora("B"),
            True,
            "lora_B or lora_embedding_B in the name",
            "Decay of A and B pulls the weight to the base model, and not to zero (unslothai/unsloth #5747).",
        ),
        Role(
            "bias",
            _bias,
            False,
            "bias is a word of the last part of the name (bias, in_proj_bias, bias_k, bias_ih_l0)",
            "It shifts, so zero is no simpler than another value; decayed, it ends below its mean (pytorch/pytorch #2639).",
        ),
        Role(
            "norm.around_one",
            _norm_around_one,
            False,
            "what a norm holds whose code multiplies by 1 + gain (Gemma, Qwen3-Next, Nemotron)",
            "Decay pulls such a gain to the identity, and would be as right as none: Qwen3-Next decays it. "
            'roles={"norm.around_one": 0.1} asks for it.',
        ),
        Role(
            "norm",
            _norm,
            False,
            "what a LayerNorm or RMSNorm holds, or one vector in a class with norm in its name or a base's",
            "It scales the output, and zero switches the layer off (huggingface/transformers #35927, verl-project/verl #5070).",
        ),
        Role(
            "weight_norm.gain",
            _weight_norm(("original0", "weight_g"), "gain of a weight norm"),
            True,
            "g of w = g·v/‖v‖, as torch's two weight_norm functions name it",
            "The weight shrinks exactly as its gain does (Salimans & Kingma 2016, arXiv:1602.07868).",
        ),
        Role(
            "weight_norm.direction",
            _weight_norm(("original1", "weight_v"), "direction of a weight norm"),
            True,
            "v of w = g·v/‖v‖, as torch's two weight_norm functions name it",
            "The length of v changes no weight; its decay sets how far a step turns it (van Laarhoven 2017, arXiv:1706.05350).",
        ),
        Role(
            "scalar",
            _scalar,
            False,
            "no axis at all",
            "A scale or an offset of a whole layer is no capacity to overfit with.",
        ),
        Role(
            "vector",
            _vector,
            False,
            "one axis; or several with one of them longer than 1, if it is not called as the matrix of a layer is",
            "It scales or shifts channels, as biases and gains do (LayerScale, PReLU); nanoGPT and timm exempt all of these.",
        ),
        Role(
            "embedding.tied",
            _embedding_tied,
            True,
            "the table of an nn.Embedding or nn.EmbeddingBag that another layer, such as the output head, holds too",
            "It is the matrix of the output layer, whose gradient reaches every row.",
        ),
        Role(
            "embedding",
            _embedding,
            True,
            "the table of an nn.Embedding or nn.EmbeddingBag",
            "Transformers, timm and nanoGPT decay it. Rows of rare tokens shrink with hardly a gradient against it: "
            "OLMo exempts it, and so does embeddings=False (pytorch/torchtitan #2599).",
        ),
        Role(
            "scale_invariant",
            _scale_invariant,
            True,
            "named in scale_invariant=, which weightdecay.scale_invariant finds",
            "A norm behind it undoes its length; decay sets the effective learning rate (van Laarhoven 2017, arXiv:1706.05350; "
            "Defazio 2025, arXiv:2506.02285).",
        ),
        Role(
            "expert",
            _expert,
            True,
            "expert or experts, not shared, in the name",
            "A stack of experts decays whole in every step, also those that no token reached.",
        ),
        Role(
            "weight",
            _weight,
            True,
            "everything else",
            "Zero is the neutral value of a matrix that multiplies.",
        ),
    ]
)
