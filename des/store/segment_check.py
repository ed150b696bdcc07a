"""Verifying one segment: tail, header, dictionary, catalog, payloads; with the head that lists it, or on its own.

What one part would have told is taken from another where that part is damaged: payloads are found through the head where the catalog is not
readable, and through the catalog where there is no head.
"""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from des.errors import CorruptShardError, UnsupportedFormatError
from des.shard.catalog import decode_chunk
from des.shard.chunking import SeekTable
from des.shard.layout import HEADER, NAME_BYTES, Kind
from des.shard.writing import content_hash
from des.store.catalogs import load_segment, read_chunk
from des.store.checking import READ_BYTES, CatalogCheck, Flaw, Sampling, Worklist, check_payloads, entries_in
from des.store.payloads import stored_chunks
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from des.shard.layout import Entry, Identity
    from des.shard.reading import PageRef
    from des.shard.tables import SegmentRef
    from des.storage.protocol import Storage
    from des.store.catalogs import LoadedSegment
    from des.store.heads import WholeHead
    from des.store.planning import Read

READS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Tools:
    """What all checks of a verification share: the storage, its requests at once, and which payloads to read."""

    storage: Storage
    reads: anyio.Semaphore
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Listing:
    """The good head that lists a segment, and its number there."""

    whole: WholeHead
    number: int

    @property
    def ref(self) -> SegmentRef:
        """What the head says of the segment."""
        return self.whole.tables.segments[self.number]


@dataclass(frozen=True, slots=True)
class CheckedSegment:
    """The outcome.

    Attributes:
        flaws: what is wrong.
        names: uids of the files that flaws concern, by file_id, as far as the catalog can be read.
        payloads: how many were checked.
    """

    flaws: Sequence[Flaw]
    names: dict[bytes, str]
    payloads: int


