from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from des.errors import CorruptShardError, UnsupportedFormatError
from des.routing import locate_shard
from des.shard.layout import (
    DIRECTORY_ITEM,
    ENTRY,
    ENTRY_BYTES,
    FOOTER,
    FOOTER_MAGIC,
    FROZEN,
    HEADER,
    HEADER_MAGIC,
    MAX_FILE_BYTES,
    MAX_U48,
    ROW,
    Codec,
    Entry,
    Flag,
    Identity,
    Kind,
    checksum32,
    checksum64,
    decode_entry,
    decode_header,
    from_microseconds,
    second_of_day,
    to_microseconds,
)
from tests.shard.forging import changed, forged_header
from tests.shard.samples import IDENTITY

ENTRIES = st.builds(
    Entry,
    file_id=st.binary(min_size=16, max_size=16),
    content_hash=st.binary(min_size=16, max_size=16),
    checksum=st.integers(0, 0xFFFF_FFFF),
    segment=st.integers(0, 0xFFFF),
    content_type=st.integers(0, 0xFFFF),
    codec=st.sampled_from(Codec),
    flags=st.integers(0, 3),
    offset=st.integers(0, MAX_U48),
    stored_size=st.integers(0, MAX_U48),
    raw_size=st.integers(0, MAX_FILE_BYTES),
    second=st.integers(0, 86_399),
)
ENTRY_EXAMPLE = Entry(bytes(16), bytes(16), 7, 1, 2, Codec.LZ4, 2, 42, 100, 200, 86_399)


def test_sizes_are_those_of_the_docstring() -> None:
    layouts = (HEADER, FOOTER, FROZEN, DIRECTORY_ITEM, ENTRY, ROW)
    assert [layout.size for layout in layouts] == [42, 64, 32, 40, 64, 88]
    assert bytes.fromhex("89 44 45 53 0D 0A 1A 0A") == HEADER_MAGIC
    assert bytes.fromhex("0A 1A 0A 0D 53 45 44 89") == FOOTER_MAGIC


def test_checksums_are_xxh3() -> None:
    # The empty input's digest is a published test vector of XXH3-64 with seed 0.
    assert checksum64(b"") == 0x2D06_8005_38D3_94C2
    assert checksum32(b"") == 0x38D3_94C2
    assert checksum64(memoryview(b"xabcx")[1:4]) == xxhash.xxh3_64_intdigest(b"abc")


def test_header_bytes() -> None:
    encoded = IDENTITY.encode(Kind.HEAD)
    written_by_hand = b"\x89DES\r\n\x1a\n" + struct.pack("<HBBHI", 1, 2, 8, 0x5A, 20240131) + bytes(range(16))
    assert encoded[:34] == written_by_hand
    assert int.from_bytes(encoded[34:], "little") == xxhash.xxh3_64_intdigest(written_by_hand)
    assert decode_header(encoded) == (IDENTITY, Kind.HEAD)
    assert decode_header(encoded + b"more") == (IDENTITY, Kind.HEAD)


@given(
    store_id=st.binary(min_size=16, max_size=16),
    day=st.dates(),
    n_bits=st.integers(1, 16),
    index=st.integers(0, 0xFFFF),
    kind=st.sampled_from(Kind),
)
def test_header_round_trip(store_id: bytes, day: datetime, n_bits: int, index: int, kind: Kind) -> None:
    identity = Identity(store_id, f"{day.year:04}{day.month:02}{day.day:02}", n_bits, index >> (16 - n_bits))
    assert decode_header(identity.encode(kind)) == (identity, kind)


def test_identity_names_its_objects() -> None:
    location = locate_shard("a", "2024-01-31", 12)
    identity = Identity.of(location, bytes(16), 12)
    assert identity.head_key == location.object_key == "20240131/CA9.des"
    assert identity.segment_prefix == "20240131/CA9/"
    assert identity.segment_key(bytes(range(16))) == "20240131/CA9/000102030405060708090a0b0c0d0e0f.des"


