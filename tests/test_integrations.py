"""The meter in real training loops on the CPU: Hugging Face's Trainer, Lightning, TensorBoard. `make integrations` runs it.

Every test compares with a run that nobody meters, or with a meter that was attached by hand.
"""

import itertools
import sys
import tempfile
import warnings

import pytest
import torch
from torch import nn

import weightdecay as wd
from weightdecay.audit.meter.metrics import METRICS
from weightdecay.optim.attach import Attachment
from weightdecay.optim.unwrap import innermost

# Of the frameworks' own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.(script|interface). is deprecated:DeprecationWarning"),
]
LR, LAMBDA = 1e-3, 0.1
KNOWN = {"norm", "change", "angle", "shrink", "realised", "kept", "decay_to_update", "half_life", "timescale", "effective_lr"}


def scalars(folder):
    """Return what TensorBoard's files hold: step and value by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in sorted({path.parent for path in folder.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(path)).Reload()
        found.update({tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]})
    return found


# Hugging Face -------------------------------------------------------------------------------------------------------------


def trainer(folder, *, callbacks=(), report_to="none", **arguments):
    """Return a Trainer of a small GPT-2 with random weights."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(64, (48, 16), generator=torch.Generator().manual_seed(0))
    given = {"per_device_train_batch_size": 4, "num_train_epochs": 1.0, "logging_steps": 3, "save_strategy": "no", **arguments}
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(folder), report_to=report_to, use_cpu=True, learning_rate=LR, weight_decay=LAMBDA,
            lr_scheduler_type="constant", optim="adamw_torch", disable_tqdm=True, **given,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=list(callbacks),
    )  # fmt: skip


def test_a_trainers_log_says_what_the_decay_does(tmp_path):
    pytest.importorskip("transformers")
    from weightdecay.integrations.transformers import MeterCallback

    callback = MeterCallback(every=4, roles=True, metrics="all")
    run = trainer(tmp_path, callbacks=[callback])
    run.train()
    logged = [entry for entry in run.state.log_history if "weight_decay/group0/kept" in entry]
    assert [entry["step"] for entry in logged] == [3, 6, 9, 12]  # the last samples, of steps 2, 4, 8 and 12
    assert [sample.step for sample in callback.meter.history()] == [1, 2, 4, 8, 12]
    last = logged[-1]
    assert {name for name in KNOWN if f"weight_decay/weight/{name}" in last} == KNOWN
    assert last["weight_decay/group0/shrink"] == pytest.approx(LR * LAMBDA)
    assert last["weight_decay/group0/kept"] == pytest.approx(1, abs=0.01)
    assert last["weight_decay/group0/timescale_epochs"] == pytest.approx(1 / (LR * LAMBDA) / 12)
    assert last["weight_decay/bias/shrink"] == 0
    assert {"weight_decay/embedding.tied/norm", "weight_decay/position/norm"} <= set(last)
    plain = trainer(tmp_path)
    plain.train()
    for metered, other in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(metered, other)
    assert not run.optimizer.optimizer._optimizer_step_pre_hooks


def reporter(seen):
    """Return a callback that keeps what it is shown, as those of TensorBoard and W&B send it away."""
    transformers = pytest.importorskip("transformers")

    class Reporter(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs, **_):
            seen.append({"step": state.global_step, **logs})

    return Reporter()


@pytest.mark.parametrize("place", ["first", "last", "added later"])
def test_reporters_see_the_numbers_wherever_the_callback_stands(tmp_path, place):
    """Five numbers of each group; the Trainer's own reporters stand before any callback of the user's."""
    pytest.importorskip("transformers")
    from weightdecay.integrations.transformers import MeterCallback

    seen, meter = [], MeterCallback(every=4)
    callbacks = {"first": [meter, reporter(seen)], "last": [reporter(seen), meter], "added later": [reporter(seen)]}[place]
    run = trainer(tmp_path, callbacks=callbacks, max_steps=6)
    if place == "added later":
        run.add_callback(meter)
    others = [each for each in run.callback_handler.callbacks if each is not meter]
    run.train()
    assert [entry["step"] for entry in seen if "weight_decay/group0/kept" in entry] == [3, 6]
    decay = {name for name in seen[0] if name.startswith("weight_decay/")}
    assert decay == {f"weight_decay/group{place}/{name}" for place in (0, 1) for name in METRICS} - {"weight_decay/group1/kept"}
    assert [entry for entry in seen if "loss" in entry] == [entry for entry in run.state.log_history if "loss" in entry]
    assert run.callback_handler.callbacks == [meter, *others]  # each of the others once, in their order
    assert {"weight", "bias", "norm"} <= set(meter.meter.summary().courses)


