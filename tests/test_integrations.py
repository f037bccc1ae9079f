"""The meter in real training loops on the CPU: Hugging Face's Trainer, Lightning, TensorBoard. `make integrations` runs it.

Every test compares with a run that nobody meters, or with a meter that was attached by hand.
"""

import sys

import pytest
import torch
from torch import nn

import weightdecay as wd
from weightdecay.audit.readings import METRICS
from weightdecay.wrappers import innermost

# Of Lightning's own code.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
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
    given = {"per_device_train_batch_size": 4, "num_train_epochs": 1.0, "logging_steps": 3, **arguments}
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(folder), report_to=report_to, use_cpu=True, save_strategy="no", learning_rate=LR, weight_decay=LAMBDA,
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


OURS = {
    "AdamW": lambda groups, lr: wd.AdamW(groups, lr=lr),
    "SGDW": lambda groups, lr: wd.SGDW(groups, lr=lr, momentum=0.9),
    "AdamC": lambda groups, lr: wd.AdamC(groups, lr=lr),
    "Lion": lambda groups, lr: wd.Lion(groups, lr=lr),
    "Muon and Adam": lambda groups, lr: wd.Optimizer(_split_by_shape(groups), lr, direction="adam", decay="decoupled"),
    "torch's AdamW": lambda groups, lr: torch.optim.AdamW(groups, lr=lr),
    "torch's SGD": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9),
    "attached to torch's": lambda groups, lr: _attached(groups, lr),
}
"""What is trained in each framework: our optimizers, and torch's with a decay of ours on them."""


def _split_by_shape(groups):
    """Return the groups with their matrices in groups of their own, which Muon steps."""
    for group in groups:
        matrices = [param for param in group["params"] if param.ndim == 2]
        others = [param for param in group["params"] if param.ndim != 2]
        yield {**group, "params": matrices, "direction": "muon"}
        yield {**group, "params": others}


def _attached(groups, lr):
    optimizer = torch.optim.AdamW([{**group, "weight_decay": 0.0} for group in groups], lr=lr)
    wd.attach(optimizer, "cautious", weight_decay=LAMBDA)
    return optimizer


def audited(model, optimizer, scheduler=None):
    """Look at an optimizer with all that looks at one, in the middle of a step, and return what was seen."""
    report = wd.doctor(model, optimizer, scheduler, steps=1000)
    assert not [finding for finding in report.findings if finding.severity == "error"], report
    seen = {"doctor": report}
    if not hasattr(innermost(optimizer).defaults, "attachment"):  # whose own rules know nothing of the decay
        seen["decompose"] = wd.decompose(optimizer)
        assert str(seen["decompose"])
        assert str(wd.remaining(optimizer, steps=100))
    return seen


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # of PEFT's code
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
                return wd.AdamW(groups, lr=LR, reader="eager")
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
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
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
    names, *values = (row.split(",") for row in path.read_text().splitlines())
    assert [int(row[names.index("step")]) for row in values if row[names.index("weight_decay/group0/norm")]] == [1, 2, 4, 6]


def test_lightning_names_each_of_several_optimizers(tmp_path):
    pytest.importorskip("lightning")
    from weightdecay.integrations.lightning import MeterCallback

    callback = MeterCallback(every=5)
    lightning_run(tmp_path, [callback], optimizers=2)
    assert [meter.step for meter in callback.meters] == [10, 10]
    (path,) = tmp_path.rglob("metrics.csv")
    header = path.read_text().splitlines()[0].split(",")
    assert {"weight_decay/optimizer0/group0/norm", "weight_decay/optimizer1/group0/norm"} <= set(header)


@pytest.mark.parametrize("reader", ["auto", "eager"])
@pytest.mark.parametrize("build", [wd.AdamW, wd.SGD, wd.Lion, wd.AdamC, wd.AdamCPR], ids=lambda cls: cls.__name__)
def test_lightning_clips_gradients_under_mixed_precision(tmp_path, build, reader):
    lightning = pytest.importorskip("lightning.pytorch")
    norms = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 1)

        def training_step(self, batch, _):
            return 100 * self.net(batch).square().mean()

        def configure_optimizers(self):
            return build(self.parameters(), lr=1e-2, reader=reader)

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


# TensorBoard --------------------------------------------------------------------------------------------------------------


def test_tensorboard_shows_every_number_at_its_step(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    from weightdecay.integrations.tensorboard import write_metrics

    w = nn.Parameter(torch.randn(4, 4))
    optimizer = wd.AdamW([w], lr=LR, weight_decay=LAMBDA, reader="eager")
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
