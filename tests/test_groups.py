"""The groups are a partition of what trains, the same for a wrapped model, and what they exempt never shrinks."""

import copy
import json
import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from weightdecay.groups import ParamGroups, param_groups
from weightdecay.groups.folding import folded

with warnings.catch_warnings():  # torch warns about its own code when these are imported
    warnings.simplefilter("ignore")
    import torch._dynamo
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

LAMBDA = 0.125


def decay_of(groups):
    """Return {name: λ} of the grouped tensors, read from the groups and not from the table."""
    return {name: float(group["weight_decay"]) for group in groups for name, _ in group["params"]}


def decays(model, **options):
    """Return {name: whether it decays}."""
    return {name: decay > 0 for name, decay in decay_of(param_groups(model, LAMBDA, **options)).items()}


def reasons(groups):
    return {row["name"]: row["reason"] for row in groups.to_dict()}


class ScaleOnly(nn.Module):
    """A third party's RMSNorm, whose gain has the shape of a feature map."""

    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, width, 1, 1))


class ChannelRMSNorm(ScaleOnly):
    pass


class Grn(ChannelRMSNorm):
    pass


class NormalisedLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))


class Wrapper(nn.Module):
    """What DistributedDataParallel does to names."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


class FullyShardedLike(nn.Module):
    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


class Tied(nn.Module):
    """A head tied to the embedding; `head_first` puts the head's name before the embedding's."""

    def __init__(self, head_first=False):
        super().__init__()
        if head_first:
            self.head = nn.Linear(4, 7, bias=False)
        self.tokens = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        if not head_first:
            self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.tokens.weight


def transformer():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, nn.LayerNorm(8))


def resnet():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.PReLU(4), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4, affine=True)
    )


# Per model: the last parts of the names that decay. Everything else there is a bias, a gain, or a vector.
ZOO = {
    "transformer": (transformer, {"in_proj_weight", "out_proj.weight", "linear1.weight", "linear2.weight"}),
    "attention": (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), {"in_proj_weight", "out_proj.weight"}),
    "attention of three widths": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"},
    ),
    "resnet": (resnet, {"0.weight", "3.weight"}),
    "group norm": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4)), {"0.weight"}),
    "norms over images": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.LayerNorm((2, 3, 3)), nn.RMSNorm((3, 3))),
        {"0.weight"},
    ),
    "sync batch norm": (lambda: nn.SyncBatchNorm.convert_sync_batchnorm(resnet()), {"0.weight", "3.weight"}),
    "third party's norm": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), ChannelRMSNorm(4)), {"0.weight"}),
    "lstm": (
        lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
        {f"weight_{part}_l{layer}{end}" for part in ("ih", "hh", "hr") for layer in "01" for end in ("", "_reverse")},
    ),
    "bilinear": (lambda: nn.Bilinear(2, 3, 4), {"weight"}),
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 3, 2), {"weight"}),
    "embedding bag": (lambda: nn.EmbeddingBag(5, 3), {"weight"}),
    "one by one": (lambda: nn.Linear(1, 1), {"weight"}),
}


@pytest.mark.parametrize(("build", "weights"), ZOO.values(), ids=ZOO.keys())
def test_weights_decay_and_nothing_else_does(build, weights):
    decaying = {name for name, does in decays(build()).items() if does}
    assert decaying
    assert decaying == {name for name, _ in build().named_parameters() if name.endswith(tuple(weights))}


def test_a_norm_by_the_name_of_its_class_or_a_base_holds_vectors_only():
    model = nn.Sequential(ChannelRMSNorm(4), Grn(4), ScaleOnly(4), NormalisedLinear())
    assert decays(model) == {"0.gamma": False, "1.gamma": False, "2.gamma": False, "3.weight": True}
    assert reasons(param_groups(model, LAMBDA))["2.gamma"] == "one vector"


def test_a_gain_tied_to_a_norm_is_a_gain():
    model = nn.Sequential(ScaleOnly(4), ChannelRMSNorm(4))
    model[1].gamma = model[0].gamma
    assert reasons(param_groups(model, LAMBDA)) == {"0.gamma": "norm (ChannelRMSNorm); tied with 1.gamma"}


def test_scalars_and_vectors_of_any_name_do_not_decay():
    model = nn.Linear(2, 2)
    model.temperature = nn.Parameter(torch.tensor(1.0))
    model.depth = nn.Parameter(torch.tensor(1.0))
    model.slopes = nn.Parameter(torch.ones(3))
    groups = param_groups(model, LAMBDA)
    assert reasons(groups) == {
        "temperature": "logit scale",
        "depth": "scalar",
        "slopes": "1-D tensor",
        "weight": "weight",
        "bias": "bias",
    }


def test_a_bias_is_told_by_a_word_of_its_name_and_not_by_a_substring():
    xlnet = nn.Module()
    xlnet.r_w_bias = nn.Parameter(torch.ones(4, 8))
    xlnet.unbiased = nn.Parameter(torch.ones(2, 8))
    xlnet.bias_proj = nn.Linear(8, 8)
    assert decays(xlnet) == {"r_w_bias": False, "unbiased": True, "bias_proj.weight": True, "bias_proj.bias": False}


def test_one_bias_per_expert_is_a_bias():
    experts = nn.Module()
    experts.up = nn.Parameter(torch.ones(3, 4, 5))
    experts.up_bias = nn.Parameter(torch.ones(3, 5))
    experts.weight = nn.Parameter(torch.ones(3, 5, 4))
    experts.bias = nn.Parameter(torch.ones(3, 4))
    assert decays(experts) == {"up": True, "up_bias": False, "weight": True, "bias": False}


@pytest.mark.parametrize("head_first", [False, True])
def test_embeddings_decay_by_choice_and_a_tied_head_with_them(head_first):
    model = Tied(head_first)
    first, second = ("head.weight", "tokens.weight") if head_first else ("tokens.weight", "head.weight")
    for embeddings in (True, False):
        groups = param_groups(model, LAMBDA, embeddings=embeddings)
        assert decay_of(groups) == {first: LAMBDA * embeddings, "body.weight": LAMBDA, "body.bias": 0.0}
        why = "" if embeddings else "; embeddings=False sets weight_decay=0.0"
        assert reasons(groups)[first] == f"embedding{why}; tied with {second}"
    row = next(row for row in groups.to_dict() if row["name"] == first)
    assert row["tied"] == [second]
    assert decays(nn.EmbeddingBag(5, 3), embeddings=False) == {"weight": False}


def test_a_module_used_twice_is_grouped_once():
    shared = nn.Linear(3, 3)
    groups = param_groups(nn.Sequential(shared, nn.ReLU(), shared), LAMBDA)
    assert [len(group["params"]) for group in groups] == [1, 1]
    assert reasons(groups) == {"0.weight": "weight; tied with 2.weight", "0.bias": "bias; tied with 2.bias"}
    symmetric = nn.Module()
    symmetric.encode = symmetric.decode = nn.Parameter(torch.ones(2, 2))
    assert reasons(param_groups(symmetric, LAMBDA)) == {"encode": "weight; tied with decode"}


def test_frozen_parameters_are_listed_and_kept_only_on_request():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = param_groups(model, LAMBDA)
    assert decay_of(groups) == {"1.weight": LAMBDA, "1.bias": 0.0}
    assert [row["group"] for row in groups.to_dict()] == [None, None, 0, 1]
    totals = ["group 0: decay 0.125, tensors 1, values 4", "group 1: decay no, tensors 1, values 2"]
    assert str(groups).splitlines()[-3:] == [*totals, "in no group: decay no, tensors 2, values 6"]

    kept = param_groups(model, LAMBDA, frozen=True)
    assert decay_of(kept) == {"0.weight": LAMBDA, "1.weight": LAMBDA, "0.bias": 0.0, "1.bias": 0.0}
    assert reasons(kept)["0.bias"] == "bias; frozen"


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False), []], ids=["none", "frozen", "no pairs"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_with_nothing_to_train_is_refused(model, frozen):
    with pytest.raises(ValueError, match="no trainable parameters"):
        param_groups(model, LAMBDA, frozen=frozen)


LEAVES = (
    lambda: nn.Linear(2, 3),
    lambda: nn.Conv1d(1, 2, 2, bias=False),
    lambda: nn.LayerNorm((2, 2)),
    lambda: nn.BatchNorm1d(3),
    lambda: nn.Embedding(3, 2),
    lambda: nn.MultiheadAttention(2, 1, add_bias_kv=True),
    lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
    nn.ReLU,
)
NAMES = ("module", "norm", "bias", "a", "b")


def frozen(module):
    return module.requires_grad_(False)


def tied(module):
    """Return a tree that holds every parameter of the module a second time, under another name."""
    return nn.ModuleDict({"once": module, "again": nn.ParameterList(module.parameters())})


def trees():
    leaves = st.sampled_from(LEAVES).map(lambda build: build())
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda modules: nn.Sequential(*modules)),
            st.dictionaries(st.sampled_from(NAMES), inner, max_size=3).map(nn.ModuleDict),
            inner.map(Wrapper),
            inner.map(frozen),
            inner.map(tied),
        ),
        max_leaves=6,
    )


def trains(model):
    return [p for p in model.parameters() if p.requires_grad]


@settings(deadline=None)
@given(trees().filter(trains), st.booleans(), st.booleans())
def test_groups_are_a_partition_of_what_trains(model, keep_frozen, embeddings):
    wanted = list(model.parameters()) if keep_frozen else trains(model)
    groups = param_groups(model, LAMBDA, frozen=keep_frozen, embeddings=embeddings, names=False)
    grouped = [p for group in groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, wanted))
    assert len(set(map(id, grouped))) == len(grouped)
    assert all(group["params"] for group in groups)
    assert [group["weight_decay"] for group in groups] in ([LAMBDA, 0.0], [LAMBDA], [0.0])
    place = {id(p): i for i, p in enumerate(model.parameters())}
    for group in groups:
        assert sorted(group["params"], key=lambda p: place[id(p)]) == group["params"]
    torch.optim.SGD(groups, lr=0.1)


@settings(deadline=None)
@given(trees().filter(trains))
def test_the_table_says_what_the_groups_do(model):
    groups = param_groups(model, LAMBDA)
    rows = groups.to_dict()
    assert decay_of(groups) == {row["name"]: row["weight_decay"] for row in rows if row["group"] is not None}
    for number, group in enumerate(groups):
        assert [name for name, _ in group["params"]] == [row["name"] for row in rows if row["group"] == number]
    assert len({row["name"] for row in rows}) == len(rows) == len(list(model.parameters()))


@settings(deadline=None)
@given(trees().filter(trains))
def test_neither_lambda_nor_names_change_who_is_together(model):
    def together(weight_decay, **options):
        groups = param_groups(model, weight_decay, **options)
        return [[id(p[1] if isinstance(p, tuple) else p) for p in group["params"]] for group in groups]

    assert together(0.0) == together(LAMBDA) == together(torch.tensor(LAMBDA)) == together(LAMBDA, names=False)


@settings(deadline=None)
@given(trees().filter(trains), st.lists(st.sampled_from([Wrapper, FullyShardedLike, checkpoint_wrapper]), min_size=1))
def test_wrappers_change_nothing(model, wrappers):
    bare = param_groups(model, LAMBDA).to_dict()
    for wrap in wrappers:
        model = wrap(model)
    assert param_groups(model, LAMBDA).to_dict() == bare


def compiled(module):
    return torch.compile(module, backend="eager")


def nested(module):
    return Wrapper(compiled(Wrapper(module)))


@pytest.mark.parametrize("wrap", [Wrapper, FullyShardedLike, checkpoint_wrapper, compiled, nested])
def test_a_wrapper_at_any_depth_changes_no_answer(wrap):
    def model(inner):
        return nn.ModuleDict({"stem": inner(nn.Linear(2, 2)), "blocks": nn.Sequential(inner(Tied()), nn.LayerNorm(2))})

    patterns = {r"^stem\.weight$": 0.5, r"^blocks\.0\.head\.weight$": {"lr": 1e-4}}
    bare = param_groups(model(lambda module: module), LAMBDA, patterns=patterns)
    wrapped = param_groups(wrap(model(wrap)), LAMBDA, patterns=patterns)
    assert wrapped.to_dict() == bare.to_dict()
    assert str(wrapped) == str(bare)


def test_a_module_of_ones_own_called_module_keeps_its_name_beside_others():
    block = nn.ModuleDict({"module": nn.Linear(2, 2, bias=False), "gate": nn.Linear(2, 2, bias=False)})
    assert set(decays(Wrapper(block))) == {"module.weight", "gate.weight"}
    parameter = nn.Module()
    parameter.module = nn.Parameter(torch.ones(2, 2))
    assert set(decays(Wrapper(parameter))) == {"module"}


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_data_parallel_and_sharded_models_answer_as_the_bare_one(one_process):
    bare = param_groups(transformer(), LAMBDA).to_dict()
    assert param_groups(DistributedDataParallel(transformer()), LAMBDA).to_dict() == bare
    sharded = transformer()
    fully_shard(sharded, mesh=dist.init_device_mesh("cpu", (1,)))
    assert param_groups(sharded, LAMBDA).to_dict() == bare


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_flattened_parameters_are_refused(one_process, use_orig_params):
    with warnings.catch_warnings():  # one process is not worth sharding, says torch
        warnings.simplefilter("ignore")
        model = FullyShardedDataParallel(transformer(), device_id=torch.device("cpu"), use_orig_params=use_orig_params)
    with pytest.raises(ValueError, match="use_orig_params=True"):
        param_groups(Wrapper(model), LAMBDA)


def zero_gradient_step(model, optimizer):
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("embeddings", [False, True])
def test_a_step_without_gradient_shrinks_the_weights_alone(names, embeddings):
    model = nn.ModuleDict({"body": transformer(), "tied": Tied()}).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    eta = 0.5
    optimizer = torch.optim.AdamW(param_groups(model, LAMBDA, names=names, embeddings=embeddings), lr=eta)
    zero_gradient_step(model, optimizer)
    weights = ("in_proj_weight", "out_proj.weight", "linear1.weight", "linear2.weight", "tied.body.weight")
    shrinking = {name for name in before if name.endswith(weights)} | ({"tied.tokens.weight"} if embeddings else set())
    assert len(shrinking) == 4 * 2 + 1 + embeddings
    for name, p in model.named_parameters():
        assert torch.equal(p, (1 - eta * LAMBDA if name in shrinking else 1) * before[name]), name


def test_names_reach_the_optimizer_unless_plain_tensors_are_asked_for():
    model = Wrapper(Tied())
    named = torch.optim.AdamW(param_groups(model, LAMBDA))
    assert [group["param_names"] for group in named.param_groups] == [["tokens.weight", "body.weight"], ["body.bias"]]
    plain = torch.optim.AdamW(param_groups(model, LAMBDA, names=False))
    assert all("param_names" not in group for group in plain.param_groups)
    for group, other in zip(named.param_groups, plain.param_groups, strict=True):
        assert list(map(id, group["params"])) == list(map(id, other["params"]))


def test_zero_redundancy_optimizer_takes_the_plain_groups(one_process):
    model = transformer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = ZeroRedundancyOptimizer(param_groups(model, LAMBDA, names=False), torch.optim.AdamW, lr=0.5)
    before = model.layers[0].linear1.weight.detach().clone()
    zero_gradient_step(model, optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [LAMBDA, 0.0]
    torch.testing.assert_close(model.layers[0].linear1.weight.detach(), (1 - 0.5 * LAMBDA) * before)


def test_groups_of_any_lambda_have_state_dicts_that_fit():
    model = transformer()
    with_decay, without = (torch.optim.AdamW(param_groups(model, value)) for value in (LAMBDA, 0.0))
    without.load_state_dict(with_decay.state_dict())
    assert [group["weight_decay"] for group in without.param_groups] == [LAMBDA, 0.0]


def test_a_tensor_for_lambda_is_passed_on_so_that_it_can_be_changed_in_place():
    value = torch.tensor([LAMBDA])
    groups = param_groups(nn.Linear(2, 2), value)
    assert groups[0]["weight_decay"] is value
    assert groups[1]["weight_decay"] == 0.0
    assert groups.to_dict()[0]["weight_decay"] == LAMBDA
    apart = {"body.weight": torch.tensor(0.5), "head.weight": torch.tensor(0.5)}
    groups = param_groups(network(), LAMBDA, patterns=apart)
    assert [group["weight_decay"] for group in groups if len(group["params"]) == 1] == list(apart.values())


def network():
    return nn.ModuleDict({"body": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 2)})


def settings_of(model, patterns, **options):
    """Return {name: the settings of its group}."""
    groups = param_groups(model, LAMBDA, patterns=patterns, **options)
    return {name: {k: v for k, v in group.items() if k != "params"} for group in groups for name, _ in group["params"]}


def test_the_first_pattern_that_matches_wins():
    first, second = ("head.weight", 0.5), ("weight", {"lr": 1e-4})
    assert settings_of(network(), [first, second])["head.weight"] == {"weight_decay": 0.5}
    with pytest.raises(ValueError, match=r"'head.weight' comes too late: 'head.weight' went to 'weight'"):
        param_groups(network(), LAMBDA, patterns=[second, first])
    with pytest.raises(ValueError, match=r"'body.weight', 'body.bias', 'norm.weight' and 3 more went to 'weight', 'bias'"):
        param_groups(network(), LAMBDA, patterns=[("weight", 0), ("bias", 0), ("", 0)])


def test_an_override_without_weight_decay_keeps_the_rule():
    found = settings_of(network(), {"norm|head": {"lr": 1e-4, "betas": (0.9, 0.95)}})
    extra = {"lr": 1e-4, "betas": (0.9, 0.95)}
    assert found["norm.weight"] == found["head.bias"] == {"weight_decay": 0.0, **extra}
    assert found["head.weight"] == {"weight_decay": LAMBDA, **extra}
    assert found["body.weight"] == {"weight_decay": LAMBDA}


def test_an_override_is_obeyed_as_written_on_biases_and_norms_too():
    found = settings_of(network(), {r"^(norm|head)\.": 0.5})
    assert {name for name, values in found.items() if values["weight_decay"] == 0.5} == {
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }


def test_groups_are_as_many_as_there_are_different_settings():
    groups = param_groups(network(), LAMBDA, patterns=[("body.weight", 0), ("head.weight", {"weight_decay": LAMBDA})])
    assert [group["weight_decay"] for group in groups] == [LAMBDA, 0.0]
    groups = param_groups(network(), LAMBDA, patterns=[("body", {"lr": 1.0}), ("head", {"lr": 1}), ("norm", {})])
    assert [(group["weight_decay"], group.get("lr")) for group in groups] == [(LAMBDA, 1.0), (0.0, 1.0), (0.0, None)]


def test_a_pattern_finds_a_tied_tensor_by_any_of_its_names():
    assert settings_of(Tied(), {"^head": 0.5})["tokens.weight"] == {"weight_decay": 0.5}


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"Pattern 'haed\\.weight' matches no parameter; the nearest are 'head.weight', "):
        param_groups(network(), LAMBDA, patterns={r"haed\.weight": 0.0})
    with pytest.raises(ValueError, match=r"matches no parameter"):
        param_groups(Wrapper(network()), LAMBDA, patterns={r"^module\.": 0.0})


def test_a_pattern_for_frozen_parameters_alone_is_refused_until_they_are_kept():
    model = network()
    model["head"].requires_grad_(False)
    with pytest.raises(ValueError, match=r"Pattern 'head' matches only what is frozen: 'head.weight', 'head.bias'"):
        param_groups(model, LAMBDA, patterns={"head": 0.5})
    assert settings_of(model, {"head": 0.5}, frozen=True)["head.bias"] == {"weight_decay": 0.5}


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        ({"head[": 0.0}, ValueError, r"Pattern 'head\[' is invalid: unterminated character set at position 4"),
        ({"head": -0.1}, ValueError, r"weight_decay of pattern 'head' must be finite and ≥ 0, got -0.1"),
        ({"head": {"lr": float("nan")}}, ValueError, r"lr of pattern 'head' must be finite and ≥ 0, got nan"),
        ({"head": "0.1"}, TypeError, r"weight_decay of pattern 'head' must be a number .* got '0.1'"),
        ({"head": {"params": []}}, ValueError, r"Pattern 'head' sets 'params'"),
        (["head"], TypeError, r"patterns must be .* got 'head'"),
        ("head", TypeError, r"patterns must be .* got 'h'"),
    ],
)
def test_an_invalid_pattern_is_refused_by_name(patterns, error, message):
    with pytest.raises(error, match=message):
        param_groups(network(), LAMBDA, patterns=patterns)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-0.1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (torch.tensor(-1.0), ValueError),
        (torch.tensor([float("nan")]), ValueError),
        (torch.ones(2), TypeError),
        (torch.tensor(True), TypeError),
        (True, TypeError),
        ("0.1", TypeError),
        (None, TypeError),
        (0.1j, TypeError),
    ],
)
def test_a_lambda_that_is_no_finite_number_from_zero_is_refused_by_name(value, error):
    with pytest.raises(error, match=r"^weight_decay must be .*Pass a float such as 0\.1"):
        param_groups(nn.Linear(2, 2), value)


def test_pairs_are_grouped_by_name_and_shape():
    model = Wrapper(transformer())
    assert decays(model.named_parameters()) == decays(model)
    pairs = [("pos_embed", nn.Parameter(torch.ones(32, 8))), ("pos_proj", nn.Parameter(torch.ones(8, 8)))]
    assert decays([*pairs, ("out_bias", nn.Parameter(torch.ones(8)))]) == {
        "pos_embed": False,
        "pos_proj": True,
        "out_bias": False,
    }
    shared = nn.Parameter(torch.ones(2, 2))
    assert reasons(param_groups([("a", shared), ("b", shared)], LAMBDA)) == {"a": "weight; tied with b"}


def test_pairs_have_no_module_types_and_no_two_equal_names():
    pairs = list(nn.Linear(2, 2).named_parameters())
    with pytest.raises(ValueError, match="embeddings=False needs module types"):
        param_groups(pairs, LAMBDA, embeddings=False)
    with pytest.raises(ValueError, match="'weight' is given twice"):
        param_groups(pairs + pairs, LAMBDA)


@pytest.mark.parametrize(
    "model", [list(nn.Linear(2, 2).parameters()), 3, torch.ones(2, 2), "model"], ids=lambda model: type(model).__name__
)
def test_what_is_neither_module_nor_pairs_is_refused(model):
    with pytest.raises(TypeError, match=r"model must be a module or \(name, parameter\) pairs, got \w+. Pass the model"):
        param_groups(model, LAMBDA)


def test_a_lazy_parameter_is_refused_until_the_model_has_run():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"'0\.weight' is lazy.*Run the model once"):
        param_groups(model, LAMBDA)
    model(torch.ones(1, 3))
    assert decays(model) == {"0.weight": True, "0.bias": False}


@pytest.mark.parametrize("dim", [0, None], ids=["a gain per row", "one gain"])
def test_both_parts_of_weight_norm_decay_and_the_weight_shrinks_as_it_would_alone(dim):
    linear = parametrizations.weight_norm(nn.Linear(3, 4), dim=dim).double()
    before = linear.weight.detach().clone()
    groups = param_groups(linear, LAMBDA)
    parts = {"parametrizations.weight.original0": LAMBDA, "parametrizations.weight.original1": LAMBDA}
    assert decay_of(groups) == {**parts, "bias": 0.0}
    direction_alone = param_groups(linear, LAMBDA, patterns={"original0": 0.0})
    zero_gradient_step(linear, torch.optim.AdamW(direction_alone, lr=0.5))
    torch.testing.assert_close(linear.weight.detach(), before)
    zero_gradient_step(linear, torch.optim.AdamW(groups, lr=0.5))
    torch.testing.assert_close(linear.weight.detach(), (1 - 0.5 * LAMBDA) * before)


def test_a_parametrised_tensor_keeps_the_reason_of_what_it_makes():
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

        def right_inverse(self, x):
            return x / 2

    def doubled(module, name):
        return nn.utils.parametrize.register_parametrization(module, name, Double())

    model = nn.Sequential(
        doubled(nn.Linear(2, 2), "bias"), doubled(nn.LayerNorm((2, 2)), "weight"), doubled(nn.Embedding(3, 2), "weight")
    )
    assert reasons(param_groups(model, LAMBDA, embeddings=False)) == {
        "0.weight": "weight",
        "0.parametrizations.bias.original": "bias",
        "1.bias": "bias",
        "1.parametrizations.weight.original": "norm (ParametrizedLayerNorm)",
        "2.parametrizations.weight.original": "embedding; embeddings=False sets weight_decay=0.0",
    }


def test_the_table_is_aligned_plain_text_with_a_line_per_tensor():
    groups = param_groups(transformer(), LAMBDA)
    lines = str(groups).split("\n\n")[0].splitlines()
    assert len(lines) == 1 + len(list(transformer().parameters()))
    for column in ("group", "tensor", "shape", "decay", "why"):
        start = lines[0].index(column)
        assert all(line[start] != " " and (start == 0 or line[start - 1] == " ") for line in lines)
    assert repr(groups) == str(groups)


def lines_of(model, **options):
    """Return the names that the table shows, without its header and totals."""
    table = param_groups(model, LAMBDA, **options).table().split("\n\n")[0].splitlines()
    start, end = table[0].index("tensor"), table[0].index("shape")
    return [line[start:end].rstrip() for line in table[1:]]


class Layer(nn.Module):
    def __init__(self, experts=0):
        super().__init__()
        self.proj = nn.Linear(2, 2, bias=False)
        self.experts = nn.ModuleList(nn.Linear(2, 3, bias=False) for _ in range(experts))


def test_layers_of_one_kind_share_a_line_of_the_table():
    model = nn.ModuleDict({"layers": nn.ModuleList(Layer() for _ in range(32)), "head": nn.Linear(2, 4)})
    assert lines_of(model) == ["layers.{0…31}.proj.weight × 32", "head.weight", "head.bias"]
    groups = param_groups(model, LAMBDA)
    assert len(groups.to_dict()) == 34
    assert groups.table(every=True).count(".proj.weight") == 32
    assert groups._repr_html_().count("<tr>") == 4
    assert "{0…31}" in str(groups.diff("hf")) or not groups.diff("hf")
    # Two layers are shown as they are.
    assert lines_of(nn.ModuleList(Layer() for _ in range(2))) == ["0.proj.weight", "1.proj.weight"]


def test_what_differs_in_more_than_numbers_has_a_line_of_its_own():
    layers = nn.ModuleList(nn.Linear(2 + (place == 3), 2, bias=False) for place in range(8))
    assert lines_of(layers) == ["{0…2,4…7}.weight × 7", "3.weight"]
    numbered = nn.ModuleDict({str(place): nn.Linear(2, 2, bias=False) for place in (0, 2, 3, 10, 11, 12, 20)})
    assert lines_of(numbered) == ["{0,2,3,10…12,20}.weight × 7"]
    assert lines_of(numbered, patterns={r"^(2|3)\.": 0.5}) == ["{0,10…12,20}.weight × 5", "2.weight", "3.weight"]
    named = nn.ModuleDict(
        {name: nn.Linear(2, 2, bias=False) for name in ("01", "1", "layer1", "layer2", "layer3", "٣", "4", "5")}
    )
    assert lines_of(named) == ["01.weight", "{1,4,5}.weight × 3", "layer1.weight", "layer2.weight", "layer3.weight", "٣.weight"]


def test_names_of_several_numbers_fold_in_each_that_takes_many():
    stages = nn.ModuleList(nn.ModuleList(Layer() for _ in range(4)) for _ in range(3))
    assert lines_of(stages) == ["{0…2}.{0…3}.proj.weight × 12"]
    uneven = nn.ModuleList(nn.ModuleList(Layer() for _ in range(depth)) for depth in (3, 3, 5, 3))
    assert lines_of(uneven) == ["{0,1,3}.{0…2}.proj.weight × 9", "2.{0…4}.proj.weight × 5"]
    two = nn.ModuleList(nn.ModuleList(Layer() for _ in range(4)) for _ in range(2))
    assert lines_of(two) == ["0.{0…3}.proj.weight × 4", "1.{0…3}.proj.weight × 4"]
    mixture = nn.ModuleDict({"layers": nn.ModuleList(Layer(experts=8) for _ in range(6))})
    assert lines_of(mixture) == ["layers.{0…5}.proj.weight × 6", "layers.{0…5}.experts.{0…7}.weight × 48"]
    every_other = nn.ModuleDict({"layers": nn.ModuleList(Layer(experts=4 * (place % 2)) for place in range(6))})
    assert lines_of(every_other) == ["layers.{0…5}.proj.weight × 6", "layers.{1,3,5}.experts.{0…3}.weight × 12"]


@settings(deadline=None)
@given(st.sets(st.tuples(st.integers(0, 5), st.sampled_from("ab"), st.integers(0, 5)), min_size=1), st.data())
def test_every_name_is_in_one_line_of_the_table(points, data):
    names = [f"l.{a}.{word}.{b}.weight" for a, word, b in points]
    kinds = [data.draw(st.integers(0, 1)) for _ in names]
    found = folded(names, kinds)
    assert sorted(place for _, places in found for place in places) == list(range(len(names)))
    for text, places in found:
        assert len({kinds[place] for place in places}) == 1
        assert text.endswith(f" × {len(places)}") if len(places) > 1 else text == names[places[0]]
    assert [places[0] for _, places in found] == sorted(places[0] for _, places in found)


def test_frozen_tensors_share_a_line():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    model[:3].requires_grad_(False)
    assert lines_of(model) == ["3.weight", "3.bias", "6 tensors"]
    assert "-      6 tensors  18 values  no     frozen" in str(param_groups(model, LAMBDA))
    assert "-      0.weight" in param_groups(model, LAMBDA).table(every=True)


def test_rows_are_json_and_survive_copy_and_pickle():
    groups = param_groups(Tied(), LAMBDA, patterns={"body": {"lr": 1e-4}})
    rows = groups.to_dict()
    assert json.loads(json.dumps(rows)) == rows
    assert set(rows[0]) == {"name", "role", "shape", "decays", "weight_decay", "group", "reason", "tied"}
    for other in (copy.deepcopy(groups), pickle.loads(pickle.dumps(groups))):
        assert isinstance(other, ParamGroups)
        assert other.to_dict() == rows
        assert [len(group["params"]) for group in other] == [len(group["params"]) for group in groups]


def test_names_are_escaped_in_html():
    model = nn.ModuleDict({"<script>&": nn.Linear(2, 2)})
    page = param_groups(model, LAMBDA)._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;&amp;.weight" in page
