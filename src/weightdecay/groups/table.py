"""The groups with their table, and what another style would do otherwise."""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from weightdecay import validation
from weightdecay.display.table import aligned
from weightdecay.groups.folding import folded
from weightdecay.groups.styles import Verdict

__all__ = ["Difference", "Differences", "ParamGroups", "Row"]


@dataclass(frozen=True)
class Row:
    """One line of the table; what is in no group has no weight_decay."""

    name: str
    role: str
    shape: list[int]
    decays: bool
    weight_decay: float | None
    group: int | None
    reason: str
    tied: list[str]

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    def cells(self, name: str = "") -> tuple[str, ...]:
        """Return the line of the table, under a name that may stand for several."""
        group = "-" if self.group is None else str(self.group)
        decay = f"{self.weight_decay:g}" if self.decays else "no"
        return group, name or self.name, str(tuple(self.shape)), decay, self.reason


@dataclass(frozen=True)
class Difference:
    """A tensor that another style treats otherwise, with both reasons."""

    name: str
    role: str
    shape: list[int]
    decays: bool
    reason: str
    other_decays: bool
    other_reason: str

    def cells(self, name: str = "") -> tuple[str, ...]:
        """Return the line of the table, under a name that may stand for several."""
        here, there = (("decays" if does else "no decay") for does in (self.decays, self.other_decays))
        return name or self.name, str(tuple(self.shape)), here, self.reason, there, self.other_reason


class Differences(tuple[Difference, ...]):
    """The tensors that a style treats otherwise; print as a table, or as the sentence that there are none."""

    style: str
    total: int

    @classmethod
    def of(cls, style: str, found: Iterable[Difference], total: int) -> "Differences":
        """Return the differences from a style among a number of tensors."""
        self = cls(found)
        self.style, self.total = style, total
        return self

    def __repr__(self) -> str:
        return self.table()

    def table(self, *, every: bool = False) -> str:
        """Return the table as text; `every` gives each tensor a line, where else numbered layers share one."""
        if not self:
            return f"No difference from {self.style}: the same of the {self.total} tensors decay."
        values = sum(math.prod(each.shape) for each in self)
        header = ("tensor", "shape", "here", "why", self.style, "why")
        summary = f"{len(self)} of {self.total} tensors, {values:,} values, are treated otherwise by {self.style}."
        return "\n".join([*aligned([header, *_lines(self, every=every)]), "", summary])

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the rows for JSON: name, role, shape, decays and reason, other_decays and other_reason."""
        return [asdict(each) for each in self]


class ParamGroups(list[dict[str, Any]]):
    """Hold the groups for an optimizer; print as the table of what decays and why, layers of one kind in one line."""

    header = ("group", "tensor", "shape", "decay", "why")

    def __init__(
        self, groups: Iterable[dict[str, Any]], rows: Sequence[Row], verdicts: Mapping[str, Mapping[str, Verdict]]
    ) -> None:
        super().__init__(groups)
        self.rows = tuple(rows)
        self._verdicts = verdicts  # of each style on each grouped tensor, and of what was chosen here under ""

    def diff(self, style: str) -> Differences:
        """Return the tensors that a style would treat otherwise than these groups do, with both reasons.

        Args:
            style: "hf", "timm", "nanogpt", or "weightdecay" for the defaults of `param_groups`.

        Raises:
            ValueError: the style is unknown, or needs the model where the groups were made from (name, parameter) pairs.

        >>> from torch import nn
        >>> from weightdecay import param_groups
        >>> print(param_groups(nn.ModuleDict({"ln_f": nn.RMSNorm(4), "head": nn.Linear(4, 4)}), 0.1).diff("hf"))
        tensor       shape  here      why             hf      why
        ln_f.weight  (4,)   no decay  norm (RMSNorm)  decays  no pattern finds the name
        <BLANKLINE>
        1 of 3 tensors, 4 values, are treated otherwise by hf.
        """
        others = self._verdicts[self.style_known(style)]
        ours = self._verdicts[""]
        found = [
            Difference(row.name, row.role, row.shape, *_pair(ours[row.name]), *_pair(others[row.name]))
            for row in self.rows
            if row.name in ours and ours[row.name].decays != others[row.name].decays
        ]
        return Differences.of(style, found, len(ours))

    def style_known(self, style: str) -> str:
        """Return the style, or refuse one that there is no verdict of."""
        return validation.choice("style", style, [name for name in self._verdicts if name])

    def __repr__(self) -> str:
        return self.table()

    def table(self, *, every: bool = False) -> str:
        """Return the table as text.

        Tensors that differ in the numbers of their names alone share a line, as do those that are frozen and in no group.

        Args:
            every: whether each tensor has a line of its own.

        >>> from torch import nn
        >>> from weightdecay import param_groups
        >>> groups = param_groups(nn.ModuleList(nn.Linear(4, 4) for _ in range(32)), 0.1)
        >>> print(groups)
        group  tensor              shape   decay  why
        0      {0…31}.weight × 32  (4, 4)  0.1    weight
        1      {0…31}.bias × 32    (4,)    no     bias
        <BLANKLINE>
        group 0: decay 0.1, tensors 32, values 512
        group 1: decay no, tensors 32, values 128
        >>> len(groups.table(every=True).splitlines())
        68
        """
        return "\n".join([*aligned([self.header, *self._cells(every=every)]), "", *self._totals()])

    def _cells(self, *, every: bool) -> list[tuple[str, ...]]:
        grouped = self.rows if every else [row for row in self.rows if row.group is not None]
        frozen = [] if every else [row for row in self.rows if row.group is None]
        values = sum(row.values for row in frozen)
        of_all: list[tuple[str, ...]] = (
            [("-", f"{len(frozen):,} tensors", f"{values:,} values", "no", "frozen")] if len(frozen) > 2 else []
        )
        return [*_lines(grouped, every=every), *(of_all or [row.cells() for row in frozen])]

    def _repr_html_(self) -> str:
        def line(cells: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(cells, "td") for cells in self._cells(every=False))
        return f"<table><thead>{line(self.header, 'th')}</thead><tbody>{body}</tbody></table>"

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the rows for JSON, each with name, role, shape, decays, weight_decay, group, reason and tied."""
        return [asdict(row) for row in self.rows]

    def _totals(self) -> Iterator[str]:
        for group in sorted({row.group for row in self.rows}, key=lambda group: math.inf if group is None else group):
            rows = [row for row in self.rows if row.group == group]
            title = "in no group" if group is None else f"group {group}"
            yield f"{title}: decay {rows[0].cells()[3]}, tensors {len(rows)}, values {sum(row.values for row in rows):,}"


def _lines(rows: Sequence[Row] | Sequence[Difference], *, every: bool) -> list[tuple[str, ...]]:
    """Return the lines of a table: of tensors whose lines differ in the numbers of their names alone, one."""
    if every:
        return [row.cells() for row in rows]
    one = folded([row.name for row in rows], [row.cells("x") for row in rows])
    return [rows[places[0]].cells(name) for name, places in one]


def _pair(verdict: Verdict) -> tuple[bool, str]:
    return verdict.decays, verdict.why
