"""Reading many files at once: grouped by shard, neighbouring payloads in one request, results as they are ready.

The work runs in the store's own tasks and reaches the caller through a bounded channel: a slow caller slows it down, and an iterator that is
closed or dropped cancels it. No cancel scope is ever open across a `yield`.

All of it is asked as of its beginning: a fact that was fresh then serves the whole call.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from des.errors import (
    DESError,
    InvalidRequestError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from des.routing import CreatedAt, Uid, date_dir, file_id, normalize_uid, parse_created_at
from des.shard.layout import Identity, from_microseconds
from des.store.fileinfo import GetResult
from des.store.planning import Read, Want, coalesce
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from datetime import datetime

    from anyio.abc import ObjectSendStream, TaskGroup

    from des.store.found import FoundFile
    from des.store.store import Store

# What one call does at once. With reads of at most 1 MiB this bounds its memory.
CONCURRENT_SHARDS = 16
CONCURRENT_LOOKUPS = 64
CONCURRENT_READS = 32
# Results go to the caller in parcels of about this many bytes: handing over one at a time takes longer than reading it.
PARCEL_BYTES = 256 << 10
_PARCELS = 8


@dataclass(frozen=True, slots=True)
class _Asked:
    uid: str
    instant: datetime
    file_id: bytes


_Parcel = list[GetResult]


async def get_many(store: Store, tasks: TaskGroup, files: Iterable[tuple[Uid, CreatedAt]]) -> AsyncIterator[GetResult]:
    """Carry out `Store.get_many`."""
    asked = list(files)
    send, receive = anyio.create_memory_object_stream[_Parcel | Exception](_PARCELS)
    batch = _Batch(store, send)
    with receive:
        try:
            tasks.start_soon(batch.run, asked)
        except RuntimeError as error:  # the task group's way of saying that it has ended
            send.close()
            raise _closed() from error
        try:
            async for parcel in receive:
                if isinstance(parcel, Exception):
                    raise parcel
                for result in parcel:
                    yield result
            if not batch.has_finished:
                raise _closed()
        finally:
            batch.scope.cancel()


def _closed() -> StorageUnavailableError:
    return StorageUnavailableError("the store was closed before all files were read.")


class _Batch:
    """One call of `get_many` at work."""

    def __init__(self, store: Store, parcels: ObjectSendStream[_Parcel | Exception]) -> None:
        self.scope = anyio.CancelScope()
        self.has_finished = False
        self._store = store
        self._parcels = parcels
        self._as_of = time.monotonic()

    async def run(self, files: list[tuple[Uid, CreatedAt]]) -> None:
        """Answer all files. An unexpected error goes to the caller, for this task belongs to the store and must not take it down."""
        async with self._parcels:
            with self.scope:
                try:
                    await self._get_all(files)
                    self.has_finished = True
                except Exception as error:  # noqa: BLE001 - handed to the caller, who raises it
                    await self._parcels.send(error)

    async def _get_all(self, files: list[tuple[Uid, CreatedAt]]) -> None:
        try:
            places = await self._store.in_time(self._store.index.places(self._as_of))
        except DESError as error:
            for uid, created_at in files:
                await self._fail(_text(uid), _instant_or_epoch(created_at), error)
            return
        shards: dict[Identity, list[_Asked]] = {}
        for uid, created_at in files:
            try:
                name, instant = normalize_uid(uid), parse_created_at(created_at)
                identifier = file_id(name)
                identity = places.shard_of(identifier, date_dir(instant))
            except DESError as error:
                await self._fail(_text(uid), _instant_or_epoch(created_at), error)
            else:
                shards.setdefault(identity, []).append(_Asked(name, instant, identifier))
        at_once = max(1, min(len(shards), CONCURRENT_SHARDS))

        async def get_shard(shard: list[_Asked]) -> None:
            await self._get_shard(shard, CONCURRENT_LOOKUPS // at_once, CONCURRENT_READS // at_once)

        await run_all(get_shard, shards.values(), at_once)

    async def _get_shard(self, shard: list[_Asked], lookups: int, reads: int) -> None:
        segments: dict[str, list[tuple[_Asked, FoundFile]]] = {}

        async def look_up(asked: _Asked) -> None:
            try:
                found = await self._store.find(asked.uid, asked.instant, as_of=self._as_of)
            except DESError as error:
                await self._fail(asked.uid, asked.instant, error)
            else:
                segments.setdefault(found.segment_key, []).append((asked, found))

        async def read(planned: tuple[str, Read]) -> None:
            key, request = planned
            await self._read(key, request, [segments[key][want.number] for want in request.wants])

        shard.sort(key=lambda asked: asked.file_id)  # so that those of one page follow each other
        await run_all(look_up, shard, min(lookups, len(shard)))
        plan = [(key, request) for key, files in segments.items() for request in coalesce(_wants(files))]
        await run_all(read, plan, min(reads, len(plan)))

    async def _read(self, key: str, request: Read, files: list[tuple[_Asked, FoundFile]]) -> None:
        """Carry out one planned request. What is no longer where it was found is read again alone, by the way that knows all remedies."""
        try:
            data = await self._read_range(key, request)
        except ObjectNotFoundError:
            data = memoryview(b"")
        except StorageError as error:
            for asked, _ in files:
                await self._fail(asked.uid, asked.instant, error)
            return
        for asked in await self._deliver(request, files, data):
            try:
                content = await self._store.get(asked.uid, asked.instant)
            except DESError as error:
                await self._fail(asked.uid, asked.instant, error)
            else:
                await self._parcels.send([GetResult(asked.uid, asked.instant, content, None)])

    async def _deliver(self, request: Read, files: list[tuple[_Asked, FoundFile]], data: memoryview) -> list[_Asked]:
        """Decode and hand over what a request brought. Returns the files whose bytes are not what they should be."""
        parcel: _Parcel = []
        size = 0
        failed: list[_Asked] = []
        for want, (asked, file) in zip(request.wants, files, strict=True):
            try:
                content = await self._store.decode(file, data[want.start - request.start : want.end - request.start])
            except DESError:
                failed.append(asked)
                continue
            parcel.append(GetResult(asked.uid, asked.instant, content, None))
            size += len(content)
            if size >= PARCEL_BYTES:
                await self._parcels.send(parcel)
                parcel, size = [], 0
        if parcel:
            await self._parcels.send(parcel)
        return failed

    async def _read_range(self, key: str, request: Read) -> memoryview:
        if request.end == request.start:
            return memoryview(b"")
        reading = self._store.storage.read_range(key, request.start, request.end)
        return memoryview(await self._store.in_time(reading))

    async def _fail(self, uid: str, instant: datetime, error: DESError) -> None:
        await self._parcels.send([GetResult(uid, instant, None, error)])


def _wants(files: list[tuple[_Asked, FoundFile]]) -> list[Want]:
    entries = [file.entry for _, file in files]
    return [Want(number, e.offset, e.offset + e.stored_size) for number, e in enumerate(entries)]


def _text(uid: Uid) -> str:
    try:
        return str(uid)
    except ValueError:  # an int past sys.get_int_max_str_digits()
        return f"{uid:#x}"


def _instant_or_epoch(created_at: CreatedAt) -> datetime:
    try:
        return parse_created_at(created_at)
    except InvalidRequestError:
        return from_microseconds(0)
