from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.errors import ShardFullError
from des.routing import file_id
from des.shard.codecs import Compression
from des.shard.layout import (
    DIRECTORY_ITEM,
    ENTRY_BYTES,
    FOOTER,
    HEADER,
    MAX_CONTENT_TYPES,
    TAIL_READ_BYTES,
    Codec,
    Entry,
    Flag,
)
from des.shard.tables import HeadTables, SegmentRef, SegmentTables
from des.shard.writing import FileRecord, Payload, SegmentWriter, _entries_a_page, content_hash, encode_head
from tests.shard.samples import (
    COMMITTED,
    DICTIONARY,
    IDENTITY,
    LINEAGE,
    MIDNIGHT,
    WORDS,
    Sample,
    build_head,
    build_segment,
    check_head_fully,
    check_segment_fully,
    entry_of,
    open_head,
    open_segment,
    read_everything,
    read_payload,
    read_rows,
    read_tail,
    segment_name,
)

MIB = 1 << 20
CHUNK = 256 << 10
SIZES = [0, 1, 2, 255, 256, 4096, CHUNK, MIB - 1, MIB, MIB + 1, MIB + CHUNK, 3 * MIB, 3 * MIB + 1]
COMPRESSIONS = [
    Compression("zstd"),
    Compression("zstd", 9),
    Compression("lz4"),
    Compression("lz4", 9),
    Compression("none"),
    Compression("zstd", dictionary=DICTIONARY),
]


