"""The store: any one file back in at most three range-GETs.

    locate → head's tail → page → payload → verify → decode

Rules of this file:

1. `index` holds the rules of finding; what it found is bound to a version of the head.
2. Payloads are checked before a byte is decoded or handed out; what is damaged in one place is read in another, see `places`.
3. A segment that is gone means that the head is stale: read it again. Gone under an unchanged head means damage.
4. One deadline covers a retrieval, however many requests it takes; a stream's covers the time to its first byte.
5. A read that caches and the system's page cache can answer never waits; so that a loop over such reads lets others run and can be cancelled,
   finding yields to the event loop every now and then.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.lowlevel
import anyio.to_thread

from des.errors import (
    CorruptShardError,
    DeletedError,
    InvalidRequestError,
    NotFoundError,
    ObjectNotFoundError,
    StorageUnavailableError,
)
from des.routing import CreatedAt, Uid, date_dir, file_id, normalize_uid, parse_created_at
from des.shard.layout import Codec
from des.store.cache import ByteLRU
from des.store.catalogs import CatalogReader
from des.store.deadline import within
from des.store.found import FoundFile
from des.store.index import Index
from des.store.listing import list_day
from des.store.many import get_many
from des.store.payloads import check_stored, decode_stored, decoded, is_same_payload, sliced
from des.store.places import elsewhere
from des.store.prerequisites import Prerequisites

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable

    from anyio.abc import TaskGroup

    from des.settings import Settings
    from des.storage.protocol import Storage
    from des.store.fileinfo import FileInfo, GetResult

Result = TypeVar("Result")

# From here on a thread hop costs less than the decoding it takes off the loop (measured; README, "Performance").
OFFLOAD_BYTES = 256 << 10
# How long reads that never wait may keep the event loop from everything else, in seconds.
_LONGEST_HOLD = 0.01
# Instants written as text whose day is kept: understanding one takes a sixth of finding a file.
_KEPT_DAYS = 4096


class ContentChangedError(StorageUnavailableError):
    """The file was replaced between finding and reading it; find it again."""


class Store:
    """Reads files. Made by `open_store`; all methods may run at once.

    Attributes:
        settings: what it was opened with.
        storage: where its objects lie.
    """

    def __init__(self, storage: Storage, settings: Settings, tasks: TaskGroup) -> None:
        """Read from `storage`; background work runs in `tasks`. Use `open_store` instead."""
        self.settings = settings
        self.storage = storage
        self.cache = ByteLRU(settings.cache_bytes)
        self.index = Index(storage, settings, self.cache)
        self._tasks = tasks
        self._catalogs = CatalogReader(storage, self.cache)
        self._prerequisites = Prerequisites(storage, self.cache)
        self._yields_at = 0.0

    @property
    def backend(self) -> str:
        """The label of its storage in metrics."""
        return self.storage.backend

    # ---- the public surface -------------------------------------------------------------------------------------------------

    async def get(self, uid: Uid, created_at: CreatedAt) -> bytes:
        """Return a file's content.

        Args:
            uid: the file's name; an int means its decimal string.
            created_at: aware datetime, date, or RFC 3339 text; its UTC day is part of the file's name.

        Raises:
            NotFoundError: proven, there is no such file; `DeletedError`: it was deleted.
            CorruptShardError: the stored bytes are damaged.
            StorageError: the storage is unwell, or the deadline passed.
            InvalidRequestError: the uid or the time is not acceptable.
            SettingsError: there is no store, or it contradicts the settings.
        """
        return await self.in_time(self._get(uid, created_at))

    async def _get(self, uid: Uid, created_at: CreatedAt) -> bytes:
        while True:
            found = await self._find(uid, created_at)
            try:
                return await self._read(found)
            except ContentChangedError:
                continue

    async def stat(self, uid: Uid, created_at: CreatedAt, *, metadata: bool = False) -> FileInfo:
        """Return what is known of a file, without reading its payload.

        Args:
            uid: as for `get`.
            created_at: as for `get`.
            metadata: also read the user's metadata from the catalog; else it is None.

        Raises:
            Errors as for `get`.
        """
        found = await self.find(uid, created_at)
        if not metadata:
            return found.info
        return await self.in_time(self._with_metadata(found))

    @asynccontextmanager
    async def stream(
        self, uid: Uid, created_at: CreatedAt, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read a file, or the half-open range `[start, end)` of it, piece by piece in constant memory.

        Args:
            uid: as for `get`.
            created_at: as for `get`.
            start: first byte, 0 or more.
            end: one past the last byte; None and anything past the end mean the end.

        Yields:
            An async iterator of verified pieces, 256 KiB or less each.

        Raises:
            InvalidRequestError: an impossible range.
            Errors as for `get`; damage and trouble midway come from the iterator.
        """
        if start < 0 or (end is not None and end < start):
            raise InvalidRequestError(f"the range {start} to {end} is impossible.")
        async with AsyncExitStack() as stack:
            yield await self.in_time(self._open_stream(stack, uid, created_at, start, end))

    async def _open_stream(
        self, stack: AsyncExitStack, uid: Uid, created_at: CreatedAt, start: int, end: int | None
    ) -> AsyncIterator[bytes]:
        _, pieces = await self._open_as_it_is(stack, await self._find(uid, created_at), start, end)
        return pieces

    async def _open_as_it_is(
        self, stack: AsyncExitStack, found: FoundFile, start: int, end: int | None
    ) -> tuple[FoundFile, AsyncIterator[bytes]]:
        while True:
            stop = found.entry.raw_size if end is None else min(end, found.entry.raw_size)
            try:
                return found, await self._open(stack, found, min(start, stop), stop)
            except ContentChangedError:
                found = await self._find(found.uid, found.created_at)

    def get_many(self, files: Iterable[tuple[Uid, CreatedAt]]) -> AsyncIterator[GetResult]:
        """Read many files with as few requests as their places allow.

        Args:
            files: (uid, created_at) pairs; duplicates are answered each.

        Returns:
            An async iterator of one `GetResult` a pair, in order of completion; a failed file is a result with its error.
        """
        return get_many(self, self._tasks, files)

    def list(self, day: str, *, after: str | None = None) -> AsyncIterator[FileInfo]:
        """List the live files of a UTC day in the order of their file_ids, user metadata included.

        Args:
            day: YYYYMMDD or YYYY-MM-DD.
            after: a cursor: only files after this file_id (32 hex digits), see `des.store.listing.cursor_of`.

        Raises:
            InvalidRequestError: an impossible day or cursor.
            CorruptShardError, StorageError, SettingsError: as for `get`.
        """
        return list_day(self, self._catalogs, day, after)

    # ---- in steps, for servers ----------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Make sure that there is a store.

        Raises:
            SettingsError: there is none, or it contradicts the settings.
            StorageError: the storage is unwell.
        """
        await self.in_time(self.index.descriptor())

    def find(self, uid: Uid, created_at: CreatedAt, *, as_of: float | None = None) -> Coroutine[Any, Any, FoundFile]:
        """Find a file by the index alone.

        Args:
            uid: as for `get`.
            created_at: as for `get`.
            as_of: when it was asked for (`time.monotonic`), now where None: what is known may be older than that by its TTL.

        Raises:
            Errors as for `get`.
        """
        return within(self.settings.request_timeout, self._find(uid, created_at, as_of))

    def known(self, uid: Uid, created_at: CreatedAt) -> FoundFile | None:
        """Return what `find` would where the caches suffice for it, without a coroutine. None proves nothing: then `find` it.

        Raises:
            InvalidRequestError: the uid or the time is not acceptable.
            CorruptShardError, SettingsError: as for `get`.
        """
        now = time.monotonic()
        if now >= self._yields_at:
            return None  # it is `find` that lets others run
        name = normalize_uid(uid)
        return self._known(name, file_id(name), _day_of(created_at), now)

    def _known(self, name: str, identifier: bytes, day: str, as_of: float) -> FoundFile | None:
        known = self.index.known(identifier, day, as_of)
        return None if known is None or known[1].deleted else FoundFile(name, *known)

    async def _find(self, uid: Uid, created_at: CreatedAt, as_of: float | None = None) -> FoundFile:
        name, day = normalize_uid(uid), _day_of(created_at)
        identifier = file_id(name)
        now = time.monotonic()
        if now >= self._yields_at:
            self._yields_at = now + _LONGEST_HOLD  # before the pause: one of all that look now is enough
            await anyio.lowlevel.checkpoint()
        if as_of is None:
            as_of = now
        found = self._known(name, identifier, day, as_of)
        if found is not None:
            return found
        known = await self.index.lookup(identifier, day, as_of)
        if known is None:
            raise NotFoundError(f"there is no file {name!r} on {day}.")
        loaded, entry = known
        if entry.deleted:
            raise DeletedError(f"the file {name!r} of {day} was deleted.")
        return FoundFile(name, loaded, entry)

    def in_time(self, work: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
        """Await work for `request_timeout` at most; see `within`."""
        return within(self.settings.request_timeout, work)

    def read(self, found: FoundFile) -> Coroutine[Any, Any, bytes]:
        """Return the content of a found file, verified and decoded.

        Raises:
            ContentChangedError: it was replaced meanwhile, and what was found is gone; find it again.
            Errors as for `get`.
        """
        return within(self.settings.request_timeout, self._read(found))

    async def read_stored(self, found: FoundFile) -> bytes:
        """Return the stored bytes of a found file that is not large, verified but not decoded: exactly those that `found` describes.

        Raises:
            ContentChangedError: it was replaced, or is stored in another way now; find it again.
            InvalidRequestError: it is large, and has no checksum over all of its stored bytes.
            Errors as for `read`.
        """
        if found.is_large:
            raise InvalidRequestError(
                f"the file {found.uid!r} is large; its stored bytes are not to be had as they are."
            )
        return await self.in_time(self._read_stored(found))

    async def _read_stored(self, found: FoundFile) -> bytes:
        while True:
            try:
                return await _checked(found, self.storage)
            except ObjectNotFoundError as error:
                again = await self._refind(found, error)
                if not is_same_payload(found, again):
                    raise _changed(found) from error
                found = again
            except CorruptShardError as damage:
                return await elsewhere(self.storage, found.segment_key, damage, partial(_checked, found))

    @asynccontextmanager
    async def open_range(self, found: FoundFile, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open `[start, end)` of a found file; `0 <= start <= end <= raw_size`.

        Yields:
            An async iterator of verified pieces.

        Raises:
            InvalidRequestError: an impossible range.
            Errors as for `read`; damage and trouble midway come from the iterator.
        """
        if not 0 <= start <= end <= found.entry.raw_size:
            raise InvalidRequestError(
                f"the range {start} to {end} does not lie in a file of {found.entry.raw_size} bytes."
            )
        async with AsyncExitStack() as stack:
            yield await self.in_time(self._open(stack, found, start, end))

    @asynccontextmanager
    async def open_whole(self, found: FoundFile) -> AsyncIterator[tuple[FoundFile, AsyncIterator[bytes]]]:
        """Open all of a file that was found a while ago.

        Yields:
            The file as it is now, found again where it was replaced, and an async iterator of its verified pieces.

        Raises:
            Errors as for `get`; damage and trouble midway come from the iterator.
        """
        async with AsyncExitStack() as stack:
            yield await self.in_time(self._open_as_it_is(stack, found, 0, None))

    async def _open(self, stack: AsyncExitStack, found: FoundFile, start: int, end: int) -> AsyncIterator[bytes]:
        """Open a range; what has to be closed is left to `stack`."""
        if not found.is_large or start == end:
            content = await self._read(found) if start < end else b""
            return await stack.enter_async_context(aclosing(sliced(content[start:end])))
        while True:
            try:
                table = await self._prerequisites.seek_table(found)
                span = table.span(start, end)
                first, last = found.entry.offset + span.start, found.entry.offset + span.end
                pieces = await stack.enter_async_context(self.storage.stream_range(found.segment_key, first, last))
                beginning = await anext(pieces, b"")
            except ObjectNotFoundError as error:
                await stack.aclose()
                found = await self._refind(found, error)
            else:
                return await stack.enter_async_context(
                    aclosing(decoded(self.storage, found, table, beginning, pieces, start, end))
                )

    # ---- payloads -----------------------------------------------------------------------------------------------------------

    async def decode(self, found: FoundFile, stored: bytes | memoryview) -> bytes:
        """Check and decode the stored bytes of a found file, all of them.

        Raises:
            CorruptShardError: they are not what the index says.
            StorageError: its dictionary cannot be read.
        """
        return await self.in_time(self._decode(found, stored))

    async def _decode(self, found: FoundFile, stored: bytes | memoryview) -> bytes:
        check_stored(found, stored)
        entry = found.entry
        dictionary = await self._prerequisites.dictionary(found) if entry.codec is Codec.ZSTD_DICT else None
        if entry.raw_size < OFFLOAD_BYTES:
            return decode_stored(found, stored, dictionary)
        return await anyio.to_thread.run_sync(decode_stored, found, stored, dictionary)

    async def _read(self, found: FoundFile) -> bytes:
        while True:
            try:
                return await self._decode(found, await _stored(found, self.storage))
            except ObjectNotFoundError as error:
                found = await self._refind(found, error)
            except CorruptShardError as damage:
                return await elsewhere(self.storage, found.segment_key, damage, partial(self._read_at, found))

    async def _read_at(self, found: FoundFile, place: Storage) -> bytes:
        return await self._decode(found, await _stored(found, place))

    async def _refind(self, found: FoundFile, cause: ObjectNotFoundError) -> FoundFile:
        """Find a file again whose segment is gone.

        Raises:
            CorruptShardError: the head still points at the missing segment.
            ContentChangedError: the file has other content now.
        """
        as_of = time.monotonic()
        await self.index.require_newer(found.loaded, as_of, cause)
        again = await self.index.lookup(found.entry.file_id, found.identity.date, as_of)
        if again is None or again[1].deleted or again[1].content_hash != found.entry.content_hash:
            raise _changed(found) from cause
        return FoundFile(found.uid, *again)

    async def _with_metadata(self, found: FoundFile) -> FileInfo:
        while True:
            identifier = found.entry.file_id
            try:
                rows = await self._catalogs.find(found.identity, found.segment.name, [identifier])
            except ObjectNotFoundError as error:
                await self.index.require_newer(found.loaded, time.monotonic(), error)
                found = await self._find(found.uid, found.created_at)
                continue
            row = rows.get(identifier)
            if row is None:
                raise CorruptShardError(f"{found.segment_key}: its catalog lacks a file of the head.")
            return replace(found.info, metadata=row.metadata_object())


def _stored(found: FoundFile, place: Storage) -> Awaitable[bytes]:
    entry = found.entry
    if not entry.stored_size:
        return _nothing()
    return place.read_range(found.segment_key, entry.offset, entry.offset + entry.stored_size)


async def _nothing() -> bytes:
    return b""


async def _checked(found: FoundFile, place: Storage) -> bytes:
    stored = await _stored(found, place)
    check_stored(found, stored)
    return stored


def _day_of(created_at: CreatedAt) -> str:
    return _day_of_text(created_at) if isinstance(created_at, str) else date_dir(parse_created_at(created_at))


@lru_cache(_KEPT_DAYS)
def _day_of_text(created_at: str) -> str:
    return date_dir(parse_created_at(created_at))


def _changed(found: FoundFile) -> ContentChangedError:
    return ContentChangedError(f"the file {found.uid!r} was replaced while it was read; try again.")
