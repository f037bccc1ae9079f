"""A decay on somebody else's optimizer: it equals ours, and hooks, checkpoints and what can go wrong leave nothing behind."""

import contextlib
import copy
import gc
import io
import math
import pickle
import weakref

import pytest
import torch
from torch.nn import Parameter
from torch.optim import lr_scheduler
from training import all_params, apart, bits, copies, everything, noise, one_process, parameters, refused, set_gradients, train

import weightdecay as wd
from weightdecay.backends.rounding import LOW_PRECISION
from weightdecay.optim.attach import LAMBDA
from weightdecay.update_rules.ops import absolute, sign, where
from weightdecay.update_rules.traits import is_uniform

LR, LAM = 0.05, 0.3
DECAYS = {name: rule for name, rule in wd.rules().of("decay").items() if not rule.shared}
UNIFORM = [name for name, rule in DECAYS.items() if is_uniform(rule) and "lam" in rule.numbers]
NUMBERS = {"constrained": {"kappa": 4.0, "kappa_update": 0.02}, "huber": {"delta": 0.3}, "pnorm": {"p": 1.5}}
every_decay = pytest.mark.parametrize("decay", DECAYS)


class TrustRatio(torch.optim.Optimizer):
    """A third party's optimizer: its groups know no weight_decay, its step reads the weights, and clears the gradients."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        for param in all_params(self):
            if param.grad is not None:
                self.state[param]["count"] = self.state[param].get("count", 0) + 1
                param.sub_(param.grad * param.norm() / param.grad.norm(), alpha=self.param_groups[0]["lr"])
        self.zero_grad()


class Breaks(torch.optim.SGD):
    """An optimizer whose step fails when told to, after it has moved the first parameter."""

    broken = False

    def step(self, closure=None):
        if self.broken:
            raise OSError("out of luck")
        return super().step(closure)


def given(decay, lam=LAM):
    """Return λ where the decay has one, and numbers at which it acts."""
    return {**({"weight_decay": lam} if "lam" in DECAYS[decay].numbers else {}), **NUMBERS.get(decay, {})}


def attached(decay, params=None, *, host=torch.optim.Adam, lam=LAM, lr=LR, rounding="auto", **options):
    """Return an optimizer with a decay attached."""
    optimizer = host(parameters().values() if params is None else params, lr=lr, **options)
    wd.attach(optimizer, decay, rounding=rounding, **given(decay, lam))
    return optimizer


def saved_and_loaded(state_dict):
    """Return a state as a file keeps it."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def scheduled(optimizer, steps):
    schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=steps, cycle_momentum=False)
    for t in range(1, steps + 1):
        train(optimizer, 1, first=t)
        if t < steps:
            schedule.step()


# It is the decay that it says ------------------------------------------------------------------------------------------


@every_decay
def test_it_equals_the_optimizer_that_has_the_decay(decay):
    params = parameters()
    theirs, plain = attached(decay, params.values()), torch.optim.Adam(copies(parameters()).values(), lr=LR)
    ours = wd.Optimizer(copies(parameters()).values(), LR, direction="adam", decay=decay, backend="eager", **given(decay))
    for optimizer in (theirs, ours, plain):
        scheduled(optimizer, 24)
    assert apart(theirs, ours) < 1e-12
    assert decay == "none" or apart(plain, ours) > 1e-10


@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_decoupled_on_adamw_is_adamw(how):
    theirs = torch.optim.AdamW(parameters().values(), lr=LR, weight_decay=LAM, **how)
    taken = torch.optim.AdamW(parameters().values(), lr=LR, weight_decay=LAM, **how)
    wd.attach(taken, "decoupled")
    for optimizer in (theirs, taken):
        scheduled(optimizer, 24)
    assert apart(theirs, taken) < 1e-12
    assert "fused" in how or bits(all_params(theirs)) == bits(all_params(taken))


@pytest.mark.parametrize("maximize", [False, True])
def test_decoupled_on_sgd_is_sgdw(maximize):
    options = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "maximize": maximize}
    ours = wd.SGDW(parameters().values(), weight_decay=LAM, **options)
    theirs = torch.optim.SGD(parameters().values(), weight_decay=LAM, **options)
    wd.attach(theirs, "decoupled")
    plain = torch.optim.SGD(parameters().values(), **options)
    for optimizer in (ours, theirs, plain):
        train(optimizer, 30)
    assert apart(ours, theirs) < 1e-12 < 1e-10 < apart(ours, plain)


def test_the_gradient_is_turned_for_a_decay_that_asks_for_it():
    options = {"decay": "selective_projection", "weight_decay": LAM}
    ours = wd.Optimizer(parameters().values(), 0.01, direction="adam", maximize=True, backend="eager", **options)
    theirs = torch.optim.Adam(parameters().values(), lr=0.01, maximize=True)
    wd.attach(theirs, **options)
    for optimizer in (ours, theirs):
        train(optimizer, 30)
    assert apart(ours, theirs) < 1e-12


