"""What `wd.identify` finds: torch's optimizers, this package's, and optimizers with a bug that was planted."""

import json
import random
import shutil
from functools import cache, partial

import numpy
import pytest
import torch
from torch.optim import Optimizer

import weightdecay as wd
from weightdecay.audit.conformance import CHECKS, check_decay, complaints, decay_test
from weightdecay.audit.identify.harness import Subject, alone, name_of
from weightdecay.audit.identify.hypotheses import FITS, IN_GRADIENT, LIKELY, PER_LR, PER_PEAK, Powers, holding, observe
from weightdecay.audit.identify.identify import KINDS, DecayLaw, identify

OURS = partial(wd.Optimizer, direction="adam", backend="eager")
CORNERS = {
    "grad=None": "stays",
    "frozen": "stays",
    "lr=0": "stays",
    "zero gradient": "decays",
    "λ in the groups": "read",
    "tensor lr": "same",
}

# Torch's own ----------------------------------------------------------------------------------------------------------------

COUPLED = ("SGD", "Adam", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "ASGD")
DECOUPLED = ("AdamW", "Muon", "Adafactor")
NO_KNOB = ("LBFGS", "Rprop", "SparseAdam")
FLAGGED = ("Adam", "NAdam", "RAdam")


def test_every_optimizer_of_torch_is_here():
    classes = {name for name, each in vars(torch.optim).items() if isinstance(each, type) and issubclass(each, Optimizer)}
    assert classes == {"Optimizer", *COUPLED, *DECOUPLED, *NO_KNOB}


def assert_law(law, kind, rule, strength, weight="old"):
    assert (law.kind, law.rule, law.strength, law.weight) == (kind, rule, strength, weight)
    assert kind in law.text
    assert all(each.verdict in (CORNERS.get(name, each.verdict)) for name, each in law.findings.items())
    assert all(each.verdict == "same" for name, each in law.findings.items() if name in ("foreach", "fused", "maximize"))


@pytest.mark.parametrize("name", COUPLED)
def test_torchs_coupled_optimizers(name):
    assert_law(identify(getattr(torch.optim, name)), "coupled", "l2", IN_GRADIENT)


@pytest.mark.parametrize(
    "factory",
    [
        *(getattr(torch.optim, name) for name in DECOUPLED),
        *(partial(getattr(torch.optim, name), decoupled_weight_decay=True) for name in FLAGGED),
    ],
    ids=name_of,
)
def test_torchs_decoupled_optimizers(factory):
    law = identify(factory)
    assert_law(law, "decoupled", "decoupled", PER_LR)
    assert law.findings["bfloat16"].numbers["share"] < 0.01


@pytest.mark.parametrize("name", NO_KNOB)
def test_torchs_optimizers_without_decay(name):
    law = identify(getattr(torch.optim, name))
    assert (law.kind, dict(law.findings)) == ("none", {})
    assert "takes no weight_decay" in str(law)


def test_every_path_of_torchs_is_tried():
    assert {"foreach", "fused", "maximize"} <= set(identify(torch.optim.AdamW).findings)
    assert "maximize" not in identify(torch.optim.Muon).findings


def test_sgd_is_told_with_a_momentum():
    law = identify(torch.optim.SGD)
    assert "told with momentum=0.9" in law.text
    plain = law.evidence["unexplained"]
    assert plain["the penalty l2 added to the gradient"] < FITS > plain["the decay decoupled on the old weight"]
    assert law.evidence["with momentum=0.9"]["unexplained"]["the decay decoupled on the old weight"] > 100 * FITS
    assert identify(partial(wd.SGDW, backend="eager")).kind == "decoupled"


def test_asgds_lambd_changes_the_step_too():
    law = identify(torch.optim.ASGD, knob="lambd")
    assert (law.kind, law.default) == ("rescaled", 1e-4)


# This package's -------------------------------------------------------------------------------------------------------------

