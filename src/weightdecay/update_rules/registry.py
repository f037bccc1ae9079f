"""All rules by kind and name."""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from threading import RLock
from typing import Any

from weightdecay.display.near_names import hint, nearest
from weightdecay.display.table import aligned
from weightdecay.update_rules.lint import RuleError
from weightdecay.update_rules.rule import KINDS, Kind, Rule


class Registry(Mapping[tuple[Kind, str], Rule]):
    """All rules by (kind, name); prints as a table."""

    def __init__(self) -> None:
        self._registered: dict[tuple[Kind, str], Rule] = {}
        self._loading, self._has_begun, self._is_complete = RLock(), False, False
        self.changes = 0
        """How often a rule was added, so that what was made from the rules knows when to look again."""
        self.optimizers: dict[str, str] = {}
        """By the names of the optimizers that have one, such as AdamW, what each is made of: who asks for a direction by
        such a name is told."""

    @property
    def _rules(self) -> dict[tuple[Kind, str], Rule]:
        """Return what is registered. The first access imports the package's own rules, and other threads wait for it."""
        if not self._is_complete:
            with self._loading:
                if not self._has_begun:  # else this is a rule that looks while it is imported
                    self._has_begun = True
                    try:
                        import_module("weightdecay.update_rules.load_all")
                    except BaseException:  # the next access tries again, and fails with the same reason
                        self._has_begun = False
                        raise
                    self._is_complete = True
        return self._registered

    def __getitem__(self, key: tuple[Kind, str]) -> Rule:
        return self._rules[key]

    def __iter__(self) -> Iterator[tuple[Kind, str]]:
        return iter(sorted(self._rules, key=lambda key: (KINDS.index(key[0]), key[1])))

    def __len__(self) -> int:
        return len(self._rules)

    def of(self, kind: Kind) -> dict[str, Rule]:
        """Return the rules of one kind by name."""
        return {name: self[key, name] for key, name in self if key == kind}

    def find(self, kind: Kind, rule: str | Callable[..., Any]) -> Rule:
        """Return the rule of this kind that a user means by a name or by the decorated function itself."""
        if callable(rule):
            known = getattr(rule, "rule", None)
            if isinstance(known, Rule) and known.kind == kind:
                return known
            found = f"a {known.kind}" if isinstance(known, Rule) else "not a rule"
            raise ValueError(f"{kind}={getattr(rule, '__name__', rule)} is {found}: decorate it with @{kind}")
        if not isinstance(rule, str):
            raise TypeError(f"{kind}={rule!r} is neither the name of a {kind} nor a function decorated with @{kind}")
        if (kind, rule) in self:
            return self[kind, rule]
        names = sorted(self.of(kind))
        made_of = self.optimizers if kind == "direction" else {}
        near = nearest(rule, [*names, *made_of])
        meant = hint(rule, names)
        if near and near[0] in made_of:
            is_one = near[0] == rule
            meant = f"{rule} is {made_of[rule]}" if is_one else f"did you mean {near[0]}: {made_of[near[0]]}?"
        other = next((other for other in KINDS if (other, rule) in self), None)
        if other:
            meant = f"{rule!r} is a {other}; {meant}"
        raise ValueError(f"{kind}={rule!r} is unknown: {meant}")

    def add(self, rule: Rule) -> None:
        """Register a rule; a second of the same kind and name may only come from the same file, or from a notebook again."""
        key = rule.kind, rule.name
        # One of the package's own does not wait for the others: the thread that imports them may wait for this one's module.
        known = self._registered if rule.function.__module__.startswith(f"{__package__}.") else self._rules
        functions = (rule.function, known[key].function) if key in known else ()
        places = [(function.__code__.co_filename, function.__module__) for function in functions]
        again = not places or places[0][0] == places[1][0] or places[0][1] == places[1][1] == "__main__"
        if not again:
            raise RuleError(f"a {rule.kind} named {rule.name!r} exists already, in {known[key].function.__module__}")
        known[key] = rule
        self.changes += 1

    def __str__(self) -> str:
        header = ("kind", "rule", "numbers", "what it does")
        rows = [(rule.kind, rule.name, rule.settings, rule.summary) for rule in self.values()]
        return "\n".join(aligned([header, *rows]))

    __repr__ = __str__

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rules as plain data, by kind."""
        return {kind: [rule.to_dict() for rule in self.of(kind).values()] for kind in KINDS}


REGISTRY = Registry()


def rules() -> Registry:
    """Return every registered rule; prints as a table, `.of(kind)` is a dict by name, `.to_dict()` plain data.

    >>> import weightdecay as wd
    >>> sorted(wd.rules().of("decay"))[:2]
    ['cautious', 'constrained']
    """
    return REGISTRY
