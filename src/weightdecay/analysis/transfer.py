"""Carry λ over to another run: other width, batch or data."""

import math
from dataclasses import dataclass
from typing import Any

from weightdecay.analysis.units import convert, convert_named, in_steps
from weightdecay.display.record import Record
from weightdecay.validation import choice, number


@dataclass(frozen=True)
class Normalized(Record):
    """A λ and its normalised value, for a run of so many steps; prints as a sentence."""

    lambda_norm: float
    weight_decay: float
    """Per step at the peak lr: "independent" in `convert`."""
    steps: float

    def __str__(self) -> str:
        return (
            f"λ_norm {self.lambda_norm:.4g} is λ {self.weight_decay:.4g} per step at the peak lr, "
            f"in a run of {in_steps(self.steps)}."
        )


def normalized(
    lambda_norm: float | None,
    batch_size: float,
    dataset_size: float,
    epochs: float,
    *,
    weight_decay: float | None = None,
) -> Normalized:
    """Scale a λ by the length of the run, λ = λ_norm·√(b/(B·T)) = λ_norm/√steps, or back.

    Args:
        lambda_norm: λ_norm, which has no unit; 0.025 to 0.05 did well for SGDW and AdamW on CIFAR-10 and ImageNet32x32. None to
            compute it from `weight_decay`.
        batch_size: b, in examples.
        dataset_size: B, the number of training examples.
        epochs: T, of the run, or of one cycle with warm restarts.
        weight_decay: instead of `lambda_norm`, λ per step at the peak lr: "independent" in `convert`, which makes torch's λ
            of it.

    Raises:
        TypeError: both or none of `lambda_norm` and `weight_decay`, or something that is not a number.
        ValueError: a number that is negative, zero where it may not be, or not finite.

    >>> print(normalized(0.05, batch_size=128, dataset_size=50_000, epochs=100))
    λ_norm 0.05 is λ 0.000253 per step at the peak lr, in a run of 39,062 steps.
    >>> normalized(None, batch_size=1, dataset_size=100, epochs=4, weight_decay=0.01).lambda_norm
    0.2

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, appendix B.1.
    """
    if (lambda_norm is None) == (weight_decay is None):
        raise TypeError("normalized needs lambda_norm, or None and weight_decay=… to compute it from: one of the two")
    sizes = {"batch_size": batch_size, "dataset_size": dataset_size, "epochs": epochs}
    batch, data, passes = (number(name, value, "(0, inf)") for name, value in sizes.items())
    steps = data * passes / batch
    scale = math.sqrt(steps)
    if lambda_norm is not None:
        norm = number("lambda_norm", lambda_norm, "[0, inf)")
        return Normalized(norm, norm / scale, steps)
    lam = number("weight_decay", weight_decay, "[0, inf)")
    return Normalized(lam * scale, lam, steps)


_LAWS = {
    "epochs": (
        "the timescale in epochs, batch_size/(lr·λ·dataset_size), stays: the shrink of a step ∝ batch_size/dataset_size",
        "Wang & Aitchison 2024, arXiv:2405.13698",
    ),
    "run": (
        "the timescale as a fraction of the run stays: the shrink of a step ∝ batch_size/(dataset_size·epochs)",
        "Bergsma et al. 2025, arXiv:2505.13738",
    ),
    "normalized": (
        "λ_norm stays: the shrink of a step ∝ √(batch_size/(dataset_size·epochs))",
        "Loshchilov & Hutter 2019, arXiv:1711.05101",
    ),
}
_WIDTH = (
    "across widths lr ∝ 1/width and λ ∝ width, so that the shrink stays (hidden matrices under muP)",
    "Wang & Aitchison 2024, arXiv:2405.13698; Kosson et al. 2025, arXiv:2510.19093",
)


@dataclass(frozen=True)
class Transfer(Record):
    """The λ and the lr of another run, with the law that gave them; prints as a sentence."""

    weight_decay: float
    """Per unit of lr."""
    lr: float
    weight_decay_before: float
    lr_before: float
    law: str
    source: str

    def __str__(self) -> str:
        return (
            f"λ {self.weight_decay_before:.4g} at lr {self.lr_before:.4g} becomes "
            f"λ {self.weight_decay:.4g} at lr {self.lr:.4g}: {self.law} ({self.source})."
        )