LAWS = {
    "decoupled": ("decoupled", PER_LR, "old"),
    "independent": ("independent", PER_PEAK, "old"),
    "corrected": ("decoupled", Powers(1, 1, 2, -1), "old"),
    "cautious": ("decoupled", PER_LR, "old"),
    "implicit": ("proximal", PER_LR, "new"),
    "soft_threshold": ("proximal", PER_LR, "new"),
    "group_threshold": ("proximal", PER_LR, "new"),
    "toward": ("toward", None, "old"),
    "selective_projection": ("toward", None, "old"),
    "norm_control": ("decoupled", None, "old"),
}


@pytest.mark.parametrize("decay", LAWS)
def test_the_decays_of_this_package(decay):
    kind, strength, weight = LAWS[decay]
    law = identify(partial(OURS, decay=decay))
    assert (law.kind, law.rule, law.strength, law.weight) == (kind, decay, strength, weight)
    assert law.findings["maximize"].verdict == law.findings["tensor lr"].verdict == "same"
    assert law.findings["foreach"].verdict in ("same", "not told")
    if law.findings["bfloat16"].verdict != "not told":
        assert law.findings["bfloat16"].numbers["share"] == pytest.approx(1, abs=0.06)


ALIKE = {"stable": "decoupled", "trust_ratio": "rescaled"}
"""What is told of a decay by a number that the experiment does not see: of all tensors, or of u and w together."""


@pytest.mark.parametrize("decay", sorted(set(wd.rules().of("decay")) - set(LAWS) - {"none"}))
def test_every_other_decay_is_found_or_said_to_be_unknown(decay):
    law = identify(partial(OURS, decay=decay))
    without_lambda = "lam" not in wd.rules()["decay", decay].numbers
    assert law.kind == "none" if without_lambda else (law.rule == decay or law.kind == ALIKE.get(decay, "unknown"))


@pytest.mark.parametrize("penalty", ["l2", "l1", "huber", "lp", "norm"])
def test_the_penalties_of_this_package(penalty):
    law = identify(partial(OURS, penalty=penalty), knob="penalty_weight")
    assert (law.kind, law.rule, law.strength) == ("coupled", penalty, IN_GRADIENT)


def test_the_numbers_of_a_rule_are_those_of_the_groups():
    law = identify(partial(OURS, decay="elastic_net", l1_ratio=0.9))
    assert law.rule == "elastic_net"


def test_the_presets():
    assert identify(partial(wd.AdamW, backend="eager")).rule == "decoupled"
    assert identify(partial(wd.Adam, backend="eager")).kind == "coupled"
    assert identify(partial(wd.SGD, backend="eager", momentum=0.5)).kind == "coupled"


def attached(params, lr, weight_decay, decay, **numbers):
    optimizer = torch.optim.Adam(params, lr=lr)
    wd.attach(optimizer, decay, weight_decay, **numbers)
    return optimizer


@pytest.mark.parametrize("decay", ["decoupled", "independent", "cautious", "soft_threshold", "selective_projection"])
def test_attached_decays_of_a_factory_that_insists_on_lambda(decay):
    law = identify(partial(attached, decay=decay))
    assert (law.kind, law.rule, law.default) == (LAWS[decay][0], decay, None)


@pytest.mark.parametrize("cls", [wd.AdamCPR, wd.AdamH])
def test_a_preset_without_lambda_is_said_to_refuse_it(cls):
    law = identify(partial(cls, backend="eager"))
    assert law.kind == "none"
    assert "makes nothing of λ: it refuses weight_decay" in law.text


# Planted bugs ---------------------------------------------------------------------------------------------------------------