def test_a_trainers_tensorboard_gets_the_numbers_too(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    pytest.importorskip("transformers")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    from weightdecay.integrations.transformers import MeterCallback

    callback = MeterCallback(every=2, metrics=["norm", "timescale_epochs"])
    run = trainer(tmp_path, callbacks=[callback], report_to="tensorboard", gradient_accumulation_steps=2, max_steps=6)
    run.train()
    found = scalars(tmp_path)
    steps = [(sample.step, sample.readings["group0"].norm) for sample in callback.meter.history()]
    assert [step for step, _ in steps] == [1, 2, 4, 6]
    assert callback.meter.metrics()["weight_decay/group0/timescale_epochs"] == pytest.approx(1 / (LR * LAMBDA) / 6)
    assert found["train/weight_decay/group0/norm"] == [(3, pytest.approx(steps[1][1])), (6, pytest.approx(steps[3][1]))]
    assert {name for name in found if "weight_decay/" in name} == {
        "train/weight_decay/group0/norm", "train/weight_decay/group1/norm", "train/weight_decay/group0/timescale_epochs"
    }  # fmt: skip


WANDB = """
from types import SimpleNamespace

run, config, summary, rows = None, {}, {}, []

def init(**options):
    global run
    run = SimpleNamespace(id="1", name="run", url="", summary=summary, _label=lambda **_: None)

def define_metric(*_, **__): ...

def termwarn(*_, **__): ...

def finish(): ...

def log(row):
    rows.append(row)
"""
"""What the Trainer's own callback calls of W&B, whose package sends to a server."""


def test_a_trainers_wandb_gets_the_numbers_too(tmp_path, monkeypatch):
    """By the Trainer's own callback, into a package of the same name that keeps what it gets."""
    pytest.importorskip("transformers")
    from weightdecay.integrations.transformers import MeterCallback

    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    package = tmp_path / "stands_in/wandb"
    (package / "sdk/lib").mkdir(parents=True)
    (package / "__init__.py").write_text(WANDB, encoding="utf-8")
    for empty in ("sdk", "sdk/lib"):
        (package / empty / "__init__.py").touch()
    (package / "sdk/lib/config_util.py").write_text("class ConfigError(Exception): ...", encoding="utf-8")
    monkeypatch.syspath_prepend(str(package.parent))
    callback = MeterCallback(every=2, metrics=["norm", "timescale_epochs"])
    run = trainer(tmp_path / "run", callbacks=[callback], report_to="wandb", gradient_accumulation_steps=2, max_steps=6)
    assert "WandbCallback" in [type(each).__name__ for each in run.callback_handler.callbacks]
    run.train()
    rows = sys.modules["wandb"].rows
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        del sys.modules[name]
    norms = {sample.step: sample.readings["group0"].norm for sample in callback.meter.history()}
    found = [row for row in rows if any("weight_decay/" in key for key in row)]
    assert [row["train/global_step"] for row in found] == [3, 6]
    for row, step in zip(found, (2, 6), strict=True):
        assert row["train/weight_decay/group0/norm"] == pytest.approx(norms[step])
        assert row["train/weight_decay/group0/timescale_epochs"] == pytest.approx(1 / (LR * LAMBDA) / 6)
    assert "train/loss" in found[0]


def test_what_cannot_be_hooked_is_warned_of_and_the_run_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from weightdecay.integrations import transformers as integration

    def refused(*_, **__):
        raise TypeError("the step of DeepSpeedZeroOptimizer calls no hooks")

    monkeypatch.setattr(integration, "Meter", refused)
    run = trainer(tmp_path, callbacks=[integration.MeterCallback()], max_steps=3)
    with pytest.warns(UserWarning, match="measures nothing in this run: the step of DeepSpeedZeroOptimizer"):
        run.train()
    assert run.state.global_step == 3


# What is trained, and what looks at it ------------------------------------------------------------------------------------


def split_by_shape(groups):
    """Return the groups with their matrices in groups of their own, which Muon steps; some may be empty."""
    for group in groups:
        is_matrix = [(each[1] if isinstance(each, tuple) else each).ndim == 2 for each in group["params"]]
        yield {**group, "params": list(itertools.compress(group["params"], is_matrix)), "direction": "muon"}
        yield {**group, "params": [each for each, matrix in zip(group["params"], is_matrix, strict=True) if not matrix]}


def attached(groups, lr):
    optimizer = torch.optim.AdamW([{**group, "weight_decay": 0.0} for group in groups], lr=lr)
    wd.attach(optimizer, "cautious", weight_decay=LAMBDA)
    return optimizer


BUILD = {
    "AdamW": lambda groups, lr: wd.AdamW(groups, lr=lr),
    "SGDW": lambda groups, lr: wd.SGDW(groups, lr=lr, momentum=0.9),
    "Adam with L2": lambda groups, lr: wd.Adam(groups, lr=lr),
    "AdamC": lambda groups, lr: wd.AdamC(groups, lr=lr),
    "Lion, eager": lambda groups, lr: wd.Lion(groups, lr=lr, backend="eager"),
    "Muon and Adam": lambda groups, lr: wd.Optimizer(split_by_shape(groups), lr, direction="adam", decay="decoupled"),
    "torch's AdamW": lambda groups, lr: torch.optim.AdamW(groups, lr=lr),
    "torch's SGD": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9),
    "cautious decay on torch's AdamW": attached,
}
"""What is trained in each framework: our optimizers, torch's, and torch's with a decay of ours on it."""