@pytest.mark.parametrize("decay", ["decoupled", "cautious", "toward"])
def test_a_step_that_reads_the_weights_reads_them_as_they_were(decay):
    params, start = parameters(), parameters()
    optimizer = TrustRatio(params.values(), lr=LR)
    wd.attach(optimizer, decay, weight_decay=LAM)
    for t in range(1, 10):
        set_gradients(optimizer, t)
        before = {name: (w.detach().clone(), w.grad.clone()) for name, w in params.items()}
        optimizer.step()
        for name, (w, g) in before.items():
            u = g * w.norm() / g.norm()
            pulled = {"decoupled": w, "cautious": torch.where(w * u >= 0, w, 0.0), "toward": w - start[name]}[decay]
            torch.testing.assert_close(params[name].detach(), w - LR * u - LR * LAM * pulled.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Rprop"]
)
def test_each_optimizer_of_torch_takes_its_step_and_shrinks(name):
    """One step, from the same weights, differs by ηλ·w. The second is of the optimizer's other branch, with state."""
    host = getattr(torch.optim, name)
    plain = host(parameters().values(), lr=0.01, **({"weight_decay": 0.0} if name == "AdamW" else {}))
    theirs = attached("decoupled", host=host, lr=0.01)
    for t in (1, 2):
        with torch.no_grad():
            for p, q in zip(all_params(plain), all_params(theirs), strict=True):
                q.copy_(p)
        before = [p.detach().clone() for p in all_params(plain)]
        for optimizer in (plain, theirs):
            train(optimizer, 1, first=t)
        for p, q, w in zip(all_params(plain), all_params(theirs), before, strict=True):
            torch.testing.assert_close(q, p - 0.01 * LAM * w, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_matrix_optimizers_and_those_that_measure_the_weights(name):
    host, shape = getattr(torch.optim, name), {"weight": (4, 3)}
    plain = host(parameters(shapes=shape).values(), lr=0.01, weight_decay=0.0)
    theirs = host(parameters(shapes=shape).values(), lr=0.01, weight_decay=LAM)
    wd.attach(theirs, "decoupled")
    (before,) = (p.detach().clone() for p in all_params(plain))
    for optimizer in (plain, theirs):
        train(optimizer, 1)
    torch.testing.assert_close(all_params(theirs)[0], all_params(plain)[0] - 0.01 * LAM * before, rtol=0, atol=1e-15)


class Spoils(torch.optim.Optimizer):
    """An optimizer that uses its gradients up."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for param in all_params(self):
            param.sub_(param.grad, alpha=self.param_groups[0]["lr"])
            param.grad.neg_()


def test_an_optimizer_may_use_its_gradients_up():
    sparing, spoiling = (attached("selective_projection", host=host) for host in (torch.optim.SGD, Spoils))
    for optimizer in (sparing, spoiling):
        train(optimizer, 10)
    assert apart(sparing, spoiling) < 1e-14


@every_decay
def test_without_lambda_or_learning_rate_no_bit_changes(decay):
    plain, resting = torch.optim.Adam(parameters().values(), lr=LR), attached(decay, lr=LR, lam=0.0)
    if "lam" in DECAYS[decay].numbers:
        for optimizer in (plain, resting):
            train(optimizer, 5)
        assert bits(all_params(plain)) == bits(all_params(resting))
    for optimizer in (still := attached(decay), moving := attached(decay)):
        train(optimizer, 3)
    for group in still.param_groups:
        group["lr"] = 0.0
    before = bits(all_params(still))
    train(still, 3, first=4)
    train(moving, 3, first=4)
    assert bits(all_params(still)) == before != bits(all_params(moving))


def test_what_a_decay_leaves_alone_stays_bit_for_bit():
    shape = {"weight": (40, 50)}
    plain, within, cautious = (torch.optim.Adam(parameters(shapes=shape).values(), lr=0.37) for _ in range(3))
    wd.attach(within, "constrained", kappa=1e9)  # a bound that no norm reaches
    wd.attach(cautious, "cautious", weight_decay=LAM)
    for optimizer in (plain, within, cautious):
        train(optimizer, 1)
    before, (p,), (q,) = parameters(shapes=shape)["weight"], all_params(plain), all_params(cautious)
    alone = before * (before - p) < 0
    assert 100 < alone.sum() < 1900
    assert torch.equal(p[alone], q[alone])
    assert not torch.isclose(p[~alone], q[~alone], rtol=1e-6).any()
    for optimizer in (plain, within):
        train(optimizer, 5, first=2)
    assert bits(all_params(plain)) == bits(all_params(within))


def test_complex_weights_decay_as_pairs_of_reals():
    for decay in ("decoupled", "soft_threshold"):
        ours = wd.Optimizer(parameters(torch.complex128).values(), LR, direction="adam", decay=decay, weight_decay=LAM)
        theirs = attached(decay, parameters(torch.complex128).values())
        for optimizer in (ours, theirs):
            train(optimizer, 10)
        assert apart(ours, theirs) < 1e-12


# λ, and whose it is -----------------------------------------------------------------------------------------------------


def groups(*lambdas):
    params = iter(parameters().values())
    return [{"params": [next(params)], **({} if lam is None else {"weight_decay": lam})} for lam in lambdas]


@pytest.mark.parametrize(
    ("own", "passed", "expected"),
    [
        ((0.2, 0.0, 0.1), None, [0.2, 0.0, 0.1]),
        ((0.2, 0.0, 0.1), 0.5, [0.5, 0.0, 0.5]),
        ((0.0, 0.0, 0.0), 0.5, [0.5, 0.5, 0.5]),
        ((None, None, None), 0.5, [0.5, 0.5, 0.5]),
        ((0.2, None, 0.1), 0.0, [0.0, 0.0, 0.0]),
    ],
)
def test_a_group_without_decay_stays_without_unless_all_are(own, passed, expected):
    optimizer = torch.optim.Adam(groups(*own), lr=LR)
    attachment = wd.attach(optimizer, "decoupled", weight_decay=passed)
    assert [group[LAMBDA] for group in optimizer.param_groups] == expected
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0, 0.0]
    assert [group["was"] for group in attachment.to_dict()["groups"]] == [lam or 0.0 for lam in own]


def test_it_says_what_it_took_over():
    optimizer = torch.optim.AdamW(groups(0.1, 0.0), lr=LR)
    attachment = wd.attach(optimizer, "cautious", weight_decay=0.2)
    shown = (
        "cautious decay attached to AdamW; took over the weight_decay of 2 groups: 0.1, 0\n"
        "group  tensors  weight_decay  was\n"
        "0      1        0.2           0.1\n"
        "1      1        0             0"
    )
    assert str(attachment) == repr(attachment) == shown
    optimizer.param_groups[1][LAMBDA] = 0.05
    assert attachment.to_dict()["groups"][1] == {"group": 1, "tensors": 1, "weight_decay": 0.05, "was": 0.0}
    attachment.detach()
    assert str(attachment) == "cautious decay, detached"
    assert str(wd.attach(TrustRatio(parameters().values(), 0.1), "none")).startswith("none decay attached to TrustRatio\n")


def test_a_schedule_drives_lambda():
    theirs = attached("decoupled", host=torch.optim.SGD)
    ours = wd.Optimizer(parameters().values(), LR, direction="sgd", decay="decoupled", weight_decay=LAM)
    for t in range(1, 20):
        for optimizer, key in ((theirs, LAMBDA), (ours, "weight_decay")):
            optimizer.param_groups[0][key] = LAM * math.cos(t / 15)
            train(optimizer, 1, first=t)
    assert apart(theirs, ours) < 1e-14


def test_a_weight_decay_written_afterwards_is_refused_before_anything_moves():
    optimizer = attached("decoupled")
    train(optimizer, 2)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    set_gradients(optimizer, 3)
    with refused(ValueError, "weight_decay", "0.1", LAMBDA, unchanged=optimizer):
        optimizer.step()


def test_the_peak_learning_rate_is_found_as_everywhere():
    for options, expected in [({}, LR), ({"lr_max": 2 * LR}, 2 * LR)]:
        optimizer = torch.optim.SGD([param := Parameter(torch.ones(3, dtype=torch.float64))], lr=LR)
        wd.attach(optimizer, "independent", weight_decay=LAM, **options)
        optimizer.param_groups[0]["lr"] = LR / 4
        param.grad = torch.zeros_like(param)
        optimizer.step()
        assert param[0].item() == pytest.approx(1 - LR / 4 / expected * LAM, rel=1e-15)


def test_a_tensor_is_a_learning_rate():
    ours, theirs = attached("cautious"), attached("cautious", lr=torch.tensor(LR, dtype=torch.float64), foreach=False)
    for optimizer in (ours, theirs):
        train(optimizer, 5)
    assert apart(ours, theirs) < 1e-12


def test_a_group_that_comes_later_is_taken_over():
    first, second, third = parameters().values()
    optimizer = torch.optim.AdamW([{"params": [first]}, {"params": [second], "weight_decay": 0.0}], lr=LR, weight_decay=0.1)
    wd.attach(optimizer, "cautious")
    train(optimizer, 1)
    schedule = wd.WeightDecayScheduler(optimizer, "constant", warmup=4)
    assert schedule.key == LAMBDA
    optimizer.add_param_group({"params": [third]})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0, 0.0]
    train(optimizer, 1)
    for _ in range(4):
        schedule.step()
    assert [group[LAMBDA] for group in optimizer.param_groups] == [0.1, 0.0, 0.1]
    wd.Attachment.of(optimizer).detach()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1]
    assert not [key for group in optimizer.param_groups for key in group if "attached" in key]
    assert "add_param_group" not in vars(optimizer)


def test_warm_restarts_are_of_an_optimizers_own_decay():
    with refused(ValueError, "cautious", "attached", "WeightDecayScheduler"):
        wd.WarmRestarts(attached("cautious"), first_cycle=10)


def test_a_group_that_comes_later_may_bring_its_own_lambda():
    first, second, third = parameters().values()
    optimizer = torch.optim.AdamW([first], lr=LR, weight_decay=0.1)
    wd.attach(optimizer, "cautious")
    optimizer.add_param_group({"params": [second], LAMBDA: 0.4})
    with pytest.raises(ValueError, match=f"'{LAMBDA}'.*-1"):
        optimizer.add_param_group({"params": [third], LAMBDA: -1.0})
    assert [(group[LAMBDA], group["weight_decay"]) for group in optimizer.param_groups] == [(0.1, 0.0), (0.4, 0.0)]
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [third], LAMBDA: 0.2})
    assert [group[LAMBDA] for group in optimizer.param_groups] == [0.1, 0.4, 0.2]
    optimizer.param_groups[0][LAMBDA] = 0.05
    optimizer.add_param_group(optimizer.param_groups.pop(0))
    assert [group[LAMBDA] for group in optimizer.param_groups] == [0.4, 0.2, 0.05]
    train(optimizer, 2)
    wd.Attachment.of(optimizer).detach()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.1]


def test_a_group_of_an_optimizer_that_splits_it_is_taken_over_or_refused_whole():
    class Splits(torch.optim.SGD):
        def add_param_group(self, group):
            params = group["params"]
            for param in params if isinstance(params, list) else [params]:
                super().add_param_group({**group, "params": [param]})

    first, second, third = parameters().values()
    optimizer = Splits([first], lr=LR, weight_decay=0.1)
    wd.attach(optimizer, "cautious")
    with pytest.raises(ValueError, match="nan"):
        optimizer.add_param_group({"params": [second, third], LAMBDA: math.nan})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [second, third], "weight_decay": 0.3})
    assert [group[LAMBDA] for group in optimizer.param_groups] == [0.1, 0.3, 0.3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0] * 3


def test_somebody_elses_method_for_new_groups_is_called_and_given_back():
    added = []
    first, second, third = parameters().values()
    optimizer = torch.optim.SGD([first], lr=LR, weight_decay=0.1)
    plain = optimizer.add_param_group
    optimizer.add_param_group = theirs = lambda group: (added.append(group), plain(group))
    attachment = wd.attach(optimizer, "cautious")
    kept = optimizer.add_param_group
    optimizer.add_param_group({"params": [second]})
    attachment.detach()
    assert optimizer.add_param_group is theirs
    kept({"params": [third]})
    assert len(added) == 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.1]
    assert not [key for group in optimizer.param_groups for key in group if "attached" in key]


def test_a_copy_that_takes_hooks_along_decays_once_and_is_detached_whole():
    class Whole(torch.optim.SGD):
        def __getstate__(self):
            return dict(self.__dict__)

    once, copied = attached("decoupled", host=Whole), copy.deepcopy(attached("decoupled", host=Whole))
    for optimizer in (once, copied):
        train(optimizer, 2)
    assert everything(once) == everything(copied)
    wd.Attachment.of(copied).detach()
    plain = torch.optim.SGD([Parameter(param.detach().clone()) for param in all_params(copied)], lr=LR)
    for optimizer in (plain, copied):
        train(optimizer, 2)
    assert bits(all_params(plain)) == bits(all_params(copied))
    shallow = copy.copy(attached("decoupled"))
    assert wd.Attachment.of(shallow) is None  # torch leaves its hooks behind


def test_what_a_decay_keeps_goes_on_while_its_lambda_is_zero(own_registry):
    @wd.decay(source="nobody", memory={"seen": ("seen", 0.0)})
    def by_memory(w, u, *, eta, lam, seen, norm_w):
        seen = 0.5 * seen + norm_w
        return (1 - eta * lam * seen) * w - eta * u, seen

    theirs = torch.optim.SGD(parameters().values(), lr=LR)
    wd.attach(theirs, by_memory, weight_decay=LAM)
    ours = wd.Optimizer(parameters().values(), LR, direction="sgd", decay=by_memory, weight_decay=LAM)
    for t in range(1, 8):
        for optimizer, key in ((theirs, LAMBDA), (ours, "weight_decay")):
            optimizer.param_groups[0][key] = 0.0 if t < 4 else LAM
            train(optimizer, 1, first=t)
    assert apart(theirs, ours) < 1e-12


@pytest.mark.parametrize(("own", "expected"), [((0.2, 0.0), [0.5, 0.0, 0.0]), ((0.0, 0.0), [0.5, 0.5, 0.5])])
@pytest.mark.parametrize("loads_first", [True, False])
def test_a_group_that_comes_after_a_checkpoint_is_taken_over_as_before_it(own, expected, loads_first):
    def optimizer():
        return torch.optim.Adam(groups(*own), lr=LR)

    saved, resumed = optimizer(), optimizer()
    wd.attach(saved, "decoupled", weight_decay=0.5)
    steps = [lambda: resumed.load_state_dict(saved.state_dict()), lambda: wd.attach(resumed, "decoupled", weight_decay=0.5)]
    for step in steps if loads_first else reversed(steps):
        step()
    for each in (saved, resumed):
        each.add_param_group({"params": [Parameter(torch.ones(2))], "weight_decay": 0.0})
        assert [group[LAMBDA] for group in each.param_groups] == expected


@pytest.mark.parametrize("decay", [name for name, rule in DECAYS.items() if any(each.start == "w" for each in rule.keeps)])
def test_a_decay_whose_lambda_warms_up_remembers_the_weights_of_the_first_step(decay):
    theirs = attached(decay, host=torch.optim.SGD)
    ours = wd.Optimizer(parameters().values(), LR, direction="sgd", decay=decay, **given(decay))
    for t in range(1, 8):
        for optimizer, key in ((theirs, LAMBDA), (ours, "weight_decay")):
            optimizer.param_groups[0][key] = 0.0 if t < 4 else LAM
            train(optimizer, 1, first=t)
    assert apart(theirs, ours) < 1e-12


# Which steps decay, and which weights ------------------------------------------------------------------------------------


@every_decay
def test_a_weight_without_a_gradient_stays(decay):
    params = parameters()
    optimizer = attached(decay, params.values())
    bias = bits(params["bias"])
    for t in range(1, 4):
        set_gradients(optimizer, t)
        params["bias"].grad = None
        optimizer.step()
    assert bits(params["bias"]) == bias
    assert params["bias"] not in optimizer.state


@pytest.mark.parametrize("host", [torch.optim.Adam, TrustRatio])
@pytest.mark.parametrize("decay", ["decoupled", "selective_projection"])
def test_a_closure_is_as_good_as_gradients_before(host, decay):
    one, other = attached(decay, host=host), attached(decay, host=host)
    for t in range(1, 6):
        train(one, 1, first=t)

        def closure(t=t):
            other.zero_grad()
            set_gradients(other, t)
            return torch.tensor(1.0)

        other.step(closure) if t % 2 else other.step(closure=closure)
    assert bits(all_params(one)) == bits(all_params(other))


def test_a_closure_sees_the_weights_before_the_decay():
    optimizer = attached("decoupled")
    before = bits(all_params(optimizer))

    def closure():
        assert bits(all_params(optimizer)) == before
        set_gradients(optimizer, 1)
        all_params(optimizer)[1].grad = None

    optimizer.step(closure)
    now = bits(all_params(optimizer))
    assert [a == b for a, b in zip(now, before, strict=True)] == [False, True, False]


@pytest.mark.parametrize("options", [{"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("decay", ["decoupled", "selective_projection"])
def test_a_step_that_gradscaler_skips_does_not_decay(options, decay):
    steady, scaled = (attached(decay, parameters(torch.float32).values(), **options) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    for t in range(1, 6):
        set_gradients(scaled, t)
        for param in all_params(scaled):
            param.grad = scaler.scale(param.grad)
        if t == 3:
            all_params(scaled)[0].grad[0, 0] = math.inf
        before = bits(all_params(scaled))
        scaler.step(scaled)
        scaler.update()
        if t == 3:
            assert bits(all_params(scaled)) == before
        else:
            train(steady, 1, first=t)
    assert apart(scaled, steady) < 1e-6


def test_a_gradient_that_is_scaled_for_the_step_is_unscaled_for_the_decay(own_registry):
    @wd.decay(source="nobody", reference={"w_0": "reference"})
    def by_gradient(w, u, w_0, *, eta, lam, dot_gd):
        return (1 - eta * lam * dot_gd) * w - eta * u

    steady, scaled = (torch.optim.SGD(parameters(torch.float32).values(), lr=0.01, fused=True) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for optimizer in (steady, scaled):
        wd.attach(optimizer, by_gradient, weight_decay=LAM)
    for t in range(1, 4):
        train(steady, 1, first=t)
        set_gradients(scaled, t)
        for param in all_params(scaled):
            param.grad = scaler.scale(param.grad)
        scaler.step(scaled)
        scaler.update()
    assert apart(scaled, steady) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("decay", ["decoupled", "cautious"])
def test_a_gradient_that_a_later_hook_takes_away_is_none(decay, dtype):
    optimizer = attached(decay, parameters(dtype).values(), host=torch.optim.SGD)
    first, *others = all_params(optimizer)

    def skip(*_):
        first.grad = None

    hook = optimizer.register_step_pre_hook(skip)
    before, others_before = bits([first]), bits(others)
    for t in range(1, 4):
        train(optimizer, 1, first=t)
        assert bits([first]) == before
        assert bits(others) != others_before
    assert "attached_pending" not in optimizer.state[first]
    hook.remove()
    train(optimizer, 1)
    assert bits([first]) != before


@pytest.mark.parametrize("decay", ["decoupled", "toward", "cautious"])
def test_a_hook_that_was_there_before_may_step_again(decay):
    def stepped(again):
        optimizer, tries = torch.optim.SGD(parameters().values(), lr=LR), iter([])

        def hook(optimizer, *_):
            if next(tries, None):
                optimizer.step()

        optimizer.register_step_post_hook(hook)
        wd.attach(optimizer, decay, **given(decay))
        for t in range(1, 4):
            set_gradients(optimizer, t)
            tries = iter([1] * again)
            for _ in range(2 - again):
                optimizer.step()
        return optimizer

    assert everything(stepped(1)) == everything(stepped(0))


@pytest.mark.parametrize("decay", ["decoupled", "toward"])
@pytest.mark.parametrize("name", ["step_pre", "step_post"])
def test_hooks_that_somebody_has_cleared_come_back(name, decay):
    optimizer = attached(decay, host=torch.optim.SGD)
    train(optimizer, 2)
    getattr(optimizer, f"_optimizer_{name}_hooks").clear()
    set_gradients(optimizer, 3)
    with pytest.warns(UserWarning, match=rf"cleared the {name.replace('_', ' ')}-hooks of this SGD.*{decay}.*detach"):
        optimizer.step()
    twin = copy.deepcopy(optimizer)
    for each in (optimizer, twin):
        train(each, 2, first=4)
    assert everything(optimizer) == everything(twin)
    before = [param.detach().clone() for param in all_params(optimizer)]
    for param in all_params(optimizer):
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for param, was in zip(all_params(optimizer), before, strict=True):
        assert decay != "decoupled" or (param - (1 - LR * LAM) * was).abs().max() <= 1e-15


def test_hooks_that_are_cleared_in_the_middle_of_a_step_come_back():
    cleared, steady = attached("cautious", host=torch.optim.SGD), attached("cautious", host=torch.optim.SGD)
    for optimizer in (cleared, steady):
        set_gradients(optimizer, 1)
    with pytest.warns(UserWarning, match="cleared the step pre-hooks"):
        cleared.step(lambda: cleared._optimizer_step_pre_hooks.clear() or 0.0)
    steady.step(lambda: 0.0)
    for optimizer in (cleared, steady):
        train(optimizer, 2, first=2)
    assert everything(cleared) == everything(steady)


@pytest.mark.parametrize("clears", ["its step", "an earlier hook"])
@pytest.mark.parametrize(("decay", "rounding"), [("decoupled", "auto"), ("decoupled", "stochastic"), ("toward", "auto")])
def test_gradients_that_are_cleared_after_a_step_were_there(decay, rounding, clears):
    """Also where the step moved nothing, by which one might think that there had been none."""
    param = Parameter(torch.ones(2**17, dtype=torch.bfloat16))
    optimizer = TrustRatio([param], 1e-3) if clears == "its step" else torch.optim.SGD([param], lr=1e-3)
    optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
    wd.attach(optimizer, decay, weight_decay=2.0, rounding=rounding)
    with torch.no_grad():
        param.fill_(1.5)
    for t in range(50):
        param.grad = torch.full_like(param, 1e-12)
        optimizer.step()
        if t == 0 and decay == "toward":
            optimizer.state[param]["attached_reference"].zero_()
    expected = 1.5 * (1 - 2e-3) ** (49 if decay == "toward" else 50)  # whose first step is at its reference
    assert param.detach().double().mean().item() == pytest.approx(expected, abs=(1.5 - expected) / 100)


def test_a_step_that_fails_leaves_nothing_pending():
    failed, steady = attached("toward", host=Breaks), attached("toward", host=Breaks)
    for optimizer in (failed, steady):
        train(optimizer, 2)
    set_gradients(failed, 99)
    before = everything(failed)
    failed.broken = True
    with pytest.raises(OSError, match="luck"):
        failed.step()
    failed.broken = False
    assert everything(failed) == before
    for optimizer in (failed, steady):
        train(optimizer, 2, first=3)
    assert everything(failed) == everything(steady)


def test_a_step_that_is_skipped_after_one_that_failed_decays_nothing():
    optimizer = attached("cautious", host=Breaks, fused=True)
    for param in all_params(optimizer):
        param.grad = torch.zeros_like(param)
    before = bits(all_params(optimizer))
    optimizer.broken = True
    with pytest.raises(OSError, match="luck"):
        optimizer.step()
    optimizer.broken, optimizer.found_inf = False, torch.ones(())
    optimizer.step()
    assert bits(all_params(optimizer)) == before
    del optimizer.found_inf
    optimizer.step()
    assert bits(all_params(optimizer)) != before


def with_groups(decay="decoupled", dtype=torch.float64, **options):
    """Return torch's SGD with a decay attached, in two groups, after two steps."""
    groups = [{"params": [param]} for param in parameters(dtype).values()]
    optimizer = attached(decay, groups, host=torch.optim.SGD, **options)
    train(optimizer, 2)
    return optimizer


def fail(optimizer, closure=None, *, at=0):
    """Do a step that fails inside torch's own code when it comes to a group: those before have moved, and all have decayed."""
    group = optimizer.param_groups[at]
    momentum = group.pop("momentum")
    with pytest.raises(KeyError, match="momentum"):
        optimizer.step(closure)
    group["momentum"] = momentum


@pytest.mark.parametrize("tries", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float64, "auto"), (torch.float32, "auto"), (torch.bfloat16, "stochastic")]
)
@pytest.mark.parametrize("decay", UNIFORM)
def test_a_step_that_fails_and_is_tried_again_decays_once(decay, dtype, rounding, tries):
    failed, steady = (with_groups(decay, dtype, rounding=rounding) for _ in range(2))
    for optimizer in (failed, steady):
        set_gradients(optimizer, 3)
    before = bits(all_params(failed))
    for _ in range(tries):
        fail(failed)
    assert bits(all_params(failed)) != before
    for optimizer in (failed, steady):
        optimizer.step()
        train(optimizer, 1, first=4)
    assert everything(failed) == everything(steady)


