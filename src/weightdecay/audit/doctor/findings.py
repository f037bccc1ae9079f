"""What the doctor reports: findings, and the report that holds them."""

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weightdecay.display.record import Record
from weightdecay.display.table import aligned, fitted, some

SEVERITIES = ("error", "warning", "info")
"""error: the decay does not do what its numbers say; warning: it does, to what or in a size that is rarely meant; info: good to
know."""
_WIDTH = 116
"""How wide a report is that is printed; the command line fits it to the terminal."""


@dataclass(frozen=True)
class Finding(Record):
    """One thing that a check found; prints as a paragraph."""

    id: str
    """The check's, "D1" to "D10"."""
    severity: str
    """One of "error", "warning" and "info"."""
    problem: str
    """What is wrong, in a sentence."""
    tensors: tuple[str, ...] = ()
    """The names of the tensors concerned."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """The numbers."""
    effect: str = ""
    """What it will do over the run."""
    fix: str = ""
    """Code that mends it."""
    leaves: float | None = None
    """What the run leaves of a weight, without a gradient, by the λ that the fix sets or keeps: the least, where groups differ.
    None where a fix has nothing to do with it, or nobody can tell."""
    optimizer: str = ""
    """Where there are several, which one it is about, as in "optimizers[1], AdamW", or "all"."""

    def __str__(self) -> str:
        return self.text(_WIDTH)

    def text(self, width: float = math.inf) -> str:
        """Return the paragraph with lines of at most `width` characters, code aside; by default with one line for each row."""
        rows = {
            "in": self.optimizer,
            "tensors": f"{len(self.tensors)}: {some(self.tensors, 6)}" if self.tensors else "",
            "evidence": "; ".join(f"{name.replace('_', ' ')} {shown(x)}" for name, x in self.evidence.items()),
            "effect": self.effect,
        }
        lines = [f"{self.id} {self.severity}: {self.problem}"]
        lines += [f"   {name:<10}{row}" for name, row in rows.items() if row]
        if width < math.inf:
            lines = [fitted(line, int(width)) for line in lines]
        if self.fix:
            lines += ["   fix", *textwrap.indent(self.fix, "       ").splitlines()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """What the doctor found, the gravest first; prints as a table with a paragraph for each finding."""

    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    """The ids of the checks that were made."""
    subject: Mapping[str, Any]
    """What was looked at: the optimizer, its decay in words, the number of tensors, the steps that are looked ahead."""

    @property
    def counts(self) -> dict[str, int]:
        """Return how many findings there are of each severity."""
        found = Counter(each.severity for each in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    def failed(self, *, strict: bool = False) -> bool:
        """Return whether there is an error, or, if strict, a warning."""
        return bool(self.counts["error"] or (strict and self.counts["warning"]))

    @property
    def summary(self) -> str:
        """Return the outcome in a sentence."""
        made = f"{len(self.checks)} check{'' if len(self.checks) == 1 else 's'}"
        counts = [f"{n} {name}{'s' if n > 1 and name != 'info' else ''}" for name, n in self.counts.items() if n]
        return f"{self.subject['optimizer']}, {made}: {', '.join(counts) or 'nothing found'}."

    def __str__(self) -> str:
        return self.text(_WIDTH)

    def text(self, width: float = math.inf) -> str:
        """Return the report with paragraphs of at most `width` characters a line; by default with one line for each row."""
        if not self.findings:
            return self.summary

        rows: list[tuple[str, ...]] = [
            ("check", "severity", "in", "tensors", "finding"),
            *((each.id, each.severity, each.optimizer, str(len(each.tensors) or "-"), each.problem) for each in self.findings),
        ]
        if not any(each.optimizer for each in self.findings):
            rows = [(check, severity, *rest) for check, severity, _, *rest in rows]
        table = aligned(rows)
        return "\n\n".join([self.summary, "\n".join(table), *(each.text(width) for each in self.findings)])

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "summary": self.summary,
            "counts": self.counts,
            "checks": list(self.checks),
            "subject": dict(self.subject),
            "findings": [each.to_dict() for each in self.findings],
        }


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings, the gravest first and otherwise in their order."""
    return tuple(sorted(findings, key=lambda each: SEVERITIES.index(each.severity)))


def shown(value: Any) -> str:
    """Return a piece of evidence as people read it.

    >>> shown(0.000123456), shown({"norm": 3, "bias": 1}), shown([0.1, 0.2]), shown(12000)
    ('0.000123', 'norm 3, bias 1', '0.1, 0.2', '12,000')
    """
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return str(value)