def audited(model, optimizer, scheduler=None):
    """Look at an optimizer, in whatever it is wrapped, with all that looks at one, while its gradients are there."""
    report = wd.doctor(model, optimizer, scheduler, steps=1000)
    assert "not an optimizer" not in str(report)
    assert not [finding.id for finding in report.findings if finding.severity == "error"], str(report)
    if Attachment.of(innermost(optimizer)) is not None:  # whose own rules know nothing of the decay
        return
    before = [param.detach().clone() for group in optimizer.param_groups for param in group["params"]]
    splits = wd.decompose(optimizer)
    assert len(splits) == sum(param.grad is not None for group in optimizer.param_groups for param in group["params"])
    assert str(splits)
    if splits.title == "Adam":  # no one number says what its L2 leaves
        with pytest.raises(ValueError, match="no one number says what is left"):
            wd.remaining(optimizer, scheduler, steps=100)
    else:
        assert str(wd.remaining(optimizer, scheduler, steps=100))
    for was, now in zip(before, (p for group in optimizer.param_groups for p in group["params"]), strict=True):
        assert torch.equal(was, now)


def assert_same(one, other):
    """Compare two models, bit for bit."""
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    assert pairs
    assert all(torch.equal(x, y) for x, y in pairs)


# Hugging Face, with LoRA ----------------------------------------------------------------------------------------------------


