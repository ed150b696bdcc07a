from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from des.errors import CorruptShardError, InvalidRequestError, UnsupportedFormatError
from des.routing import file_id
from des.shard.catalog import (
    CHUNK_TARGET_BYTES,
    CatalogRow,
    decode_chunk,
    draft_row,
    encode_chunks,
    encode_metadata,
    placed_row,
)
from des.shard.layout import MAX_CHUNK_RAW_BYTES, MAX_CHUNK_ROWS, ROW, Codec, Entry, Flag, checksum64, second_of_day
from des.shard.reading import PageRef
from tests.shard.samples import MIDNIGHT

if TYPE_CHECKING:
    from collections.abc import Sequence

TYPES = ("text/plain", "image/png")
UIDS = st.text(min_size=1, max_size=40).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))


def make_row(
    uid: str, created_at: int = MIDNIGHT, content_type: str | None = None, metadata: bytes = b""
) -> CatalogRow:
    entry = Entry(file_id(uid), bytes(16), 1, 0, 0, Codec.NONE, 0, 42, 3, 3, second_of_day(created_at))
    return CatalogRow(entry, uid, created_at, content_type, metadata, 7)


def make_tombstone(uid: str) -> CatalogRow:
    entry = Entry(file_id(uid), b"h" * 16, 0, 0, 0, Codec.NONE, Flag.DELETED, 0, 0, 0, 5)
    return CatalogRow(entry, "", MIDNIGHT + 86_405_000_000, None, b"", 9)


def encode_row(row: CatalogRow, number: int) -> bytes:
    """Encode a row as the format states it, field by field."""
    uid = row.uid.encode()
    fields = (row.entry.encode(), row.generation, row.created_at, number, len(uid), len(row.metadata))
    return ROW.pack(*fields) + uid + row.metadata


@pytest.mark.parametrize("number", [0, 1, 4096])
@pytest.mark.parametrize("size", [0, 5, 0xFFFF_FFFF, 1 << 40])
def test_a_draft_becomes_the_row_that_the_format_states(number: int, size: int) -> None:
    offset, created_at = (1 << 47) + 5, MIDNIGHT + 86_399_999_999
    entry = Entry(
        file_id("ü"), b"h" * 16, 0xFFFF_FFFE, 0, 0, Codec.LZ4, 2, offset, size, size + 3, second_of_day(created_at)
    )
    row = CatalogRow(entry, "ü", created_at, "text/plain", b'{"a":1}', 1 << 60)
    sizes = (size, size + 3, row.generation, created_at)
    fields = (entry.content_hash, entry.checksum, entry.codec, entry.flags, *sizes)
    draft = draft_row(entry.file_id, *fields, row.uid.encode(), row.metadata)
    assert placed_row(draft, offset, number) == encode_row(row, number)


def encode(rows: Sequence[CatalogRow]) -> list[bytes]:
    numbers = {None: 0, TYPES[0]: 1, TYPES[1]: 2}
    return sorted(encode_row(row, numbers[row.content_type]) for row in rows)


def ref_of(first_key: bytes, data: bytes, items: int) -> PageRef:
    return PageRef(first_key, checksum64(data), 0, len(data), items, 0)


def decode_all(rows: Sequence[bytes]) -> list[CatalogRow]:
    chunks = [(data, ref_of(key, data, count)) for key, data, count in encode_chunks(rows)]
    return list(itertools.chain(*(decode_chunk(data, ref, TYPES) for data, ref in chunks)))


def refuse(rows: Sequence[bytes], sentence: str, error: type[CorruptShardError] = CorruptShardError) -> None:
    """Check that a chunk with a good checksum that holds these rows is refused."""
    data = zstandard.compress(b"".join(rows))
    with pytest.raises(CorruptShardError, match=sentence) as caught:
        decode_chunk(data, ref_of(rows[0][:16], data, len(rows)), TYPES)
    assert type(caught.value) is error


