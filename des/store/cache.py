"""What keeps repeated reads cheap: an LRU bounded in bytes, and single flight.

Ownership and cancellation of a flight: whoever asks first for a key leads, in its own task, under its own deadline. A leader that is cancelled
hands over: the waiters wake, one of them leads anew. A leader that fails passes its error to those who waited with it and to nobody after.
The key is free again before anyone wakes, so nothing stays behind.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

Value = TypeVar("Value")

_UNSET = object()
# What keeping a value costs besides its own weight, about: the key, the places in the tables, the objects around the bytes.
ITEM_BYTES = 500


class ByteLRU:
    """A least-recently-used cache bounded by the bytes its values are said to weigh, and `ITEM_BYTES` for each.

    Attributes:
        max_bytes: the bound.
        used_bytes: what the values weigh now, those bytes included.
        hits: how many `get` calls found a value.
        misses: how many did not.
        evictions: how many values were pushed out.
    """

    def __init__(self, max_bytes: int) -> None:
        """Begin empty."""
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._items: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()

    def get(self, key: Hashable, kind: type[Value]) -> Value | None:
        """Return the value of a key and mark it as used; None where there is none of this kind."""
        value = self.peek(key, kind)
        if value is None:
            self.misses += 1
        return value

    def peek(self, key: Hashable, kind: type[Value]) -> Value | None:
        """Do as `get`, but count no miss: for whoever calls `get` next where there is nothing."""
        item = self._items.get(key)
        if item is None or not isinstance(item[0], kind):
            return None
        self._items.move_to_end(key)
        self.hits += 1
        return item[0]

    def put(self, key: Hashable, value: object, weight: int) -> None:
        """Keep a value; one that weighs more than the bound is not kept at all."""
        self.discard(key)
        weight += ITEM_BYTES
        if weight > self.max_bytes:
            return
        self._items[key] = (value, weight)
        self.used_bytes += weight
        while self.used_bytes > self.max_bytes:
            _, (_, evicted) = self._items.popitem(last=False)
            self.used_bytes -= evicted
            self.evictions += 1

    def discard(self, key: Hashable) -> None:
        """Forget a key."""
        item = self._items.pop(key, None)
        if item is not None:
            self.used_bytes -= item[1]


class _Flight(Generic[Value]):
    __slots__ = ("error", "landed", "value")

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.value: object = _UNSET
        self.error: Exception | None = None


class SingleFlight(Generic[Value]):
    """Runs one call per key at a time; whoever asks meanwhile gets the same outcome."""

    def __init__(self) -> None:
        """Begin with nothing in flight."""
        self._flights: dict[Hashable, _Flight[Value]] = {}

    def __len__(self) -> int:
        """How many keys are in flight."""
        return len(self._flights)

    async def run(self, key: Hashable, call: Callable[[], Awaitable[Value]]) -> Value:
        """Return what `call` returns, made by this task or by the one already at it.

        Args:
            key: what the call is about.
            call: makes the value; runs in the task of the leader.

        Raises:
            Exception: what the call raised; each waiter gets its own copy, caused by the leader's.
        """
        while True:
            flight = self._flights.get(key)
            if flight is None:
                return await self._lead(key, call)
            await flight.landed.wait()
            if flight.error is not None:
                raise copy.copy(flight.error) from flight.error
            if flight.value is not _UNSET:
                return flight.value  # type: ignore[return-value]  # set by the leader from `call`, which returns Value

    async def _lead(self, key: Hashable, call: Callable[[], Awaitable[Value]]) -> Value:
        flight = self._flights[key] = _Flight[Value]()
        try:
            value = await call()
            flight.value = value
        except Exception as error:
            flight.error = error
            raise
        finally:
            del self._flights[key]
            flight.landed.set()
            del flight  # an error refers to this frame: the two must not keep each other alive
        return value