def lora(folder, build, *, callbacks=(), **arguments):
    """Return a Trainer of a LoRA model, whose second group is empty, since no bias and no norm trains."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(
        transformers.GPT2LMHeadModel(config), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    tokens = torch.randint(64, (48, 16), generator=torch.Generator().manual_seed(0))

    class Building(transformers.Trainer):
        def create_optimizer(self, *_, **__):
            if self.optimizer is None:
                decayed = [param for param in self.model.parameters() if param.requires_grad]
                groups = [{"params": decayed, "weight_decay": LAMBDA}, {"params": [], "weight_decay": 0.0}]
                self.optimizer = build(groups, 1e-2)
            return self.optimizer

    given = {"per_device_train_batch_size": 4, "max_steps": 8, "logging_steps": 4, "save_strategy": "no", **arguments}
    return Building(
        model,
        transformers.TrainingArguments(
            str(folder), report_to="none", use_cpu=True, learning_rate=1e-2, disable_tqdm=True, max_grad_norm=1.0,
            lr_scheduler_type="cosine", warmup_steps=2, dataloader_num_workers=0, seed=0, **given,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=list(callbacks),
    )  # fmt: skip


ADAPTERS = {
    "LoRA": ("LoraConfig", {"r": 2}, {"lora.a", "lora.b"}),
    "LoRA of an embedding, and a head": (
        "LoraConfig", {"r": 2, "target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
        {"lora.a", "lora.b", "weight"},
    ),
    "DoRA": ("LoraConfig", {"r": 2, "use_dora": True}, {"lora.a", "lora.b", "vector"}),
    "AdaLoRA": ("AdaLoraConfig", {"total_step": 100}, {"lora.a", "lora.b", "vector"}),
    "LoHa": ("LoHaConfig", {"r": 2}, {"weight"}),
    "VeRA": ("VeraConfig", {"r": 2}, {"vector"}),
    "IA³": ("IA3Config", {"feedforward_modules": []}, {"vector"}),
    "prompts": ("PromptTuningConfig", {"num_virtual_tokens": 3}, {"token"}),
}  # fmt: skip
"""PEFT's configurations, and the roles of what each of them trains."""


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_doctor_says_nothing_false_of_adapters(name):
    """What is frozen is no mistake; that LoRA's factors decay is said once, with a cure that keeps the optimizer."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config, given, roles = ADAPTERS[name]
    if name != "prompts":
        given = {"target_modules": ["q_proj", "v_proj"], **given}
    torch.manual_seed(0)
    llama = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, of its defaults
        model = peft.get_peft_model(transformers.LlamaForCausalLM(llama), getattr(peft, config)(task_type="CAUSAL_LM", **given))
    groups = wd.param_groups(model, LAMBDA)
    trained = [row for row in groups.to_dict() if row["group"] is not None]
    assert {row["role"] for row in trained} == roles
    assert len(trained) == sum(param.requires_grad for param in model.parameters())
    optimizer = torch.optim.AdamW(groups, lr=LR)
    found = wd.doctor(model, optimizer, steps=10_000).findings
    lora = tuple(row["name"] for row in trained if row["role"].startswith("lora."))
    assert [(each.id, each.severity, set(each.tensors)) for each in found] == ([("D9", "info", set(lora))] if lora else [])
    if lora:
        names = {"optimizer": optimizer, "model": model, "torch": torch}
        exec(found[0].fix, names)
        rest = wd.doctor(model, names["optimizer"], steps=10_000).findings
        assert rest == ()
        assert {id(param) for group in names["optimizer"].param_groups for param in group["params"]} == {
            id(param) for param in model.parameters() if param.requires_grad
        }


LOW = ("AdamW", "Muon and Adam", "torch's AdamW")
"""Which of them run under autocast as well."""


@pytest.mark.parametrize(("name", "precision"), [*((name, "float32") for name in BUILD), *((name, "bf16") for name in LOW)])
def test_lora_trains_in_the_trainer_and_is_seen(tmp_path, name, precision):
    """Of every optimizer, ours or not, all that the decay does is known while it trains."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    from weightdecay.integrations.transformers import MeterCallback

    class Auditing(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, *, model, optimizer, lr_scheduler, **_):
            if state.global_step == 3:
                audited(model, optimizer, lr_scheduler)
                looked.append(state.global_step)

    looked, callback = [], MeterCallback(every=2, roles=True)
    run = lora(tmp_path, BUILD[name], callbacks=[callback, Auditing()], bf16=precision == "bf16")
    start = [param.detach().clone() for param in run.model.parameters()]
    run.train()
    assert looked == [3]
    moved = [not torch.equal(was, now) for was, now in zip(start, run.model.parameters(), strict=True)]
    assert moved == [param.requires_grad for param in run.model.parameters()]
    meter = callback.meter
    assert meter.unknown is None
    assert [sample.step for sample in meter.history()] == [1, 2, 4, 6, 8]
    course = meter.summary().courses["group0"]
    assert course.shrink > 0
    if name not in ("Adam with L2", "torch's SGD"):  # whose noise is as large as their decay
        assert course.kept == pytest.approx(1, abs=0.05)
    logged = [entry for entry in run.state.log_history if "weight_decay/lora.a/norm" in entry]
    assert [entry["step"] for entry in logged] == [4, 8]


@pytest.mark.parametrize("build", [BUILD[name] for name in ("AdamW", "Muon and Adam", "cautious decay on torch's AdamW")],
                         ids=["AdamW", "Muon", "attached"])  # fmt: skip
def test_a_resumed_trainer_is_the_run_that_went_through(tmp_path, build):
    """With gradients that accumulate; the meter goes on counting where the run was."""
    pytest.importorskip("transformers")
    from weightdecay.integrations.transformers import MeterCallback

    options = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4}
    through = lora(tmp_path / "through", build, **options)
    through.train()
    callback = MeterCallback(every=2)
    resumed = lora(tmp_path / "resumed", build, callbacks=[callback], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "through/checkpoint-4"))
    assert_same(through.model, resumed.model)
    assert [sample.step for sample in callback.meter.history()] == [5, 6, 8]
    assert [entry["step"] for entry in resumed.state.log_history if "weight_decay/group0/norm" in entry] == [8]


