"""The tables of a tail: what a head says of its shard, and a segment of itself. Both directions of the bytes in `layout`."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from des.errors import CorruptShardError, ShardFullError
from des.shard.layout import (
    COMMIT_LOG_LENGTH,
    MAX_CONTENT_TYPE_BYTES,
    MAX_CONTENT_TYPES,
    MAX_DICTIONARY_BYTES,
    MAX_FILES,
    MAX_LIST_ITEMS,
    MAX_SEGMENTS,
    MAX_U48,
    Buffer,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEAD = struct.Struct("<Q16sIIQQ")
_SEGMENT_REF = struct.Struct("<16sQqIQ")
_DICTIONARY_REF = struct.Struct("<HQI16s")
_CONDEMNED = struct.Struct("<16sq")
_SEGMENT = struct.Struct("<QIIQ")
_DICTIONARY = struct.Struct("<QI16s")
_NAME = struct.Struct("<16s")


@dataclass(frozen=True, slots=True)
class DictionaryPlace:
    """Where a segment keeps its zstd dictionary: bytes, and SHA-256[:16] of them."""

    offset: int
    length: int
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A segment as its head knows it.

    Attributes:
        name: 16 random bytes.
        size: bytes of the object.
        committed_at: microseconds since 1970.
        entries: head entries, tombstones included, that point into it.
        stored_bytes: stored bytes of those.
        dictionary: where its dictionary is, if it has one.
    """

    name: bytes
    size: int
    committed_at: int
    entries: int
    stored_bytes: int
    dictionary: DictionaryPlace | None = None


@dataclass(frozen=True, slots=True)
class History:
    """Where a head stands: of two heads of one lineage, the one of the higher generation is the newer."""

    lineage: bytes
    generation: int

    @classmethod
    def of(cls, tables: Buffer) -> History:
        """Return what checked tables of a head begin with.

        Raises:
            CorruptShardError: they are too short.
        """
        if len(tables) < _HEAD.size:
            raise CorruptShardError("the head's tables are cut short.")
        generation, lineage = _HEAD.unpack_from(tables)[:2]
        return cls(lineage, generation)


@dataclass(frozen=True, slots=True)
class Condemned:
    """A segment that is to be deleted, and since when (microseconds since 1970)."""

    name: bytes
    since: int


