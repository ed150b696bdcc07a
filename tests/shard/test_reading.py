from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.errors import CorruptShardError, UnsupportedFormatError
from des.shard.layout import (
    ENTRY_BYTES,
    FROZEN,
    HEADER,
    MAX_TAIL_BYTES,
    MAX_U48,
    TAIL_READ_BYTES,
    Codec,
    Entry,
    Flag,
    Identity,
    Kind,
    checksum64,
)
from des.shard.reading import Directory, Head, PageRef, check_page_order, find_entry, parse_tail, tail_length
from des.shard.tables import DictionaryPlace, HeadTables, SegmentRef
from des.shard.writing import encode_head
from tests.shard.forging import Parts, changed, forged_footer, forged_header
from tests.shard.samples import (
    IDENTITY,
    LINEAGE,
    Sample,
    build_head,
    build_segment,
    check_head_fully,
    lookup,
    open_head,
    open_segment,
    read_tail,
)

SEGMENTS = (
    SegmentRef(b"s" * 16, 10_000, 0, 0, 0),
    SegmentRef(b"t" * 16, 10_000, 0, 0, 0, DictionaryPlace(42, 100, bytes(16))),
)
GOOD = Entry(b"f" * 16, bytes(16), 1, 0, 0, Codec.ZSTD, 0, 42, 10, 20, 0)


def make_head(keys: list[bytes], **tables: object) -> bytes:
    entries = b"".join(GOOD._replace(file_id=key, checksum=n).encode() for n, key in enumerate(keys))
    fields: dict[str, object] = {"files": len(keys), "segments": SEGMENTS, "content_types": ("a/a",)} | tables
    return encode_head(IDENTITY, replace(HeadTables(1, LINEAGE), **fields), entries)  # type: ignore[arg-type]  # a test's choice of fields


def keys_of(count: int) -> list[bytes]:
    rng = random.Random(count)
    return sorted({rng.randbytes(16) for _ in range(count)})


SMALL = make_head(keys_of(20))


