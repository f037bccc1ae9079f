"""Hold an optimizer's decay to what its authors say of it: for the tests of any library of optimizers.

# tests/test_decay.py
from weightdecay.audit.conformance import decay_test

test_decay = decay_test({MyAdamW: "decoupled", MySGD: "coupled"})
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from weightdecay.audit.identify.experiments import Finding
from weightdecay.audit.identify.harness import Factory, name_of
from weightdecay.audit.identify.hypotheses import IN_GRADIENT, PER_LR, Powers
from weightdecay.audit.identify.identify import KINDS, DecayLaw, identify
from weightdecay.update_rules.registry import REGISTRY
from weightdecay.validation import choice, number

CHECKS: Mapping[str, tuple[str, ...]] = {
    "law": (),
    "strength": (),
    "grad=None": ("moves", "refused"),
    "frozen": ("moves", "refused"),
    "zero gradient": ("not finite", "refused"),
    "lr=0": ("moves", "refused"),
    "maximize": ("flipped", "differs", "ignored"),
    "λ in the groups": ("not read", "absent", "refused"),
    "bfloat16": ("not finite",),
    "tensor lr": ("differs", "not finite"),
    "foreach": ("differs", "not finite"),
    "fused": ("differs", "not finite"),
    "backend='eager'": ("differs", "not finite"),
    "compiled": ("differs", "not finite", "refused"),
}
"""What is checked, and what an experiment may not find. What an optimizer does not offer it may refuse."""
_SUMS_TO_ZERO = "λ or lr·λ/lr₀"


def check_decay(
    factory: Factory,
    expected: str = "decoupled",
    *,
    but: Iterable[str] = (),
    bfloat16: float | None = None,
    compiled: bool = False,
    knob: str = "weight_decay",
    name: str | None = None,
) -> DecayLaw:
    """Identify an optimizer's decay and fail where it is not what it should be.

    Beside the law and its strength (lr·λ for a decay, λ in the gradient for a penalty), it checks that tensors without a
    gradient and steps at lr = 0 move nothing, that `maximize` does not turn the decay round, that λ is read from the groups,
    and that all paths and a tensor lr give the same weights.

    Args:
        factory, knob, compiled, name: as for `weightdecay.identify`.
        expected: a kind of law ("coupled", "decoupled", "independent", …), or a rule's name, such as "cautious".
        but: checks to leave out, from `CHECKS`.
        bfloat16: the least share of the decay that has to reach bfloat16 weights; None does not ask.

    Returns:
        The law.

    Raises:
        AssertionError: with every complaint, and the law's table.
        ValueError: an unknown word in `expected` or `but`.

    >>> import torch
    >>> check_decay(torch.optim.AdamW, "decoupled").default
    0.01
    """
    known, left_out = _expected(expected), {choice("but", each, CHECKS) for each in but}
    least = None if bfloat16 is None else number("bfloat16", bfloat16, "[0, 1]")
    law = identify(factory, knob=knob, name=name, compiled=compiled)
    found = [f"{check}: {text}" for check, text in complaints(law, known, least) if check not in left_out]
    if found:
        lines = "\n".join(f"  {line}" for line in found)
        raise AssertionError(f"{law.optimizer}: the decay is not what it should be\n{lines}\n\n{law}")
    return law


def decay_test(
    cases: Mapping[Factory, str], *, but: Iterable[str] = (), bfloat16: float | None = None, compiled: bool = False
) -> Callable[..., None]:
    """Make a pytest test of a library's optimizers: one case per optimizer and check, so that a failure names both.

    Assign it to a name that starts with `test`. Each optimizer is identified once, in the first of its cases.

    Args:
        cases: what is expected of each factory, as `check_decay` takes it.
        but, bfloat16, compiled: as for `check_decay`.

    Raises:
        ImportError: pytest is not installed.
        ValueError: an unknown word.

    >>> import torch
    >>> test_decay = decay_test({torch.optim.AdamW: "decoupled", torch.optim.Adam: "coupled"})
    """
    try:
        import pytest
    except ImportError as error:
        raise ImportError("decay_test makes a test for pytest: pip install pytest, or call check_decay") from error
    expected = {factory: _expected(each) for factory, each in cases.items()}
    left_out = {choice("but", each, CHECKS) for each in but}
    least = None if bfloat16 is None else number("bfloat16", bfloat16, "[0, 1]")
    law = functools.cache(lambda factory: identify(factory, compiled=compiled))
    params = [
        pytest.param(factory, check, id=f"{name_of(factory)}-{check}")
        for factory in cases
        for check in CHECKS
        if check not in left_out
    ]

    @pytest.mark.parametrize(("factory", "check"), params)
    def test(factory: Factory, check: str) -> None:
        found = law(factory)
        if check not in ("law", "strength") and check not in found.findings:
            pytest.skip(f"{found.optimizer} does not offer it")
        texts = [text for name, text in complaints(found, expected[factory], least) if name == check]
        if texts:
            pytest.fail(f"{found.optimizer}, {check}: {'; '.join(texts)}\n\n{found}", pytrace=False)

    return test


def complaints(law: DecayLaw, expected: str, bfloat16: float | None = None) -> Iterator[tuple[str, str]]:
    """Yield the checks that a law fails, with what was found."""
    rule = "l2" if expected == "coupled" else expected
    named = expected not in KINDS or expected in ("coupled", "decoupled")
    if (law.kind != expected and expected in KINDS) or (named and law.rule != rule):
        found = law.kind if law.rule in (None, law.kind) else f"{law.kind} ({law.rule})"
        yield "law", f"expected {expected}, found {found}"
    elif expected == "decoupled" and law.weight != "old":
        yield "law", f"expected a share of the old weight, found one of the {law.weight} weight"
    else:
        yield from _of_strength(law, expected)
    for finding in law.findings.values():
        if finding.verdict in CHECKS.get(finding.name, ()):
            yield finding.name, finding.text
    if bfloat16 is not None and "bfloat16" in law.findings:
        yield from _of_bfloat16(law.findings["bfloat16"], bfloat16)


def _of_strength(law: DecayLaw, expected: str) -> Iterator[tuple[str, str]]:
    if expected in ("none", "unknown", "rescaled") or (law.strength is None and expected not in ("coupled", "decoupled")):
        return
    found = law.strength
    wanted: tuple[Any, str] = (PER_LR, str(PER_LR))
    if law.kind == "coupled":
        wanted = (IN_GRADIENT, str(IN_GRADIENT))
    elif law.kind == "independent":
        scheduled = Powers(1, 1, found.of_lr, -found.of_lr) if found is not None else None
        wanted = (scheduled, _SUMS_TO_ZERO)
    elif expected == "corrected":
        wanted = (Powers(1, 1, 2, -1), str(Powers(1, 1, 2, -1)))
    if found != wanted[0]:
        yield "strength", f"expected {wanted[1]}, found {found or 'another one at every step'}"


def _of_bfloat16(finding: Finding, least: float) -> Iterator[tuple[str, str]]:
    share: float | None = finding.numbers.get("share")
    if share is None or share < least:
        yield "bfloat16", f"expected {100 * least:.0f} % of the decay or more; {finding.text}"


def _expected(word: str) -> str:
    """Return what a user expects, or refuse what no law is called."""
    rules = [name for (kind, name) in REGISTRY if kind != "direction" and name != "none"]
    return choice("expected", word, dict.fromkeys([*KINDS, *rules]))