def text(size: int) -> bytes:
    return (WORDS * (size // len(WORDS) + 1))[:size]


@pytest.mark.parametrize("content", ["text", "noise"])
@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda c: f"{c.codec}-{c.level}-{bool(c.dictionary)}")
def test_round_trip_of_every_size_and_codec(compression: Compression, content: str) -> None:
    noise = random.Random(1).randbytes(max(SIZES))
    samples = [Sample(f"{size}", text(size) if content == "text" else noise[:size]) for size in SIZES]
    segment = build_segment(samples, compressions=[compression])
    head = build_head([segment])
    answers = read_everything(head, {segment.name: segment.data}, [sample.file_id for sample in samples])
    assert answers.contents == {sample.file_id: sample.raw for sample in samples}
    check_segment_fully(segment.data)
    check_head_fully(head)
    codecs = {entry_of(segment.summary, f"{size}").codec for size in SIZES if size >= 4096 and content == "text"}
    expected = {"zstd": {Codec.ZSTD}, "lz4": {Codec.LZ4}, "none": {Codec.NONE}}[compression.codec]
    if compression.dictionary:
        expected = {Codec.ZSTD, Codec.ZSTD_DICT}
    assert codecs == (expected if content == "text" else set())


@given(
    st.lists(
        st.tuples(
            st.integers(), st.one_of(st.binary(max_size=300), st.binary(min_size=1, max_size=9).map(lambda b: b * 99))
        ),
        unique_by=lambda pair: pair[0],
        max_size=12,
    ),
    st.integers(0, 2),
)
def test_any_files_come_back(files: list[tuple[int, bytes]], tombstones: int) -> None:
    samples = [Sample(f"file {n}", raw, MIDNIGHT + n % 86_400_000_000, "a/b", b'{"n":1}') for n, raw in files]
    deleted = [Sample(f"deleted {n}", b"gone") for n in range(tombstones)]
    segment = build_segment(samples, compressions=COMPRESSIONS, tombstones=deleted)
    head = build_head([segment])
    wanted = [sample.file_id for sample in (*samples, *deleted)]
    answers = read_everything(head, {segment.name: segment.data}, wanted)
    assert answers.contents == {s.file_id: s.raw for s in samples} | {s.file_id: None for s in deleted}
    for sample in samples:
        row = answers.rows[segment.name, sample.file_id]
        assert (row.uid, row.created_at, row.content_type, row.metadata) == (
            sample.uid,
            sample.created_at,
            "a/b",
            b'{"n":1}',
        )
    check_segment_fully(segment.data)
    assert check_head_fully(head).count(b"") - 1 == ENTRY_BYTES * len(wanted)


def test_layout_of_a_segment() -> None:
    samples = [Sample("a", b"first"), Sample("b", b"second"), Sample("c", b"")]
    segment = build_segment(samples, compressions=[Compression(dictionary=DICTIONARY)])
    opened = open_segment(segment.data)
    data_start = HEADER.size + len(DICTIONARY)
    assert segment.data[HEADER.size : data_start] == DICTIONARY
    assert segment.data[data_start : opened.tables.data_end] == b"firstsecond"
    assert opened.directory.ref(0).offset == opened.tables.data_end
    assert opened.directory.refs()[-1].end == opened.tail.start
    assert segment.summary.size == len(segment.data) == opened.tail.object_size
    assert opened.tail.stamp == bytes(16)
    assert segment.data[: HEADER.size] == segment.data[opened.tail.start : opened.tail.start + HEADER.size]
    assert segment.summary.dictionary == opened.tables.dictionary


def test_segment_without_data() -> None:
    segment = build_segment(
        [], tombstones=[Sample("a", b"content", MIDNIGHT + 5_000_000)], superseded=[segment_name(9)]
    )
    opened = open_segment(segment.data)
    assert opened.tables == SegmentTables(1, 1, 1, HEADER.size, None, (), (segment_name(9),))
    (row,) = read_rows(segment.data)
    assert (row.uid, row.created_at, row.entry.deleted) == ("", MIDNIGHT + 5_000_000, True)
    assert row.entry.content_hash == content_hash(b"content")
    assert (row.entry.offset, row.entry.stored_size, row.entry.raw_size) == (0, 0, 0)
    check_segment_fully(segment.data)


def test_empty_segment_and_empty_head() -> None:
    segment = build_segment([])
    check_segment_fully(segment.data)
    assert read_rows(segment.data) == []
    head = encode_head(IDENTITY, HeadTables(1, LINEAGE), b"")
    assert check_head_fully(head) == b""
    assert open_head(head).find_page(bytes(16)) is None


def test_rows_carry_the_generation_they_were_decided_on() -> None:
    assert [row.generation for row in read_rows(build_segment([Sample("a", b"")], generation=77).data)] == [77]
    assert open_segment(build_segment([], generation=77).data).tables.generation == 77


def test_the_same_rows_give_the_same_bytes() -> None:
    samples = [Sample(f"{n}", text(n * 100)) for n in range(30)]
    assert build_segment(samples, compressions=COMPRESSIONS) == build_segment(samples, compressions=COMPRESSIONS)
    segment = build_segment(samples)
    assert build_head([segment]) == build_head([segment])


def test_the_catalog_has_a_table_of_its_own_content_types() -> None:
    samples = [
        Sample("a", b"1", content_type="b/b"),
        Sample("b", b"2"),
        Sample("c", b"3", content_type="a/a"),
        Sample("d", b"4", content_type="b/b"),
    ]
    segment = build_segment(samples)
    assert open_segment(segment.data).tables.content_types == ("b/b", "a/a") == segment.summary.content_types
    assert {row.uid: row.content_type for row in read_rows(segment.data)} == {
        "a": "b/b",
        "b": None,
        "c": "a/a",
        "d": "b/b",
    }
    assert [entry_of(segment.summary, uid).content_type for uid in "abcd"] == [1, 0, 2, 1]
    assert all(row.entry.content_type == 0 for row in read_rows(segment.data))


def test_too_many_content_types() -> None:
    writer = SegmentWriter(IDENTITY, 1)

    def add(number: int) -> None:
        record = FileRecord(number.to_bytes(16, "big"), str(number), MIDNIGHT, f"a/{number}", b"")
        writer.add(record, Payload(bytes(16), 0, Codec.NONE, 0, 0))

    for number in range(MAX_CONTENT_TYPES):
        add(number)
    with pytest.raises(ShardFullError, match="4,096 content types"):
        add(MAX_CONTENT_TYPES)


def test_the_last_64_bytes_of_a_head_differ_at_every_commit() -> None:
    tables = HeadTables(1, LINEAGE)
    endings = set()
    rng = random.Random(7)
    for _ in range(100):
        endings.add(encode_head(IDENTITY, tables, b"")[-64:])
        tables = tables.committed(rng.randbytes(16))
    assert len(endings) == 100
    assert read_tail(encode_head(IDENTITY, tables, b"")).stamp == tables.commit_log[-1]


def test_heads_of_two_lineages_end_differently() -> None:
    one, two = HeadTables(1, b"1" * 16), HeadTables(1, b"2" * 16)
    assert encode_head(IDENTITY, one, b"")[-64:] != encode_head(IDENTITY, two, b"")[-64:]


def tables_of(files: int, segments: int) -> HeadTables:
    refs = (SegmentRef(bytes(16), 100, COMMITTED, 0, 0),) * segments
    log = tuple(bytes([n]) * 16 for n in range(64))
    return HeadTables(1, LINEAGE, files=files, segments=refs, content_types=("text/plain",), commit_log=log)


@pytest.mark.parametrize(
    ("files", "segments", "expected", "one_read"),
    [
        (1, 1, 512, True),
        (600_000, 1, 512, True),
        (1_000_000, 1, 640, True),
        (1_000_000, 40, 640, True),
        (1_000_000, 60, 768, True),
        (1_000_000, 500, 1024, True),
        (1_600_000, 1, 1024, True),
        (1_700_000, 1, 1024, False),
        (1 << 22, 1, 1024, False),
        (100, 2000, 1024, False),
    ],
)
def test_pages_grow_to_keep_the_tail_in_one_read(files: int, segments: int, expected: int, one_read: bool) -> None:
    tables_length = len(tables_of(files, segments).encode())
    entries = _entries_a_page(files, tables_length)
    tail = HEADER.size + tables_length + DIRECTORY_ITEM.size * -(-files // entries) + FOOTER.size
    assert entries == expected
    assert 16 << 10 <= entries * ENTRY_BYTES <= 64 << 10
    assert (tail <= TAIL_READ_BYTES) == one_read


@pytest.mark.parametrize(
    ("files", "segments", "expected"), [(20_000, 1, 512), (200_000, 1150, 640), (20_000, 2000, 1024)]
)
def test_pages_are_cut_by_count(files: int, segments: int, expected: int) -> None:
    # Keys are not looked at by the writer: one entry repeated is as good as many, and this is about sizes.
    data = encode_head(IDENTITY, tables_of(files, segments), bytes(ENTRY_BYTES) * files)
    refs = read_tail(data).directory.refs()
    assert [ref.items for ref in refs[:-1]] == [expected] * (len(refs) - 1)
    assert sum(ref.items for ref in refs) == files
    assert all(ref.length == ref.items * ENTRY_BYTES for ref in refs)


def test_bytes_a_file_on_disk() -> None:
    files = 100_000
    data = encode_head(IDENTITY, HeadTables(1, LINEAGE, files=files), bytes(ENTRY_BYTES) * files)
    assert len(data) / files <= 68


def test_head_of_more_files_than_a_shard_takes() -> None:
    with pytest.raises(ShardFullError, match="4,194,304 files"):
        encode_head(IDENTITY, HeadTables(1, LINEAGE, files=(1 << 22) + 1), b"")


def test_entries_of_a_summary_are_sorted_and_point_at_their_payloads() -> None:
    samples = [Sample(f"{n}", text(n)) for n in range(200)]
    segment = build_segment(samples, compressions=COMPRESSIONS)
    keys = [segment.summary.entries[at : at + 16] for at in range(0, len(segment.summary.entries), ENTRY_BYTES)]
    assert keys == sorted(file_id(sample.uid) for sample in samples)
    for sample in samples:
        entry = entry_of(segment.summary, sample.uid)
        assert entry.segment == 0
        assert read_payload(entry, segment.data, segment.summary.dictionary) == sample.raw


def test_flags_and_time_of_day_reach_the_entry() -> None:
    sample = Sample("a", b"x", MIDNIGHT + 86_399_999_999, flags=Flag.REPLACED)
    entry: Entry = entry_of(build_segment([sample]).summary, "a")
    assert (entry.second, entry.replaced, entry.deleted) == (86_399, True, False)


def test_another_shard_another_header() -> None:
    other = IDENTITY._replace(shard_index=1)
    assert build_segment([], identity=other).data[: HEADER.size] != build_segment([]).data[: HEADER.size]