def test_a_trainers_checkpoint_of_torchs_moves_to_ours(tmp_path):
    """A run that began with torch's AdamW goes on with wd.AdamW as if nothing had happened."""
    save = {"save_strategy": "steps", "save_steps": 4}
    through = lora(tmp_path / "through", BUILD["torch's AdamW"], **save)
    through.train()
    resumed = lora(tmp_path / "resumed", BUILD["AdamW"], **save)
    resumed.train(resume_from_checkpoint=str(tmp_path / "through/checkpoint-4"))
    for one, other in zip(through.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_migrate_takes_a_trainers_checkpoint_into_our_groups(tmp_path):
    """The Trainer's groups have no names; those of the model and of its two groups say which tensor is which."""
    run = trainer(tmp_path, save_strategy="steps", save_steps=6, max_steps=6)
    run.train()
    saved = torch.load(tmp_path / "checkpoint-6/optimizer.pt", weights_only=True)
    names = {param: name for name, param in run.model.named_parameters()}
    order = [[names[param] for param in group["params"]] for group in run.optimizer.param_groups]
    optimizer = wd.AdamW(wd.param_groups(run.model, LAMBDA, names=True), lr=LR)
    wd.migrate(optimizer, saved, saved=order, weight_decay="live", lr="checkpoint")
    theirs = innermost(run.optimizer).state
    assert len(optimizer.state) == len(theirs)
    for param, entry in theirs.items():
        assert torch.equal(optimizer.state[param]["exp_avg"], entry["exp_avg"])


@pytest.mark.parametrize("build", [wd.AdamW, wd.Adam, torch.optim.AdamW], ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_a_trainer_with_lora_trains_and_is_measured(tmp_path, build):
    """Of such a model no bias and no norm trains, and the second of the two groups that a Trainer makes is empty."""
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    from weightdecay.integrations.transformers import MeterCallback

    callback = MeterCallback(every=2)
    run = trainer(tmp_path, callbacks=[callback], max_steps=4)
    lora = peft.get_peft_model(run.model, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    run.model = run.model_wrapped = lora
    run.optimizer_cls_and_kwargs = (build, {"lr": LR})
    run.train()
    optimizer = run.optimizer.optimizer
    assert type(optimizer) is build
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    assert sizes[0] > 0
    assert sizes[1:] == [0]
    assert callback.meter.unknown is None
    assert callback.meter.metrics()["weight_decay/group0/decay_to_update"] > 0
    for param in lora.parameters():
        param.grad = torch.ones_like(param) if param.requires_grad else None
    assert len(wd.decompose(optimizer)) == sizes[0]
    if build is not wd.Adam:
        assert wd.remaining(optimizer, steps=2).groups == (pytest.approx((1 - LR * LAMBDA) ** 2), 1.0)


# Lightning ----------------------------------------------------------------------------------------------------------------


def lightning_run(folder, callbacks=(), *, optimizers=1, **options):
    """Train a small network for two epochs of five batches, and return it with its Trainer."""
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))
            self.automatic_optimization = optimizers == 1

        def training_step(self, batch, _):
            loss = self.net(batch).square().mean()
            if not self.automatic_optimization:
                for each in self.optimizers():
                    each.zero_grad()
                self.manual_backward(loss)
                for each in self.optimizers():
                    each.step()
            return loss

        def configure_optimizers(self):
            groups = wd.param_groups(self.net, LAMBDA)
            if optimizers == 1:
                return wd.AdamW(groups, lr=LR, backend="eager")
            return [torch.optim.AdamW([group], lr=LR) for group in groups]

    torch.manual_seed(0)
    module = Module()
    run = lightning.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=list(callbacks), logger=CSVLogger(folder), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **options,
    )  # fmt: skip
    data = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    run.fit(module, torch.utils.data.DataLoader(data, batch_size=8))
    return module, run


def test_lightning_logs_what_the_decay_does(tmp_path):
    pytest.importorskip("lightning")
    from weightdecay.integrations.lightning import MeterCallback

    callback = MeterCallback(every=4, roles=True, metrics="all")
    module, run = lightning_run(tmp_path, [callback], gradient_clip_val=0.1)
    (meter,) = callback.meters
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text(encoding="utf-8").splitlines()
    names, *values = (row.split(",") for row in rows)
    seen = {int(row[names.index("step")]): float(row[names.index("weight_decay/group0/angle")]) for row in values
            if row[names.index("weight_decay/group0/angle")]}  # fmt: skip
    assert seen == {sample.step: pytest.approx(sample.readings["group0"].angle) for sample in meter.history()}
    assert list(seen) == [1, 2, 4, 8]
    assert run.callback_metrics["weight_decay/group0/kept"].item() == pytest.approx(1, abs=0.01)  # for callbacks that watch it
    metrics = meter.metrics()
    assert {name for name in KNOWN if f"weight_decay/weight/{name}" in metrics} == KNOWN
    assert metrics["weight_decay/group0/shrink"] == pytest.approx(LR * LAMBDA)
    assert metrics["weight_decay/group0/kept"] == pytest.approx(1, abs=0.01)
    assert metrics["weight_decay/weight/timescale_epochs"] == pytest.approx(1 / (LR * LAMBDA) / 5)
    plain, _ = lightning_run(tmp_path, gradient_clip_val=0.1)
    for metered, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(metered, other)
    assert not run.optimizers[0]._optimizer_step_pre_hooks


