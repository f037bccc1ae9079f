"""What the numbers of a verdict say, in words that follow from them and from nothing else."""

from collections import Counter
from collections.abc import Iterable, Sequence

from weightdecay.display.numbers import plus_minus, setting
from weightdecay.sweeps.report.best_decay import Standing, Trend
from weightdecay.sweeps.report.comparison import Comparison, Judgement
from weightdecay.sweeps.report.paired_comparison import Contrast, Outcome
from weightdecay.sweeps.report.results_grid import Cell, Grid, Sweep

__all__ = ["about_all", "about_comparison", "about_coverage", "about_decay", "about_learning_rates", "about_movement"]

_HELP: dict[Outcome | None, str] = {
    "better": "helps {}",
    "worse": "hurts {}",
    "unclear": "makes no difference to {} that the seeds can tell",
    "one seed": "cannot be told from noise on one seed for {}",
    None: "cannot be judged for {}",
}
# How a manifest says that a decoupled λ is multiplied by the learning rate.
_SHRINKS_BY_LR = ("per lr", "lr·λ")
_ALONE = "on one seed, which has no standard error and cannot tell a difference from noise"
_LEFT_OUT: dict[Standing, str] = {
    "edge": "{} where the best λ is at the edge of the grid",
    "flat": "{} where λ = 0 does as well",
    "untrained": "{} with little learning",
    "diverged": "{} where every λ > 0 diverges",
    "missing": "{} with cells missing",
}


def about_coverage(sweep: Sweep) -> str:
    """Say how much of the sweep there is."""
    if not sweep.finished:
        return f"None of the {_count(sweep.expected, 'run')} of this sweep has finished: there is nothing to judge."
    diverged = {0: "None diverged", 1: "One of them diverged"}.get(sweep.diverged, f"{sweep.diverged} of them diverged")
    if sweep.diverged == sweep.finished:
        diverged = "Every one diverged"
    strays = f" {_count(sweep.strays, 'row')} outside the manifest's grid left out." if sweep.strays else ""
    if sweep.finished == sweep.expected:
        here = f"The sweep is complete, with {_count(sweep.expected, 'run')}"
    else:
        here = f"The sweep is partial: {sweep.finished} of {_count(sweep.expected, 'run')} have finished"
    return f"{here}. {diverged}.{strays}"


def about_all(judgements: Sequence[Judgement]) -> str:
    """Say in one sentence which optimizers decay helps: at their best settings, and at larger learning rates."""
    best = _helped((found.grid.name, found.decay) for found in judgements)
    larger = _helped((found.grid.name, found.larger_lrs) for found in judgements)
    return (
        f"At the best settings of each optimizer, weight decay {best}; "
        f"over the larger half of the learning rates that train, it {larger}."
    )


def _helped(contrasts: Iterable[tuple[str, Contrast | None]]) -> str:
    named: dict[Outcome | None, list[str]] = {}
    for name, contrast in contrasts:
        named.setdefault(contrast.outcome if contrast else None, []).append(name)
    return _listed(words.format(_listed(named[outcome])) for outcome, words in _HELP.items() if outcome in named)


def about_decay(sweep: Sweep, found: Judgement) -> str:
    """Say what the best λ > 0 gives over the best λ = 0, each at its best learning rate."""
    ours, theirs, contrast = found.with_decay, found.without, found.decay
    if ours is None and theirs is None:
        return f"nothing to judge: {_why_none(found.grid)}."
    if ours is None or theirs is None:
        cell = ours or theirs
        assert cell
        lacking = [other for other in found.grid if (other.decay > 0) == (ours is None)]
        side, absent = ("without", "with λ > 0") if ours is None else ("with", "with λ = 0")
        reached = f"{_level(sweep, cell)} {_at(cell)}"
        return f"the best setting {side} decay gives {reached}, and nothing {absent} stands against it: {_why_none(lacking)}."
    if contrast is None:
        return f"the best settings with decay ({_at(ours)}) and without ({_at(theirs)}) share no seed to be compared on."
    levels = f"{_level(sweep, ours)} {_at(ours)} against {_level(sweep, theirs)} {_at(theirs)}"
    size, test = sweep.units.size(contrast.gain), f"test {sweep.metric}"
    gives, takes = f"adds {size} to {test}", f"takes {size} off {test}"
    helps, hurts = (gives, takes) if sweep.sign > 0 else (takes, gives)
    claim = {
        "better": f"weight decay {helps}: {levels}",
        "worse": f"weight decay hurts, it {hurts}: {levels}",
        "unclear": f"no difference that {_seeds(contrast)} can tell, {_changes(sweep, contrast)} with the best λ > 0: "
        f"{levels}{_doubt(sweep, contrast)}",
        "one seed": f"with the best λ > 0 {_changes(sweep, contrast)} {_ALONE}: {levels}",
    }[contrast.outcome]
    return f"{claim}.{_edges(found.grid, ours)}"


