"""A storage on which a test does something of its own before or after each call."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from des.storage.testing import Call, StorageWrapper, Tally

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from des.storage.protocol import Storage


class Meddler(StorageWrapper):
    """Awaits `before(call)` and `after(call)` around every call; what they raise, the call raises."""

    def __init__(
        self,
        inner: Storage,
        *,
        before: Callable[[Call], Awaitable[None]] | None = None,
        after: Callable[[Call], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(inner)
        self._before = before
        self._after = after

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        if self._before:
            await self._before(call)
        yield Tally()
        if self._after:
            await self._after(call)