def test_lightning_counts_optimizer_steps_where_gradients_accumulate(tmp_path):
    pytest.importorskip("lightning")
    from weightdecay.integrations.lightning import MeterCallback

    callback = MeterCallback(every=2)
    _, run = lightning_run(tmp_path, [callback], accumulate_grad_batches=2)
    (meter,) = callback.meters
    assert run.global_step == 6  # the fifth batch of an epoch steps as well
    assert [sample.step for sample in meter.history()] == [1, 2, 4, 6]
    assert meter.metrics()["weight_decay/weight/timescale_epochs"] == pytest.approx(1 / (LR * LAMBDA) / 3)
    (path,) = tmp_path.rglob("metrics.csv")
    names, *values = (row.split(",") for row in path.read_text(encoding="utf-8").splitlines())
    assert [int(row[names.index("step")]) for row in values if row[names.index("weight_decay/group0/norm")]] == [1, 2, 4, 6]


def test_lightning_names_each_of_several_optimizers(tmp_path):
    pytest.importorskip("lightning")
    from weightdecay.integrations.lightning import MeterCallback

    callback = MeterCallback(every=5)
    lightning_run(tmp_path, [callback], optimizers=2)
    assert [meter.step for meter in callback.meters] == [10, 10]
    (path,) = tmp_path.rglob("metrics.csv")
    header = path.read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"weight_decay/optimizer0/group0/norm", "weight_decay/optimizer1/group0/norm"} <= set(header)


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("build", [wd.AdamW, wd.SGD, wd.Lion, wd.AdamC, wd.AdamCPR], ids=lambda cls: cls.__name__)
def test_lightning_clips_gradients_under_mixed_precision(tmp_path, build, backend):
    lightning = pytest.importorskip("lightning.pytorch")
    norms = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 1)

        def training_step(self, batch, _):
            return 100 * self.net(batch).square().mean()

        def configure_optimizers(self):
            return build(self.parameters(), lr=1e-2, backend=backend)

        def on_before_zero_grad(self, optimizer):
            grads = [param.grad for param in self.parameters() if param.grad is not None]
            norms.extend([torch.nn.utils.get_total_norm(grads).item()] if grads else [])

    torch.manual_seed(0)
    module = Module()
    run = lightning.Trainer(
        max_epochs=1, accelerator="cpu", precision="bf16-mixed", gradient_clip_val=1.0, logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    run.fit(module, torch.utils.data.DataLoader(torch.randn(32, 4), batch_size=4))
    (optimizer,) = run.optimizers
    assert {state["step"].item() for state in optimizer.state.values()} == {8.0}
    assert max(norms) == pytest.approx(1.0, abs=1e-2)  # of gradients a hundred times as long


# Lightning, as people use it ----------------------------------------------------------------------------------------------


def fitted(folder, build, callbacks=(), *, scheduled=True, ckpt_path=None, epochs=2, **options):
    """Fit a small network with an optimizer of `BUILD`; return it with its Trainer."""
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))

        def training_step(self, batch, _):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            optimizer = build(wd.param_groups(self.net, LAMBDA), 1e-2)
            if not scheduled:
                return optimizer
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    torch.manual_seed(0)
    module = Module()
    given = {"enable_checkpointing": False, "logger": False, **options}
    run = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **given,
    )  # fmt: skip
    data = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    run.fit(module, torch.utils.data.DataLoader(data, batch_size=8), ckpt_path=ckpt_path)
    return module, run


