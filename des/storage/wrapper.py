"""What wraps a storage: every call passes through one place, where it can be counted, measured, delayed or refused.

What counts as a call:

- each verb, under its own name; `list` counts once, for the whole listing;
- `stream_range` for opening the stream, and `piece` for each piece of it (the end of the range is one more, empty piece);
- `open_writer` for opening the writer, `write` for each part, `commit` for the clean end of its context.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from datetime import datetime

    from des.storage.protocol import (
        Leftover,
        Level,
        ObjectInfo,
        ObjectWriter,
        PlaceState,
        Purpose,
        PutMode,
        Storage,
        Suffix,
    )

Verb = Literal[
    "read_suffix",
    "read_range",
    "stream_range",
    "piece",
    "head",
    "put",
    "open_writer",
    "write",
    "commit",
    "list_level",
    "list",
    "delete",
    "now",
    "list_leftovers",
    "discard",
    "check_conditional_writes",
]


@dataclass(frozen=True, slots=True)
class Call:
    """A call on a storage.

    Attributes:
        verb: what was asked.
        key: the object, or the prefix of a listing.
        start: first byte of a range; for a suffix minus its length.
        end: one past the last byte of a range; None for all else.
        purpose: what a read was for; None for all else.
        size: bytes that were read or written, 0 where it failed.
    """

    verb: Verb
    key: str
    start: int | None = None
    end: int | None = None
    purpose: Purpose | None = None
    size: int = 0

    def __str__(self) -> str:
        """Return the call as a line of a schedule."""
        span = "" if self.start is None else f" [{self.start}, {'' if self.end is None else self.end})"
        return f"{self.verb} {self.key}{span}"


@dataclass(slots=True)
class Tally:
    """What a call moves.

    Attributes:
        size: bytes, set by the call while `around` surrounds it.
        keep: how many bytes pass at most, set by `around` before; None: all.
    """

    size: int = 0
    keep: int | None = None


class StorageWrapper:
    """A storage that passes every call on to another one, inside `around`.

    Attributes:
        inner: the storage that does the work.
        backend: as of the inner storage.
        address: as of the inner storage.
    """

    def __init__(self, inner: Storage) -> None:
        """Wrap a storage."""
        self.inner = inner
        self.backend = inner.backend
        self.address = inner.address

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        """Surround a call: what subclasses extend. The inner storage acts at the `yield`, and raises there."""
        del call
        yield Tally()

    async def read_suffix(
        self, key: str, length: int, *, unless: str | None = None, purpose: Purpose = "footer"
    ) -> Suffix | None:
        """See `Storage.read_suffix`."""
        async with self.around(Call("read_suffix", key, start=-length, purpose=purpose)) as tally:
            suffix = await self.inner.read_suffix(key, length, unless=unless, purpose=purpose)
            if suffix is not None and tally.keep is not None:
                suffix = replace(suffix, data=suffix.data[: tally.keep])
            tally.size = len(suffix.data) if suffix else 0
        return suffix

    async def read_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> bytes:
        """See `Storage.read_range`."""
        async with self.around(Call("read_range", key, start, end, purpose)) as tally:
            data = await self.inner.read_range(key, start, end, version=version, purpose=purpose)
            data = data[: tally.keep]
            tally.size = len(data)
        return data

    @asynccontextmanager
    async def stream_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `Storage.stream_range`."""
        call = Call("stream_range", key, start, end, purpose)
        async with AsyncExitStack() as stack:
            async with self.around(call):
                opened = self.inner.stream_range(key, start, end, version=version, purpose=purpose)
                pieces = await stack.enter_async_context(opened)
            async with aclosing(self._pieces(replace(call, verb="piece"), pieces)) as surrounded:
                yield surrounded

    async def _pieces(self, call: Call, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        while True:
            async with self.around(call) as tally:
                piece = await anext(pieces, b"")
                piece = piece[: tally.keep]
                tally.size = len(piece)
            if not piece:
                return
            yield piece

    async def head(self, key: str) -> ObjectInfo:
        """See `Storage.head`."""
        async with self.around(Call("head", key)):
            return await self.inner.head(key)

    async def put(self, key: str, data: bytes, mode: PutMode) -> str:
        """See `Storage.put`."""
        async with self.around(Call("put", key)) as tally:
            data = data[: tally.keep]
            version = await self.inner.put(key, data, mode)
            tally.size = len(data)
        return version

    @asynccontextmanager
    async def open_writer(self, key: str) -> AsyncIterator[ObjectWriter]:
        """See `Storage.open_writer`."""
        # Left from the inside out: the writer is done while the commit's surroundings still stand.
        async with AsyncExitStack() as commit, AsyncExitStack() as opened:
            async with self.around(Call("open_writer", key)):
                writer = await opened.enter_async_context(self.inner.open_writer(key))
            yield _WrappedWriter(self, key, writer)
            await commit.enter_async_context(self.around(Call("commit", key)))

    async def list_level(self, prefix: str) -> Level:
        """See `Storage.list_level`."""
        async with self.around(Call("list_level", prefix)):
            return await self.inner.list_level(prefix)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `Storage.list`. Unlike there, all of it is held at once."""
        async with self.around(Call("list", prefix)):
            infos = [info async for info in self.inner.list(prefix)]
        for info in infos:
            yield info

    async def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        async with self.around(Call("delete", key)):
            await self.inner.delete(key)

    async def now(self) -> datetime:
        """See `Storage.now`."""
        async with self.around(Call("now", "")):
            return await self.inner.now()

    async def list_leftovers(self) -> AsyncIterator[Leftover]:
        """See `Storage.list_leftovers`. Unlike there, all of it is held at once."""
        async with self.around(Call("list_leftovers", "")):
            leftovers = [leftover async for leftover in self.inner.list_leftovers()]
        for leftover in leftovers:
            yield leftover

    async def discard(self, leftover: Leftover) -> None:
        """See `Storage.discard`."""
        async with self.around(Call("discard", leftover.key)):
            await self.inner.discard(leftover)

    async def check_conditional_writes(self, key: str) -> None:
        """See `Storage.check_conditional_writes`."""
        async with self.around(Call("check_conditional_writes", key)):
            await self.inner.check_conditional_writes(key)

    async def settle(self, key: str) -> None:
        """See `Storage.settle`. No call of its own: what it takes, if anything, are calls on the places behind it."""
        await self.inner.settle(key)

    def alternatives(self, key: str) -> Sequence[Storage]:
        """See `Storage.alternatives`. They are not wrapped."""
        return self.inner.alternatives(key)

    def mend(self, key: str) -> None:
        """See `Storage.mend`."""
        self.inner.mend(key)

    def states(self) -> Sequence[PlaceState]:
        """See `Storage.states`."""
        return self.inner.states()

    async def aclose(self) -> None:
        """Close the inner storage."""
        await self.inner.aclose()


class _WrappedWriter:
    def __init__(self, storage: StorageWrapper, key: str, inner: ObjectWriter) -> None:
        self._storage = storage
        self._key = key
        self._inner = inner

    async def write(self, data: bytes) -> None:
        async with self._storage.around(Call("write", self._key)) as tally:
            data = data[: tally.keep]
            await self._inner.write(data)
            tally.size = len(data)