@given(
    st.lists(
        st.builds(
            make_row,
            UIDS,
            st.integers(MIDNIGHT, MIDNIGHT + 86_400_000_000 - 1),
            st.sampled_from([None, *TYPES]),
            st.dictionaries(st.text(max_size=5), st.integers(), max_size=3).map(encode_metadata),
        ),
        unique_by=lambda row: row.uid,
        max_size=20,
    ),
    st.integers(0, 3),
)
def test_round_trip(rows: list[CatalogRow], tombstones: int) -> None:
    rows = [*rows, *(make_tombstone(f"deleted {n}\ud7ff") for n in range(tombstones))]
    ordered = sorted(rows, key=lambda row: row.entry.file_id)
    assert decode_all(encode(rows)) == ordered


@pytest.mark.parametrize("count", [1, MAX_CHUNK_ROWS - 1, MAX_CHUNK_ROWS, MAX_CHUNK_ROWS + 1, 5000])
def test_chunks_are_cut_by_bytes(count: int) -> None:
    rows = encode([make_row(f"file {n}") for n in range(count)])
    chunks = list(encode_chunks(rows))
    assert sum(items for _, _, items in chunks) == count
    assert all(zstandard.frame_content_size(data) <= CHUNK_TARGET_BYTES for _, data, _ in chunks)
    assert [key for key, _, _ in chunks] == sorted(key for key, _, _ in chunks)
    assert [row.uid for row in decode_all(rows)] == [row[88:].decode() for row in rows]


def test_chunks_are_cut_by_rows() -> None:
    # No real row is as short as this; a chunk must still not hold more rows than its directory item can say.
    rows = [n.to_bytes(16, "big") for n in range(MAX_CHUNK_ROWS * 2 + 1)]
    assert [items for _, _, items in encode_chunks(rows)] == [MAX_CHUNK_ROWS, MAX_CHUNK_ROWS, 1]


def test_a_row_of_the_longest_uid_and_metadata_fits() -> None:
    row = make_row("u" * 1024, metadata=encode_metadata({"k": "v" * 8000}))
    assert decode_all(encode([row, make_row("other")])) == sorted(
        [row, make_row("other")], key=lambda r: r.entry.file_id
    )


def test_no_rows_no_chunks() -> None:
    assert list(encode_chunks([])) == []


def test_rows_that_contradict_themselves() -> None:
    row = make_row("a", MIDNIGHT + 1_000_000, "text/plain", b"{}")
    good = encode_row(row, 1)
    assert decode_all([good]) == [row]
    refuse([encode_row(row, 3)], "outside its chunk or tables")
    refuse([good[:82] + b"\xff\xff" + good[84:]], "outside its chunk or tables")
    refuse([good[:84] + b"\xff\xff\xff\xff" + good[88:]], "outside its chunk or tables")
    refuse([good[:-1]], "outside its chunk or tables")
    refuse([good + b"x"], "cut short")
    refuse([good + bytes(87)], "cut short")
    refuse([good[:87]], "cut short")
    refuse([good[:88] + b"b" + good[89:]], "contradicts its entry")
    refuse([good[:88] + b"\xff" + good[89:]], "not UTF-8")
    refuse([b"x" * 16 + good[16:]], "contradicts its entry")
    refuse([good[:60] + bytes(4) + good[64:]], "contradicts its entry")
    refuse([good[:36] + b"\1\0" + good[38:]], "tables of a head")
    refuse([good[:38] + b"\1\0" + good[40:]], "tables of a head")
    refuse([good[:40] + b"\x09" + good[41:]], "codec 9", UnsupportedFormatError)
    refuse([good[:41] + b"\x10" + good[42:]], "flags 0x10", UnsupportedFormatError)
    refuse([good, good], "not in order")
    refuse(encode([row, make_row("b")])[::-1], "not in order")
    tombstone = encode_row(make_tombstone("a"), 0)
    refuse([tombstone[:41] + b"\0" + tombstone[42:]], "contradicts its entry")


def test_a_chunk_that_is_not_what_the_directory_says() -> None:
    rows = encode([make_row("a"), make_row("b")])
    data = zstandard.compress(b"".join(rows))
    good = ref_of(rows[0][:16], data, 2)
    assert len(decode_chunk(data, good, TYPES)) == 2
    for wrong in (good._replace(items=1), good._replace(items=3), good._replace(first_key=rows[1][:16])):
        with pytest.raises(CorruptShardError, match="what the directory says"):
            decode_chunk(data, wrong, TYPES)
    for wrong in (good._replace(checksum=1), good._replace(length=len(data) - 1)):
        with pytest.raises(CorruptShardError, match="damaged"):
            decode_chunk(data, wrong, TYPES)
    with pytest.raises(CorruptShardError, match="damaged"):
        decode_chunk(data[:-1], good, TYPES)