def test_what_had_moved_when_a_step_failed_decays_with_the_next_step_too():
    failed, steady = with_groups(), with_groups()
    for optimizer in (failed, steady):
        set_gradients(optimizer, 3)
    fail(failed, at=1)
    failed.step()
    steady.step()
    first, *others = zip(all_params(failed), all_params(steady), strict=True)
    assert [bits(ours) for ours, _ in others] == [bits(theirs) for _, theirs in others]
    expected = (1 - LR * LAM) * first[1].detach() - LR * first[1].grad
    assert (first[0] - expected).abs().max() <= 1e-14


def changed_lr(optimizer):
    optimizer.param_groups[0]["lr"] = 3 * LR


def changed_lambda(optimizer):
    optimizer.param_groups[0][LAMBDA] = 0.0


def lost_gradient(optimizer):
    all_params(optimizer)[0].grad = None


def another_hook(optimizer):
    """One that might take gradients away, so that decay waits until after the step."""
    optimizer.register_step_pre_hook(lambda *_: None)


@pytest.mark.parametrize("change", [changed_lr, changed_lambda, lost_gradient, another_hook])
def test_after_a_step_that_failed_the_next_is_as_if_it_had_not_been_tried(change):
    failed, steady = with_groups(), with_groups()
    for optimizer in (failed, steady):
        set_gradients(optimizer, 3)
    fail(failed)
    for optimizer in (failed, steady):
        change(optimizer)
        optimizer.step()
    assert apart(failed, steady) <= 1e-15