class Planted(Optimizer):
    """Momentum descent by the sign, with a decay that a subclass gets wrong."""

    def __init__(self, params, lr=0.1, weight_decay=0.0, maximize=False, foreach=None):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "foreach": foreach})
        self.first_lr, self.first_decay = float(lr), weight_decay

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for w in group["params"]:
                self.one(w, group["lr"], group["weight_decay"], group)

    def one(self, w, lr, decay, group):
        if w.grad is not None:
            self.shrink(w, lr, decay, group)
            self.move(w, lr, -w.grad if group["maximize"] else w.grad)

    def move(self, w, lr, gradient):
        state = self.state[w]
        momentum = state.setdefault("momentum", torch.zeros_like(w))
        momentum.lerp_(gradient, 0.1)
        w.sub_(lr * (momentum.sign() + momentum))

    def shrink(self, w, lr, decay, group):
        w.mul_(1 - lr * decay)


class ConstantSubtracted(Planted):
    def shrink(self, w, lr, decay, group):
        w.sub_(lr * decay)


class CoupledLion(Planted):
    def one(self, w, lr, decay, group):
        if w.grad is not None:
            gradient = -w.grad if group["maximize"] else w.grad
            self.move(w, lr, gradient + decay * w)


class DeadStore(Planted):
    def shrink(self, w, lr, decay, group):
        w = w * (1 - lr * decay)


class OnTheNewWeight(Planted):
    def one(self, w, lr, decay, group):
        if w.grad is not None:
            self.move(w, lr, w.grad)
            self.shrink(w, lr, decay, group)


class FlippedUnderMaximize(Planted):
    def shrink(self, w, lr, decay, group):
        w.mul_(1 + lr * decay if group["maximize"] else 1 - lr * decay)


class WithoutGradient(Planted):
    def one(self, w, lr, decay, group):
        self.shrink(w, lr, decay, group)
        if w.grad is not None:
            self.move(w, lr, -w.grad if group["maximize"] else w.grad)


class ForeachLosesDecay(Planted):
    def shrink(self, w, lr, decay, group):
        if not group["foreach"]:
            super().shrink(w, lr, decay, group)


class NotTimesLr(Planted):
    def shrink(self, w, lr, decay, group):
        w.mul_(1 - decay)


class TimesLrTwice(Planted):
    def shrink(self, w, lr, decay, group):
        w.mul_(1 - lr * lr * decay)


class HalfOfLambda(Planted):
    def shrink(self, w, lr, decay, group):
        w.mul_(1 - 0.5 * lr * decay)


class LambdaSquared(Planted):
    def shrink(self, w, lr, decay, group):
        w.mul_(1 - lr * decay**2)


class LambdaOfTheConstructor(Planted):
    def shrink(self, w, lr, decay, group):
        w.mul_(1 - lr * self.first_decay)


class LrInTheGradient(Planted):
    def one(self, w, lr, decay, group):
        if w.grad is not None:
            self.move(w, lr, w.grad + lr * decay * w)


class InATrustRatio(Planted):
    def one(self, w, lr, decay, group):
        if w.grad is not None:
            step = w.grad.sign() + decay * w
            w.sub_(lr * w.norm() / step.norm() * step)


class DecayThatGrows(Planted):
    def shrink(self, w, lr, decay, group):
        steps = self.state[w]["steps"] = self.state[w].get("steps", 0) + 1
        w.mul_(1 - lr * decay * steps)


class InTheMomentum(Planted):
    def one(self, w, lr, decay, group):
        if w.grad is not None:
            self.move(w, lr, w.grad / w.grad.norm() + decay * w)


found = cache(identify)
LAW_OF = {
    Planted: ("decoupled", PER_LR, "old"),
    ConstantSubtracted: ("constant", PER_LR, None),
    CoupledLion: ("coupled", IN_GRADIENT, "old"),
    DeadStore: ("none", None, None),
    OnTheNewWeight: ("decoupled", PER_LR, "new"),
    NotTimesLr: ("independent", Powers(1, 1, 0, 0), "old"),
    TimesLrTwice: ("decoupled", Powers(1, 1, 2, 0), "old"),
    HalfOfLambda: ("decoupled", Powers(0.5, 1, 1, 0), "old"),
    LambdaSquared: ("decoupled", Powers(1, 2, 1, 0), "old"),
    LrInTheGradient: ("coupled", PER_LR, "old"),
    InATrustRatio: ("rescaled", None, "old"),
    DecayThatGrows: ("decoupled", None, "old"),
    InTheMomentum: ("unknown", None, None),
}