@pytest.mark.parametrize("count", [0, 1, 2, 511, 512, 513, 1024, 1025, 5000])
def test_every_file_is_found_and_nothing_else(count: int) -> None:
    keys = keys_of(count)
    data = make_head(keys)
    head = open_head(data)
    assert head.directory.count == -(-count // 512)
    for number, key in enumerate(keys):
        entry = lookup(head, data, key)
        assert entry is not None
        assert (entry.file_id, entry.checksum) == (key, number)
    between = [(int.from_bytes(key, "big") + 1).to_bytes(16, "big") for key in keys if key != b"\xff" * 16]
    for absent in {*between, bytes(16), b"\xff" * 16} - set(keys):
        assert lookup(head, data, absent) is None
    assert check_head_fully(data) == b"".join(
        GOOD._replace(file_id=key, checksum=n).encode() for n, key in enumerate(keys)
    )


@given(st.lists(st.binary(min_size=16, max_size=16), unique=True, max_size=40), st.binary(min_size=16, max_size=16))
def test_binary_search_in_a_page(keys: list[bytes], other: bytes) -> None:
    keys = sorted(keys)
    page = b"".join(GOOD._replace(file_id=key, checksum=n).encode() for n, key in enumerate(keys))
    for buffer in (page, memoryview(page), bytearray(page)):
        for number, key in enumerate(keys):
            found = find_entry(buffer, key)
            assert found is not None
            assert found.checksum == number
        assert (find_entry(buffer, other) is not None) == (other in keys)


@given(st.lists(st.binary(min_size=16, max_size=16), unique=True, max_size=40), st.binary(min_size=16, max_size=16))
def test_binary_search_in_a_directory(keys: list[bytes], other: bytes) -> None:
    keys = sorted(keys)
    items = b"".join(key + n.to_bytes(24, "big") for n, key in enumerate(keys))
    directory = Directory(memoryview(items))
    expected = sum(key <= other for key in keys) - 1
    assert directory.find(other) == (expected if expected >= 0 else None)
    assert [ref.first_key for ref in directory.refs()] == keys


@pytest.mark.parametrize("beyond", [0, 1, 100, 5000])
def test_tail_comes_from_any_long_enough_suffix(beyond: int) -> None:
    length = tail_length(SMALL[-32:], len(SMALL))
    suffix = SMALL[-min(length + beyond, len(SMALL)) :]
    assert parse_tail(suffix, len(SMALL)).identity == IDENTITY
    assert parse_tail(bytearray(suffix), len(SMALL)).tables.readonly
    with pytest.raises(CorruptShardError, match="cut short"):
        parse_tail(SMALL[-(length - 1) :], len(SMALL))


@pytest.mark.parametrize(
    "tables",
    [
        {"content_types": tuple("x" * 40 + str(n) for n in range(4096))},
        {"segments": SEGMENTS * 1000},
        {"page_objects": tuple(n.to_bytes(16, "big") for n in range(0xFFFF))},
    ],
    ids=["content types", "segments", "page objects"],
)
def test_tail_longer_than_one_read(tables: dict[str, object]) -> None:
    keys = keys_of(600)
    data = make_head(keys, **tables)
    assert tail_length(data[-TAIL_READ_BYTES:], len(data)) > TAIL_READ_BYTES
    with pytest.raises(CorruptShardError, match="cut short"):
        parse_tail(data[-TAIL_READ_BYTES:], len(data))
    head = open_head(data)
    assert all(lookup(head, data, key) for key in keys)
    check_head_fully(data)


@pytest.mark.parametrize("data", [b"", b"x", SMALL[:31], bytes(100), SMALL[:-1], SMALL + b"\0", SMALL[:-32]])
def test_what_does_not_end_in_a_footer(data: bytes) -> None:
    with pytest.raises(CorruptShardError, match="does not end in a DES footer"):
        tail_length(data, len(data))


@pytest.mark.parametrize("size", [0, len(SMALL) - 1, len(SMALL) + 1, 1 << 40])
def test_object_of_another_size_than_its_footer_says(size: int) -> None:
    with pytest.raises(CorruptShardError, match="its footer says"):
        parse_tail(SMALL, size)


@pytest.mark.parametrize("length", [0, 1, 31, len(SMALL) + 1, MAX_TAIL_BYTES + 1, 0xFFFF_FFFF])
def test_impossible_tail_length(length: int) -> None:
    frozen = (length, len(SMALL), 1, Kind.HEAD, 0, SMALL[-8:])
    with pytest.raises(CorruptShardError, match="impossible tail length"):
        tail_length(SMALL[:-32] + FROZEN.pack(*frozen), len(SMALL))


@pytest.mark.parametrize("length", [32, 33, 63, 64, 65, 105])
def test_tail_shorter_than_its_fixed_parts_with_a_good_checksum(length: int) -> None:
    with pytest.raises(CorruptShardError, match="shorter than its fixed parts"):
        parse_tail(forged_footer(SMALL, length=length), len(SMALL))


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"version": 0}, UnsupportedFormatError, "format version 0"),
        ({"version": 2}, UnsupportedFormatError, "format version 2"),
        ({"version": 0xFFFF}, UnsupportedFormatError, "format version 65535"),
        ({"incompat": 1}, UnsupportedFormatError, "features 0x1"),
        ({"incompat": 1 << 31}, UnsupportedFormatError, "features 0x80000000"),
        ({"kind": Kind.SEGMENT}, CorruptShardError, "different kinds"),
        ({"kind": 3}, CorruptShardError, "different kinds"),
        ({"count": 0}, CorruptShardError, "add up"),
        ({"count": 0xFFFF_FFFF}, CorruptShardError, "add up"),
        ({"tables_length": 0}, CorruptShardError, "add up"),
        ({"tables_length": 0xFFFF_FFFF}, CorruptShardError, "add up"),
        ({"length": 106}, CorruptShardError, "add up"),
        ({"length": len(SMALL)}, CorruptShardError, "add up"),
        ({"magic": b"nomagics"}, CorruptShardError, "footer"),
    ],
)
def test_footer_that_says_something_else_with_a_good_checksum(
    change: dict[str, int], error: type[CorruptShardError], sentence: str
) -> None:
    with pytest.raises(CorruptShardError, match=sentence) as caught:
        parse_tail(forged_footer(SMALL, **change), len(SMALL))
    assert type(caught.value) is error