def test_weights_that_are_loaded_after_a_step_that_failed_have_not_decayed():
    failed, steady = with_groups(), with_groups()
    for optimizer in (failed, steady):
        set_gradients(optimizer, 3)
    fail(failed)
    with torch.no_grad():
        for ours, theirs in zip(all_params(failed), all_params(steady), strict=True):
            ours.copy_(theirs)
    for optimizer in (failed, steady):
        optimizer.step()
    assert everything(failed) == everything(steady)


def test_detached_after_a_step_that_failed_the_weights_are_as_before_it():
    failed, steady = with_groups(), with_groups()
    set_gradients(failed, 3)
    fail(failed)
    wd.Attachment.of(failed).detach()
    assert apart(failed, steady) <= 1e-15


def test_a_closure_after_a_step_that_failed_sees_the_weights_as_before_it():
    failed, steady = with_groups(), with_groups()
    seen = []

    def closure():
        seen.append([param.detach().clone() for param in all_params(failed)])
        set_gradients(failed, 3)
        return 0.0

    fail(failed, closure)
    failed.step(closure)
    for param, *both in zip(all_params(steady), *seen, strict=True):
        assert all((param - each).abs().max() <= 1e-15 for each in both)


def test_a_step_that_gradscaler_skips_does_not_end_one_that_failed():
    failed, steady = with_groups(fused=True), with_groups(fused=True)
    for optimizer in (failed, steady):
        set_gradients(optimizer, 3)
    fail(failed)
    decayed = bits(all_params(failed))
    failed.found_inf = torch.ones(())
    failed.step()
    assert bits(all_params(failed)) == decayed
    del failed.found_inf
    for optimizer in (failed, steady):
        optimizer.step()
    assert everything(failed) == everything(steady)


