"""What has to be read before a payload can be decoded: the dictionary of its segment, the seek table of a large one.

Both are checked, kept in the read cache, and fetched once however many tasks want the same. What is damaged in one place is read in another, see `places`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from des.errors import CorruptShardError
from des.shard.chunking import SeekTable
from des.store.cache import SingleFlight
from des.store.catalogs import read_dictionary
from des.store.heads import named
from des.store.places import first_good

if TYPE_CHECKING:
    from des.storage.protocol import Storage
    from des.store.cache import ByteLRU
    from des.store.found import FoundFile

# What a seek table takes in memory: its stored bytes so many times, and a little for the objects.
_TABLE_FACTOR, _TABLE_BYTES = 3, 500


class Prerequisites:
    """Reads them for one store. Errors are the storage's, and `CorruptShardError`."""

    def __init__(self, storage: Storage, cache: ByteLRU) -> None:
        """Read from `storage`, and keep what was read in `cache`."""
        self._storage = storage
        self._cache = cache
        self._dictionary_flight: SingleFlight[bytes] = SingleFlight()
        self._table_flight: SingleFlight[SeekTable] = SingleFlight()

    async def dictionary(self, found: FoundFile) -> bytes:
        """Return the dictionary of the segment that holds a file."""
        place = found.segment.dictionary
        key = ("dictionary", place.content_hash if place else found.segment_key)
        dictionary = self._cache.get(key, bytes)
        if dictionary is None:
            read = partial(read_dictionary, self._storage, found.segment_key, place)
            dictionary = await self._dictionary_flight.run(key, read)
            self._cache.put(key, dictionary, len(dictionary))
        return dictionary

    async def seek_table(self, found: FoundFile) -> SeekTable:
        """Return the seek table of a large file."""
        start, end = SeekTable.place(found.entry)
        key = ("seek table", found.segment.name, start)
        table = self._cache.get(key, SeekTable)
        if table is None:

            async def read(place: Storage) -> SeekTable:
                data = await place.read_range(found.segment_key, start, end, purpose="index")
                try:
                    return SeekTable(found.entry, data)
                except CorruptShardError as error:
                    raise named(error, found.segment_key) from error

            table = await self._table_flight.run(key, partial(first_good, self._storage, found.segment_key, read))
            self._cache.put(key, table, _TABLE_FACTOR * (end - start) + _TABLE_BYTES)
        return table
