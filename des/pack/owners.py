"""Whose the files of a head are: a file_id is half of SHA-256(uid), and before a file counts as known its whole uid is compared.

Uids stand in the catalogs. A manifest comes in any order and a catalog in that of the file_ids, so each chunk of a catalog is read once, when a file in
it is first asked for, and of each uid in it a part of the other half of its SHA-256 is kept: 8 bytes beside the 64 of its entry.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from des.errors import ObjectNotFoundError
from des.shard.layout import ENTRY_BYTES, KEY, decode_entry
from des.store.catalogs import LoadedSegment, load_segment, read_chunk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from des.shard.layout import Entry
    from des.storage.protocol import Storage
    from des.store.cache import ByteLRU
    from des.store.heads import WholeHead

_MARK_BYTES = 8
_UNKNOWN = bytes(_MARK_BYTES)


def _mark_of(uid: str) -> bytes:
    return hashlib.sha256(uid.encode()).digest()[-_MARK_BYTES:]


class Owner(Enum):
    """Whether a live entry is that of a uid."""

    SAME = "same"
    OTHER = "other"  # another uid has the same file_id
    GONE = "gone"  # the segment is not there any more
    UNLISTED = "unlisted"  # the segment does not list the file: damage


class Owners:
    """The owners of one head's entries."""

    def __init__(self, storage: Storage, cache: ByteLRU, base: WholeHead) -> None:
        """Know nothing yet.

        Args:
            storage: the store's place.
            cache: keeps the tails of segments for a while.
            base: the head.
        """
        self._storage = storage
        self._cache = cache
        self._base = base
        self._marks = bytearray()
        self._gone: set[int] = set()

    async def learn(self, entries: Iterable[Entry]) -> None:
        """Read what is not known yet of some live entries of the head.

        Raises:
            CorruptShardError: a catalog is damaged.
            StorageError: the storage is unwell.
        """
        if not self._marks:
            self._marks = bytearray(len(self._base.entries) // ENTRY_BYTES * _MARK_BYTES)
        unknown: dict[int, set[bytes]] = {}
        for entry in entries:
            if entry.segment not in self._gone and self._mark(entry.file_id) == _UNKNOWN:
                unknown.setdefault(entry.segment, set()).add(entry.file_id)
        for number, file_ids in sorted(unknown.items()):
            try:
                await self._learn(number, file_ids)
            except ObjectNotFoundError:
                self._gone.add(number)

    def of(self, entry: Entry, uid: str) -> Owner:
        """Tell whether a live entry that was learnt of is that of a uid."""
        if entry.segment in self._gone:
            return Owner.GONE
        mark = self._mark(entry.file_id)
        if mark == _UNKNOWN:
            return Owner.UNLISTED
        return Owner.SAME if mark == _mark_of(uid) else Owner.OTHER

    async def _learn(self, number: int, file_ids: Iterable[bytes]) -> None:
        loaded = await self._load(self._base.tables.segments[number].name)
        directory = loaded.segment.directory
        for position in sorted({at for file_id in file_ids if (at := directory.find(file_id)) is not None}):
            for row in await read_chunk(self._storage, loaded, directory.ref(position)):
                at = self._position(row.entry.file_id)
                if at is not None and self._segment(at) == number and row.uid:
                    self._marks[at * _MARK_BYTES : (at + 1) * _MARK_BYTES] = _mark_of(row.uid)

    def _mark(self, file_id: bytes) -> bytes:
        at = self._position(file_id)
        return _UNKNOWN if at is None else bytes(self._marks[at * _MARK_BYTES : (at + 1) * _MARK_BYTES])

    def _position(self, file_id: bytes) -> int | None:
        entries = self._base.entries
        starts = range(0, len(entries), ENTRY_BYTES)
        at = bisect_left(starts, (file_id,), key=partial(KEY.unpack_from, entries))
        return at if at < len(starts) and entries[starts[at] : starts[at] + KEY.size] == file_id else None

    def _segment(self, at: int) -> int:
        return decode_entry(self._base.entries, at * ENTRY_BYTES).segment

    async def _load(self, name: bytes) -> LoadedSegment:
        cached = self._cache.get(name, LoadedSegment)
        if cached is None:
            cached = await load_segment(self._storage, self._base.identity, name)
            self._cache.put(name, cached, len(cached.suffix))
        return cached