def test_a_closure_that_fails_leaves_nothing_pending():
    optimizer = attached("decoupled")
    before = everything(optimizer)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert everything(optimizer) == before


def test_a_subclass_that_calls_the_step_of_its_base_decays_once():
    for decay in ("decoupled", "toward"):
        once, nested = attached(decay, host=torch.optim.SGD), attached(decay, host=Breaks)
        for optimizer in (once, nested):
            train(optimizer, 5)
        assert apart(once, nested) < 1e-14


@pytest.mark.parametrize("closed", [False, True])
def test_a_sparse_gradient_is_refused_before_anything_moves(closed):
    table, weight = torch.nn.Embedding(4, 3, sparse=True).weight, Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([("other", weight), ("table", table)], lr=LR)
    wd.attach(optimizer, "decoupled", weight_decay=LAM)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.embedding(torch.tensor([0, 2]), table, sparse=True).sum() + weight.sum()
        loss.backward()
        return loss

    if not closed:
        closure()
    with refused(RuntimeError, "'table'", "sparse", unchanged=optimizer):
        optimizer.step(closure if closed else None)


def test_a_cuda_graph_is_refused_before_anything_moves(monkeypatch):
    optimizer = attached("decoupled")
    set_gradients(optimizer, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with refused(RuntimeError, "CUDA graph", unchanged=optimizer):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own, on the way into its compiler
def test_inside_torch_compile():
    eager, compiled = attached("cautious", host=torch.optim.SGD), attached("cautious", host=torch.optim.SGD)
    step = torch.compile(compiled.step, backend="eager")
    for t in range(1, 4):
        train(eager, 1, first=t)
        set_gradients(compiled, t)
        step()
    assert apart(eager, compiled) < 1e-12
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("host", "decay", "copies"),
    [(torch.optim.SGD, "cautious", 3), (torch.optim.SGD, "decoupled", 0), (TrustRatio, "decoupled", 3)],
)
def test_copies_live_only_while_a_step_is_in_flight(host, decay, copies, monkeypatch):
    optimizer, seen = host(parameters().values(), lr=LR), []
    attachment = wd.attach(optimizer, decay, weight_decay=LAM)
    step, after = attachment._step, attachment._step.after
    monkeypatch.setattr(step, "after", lambda of: (seen.append(sum(each.old is not None for each in step.flight)), after(of)))
    train(optimizer, 1)
    assert seen == [copies]
    assert attachment._step.flight == []