def about_learning_rates(sweep: Sweep, found: Judgement) -> str | None:
    """Say what decay does with the learning rate held fixed; None where no learning rate has both to compare."""
    if found.one_lr is None:
        return None
    ours, theirs = found.one_lr.pairs[0]
    most = found.grid.gain(ours, theirs, "valid")
    if most is not None and most.mean > 0:
        place = "with the lr held fixed, decay gains most on validation"
    else:
        place = "with the lr held fixed, no λ > 0 gains anything on validation; it loses least"
    text = f"{place} at lr {setting(ours.lr)} with λ {setting(ours.decay)}, where {_changes(sweep, found.one_lr)}"
    text += _qualified(sweep, found.one_lr)
    if found.larger_lrs and len(found.larger_lrs.pairs) > 1:
        lrs = [cell.lr for cell, _ in found.larger_lrs.pairs]
        text += (
            f"; over the larger half of the learning rates that train ({setting(lrs[0])} to {setting(lrs[-1])}), each with its "
            f"own best λ > 0, {_changes(sweep, found.larger_lrs)} on average{_qualified(sweep, found.larger_lrs)}"
        )
    if found.rescued:
        text += f"; at lr {_listed(map(setting, found.rescued))} a run with λ = 0 diverges and some λ > 0 trains"
    return f"{text}."


def about_movement(sweep: Sweep, found: Judgement) -> str:
    """Say how the best λ moves with the learning rate, and what that means in the unit of the sweep."""
    standings = Counter(row.standing for row in found.rows)
    left_out = [words.format(standings[standing]) for standing, words in _LEFT_OUT.items() if standings[standing]]
    if found.trend is None:
        clear = standings["clear"]
        there = f"there {'is one' if clear == 1 else f'are {clear}' if clear else 'is none'}"
        return (
            f"how the best λ moves with the lr cannot be told: that takes three learning rates with a clear best λ, and {there}"
            f"{f' (besides {_listed(left_out)})' if left_out else ''}."
        )
    points = found.trend.points
    basis = f"over {len(points)} of {len(found.rows)} learning rates ({setting(points[0][0])} to {setting(points[-1][0])})"
    low, high = (plus_minus(bound, found.trend.error).split(" ")[0] for bound in found.trend.interval)
    return (
        f"the best λ moves as a power of lr, with slope {plus_minus(found.trend.slope, found.trend.error)}, {basis}. "
        f"The slope's 95 % interval, {low} to {high}, {_meaning(sweep, found.grid, found.trend)}."
        f"{f' Left out: {_listed(left_out)}.' if left_out else ''}"
    )