def test_newer_footers_are_named_whatever_they_look_like() -> None:
    # Only the last 32 bytes are frozen, so a newer version may have a tail that is shorter than ours can be.
    unsigned = b"something new" + FROZEN.pack(45, 45, 7, 9, 0, SMALL[-8:])
    newer = unsigned[:-16] + checksum64(unsigned[:-16]).to_bytes(8, "little") + unsigned[-8:]
    with pytest.raises(UnsupportedFormatError, match="format version 7"):
        parse_tail(newer, 45)


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"incompat": 1}, {"kind": 1}, {"count": 3}],
)
def test_damage_is_corrupt_and_never_unsupported(change: dict[str, int]) -> None:
    damaged = forged_footer(SMALL, **change)[:-16] + SMALL[-16:]
    with pytest.raises(CorruptShardError, match="checksum") as caught:
        parse_tail(damaged, len(SMALL))
    assert type(caught.value) is CorruptShardError


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"version": 2}, UnsupportedFormatError, "format version 2"),
        ({"kind": 3}, UnsupportedFormatError, "kind 3"),
        ({"kind": Kind.SEGMENT}, CorruptShardError, "different kinds"),
        ({"magic": b"nomagics"}, CorruptShardError, "DES header"),
        ({"n_bits": 0}, CorruptShardError, "impossible shard"),
    ],
)
def test_header_in_the_tail_that_says_something_else(
    change: dict[str, int], error: type[CorruptShardError], sentence: str
) -> None:
    parts = Parts.of(SMALL)
    parts.header = forged_header(parts.header, **change)
    with pytest.raises(CorruptShardError, match=sentence) as caught:
        read_tail(parts.build())
    assert type(caught.value) is error


def test_object_of_an_unknown_kind_is_unsupported() -> None:
    parts = Parts.of(SMALL)
    parts.header = forged_header(parts.header, kind=3)
    with pytest.raises(UnsupportedFormatError, match="kind 3"):
        read_tail(parts.build(kind=3))


@pytest.mark.parametrize(
    ("expected", "sentence"),
    [
        (IDENTITY._replace(store_id=bytes(16)), "belongs to another store"),
        (IDENTITY._replace(date="20240201"), r"belongs to shard 20240131/5A \(n_bits 8\), not to 20240201/5A"),
        (IDENTITY._replace(shard_index=0x5B), r"not to 20240131/5B"),
        (IDENTITY._replace(n_bits=9), r"n_bits 8\), not to 20240131/05A \(n_bits 9\)"),
    ],
)
def test_object_of_another_shard_is_refused(expected: Identity, sentence: str) -> None:
    with pytest.raises(CorruptShardError, match=sentence):
        open_head(SMALL, expected)
    with pytest.raises(CorruptShardError, match=sentence):
        open_segment(build_segment([]).data, expected)


def test_segments_and_heads_are_not_taken_for_each_other() -> None:
    with pytest.raises(CorruptShardError, match="is a segment, not a head"):
        open_head(build_segment([Sample("a", b"a")]).data)
    with pytest.raises(CorruptShardError, match="is a head, not a segment"):
        open_segment(SMALL)


def test_ro_compat_flags_stop_writers_only() -> None:
    newer = forged_footer(SMALL, ro_compat=4)
    head = open_head(newer)
    assert lookup(head, newer, keys_of(20)[0])
    with pytest.raises(UnsupportedFormatError, match="features 0x4, which only a newer release may write"):
        head.check_writable()
    open_head(SMALL).check_writable()


def test_page_in_an_immutable_object_is_followed() -> None:
    keys = keys_of(1500)
    data = make_head(keys, page_objects=(b"p" * 16, b"q" * 16))
    parts = Parts.of(data)
    moved = parts.page(1)
    other = b"whatever comes before" + moved
    # The second page moves to the second page object; the third closes the gap.
    third = parts.page(2)
    offset = parts.directory[1].offset
    parts.body = parts.body[:offset] + third
    parts.directory[1] = parts.directory[1]._replace(object_number=2, offset=21)
    parts.directory[2] = parts.directory[2]._replace(offset=offset)
    forged = parts.build()
    head = open_head(forged)
    head.check_structure()
    for number, key in enumerate(keys):
        ref = head.find_page(key)
        assert ref is not None
        place = head.page_key(ref)
        assert place == ("20240131/5A/71717171717171717171717171717171.des" if 512 <= number < 1024 else None)
        page = (forged if place is None else other)[ref.offset : ref.end]
        ref.check(page)
        entry = find_entry(page, key)
        assert entry is not None
        assert entry.checksum == number


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 0},
        {"offset": 41},
        {"offset": len(SMALL)},
        {"offset": (1 << 64) - 1},
        {"offset": len(SMALL) - 1000},
        {"items": 0, "length": 0},
        {"items": 19},
        {"items": 21},
        {"items": 0xFFFF},
        {"length": 0xFFFF_FFFF},
        {"length": 0xFFFF * 64, "items": 0xFFFF},
        {"object_number": 1},
        {"object_number": 0xFFFF},
    ],
)
def test_directory_that_points_outside(change: dict[str, int]) -> None:
    parts = Parts.of(SMALL)
    parts.directory[0] = PageRef(**(parts.directory[0]._asdict() | change))
    head = open_head(parts.build())
    with pytest.raises(CorruptShardError, match="points outside the object"):
        head.find_page(keys_of(20)[3])