@dataclass(frozen=True, slots=True)
class HeadTables:
    """All that a head says besides its entries.

    Attributes:
        generation: 1 for a new head, one more at every commit.
        lineage: 16 random bytes, new for a new or repaired head.
        files: live files.
        deleted: tombstones.
        raw_bytes: of the live files.
        stored_bytes: of the live files.
        segments: entries refer to them by position.
        content_types: entries refer to them by 1 + position.
        page_objects: names of objects that hold pages; none in v1.
        commit_log: ids of the last 64 commits, newest last.
        condemned: segments about to be deleted.
    """

    generation: int
    lineage: bytes
    files: int = 0
    deleted: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    segments: tuple[SegmentRef, ...] = ()
    content_types: tuple[str, ...] = ()
    page_objects: tuple[bytes, ...] = ()
    commit_log: tuple[bytes, ...] = ()
    condemned: tuple[Condemned, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes of the tables.

        Raises:
            ShardFullError: more files, segments or content types than a shard takes.
        """
        check_limit(self.files + self.deleted, MAX_FILES, "files")
        check_limit(len(self.segments), MAX_SEGMENTS, "segments")
        check_limit(len(self.condemned), MAX_LIST_ITEMS, "condemned segments")
        counters = (self.files, self.deleted, self.raw_bytes, self.stored_bytes)
        dictionaries = [(n, ref.dictionary) for n, ref in enumerate(self.segments) if ref.dictionary]
        return b"".join(
            [
                _HEAD.pack(self.generation, self.lineage, *counters),
                _count(self.segments),
                *(
                    _SEGMENT_REF.pack(ref.name, ref.size, ref.committed_at, ref.entries, ref.stored_bytes)
                    for ref in self.segments
                ),
                _count(dictionaries),
                *(_DICTIONARY_REF.pack(n, d.offset, d.length, d.content_hash) for n, d in dictionaries),
                encode_content_types(self.content_types),
                _count(self.page_objects),
                *self.page_objects,
                bytes([len(self.commit_log)]),
                *self.commit_log,
                _count(self.condemned),
                *(_CONDEMNED.pack(c.name, c.since) for c in self.condemned),
            ]
        )

    def committed(self, commit_id: bytes) -> HeadTables:
        """Return the tables one commit later: the next generation, with the commit's id as the newest of the log."""
        log = (*self.commit_log, commit_id)[-COMMIT_LOG_LENGTH:]
        return replace(self, generation=self.generation + 1, commit_log=log)

    @classmethod
    def decode(cls, data: Buffer) -> HeadTables:
        """Decode the tables.

        Raises:
            CorruptShardError: they do not fill their bytes exactly, or contradict themselves.
        """
        reader = _Reader(data)
        generation, lineage, files, deleted, raw_bytes, stored_bytes = reader.one(_HEAD)
        if files + deleted > MAX_FILES:
            raise CorruptShardError("a head has an impossible number of files.")
        refs = reader.many(_SEGMENT_REF, reader.count(2, MAX_SEGMENTS))
        if any(size > MAX_U48 for _, size, *_ in refs):
            raise CorruptShardError("a segment has an impossible size.")
        places = {}
        for number, offset, length, content_hash in reader.many(_DICTIONARY_REF, reader.count(2, MAX_SEGMENTS)):
            if number >= len(refs) or length > MAX_DICTIONARY_BYTES or offset + length > refs[number][1]:
                raise CorruptShardError("a dictionary lies outside its segment.")
            places[number] = DictionaryPlace(offset, length, content_hash)
        tables = cls(
            generation=generation,
            lineage=lineage,
            files=files,
            deleted=deleted,
            raw_bytes=raw_bytes,
            stored_bytes=stored_bytes,
            segments=tuple(
                SegmentRef(name, size, at, entries, stored, places.get(number))
                for number, (name, size, at, entries, stored) in enumerate(refs)
            ),
            content_types=reader.content_types(),
            page_objects=tuple(name for (name,) in reader.many(_NAME, reader.count(2, MAX_LIST_ITEMS))),
            commit_log=tuple(name for (name,) in reader.many(_NAME, reader.count(1, COMMIT_LOG_LENGTH))),
            condemned=tuple(Condemned(*item) for item in reader.many(_CONDEMNED, reader.count(2, MAX_LIST_ITEMS))),
        )
        reader.finish()
        return tables


@dataclass(frozen=True, slots=True)
class SegmentTables:
    """All that a segment says of itself besides its rows.

    Attributes:
        generation: of the head its rows were decided on.
        rows: catalog rows, tombstones included.
        tombstones: rows that are tombstones.
        data_end: where the data ends and the catalog begins.
        dictionary: where its dictionary is, if it has one.
        content_types: rows refer to them by 1 + position.
        superseded: names of the segments it takes the place of.
    """

    generation: int
    rows: int
    tombstones: int
    data_end: int
    dictionary: DictionaryPlace | None = None
    content_types: tuple[str, ...] = ()
    superseded: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes of the tables.

        Raises:
            ShardFullError: more rows or content types than a shard takes.
        """
        check_limit(self.rows, MAX_FILES, "files")
        check_limit(len(self.superseded), MAX_SEGMENTS, "superseded segments")
        place = self.dictionary
        return b"".join(
            [
                _SEGMENT.pack(self.generation, self.rows, self.tombstones, self.data_end),
                b"\0" if place is None else b"\1" + _DICTIONARY.pack(place.offset, place.length, place.content_hash),
                encode_content_types(self.content_types),
                _count(self.superseded),
                *self.superseded,
            ]
        )

    @classmethod
    def decode(cls, data: Buffer) -> SegmentTables:
        """Decode the tables.

        Raises:
            CorruptShardError: they do not fill their bytes exactly, or contradict themselves.
        """
        reader = _Reader(data)
        generation, rows, tombstones, data_end = reader.one(_SEGMENT)
        place = None
        if reader.count(1, 1):
            place = DictionaryPlace(*reader.one(_DICTIONARY))
            if place.length > MAX_DICTIONARY_BYTES or place.offset + place.length > data_end:
                raise CorruptShardError("a segment's dictionary lies outside its data.")
        types = reader.content_types()
        superseded = tuple(name for (name,) in reader.many(_NAME, reader.count(2, MAX_SEGMENTS)))
        reader.finish()
        if tombstones > rows or rows > MAX_FILES:
            raise CorruptShardError("a segment has an impossible number of rows.")
        return cls(generation, rows, tombstones, data_end, place, types, superseded)


def encode_content_types(types: Sequence[str]) -> bytes:
    """Return the bytes of a content type table.

    Raises:
        ShardFullError: more types than a shard takes.
    """
    check_limit(len(types), MAX_CONTENT_TYPES, "content types")
    encoded = [text.encode("utf-8") for text in types]
    if any(len(text) > MAX_CONTENT_TYPE_BYTES for text in encoded):
        raise ShardFullError(f"a content type is longer than {MAX_CONTENT_TYPE_BYTES} bytes.")
    return _count(types) + b"".join(bytes([len(text)]) + text for text in encoded)


def check_limit(count: int, limit: int, what: str) -> None:
    """Refuse more of something than a shard takes.

    Raises:
        ShardFullError: `count` is above `limit`.
    """
    if count > limit:
        raise ShardFullError(
            f"a shard takes at most {limit:,} {what}; use more n_bits for coming days, or `des compact`."
        )


def _count(items: Sequence[object]) -> bytes:
    return len(items).to_bytes(2, "little")


class _Reader:
    """Reads fields one after another; every count is checked against the bytes that are there before anything is made of it."""

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data)
        self._position = 0

    def one(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self._take(layout.size))

    def many(self, layout: struct.Struct, count: int) -> list[tuple[Any, ...]]:
        return list(layout.iter_unpack(self._take(layout.size * count)))

    def count(self, width: int, limit: int) -> int:
        value = int.from_bytes(self._take(width), "little")
        if value > limit:
            raise CorruptShardError("a table has more items than the format allows.")
        return value

    def content_types(self) -> tuple[str, ...]:
        try:
            types = tuple(
                str(self._take(self.count(1, MAX_CONTENT_TYPE_BYTES)), "utf-8")
                for _ in range(self.count(2, MAX_CONTENT_TYPES))
            )
        except UnicodeDecodeError as error:
            raise CorruptShardError("a content type is not UTF-8.") from error
        if len(set(types)) != len(types):
            raise CorruptShardError("a content type stands twice in its table.")
        return types

    def finish(self) -> None:
        if self._position != len(self._view):
            raise CorruptShardError("a table is longer than its items.")

    def _take(self, length: int) -> memoryview:
        end = self._position + length
        if end > len(self._view):
            raise CorruptShardError("a table is cut short.")
        taken = self._view[self._position : end]
        self._position = end
        return taken