# Low precision ----------------------------------------------------------------------------------------------------------


def arrived(dtype, rounding, steps, *, host=torch.optim.SGD, lr=3e-4, lam=0.1):
    """Return which share of the decay of so many steps without a gradient is found in weights of all sizes."""
    start = torch.cat([torch.linspace(1, 2, 2048), noise(2048, torch.float64, 1) * 0.05]).to(dtype)
    param = Parameter(start.clone())
    optimizer = host([param], lr=lr)
    wd.attach(optimizer, "decoupled", weight_decay=lam, rounding=rounding)
    param.grad = torch.zeros_like(param)
    shares = []
    for step in range(1, steps + 1):
        optimizer.step()
        if step >= 1000:
            ideal = start.double() * (1 - lr * lam) ** step
            signs = start.double().sign()
            shares.append((((start.double() - param.detach().double()) * signs).sum() / ((start - ideal) * signs).sum()).item())
    return param.detach(), ideal, shares


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_deferred_decay_arrives_at_any_moment(dtype):
    end, ideal, shares = arrived(dtype, "auto", 1100)
    assert 0.98 < min(shares) <= max(shares) < 1.02
    unit = torch.finfo(dtype).eps * ideal.abs().log2().floor().exp2()
    walked = ((end.double() - ideal) / unit)[:2048]
    assert walked.square().mean().sqrt() < 2  # independent roundings walk away by 2.7 units in bfloat16, by 8 in float16
    assert arrived(dtype, "nearest", 1000)[2] == [0.0]


def test_a_large_decay_is_not_deferred():
    param = Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([param], lr=0.1)
    wd.attach(optimizer, "decoupled", weight_decay=0.5)
    param.grad = torch.zeros_like(param)
    for step in range(1, 5):
        optimizer.step()
        assert param.detach().double().mean().item() == pytest.approx(0.95**step, abs=3e-4)


