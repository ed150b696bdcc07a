"""Reading many files at once: grouped by shard, neighbouring payloads in one request, results as they are ready.

The work runs in the store's own tasks and reaches the caller through a bounded channel: a slow caller slows it down, and an iterator that is
closed or dropped cancels it. No cancel scope is ever open across a `yield`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from des.errors import DESError, InvalidRequestError, StorageError
from des.routing import CreatedAt, Uid, date_dir, file_id, normalize_uid, parse_created_at
from des.shard.layout import Identity, from_microseconds
from des.store.fileinfo import GetResult
from des.store.planning import Read, Want, coalesce

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from datetime import datetime

    from anyio.abc import ObjectSendStream, TaskGroup

    from des.store.found import FoundFile
    from des.store.store import Store

# Payload requests under way at once, per call. With reads of at most 1 MiB this bounds the memory of a call.
CONCURRENT_READS = 32
# Lookups under way at once, per call; most are answered by a page that another one fetched.
CONCURRENT_LOOKUPS = 64
CONCURRENT_SHARDS = 16


@dataclass(frozen=True, slots=True)
class _Asked:
    uid: str
    instant: datetime


async def get_many(store: Store, tasks: TaskGroup, files: Iterable[tuple[Uid, CreatedAt]]) -> AsyncIterator[GetResult]:
    """Carry out `Store.get_many`."""
    send, receive = anyio.create_memory_object_stream[GetResult | Exception](CONCURRENT_READS)
    batch = _Batch(store, send)
    tasks.start_soon(batch.run, list(files))
    try:
        async for result in receive:
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        batch.scope.cancel()
        receive.close()


class _Batch:
    """One call of `get_many` at work."""

    def __init__(self, store: Store, results: ObjectSendStream[GetResult | Exception]) -> None:
        self.scope = anyio.CancelScope()
        self._store = store
        self._results = results
        self._reads = anyio.Semaphore(CONCURRENT_READS)
        self._lookups = anyio.Semaphore(CONCURRENT_LOOKUPS)
        self._shards = anyio.Semaphore(CONCURRENT_SHARDS)

    async def run(self, files: list[tuple[Uid, CreatedAt]]) -> None:
        """Answer all files. An unexpected error goes to the caller, for this task belongs to the store and must not take it down."""
        async with self._results:
            with self.scope:
                try:
                    await self._get_all(files)
                except Exception as error:  # noqa: BLE001 - handed to the caller, who raises it
                    await self._results.send(error)

    async def _get_all(self, files: list[tuple[Uid, CreatedAt]]) -> None:
        shards: dict[Identity, list[_Asked]] = {}
        for uid, created_at in files:
            try:
                asked = _Asked(normalize_uid(uid), parse_created_at(created_at))
            except InvalidRequestError as error:
                await self._results.send(GetResult(str(uid), _instant_or_epoch(created_at), None, error))
                continue
            try:
                identity = await self._store.index.shard_of(file_id(asked.uid), date_dir(asked.instant))
            except DESError as error:
                await self._fail(asked, error)
                continue
            shards.setdefault(identity, []).append(asked)
        async with anyio.create_task_group() as group:
            for shard in shards.values():
                await self._shards.acquire()
                group.start_soon(self._get_shard, shard)

    async def _get_shard(self, shard: list[_Asked]) -> None:
        try:
            found: list[tuple[_Asked, FoundFile]] = []
            async with anyio.create_task_group() as group:
                for asked in sorted(shard, key=lambda a: file_id(a.uid)):
                    await self._lookups.acquire()
                    group.start_soon(self._look_up, asked, found)
            segments: dict[str, list[tuple[_Asked, FoundFile]]] = {}
            for asked, file in found:
                segments.setdefault(file.segment_key, []).append((asked, file))
            async with anyio.create_task_group() as group:
                for key, files in segments.items():
                    for read in coalesce(_wants(files)):
                        await self._reads.acquire()
                        group.start_soon(self._read, key, read, [files[want.number] for want in read.wants])
        finally:
            self._shards.release()

    async def _look_up(self, asked: _Asked, found: list[tuple[_Asked, FoundFile]]) -> None:
        try:
            found.append((asked, await self._store.find(asked.uid, asked.instant)))
        except DESError as error:
            await self._fail(asked, error)
        finally:
            self._lookups.release()

    async def _read(self, key: str, read: Read, files: list[tuple[_Asked, FoundFile]]) -> None:
        """Carry out one planned request. What does not come out well is read again alone, by the way that knows all remedies."""
        try:
            data = b""
            if read.end > read.start and len(files) > 1:
                try:
                    data = await self._store.storage.read_range(key, read.start, read.end)
                except StorageError:
                    data = b""
            for want, (asked, file) in zip(read.wants, files, strict=True):
                await self._answer(asked, file, memoryview(data)[want.start - read.start : want.end - read.start])
        finally:
            self._reads.release()

    async def _answer(self, asked: _Asked, file: FoundFile, stored: memoryview) -> None:
        try:
            if len(stored) == file.entry.stored_size and file.entry.raw_size:
                content = await self._store.decode(file, bytes(stored))
            else:
                content = await self._store.get(asked.uid, asked.instant)
        except DESError as error:
            await self._fail(asked, error)
        else:
            await self._results.send(GetResult(asked.uid, asked.instant, content, None))

    async def _fail(self, asked: _Asked, error: DESError) -> None:
        await self._results.send(GetResult(asked.uid, asked.instant, None, error))


def _wants(files: list[tuple[_Asked, FoundFile]]) -> list[Want]:
    entries = [file.entry for _, file in files]
    return [Want(number, e.offset, e.offset + e.stored_size) for number, e in enumerate(entries)]


def _instant_or_epoch(created_at: CreatedAt) -> datetime:
    try:
        return parse_created_at(created_at)
    except InvalidRequestError:
        return from_microseconds(0)
