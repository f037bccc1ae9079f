"""Sets of allowed values, in the notation of mathematics."""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Interval:
    """All numbers between two ends, as in "[0, 1)": a square bracket takes its end in, a round one leaves it out.

    In braces, as in "{0, …, 9}", the whole numbers between them, with both ends.

    >>> 0 in Interval("[0, 1)"), 1 in Interval("[0, 1)"), 1 in Interval("{0, …, 9}"), 0.5 in Interval("{0, …, 9}")
    (True, False, True, False)
    """

    text: str
    low: float = field(init=False, repr=False)
    high: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        number = r"\s*([-+\w.]+)\s*"
        forms = rf"[\[(]{number},{number}[\])]|\{{{number},\s*…\s*,{number}\}}"
        found = re.fullmatch(forms, self.text) if isinstance(self.text, str) else None
        try:
            low, high = (float(end) for end in found.groups() if end is not None) if found else (1.0, 0.0)
        except ValueError:
            low, high = 1.0, 0.0
        if not low <= high:
            raise ValueError(f'{self.text!r} is not an interval such as "[0, 1)" or "(0, inf)"')
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def __contains__(self, value: float) -> bool:
        if self.text[0] == "{" and value % 1 != 0:
            return False
        above = value >= self.low if self.text[0] in "[{" else value > self.low
        below = value <= self.high if self.text[-1] in "]}" else value < self.high
        return above and below

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Choice:
    """A few words, of which one is allowed; None stands for a word that is not given.

    >>> "up" in Choice(("up", "down")), str(Choice(("up", "down", None)))
    (True, '{up, down}')
    """

    words: tuple[str | None, ...]

    def __contains__(self, value: object) -> bool:
        return any(value is word or (isinstance(value, str) and value == word) for word in self.words)

    def __str__(self) -> str:
        return f"{{{', '.join(word for word in self.words if word is not None)}}}"


def geometric(first: float, last: float, count: int) -> tuple[float, ...]:
    """Return `count` numbers in equal ratios, rounded to three digits as a person would write them.

    >>> geometric(1e-3, 1e-1, 3)
    (0.001, 0.01, 0.1)
    """
    ratio = (last / first) ** (1 / max(count - 1, 1))
    return tuple(float(f"{first * ratio**i:.3g}") for i in range(count))
