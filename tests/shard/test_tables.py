from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.errors import CorruptShardError, ShardFullError
from des.shard.layout import (
    MAX_CONTENT_TYPES,
    MAX_DICTIONARY_BYTES,
    MAX_FILES,
    MAX_LIST_ITEMS,
    MAX_SEGMENTS,
    MAX_U48,
)
from des.shard.tables import (
    Condemned,
    DictionaryPlace,
    HeadTables,
    SegmentRef,
    SegmentTables,
    encode_content_types,
)

NAMES = st.binary(min_size=16, max_size=16)
U32 = st.integers(0, 0xFFFF_FFFF)
U64 = st.integers(0, (1 << 64) - 1)
TIMES = st.integers(-(1 << 63), (1 << 63) - 1)
CONTENT_TYPES = st.lists(st.from_regex(r"[a-z]{1,8}/[a-zé]{1,8}", fullmatch=True), unique=True, max_size=4).map(tuple)
DICTIONARIES = st.none() | st.builds(DictionaryPlace, st.integers(0, 1000), st.integers(0, 1000), NAMES)
SEGMENTS = st.lists(
    st.builds(SegmentRef, NAMES, st.integers(2000, MAX_U48), TIMES, U32, U64, DICTIONARIES), max_size=5
).map(tuple)
HEAD_TABLES = st.builds(
    HeadTables,
    generation=U64,
    lineage=NAMES,
    files=st.integers(0, MAX_FILES // 2),
    deleted=st.integers(0, MAX_FILES // 2),
    raw_bytes=U64,
    stored_bytes=U64,
    segments=SEGMENTS,
    content_types=CONTENT_TYPES,
    page_objects=st.lists(NAMES, max_size=3).map(tuple),
    commit_log=st.lists(NAMES, max_size=64).map(tuple),
    condemned=st.lists(st.builds(Condemned, NAMES, TIMES), max_size=3).map(tuple),
)
SEGMENT_TABLES = st.builds(
    SegmentTables,
    generation=U64,
    rows=st.integers(1000, MAX_FILES),
    tombstones=st.integers(0, 1000),
    data_end=st.integers(2000, (1 << 64) - 1),
    dictionary=DICTIONARIES,
    content_types=CONTENT_TYPES,
    superseded=st.lists(NAMES, max_size=3).map(tuple),
)
HEAD = HeadTables(1, b"l" * 16)
REF = SegmentRef(b"n" * 16, 5000, 0, 0, 0)
SEGMENT = SegmentTables(1, 5, 2, 100)


@given(HEAD_TABLES)
def test_round_trip_of_a_head(tables: HeadTables) -> None:
    assert HeadTables.decode(tables.encode()) == tables


@given(SEGMENT_TABLES)
def test_round_trip_of_a_segment(tables: SegmentTables) -> None:
    assert SegmentTables.decode(tables.encode()) == tables


@given(HEAD_TABLES, SEGMENT_TABLES)
def test_tables_fill_their_bytes_exactly(head: HeadTables, segment: SegmentTables) -> None:
    for encoded, decode in ((head.encode(), HeadTables.decode), (segment.encode(), SegmentTables.decode)):
        with pytest.raises(CorruptShardError, match="longer than its items"):
            decode(encoded + b"\0")
        for length in (0, 1, len(encoded) // 2, len(encoded) - 1):
            with pytest.raises(CorruptShardError, match="cut short"):
                decode(encoded[:length])


@given(HEAD_TABLES | SEGMENT_TABLES, st.integers(0), st.binary(min_size=1, max_size=8))
def test_any_change_decodes_or_is_corrupt(tables: HeadTables | SegmentTables, at: int, new: bytes) -> None:
    encoded = bytearray(tables.encode())
    at %= len(encoded)
    encoded[at : at + len(new)] = new
    try:
        decoded = type(tables).decode(bytes(encoded))
    except CorruptShardError:
        return
    assert type(tables).decode(decoded.encode()) == decoded


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_are_corrupt(data: bytes) -> None:
    for decode in (HeadTables.decode, SegmentTables.decode):
        try:
            decode(data)
        except CorruptShardError:
            continue


@pytest.mark.parametrize(
    ("position", "new", "sentence"),
    [
        (48, b"\xd1\x07", "more items than the format allows"),  # 2,001 segments
        (48, b"\xff\xff", "more items than the format allows"),
        (48, b"\xd0\x07", "cut short"),  # 2,000 that are not there
        (50, b"\xff\xff", "more items than the format allows"),  # dictionaries
        (52, b"\x01\x10", "more items than the format allows"),  # 4,097 content types
        (52, b"\x00\x10", "cut short"),
        (54, b"\xff\xff", "cut short"),  # page objects
        (56, b"\x41", "more items than the format allows"),  # 65 commits
        (56, b"\x40", "cut short"),
        (57, b"\xff\xff", "cut short"),  # condemned segments
    ],
)
def test_counts_that_lie(position: int, new: bytes, sentence: str) -> None:
    encoded = HEAD.encode()
    assert len(encoded) == 59
    with pytest.raises(CorruptShardError, match=sentence):
        HeadTables.decode(encoded[:position] + new + encoded[position + len(new) :])


@pytest.mark.parametrize(
    "place",
    [
        DictionaryPlace(5000, 1, bytes(16)),
        DictionaryPlace(4000, 1001, bytes(16)),
        DictionaryPlace((1 << 64) - 1, 1, bytes(16)),
        DictionaryPlace(0, 0xFFFF_FFFF, bytes(16)),
    ],
)
def test_dictionary_outside_its_segment(place: DictionaryPlace) -> None:
    with pytest.raises(CorruptShardError, match="outside"):
        HeadTables.decode(replace(HEAD, segments=(replace(REF, dictionary=place),)).encode())
    with pytest.raises(CorruptShardError, match="outside"):
        SegmentTables.decode(replace(SEGMENT, data_end=5000, dictionary=place).encode())


def test_dictionary_longer_than_the_format_allows() -> None:
    longest = DictionaryPlace(42, MAX_DICTIONARY_BYTES, bytes(16))
    tables = replace(HEAD, segments=(replace(REF, size=1 << 30, dictionary=longest),))
    assert HeadTables.decode(tables.encode()) == tables
    too_long = replace(longest, length=MAX_DICTIONARY_BYTES + 1)
    with pytest.raises(CorruptShardError, match="outside"):
        HeadTables.decode(replace(HEAD, segments=(replace(REF, size=1 << 30, dictionary=too_long),)).encode())
    with pytest.raises(CorruptShardError, match="outside"):
        SegmentTables.decode(replace(SEGMENT, data_end=1 << 30, dictionary=too_long).encode())


def test_dictionary_of_a_segment_that_is_not_there() -> None:
    encoded = bytearray(replace(HEAD, segments=(replace(REF, dictionary=DictionaryPlace(0, 1, bytes(16))),)).encode())
    encoded[50 + 44 + 2 : 50 + 44 + 4] = b"\1\0"
    with pytest.raises(CorruptShardError, match="outside"):
        HeadTables.decode(bytes(encoded))


@pytest.mark.parametrize("size", [MAX_U48 + 1, (1 << 64) - 1])
def test_segment_that_no_offset_could_reach(size: int) -> None:
    with pytest.raises(CorruptShardError, match="impossible size"):
        HeadTables.decode(replace(HEAD, segments=(replace(REF, size=size),)).encode())


def test_content_types_that_lie() -> None:
    with pytest.raises(CorruptShardError, match="twice"):
        HeadTables.decode(replace(HEAD, content_types=("a/b", "c/d", "a/b")).encode())
    encoded = replace(SEGMENT, content_types=("a/b",)).encode()
    with pytest.raises(CorruptShardError, match="not UTF-8"):
        SegmentTables.decode(encoded.replace(b"a/b", b"a/\xff"))


@pytest.mark.parametrize(
    "tables",
    [replace(SEGMENT, tombstones=6), replace(SEGMENT, rows=0), replace(SEGMENT, rows=0xFFFF_FFFF, tombstones=1)],
)
def test_impossible_number_of_rows(tables: SegmentTables) -> None:
    rows = tables.rows.to_bytes(4, "little")
    encoded = replace(tables, rows=5).encode()
    with pytest.raises(CorruptShardError, match="impossible number of rows"):
        SegmentTables.decode(encoded[:8] + rows + encoded[12:])


def test_impossible_number_of_files() -> None:
    encoded = replace(HEAD, files=MAX_FILES).encode()
    with pytest.raises(CorruptShardError, match="impossible number of files"):
        HeadTables.decode(encoded[:28] + b"\1\0\0\0" + encoded[32:])


def test_limits_of_a_head() -> None:
    for full in (
        replace(HEAD, files=MAX_FILES - 1, deleted=1),
        replace(HEAD, segments=(REF,) * MAX_SEGMENTS),
        replace(HEAD, content_types=tuple(map(str, range(MAX_CONTENT_TYPES)))),
    ):
        assert HeadTables.decode(full.encode()) == full
    with pytest.raises(ShardFullError, match="at most 4,194,304 files"):
        replace(HEAD, files=MAX_FILES, deleted=1).encode()
    with pytest.raises(ShardFullError, match="at most 2,000 segments"):
        replace(HEAD, segments=(REF,) * (MAX_SEGMENTS + 1)).encode()
    with pytest.raises(ShardFullError, match="at most 4,096 content types"):
        replace(HEAD, content_types=tuple(map(str, range(MAX_CONTENT_TYPES + 1)))).encode()
    with pytest.raises(ShardFullError, match="at most 65,535 condemned segments"):
        replace(HEAD, condemned=(Condemned(bytes(16), 0),) * (MAX_LIST_ITEMS + 1)).encode()


def test_limits_of_a_segment() -> None:
    full = replace(SEGMENT, rows=MAX_FILES)
    assert SegmentTables.decode(full.encode()) == full
    with pytest.raises(ShardFullError, match="at most 4,194,304 files"):
        replace(SEGMENT, rows=MAX_FILES + 1).encode()
    with pytest.raises(ShardFullError, match="at most 4,096 content types"):
        replace(SEGMENT, content_types=tuple(map(str, range(MAX_CONTENT_TYPES + 1)))).encode()
    with pytest.raises(ShardFullError, match="at most 2,000 superseded segments"):
        replace(SEGMENT, superseded=(bytes(16),) * (MAX_SEGMENTS + 1)).encode()


def test_longest_content_type() -> None:
    assert encode_content_types(["é" * 127 + "x"]) == b"\1\0\xff" + ("é" * 127 + "x").encode()
    with pytest.raises(ShardFullError, match="longer than 255 bytes"):
        encode_content_types(["é" * 128])


def test_a_commit_raises_the_generation_and_keeps_the_newest_64_ids() -> None:
    tables = HEAD
    ids = [bytes([number]) * 16 for number in range(70)]
    for number, commit_id in enumerate(ids, start=1):
        tables = tables.committed(commit_id)
        assert tables.generation == number + 1
        assert tables.commit_log == tuple(ids[max(0, number - 64) : number])
    assert tables.lineage == HEAD.lineage
    assert HeadTables.decode(tables.encode()) == tables
