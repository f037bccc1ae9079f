"""Over real architectures, as transformers builds them: no gain and no bias decays, every matrix does, all in one group each.

Models stand on the meta device, without values, at their own widths and with two layers of each kind. `make architectures`
installs transformers and builds all families that it can; without the package, these tests are skipped.
"""

import importlib
import re
import warnings

import pytest
import torch
from torch import nn

from weightdecay.groups import param_groups

transformers = pytest.importorskip("transformers", reason="needs the extra architectures")
pytestmark = [pytest.mark.architectures, pytest.mark.filterwarnings("ignore")]

WELL_KNOWN = """
aimv2 albert altclip aria audio-spectrogram-transformer bamba bart beit bert big_bird bit blip-2 bloom canine clap clip
codegen cohere cohere2 convbert convnext convnextv2 ctrl deberta deberta-v2 deepseek_v3 deit diffllama dinov2_with_registers
distilbert dpt electra encodec ernie4_5_moe falcon falcon_mamba flava fnet focalnet gemma gemma2 gemma3 git glm4 glm4_moe
gpt2 gpt_bigcode gpt_neox gpt_oss granitemoehybrid hiera hubert idefics3 jamba jetmoe kimi_linear layoutlm layoutlmv3 led lfm2
llama llama4 llava longformer lxmert mamba mamba2 mbart minimax mistral mixtral mllama mobilebert mobilenet_v2 modernbert mpnet
mpt mt5 nanochat nemotron_h olmo olmo2 olmoe opt owlvit paligemma patchtst persimmon phi phimoe pixtral pvt_v2 qwen2 qwen2_moe
qwen2_vl qwen3 qwen3_5 qwen3_moe qwen3_next recurrent_gemma reformer regnet resnet roberta roformer rwkv sam segformer siglip
speecht5 squeezebert stablelm starcoder2 swin switch_transformers t5 t5gemma timesformer umt5 vilt vit vit_mae vivit
wav2vec2 wav2vec2-bert wavlm whisper xglm xlm-roberta xlnet xlstm yolos
""".split()  # noqa: SIM905
LAYERS = re.compile(r"num_(\w+_)?(layers|blocks)|(\w+_)?n_layers?|(\w+_)?layers|(\w+_)?depth")


MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, transformers.pytorch_utils.Conv1D)


def shallow(config):
    """Return the arguments that make a configuration of two layers of each kind, in its parts too."""
    changes = {
        name: 2 for name, value in config.to_dict().items() if LAYERS.fullmatch(name) and type(value) is int and value > 2
    }
    for name in type(config).sub_configs:
        part = getattr(config, name, None)
        if hasattr(part, "to_dict"):
            changes[name] = type(part)(**shallow(part)).to_dict()
    return changes


def build(family):
    """Return a model of a family without values, or None and why none can be built from a configuration alone."""
    reason = ""
    make = transformers.CONFIG_MAPPING[family]
    for changes in (lambda: shallow(make()), dict):  # some derive lists from the number of layers, or check it
        try:
            with torch.device("meta"):
                return transformers.AutoModel.from_config(make(**changes())), reason
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    return None, reason


def owned(model):
    """Yield (the tensor's first name, the module that holds it, the last part of the name, the tensor)."""
    for path, module in model.named_modules():
        for leaf, p in module.named_parameters(recurse=False):
            yield f"{path}.{leaf}" if path else leaf, module, leaf, p


def check(model):
    params = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = param_groups(model, 0.1)
    group_of = {id(p): group for group in groups for _, p in group["params"]}
    assert len(group_of) == sum(len(group["params"]) for group in groups) == len(params)
    assert set(group_of) == {id(p) for _, p in params}
    rows = {row.name: row for row in groups.rows}
    assert len(rows) == len(list(model.parameters()))

    gains_and_biases, matrices = 0, 0
    for name, module, leaf, p in owned(model):
        if not p.requires_grad:
            continue
        decays = group_of[id(p)]["weight_decay"] > 0
        one_long_axis = sum(size > 1 for size in p.shape) <= 1
        is_norm = "norm" in type(module).__name__.lower()
        if p.ndim <= 1 or (is_norm and one_long_axis) or leaf == "bias" or leaf.endswith("_bias"):
            gains_and_biases += 1
            assert not decays, f"{name} of {type(module).__name__}, {tuple(p.shape)}, decays"
        elif leaf == "weight" and isinstance(module, MATRICES):
            matrices += 1
            assert decays, f"{name} of {type(module).__name__}, {tuple(p.shape)}, does not decay: {rows[name].reason}"
    assert matrices + gains_and_biases


def check_trainer(model):
    """Compare the style hf with the choice of the installed Trainer itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = importlib.import_module("transformers.trainer").Trainer
    names = set(trainer.get_decay_parameter_names(None, model))
    theirs = {id(p) for name, p in model.named_parameters() if name in names and p.requires_grad}
    groups = param_groups(model, 0.1, style="hf", names=False)
    assert {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]} == theirs


FAMILIES = sorted({*transformers.models.auto.modeling_auto.MODEL_MAPPING_NAMES} & {*transformers.CONFIG_MAPPING})


def test_a_hundred_well_known_families_are_there():
    assert len({*WELL_KNOWN} & {*FAMILIES}) >= 100


@pytest.mark.parametrize("family", FAMILIES)
def test_no_gain_and_no_bias_decays_in_a_real_architecture(family):
    model, reason = build(family)
    if model is None and family not in WELL_KNOWN:
        pytest.skip(f"cannot be built from its configuration: {reason}")
    assert model is not None, reason
    check(model)
    check_trainer(model)


@pytest.mark.parametrize(
    ("family", "role", "names"),
    [
        ("gemma2", "norm.around_one", {"norm.weight", "layers.0.input_layernorm.weight"}),
        ("qwen3_next", "norm.around_one", {"norm.weight"}),
        ("qwen3_next", "state_space", {"layers.0.linear_attn.A_log", "layers.0.linear_attn.dt_bias"}),
        ("mamba", "state_space", {"layers.0.mixer.A_log", "layers.0.mixer.D"}),
        ("mixtral", "expert", {"layers.0.mlp.experts.gate_up_proj"}),
        ("vit", "token", {"embeddings.cls_token"}),
        ("vit", "position", {"embeddings.position_embeddings"}),
        ("t5", "position", {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"}),
        ("t5", "embedding", {"shared.weight"}),
        ("clip", "logit_scale", {"logit_scale"}),
        ("wav2vec2", "weight_norm.gain", {"encoder.pos_conv_embed.conv.parametrizations.weight.original0"}),
        ("xlnet", "bias", {"layer.0.rel_attn.r_w_bias"}),
        ("convnextv2", "norm", {"encoder.stages.0.layers.0.grn.weight"}),
    ],
)
def test_special_tensors_have_their_roles(family, role, names):
    found = {row.name for row in param_groups(build(family)[0], 0.1).rows if row.role == role}
    assert names <= found
