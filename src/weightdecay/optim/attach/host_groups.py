"""Whose λ a parameter group has while a decay is attached: its own, taken over from its weight_decay, or the one asked for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightdecay.optim import hyperparameters
from weightdecay.update_rules.rule import Rule
from weightdecay.validation import number

LAMBDA = "attached_weight_decay"
"""The key of a parameter group under which λ is found, by schedules too."""
DECAY = "attached_decay"
TAKEN_OVER = "host_weight_decay"


@dataclass(slots=True)
class Takeover:
    """What a decay takes over from the groups of an optimizer, and what its numbers are in each."""

    decay: Rule
    weight_decay: float | None
    """λ as it was asked for; None keeps each group's own."""
    numbers: Mapping[str, float]
    """The decay's hyper-parameters, the same in every group."""
    everywhere: bool = False
    """Whether groups whose own weight_decay is 0 decay, too."""

    @property
    def asks_for_peak(self) -> bool:
        """Return whether the decay asks for the peak of the learning rate."""
        return "eta_max" in self.decay.numbers

    def begin(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Look at all groups before any changes, and refuse to take over each one's own λ where none has any."""
        self.note_whether_everywhere(groups)
        news = any(LAMBDA not in group for group in groups)
        if self.everywhere and self.weight_decay is None and "lam" in self.decay.numbers and news:
            raise ValueError("weight_decay=None takes over the groups' own, and that of every group is 0: pass weight_decay=…")

    def note_whether_everywhere(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Note whether all groups decay: none had a weight_decay of its own by which to leave others out."""
        self.everywhere = not any(group[TAKEN_OVER] != 0 if TAKEN_OVER in group else _decays(group) for group in groups)

    def changes(self, group: Mapping[str, Any], index: int, *, is_added: bool = False) -> dict[str, Any]:
        """Return what changes in a group that has no λ of ours yet, brings one of its own, or has one from a checkpoint."""
        where = f"param_groups[{index}]"
        lr = number(f"{where}['lr']", group.get("lr"), "(-inf, inf)")  # OneCycleLR ends below 0; a step looks again
        if group.get("differentiable"):
            raise ValueError(
                f"{where} has differentiable=True, and autograd does not see through a step that is read afterwards"
            )
        found: dict[str, Any] = {DECAY: self.decay.name}
        if self.asks_for_peak:
            for key in ("lr_max", "max_lr", "initial_lr", "lr_at_start", "largest_lr"):
                if group.get(key) is not None:  # somebody else's may be anything
                    number(f"{where}['{key}']", group[key], "(-inf, inf)")
            found["lr_at_start"], found["largest_lr"] = group.get("lr_at_start", lr), group.get("largest_lr", 0.0)
        brought = number(f"{where}['{LAMBDA}']", group[LAMBDA], "[0, inf)") if LAMBDA in group else None
        if brought is not None and DECAY in group and not is_added:
            self.refuse_other_decay(group, where)
            return {**found, **({LAMBDA: self.weight_decay} if brought != 0 and self.weight_decay is not None else {})}
        own = group.get("weight_decay")
        lam = 0.0 if own is None else number(f"{where}['weight_decay']", own, "[0, inf)")
        if brought is not None:
            lam = brought
        elif lam != 0 or self.everywhere:
            lam = 1.0 if "lam" not in self.decay.numbers else lam if self.weight_decay is None else self.weight_decay
        found[LAMBDA] = lam
        return found if own is None or TAKEN_OVER in group else {**found, TAKEN_OVER: own, "weight_decay": 0.0}

    def refuse_other_decay(self, group: Mapping[str, Any], where: str) -> None:
        """Refuse a group that was trained with another decay attached."""
        if group.get(DECAY, self.decay.name) != self.decay.name:
            raise ValueError(f"{where} was trained with {group[DECAY]} decay attached, not {self.decay.name}: attach the same")

    def numbers_now(self, group: Mapping[str, Any], index: int) -> dict[str, float]:
        """Return the decay's numbers in a group as they are now, after checking what may have been written since."""
        where = f"param_groups[{index}]"
        if _decays(group):
            raise ValueError(
                f"{where}['weight_decay']={group['weight_decay']} would decay a second time beside the {self.decay.name} decay "
                f"that is attached: write λ to {where}['{LAMBDA}'], make a scheduler of λ after attaching, or detach()"
            )
        now = {key: number(f"{where}['{key}']", group.get(key), "[0, inf)") for key in ("lr", LAMBDA)}
        found = hyperparameters.numbers(self.decay, {**group, **self.numbers, **now}, lam=LAMBDA, t=0.0)
        return {name: float(value) for name, value in found.items()}

    def remember_lr(self, groups: Sequence[dict[str, Any]]) -> None:
        """Keep the lr of a step that is done where it is above the peak that the decay was given, and say so once."""
        if not self.asks_for_peak:
            return
        given = [(f"param_groups[{at}]", {**group, **self.numbers}) for at, group in enumerate(groups)]
        hyperparameters.warn_above_peak(given, f"the attached {self.decay.name} decay")
        for group in groups:
            hyperparameters.remember_lr(group)

    def give_back(self, group: dict[str, Any]) -> None:
        """Leave a group as it was before."""
        peak = ("lr_at_start", "largest_lr") if self.asks_for_peak else ()
        for key in (LAMBDA, f"initial_{LAMBDA}", DECAY, *peak):
            group.pop(key, None)
        if TAKEN_OVER in group:
            group["weight_decay"] = group.pop(TAKEN_OVER)


def _decays(group: Mapping[str, Any]) -> bool:
    """Tell whether the group's own weight_decay is at work."""
    own = group.get("weight_decay")
    return own is not None and bool(own != 0)
