"""Every tensor has one role, styles choose as those they are called after, and overrides reach what they name."""

import fnmatch
import json
import re

import pytest
import torch
from test_groups import LAMBDA, Tied, Wrapper, decay_of, resnet, transformer
from torch import nn
from torch.nn.utils import parametrizations

from weightdecay.groups import ROLES, param_groups
from weightdecay.groups.params import params_of


def roles_of(model):
    """Return {name: role}."""
    return {row["name"]: row["role"] for row in param_groups(model, LAMBDA).to_dict()}


def decaying(groups):
    """Return the names of what decays, read from the groups and not from the table."""
    return {name for name, decay in decay_of(groups).items() if decay > 0}


def bare(**shapes):
    """Return a module that holds parameters of these names and shapes itself."""
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.ones(shape)))
    return module


class GainAroundOneRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return x * (1.0 + self.weight)


class Mixture(nn.Module):
    """A model with a tensor of every role, and names of the kind that deceive."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(9, 4)
        self.wpe = nn.Embedding(5, 4)
        self.shared = nn.Embedding(9, 4)
        self.lm_head = nn.Linear(4, 9, bias=False)
        self.lm_head.weight = self.shared.weight
        self.vision = bare(cls_token=(1, 1, 4), pos_embed=(1, 5, 4), logit_scale=(), rel_pos_h=(3, 4), gamma=(1, 4, 1, 1))
        self.mixer = bare(A_log=(4, 2), D=(4, 2), dt_bias=(4, 1), D_proj=(4, 4))
        self.matrix = bare(D=(4, 2))
        self.pos_proj = nn.Linear(4, 4)
        self.pos_conv_embed = parametrizations.weight_norm(nn.Conv1d(4, 4, 3))
        self.adapter = nn.ModuleDict({"lora_A": nn.Linear(4, 2, bias=False), "lora_B": nn.Linear(2, 4, bias=False)})
        self.experts = bare(gate_up_proj=(2, 4, 4), gate_up_proj_bias=(2, 4))
        self.shared_expert = nn.Linear(4, 4, bias=False)
        self.norm = GainAroundOneRMSNorm()
        self.ln_f = nn.LayerNorm(4)
        self.depth = nn.Parameter(torch.tensor(0.5))


EXPECTED = {
    "depth": "scalar",
    "embed_tokens.weight": "embedding",
    "wpe.weight": "position",
    "shared.weight": "embedding.tied",
    "vision.cls_token": "token",
    "vision.pos_embed": "position",
    "vision.logit_scale": "logit_scale",
    "vision.rel_pos_h": "position",
    "vision.gamma": "vector",
    "mixer.A_log": "state_space",
    "mixer.D": "state_space",
    "mixer.dt_bias": "state_space",
    "mixer.D_proj": "weight",
    "matrix.D": "weight",
    "pos_proj.weight": "weight",
    "pos_proj.bias": "bias",
    "pos_conv_embed.bias": "bias",
    "pos_conv_embed.parametrizations.weight.original0": "weight_norm.gain",
    "pos_conv_embed.parametrizations.weight.original1": "weight_norm.direction",
    "adapter.lora_A.weight": "lora.a",
    "adapter.lora_B.weight": "lora.b",
    "experts.gate_up_proj": "expert",
    "experts.gate_up_proj_bias": "bias",
    "shared_expert.weight": "weight",
    "norm.weight": "norm.around_one",
    "ln_f.weight": "norm",
    "ln_f.bias": "bias",
}


def test_each_tensor_has_the_role_that_it_is_recognised_by():
    assert roles_of(Mixture()) == EXPECTED
    assert set(EXPECTED.values()) == {role.name for role in ROLES} - {"scale_invariant"}
    assert roles_of(Wrapper(torch.compile(Mixture(), backend="eager"))) == EXPECTED


def test_a_role_decays_as_its_row_of_the_table_says():
    default = {role.name: role.decays for role in ROLES}
    assert decaying(param_groups(Mixture(), LAMBDA)) == {name for name, role in EXPECTED.items() if default[role]}


def test_the_table_of_roles_gives_each_a_way_and_a_reason():
    rows = ROLES.to_dict()
    assert json.loads(json.dumps(rows)) == rows
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert row["how"]
        assert row["why"].endswith(".")
        assert row["name"] in str(ROLES)


def test_roles_without_modules_are_told_by_names():
    model = bare(A_log=(4, 2), cls_token=(1, 1, 4), pos_embed=(5, 4), lora_A=(4, 2), weight=(4, 4), bias=(4,))
    assert roles_of(list(model.named_parameters())) == roles_of(model)


@pytest.mark.parametrize("name", ["relative_attention_bias", "embed_positions", "position_embeddings", "pos_emb"])
def test_a_table_of_positions_is_known_by_what_it_is_called_in_the_model(name):
    model = nn.ModuleDict({name: nn.Embedding(5, 4), "embed_tokens": nn.Embedding(9, 4), "position_mlp": nn.Linear(4, 4)})
    found = roles_of(model)
    assert found[f"{name}.weight"] == "position"
    assert found["embed_tokens.weight"] == "embedding"
    assert found["position_mlp.weight"] == "weight"


class Held(nn.Module):
    """A module of a class that nobody knows, with a tensor that it calls weight."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