def transfer(
    weight_decay: float,
    lr: float,
    *,
    batch_size: tuple[float, float] | None = None,
    dataset_size: tuple[float, float] | None = None,
    epochs: tuple[float, float] | None = None,
    width: tuple[float, float] | None = None,
    new_lr: float | None = None,
    keep: str = "epochs",
) -> Transfer:
    """Carry a λ that was good in one run over to another.

    The law sets the shrink lr·λ of a step; λ then follows from the new lr. Each pair is (old, new), and what is not given
    stays the same.

    Args:
        weight_decay: the old λ, per unit of lr (torch's AdamW).
        lr: the old learning rate, at its peak.
        batch_size: examples or tokens per step.
        dataset_size: examples or tokens per epoch, in the same unit.
        epochs: passes over the data.
        width: of the hidden layers. lr falls as 1/width and λ rises as width, unless `new_lr` is given.
        new_lr: the new learning rate, where you choose it yourself; λ makes up for it.
        keep: what stays. "epochs": the timescale in epochs, for which the length of the run does not matter. "run": the
            timescale as a fraction of the run, which was best kept at equal tokens per parameter. "normalized": λ_norm of
            `normalized`.

    Raises:
        TypeError: nothing that changes is given, or something is not a number or not a pair.
        ValueError: a number that is negative, zero where it may not be, or not finite; a `keep` that is unknown; a step that
            would take a whole weight or more.

    >>> print(transfer(0.1, 3e-4, batch_size=(256, 512)))
    λ 0.1 at lr 0.0003 becomes λ 0.2 at lr 0.0003: the timescale in epochs, batch_size/(lr·λ·dataset_size), stays: the shrink of
    a step ∝ batch_size/dataset_size (Wang & Aitchison 2024, arXiv:2405.13698).
    >>> wider = transfer(0.1, 3e-4, width=(256, 1024))
    >>> wider.lr, wider.weight_decay
    (7.5e-05, 0.4)

    Source: Wang & Aitchison 2024, arXiv:2405.13698 ("epochs", width); Bergsma et al. 2025, arXiv:2505.13738 ("run");
    Loshchilov & Hutter 2019, arXiv:1711.05101 ("normalized"); Kosson et al. 2025, arXiv:2510.19093 (width).
    """
    law, source = _LAWS[choice("keep", keep, _LAWS)]
    pairs = {"batch_size": batch_size, "dataset_size": dataset_size, "epochs": epochs, "width": width}
    if new_lr is None and not any(pair is not None for pair in pairs.values()):
        raise TypeError(f"transfer needs what changes: one of {', '.join(pairs)} as (old, new), or new_lr=…")
    ratio = {name: _ratio(name, pair) for name, pair in pairs.items()}
    shrink = convert_named("weight_decay", weight_decay, "torch", "shrink", lr=lr)
    old_lr = number("lr", lr, "(0, inf)")
    rate = old_lr / ratio["width"] if new_lr is None else number("new_lr", new_lr, "(0, inf)")
    per_data = ratio["batch_size"] / ratio["dataset_size"]
    factors = {
        "epochs": per_data,
        "run": per_data / ratio["epochs"],
        "normalized": math.sqrt(per_data / ratio["epochs"]),
    }
    shrunk = shrink * factors[keep]
    if shrunk >= 1:
        raise ValueError(f"weight_decay={weight_decay!r} becomes a shrink of {shrunk:g} per step: it has to be less than 1")
    found = convert(shrunk, source="shrink", target="torch", lr=rate)
    if width is not None:
        law, source = f"{law}; {_WIDTH[0]}", "; ".join(dict.fromkeys([*source.split("; "), *_WIDTH[1].split("; ")]))
    return Transfer(found, rate, number("weight_decay", weight_decay, "[0, inf)"), old_lr, law, source)


def _ratio(name: str, pair: Any) -> float:
    if pair is None:
        return 1.0
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise TypeError(f"{name}={pair!r} is not a pair: give {name}=(old, new)")
    old, new = (number(name, value, "(0, inf)") for value in pair)
    return new / old
