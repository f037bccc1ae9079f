"""The numbers a rule may ask for that come from a whole tensor: `norm_w`, `norm_u`, `dot_wu`, `norm_n_w` and more.

A reduction adds up one term per element and finishes the sum. Both halves are plain math over the words, so every backend
computes them its own way: a fused backend in a first pass that writes nothing, eager over a DTensor for the tensor as a whole.
One, `mean_v_hat`, is of all tensors together: the optimizer has its backends add up each before any weight moves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weightdecay.update_rules.ops import absolute, power, sqrt, where


def square(x):
    return x * x


def product(x, y):
    return x * y


def one(x):
    return where(x == x, 1.0, 1.0)  # of x all the same: a sum needs a term per element


def square_after(w, u, *, eta):
    return (w - eta * u) * (w - eta * u)


def square_with_decay(w, u, *, lam):
    return (u + lam * w) * (u + lam * w)


def square_of_distance(w, w_0):
    return (w - w_0) * (w - w_0)


def square_of_distance_after(w, u, w_0, *, eta):
    return (w - eta * u - w_0) * (w - eta * u - w_0)


def product_with_distance(g, w, w_0):
    return g * (w - w_0)


def nth_power(x, *, n):
    return power(absolute(x), n)


def root(total):
    return sqrt(total)


def nth_root(total, *, n):
    return power(total, 1 / n)


def itself(x):
    return x


@dataclass(frozen=True)
class Reduction:
    """A sum of one term per element, and what becomes of the sum."""

    elements: tuple[str, ...]
    """The per-element values that the term takes, in order."""
    term: Callable[..., Any]
    finish: Callable[..., Any]
    norm: bool = False
    """Whether it scales as its elements do: a backend then measures in units of the largest, since |w|ⁿ leaves any range."""
    of_all: bool = False
    """Whether it is the mean of the terms over every tensor that the optimizer steps, and not a sum over each."""
    written: tuple[str, str] = ("", "")
    """How it is written, as TeX and as plain text."""

    @property
    def is_size(self) -> bool:
        """Tell whether it is never negative: a product may be."""
        return self.finish is not itself or self.term is one

    @staticmethod
    def given(half: Callable[..., Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the asking rule's numbers that a half takes."""
        code = half.__code__
        return {name: numbers[name] for name in code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]}


REDUCTIONS = {
    "norm_w": Reduction(("w",), square, root, written=(r"\Vert w\Vert", "‖w‖")),
    "norm_u": Reduction(("u",), square, root, written=(r"\Vert u\Vert", "‖u‖")),
    "norm_y": Reduction(("w", "u"), square_after, root, written=(r"\Vert y\Vert", "‖y‖")),
    "norm_r": Reduction(("w", "u"), square_with_decay, root, written=(r"\Vert u + \lambda w\Vert", "‖u+λw‖")),
    "norm_n_w": Reduction(("w",), nth_power, nth_root, norm=True, written=(r"\Vert w\Vert_n", "‖w‖_n")),
    "dot_wu": Reduction(("w", "u"), product, itself, written=(r"\langle w, u\rangle", "⟨w,u⟩")),
    "dot_gd": Reduction(("g", "w", "w_0"), product_with_distance, itself, written=(r"\langle g, w - w_0\rangle", "⟨g,w-w_0⟩")),
    "distance_w": Reduction(("w", "w_0"), square_of_distance, root, written=(r"\Vert w - w_0\Vert", "‖w-w_0‖")),
    "distance_y": Reduction(("w", "u", "w_0"), square_of_distance_after, root, written=(r"\Vert y - w_0\Vert", "‖y-w_0‖")),
    "mean_v_hat": Reduction(("v_hat",), itself, itself, of_all=True, written=(r"\bar{v}", "v̄")),
    "numel": Reduction(("w",), one, itself, written=("d", "d")),
}
"""Every reduction by the name a rule asks for; y is w − η·u, where the step would end, d is w − w₀, r is u + λw, v_hat is
what the direction calls so on its page, this step's.

The n of `norm_n_w` is the rule's own hyper-parameter n."""

OF_ALL = tuple(name for name, each in REDUCTIONS.items() if each.of_all)
"""Those that are of all tensors together."""