def test_a_gain_or_a_log_sigma_of_two_axes_is_a_vector_and_a_matrix_of_one_row_or_column_is_not():
    gains = bare(
        boft_s=(8, 1), actor_logstd=(1, 6), log_std=(1, 6), gamma=(1, 8), weight_scale=(8, 1), layer_scale=(8, 1), scale=(1, 1),
        ls1=(1, 8), q_scale=(1, 8), lora_magnitude_vector=(1, 8, 1, 1),
    )  # fmt: skip
    gains.ia3_l = nn.ParameterDict({"default": nn.Parameter(torch.ones(8, 1))})
    gains.ia3_l_conv = nn.ParameterDict({"default": nn.Parameter(torch.ones(1, 8, 1, 1))})
    gains.scales = nn.ParameterList([nn.Parameter(torch.ones(1, 8))])
    gains.lora_magnitude = nn.ModuleDict({"lora_magnitude_vector": nn.ModuleDict({"default": Held(1, 8, 1, 1)})})
    assert set(roles_of(gains).values()) == {"vector"}
    assert set(roles_of(list(gains.named_parameters())).values()) == {"vector"}
    matrices = nn.ModuleDict(
        {
            "column": nn.Linear(1, 8, bias=False),
            "row": nn.Linear(8, 1, bias=False),
            "pointwise": nn.Conv2d(8, 1, 1, bias=False),
            "lstm": nn.LSTM(1, 1, num_layers=2, bidirectional=True, bias=False),
            "attention": nn.MultiheadAttention(1, 1, kdim=3, vdim=5, bias=False),
            "custom": Held(1, 8),
            "own": bare(W=(8, 1), kernel=(1, 8), q_proj=(8, 1), up_weight=(8, 1), hada_w1_a=(8, 1), weight=(1, 8)),
            "several": nn.ParameterList([]),
        }
    )
    matrices["weights"] = nn.ParameterList([nn.Parameter(torch.ones(8, 1))])
    for model in (matrices, list(matrices.named_parameters())):
        assert set(roles_of(model).values()) == {"weight"}, roles_of(model)


def test_virtual_tokens_of_a_prompt_encoder_are_tokens_and_its_layers_are_not():
    prompt = nn.ModuleDict({"embedding": nn.Embedding(4, 8), "mlp_head": nn.Linear(8, 8, bias=False)})
    model = nn.ModuleDict({"prompt_encoder": nn.ModuleDict({"default": prompt}), "embedding": nn.Embedding(4, 8)})
    assert roles_of(model) == {
        "prompt_encoder.default.embedding.weight": "token",
        "prompt_encoder.default.mlp_head.weight": "weight",
        "embedding.weight": "embedding",
    }
    assert roles_of(bare(adaption_prompt=(1, 4, 8))) == {"adaption_prompt": "token"}


# What the model's author asks for ---------------------------------------------------------------------------------------