def test_page_beyond_what_any_object_holds() -> None:
    parts = Parts.of(make_head(keys_of(20), page_objects=(b"p" * 16,)))
    good = parts.directory[0]
    parts.directory[0] = good._replace(object_number=1, offset=MAX_U48 - good.length)
    assert open_head(parts.build()).find_page(b"\xff" * 16) == parts.directory[0]
    parts.directory[0] = good._replace(object_number=1, offset=MAX_U48 - good.length + 1)
    with pytest.raises(CorruptShardError, match="points outside"):
        open_head(parts.build()).find_page(b"\xff" * 16)


def big_parts() -> Parts:
    return Parts.of(make_head(keys_of(1500)))


def test_structure_is_checked_before_a_head_is_a_base() -> None:
    def refused(parts: Parts, sentence: str) -> None:
        with pytest.raises(CorruptShardError, match=sentence):
            open_head(parts.build()).check_structure()

    open_head(big_parts().build()).check_structure()
    parts = big_parts()
    parts.directory[1] = parts.directory[1]._replace(offset=parts.directory[1].offset + 64)
    refused(parts, "do not follow each other")
    parts = big_parts()
    parts.directory[1] = parts.directory[1]._replace(offset=HEADER.size)
    refused(parts, "do not follow each other")
    parts = big_parts()
    parts.directory[1] = parts.directory[1]._replace(first_key=bytes(16))
    refused(parts, "not in order")
    parts = big_parts()
    parts.directory[1] = parts.directory[1]._replace(first_key=parts.directory[0].first_key)
    refused(parts, "not in order")
    parts = big_parts()
    parts.body += b"\0"
    refused(parts, "does not fill the object")
    parts = big_parts()
    del parts.directory[2]
    refused(parts, "does not fill the object")
    parts = big_parts()
    parts.body = parts.body[: parts.directory[2].offset]
    del parts.directory[2]
    refused(parts, "as many items")
    parts = big_parts()
    parts.body, parts.directory = b"", []
    refused(parts, "does not fill the object")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (GOOD._replace(segment=2), "head's tables"),
        (GOOD._replace(segment=0xFFFF), "head's tables"),
        (GOOD._replace(content_type=2), "head's tables"),
        (GOOD._replace(offset=0), "outside its segment"),
        (GOOD._replace(offset=41), "outside its segment"),
        (GOOD._replace(offset=9_991), "outside its segment"),
        (GOOD._replace(offset=MAX_U48), "outside its segment"),
        (GOOD._replace(stored_size=9_959, raw_size=10_000), "outside its segment"),
        (GOOD._replace(stored_size=MAX_U48), "outside its segment"),
        (GOOD._replace(stored_size=21), "sizes contradict"),
        (GOOD._replace(codec=Codec.NONE, stored_size=19), "sizes contradict"),
        (GOOD._replace(codec=Codec.NONE, stored_size=21), "sizes contradict"),
        (GOOD._replace(codec=Codec.NONE, raw_size=(1 << 20) + 1), "sizes contradict"),
        (GOOD._replace(codec=Codec.ZSTD_DICT), "dictionary that its segment does not have"),
        (GOOD._replace(codec=Codec.ZSTD_DICT, segment=1, raw_size=2 << 20), "large payload uses a dictionary"),
        (GOOD._replace(flags=Flag.DELETED, offset=0), "tombstone has a payload"),
        (GOOD._replace(flags=Flag.DELETED, stored_size=0), "tombstone has a payload"),
        (GOOD._replace(flags=Flag.DELETED, stored_size=0, offset=0, segment=2), "head's tables"),
    ],
)
def test_entries_that_lie(entry: Entry, sentence: str) -> None:
    with pytest.raises(CorruptShardError, match=sentence):
        open_head(SMALL).check_entry(entry)


