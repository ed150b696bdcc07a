"""Merging finished segments into a head: pure, by splicing 64-byte entries, so that a large head costs copies and not objects."""

from __future__ import annotations

import struct
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from des.errors import CorruptShardError
from des.shard.layout import ENTRY_BYTES, MAX_CONTENT_TYPES, MAX_SEGMENTS, Buffer, Entry, Flag, decode_entry
from des.shard.tables import HeadTables, SegmentRef, check_limit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from des.shard.writing import SegmentSummary

_DELETED = int(Flag.DELETED)
_SEGMENT_AT, _CONTENT_TYPE_AT = 36, 38
_COUNTED = struct.Struct("<36xH3xB6xIHIH4x")  # segment, flags, and stored and raw size as low 32 and high 16 bits


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
        incoming += _renumbered(addition, number, mapping)
    if len(additions) > 1:
        incoming.sort()
    refs = [
        *tables.segments,
        *(SegmentRef(a.name, a.summary.size, committed_at, 0, 0, a.summary.dictionary) for a in additions),
    ]
    totals = _Totals(tables, refs)
    totals.add_all(incoming)
    merged = _splice(memoryview(entries), incoming, totals) if entries else b"".join(incoming)
    return totals.apply(replace(tables, content_types=tuple(types))), merged


def _renumbered(addition: Addition, number: int, mapping: Sequence[int]) -> list[bytes]:
    """Return the entries of an addition as the head with this segment number and these content type numbers has them."""
    patched = bytearray(addition.summary.entries)
    lows, highs = (patched[_CONTENT_TYPE_AT + byte :: ENTRY_BYTES] for byte in (0, 1))
    types = [mapping[high << 8 | low] for low, high in zip(lows, highs, strict=True)]
    for at, numbers in ((_SEGMENT_AT, [number] * len(types)), (_CONTENT_TYPE_AT, types)):
        patched[at::ENTRY_BYTES] = bytes([each & 0xFF for each in numbers])
        patched[at + 1 :: ENTRY_BYTES] = bytes([each >> 8 for each in numbers])
    renumbered = bytes(patched)
    entries = [renumbered[at : at + ENTRY_BYTES] for at in range(0, len(renumbered), ENTRY_BYTES)]
    if not addition.left_out:
        return entries
    return [entry for entry in entries if entry[:16] not in addition.left_out]


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

    def add_all(self, entries: Iterable[bytes]) -> None:
        """Count entries of our own making, and nothing else of them: this is done for every file that is packed."""
        for segment, flags, stored_low, stored_high, raw_low, raw_high in map(_COUNTED.unpack, entries):
            stored = stored_high << 32 | stored_low
            self._entries[segment] += 1
            self._stored[segment] += stored
            if flags & _DELETED:
                self._deleted += 1
            else:
                self._files += 1
                self._raw_bytes += raw_high << 32 | raw_low
                self._stored_bytes += stored

    def remove(self, entry: Entry) -> None:
        """Count an entry out that is replaced."""
        if entry.segment >= len(self._refs):
            raise CorruptShardError("an entry points outside the head's tables.")
        self._entries[entry.segment] -= 1
        self._stored[entry.segment] -= entry.stored_size
        if entry.deleted:
            self._deleted -= 1
        else:
            self._files -= 1
            self._raw_bytes -= entry.raw_size
            self._stored_bytes -= entry.stored_size

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
