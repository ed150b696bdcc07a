"""Merging finished segments into a head: pure, by splicing 64-byte entries, so that a large head costs copies and not objects."""

from __future__ import annotations

import struct
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from des.errors import CorruptShardError
from des.shard.layout import ENTRY_BYTES, MAX_CONTENT_TYPES, MAX_SEGMENTS, Buffer, Entry, decode_entry
from des.shard.tables import HeadTables, SegmentRef, check_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.shard.writing import SegmentSummary

_SEGMENT_AND_TYPE = struct.Struct("<HH")
_AT = 36  # where those two stand in an entry


@dataclass(frozen=True, slots=True)
class Addition:
    """A segment that joins a head.

    Attributes:
        name: 16 random bytes.
        summary: what it holds.
        left_out: file_ids of it that the head shall not take.
    """

    name: bytes
    summary: SegmentSummary
    left_out: frozenset[bytes] = frozenset()


def merge(
    tables: HeadTables, entries: Buffer, additions: Sequence[Addition], committed_at: int, *, leaving: int = 0
) -> tuple[HeadTables, bytes]:
    """Add segments to a head; an added entry takes the place of one with the same file_id.

    Args:
        tables: of the head as it is.
        entries: all its encoded entries, sorted.
        additions: the segments; a file_id stands in at most one of them.
        committed_at: microseconds since 1970.
        leaving: how many segments are about to leave the head, so that they do not count.

    Returns:
        The new tables, of the same generation (see `HeadTables.committed`), and all entries.

    Raises:
        ShardFullError: more segments or content types than a shard takes.
        CorruptShardError: an entry that is replaced contradicts the head's tables.
    """
    check_limit(len(tables.segments) + len(additions) - leaving, MAX_SEGMENTS, "segments")
    types = {text: number for number, text in enumerate(tables.content_types, start=1)}
    incoming: list[bytes] = []
    for number, addition in enumerate(additions, start=len(tables.segments)):
        mapping = [0, *(types.setdefault(text, len(types) + 1) for text in addition.summary.content_types)]
        check_limit(len(types), MAX_CONTENT_TYPES, "content types")
        patches = [_SEGMENT_AND_TYPE.pack(number, new) for new in mapping]
        view = addition.summary.entries
        for at in range(0, len(view), ENTRY_BYTES):
            if view[at : at + 16] not in addition.left_out:
                _, old_type = _SEGMENT_AND_TYPE.unpack_from(view, at + _AT)
                incoming.append(view[at : at + _AT] + patches[old_type] + view[at + _AT + 4 : at + ENTRY_BYTES])
    incoming.sort()
    refs = [
        *tables.segments,
        *(SegmentRef(a.name, a.summary.size, committed_at, 0, 0, a.summary.dictionary) for a in additions),
    ]
    totals = _Totals(tables, refs)
    merged = _splice(memoryview(entries), incoming, totals)
    return totals.apply(replace(tables, content_types=tuple(types))), merged


def _splice(existing: memoryview, incoming: Sequence[bytes], totals: _Totals) -> bytes:
    count = len(existing) // ENTRY_BYTES
    parts: list[Buffer] = []
    position = 0
    for encoded in incoming:
        key = encoded[:16]
        found = bisect_left(
            range(count), key, lo=position, key=lambda i: bytes(existing[i * ENTRY_BYTES : i * ENTRY_BYTES + 16])
        )
        parts.append(existing[position * ENTRY_BYTES : found * ENTRY_BYTES])
        position = found
        if found < count and existing[found * ENTRY_BYTES : found * ENTRY_BYTES + 16] == key:
            totals.remove(decode_entry(existing, found * ENTRY_BYTES))
            position = found + 1
        parts.append(encoded)
        totals.add(decode_entry(encoded))
    parts.append(existing[position * ENTRY_BYTES :])
    return b"".join(parts)


class _Totals:
    """The counters of a head while entries come and go."""

    def __init__(self, tables: HeadTables, refs: Sequence[SegmentRef]) -> None:
        self._refs = refs
        self._entries = [ref.entries for ref in refs]
        self._stored = [ref.stored_bytes for ref in refs]
        self._files, self._deleted = tables.files, tables.deleted
        self._raw_bytes, self._stored_bytes = tables.raw_bytes, tables.stored_bytes

    def add(self, entry: Entry) -> None:
        self._count(entry, 1)

    def remove(self, entry: Entry) -> None:
        self._count(entry, -1)

    def _count(self, entry: Entry, sign: int) -> None:
        if entry.segment >= len(self._refs):
            raise CorruptShardError("an entry points outside the head's tables.")
        self._entries[entry.segment] += sign
        self._stored[entry.segment] += sign * entry.stored_size
        if entry.deleted:
            self._deleted += sign
        else:
            self._files += sign
            self._raw_bytes += sign * entry.raw_size
            self._stored_bytes += sign * entry.stored_size

    def apply(self, tables: HeadTables) -> HeadTables:
        totals = (self._files, self._deleted, self._raw_bytes, self._stored_bytes, *self._entries, *self._stored)
        if min(totals) < 0:
            raise CorruptShardError("the head's counters contradict its entries.")
        return replace(
            tables,
            files=self._files,
            deleted=self._deleted,
            raw_bytes=self._raw_bytes,
            stored_bytes=self._stored_bytes,
            segments=tuple(
                replace(ref, entries=entries, stored_bytes=stored)
                for ref, entries, stored in zip(self._refs, self._entries, self._stored, strict=True)
            ),
        )
