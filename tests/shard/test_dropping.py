"""Taking entries and segments out of a head: what is left is what decoding, filtering and encoding gives."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from des.shard.dropping import drop_entries, drop_segments
from des.shard.layout import ENTRY_BYTES, Codec, Entry, Flag, decode_entry
from des.shard.tables import Condemned, HeadTables, SegmentRef

TYPES = ("text/plain", "text/html", "image/png")


@st.composite
def heads(draw: st.DrawFn) -> tuple[HeadTables, list[Entry]]:
    """Draw a head: entries in random segments with random content types, and tables that count them right."""
    count = draw(st.integers(1, 5))
    numbers = draw(st.lists(st.integers(0, 255), unique=True, max_size=12))
    entries = []
    for number in sorted(numbers):
        size = draw(st.integers(0, 1_000))
        deleted = draw(st.booleans())
        entries.append(
            Entry(
                bytes([number]) * 16,
                bytes(16),
                7,
                draw(st.integers(0, count - 1)),
                0 if deleted else draw(st.integers(0, len(TYPES))),
                Codec.NONE,
                Flag.DELETED if deleted else 0,
                0 if deleted else 128,
                0 if deleted else size,
                0 if deleted else size,
                5,
            )
        )
    return tables_of(entries, tuple(SegmentRef(bytes([n]) * 16, 5_000, n, 0, 0) for n in range(count)), TYPES), entries


def tables_of(
    entries: list[Entry], refs: tuple[SegmentRef, ...], types: tuple[str, ...], condemned: tuple[Condemned, ...] = ()
) -> HeadTables:
    counts = Counter(entry.segment for entry in entries)
    live = [entry for entry in entries if not entry.deleted]
    return HeadTables(
        9,
        bytes(16),
        files=len(live),
        deleted=len(entries) - len(live),
        raw_bytes=sum(entry.raw_size for entry in live),
        stored_bytes=sum(entry.stored_size for entry in live),
        segments=tuple(
            SegmentRef(
                ref.name,
                ref.size,
                ref.committed_at,
                counts[number],
                sum(entry.stored_size for entry in entries if entry.segment == number),
            )
            for number, ref in enumerate(refs)
        ),
        content_types=types,
        condemned=condemned,
    )


def encoded(entries: list[Entry]) -> bytes:
    return b"".join(entry.encode() for entry in entries)


def decoded(data: bytes) -> list[Entry]:
    return [decode_entry(data, at) for at in range(0, len(data), ENTRY_BYTES)]


@given(heads(), st.sets(st.integers(0, 255).map(lambda number: bytes([number]) * 16)))
def test_entries(head: tuple[HeadTables, list[Entry]], going: set[bytes]) -> None:
    tables, entries = head
    going |= {entry.file_id for entry in entries[::2]}
    dropped, data = drop_entries(tables, encoded(entries), going)
    left = [entry for entry in entries if entry.file_id not in going]
    assert decoded(data) == left
    assert dropped == tables_of(left, tables.segments, TYPES)


@given(heads(), st.sets(st.integers(0, 6).map(lambda number: bytes([number]) * 16)))
def test_segments(head: tuple[HeadTables, list[Entry]], names: set[bytes]) -> None:
    tables, entries = head
    dropped, data = drop_segments(tables, encoded(entries), names, since=77)
    used = {entry.segment for entry in entries}
    going = [ref.name for number, ref in enumerate(tables.segments) if ref.name in names and number not in used]
    assert [item.name for item in dropped.condemned] == going
    assert {item.since for item in dropped.condemned} <= {77}
    assert [ref.name for ref in dropped.segments] == [ref.name for ref in tables.segments if ref.name not in going]

    def told(tables: HeadTables, entry: Entry) -> tuple[object, ...]:
        content_type = tables.content_types[entry.content_type - 1] if entry.content_type else None
        return tables.segments[entry.segment].name, content_type, entry._replace(segment=0, content_type=0)

    left = decoded(data)
    assert [told(dropped, entry) for entry in left] == [told(tables, entry) for entry in entries]
    assert {number for entry in left if (number := entry.content_type)} == set(range(1, len(dropped.content_types) + 1))
    assert dropped == tables_of(left, dropped.segments, dropped.content_types, dropped.condemned)
