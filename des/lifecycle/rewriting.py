"""Rewriting: the live rows of some segments of a shard, copied into new ones.

Rules:

1. Every payload is checked on its way, down to the hash of its content: a compaction that carried damage along would bury it. What is damaged in
   every place of the storage stays where it is, and so does all of its segment.
2. Stored bytes are copied as they are, in the order of their places, unless they shall be compressed anew. A segment has one dictionary, so
   payloads that need different ones go to different segments.
3. Rows and tombstones keep the generation they were decided in. A new segment names those it takes the place of once all their rows are in it
   or in ones that were complete before it.
4. Memory is bounded: rows are held for a part of a segment at a time, payloads in requests of some MiB, and large files go through in pieces.
"""

from __future__ import annotations

import hashlib
from array import array
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from des.errors import CorruptShardError
from des.lifecycle.choosing import parted
from des.pack.commit import new_name
from des.pack.gathering import Gathered
from des.shard.chunking import CHUNK_BYTES, LargeEncoder, SeekTable, is_large
from des.shard.codecs import Compression, Encoder, decode, worth_trying
from des.shard.layout import NAME_BYTES, Codec, checksum32
from des.shard.merging import Addition
from des.shard.writing import Payload, SegmentWriter, content_hash
from des.store.catalogs import load_segment, read_dictionary, read_rows
from des.store.heads import named
from des.store.payloads import stored_chunks
from des.store.places import elsewhere, first_good
from des.store.planning import MAX_GAP_BYTES, Read, Want, coalesce
from des.tasks import mapped_in_order, open_tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from anyio.abc import TaskGroup, TaskStatus

    from des.shard.catalog import CatalogRow
    from des.shard.tables import SegmentRef
    from des.storage.protocol import Storage
    from des.store.catalogs import LoadedSegment
    from des.store.heads import WholeHead

READ_BYTES = 4 << 20
_READS_AHEAD = 4
_ROW_BYTES = 1_000  # a row in memory, about


@dataclass(frozen=True, slots=True)
class Rewriting:
    """How to rewrite.

    Attributes:
        compression: encode anew like this; None: copy what is stored.
        max_segment_bytes: a new segment is closed before it grows past this.
        memory: bytes it may hold.
        drop_tombstones_before: tombstones older than this (microseconds since 1970) are not carried along; None: all are.
    """

    compression: Compression | None = None
    max_segment_bytes: int = 1 << 30
    memory: int = 64 << 20
    drop_tombstones_before: int | None = None


@dataclass(slots=True)
class Rewritten:
    """What came of it.

    Attributes:
        additions: the new segments.
        dropped: file_ids of tombstones that were not carried along.
        files: how many files were copied.
        bytes_moved: stored bytes that were copied.
    """

    additions: list[Addition] = field(default_factory=list)
    dropped: set[bytes] = field(default_factory=set)
    files: int = 0
    bytes_moved: int = 0


async def rewrite(storage: Storage, base: WholeHead, names: Iterable[bytes], how: Rewriting) -> Rewritten:
    """Copy what a head has in some of its segments into new ones, which no head lists yet.

    Args:
        storage: the store's place.
        base: the head.
        names: the segments.
        how: see there.

    Raises:
        ObjectNotFoundError: a segment is gone.
        CorruptShardError: a segment is damaged.
        StorageError: the storage is unwell.
    """
    wanted = set(names)
    refs = [ref for ref in base.tables.segments if ref.name in wanted]
    rewritten = Rewritten()
    for group in parted(refs) if how.compression is None else [refs]:
        async with open_tasks() as tasks:
            await _Group(storage, base, how, rewritten, tasks).rewrite(group)
    return rewritten


@dataclass(frozen=True, slots=True)
class _Copied:
    """A small payload on its way: its row, the bytes to write, and what is stored now where that is new."""

    row: CatalogRow
    stored: bytes
    payload: Payload | None


