"""The report says what the data say: the same code on grids where decay helps, hurts, does nothing, or cannot be judged."""

import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from statistics import fmean, stdev
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from weightdecay.display import files
from weightdecay.sweeps.report import best_table, verdict, write_report
from weightdecay.sweeps.report.estimate import Estimate, student_p, student_quantile
from weightdecay.sweeps.report.heat_maps import Scale
from weightdecay.sweeps.report.paired_comparison import Contrast, contrast
from weightdecay.sweeps.report.results_grid import Sweep

LRS = [10.0**power for power in (-3.5, -3, -2.5, -2, -1.5, -1)]
DECAYS = [0.0, *(10.0**power for power in (-4, -3, -2, -1, 0, 1))]
KINDS = {"SGD": "coupled", "SGDW": "decoupled", "Adam": "coupled", "AdamW": "decoupled"}

Surface = Callable[[str, float, float], float | None]


def sweep(
    surface: Surface,
    *,
    optimizers: dict[str, str] | None = None,
    lrs: list[float] = LRS,
    decays: list[float] = DECAYS,
    seeds: int = 3,
    noise: float = 0.004,
    metric: str = "accuracy",
    goal: str = "max",
    salt: str = "",
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Make the rows and the manifest of a sweep whose true metric is `surface(optimizer, lr, λ)`, None where it diverges."""
    kinds = {"AdamW": "decoupled"} if optimizers is None else optimizers
    rows = []
    for name in kinds:
        for lr in lrs:
            for decay in decays:
                for seed in range(seeds):
                    chance = random.Random(ascii((salt, name, lr, decay, seed)))
                    true = surface(name, lr, decay)
                    valid, test = (None if true is None else true + chance.gauss(0, noise) for _ in range(2))
                    norm = 10 / (1 + lr * decay * 240)
                    rows.append(
                        {
                            "task": "digits",
                            "optimizer": name,
                            "lr": lr,
                            "weight_decay": decay,
                            "seed": seed,
                            "steps": 240,
                            "train_loss": None if true is None else 0.1,
                            "valid_loss": None if true is None else 0.3,
                            "test_loss": None if true is None else 0.3,
                            f"train_{metric}": test,
                            f"valid_{metric}": valid,
                            f"test_{metric}": test,
                            "weight_norm": None if true is None else norm,
                            "initial_weight_norm": 10.0,
                            "history": {
                                "step": [0, 120, 240],
                                "train_loss": [2.3, 1.0, None if true is None else 0.1],
                                "valid_loss": [2.3, 1.2, None if true is None else 0.3],
                                f"valid_{metric}": [0.1, 0.5, valid],
                                "weight_norm": [10.0, (10 + norm) / 2, None if true is None else norm],
                            },
                            "diverged": true is None,
                            "stacked": True,
                            "versions": {"torch": "2.13.0"},
                        }
                    )
    manifest = {
        "task": "digits",
        "description": "1797 handwritten digits of 8 × 8 grey levels",
        "metric": metric,
        "goal": goal,
        "optimizers": [{"name": name, "rule": f"the rule of {name}", "kind": kind} for name, kind in kinds.items()],
        "grid": {name: {"lr": lrs, "weight_decay": decays} for name in kinds},
        "seeds": list(range(seeds)),
        "steps": 240,
        "decay_unit": "per lr (torch's λ)",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "weightdecay": "0.1.0"},
        "machine": "2 cores",
        "created": "2026-11-22T02:30:00+00:00",
    }
    return rows, manifest


def ridge(power: float, *, gain: float = 0.05, centre: float = 1e-2) -> Callable[[str, float, float], float]:
    """Make a surface where decay adds `gain` at λ* = centre · (lr / 10⁻²)^power, and costs far above it."""

    def surface(_: str, lr: float, decay: float) -> float:
        level = 0.9 - 0.01 * abs(math.log10(lr) + 2)
        if decay == 0:
            return level
        off = math.log10(decay) - math.log10(centre) - power * (math.log10(lr) + 2)
        return level + gain * math.exp(-(off**2)) - (0.2 * (off - 1.5) if off > 1.5 else 0)

    return surface


def hurting(_: str, lr: float, decay: float) -> float:
    """Cost more the larger λ is, from the smallest on."""
    return 0.9 - 0.01 * abs(math.log10(lr) + 2) - (0.05 + 0.01 * math.log10(decay / 1e-4) if decay else 0)


def flat(_: str, lr: float, decay: float) -> float:
    """Depend on nothing."""
    return 0.9


def about(rows: list[dict[str, Any]], manifest: dict[str, Any]) -> list[str]:
    """Return the sentences on the only optimizer: on decay, on the learning rates, on the movement of λ."""
    found = verdict(rows, manifest)
    return found.about(found.judgements[0])


# Estimates


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281)])
def test_student_meets_the_printed_tables(freedom: int, t: float) -> None:
    assert student_p(t, freedom) == pytest.approx(0.05, abs=5e-6)
    assert student_quantile(freedom) == pytest.approx(t, abs=5e-5)


def test_an_estimate_of_one_seed_has_no_error_and_no_p() -> None:
    alone = Estimate.of([0.5])
    assert (alone.error, alone.p) == (None, None)


def test_identical_values_have_no_spread() -> None:
    assert Estimate.of([0.1, 0.1, 0.1]).p == 0.0
    assert Estimate.of([0.0, 0.0, 0.0]).p == 1.0


# Claims about decay


def test_decay_that_helps_is_said_to_help_by_as_much_as_the_rows_say() -> None:
    rows, manifest = sweep(ridge(0))

    def mean(split: str, lr: float, decay: float) -> list[float]:
        return [row[f"{split}_accuracy"] for row in rows if (row["lr"], row["weight_decay"]) == (lr, decay)]

    settings = [(lr, decay) for lr in LRS for decay in DECAYS]
    ours = max((s for s in settings if s[1] > 0), key=lambda s: fmean(mean("valid", *s)))
    theirs = max((s for s in settings if s[1] == 0), key=lambda s: fmean(mean("valid", *s)))
    gains = [100 * (a - b) for a, b in zip(mean("test", *ours), mean("test", *theirs), strict=True)]

    found = verdict(rows, manifest).judgements[0]
    assert found.decay is not None
    assert found.decay.outcome == "better"
    assert 100 * found.decay.gain.mean == pytest.approx(fmean(gains))
    assert 100 * found.decay.gain.error == pytest.approx(stdev(gains) / math.sqrt(3))
    sentence = about(rows, manifest)[0]
    assert re.match(r"weight decay adds \d\.\d+ ± 0\.\d+ points to test accuracy: ", sentence)
    assert f"adds {fmean(gains):.1f}" in sentence


def test_decay_that_hurts_is_said_to_hurt() -> None:
    rows, manifest = sweep(hurting)
    sentence, at_one_lr, movement = about(rows, manifest)
    assert sentence.startswith("weight decay hurts, it takes ")
    assert "no λ > 0 gains anything on validation" in at_one_lr
    assert "cannot be told" in movement
    assert "6 where λ = 0 does as well" in movement
    assert "weight decay hurts AdamW; over " in verdict(rows, manifest).summary


def test_decay_that_does_nothing_is_not_said_to_do_anything() -> None:
    rows, manifest = sweep(flat)
    sentence, _, movement = about(rows, manifest)
    assert sentence.startswith("no difference that 3 seeds can tell, test accuracy changes by ")
    assert "cannot be told" in movement
    assert verdict(rows, manifest).summary.count("makes no difference to AdamW that the seeds can tell") == 2


def test_claims_from_noise_alone_are_rare() -> None:
    """With no effect at all the best of many cells still looks better than the best of few, on validation."""

    def claims(salt: int) -> list[bool]:
        found = verdict(*sweep(flat, lrs=LRS[:4], decays=DECAYS[:5], salt=str(salt))).judgements[0]
        return [one is not None and one.outcome != "unclear" for one in (found.decay, found.one_lr, found.larger_lrs)]

    for rate in map(fmean, zip(*map(claims, range(100)), strict=True)):
        assert rate <= 0.1


def test_seeds_that_agree_by_accident_are_not_believed() -> None:
    """Three equal differences have no spread at all; the cells around them show how much the seeds really differ."""
    rows, manifest = sweep(flat, noise=0.02)
    for row in rows:
        seed_scores = [0.91, 0.93, 0.92]
        if row["lr"] == LRS[0] and row["weight_decay"] in (0.0, DECAYS[2]):
            better = 0.004 if row["weight_decay"] else 0.0
            row["valid_accuracy"], row["test_accuracy"] = 0.95 + better, seed_scores[row["seed"]] + better
    found = verdict(rows, manifest).judgements[0]
    assert found.decay is not None
    assert found.decay.gain.p is not None
    assert found.decay.gain.p < 0.05
    assert (found.decay.outcome, found.decay.doubt) == ("unclear", "noise")
    assert "agree more closely than the rest of the grid" in about(rows, manifest)[0]


def test_settings_that_only_the_scored_seed_likes_are_not_believed() -> None:
    """Each seed has a cell of its own that only it finds good: chosen by the others it is worth nothing."""
    rows, manifest = sweep(flat, lrs=LRS[:1], decays=DECAYS[:5], noise=0.001)
    for row in rows:
        lucky = row["weight_decay"] == DECAYS[1]
        row["valid_accuracy"] = 0.9 + (0.03 if row["weight_decay"] == DECAYS[2 + row["seed"]] else 0)
        if lucky:
            row["valid_accuracy"] = 0.9 + 0.0101
            row["test_accuracy"] = 0.95 + 0.0001 * row["seed"]
    found = verdict(rows, manifest).judgements[0]
    assert found.decay is not None
    assert found.with_decay is not None
    assert found.with_decay.decay == DECAYS[1]
    assert found.decay.doubt == "choice"
    assert "with each seed scored at the settings that the others choose it is " in about(rows, manifest)[0]


def test_settings_are_chosen_by_validation_and_never_by_test() -> None:
    rows, manifest = sweep(ridge(0))
    for row in rows:
        if (row["lr"], row["weight_decay"]) == (LRS[0], DECAYS[1]):
            row["test_accuracy"] = 1.0
    found = verdict(rows, manifest).judgements[0]
    assert found.with_decay is not None
    assert (found.with_decay.lr, found.with_decay.decay) == (LRS[3], DECAYS[3])


def test_one_seed_is_said_to_be_one_seed() -> None:
    rows, manifest = sweep(ridge(0), seeds=1, optimizers=KINDS)
    found = verdict(rows, manifest)
    for judgement in found.judgements:
        decay, at_one_lr, _ = found.about(judgement)
        assert "on one seed, which has no standard error" in decay
        assert "±" not in decay
        assert "(one seed, no standard error)" in at_one_lr
    assert all("on one seed" in sentence for sentence in found.compared)


def test_a_smaller_loss_is_better() -> None:
    def loss(name: str, lr: float, decay: float) -> float:
        return 1.5 - ridge(0)(name, lr, decay)

    helped = about(*sweep(loss, metric="loss", goal="min"))[0]
    assert re.match(r"weight decay takes 0\.0\d+ ± 0\.\d+ off test loss: 0\.5\d* ± ", helped)
    hurt = about(*sweep(lambda *at: 1.5 - hurting(*at), metric="loss", goal="min"))[0]
    assert re.match(r"weight decay hurts, it adds 0\.0\d+ ± 0\.\d+ to test loss: ", hurt)


def test_the_opposite_metric_with_the_opposite_goal_gives_the_same_verdict() -> None:
    rows, manifest = sweep(ridge(-1), metric="r2", optimizers=KINDS)
    opposite = [{**row, **{f"{split}_r2": -row[f"{split}_r2"] for split in ("train", "valid", "test")}} for row in rows]
    ours, theirs = verdict(rows, manifest).to_dict(), verdict(opposite, {**manifest, "goal": "min"}).to_dict()
    for one, other in zip(ours["optimizers"], theirs["optimizers"], strict=True):
        for claim in ("difference", "difference_at_one_lr", "difference_over_larger_lrs"):
            assert one[claim]["outcome"] == other[claim]["outcome"]
            assert one[claim]["gain"]["mean"] == pytest.approx(other[claim]["gain"]["mean"])
        assert one["trend"] == other["trend"]


# Learning rates, and how the best λ moves


def test_the_gain_at_one_learning_rate_is_found_where_it_is() -> None:
    def surface(_: str, lr: float, decay: float) -> float:
        return 0.8 + (0.1 if (lr, decay) == (LRS[4], DECAYS[2]) else 0.0) + (0.15 if lr == LRS[1] else 0.0)

    rows, manifest = sweep(surface)
    decay, at_one_lr, _ = about(rows, manifest)
    assert decay.startswith("no difference")
    assert "decay gains most on validation at lr 0.0316 with λ 0.001, where test accuracy changes by +" in at_one_lr
    found = verdict(rows, manifest).judgements[0]
    assert found.one_lr is not None
    assert found.one_lr.outcome == "better"
    assert found.larger_lrs is not None
    assert [ours.lr for ours, _ in found.larger_lrs.pairs] == pytest.approx(LRS[3:])


def test_learning_rates_that_do_not_train_are_left_out() -> None:
    rows, manifest = sweep(ridge(0))
    for row in rows:
        if row["lr"] == LRS[5]:
            row["train_loss"] = 2.2
    found = verdict(rows, manifest).judgements[0]
    assert [row.standing for row in found.rows][5] == "untrained"
    assert found.larger_lrs is not None
    assert [ours.lr for ours, _ in found.larger_lrs.pairs] == pytest.approx(LRS[2:5])
    assert "1 with little learning" in about(rows, manifest)[2]


def test_decay_that_keeps_a_run_from_diverging_is_reported() -> None:
    def surface(name: str, lr: float, decay: float) -> float | None:
        return None if lr == LRS[5] and decay < 1e-2 else ridge(0)(name, lr, decay)

    assert "at lr 0.1 a run with λ = 0 diverges and some λ > 0 trains" in about(*sweep(surface))[1]


@pytest.mark.parametrize(
    ("power", "reading"),
    [
        (-1.0, "admits a constant lr × λ (−1) and rules out one λ for every lr (0)"),
        (0.0, "admits one λ for every lr (0) and rules out a constant lr × λ (−1)"),
        (1.0, "rules out both a constant lr × λ (−1) and one λ for every lr (0)"),
    ],
)
def test_the_slope_of_the_best_decay_is_recovered(power: float, reading: str) -> None:
    lrs = [10.0 ** (-3 + k / 3) for k in range(7)]
    decays = [0.0, *(10.0 ** (-4 + k / 2) for k in range(9))]
    rows, manifest = sweep(ridge(power), lrs=lrs, decays=decays, noise=0.001)
    trend = verdict(rows, manifest).judgements[0].trend
    assert trend is not None
    assert trend.slope == pytest.approx(power, abs=0.25)
    assert trend.admits(power)
    assert reading in about(rows, manifest)[2]


def test_a_straight_line_through_grid_points_does_not_claim_more_than_the_grid_can_show() -> None:
    rows, manifest = sweep(ridge(0), noise=0.0)
    trend = verdict(rows, manifest).judgements[0].trend
    assert trend is not None
    assert trend.slope == pytest.approx(0)
    assert trend.error > 0.1


def test_a_few_random_best_decays_show_no_slope() -> None:
    """Over grids whose best λ is at random places, the interval holds 0 about as often as it says."""
    held = []
    for salt in range(40):
        places = random.Random(salt)
        best = {lr: places.choice(DECAYS[2:-1]) for lr in LRS}
        rows, manifest = sweep(lambda _, lr, decay, best=best: 0.9 + 0.05 * (decay == best[lr]), noise=0.001, salt=str(salt))
        trend = verdict(rows, manifest).judgements[0].trend
        assert trend is not None
        held.append(trend.admits(0))
    assert fmean(held) >= 0.85


def test_a_best_decay_at_the_edge_is_said_to_be_there() -> None:
    rows, manifest = sweep(lambda _, lr, decay: 0.8 + 0.01 * (math.log10(decay) + 5 if decay else 0))
    decay, _, movement = about(rows, manifest)
    assert "its λ is the largest of the grid" in decay
    assert "6 where the best λ is at the edge of the grid" in movement
    assert "there is none" in movement


def test_a_best_learning_rate_at_the_edge_is_said_to_be_there() -> None:
    decay = about(*sweep(lambda _, lr, decay: 0.9 + 0.02 * math.log10(lr) + (0.03 if decay == DECAYS[3] else 0)))[0]
    assert "its lr is the largest of the grid" in decay


def test_the_unit_of_the_shrink_is_explained_only_where_it_holds() -> None:
    rows, manifest = sweep(ridge(0))
    assert "lr × λ is the share that a weight loses per step" in about(rows, manifest)[2]
    unit = "a decoupled decay shrinks a weight by lr·λ per step"
    assert "loses per step" in about(rows, {**manifest, "decay_unit": unit})[2]
    assert "loses per step" not in about(rows, {**manifest, "decay_unit": "per step"})[2]
    other = [{**entry, "lr_tied": False} for entry in manifest["optimizers"]]
    assert "loses per step" not in about(rows, {**manifest, "decay_unit": unit, "optimizers": other})[2]
    rows, manifest = sweep(ridge(0), optimizers={"Adam": "coupled"})
    assert "λ weighs a penalty here" in about(rows, manifest)[2]


# Coupled against decoupled


def test_coupled_and_decoupled_are_compared_by_name() -> None:
    def surface(name: str, lr: float, decay: float) -> float:
        return ridge(0, gain=0.08 if name == "AdamW" else 0.03)(name, lr, decay)

    sgd, adam = verdict(*sweep(surface, optimizers=KINDS)).compared
    assert sgd.startswith("SGD (coupled) and SGDW (decoupled) at their best reach ")
    assert "no difference that 3 seeds can tell, SGDW minus SGD is " in sgd
    assert adam.startswith("Adam (coupled) and AdamW (decoupled) at their best reach ")
    assert re.search(r": AdamW is better by [45]\.\d+ ± \d\.\d+ points\.$", adam)


def test_the_coupled_one_may_be_the_better_one() -> None:
    def surface(name: str, lr: float, decay: float) -> float:
        return 0.9 if name == "Adam" else 0.8

    (sentence,) = verdict(*sweep(surface, optimizers={"Adam": "coupled", "AdamW": "decoupled"})).compared
    assert "Adam is better by " in sentence


def test_kinds_are_compared_where_names_do_not_meet() -> None:
    kinds = {"Ridge": "coupled", "Lasso": "coupled", "Lion": "decoupled"}
    (sentence,) = verdict(*sweep(lambda name, *_: 0.8 if name == "Ridge" else 0.9, optimizers=kinds)).compared
    assert sentence.startswith("Lasso (coupled) and Lion (decoupled)")
    assert verdict(*sweep(flat, optimizers={"Lion": "decoupled"})).compared == []


# Grids that are not all there


def test_a_sweep_that_diverged_everywhere_claims_nothing() -> None:
    found = verdict(*sweep(lambda *_: None, optimizers=KINDS))
    assert found.coverage == "The sweep is complete, with 504 runs. Every one diverged."
    for judgement in found.judgements:
        decay, movement = found.about(judgement)
        assert decay == "nothing to judge: at each of these settings a run diverged."
        assert "there is none (besides 6 where every λ > 0 diverges)" in movement
    assert found.compared[0].endswith("cannot be compared: no setting of SGD and SGDW can be judged.")


def test_a_cell_with_a_diverged_seed_is_not_chosen() -> None:
    rows, manifest = sweep(ridge(0))
    spoilt = next(row for row in rows if (row["lr"], row["weight_decay"], row["seed"]) == (LRS[3], DECAYS[3], 1))
    spoilt |= {"diverged": True, "test_accuracy": None, "valid_accuracy": None}
    found = verdict(rows, manifest).judgements[0]
    assert found.with_decay is not None
    assert (found.with_decay.lr, found.with_decay.decay) != (LRS[3], DECAYS[3])


def test_nothing_has_finished() -> None:
    _, manifest = sweep(flat, optimizers=KINDS)
    found = verdict([], manifest)
    assert found.coverage == "None of the 504 runs of this sweep has finished: there is nothing to judge."
    assert all("nothing to judge: none of its runs has finished." in found.about(one)[0] for one in found.judgements)


def test_an_interrupted_sweep_says_so_and_compares_what_it_has() -> None:
    rows, manifest = sweep(ridge(0))
    seed_by_seed = sorted(rows, key=lambda row: row["seed"])
    found = verdict(seed_by_seed[: len(rows) // 3 + 1], manifest)
    assert found.coverage == "The sweep is partial: 43 of 126 runs have finished. None diverged."
    judgement = found.judgements[0]
    assert judgement.decay is not None
    assert judgement.decay.outcome == "one seed"
    assert len(judgement.grid.candidates) == 42
    cell_by_cell = verdict(rows[: len(rows) // 2 + 1], manifest).judgements[0]
    assert len(cell_by_cell.grid.candidates) == 21
    assert {row.standing for row in cell_by_cell.rows[3:]} == {"missing"}


def test_rows_that_the_manifest_does_not_know_are_counted_and_left_out() -> None:
    rows, manifest = sweep(ridge(0))
    stray = [{**rows[0], "lr": 17.0}, {**rows[0], "optimizer": "Adam"}, {**rows[0], "seed": 9}]
    found = verdict(rows + stray, manifest)
    assert found.coverage.endswith("3 rows outside the manifest's grid left out.")
    assert found.judgements[0].to_dict() == verdict(rows, manifest).judgements[0].to_dict()


def test_a_run_that_was_done_again_replaces_the_first() -> None:
    rows, manifest = sweep(ridge(0))
    again = verdict([{**rows[0], "test_accuracy": 0.0, "valid_accuracy": 0.0}, *rows], manifest)
    assert again.to_dict() == verdict(rows, manifest).to_dict()


def test_grid_values_meet_across_the_last_digit() -> None:
    rows, manifest = sweep(ridge(0))
    nearly = [{**row, "lr": math.nextafter(row["lr"], 1)} for row in rows]
    assert verdict(nearly, manifest).sweep.finished == len(rows)


@pytest.mark.parametrize(
    ("decays", "words"),
    [([0.0], "nothing with λ > 0 stands against it: the grid has none"), ([0.1], "nothing with λ = 0 stands against it: the")],
)
def test_a_grid_of_one_cell(decays: list[float], words: str) -> None:
    decay, movement = about(*sweep(flat, lrs=[0.01], decays=decays))
    assert words in decay
    assert "1 with cells missing" in movement


def test_an_accuracy_in_percent_is_not_multiplied_again() -> None:
    rows, manifest = sweep(lambda *_: 90.0, noise=1.0)
    assert Sweep.of(rows, manifest).units.percent is False
    assert Sweep.of(*sweep(flat)).units.percent is True


def test_no_pairs_are_no_contrast() -> None:
    assert contrast(lambda _: [], (0, 1, 2), 1, None) is None


@pytest.mark.parametrize(("error", "outcome"), [(0.004, "unclear"), (0.002, "better")])
def test_a_difference_has_to_pass_students_t(error: float, outcome: str) -> None:
    """Of two and a half standard errors three seeds can make nothing; five are enough."""
    gain = Estimate(0.01, error, 3)
    assert Contrast((), gain, gain, None).outcome == outcome


# What is written


def test_a_verdict_prints_its_sentences_and_has_its_numbers() -> None:
    found = verdict(*sweep(ridge(0), optimizers=KINDS))
    assert str(found).splitlines() == found.sentences
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["sentences"] == found.sentences


def test_the_table_shows_the_best_decay_of_each_learning_rate() -> None:
    rows, manifest = sweep(ridge(0), optimizers={"Adam[red]": "coupled"})
    console = Console(file=StringIO(), width=80)
    console.print(best_table(rows, manifest))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Adam[red]" in text
    assert len(re.findall(r"^ *(?:Adam\[red\])? +\S+ +0\.01 +9\d\.\d+ ± .* \+\d\.\d+ ± ", text, re.MULTILINE)) == len(LRS)


class Page(HTMLParser):
    """What a reader of the page meets."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Write the report on a full sweep: its folder, its page and its verdict."""
    directory = tmp_path_factory.mktemp("report")
    rows, manifest = sweep(ridge(-0.5), optimizers=KINDS)
    index = write_report(directory / "new", rows, manifest)
    return index.parent, index, verdict(rows, manifest)


def test_the_folder_holds_the_page_and_the_pictures_and_nothing_else(written: Any) -> None:
    directory, index, _ = written
    pictures = {f"{name}.{kind}" for name in ("heat-maps", "curves", "norms") for kind in ("png", "svg")}
    assert {path.name for path in directory.iterdir()} == {"index.html"} | pictures
    for name in pictures:
        content = (directory / name).read_bytes()
        assert len(content) < 500_000
        if name.endswith("svg"):
            ElementTree.fromstring(content)
        else:
            assert content.startswith(b"\x89PNG")
    assert index.name == "index.html"


def test_the_page_stands_by_itself(written: Any) -> None:
    page = Page(written[1].read_text(encoding="utf-8"))
    assert page.all("html")[0]["lang"] == "en"
    assert [len(page.all(tag)) for tag in ("h1", "script", "iframe", "object")] == [1, 0, 0, 0]
    sources = [image["src"] for image in page.all("img")] + [source["srcset"] for source in page.all("source")]
    assert len(sources) == 6
    for source in sources:
        assert source is not None
        assert source.startswith("data:image/svg+xml;base64,")
    assert "http" not in " ".join(str(value) for _, attributes in page.tags for value in attributes.values() if value)
    assert all(link["href"].startswith(("#", "data:")) or (link["href"] in NEIGHBOURS) for link in page.all("a"))  # type: ignore[union-attr]


NEIGHBOURS = {f"{name}.{kind}" for name in ("heat-maps", "curves", "norms") for kind in ("png", "svg")} | {
    "results.jsonl",
    "sweep.json",
}


def test_the_page_says_the_verdict_and_describes_its_pictures(written: Any) -> None:
    _, index, found = written
    page = Page(index.read_text(encoding="utf-8"))
    text = " ".join(page.text.replace("\N{NO-BREAK SPACE}", " ").split())
    for judgement in found.judgements:
        for sentence in found.about(judgement):
            assert sentence[1:] in text
    for sentence in (found.coverage, found.summary, *found.compared):
        assert sentence in text
    best = found.judgements[3].best
    assert f"AdamW: the best cell has {found.sweep.units.level(best.estimate('test'))}" in (page.all("img")[0]["alt"] or "")
    assert "grey levels. SGD, SGDW, Adam, AdamW: each trained for 240 steps from 3 seeds" in text
    assert len(page.all("details")) == 4
    assert "weightdecay sweep digits --out DIR" in text


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: sweep(lambda *_: None), id="diverged"),
        pytest.param(lambda: ([], sweep(flat, optimizers=KINDS)[1]), id="empty"),
        pytest.param(lambda: sweep(flat, lrs=[0.1], decays=[0.0], seeds=1, noise=0.0), id="one run"),
        pytest.param(
            lambda: sweep(lambda *_: -3e7, metric="r2", optimizers={f"O{k}": "" for k in range(8)}, lrs=LRS[:2]), id="eight"
        ),
        pytest.param(lambda: (sweep(ridge(0))[0][:50], sweep(ridge(0), goal="min")[1]), id="partial"),
    ],
)
def test_odd_sweeps_have_a_report_too(make: Callable[[], Any], tmp_path: Any) -> None:
    rows, manifest = make()
    page = Page(write_report(tmp_path, rows, manifest).read_text(encoding="utf-8"))
    assert verdict(rows, manifest).coverage in page.text.replace("\N{NO-BREAK SPACE}", " ")
    ElementTree.fromstring((tmp_path / "heat-maps.svg").read_bytes())