def about_comparison(sweep: Sweep, pair: Comparison) -> str:
    """Say whether a coupled and a decoupled optimizer, each at its best, differ."""
    ours, theirs = pair.decoupled, pair.coupled
    names = f"{theirs.grid.name} (coupled) and {ours.grid.name} (decoupled)"
    if pair.contrast is None:
        idle = [one.grid.name for one in (theirs, ours) if one.best is None]
        why = f"no setting of {_listed(idle)} can be judged" if idle else "they share no seed"
        return f"{names} cannot be compared: {why}."
    assert ours.best
    assert theirs.best
    levels = f"{_level(sweep, theirs.best)} {_at(theirs.best)} and {_level(sweep, ours.best)} {_at(ours.best)}"
    size, change = sweep.units.size(pair.contrast.gain), sweep.units.change(pair.contrast.gain.times(sweep.sign))
    difference = f"{ours.grid.name} minus {theirs.grid.name} is {change}"
    claim = {
        "better": f"{ours.grid.name} is better by {size}",
        "worse": f"{theirs.grid.name} is better by {size}",
        "unclear": f"no difference that {_seeds(pair.contrast)} can tell, {difference}{_doubt(sweep, pair.contrast)}",
        "one seed": f"{difference} {_ALONE}",
    }[pair.contrast.outcome]
    return f"{names} at their best reach {levels} in test {sweep.metric}: {claim}."


def _meaning(sweep: Sweep, grid: Grid, trend: Trend) -> str:
    inverse, constant = "a constant lr × λ (−1)", "one λ for every lr (0)"
    reading = {
        (True, False): f"admits {inverse} and rules out {constant}",
        (False, True): f"admits {constant} and rules out {inverse}",
        (True, True): f"admits both {inverse} and {constant}",
        (False, False): f"rules out both {inverse} and {constant}",
    }[trend.admits(-1), trend.admits(0)]
    if grid.kind == "coupled":
        return f"{reading}; λ weighs a penalty here, so what a weight loses per step depends on the optimizer's direction too"
    if grid.kind == "decoupled" and grid.lr_tied and any(words in sweep.decay_unit for words in _SHRINKS_BY_LR):
        return f"{reading}; lr × λ is the share that a weight loses per step"
    return reading


def _changes(sweep: Sweep, contrast: Contrast) -> str:
    return f"test {sweep.metric} changes by {sweep.units.change(contrast.gain.times(sweep.sign))}"


def _qualified(sweep: Sweep, contrast: Contrast) -> str:
    if contrast.outcome == "unclear":
        return f" (not a difference that {_seeds(contrast)} can tell{_doubt(sweep, contrast)})"
    return " (one seed, no standard error)" if contrast.outcome == "one seed" else ""


def _doubt(sweep: Sweep, contrast: Contrast) -> str:
    """Say why a gain whose own standard error looks good enough is not believed."""
    if contrast.doubt == "noise":
        return "; these seeds agree more closely than the rest of the grid, whose noise is larger than that"
    if contrast.doubt == "choice":
        if contrast.crossed is None:
            return "; no seed can be scored at the settings that the others choose"
        crossed = sweep.units.change(contrast.crossed.times(sweep.sign))
        return f"; with each seed scored at the settings that the others choose it is {crossed}"
    return ""


def _edges(grid: Grid, cell: Cell) -> str:
    """Warn of a best setting beyond which the grid has nothing."""
    at = []
    if len(grid.lrs) > 1 and cell.lr in (grid.lrs[0], grid.lrs[-1]):
        at.append(f"its lr is the {'smallest' if cell.lr == grid.lrs[0] else 'largest'} of the grid")
    if len(grid.decays) > 1 and cell.decay == grid.decays[-1]:
        at.append(f"its λ is the largest{'' if at else ' of the grid'}")
    return f" The best setting with decay is at an edge ({' and '.join(at)}): a better one may lie outside." if at else ""


def _why_none(cells: Iterable[Cell]) -> str:
    states = {cell.state for cell in cells}
    if not states:
        return "the grid has none"
    return {
        frozenset({"missing"}): "none of its runs has finished",
        frozenset({"diverged"}): "at each of these settings a run diverged",
        frozenset({"missing", "diverged"}): "at each of these settings a run diverged or none has finished",
    }.get(frozenset(states), "at each of these settings a run diverged or too few have finished")


def _level(sweep: Sweep, cell: Cell) -> str:
    return sweep.units.level(cell.estimate("test"))


def _at(cell: Cell) -> str:
    return f"at lr {setting(cell.lr)}, λ {setting(cell.decay)}"


def _seeds(contrast: Contrast) -> str:
    return _count(contrast.gain.count, "seed")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