@pytest.mark.parametrize("planted", LAW_OF, ids=name_of)
def test_the_law_of_a_planted_bug(planted):
    law = found(planted)
    kind, strength, weight = LAW_OF[planted]
    assert (law.kind, law.weight) == (kind, weight)
    if strength is None:
        assert law.strength is None
    else:
        assert vars(law.strength) == pytest.approx(vars(strength), abs=1e-6)


FAILS = {
    ConstantSubtracted: "law",
    CoupledLion: "law",
    DeadStore: "law",
    OnTheNewWeight: "law",
    NotTimesLr: "law",
    TimesLrTwice: "strength",
    HalfOfLambda: "strength",
    LambdaSquared: "strength",
    DecayThatGrows: "law",
    FlippedUnderMaximize: "maximize",
    WithoutGradient: "grad=None",
    ForeachLosesDecay: "foreach",
    LambdaOfTheConstructor: "λ in the groups",
}


@pytest.mark.parametrize("planted", FAILS, ids=name_of)
def test_a_planted_bug_fails_the_check_of_its_name(planted):
    assert next(complaints(found(planted), "decoupled"))[0] == FAILS[planted]


def test_complaints_are_an_error_with_the_table():
    with pytest.raises(
        AssertionError, match=r"(?s)^WithoutGradient: .*\n  grad=None: MOVES, .*\n  frozen: MOVES, .*\nrule +decoupled"
    ):
        check_decay(WithoutGradient, "decoupled")
    assert check_decay(WithoutGradient, "decoupled", but=["grad=None", "frozen"]).kind == "decoupled"


def test_a_decay_without_a_bug_passes():
    law = check_decay(Planted, "decoupled")
    assert set(CHECKS) - set(law.findings) == {"law", "strength", "fused", "backend='eager'", "compiled"}


def test_lambda_times_lr_in_the_gradient_is_told_from_l2():
    with pytest.raises(AssertionError, match="strength: expected λ, found lr·λ"):
        check_decay(LrInTheGradient, "coupled", but=["maximize"])


# Hypotheses -----------------------------------------------------------------------------------------------------------------


def test_likely_hypotheses_lie_a_hundred_tolerances_apart():
    with alone():
        for factory in (torch.optim.Adam, torch.optim.AdamW, OnTheNewWeight, partial(OURS, decay="independent")):
            subject = Subject(factory).that_runs()
            verdict = holding(LIKELY, subject, observe(subject))
            apart = [left for each, left in verdict.residuals.items() if each not in verdict.fits]
            assert verdict.fits
            assert min(apart) > 100 * FITS


# What the caller notices ----------------------------------------------------------------------------------------------------


def test_nothing_of_the_callers_changes():
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        assert identify(Planted).kind == "decoupled"
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_a_law_is_a_sentence_a_table_and_plain_data():
    law = identify(Planted)
    assert str(law).startswith(law.text)
    assert "foreach " in str(law)
    data = json.loads(json.dumps(law.to_dict()))
    assert data["strength"]["formula"] == "lr·λ"
    assert data["findings"]["bfloat16"]["numbers"]["share"] < 0.01
    assert data["evidence"]["unexplained"]["the decay decoupled on the old weight"] < 1e-12
    assert law.kind in KINDS


class NeedsClosure(Planted):
    def step(self, closure):
        with torch.enable_grad():
            closure()
        super().step()


class VectorsOnly(Planted):
    def move(self, w, lr, gradient):
        if w.ndim != 1:
            raise ValueError("vectors only")
        super().move(w, lr, gradient)


class InFloat32(Planted):
    def move(self, w, lr, gradient):
        super().move(w, lr, gradient)
        w.copy_(w.float())