@pytest.mark.parametrize(
    "data",
    [b"", IDENTITY.encode(Kind.HEAD)[:41], b"\x89PNG" + bytes(60), b"\x89DES\n\x1a\n" + bytes(60), bytes(42)],
    ids=["empty", "short", "png", "text mode", "zeros"],
)
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(CorruptShardError, match="does not begin with a DES header"):
        decode_header(data)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"version": 0}, UnsupportedFormatError, "version 0"),
        ({"version": 2}, UnsupportedFormatError, "version 2"),
        ({"kind": 0}, UnsupportedFormatError, "kind 0"),
        ({"kind": 3}, UnsupportedFormatError, "kind 3"),
        ({"n_bits": 0}, CorruptShardError, "impossible shard"),
        ({"n_bits": 17}, CorruptShardError, "impossible shard"),
        ({"n_bits": 255}, CorruptShardError, "impossible shard"),
        ({"shard_index": 256}, CorruptShardError, "impossible shard"),
        ({"date": 0}, CorruptShardError, "impossible shard"),
        ({"date": 20240230}, CorruptShardError, "impossible shard"),
        ({"date": 0xFFFF_FFFF}, CorruptShardError, "impossible shard"),
    ],
)
def test_header_that_says_what_this_release_does_not_take(
    change: dict[str, int], error: type[CorruptShardError], sentence: str
) -> None:
    with pytest.raises(CorruptShardError, match=sentence) as caught:
        decode_header(forged_header(IDENTITY.encode(Kind.HEAD), **change))
    assert type(caught.value) is error


def test_damaged_header_is_corrupt_and_never_unsupported() -> None:
    damaged = changed(IDENTITY.encode(Kind.HEAD), 8, b"\2")
    with pytest.raises(CorruptShardError, match="checksum") as caught:
        decode_header(damaged)
    assert type(caught.value) is CorruptShardError


def test_entry_bytes() -> None:
    entry = Entry(b"f" * 16, b"c" * 16, 0x0102_0304, 0x0506, 0x0708, Codec.LZ4, 2, 0x0B0C_0D0E_0F10, 0x1A, 0x1B, 0x1C)
    assert entry.encode() == (
        b"f" * 16
        + b"c" * 16
        + bytes.fromhex("04030201 0605 0807 02 02 100f0e0d0c0b 1a0000000000 1b0000000000 1c000000")
    )
    assert len(entry.encode()) == ENTRY_BYTES


@given(ENTRIES, st.integers(0, 3))
def test_entry_round_trip(entry: Entry, entries_before: int) -> None:
    data = bytes(ENTRY_BYTES * entries_before) + entry.encode()
    assert decode_entry(data, ENTRY_BYTES * entries_before) == entry
    assert entry.deleted == bool(entry.flags & Flag.DELETED)
    assert entry.replaced == bool(entry.flags & Flag.REPLACED)


@pytest.mark.parametrize("codec", [4, 5, 127, 255])
def test_unknown_codec(codec: int) -> None:
    with pytest.raises(UnsupportedFormatError, match=f"codec {codec}"):
        decode_entry(changed(ENTRY_EXAMPLE.encode(), 40, bytes([codec])))


@pytest.mark.parametrize("flags", [4, 7, 128, 255])
def test_unknown_entry_flag(flags: int) -> None:
    with pytest.raises(UnsupportedFormatError, match=f"flags {flags:#x}"):
        decode_entry(changed(ENTRY_EXAMPLE.encode(), 41, bytes([flags])))


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY_EXAMPLE._replace(second=86_400),
        ENTRY_EXAMPLE._replace(second=0xFFFF_FFFF),
        ENTRY_EXAMPLE._replace(raw_size=MAX_FILE_BYTES + 1),
        ENTRY_EXAMPLE._replace(raw_size=MAX_U48),
    ],
)
def test_impossible_entry(entry: Entry) -> None:
    with pytest.raises(CorruptShardError, match="impossible time or size"):
        decode_entry(entry.encode())


def test_codecs_have_the_names_of_the_contract() -> None:
    assert [codec.wire_name for codec in Codec] == ["none", "zstd", "lz4", "zstd-dict"]


@given(st.datetimes(timezones=st.timezones()))
def test_times_are_exact(instant: datetime) -> None:
    try:
        expected = instant.astimezone(UTC)
    except OverflowError:
        return
    microseconds = to_microseconds(instant)
    assert from_microseconds(microseconds) == expected
    assert second_of_day(microseconds) == expected.hour * 3600 + expected.minute * 60 + expected.second


@pytest.mark.parametrize("microseconds", [-(1 << 63), (1 << 63) - 1, 253_402_300_800_000_000, -62_135_596_800_000_001])
def test_time_outside_the_calendar(microseconds: int) -> None:
    with pytest.raises(CorruptShardError, match="outside the calendar"):
        from_microseconds(microseconds)