@pytest.mark.parametrize(
    "data",
    [
        zstandard.compress(b""),
        zstandard.compress(bytes(MAX_CHUNK_RAW_BYTES + 1)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(300)),
        zstandard.compress(bytes(100)) * 2,
        zstandard.compress(bytes(100))[:-1],
        b"\x50\x2a\x4d\x18" + (500).to_bytes(4, "little") + bytes(500),
        b"\x50\x2a\x4d\x18\xff\xff\xff\xff",
        b"",
        b"no frame at all",
    ],
    ids=["empty", "bomb", "no size", "two frames", "cut", "skippable", "huge skippable", "nothing", "noise"],
)
def test_chunks_that_are_no_single_frame_of_a_decent_size(data: bytes) -> None:
    with pytest.raises(CorruptShardError):
        decode_chunk(data, ref_of(bytes(16), data, 1), TYPES)


@given(st.binary(min_size=1, max_size=400))
def test_any_rows_decode_or_are_corrupt(raw: bytes) -> None:
    data = zstandard.compress(raw)
    with pytest.raises(CorruptShardError):
        decode_chunk(data, ref_of(raw[:16], data, 1), TYPES)


@given(st.integers(0, 200), st.binary(min_size=1, max_size=8))
def test_any_change_of_a_row_decodes_or_is_corrupt(at: int, new: bytes) -> None:
    good = encode_row(make_row("a" * 20, content_type="text/plain", metadata=b'{"a":1}'), 1)
    at %= len(good)
    raw = good[:at] + new + good[at + len(new) :]
    data = zstandard.compress(raw)
    try:
        (row,) = decode_chunk(data, ref_of(raw[:16], data, 1), TYPES)
        row.metadata_object()
    except CorruptShardError:
        return
    assert row.entry.file_id == file_id("a" * 20)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, b""),
        ({}, b""),
        ({"b": 1, "a": [True, None, 1.5]}, b'{"a":[true,null,1.5],"b":1}'),
        ({"é": "日本"}, '{"é":"日本"}'.encode()),
    ],
)
def test_metadata(metadata: object, expected: bytes) -> None:
    assert encode_metadata(metadata) == expected
    assert make_row("a", metadata=expected).metadata_object() == (metadata or {})


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        "text",
        1,
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": {1, 2}},
        {"a": "\ud800"},
        {"a": "x" * 8185},
        nested(5000),
    ],
    ids=["list", "text", "number", "nan", "infinity", "set", "surrogate", "too long", "too deep"],
)
def test_metadata_that_cannot_be_kept(metadata: object) -> None:
    with pytest.raises(InvalidRequestError):
        encode_metadata(metadata)


def test_the_longest_metadata() -> None:
    assert len(encode_metadata({"a": "x" * 8184})) == 8192


@pytest.mark.parametrize(
    "metadata",
    [
        b"[]",
        b"1",
        b"null",
        b"{",
        b'{"a":1',
        b"\xff\xfe",
        b"[" * 8000,
        b"9" * 8000,
    ],
    ids=["list", "number", "null", "open", "cut", "no utf-8", "deep list", "digits"],
)
def test_metadata_that_is_no_object(metadata: bytes) -> None:
    with pytest.raises(CorruptShardError):
        make_row("a", metadata=metadata).metadata_object()


def test_deep_metadata_is_read_or_corrupt() -> None:
    # How deep is too deep differs from one version of Python to the next.
    try:
        value = make_row("a", metadata=b'{"a":' * 1500 + b"1" + b"}" * 1500).metadata_object()
    except CorruptShardError:
        return
    assert list(value) == ["a"]


def test_every_byte_of_a_chunk_is_covered() -> None:
    rows = encode([make_row(f"file {n}", metadata=b'{"n":%d}' % n) for n in range(20)])
    ((key, data, count),) = encode_chunks(rows)
    ref = ref_of(key, data, count)
    rng = random.Random(5)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.randrange(8)
        with pytest.raises(CorruptShardError, match="damaged"):
            decode_chunk(bytes(damaged), ref, TYPES)