def test_rows_without_a_history_have_a_report_too(tmp_path: Any) -> None:
    rows, manifest = sweep(ridge(0), lrs=LRS[:2])
    bare = [{key: value for key, value in row.items() if key not in ("history", "weight_norm")} for row in rows]
    write_report(tmp_path, bare, manifest)
    assert b"nothing recorded" in (tmp_path / "norms.svg").read_bytes()


def test_values_that_are_all_equal_have_a_scale(tmp_path: Any) -> None:
    rows, manifest = sweep(flat, lrs=LRS[:2], noise=0.0)
    for row in rows:
        row["history"]["weight_norm"] = [0.0, 0.0, 0.0]
    write_report(tmp_path, rows, manifest)
    norm = Scale.of(Sweep.of(rows, manifest)).norm
    assert (norm.vmin, norm.vmax) == pytest.approx((89.91, 90.0))


def test_names_from_outside_stay_names(tmp_path: Any) -> None:
    evil = "漢 $\\frac{$ <script>alert(1)</script> & \x1b[31m\u202e \ud800"
    rows, manifest = sweep(ridge(0), optimizers={evil: evil}, lrs=LRS[:2])
    manifest |= {"task": evil, "description": evil, "machine": evil, "versions": {evil: evil}, "created": evil}
    index = write_report(tmp_path, rows, manifest)
    page = Page(index.read_text(encoding="utf-8"))
    assert page.all("script") == []
    assert "<script>alert(1)</script>" in page.text
    for text in (
        index.read_text(encoding="utf-8"),
        str(verdict(rows, manifest)),
        (tmp_path / "heat-maps.svg").read_text(encoding="utf-8"),
    ):
        assert not set("\x1b\u202e\ud800") & set(text)
    for picture in tmp_path.glob("*.svg"):
        ElementTree.fromstring(picture.read_bytes())


def test_equal_sweeps_give_equal_files(tmp_path: Any) -> None:
    rows, manifest = sweep(ridge(0), lrs=LRS[:2])
    for name in ("one", "other"):
        write_report(tmp_path / name, rows, manifest)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index.html"
    files.write(path, b"old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        files.write(path, b"new")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("index.html", b"old")]


def test_a_verdict_needs_no_optional_dependency() -> None:
    code = """
import sys
for name in ("matplotlib", "jinja2", "rich"):
    sys.modules[name] = None
from weightdecay.sweeps.report import verdict
try:
    from weightdecay.sweeps.report import write_report
except ImportError:
    print("no pictures", verdict.__name__)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert ran.stdout.split() == ["no", "pictures", "verdict"]