def test_what_is_pending_belongs_to_the_tensor_and_is_applied_at_last():
    moving, waiting = (Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = torch.optim.SGD([moving, waiting], lr=1e-4)
    attachment = wd.attach(optimizer, "decoupled", weight_decay=1.0)
    for step in range(4):
        moving.grad = torch.zeros_like(moving)
        waiting.grad = torch.zeros_like(waiting) if step == 0 else None
        optimizer.step()
    assert moving.eq(1).all()
    attachment.detach()
    for param, steps in ((moving, 4), (waiting, 1)):
        assert param.detach().double().mean().item() == pytest.approx((1 - 1e-4) ** steps, abs=3e-5)


@pytest.mark.parametrize("decay", ["soft_threshold", "decoupled"])
@pytest.mark.parametrize("host", [torch.optim.SGD, Breaks])
def test_stochastic_rounding_serves_any_decay(decay, host):
    param = Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = host([param], lr=1e-3)
    wd.attach(optimizer, decay, weight_decay=0.1, rounding="stochastic")
    param.grad = torch.zeros_like(param)
    for _ in range(200):
        optimizer.step()
    assert 1 - param.detach().double().mean().item() == pytest.approx(0.02, rel=0.03)


# Checkpoints, copies, and the way back ------------------------------------------------------------------------------------


def goes_on_like(decay, dtype, again, **options):
    """Train six steps, and again with a break in the middle, across which `again` makes a new optimizer."""
    whole = attached(decay, parameters(dtype).values(), **options)
    train(whole, 6)
    half = attached(decay, parameters(dtype).values(), **options)
    train(half, 3)
    rest = again(half, decay, **options)
    train(rest, 3, first=4)
    assert everything(whole) == everything(rest)


def from_a_checkpoint(half, decay, **options):
    params = [Parameter(param.detach().clone()) for param in all_params(half)]
    rest = attached(decay, params, **options)
    rest.load_state_dict(saved_and_loaded(half.state_dict()))
    return rest


@every_decay
def test_a_run_goes_on_from_its_checkpoint(decay):
    goes_on_like(decay, torch.float64, from_a_checkpoint)


@pytest.mark.parametrize("rounding", ["deferred", "stochastic"])
def test_a_run_in_bfloat16_goes_on_from_its_checkpoint(rounding):
    goes_on_like("decoupled", torch.bfloat16, from_a_checkpoint, rounding=rounding, host=torch.optim.SGD, lr=1e-4)


@pytest.mark.parametrize(("rounding", "dtype"), [("stochastic", torch.bfloat16), ("auto", torch.float32)])
def test_what_is_pending_arrives_in_a_run_that_defers_no_more(rounding, dtype):
    ones, numbers = torch.ones(2**21, dtype=torch.bfloat16), {"host": torch.optim.SGD, "lr": 1e-3, "lam": 0.4}
    half = attached("decoupled", [Parameter(ones.clone())], **numbers)
    rest = attached("decoupled", [Parameter(ones.to(dtype))], rounding=rounding, **numbers)
    for optimizer in (half, rest):
        all_params(optimizer)[0].grad = torch.zeros_like(all_params(optimizer)[0])
    half.step()
    (entry,) = half.state.values()
    assert entry["attached_pending"] == pytest.approx(4e-4)
    rest.load_state_dict(saved_and_loaded(half.state_dict()))
    rest.step()
    assert 1 - all_params(rest)[0].double().mean().item() == pytest.approx(1 - (1 - 4e-4) ** 2, abs=4e-6)
    assert rest.state[all_params(rest)[0]]["attached_pending"] == 0


def test_one_optimizer_may_hold_weights_of_many_dtypes():
    dtypes = (torch.bfloat16, torch.float32, torch.float64, torch.float16, torch.float32)
    for decay in ("decoupled", "cautious"):
        each = [Parameter(torch.linspace(1, 2, 64).to(dtype)) for dtype in dtypes]
        optimizer = torch.optim.SGD(each, lr=0.01)
        wd.attach(optimizer, decay, weight_decay=1.0)
        for _ in range(50):
            for param in each:
                param.grad = torch.zeros_like(param)
            optimizer.step()
        for param in each:
            assert param.detach().double().mean().item() == pytest.approx(1.5 * 0.99**50, rel=0.01)


def test_references_keep_their_precision_in_a_checkpoint():
    goes_on_like("toward", torch.bfloat16, from_a_checkpoint, host=torch.optim.SGD)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("decay", ["decoupled", "toward", "constrained", "independent"])
def test_a_copy_of_the_optimizer_has_the_decay_too(decay, again):
    goes_on_like(decay, torch.float64, lambda half, *_, **__: again(half))
    goes_on_like(decay, torch.float64, lambda half, *_, **__: again((wd.Attachment.of(half), half))[1])


def test_a_loaded_state_is_copied():
    first, second = attached("constrained"), attached("constrained")
    train(first, 3)
    state = copy.deepcopy(first.state_dict())
    before = bits(state["state"][0]["attached_multiplier"])
    second.load_state_dict(state)
    train(second, 3)
    assert bits(state["state"][0]["attached_multiplier"]) == before


def test_a_distributed_checkpoint_holds_what_the_decay_keeps():
    from torch.distributed.checkpoint import state_dict

    flat = state_dict.StateDictOptions(flatten_optimizer_state_dict=True)

    def trained(model, first):
        for t in range(first, first + 3):
            model(noise((5, 4), torch.float32, t)).square().mean().backward()
            optimizers[model].step()
            optimizers[model].zero_grad()
        return bits([*model.parameters()])

    with one_process():
        whole, rest = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
        optimizers = {model: attached("toward", model.parameters()) for model in (whole, rest)}
        trained(whole, 1)
        saved = copy.deepcopy(state_dict.get_optimizer_state_dict(whole, optimizers[whole], options=flat))
        rest.load_state_dict(whole.state_dict())
        state_dict.set_optimizer_state_dict(rest, optimizers[rest], saved, options=flat)
        assert trained(whole, 4) == trained(rest, 4)


def test_attaching_after_loading_is_attaching_before():
    half = attached("toward")
    train(half, 3)
    rest = torch.optim.Adam([Parameter(param.detach().clone()) for param in all_params(half)], lr=LR)
    rest.load_state_dict(saved_and_loaded(half.state_dict()))
    wd.attach(rest, "toward")
    for optimizer in (half, rest):
        train(optimizer, 3, first=4)
    assert everything(half) == everything(rest)


def test_a_checkpoint_from_before_is_taken_over():
    earlier = torch.optim.AdamW(groups(0.1, 0.0, 0.2), lr=LR)
    train(earlier, 2)
    state = saved_and_loaded(earlier.state_dict())
    for passed, expected in [(None, [0.1, 0.0, 0.2]), (0.5, [0.5, 0.0, 0.5])]:
        later = torch.optim.AdamW(groups(0.3, 0.0, 0.3), lr=LR)
        wd.attach(later, "cautious", weight_decay=passed)
        with pytest.warns(UserWarning, match="loading has replaced") if passed is None else contextlib.nullcontext():
            later.load_state_dict(state)
        assert [group[LAMBDA] for group in later.param_groups] == expected
        assert [group["weight_decay"] for group in later.param_groups] == [0.0, 0.0, 0.0]
        train(later, 1, first=3)


def test_one_warning_says_which_lambda_and_lr_loading_has_changed():
    saved, live = attached("cautious", lam=0.2, lr=0.5), attached("cautious", lam=0.3, lr=0.1)
    words = rf"{LAMBDA} of param_groups\[0\]: 0.3 → 0.2\n  lr of .*: 0.1 → 0.5\n.*migrate"
    with pytest.warns(UserWarning, match=words) as said:
        live.load_state_dict(saved_and_loaded(saved.state_dict()))
    assert len(said) == 1
    assert (live.param_groups[0]["lr"], live.param_groups[0][LAMBDA]) == (0.5, 0.2)


@pytest.mark.parametrize("given", [None, 0.3])
def test_a_checkpoint_from_before_the_decay_was_attached_changes_lambda_where_it_has_its_own(given):
    saved, live = (torch.optim.AdamW(parameters().values(), lr=0.1, weight_decay=own) for own in (0.2, 0.3))
    wd.attach(live, "cautious", weight_decay=given)
    if given is None:
        with pytest.warns(UserWarning, match=rf"{LAMBDA} of .*: 0.3 → 0.2"):
            live.load_state_dict(saved.state_dict())
    else:
        live.load_state_dict(saved.state_dict())
    assert live.param_groups[0][LAMBDA] == (given or 0.2)


def test_what_nobody_has_passed_or_somebody_has_chosen_is_no_news():
    groups = [list(parameters().items()) for _ in range(4)]
    saved, live = torch.optim.AdamW(groups[0], lr=0.5, weight_decay=0.2), torch.optim.AdamW(groups[1])
    for optimizer in (saved, live):
        wd.attach(optimizer, "cautious")
    live.load_state_dict(saved.state_dict())
    assert (live.param_groups[0]["lr"], live.param_groups[0][LAMBDA]) == (0.5, 0.2)
    live = torch.optim.AdamW(groups[2], lr=0.1, weight_decay=0.3)
    wd.attach(live, "cautious")
    wd.migrate(live, saved.state_dict(), weight_decay="checkpoint", lr="checkpoint")
    assert (live.param_groups[0]["lr"], live.param_groups[0][LAMBDA]) == (0.5, 0.2)


def test_what_schedulers_have_made_of_lambda_and_lr_is_no_news():
    def made():
        optimizer = attached("cautious", host=torch.optim.SGD)
        wd.WeightDecayScheduler(optimizer, "linear", steps=10)
        return optimizer, lr_scheduler.CosineAnnealingLR(optimizer, 10)

    saved, schedule = made()
    saved.param_groups[0][LAMBDA] *= 0.5
    train(saved, 1)
    schedule.step()
    live, _ = made()
    live.load_state_dict(saved.state_dict())
    assert everything(live)[1] == everything(saved)[1]


def test_a_checkpoint_that_does_not_fit_changes_nothing():
    toward, decoupled = attached("toward"), attached("decoupled")
    for optimizer in (toward, decoupled):
        train(optimizer, 2)
    with refused(ValueError, "toward", "decoupled", unchanged=decoupled):
        decoupled.load_state_dict(toward.state_dict())
    bent = copy.deepcopy(toward.state_dict())
    bent["state"][0]["attached_reference"] = torch.ones(2)
    with refused(ValueError, "attached_reference", "(2,)", "(4, 3)", unchanged=toward):
        toward.load_state_dict(bent)
    short = attached("toward", [parameters()["weight"]])
    with refused(ValueError, unchanged=toward):
        toward.load_state_dict(short.state_dict())


@every_decay
def test_detached_it_is_as_if_it_had_never_been(decay):
    never = torch.optim.AdamW(groups(0.1, 0.0, 0.2), lr=LR)
    optimizer = torch.optim.AdamW(groups(0.1, 0.0, 0.2), lr=LR)
    wd.attach(optimizer, decay, **{key: value for key, value in given(decay).items() if key != "weight_decay"}).detach()
    assert everything(optimizer) == everything(never)
    assert [*optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks] == []
    assert type(optimizer.defaults) is dict
    assert optimizer.defaults == never.defaults
    for each in (optimizer, never):
        train(each, 3)
    assert everything(optimizer) == everything(never)
    assert wd.Attachment.of(optimizer) is None
    wd.attach(optimizer, "cautious").detach()


def test_detaching_takes_all_that_was_kept_along():
    for dtype, decay in ((torch.float64, "toward"), (torch.bfloat16, "decoupled"), (torch.float64, "constrained")):
        optimizer = attached(decay, parameters(dtype).values(), host=torch.optim.SGD)
        train(optimizer, 2)
        assert all(map(len, optimizer.state.values()))
        assert len(optimizer.state) == 3
        wd.Attachment.of(optimizer).detach()
        assert len(optimizer.state) == 0
        assert not [key for key in optimizer.param_groups[0] if "attached" in key or "host" in key]


def test_nothing_keeps_the_optimizer_alive():
    optimizer = attached("toward")
    train(optimizer, 1)
    attachment, there = wd.Attachment.of(optimizer), weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert there() is None
    finally:
        gc.enable()
    with pytest.raises(ReferenceError):
        attachment.detach()
    assert str(attachment) == "toward decay, detached"


# What is refused ----------------------------------------------------------------------------------------------------------


class Switches(torch.optim.SGD):
    def train(self): ...
    def eval(self): ...


class Wrapper(torch.optim.Optimizer):
    def __init__(self, inner):
        self.inner, self.param_groups, self.defaults = inner, inner.param_groups, inner.defaults


def host(cls=torch.optim.Adam, **options):
    return cls(parameters().values(), **options)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: (torch.nn.Linear(1, 1), "decoupled"), TypeError, ["Linear", "step()"]),
        (lambda: (host(wd.AdamW), "cautious", 0.1), ValueError, ["AdamW", "decay='cautious'"]),
        (lambda: (attached("none"), "decoupled", 0.1), ValueError, ["none decay", "Adam", "detach()"]),
        (lambda: (host(torch.optim.LBFGS), "decoupled", 0.1), ValueError, ["LBFGS", "penalty"]),
        (lambda: (host(Switches), "decoupled", 0.1), ValueError, ["Switches", "train()"]),
        (lambda: (Wrapper(host()), "decoupled", 0.1), TypeError, ["Wrapper", "hooks"]),
        (lambda: (host(differentiable=True), "decoupled", 0.1), ValueError, ["differentiable=True"]),
        (lambda: (host(), "decoupeld", 0.1), ValueError, ["did you mean 'decoupled'"]),
        (lambda: (host(), "adam", 0.1), ValueError, ["is a direction"]),
        (lambda: (host(), "decoupled"), ValueError, ["weight_decay=None", "pass weight_decay="]),
        (lambda: (host(), "decoupled", -0.1), ValueError, ["weight_decay=-0.1", "[0, inf)"]),
        (lambda: (host(), "decoupled", math.nan), ValueError, ["weight_decay=nan"]),
        (lambda: (host(), "decoupled", "much"), TypeError, ["weight_decay='much'"]),
        (lambda: (host(), "constrained", 0.1), ValueError, ["weight_decay=0.1", "no λ"]),
        (lambda: (host(lr=0.1, weight_decay=math.inf), "none"), ValueError, ["['weight_decay']=inf"]),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(make, error, words):
    optimizer, *arguments = make()
    before = (
        everything(optimizer)
        if isinstance(getattr(optimizer, "defaults", None), dict) and "inner" not in vars(optimizer)
        else 0
    )
    with refused(error, *words):
        wd.attach(optimizer, *arguments)
    assert before == 0 or everything(optimizer) == before


