"""A map that keeps what was used last, bounded in items."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedMap(Generic[K, V]):
    """Small values by key; the one that was not used for longest goes first."""

    __slots__ = ("_items", "_limit")

    def __init__(self, limit: int) -> None:
        """Begin empty; never keep more than `limit` items."""
        self._items: OrderedDict[K, V] = OrderedDict()
        self._limit = limit

    def get(self, key: K) -> V | None:
        """Return the value, None where there is none (any more)."""
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value in place of the key's last one."""
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._limit:
            self._items.popitem(last=False)

    def discard(self, key: K) -> None:
        """Forget a key, whether it is there or not."""
        self._items.pop(key, None)