class SegmentCheck:
    """Checks one segment, once."""

    def __init__(self, tools: Tools, identity: Identity, name: bytes, listing: Listing | None) -> None:
        """Prepare.

        Args:
            tools: shared by all checks.
            identity: the shard.
            name: the segment's.
            listing: where a head lists it; None: no good head does, and every row counts as live.
        """
        self._tools = tools
        self._storage = tools.storage
        self._identity = identity
        self._name = name
        self._key = identity.segment_key(name)
        self._listing = listing
        self._flaws: list[Flaw] = []
        self._payloads = 0
        self._loaded: LoadedSegment | None = None
        self._dictionary: bytes | None = None
        self._work = Worklist()

    async def run(self) -> CheckedSegment:
        """Check all of it.

        Raises:
            ObjectNotFoundError: the segment is gone.
            UnsupportedFormatError: it is of a newer format.
            StorageError: the storage is unwell.
        """
        await self._check_tail()
        if await self._bytes(0, HEADER.size) != self._identity.encode(Kind.SEGMENT):
            self._flaws.append(Flaw("its header is damaged, or another object's."))
        await self._check_dictionary()
        if self._loaded is not None:
            await self._check_catalog(self._loaded)
        elif self._listing is not None:
            await anyio.to_thread.run_sync(self._take_entries, self._listing)
        await run_all(self._check_planned, self._work.plan(self._tools.sampling), READS_AT_ONCE)
        names = await self._names_of({flaw.file_id for flaw in self._flaws if flaw.file_id is not None})
        return CheckedSegment(self._flaws, names, self._payloads)

    async def _check_tail(self) -> None:
        try:
            async with self._tools.reads:
                self._loaded = await load_segment(self._storage, self._identity, self._name)
        except UnsupportedFormatError:
            raise
        except CorruptShardError as error:
            self._flaws.append(Flaw(sentence_of(error, self._key)))
            return
        tail, tables = self._loaded.segment.tail, self._loaded.segment.tables
        ref = self._listing.ref if self._listing else None
        if ref is not None and (ref.size, ref.dictionary) != (tail.object_size, tables.dictionary):
            self._flaws.append(Flaw("head and segment say different things about its size or dictionary."))

    async def _check_dictionary(self) -> None:
        place = self._listing.ref.dictionary if self._listing else None
        if self._loaded is not None:
            place = self._loaded.segment.tables.dictionary
        if place is None:
            return
        data = await self._bytes(place.offset, place.offset + place.length)
        if content_hash(data) == place.content_hash:
            self._dictionary = data
        else:
            self._flaws.append(Flaw("its dictionary is damaged."))

    # ---- the catalog --------------------------------------------------------------------------------------------------------

    async def _check_catalog(self, loaded: LoadedSegment) -> None:
        whole, number = (self._listing.whole, self._listing.number) if self._listing else (None, 0)
        check = CatalogCheck(self._identity, loaded.segment, whole, number)
        for refs in _together(loaded.segment.directory.refs()):
            data = await self._bytes(refs[0].offset, refs[-1].end)
            await anyio.to_thread.run_sync(self._take_chunks, check, loaded, refs, data)
        await anyio.to_thread.run_sync(check.finish)
        self._flaws += check.flaws
        self._work = check.work

    def _take_chunks(self, check: CatalogCheck, loaded: LoadedSegment, refs: Sequence[PageRef], data: bytes) -> None:
        view, start = memoryview(data), refs[0].offset
        for ref in refs:
            chunk = view[ref.offset - start : ref.end - start]
            try:
                rows = decode_chunk(chunk, ref, loaded.segment.tables.content_types)
            except UnsupportedFormatError:
                raise
            except CorruptShardError as error:
                self._flaws.append(Flaw(f"its catalog is damaged at bytes {ref.offset:,} to {ref.end:,}: {error}"))
                check.skip()
            else:
                check.take(rows)

    def _take_entries(self, listing: Listing) -> None:
        for entry in entries_in(listing.whole, listing.number):
            if not entry.deleted:
                self._work.add(entry, live=True)
        self._work.sort()

    async def _names_of(self, file_ids: set[bytes]) -> dict[bytes, str]:
        """Look up the uids of flawed files; a file whose row cannot be read has none."""
        names: dict[bytes, str] = {}
        if self._loaded is None:
            return names
        directory = self._loaded.segment.directory
        for position in sorted({found for found in map(directory.find, file_ids) if found is not None}):
            try:
                rows = await read_chunk(self._storage, self._loaded, directory.ref(position))
            except CorruptShardError:
                continue  # reported already
            names.update({row.entry.file_id: row.uid for row in rows if row.uid and row.entry.file_id in file_ids})
        return names

    # ---- payloads -----------------------------------------------------------------------------------------------------------

    async def _check_planned(self, planned: Read | int) -> None:
        async with self._tools.reads:
            if isinstance(planned, int):
                sentence = await self._check_large(self._work.entry(planned))
                flaws = {planned: sentence} if sentence else {}
                self._payloads += 1
            else:
                flaws = await self._check_small(planned)
                self._payloads += len(planned.wants)
        for number, sentence in flaws.items():
            self._flaws.append(Flaw(sentence, self._work.entry(number).file_id, self._work.is_live(number)))

    async def _check_small(self, read: Read) -> dict[int, str]:
        data = await self._storage.read_range(self._key, read.start, read.end) if read.end > read.start else b""
        return await anyio.to_thread.run_sync(check_payloads, self._work, read, data, self._dictionary)

    async def _check_large(self, entry: Entry) -> str | None:
        """Check a large payload chunk by chunk. Returns what is wrong."""
        digest = hashlib.sha256()
        try:
            start, end = SeekTable.place(entry)
            table = SeekTable(entry, await self._storage.read_range(self._key, start, end, purpose="index"))

            def take(index: int, stored: bytes) -> None:
                digest.update(table.decode_chunk(index, stored))

            async with (
                self._storage.stream_range(self._key, entry.offset, start) as pieces,
                aclosing(stored_chunks(table, entry, pieces)) as chunks,
            ):
                index = 0
                async for stored in chunks:
                    await anyio.to_thread.run_sync(take, index, stored)
                    index += 1
        except CorruptShardError as error:
            return str(error)
        return None if digest.digest()[:NAME_BYTES] == entry.content_hash else "its content is not what was packed."

    async def _bytes(self, start: int, end: int) -> bytes:
        """Read a part that is not a payload; what came with the tail is not read twice."""
        if self._loaded is not None:
            base = self._loaded.segment.tail.object_size - len(self._loaded.suffix)
            if start >= base:
                return self._loaded.suffix[start - base : end - base]
        async with self._tools.reads:
            return await self._storage.read_range(self._key, start, end, purpose="index")


def sentence_of(error: CorruptShardError, key: str) -> str:
    """Return what an error says, without the key it begins with."""
    return str(error).removeprefix(f"{key}: ").removeprefix(f"{key} ")


def _together(refs: Sequence[PageRef]) -> Iterator[Sequence[PageRef]]:
    """Group neighbouring chunks into requests."""
    group: list[PageRef] = []
    for ref in refs:
        if group and ref.end - group[0].offset > READ_BYTES:
            yield group
            group = []
        group.append(ref)
    if group:
        yield group