class _Group:
    """Segments that go into new ones together."""

    def __init__(
        self, storage: Storage, base: WholeHead, how: Rewriting, rewritten: Rewritten, tasks: TaskGroup
    ) -> None:
        self._storage = storage
        self._base = base
        self._tasks = tasks
        self._how = how
        self._rewritten = rewritten
        self._dictionary = how.compression.dictionary if how.compression else None
        self._output: _Output | None = None
        self._complete: list[bytes] = []
        self._numbers = {ref.name: number for number, ref in enumerate(base.tables.segments)}

    async def rewrite(self, refs: Sequence[SegmentRef]) -> None:
        if self._how.compression is None:
            for ref in refs:
                self._dictionary = await self._load_dictionary(ref) or self._dictionary
        for ref in refs:
            if ref.entries:
                await self._rewrite_segment(ref)
            self._complete.append(ref.name)
        await self._close_output()

    async def _load_dictionary(self, ref: SegmentRef) -> bytes | None:
        if ref.dictionary is None:
            return None
        return await read_dictionary(self._storage, self._base.identity.segment_key(ref.name), ref.dictionary)

    # ---- reading ------------------------------------------------------------------------------------------------------------

    async def _rewrite_segment(self, ref: SegmentRef) -> None:
        loaded = await load_segment(self._storage, self._base.identity, ref.name)
        dictionary = await self._load_dictionary(ref)
        at_once = max(1, self._how.memory // 2 // _ROW_BYTES)
        found = 0
        for start, end in await self._windows(loaded, ref, at_once):
            rows = [row async for row in self._live_rows(loaded, ref) if start <= row.entry.offset < end]
            rows.sort(key=lambda row: (row.entry.offset, row.entry.stored_size))
            found += len(rows)
            await self._copy(loaded.key, rows, dictionary)
        if found != ref.entries:
            raise CorruptShardError(f"{loaded.key}: its catalog lacks files of the head; run `des verify`.")

    async def _windows(self, loaded: LoadedSegment, ref: SegmentRef, at_once: int) -> list[tuple[int, int]]:
        """Cut a segment into ranges of offsets with so many live rows each, tombstones (offset 0) in the first."""
        whole = (0, ref.size + 1)
        if ref.entries <= at_once:
            return [whole]
        offsets = array("Q")
        async for row in self._live_rows(loaded, ref):
            offsets.append(row.entry.offset)
        starts = sorted(set(sorted(offsets)[::at_once]) - {0})
        edges = [whole[0], *starts, whole[1]]
        return list(pairwise(edges))

    async def _live_rows(self, loaded: LoadedSegment, ref: SegmentRef) -> AsyncIterator[CatalogRow]:
        """Yield the rows of a catalog that the head points at."""
        number = self._numbers[ref.name]
        async for rows in read_rows(self._storage, loaded):
            for row in rows:
                entry = self._base.find(row.entry.file_id)
                if entry is None or entry.segment != number:
                    continue
                if entry._replace(segment=0, content_type=0) != row.entry:
                    raise CorruptShardError(
                        f"{loaded.key}: head and catalog say different things about {row.uid!r}; run `des verify`."
                    )
                yield row

    # ---- copying ------------------------------------------------------------------------------------------------------------

    async def _copy(self, key: str, rows: Sequence[CatalogRow], dictionary: bytes | None) -> None:
        tombstones = [row for row in rows if row.entry.deleted]
        for row in tombstones:
            await self._carry_tombstone(row)
        files = [row for row in rows if not row.entry.deleted]
        async with mapped_in_order(
            partial(self._fetch, key, files, dictionary), _planned(files), _READS_AHEAD
        ) as steps:
            async for step in steps:
                if isinstance(step, list):
                    for copied in step:
                        await self._write_small(copied)
                else:
                    await self._copy_large(key, step)

    async def _fetch(
        self, key: str, files: Sequence[CatalogRow], dictionary: bytes | None, planned: Read | CatalogRow
    ) -> list[_Copied] | CatalogRow:
        """Read and check the payloads of one request; a large file is only passed on, to be copied in its turn."""
        if not isinstance(planned, Read):
            return planned
        start, end = planned.start, planned.end

        def check_all(data: bytes) -> list[_Copied]:
            view = memoryview(data)
            encoder = Encoder(self._how.compression) if self._how.compression else None
            return [
                self._checked(files[want.number], view[want.start - start : want.end - start], dictionary, encoder)
                for want in planned.wants
            ]

        async def fetch(place: Storage) -> list[_Copied]:
            data = await place.read_range(key, start, end) if end > start else b""
            try:
                return await anyio.to_thread.run_sync(check_all, data)
            except CorruptShardError as error:
                raise named(error, key) from error

        return await first_good(self._storage, key, fetch)

    def _checked(
        self, row: CatalogRow, stored: memoryview, dictionary: bytes | None, encoder: Encoder | None
    ) -> _Copied:
        entry = row.entry
        if len(stored) != entry.stored_size or checksum32(stored) != entry.checksum:
            raise CorruptShardError(f"the payload of {row.uid!r} is damaged.")
        if entry.codec is Codec.ZSTD_DICT and dictionary is None:
            raise CorruptShardError(f"the payload of {row.uid!r} needs a dictionary, and there is none.")
        raw = decode(entry.codec, stored, entry.raw_size, dictionary)
        if content_hash(raw) != entry.content_hash:
            raise CorruptShardError(f"the content of {row.uid!r} is not what was packed.")
        if encoder is None:
            return _Copied(row, bytes(stored), None)
        codec, again = encoder.encode(raw) if _is_worth_trying(row) else (Codec.NONE, raw)
        payload = Payload(entry.content_hash, checksum32(again), codec, len(again), entry.raw_size)
        return _Copied(row, again, payload)

    async def _write_small(self, copied: _Copied) -> None:
        output = await self._output_for(len(copied.stored))
        await output.write(copied.stored)
        output.segment.carry(copied.row, copied.payload)
        self._count(len(copied.stored))

    async def _carry_tombstone(self, row: CatalogRow) -> None:
        before = self._how.drop_tombstones_before
        if before is not None and row.created_at < before:
            self._rewritten.dropped.add(row.entry.file_id)
            return
        output = await self._output_for(0)
        output.segment.carry(row)

    async def _copy_large(self, key: str, row: CatalogRow) -> None:
        """Copy a large file chunk by chunk; the hash of its content is known, and checked, at its end."""
        entry = row.entry
        output = await self._output_for(entry.stored_size)
        compression = self._how.compression
        encoder: LargeEncoder | None = None
        if compression is not None:
            encoder = LargeEncoder(Encoder(compression if _is_worth_trying(row) else Compression("none")))
        digest = hashlib.sha256()
        try:
            start, end = SeekTable.place(entry)

            async def read_table(place: Storage) -> tuple[SeekTable, bytes]:
                encoded = await place.read_range(key, start, end, purpose="index")
                return SeekTable(entry, encoded), encoded

            table, encoded_table = await first_good(self._storage, key, read_table)

            def check(index: int, stored: bytes) -> bytes:
                raw = table.decode_chunk(index, stored)
                digest.update(raw)
                return encoder.add(raw) if encoder else stored

            async def check_at(index: int, place: Storage) -> bytes:
                span = table.span(index * CHUNK_BYTES, index * CHUNK_BYTES + 1)
                stored = await place.read_range(key, entry.offset + span.start, entry.offset + span.end)
                return await anyio.to_thread.run_sync(check, index, stored)

            async with (
                self._storage.stream_range(key, entry.offset, start) as pieces,
                aclosing(stored_chunks(table, entry, pieces)) as chunks,
            ):
                index = 0
                async for stored in chunks:
                    try:
                        checked = await anyio.to_thread.run_sync(check, index, stored)
                    except CorruptShardError as damage:
                        checked = await elsewhere(self._storage, key, damage, partial(check_at, index))
                    await output.write(checked)
                    index += 1
            if digest.digest()[:NAME_BYTES] != entry.content_hash:
                raise CorruptShardError(f"the content of {row.uid!r} is not what was packed.")
        except CorruptShardError as error:
            raise named(error, key) from error
        payload = None
        if encoder is not None:
            encoded_table, payload = encoder.finish()
        await output.write(encoded_table)
        output.segment.carry(row, payload)
        self._count(payload.stored_size if payload else entry.stored_size)

    def _count(self, stored: int) -> None:
        self._rewritten.files += 1
        self._rewritten.bytes_moved += stored

    # ---- writing ------------------------------------------------------------------------------------------------------------

    async def _output_for(self, size: int) -> _Output:
        """Return the new segment that takes the next payload, a fresh one where it does not fit into the last."""
        output = self._output
        if output is not None:
            full = output.segment.size + size > self._how.max_segment_bytes
            if output.segment.rows and (full or output.segment.row_bytes > self._how.memory // 4):
                await self._close_output()
                output = None
        if output is None:
            output = self._output = _Output(self._base, self._dictionary)
            await self._tasks.start(output.run, self._storage)
            await output.write(output.segment.opening)
        return output

    async def _close_output(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            output.segment.supersede(self._complete)
            self._complete = []
            self._rewritten.additions.append(await output.finish())


class _Output:
    """A new segment being written, by a task of its own: a writer's context is entered and left in one task, and nests in nothing else."""

    def __init__(self, base: WholeHead, dictionary: bytes | None) -> None:
        self.segment = SegmentWriter(base.identity, base.tables.generation, dictionary)
        self._name = new_name()
        self._key = base.identity.segment_key(self._name)
        self._send, self._receive = anyio.create_memory_object_stream[bytes](0)
        self._is_complete = anyio.Event()
        self._gathered = Gathered(self._send.send)

    async def run(self, storage: Storage, *, task_status: TaskStatus[None]) -> None:
        """Write what `write` is given until `finish`; leaves no object where it is cancelled."""
        async with self._send, self._receive:
            async with storage.open_writer(self._key) as out:
                task_status.started()
                async for data in self._receive:
                    await out.write(data)
            self._is_complete.set()

    async def write(self, data: bytes) -> None:
        await self._gathered.write(data)

    async def finish(self) -> Addition:
        """Complete the object."""
        pieces, summary = await anyio.to_thread.run_sync(self.segment.finish)
        for piece in pieces:
            await self.write(piece)
        await self._gathered.flush()
        self._send.close()
        await self._is_complete.wait()
        return Addition(self._name, summary)


async def _planned(files: Sequence[CatalogRow]) -> AsyncIterator[Read | CatalogRow]:
    """Plan copying: requests for neighbouring small files, and large files one by one, in the order of their places."""
    wants: list[Want] = []
    for number, row in enumerate(files):
        if not is_large(row.entry.raw_size):
            wants.append(Want(number, row.entry.offset, row.entry.offset + row.entry.stored_size))
            continue
        for read in coalesce(wants, MAX_GAP_BYTES, READ_BYTES):
            yield read
        wants = []
        yield row
    for read in coalesce(wants, MAX_GAP_BYTES, READ_BYTES):
        yield read


def _is_worth_trying(row: CatalogRow) -> bool:
    return worth_trying((row.uid,), row.content_type)