class Asking(nn.Module):
    """A backbone of which timm would read two names."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 4))
        self.blocks = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(2)])

    def no_weight_decay(self):
        return {"table", "blocks.*.weight", "dist_token"}

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        Wrapper,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.ModuleDict({"backbone": Wrapper(model)}),
    ],
    ids=["bare", "wrapped", "compiled", "inside another model"],
)
def test_what_no_weight_decay_names_does_not_decay_wherever_the_model_stands(wrap):
    groups = param_groups(nn.ModuleList([wrap(Asking()), nn.Linear(4, 4, bias=False)]), LAMBDA)
    assert len(decaying(groups)) == 1
    assert groups.to_dict()[0]["reason"] == "weight; Asking.no_weight_decay() asks for none"


def test_a_flag_on_a_tensor_is_read_and_an_override_goes_before_it():
    model = nn.Linear(3, 3)
    model.weight._no_weight_decay = True
    assert decaying(param_groups(model, LAMBDA)) == set()
    assert decaying(param_groups(model, LAMBDA, roles={"weight": 0.5})) == {"weight"}
    model.weight._no_weight_decay = False
    assert decaying(param_groups(model, LAMBDA)) == {"weight"}


def test_a_no_weight_decay_that_returns_no_names_is_refused():
    model = Asking()
    model.no_weight_decay = lambda: "table"
    with pytest.raises(TypeError, match=r"Asking.no_weight_decay\(\) must return a collection of names, got 'table'"):
        param_groups(model, LAMBDA)


# Overrides by role ------------------------------------------------------------------------------------------------------


def test_an_override_reaches_all_of_its_role_and_nothing_else():
    groups = param_groups(Mixture(), LAMBDA, roles={"lora": 0.5, "lora.b": {"lr": 1e-2}, "norm": 0.25})
    decay = decay_of(groups)
    assert decay["adapter.lora_A.weight"] == 0.5
    assert decay["adapter.lora_B.weight"] == LAMBDA  # the exact name goes before lora
    assert {name for name, value in decay.items() if value == 0.25} == {"norm.weight", "ln_f.weight"}
    (extra,) = [group for group in groups if "lr" in group]
    assert [name for name, _ in extra["params"]] == ["adapter.lora_B.weight"]
    reason = {row["name"]: row["reason"] for row in groups.to_dict()}["adapter.lora_A.weight"]
    assert reason == "LoRA A; role 'lora' sets weight_decay=0.5"


def test_a_pattern_goes_before_a_role_and_a_role_before_embeddings():
    model = Tied()
    groups = param_groups(model, LAMBDA, embeddings=False, roles={"embedding.tied": 0.5, "bias": 0.25})
    assert decay_of(groups) == {"tokens.weight": 0.5, "body.weight": LAMBDA, "body.bias": 0.25}
    groups = param_groups(model, LAMBDA, roles={"embedding": 0.5}, patterns={"^tokens": 0.0})
    assert decay_of(groups)["tokens.weight"] == 0.0


@pytest.mark.parametrize(
    ("roles", "error", "message"),
    [
        ({"embeding": 0.0}, ValueError, "role='embeding' is unknown: did you mean 'embedding'"),
        ({"norm": -1.0}, ValueError, "weight_decay of role 'norm' must be finite and ≥ 0, got -1.0"),
        ({"norm": {"params": []}}, ValueError, "Role 'norm' sets 'params'"),
        (["norm"], TypeError, "roles must be"),
    ],
)
def test_an_invalid_override_is_refused_by_name(roles, error, message):
    with pytest.raises(error, match=message):
        param_groups(Mixture(), LAMBDA, roles=roles)


def test_scale_invariant_names_make_a_role_of_what_would_be_a_weight():
    names = ["pos_proj.weight", "lm_head.weight", "ln_f.weight"]
    groups = param_groups(Mixture(), LAMBDA, scale_invariant=names, roles={"scale_invariant": {"lr_max": 0.1}})
    (own,) = [group for group in groups if "lr_max" in group]
    assert [name for name, _ in own["params"]] == ["pos_proj.weight"]
    with pytest.raises(ValueError, match=r"scale_invariant names 'pos_prj.weight', which is no parameter; .*'pos_proj.weight'"):
        param_groups(Mixture(), LAMBDA, scale_invariant=["pos_prj.weight"])
    with pytest.raises(TypeError, match="must be a collection of names"):
        param_groups(Mixture(), LAMBDA, scale_invariant="pos_proj.weight")


# Styles -----------------------------------------------------------------------------------------------------------------


def trainers(model):
    """Return what Hugging Face's Trainer (transformers 5.23) decays, by a walk of its own."""
    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]

    def walk(module):
        names = []
        for child_name, child in module.named_children():
            if not isinstance(child, nn.LayerNorm):
                names += [f"{child_name}.{name}" for name in walk(child)]
        return [name for name in [*names, *module._parameters] if not any(re.search(p, name.lower()) for p in patterns)]

    return {name for name, _ in model.named_parameters()} & set(walk(model))


