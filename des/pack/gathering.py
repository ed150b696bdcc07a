"""Gathering small writes into longer ones: on every way to a storage each costs a step of the loop, and some a hop to another task or thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_BYTES = 1 << 20


class Gathered:
    """Bytes on their way, handed on a MiB or more at a time."""

    def __init__(self, hand_on: Callable[[bytes], Awaitable[None]]) -> None:
        """Gather what `hand_on` takes."""
        self._hand_on = hand_on
        self._parts: list[bytes] = []
        self._size = 0

    async def write(self, data: bytes) -> None:
        """Append bytes. Raises what `hand_on` raises."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Hand on what is left. Raises what `hand_on` raises."""
        if self._size:
            await self._hand_on(b"".join(self._parts))
            self._parts, self._size = [], 0
