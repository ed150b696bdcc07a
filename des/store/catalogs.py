"""Reading what segments hold besides payloads: catalogs (uid, metadata, full time), for listing, user metadata and verification; and dictionaries.

What is damaged in one place is read in another; see `places`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from des.errors import CorruptShardError
from des.shard.catalog import CatalogRow, decode_chunk
from des.shard.layout import TAIL_READ_BYTES, Identity
from des.shard.reading import PageRef, Segment, parse_tail, tail_length
from des.shard.writing import content_hash
from des.store.cache import ByteLRU, SingleFlight
from des.store.heads import named
from des.store.places import first_good

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from des.shard.tables import DictionaryPlace
    from des.storage.protocol import Storage


# What decoded objects take in memory beside their bytes, about.
_SEGMENT_BYTES = 2_500
_NAME_BYTES = 160
_ROW_BYTES = 900


@dataclass(frozen=True, slots=True)
class LoadedSegment:
    """A segment's parsed tail, and the object's last bytes that came with it."""

    key: str
    segment: Segment
    suffix: bytes

    @property
    def weight(self) -> int:
        """Bytes it takes in memory, about."""
        tables = self.segment.tables
        return _SEGMENT_BYTES + len(self.suffix) + _NAME_BYTES * (len(tables.content_types) + len(tables.superseded))


async def load_segment(storage: Storage, identity: Identity, name: bytes) -> LoadedSegment:
    """Read and check the tail of a segment.

    Raises:
        ObjectNotFoundError: there is no such segment.
        CorruptShardError: it is damaged, or another shard's.
        StorageError: the storage is unwell.
    """
    key = identity.segment_key(name)
    return await first_good(storage, key, partial(_load_segment, identity, key))


async def _load_segment(identity: Identity, key: str, storage: Storage) -> LoadedSegment:
    suffix = await storage.read_suffix(key, TAIL_READ_BYTES, purpose="index")
    if suffix is None:
        raise CorruptShardError(f"{key}: the storage gave no answer to a plain read.")
    data, size = suffix.data, suffix.total_size
    try:
        length = tail_length(data, size)
        if length > len(data):
            rest = await storage.read_range(key, size - length, size - len(data), purpose="index")
            data = rest + data
        return LoadedSegment(key, Segment(parse_tail(data, size), identity), data)
    except CorruptShardError as error:
        raise named(error, key) from error


async def read_chunk(storage: Storage, loaded: LoadedSegment, ref: PageRef) -> list[CatalogRow]:
    """Read, check and decode one catalog chunk.

    Raises:
        ObjectNotFoundError: the segment is gone.
        CorruptShardError: the chunk is damaged.
        StorageError: the storage is unwell.
    """
    start = ref.offset - (loaded.segment.tail.object_size - len(loaded.suffix))

    async def read(place: Storage) -> list[CatalogRow]:
        if start >= 0 and place is storage:
            data = loaded.suffix[start : start + ref.length]
        else:
            data = await place.read_range(loaded.key, ref.offset, ref.end, purpose="index")
        try:
            return decode_chunk(data, ref, loaded.segment.tables.content_types)
        except CorruptShardError as error:
            raise named(error, loaded.key) from error

    return await first_good(storage, loaded.key, read)


async def read_rows(storage: Storage, loaded: LoadedSegment) -> AsyncIterator[list[CatalogRow]]:
    """Read a whole catalog, chunk by chunk, in file_id order. Errors as for `read_chunk`."""
    for ref in loaded.segment.directory.refs():
        yield await read_chunk(storage, loaded, ref)


async def read_dictionary(storage: Storage, key: str, place: DictionaryPlace | None) -> bytes:
    """Read and check a segment's dictionary.

    Args:
        storage: the store's place.
        key: the segment.
        place: where its dictionary lies, as its head says; None: nowhere, which is damage where one is needed.

    Raises:
        ObjectNotFoundError: the segment is gone.
        CorruptShardError: the dictionary is damaged or missing.
        StorageError: the storage is unwell.
    """
    if place is None:
        raise CorruptShardError(f"{key}: its dictionary is missing.")

    async def read(storage: Storage) -> bytes:
        data = await storage.read_range(key, place.offset, place.offset + place.length, purpose="index")
        if content_hash(data) != place.content_hash:
            raise CorruptShardError(f"{key}: its dictionary is damaged.")
        return data

    return await first_good(storage, key, read)


class CatalogReader:
    """Finds rows in catalogs, with tails and chunks kept in a cache, and each read once however many tasks want it."""

    def __init__(self, storage: Storage, cache: ByteLRU) -> None:
        """Read from `storage`, keep in `cache`."""
        self._storage = storage
        self._cache = cache
        self._segment_flight: SingleFlight[LoadedSegment] = SingleFlight()
        self._chunk_flight: SingleFlight[list[CatalogRow]] = SingleFlight()

    async def find(self, identity: Identity, name: bytes, file_ids: Iterable[bytes]) -> dict[bytes, CatalogRow]:
        """Return the rows of some files in one segment; a file that has none is missing from the answer.

        Raises:
            ObjectNotFoundError: the segment is gone.
            CorruptShardError: its catalog is damaged.
            StorageError: the storage is unwell.
        """
        loaded = await self._segment(identity, name)
        wanted: dict[int, set[bytes]] = {}
        for file_id in file_ids:
            position = loaded.segment.directory.find(file_id)
            if position is not None:
                wanted.setdefault(position, set()).add(file_id)
        found: dict[bytes, CatalogRow] = {}
        for position, ids in sorted(wanted.items()):
            for row in await self._chunk(loaded, loaded.segment.directory.ref(position)):
                if row.entry.file_id in ids:
                    found[row.entry.file_id] = row
        return found

    async def _segment(self, identity: Identity, name: bytes) -> LoadedSegment:
        key = ("segment", name)
        cached = self._cache.get(key, LoadedSegment)
        if cached is None:
            cached = await self._segment_flight.run(key, partial(load_segment, self._storage, identity, name))
            self._cache.put(key, cached, cached.weight)
        return cached

    async def _chunk(self, loaded: LoadedSegment, ref: PageRef) -> list[CatalogRow]:
        key = ("chunk", loaded.key, ref.offset)
        cached: list[CatalogRow] | None = self._cache.get(key, list)
        if cached is None:
            cached = await self._chunk_flight.run(key, partial(read_chunk, self._storage, loaded, ref))
            self._cache.put(key, cached, sum(_ROW_BYTES + 2 * len(row.uid) + len(row.metadata) for row in cached))
        return cached