def timms(model):
    """Return what timm.optim (1.0.31) decays."""
    asked = getattr(model, "no_weight_decay", set)()
    return {
        name
        for name, p in model.named_parameters()
        if p.ndim > 1 and not name.endswith(".bias") and not any(fnmatch.fnmatch(name, pattern) for pattern in asked)
    }


def nanogpts(model):
    return {name for name, p in model.named_parameters() if p.dim() >= 2}


MODELS = [Mixture, transformer, resnet, Tied, lambda: Tied(head_first=True), Asking, lambda: nn.LayerNorm((2, 2))]
MODELS += [lambda: nn.Sequential(Asking(), nn.LayerNorm(4)), lambda: parametrizations.weight_norm(nn.Linear(2, 2))]


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize(("style", "theirs"), [("hf", trainers), ("timm", timms), ("nanogpt", nanogpts)])
def test_a_style_decays_exactly_what_its_namesake_does(style, theirs, build):
    model = build()
    groups = param_groups(model, LAMBDA, style=style)
    assert decaying(groups) == theirs(model)
    assert decaying(param_groups(Wrapper(model), LAMBDA, style=style)) == theirs(model)
    ours = decaying(param_groups(model, LAMBDA))
    for found in (param_groups(model, LAMBDA).diff(style), groups.diff("weightdecay")):
        assert {each.name for each in found} == ours ^ theirs(model)
    assert len(groups.diff(style)) == 0


def test_the_namesakes_differ_from_each_other_and_from_us():
    def ours(model):
        return decaying(param_groups(model, LAMBDA))

    assert len({(*sorted(of(Mixture())), *sorted(of(Asking()))) for of in (ours, trainers, timms, nanogpts)}) == 4


def test_a_difference_says_both_reasons():
    model = nn.ModuleDict({"ln_f": nn.RMSNorm(4), "head": nn.Linear(4, 4)})
    found = param_groups(model, LAMBDA).diff("hf")
    (row,) = found.to_dict()
    assert row == {
        "name": "ln_f.weight",
        "role": "norm",
        "shape": [4],
        "decays": False,
        "reason": "norm (RMSNorm)",
        "other_decays": True,
        "other_reason": "no pattern finds the name",
    }
    assert "1 of 3 tensors, 4 values, are treated otherwise by hf." in str(found)
    assert str(param_groups(model, LAMBDA).diff("nanogpt")) == "No difference from nanogpt: the same of the 3 tensors decay."


def test_a_style_is_overridden_by_roles_and_patterns():
    groups = param_groups(Tied(), LAMBDA, style="nanogpt", roles={"embedding": 0.5}, patterns={"body.bias": 0.25})
    assert decay_of(groups) == {"tokens.weight": 0.5, "body.weight": LAMBDA, "body.bias": 0.25}
    assert {each.name for each in groups.diff("nanogpt")} == {"body.bias"}


def test_styles_that_look_at_modules_refuse_pairs():
    pairs = list(Tied().named_parameters())
    with pytest.raises(ValueError, match="style='hf' needs the modules"):
        param_groups(pairs, LAMBDA, style="hf")
    groups = param_groups(pairs, LAMBDA, style="nanogpt")
    assert len(groups.diff("weightdecay")) == 0
    with pytest.raises(ValueError, match="style='timm' is unknown"):
        groups.diff("timm")
    with pytest.raises(ValueError, match="did you mean 'nanogpt'"):
        param_groups(Tied(), LAMBDA, style="nanogtp")


def test_a_request_is_of_the_module_that_makes_it():
    asked = {param.name: (param.asked, param.asked_by_model) for param in params_of(nn.ModuleList([Asking()]))}
    assert asked["0.table"] == ("Asking.no_weight_decay()", False)