class Swallows(torch.optim.AdamW):
    def __init__(self, params, lr=0.1, weight_decay=0.0, **anything):
        Optimizer.__init__(self, params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    w.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * w.grad.sign())


def of_a_function(params, lr, weight_decay=0.01, **more):
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, **more)


@pytest.mark.parametrize("factory", [NeedsClosure, VectorsOnly, InFloat32, Swallows, of_a_function], ids=name_of)
def test_optimizers_that_ask_for_something_run(factory):
    law = identify(factory)
    assert (law.kind, law.strength, law.weight) == ("decoupled", PER_LR, "old")
    assert all(each.verdict in ("same", "not told") for name, each in law.findings.items() if name in ("foreach", "maximize"))


def test_a_keyword_that_is_swallowed_is_not_offered():
    assert not {"foreach", "fused", "maximize"} & set(identify(Swallows).findings)
    assert {"foreach", "fused", "maximize"} <= set(identify(of_a_function).findings)


def test_what_cannot_be_identified_is_refused():
    with pytest.raises(TypeError, match="cannot be called"):
        identify("adam")
    with pytest.raises(TypeError, match="made already"):
        identify(Planted([torch.nn.Parameter(torch.zeros(1))]))
    with pytest.raises(RuntimeError, match=r"does not run .*no step\(\)"):
        identify(lambda params, lr, weight_decay: [*params])
    with pytest.raises(ValueError, match="knob='weight_deacy': AdamW takes no such keyword"):
        identify(torch.optim.AdamW, knob="weight_deacy")


def test_without_memory_the_two_are_one():
    class Plain(Planted):
        def move(self, w, lr, gradient):
            w.sub_(lr * gradient)

    law = identify(Plain)
    assert (law.kind, law.strength) == ("coupled or decoupled", PER_LR)
    assert law.rule is None


# The conformance test -------------------------------------------------------------------------------------------------------

test_decay = decay_test({torch.optim.AdamW: "decoupled", partial(OURS, decay="cautious"): "cautious"}, but=["compiled"])


def test_a_conformance_test_fails_where_it_should(pytester_like):
    outcomes = pytester_like(decay_test({OnTheNewWeight: "decoupled", WithoutGradient: "decoupled"}))
    assert {name for name, failed in outcomes.items() if failed} == {
        "OnTheNewWeight-law", "OnTheNewWeight-maximize", "WithoutGradient-grad=None", "WithoutGradient-frozen",
    }  # fmt: skip


@pytest.fixture
def pytester_like():
    """Run the cases of a parametrized test and return which failed."""

    def run(test):
        (mark,) = test.pytestmark
        found = {}
        for case in mark.args[1]:
            try:
                test(*case.values)
            except pytest.skip.Exception:
                continue
            except pytest.fail.Exception:
                found[case.id] = True
            else:
                found[case.id] = False
        return found

    return run


def test_conformance_takes_known_words_only():
    with pytest.raises(ValueError, match="did you mean 'decoupled'"):
        check_decay(Planted, "decoupledd")
    with pytest.raises(ValueError, match="did you mean 'maximize'"):
        check_decay(Planted, but=["maximise"])
    with pytest.raises(ValueError, match="bfloat16=2"):
        check_decay(Planted, bfloat16=2)


def test_conformance_can_ask_for_a_share_in_bfloat16():
    with pytest.raises(AssertionError, match=r"bfloat16: expected 90 % .* 0 %"):
        check_decay(torch.optim.AdamW, bfloat16=0.9)
    assert isinstance(check_decay(partial(OURS, decay="decoupled"), bfloat16=0.9), DecayLaw)


def test_what_is_not_finite_is_said_and_is_json():
    class Explodes(Planted):
        def shrink(self, w, lr, decay, group):
            if decay:
                w.mul_(float("inf"))

    law = identify(Explodes)
    assert (law.kind, law.findings["lr=0"].verdict) == ("unknown", "moves")
    assert "NaN or infinite" in law.text
    assert "NaN" not in json.dumps(law.to_dict()["evidence"])
    assert next(complaints(law, "decoupled"))[0] == "law"


