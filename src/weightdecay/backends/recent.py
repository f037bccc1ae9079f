"""What was made for an optimizer and may serve the next: kernels, of which a process could make any number."""

import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Recent(Generic[Made]):
    """Keeps what was last made and asked for, and finds whatever else is still in use; the rest is freed.

    There is no lock, which a child of `fork` could inherit locked: every line holds whatever other threads do meanwhile.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._last: dict[Hashable, Made] = {}
        self._alive: weakref.WeakValueDictionary[Hashable, Made] = weakref.WeakValueDictionary()

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what is known by a key, made if need be; two threads may both make it."""
        found = self._alive.get(key)
        if found is None:
            found = self._alive.setdefault(key, make())
        self._last.pop(key, None)
        self._last[key] = found  # the newest comes last
        for old in list(self._last)[: -self._size]:
            self._last.pop(old, None)
        return found

    def __len__(self) -> int:
        return len(self._alive)
