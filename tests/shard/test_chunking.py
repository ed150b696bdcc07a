from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.errors import CorruptShardError
from des.shard.chunking import (
    CHUNK_BYTES,
    LARGE_BYTES,
    LargeEncoder,
    SeekTable,
    chunk_count,
    decode_large,
    is_large,
    seek_table_bytes,
)
from des.shard.codecs import Compression, Encoder
from des.shard.layout import Codec, Entry, checksum32
from des.shard.writing import content_hash
from tests.shard.samples import DICTIONARY, WORDS

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
NOISE = random.Random(2).randbytes(300 << 10)
SIZES = [MIB + 1, MIB + CHUNK_BYTES, MIB + CHUNK_BYTES - 1, MIB + CHUNK_BYTES + 1, 2 * MIB, 2 * MIB + 77]
COMPRESSIONS = [
    Compression("zstd"),
    Compression("lz4"),
    Compression("lz4", 9),
    Compression("none"),
    Compression("zstd", dictionary=DICTIONARY),
]


def text(size: int) -> bytes:
    return (WORDS * (size // len(WORDS) + 1))[:size]


def mixed(size: int) -> bytes:
    """Compressible chunks and chunks that are stored raw."""
    return (text(200 << 10) + NOISE + text(size))[:size]


def encode_large(raw: bytes, compression: Compression = COMPRESSIONS[0]) -> tuple[Entry, bytes]:
    large = LargeEncoder(Encoder(compression))
    pieces = [large.add(raw[at : at + CHUNK_BYTES]) for at in range(0, len(raw), CHUNK_BYTES)]
    table, summary = large.finish()
    stored = b"".join([*pieces, table])
    fields = (summary.content_hash, summary.checksum, 0, 0, summary.codec, 0, 42, summary.stored_size, summary.raw_size)
    return Entry(bytes(16), *fields, 0), stored


def forged(entry: Entry, stored: bytes, items: list[tuple[int, int]]) -> tuple[Entry, bytes]:
    """Return the payload with another seek table, and an entry that vouches for it."""
    start = len(stored) - seek_table_bytes(entry.raw_size)
    table = b"".join(struct.pack("<II", *item) for item in items)
    data = stored[:start] + table
    return entry._replace(checksum=checksum32(table), stored_size=len(data)), data


def items_of(entry: Entry, stored: bytes) -> list[tuple[int, int]]:
    table = stored[len(stored) - seek_table_bytes(entry.raw_size) :]
    return [(length, checksum) for length, checksum in struct.iter_unpack("<II", table)]


@pytest.mark.parametrize(
    ("raw_size", "large", "chunks"),
    [(0, False, 0), (1, False, 1), (MIB, False, 4), (MIB + 1, True, 5), (2 * MIB, True, 8), (1 << 40, True, 1 << 22)],
)
def test_what_is_large(raw_size: int, large: bool, chunks: int) -> None:
    assert is_large(raw_size) is large
    assert chunk_count(raw_size) == chunks
    assert seek_table_bytes(raw_size) == 8 * chunks
    assert LARGE_BYTES == MIB


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda c: f"{c.codec}-{c.level}-{bool(c.dictionary)}")
@pytest.mark.parametrize("content", [text, mixed])
def test_round_trip(size: int, compression: Compression, content: Callable[[int], bytes]) -> None:
    raw = content(size)
    entry, stored = encode_large(raw, compression)
    assert entry.raw_size == size
    assert entry.stored_size == len(stored)
    assert entry.content_hash == content_hash(raw)
    assert entry.codec is {"zstd": Codec.ZSTD, "lz4": Codec.LZ4, "none": Codec.NONE}[compression.codec]
    assert decode_large(entry, stored) == raw


def test_noise_is_stored_raw_with_its_table() -> None:
    raw = (NOISE * 4)[: MIB + 1]
    entry, stored = encode_large(random.Random(3).randbytes(len(raw)))
    assert entry.codec is Codec.NONE
    assert len(stored) == MIB + 1 + 5 * 8


@given(st.data())
def test_any_range_reads_only_its_chunks(data: st.DataObject) -> None:
    raw = mixed(MIB + CHUNK_BYTES + 5)
    entry, stored = encode_large(raw)
    start = data.draw(st.integers(0, len(raw) - 1))
    end = data.draw(st.integers(start + 1, len(raw)))
    table_start, table_end = SeekTable.place(entry)
    table = SeekTable(entry, stored[table_start - entry.offset : table_end - entry.offset])
    span = table.span(start, end)
    assert span.first == start // CHUNK_BYTES
    assert (span.last - 1) * CHUNK_BYTES < end <= span.last * CHUNK_BYTES
    position = span.start
    chunks = []
    for index in range(span.first, span.last):
        length = table.stored_length(index)
        chunks.append(table.decode_chunk(index, stored[position : position + length]))
        position += length
    assert position == span.end
    begin = span.first * CHUNK_BYTES
    assert b"".join(chunks)[start - begin : end - begin] == raw[start:end]


def test_every_byte_of_a_large_payload_is_covered() -> None:
    raw = text(MIB + 10)
    entry, stored = encode_large(raw)
    rng = random.Random(4)
    for position in range(len(stored)):
        damaged = bytearray(stored)
        damaged[position] ^= 1 << rng.randrange(8)
        with pytest.raises(CorruptShardError):
            decode_large(entry, bytes(damaged))


def test_every_truncation_of_a_large_payload() -> None:
    entry, stored = encode_large(text(MIB + 10))
    for length in range(len(stored)):
        with pytest.raises(CorruptShardError):
            decode_large(entry, stored[:length])
    with pytest.raises(CorruptShardError):
        decode_large(entry, stored + b"x")


def test_seek_tables_that_lie() -> None:
    entry, stored = encode_large(text(MIB + 10))
    items = items_of(entry, stored)
    (first, first_sum), (second, second_sum), *rest = items
    lies = {
        "does not add up": [(first, first_sum), (second + 1, second_sum), *rest],
        "2^32 - 1": [(0xFFFF_FFFF, first_sum), (second, second_sum), *rest],
        "overlap": [(first + second, first_sum), (0, second_sum), *rest],
        "swapped": [(second, second_sum), (first, first_sum), *rest],
        "too few": items[:-1],
        "too many": [*items, (0, 0)],
        "none": [],
    }
    for lie in lies.values():
        with pytest.raises(CorruptShardError):
            decode_large(*forged(entry, stored, lie))


def test_what_a_seek_table_itself_refuses() -> None:
    entry, stored = encode_large(text(MIB + 10))
    items = items_of(entry, stored)
    good = stored[-seek_table_bytes(entry.raw_size) :]
    longer = struct.pack("<II", items[0][0] + 1, items[0][1]) + good[8:]
    for table, sentence in ((good[:-8], "cut short"), (good + bytes(8), "cut short"), (longer, "does not add up")):
        with pytest.raises(CorruptShardError, match=sentence):
            SeekTable(entry._replace(checksum=checksum32(table)), table)
    with pytest.raises(CorruptShardError, match="checksum is wrong"):
        SeekTable(entry, longer)


def test_a_chunk_longer_than_its_content_is_refused_before_it_is_read() -> None:
    # One chunk that claims the whole payload would have to be held in memory, however long the payload is.
    raw_size = 1 << 30
    count = chunk_count(raw_size)
    table = struct.pack("<II", 1 << 29, 0) + bytes(8 * (count - 1))
    stored_size = (1 << 29) + len(table)
    entry = Entry(bytes(16), bytes(16), checksum32(table), 0, 0, Codec.ZSTD, 0, 42, stored_size, raw_size, 0)
    with pytest.raises(CorruptShardError, match="more bytes than it has"):
        SeekTable(entry, table)


@pytest.mark.parametrize("codec", [Codec.ZSTD, Codec.LZ4, Codec.NONE])
def test_chunk_with_a_good_checksum_that_does_not_decode(codec: Codec) -> None:
    entry, stored = encode_large(text(MIB + 10))
    items = items_of(entry, stored)
    junk = b"j" * items[0][0]
    items[0] = (len(junk), checksum32(junk))
    entry, stored = forged(entry._replace(codec=codec), junk + stored[len(junk) :], items)
    with pytest.raises(CorruptShardError):
        decode_large(entry, stored)


def test_table_place_of_a_payload_shorter_than_its_table() -> None:
    entry, _ = encode_large(text(MIB + 10))
    with pytest.raises(CorruptShardError, match="shorter than its seek table"):
        SeekTable.place(entry._replace(stored_size=39))
    with pytest.raises(CorruptShardError, match="shorter than its seek table"):
        decode_large(entry._replace(stored_size=39), bytes(39))