def test_two_runs_find_the_same():
    assert identify(torch.optim.Adam).to_dict() == identify(torch.optim.Adam).to_dict()


def test_an_optimizer_that_draws_random_numbers_draws_the_same_in_every_run():
    class Random(Planted):
        def move(self, w, lr, gradient):
            super().move(w, lr, gradient * torch.rand_like(w))

    law = identify(Random)
    assert (law.kind, law.strength) == ("decoupled", PER_LR)
    assert {law.findings[name].verdict for name in ("tensor lr", "foreach")} == {"same"}
    assert law.findings["λ in the groups"].verdict == "read"


class DoesNotClimb(Planted):
    def move(self, w, lr, gradient):
        super().move(w, lr, w.grad)


class ClimbsSlowly(Planted):
    def one(self, w, lr, decay, group):
        if w.grad is not None:
            self.shrink(w, lr, decay, group)
            self.move(w, lr, -0.5 * w.grad if group["maximize"] else w.grad)


class DecaysTwiceUnderMaximize(Planted):
    def shrink(self, w, lr, decay, group):
        w.mul_(1 - lr * decay * (2 if group["maximize"] else 1))


@pytest.mark.parametrize(
    ("planted", "verdict"),
    [
        (Planted, "same"),
        (FlippedUnderMaximize, "flipped"),
        (DoesNotClimb, "ignored"),
        (ClimbsSlowly, "other steps"),
        (DecaysTwiceUnderMaximize, "differs"),
    ],
)
def test_what_maximize_does(planted, verdict):
    assert found(planted).findings["maximize"].verdict == verdict


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_is_compared():
    assert identify(torch.optim.AdamW, compiled=True).findings["compiled"].verdict == "same"


class Fails(Planted):
    """Breaks in its third step."""

    error: type[Exception] = ZeroDivisionError

    def step(self, closure=None):
        self.made = getattr(self, "made", 0) + 1
        if self.made == 3:
            raise self.error("oh")
        super().step(closure)


class FailsByKey(Fails):
    error = KeyError


class FailsOnTwo(Planted):
    def step(self, closure=None):
        if len(self.param_groups[0]["params"]) > 1:
            raise LookupError("one tensor only")
        super().step(closure)


@pytest.mark.parametrize(
    ("cls", "why"), [(Fails, "step 3 fails: ZeroDivisionError: oh"), (FailsByKey, "step 3 fails: KeyError")]
)
def test_an_optimizer_that_breaks_after_some_steps_gets_a_reason(cls, why):
    law = identify(cls)
    assert law.kind == "unknown"
    assert why in law.text


def test_an_optimizer_that_breaks_on_two_tensors_keeps_its_law():
    law = identify(FailsOnTwo)
    assert law.kind == "decoupled"
    assert {each.verdict for each in law.findings.values()} >= {"refused"}


class SetsEverything(Planted):
    """Draws from every generator there is, and sets what holds for the whole process."""

    def __init__(self, *args, **numbers):
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.autograd.set_detect_anomaly(True)
        torch.set_float32_matmul_precision("medium")
        super().__init__(*args, **numbers)

    def step(self, closure=None):
        random.random()
        numpy.random.rand()
        torch.rand(())
        super().step(closure)


def the_process():
    return (
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_float32_matmul_precision(),
        random.getstate(),
        numpy.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
    )


def test_what_an_optimizer_draws_and_sets_is_put_back():
    before = the_process()
    assert identify(SetsEverything).kind == "decoupled"
    assert the_process() == before
    model = torch.nn.Linear(4, 4, bias=False)
    optimizer = Planted(model.parameters(), weight_decay=0.1)
    optimizer.__class__ = SetsEverything
    before = the_process()
    wd.doctor(model, optimizer, steps=100)
    assert the_process() == before
