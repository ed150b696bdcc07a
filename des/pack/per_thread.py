"""What each thread keeps for itself because it cannot be shared, and is made anew when it has to be another."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Key = TypeVar("Key")
Made = TypeVar("Made")


class PerThread(threading.local, Generic[Key, Made]):
    """Returns, when called with a key, what this thread made for it last; makes it where it is another key than before."""

    def __init__(self, make: Callable[[Key], Made]) -> None:
        """Make nothing yet; each thread comes through here when it calls first."""
        self._make = make
        self._last: tuple[Key, Made] | None = None

    def __call__(self, key: Key) -> Made:
        """Return what belongs to a key, which is compared by equality."""
        last = self._last
        if last is None or last[0] != key:
            last = self._last = key, self._make(key)
        return last[1]