@pytest.mark.parametrize(("name", "precision"), [  # on a CPU Lightning knows no float16
    *((name, "bf16-mixed") for name in BUILD), *((name, "32-true") for name in LOW)
])  # fmt: skip
def test_lightning_clips_in_any_precision_and_is_seen(tmp_path, name, precision):
    build = BUILD[name]
    lightning = pytest.importorskip("lightning.pytorch")
    from weightdecay.integrations.lightning import MeterCallback

    class Auditing(lightning.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 4:
                audited(pl_module, optimizer)
                looked.append(trainer.global_step)

    looked, callback = [], MeterCallback(every=2)
    module, run = fitted(tmp_path, build, [callback, Auditing()], precision=precision, gradient_clip_val=0.1)
    assert looked == [4]
    assert run.global_step == 10
    (meter,) = callback.meters
    assert meter.unknown is None
    assert [sample.step for sample in meter.history()] == [1, 2, 4, 6, 8, 10]
    assert meter.summary().courses["group0"].kept == pytest.approx(1, abs=0.05)
    plain, _ = fitted(tmp_path, build, precision=precision, gradient_clip_val=0.1)
    assert_same(module, plain)
    unclipped, _ = fitted(tmp_path, build, precision=precision)
    differs = any(not torch.equal(x, y) for x, y in zip(module.parameters(), unclipped.parameters(), strict=True))
    assert differs


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])  # on a CPU Lightning knows no float16
def test_our_adamw_in_lightning_is_torchs(tmp_path, precision):
    """Clipped, scheduled and accumulated as torch's is."""
    options = {"precision": precision, "gradient_clip_val": 0.1, "accumulate_grad_batches": 2}
    ours, _ = fitted(tmp_path, BUILD["AdamW"], **options)
    theirs, _ = fitted(tmp_path, BUILD["torch's AdamW"], **options)
    start, _ = fitted(tmp_path, BUILD["AdamW"], epochs=0)
    for one, other, begun in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        assert not torch.equal(one, begun)


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.parametrize("build", [
    BUILD[name] for name in ("AdamW", "AdamC", "Muon and Adam", "cautious decay on torch's AdamW")
], ids=["AdamW", "AdamC", "Muon", "attached"])  # fmt: skip
def test_a_resumed_lightning_run_is_the_one_that_went_through(tmp_path, build):
    checkpoint = pytest.importorskip("lightning.pytorch.callbacks").ModelCheckpoint
    from weightdecay.integrations.lightning import MeterCallback

    first, second = (checkpoint(tmp_path / name, "{epoch}", save_top_k=-1, every_n_epochs=1) for name in ("through", "resumed"))
    through, _ = fitted(tmp_path, build, [first], enable_checkpointing=True)
    callback = MeterCallback(every=4)
    resumed, _ = fitted(
        tmp_path, build, [second, callback], enable_checkpointing=True, ckpt_path=tmp_path / "through/epoch=0.ckpt"
    )
    assert_same(through, resumed)
    (meter,) = callback.meters
    assert [sample.step for sample in meter.history()] == [6, 7, 8]


@pytest.mark.filterwarnings("ignore:lr=0.01 in param_groups:UserWarning")  # SWA writes its own rate over `initial_lr`
@pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)
def test_averages_of_weights_are_kept_beside_any_optimizer(tmp_path, build):
    """SWA sets the learning rate by itself; an EMA swaps weights in and out."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    from weightdecay.integrations.lightning import MeterCallback

    meters = MeterCallback(every=1)
    averaging = callbacks.StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1, annealing_epochs=1)
    module, _ = fitted(tmp_path, build, [averaging, meters], epochs=3, scheduled=False)
    assert all(param.isfinite().all() for param in module.parameters())
    (meter,) = meters.meters
    shrinks = [sample.readings["group0"].shrink for sample in meter.history()]
    assert shrinks[0] > 5 * shrinks[-1] > 0 or build in (BUILD["Adam with L2"], attached)  # the rate of SWA is a tenth
    if hasattr(callbacks, "EMAWeightAveraging"):
        meters = MeterCallback(every=1)
        module, _ = fitted(tmp_path, build, [callbacks.EMAWeightAveraging(decay=0.9), meters], scheduled=False)
        assert all(param.isfinite().all() for param in module.parameters())
        assert meters.meters[0].unknown is None


# accelerate, and torch's own ------------------------------------------------------------------------------------------------


def accelerated(build, *, steps=6, accumulate=2, resume=None, save=None, seen=None, mixed="no"):
    """Train in a loop with accelerate: a prepared scheduler, clipping, accumulation, and a state that is saved and loaded."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # which is one for the process
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=mixed)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    optimizer = build(wd.param_groups(model, LAMBDA), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * steps)
    data = torch.randn(8 * accumulate * steps, 4, generator=torch.Generator().manual_seed(1))
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    done = 0
    if resume is not None:
        accelerator.load_state(resume)
        loader, done = accelerator.skip_first_batches(loader, accumulate * (steps // 2)), steps // 2
    meter = wd.Meter(optimizer, every=1, start=done)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).square().mean())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
                if seen is not None and done == 2:
                    audited(accelerator.unwrap_model(model), optimizer, scheduler)
                    seen.append(done)
                done += 1
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if save is not None and accelerator.sync_gradients and done == steps // 2:
            accelerator.save_state(save)
    accelerator.free_memory()
    return model, meter