@pytest.mark.parametrize(
    ("decay", "options", "words"),
    [
        ("decoupled", {"p": 2.0}, ["'p'", "decoupled"]),
        ("decoupled", {"lr_max": 0.1}, ["'lr_max'"]),
        ("independent", {"lr_max": -0.1}, ["lr_max=-0.1"]),
        ("pnorm", {"p": -2.0}, ["p=-2.0", "(0, inf)"]),
        ("cautious", {"rounding": "deferred"}, ["deferred", "cautious", "'stochastic'"]),
        ("cautious", {"rounding": "compensated"}, ["rounding='compensated'"]),
        ("cautious", {"seed": 0.5}, ["seed=0.5"]),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(decay, options, words):
    optimizer = host()
    with refused((TypeError, ValueError), *words, unchanged=optimizer):
        wd.attach(optimizer, decay, weight_decay=0.1, **options)


def test_an_optimizer_without_a_learning_rate_is_refused():
    optimizer = TrustRatio(parameters().values(), lr=None)
    with refused((TypeError, ValueError), "param_groups[0]['lr']", unchanged=optimizer):
        wd.attach(optimizer, "decoupled", weight_decay=0.1)


def test_a_negative_learning_rate_of_a_schedule_s_end_is_taken_and_no_step_is_made_with_it():
    """OneCycleLR leaves one after its last step, and a checkpoint of that moment holds it."""
    optimizer = TrustRatio(parameters().values(), lr=-1e-9)
    wd.attach(optimizer, "decoupled", weight_decay=0.1)
    set_gradients(optimizer, 1)
    with refused(ValueError, "lr", "-1e-09", unchanged=optimizer):
        optimizer.step()


@pytest.mark.parametrize("key", ["lr", LAMBDA])
def test_a_number_that_is_written_later_is_checked_before_anything_moves(key):
    optimizer = attached("decoupled")
    set_gradients(optimizer, 1)
    optimizer.param_groups[0][key] = -0.1
    with refused(ValueError, key, "-0.1", unchanged=optimizer):
        optimizer.step()


def test_a_decay_that_asks_for_what_only_a_direction_knows_is_refused():
    with pytest.raises(ValueError, match=r"stable decay asks for mean_v_hat.*Optimizer\(…, decay='stable'\)"):
        wd.attach(torch.optim.Adam(parameters().values(), lr=LR), "stable", 0.1)


def test_a_decay_that_is_uniform_only_at_its_defaults_or_for_small_weights_is_not_taken_for_one(own_registry):
    @wd.decay(source="nobody")
    def shared(w, u, *, eta, lam, share=0.0):
        return w - eta * lam * ((1 - share) * w + share * sign(w)) - eta * u

    @wd.decay(source="nobody")
    def clipped(w, u, *, eta, lam):
        return where(absolute(w) > 64, w - eta * lam * 64 * sign(w), (1 - eta * lam) * w) - eta * u

    @wd.decay(source="nobody")
    def squared(w, u, *, eta, lam, share=0.0):
        return (1 - eta * lam * (1 + share * w)) * w - eta * u

    assert not any(is_uniform(rule.rule) for rule in (shared, clipped, squared))
    w = torch.nn.Parameter(torch.tensor([4.0, 1000.0]))
    optimizer = torch.optim.SGD([w], lr=0.5)
    wd.attach(optimizer, clipped, 0.5)
    w.grad = torch.zeros(2)
    optimizer.step()
    assert w.tolist() == [3.0, 1000.0 - 16.0]