@pytest.mark.parametrize(
    "entry",
    [
        GOOD,
        GOOD._replace(content_type=1, segment=1, codec=Codec.ZSTD_DICT),
        GOOD._replace(offset=9_990),
        GOOD._replace(codec=Codec.NONE, raw_size=10),
        GOOD._replace(codec=Codec.NONE, raw_size=0, stored_size=0, offset=10_000),
        GOOD._replace(flags=Flag.DELETED, offset=0, stored_size=0, codec=Codec.NONE),
        GOOD._replace(flags=Flag.REPLACED),
        GOOD._replace(raw_size=1 << 40),
    ],
)
def test_entries_that_are_fine(entry: Entry) -> None:
    open_head(SMALL).check_entry(entry)


def test_unknown_codecs_and_flags_in_a_page_with_a_good_checksum() -> None:
    keys = keys_of(20)
    for at, sentence in ((40, "codec 64"), (41, "flags 0x40")):
        parts = Parts.of(SMALL)
        parts.set_page(0, changed(parts.page(0), 3 * ENTRY_BYTES + at, b"\x40"))
        forged = parts.build()
        with pytest.raises(UnsupportedFormatError, match=sentence):
            lookup(open_head(forged), forged, keys[3])
        assert lookup(open_head(forged), forged, keys[4])


def test_order_within_a_page() -> None:
    keys = keys_of(5)
    entries = [GOOD._replace(file_id=key).encode() for key in keys]
    ref = PageRef(keys[0], 0, 42, 5 * ENTRY_BYTES, 5, 0)
    check_page_order(b"".join(entries), ref)
    for wrong in (entries[::-1], [*entries[:2], entries[1], *entries[3:]], entries[1:], []):
        with pytest.raises(CorruptShardError, match="not in order"):
            check_page_order(b"".join(wrong), ref)


def test_a_damaged_page_is_named() -> None:
    parts = Parts.of(SMALL)
    ref, page = parts.directory[0], parts.page(0)
    ref.check(page)
    for wrong in (page[:-1], page + b"\0", changed(page, 5, b"\0\0\0"), b""):
        with pytest.raises(CorruptShardError, match="page of the index is damaged"):
            ref.check(wrong)


def test_segments_whose_index_lies() -> None:
    samples = [Sample(f"file {n}", b"%d" % n, metadata=b'{"m":"%s"}' % (b"m" * 4000)) for n in range(40)]
    data = build_segment(samples).data
    assert open_segment(data).directory.count > 1

    def refused(parts: Parts, sentence: str) -> None:
        with pytest.raises(CorruptShardError, match=sentence):
            open_segment(parts.build())

    parts = Parts.of(data)
    parts.directory[0] = parts.directory[0]._replace(object_number=1)
    refused(parts, "another object")
    parts = Parts.of(data)
    parts.directory[0] = parts.directory[0]._replace(items=parts.directory[0].items + 1)
    refused(parts, "as many items")
    parts = Parts.of(data)
    parts.directory[1] = parts.directory[1]._replace(offset=42)
    refused(parts, "do not follow each other")
    for data_end in (0, 41, len(data), (1 << 64) - 1):
        parts = Parts.of(data)
        parts.tables = changed(parts.tables, 16, data_end.to_bytes(8, "little"))
        refused(parts, "data lies outside")
    parts = Parts.of(data)
    parts.tables = changed(parts.tables, 16, (43).to_bytes(8, "little"))
    refused(parts, "do not follow each other")
    parts = Parts.of(data)
    parts.tables += b"\0"
    refused(parts, "longer than its items")


def test_the_same_uid_in_two_segments_is_one_entry() -> None:
    first = build_segment([Sample("a", b"one"), Sample("b", b"two")])
    second = build_segment([Sample("a", b"three", flags=Flag.REPLACED)], number=1)
    data = build_head([first, second])
    entry = lookup(open_head(data), data, Sample("a", b"").file_id)
    assert entry is not None
    assert (entry.segment, entry.raw_size, entry.replaced) == (1, 5, True)
    assert [ref.entries for ref in open_head(data).tables.segments] == [1, 1]


def test_a_head_is_not_the_head_of_a_reader_that_expects_another() -> None:
    with pytest.raises(CorruptShardError):
        Head(read_tail(SMALL), IDENTITY._replace(shard_index=1))


def test_pages_follow_each_other() -> None:
    refs = open_head(make_head(keys_of(5000))).directory.refs()
    assert refs[0].offset == HEADER.size
    assert all(one.end == two.offset for one, two in pairwise(refs))