@pytest.mark.parametrize(("name", "mixed"), [*((name, "no") for name in BUILD), *((name, "bf16") for name in LOW)])
def test_accelerate_trains_saves_and_resumes(tmp_path, name, mixed):
    seen, build = [], BUILD[name]
    through, meter = accelerated(build, save=tmp_path / "state", seen=seen, mixed=mixed)
    assert seen == [2]
    assert meter.unknown is None
    assert [sample.step for sample in meter.history()] == [1, 2, 3, 4, 5, 6]
    assert meter.summary().courses["group0"].kept == pytest.approx(1, abs=0.05)
    resumed, later = accelerated(build, resume=tmp_path / "state", mixed=mixed)
    assert_same(through, resumed)
    assert [sample.step for sample in later.history()] == [4, 5, 6]


@pytest.fixture
def alone():
    """Be a process group of one."""
    dist = torch.distributed
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def looped(model, optimizer, steps=4, first=0):
    """Train for some steps, with gradients that are told by the number of the step."""
    for step in range(first, first + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))


CLASSES = {"AdamW": wd.AdamW, "SGDW": wd.SGDW, "Adam with L2": wd.Adam, "torch's AdamW": torch.optim.AdamW}


@pytest.mark.parametrize("build", CLASSES.values(), ids=CLASSES)
def test_zero_redundancy_steps_as_one_process_does(alone, build):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model, plain = network(), network()
    sharded = ZeroRedundancyOptimizer(wd.param_groups(model, LAMBDA, names=False), build, lr=1e-2)
    meter = wd.Meter(sharded.optim if hasattr(sharded, "optim") else sharded, every=1)
    looped(model, sharded)
    looped(plain, build(wd.param_groups(plain, LAMBDA), lr=1e-2))
    assert_same(model, plain)
    assert meter.unknown is None
    assert meter.metrics()["weight_decay/group0/kept"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("build", CLASSES.values(), ids=CLASSES)
def test_fully_shard_steps_saves_and_loads(alone, tmp_path, build):
    """FSDP2 in one process, with the checkpoints of torch.distributed.checkpoint."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def sharded():
        model = network()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        return model, build(wd.param_groups(model, LAMBDA), lr=1e-2)

    model, optimizer = sharded()
    meter = wd.Meter(optimizer, every=1, roles=model)
    looped(model, optimizer, 3)
    audited(model, optimizer)
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(states, checkpoint_id=tmp_path / "saved")
    looped(model, optimizer, 3, first=3)

    other, fresh = sharded()
    looped(other, fresh, 1, first=40)
    states = dict(zip(("model", "optimizer"), get_state_dict(other, fresh), strict=True))
    dcp.load(states, checkpoint_id=tmp_path / "saved")
    set_state_dict(other, fresh, model_state_dict=states["model"], optim_state_dict=states["optimizer"])
    looped(other, fresh, 3, first=3)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.full_tensor(), two.full_tensor())

    plain = network()
    looped(plain, build(wd.param_groups(plain, LAMBDA), lr=1e-2), 6)
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.full_tensor(), two, rtol=1e-5, atol=1e-7)
    assert meter.unknown is None
    assert meter.metrics()["weight_decay/weight/kept"] == pytest.approx(1, abs=0.05)


# TensorBoard --------------------------------------------------------------------------------------------------------------


def test_tensorboard_shows_every_number_at_its_step(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    from weightdecay.integrations.tensorboard import write_metrics

    w = nn.Parameter(torch.randn(4, 4))
    optimizer = wd.AdamW([w], lr=LR, weight_decay=LAMBDA, backend="eager")
    meter = wd.Meter(optimizer, every=2)
    with SummaryWriter(tmp_path) as writer:
        for step in range(4):
            w.grad = torch.randn(4, 4)
            optimizer.step()
            if step == 1:
                write_metrics(writer, meter)
        write_metrics(writer, meter, step=40, prefix="late")
    found = scalars(tmp_path)
    late = meter.metrics("late", METRICS)
    assert len(late) == 5
    assert {name for name in found if name.startswith("late/")} == set(late)
    for name, value in late.items():
        assert found[name] == [(40, pytest.approx(value, rel=1e-6))]
    assert [step for step, _ in found["weight_decay/group0/norm"]] == [2]


@pytest.mark.parametrize("framework", ["transformers", "lightning"])
def test_a_framework_that_is_not_installed_is_named_with_its_extra(framework, monkeypatch):
    monkeypatch.setitem(sys.modules, framework, None)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, f"weightdecay.integrations.{framework}", raising=False)
    with pytest.raises(ImportError, match=rf"{framework} is not installed.*weightdecay\[integrations\]"):
        __import__(f"weightdecay.integrations.{framework}")
