"""Large payloads: independent chunks and a seek table, so that a range decodes only what it touches.

`layout` states the bytes. Whoever reads a part of a large payload reads its seek table first (the entry's checksum covers it), then the
stored range of the chunks it needs; each chunk is checked before it is decoded.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from dataclasses import dataclass
from itertools import accumulate

from des.errors import CorruptShardError
from des.shard.codecs import Encoder, decode
from des.shard.layout import NAME_BYTES, Buffer, Codec, Entry, checksum32
from des.shard.writing import Payload

LARGE_BYTES = 1 << 20
CHUNK_BYTES = 256 << 10
_SEEK_ITEM = struct.Struct("<II")


def is_large(raw_size: int) -> bool:
    """Tell whether a payload of this raw size is chunked."""
    return raw_size > LARGE_BYTES


def chunk_count(raw_size: int) -> int:
    """Return how many chunks a large payload has."""
    return -(-raw_size // CHUNK_BYTES)


def seek_table_bytes(raw_size: int) -> int:
    """Return the length of a large payload's seek table."""
    return chunk_count(raw_size) * _SEEK_ITEM.size


class LargeEncoder:
    """Turns the chunks of a large payload into stored bytes, one after another."""

    def __init__(self, encoder: Encoder) -> None:
        """Begin a payload that `encoder` compresses."""
        self._encoder = encoder
        self._hash = hashlib.sha256()
        self._table = bytearray()
        self._codec = Codec.NONE
        self._stored_size = 0
        self._raw_size = 0

    def add(self, raw: bytes) -> bytes:
        """Encode the next chunk: 256 KiB, the last one possibly shorter. Returns its stored bytes."""
        codec, stored = self._encoder.encode(raw, dictionary=False)
        if codec is not Codec.NONE:
            self._codec = codec
        self._hash.update(raw)
        self._table += _SEEK_ITEM.pack(len(stored), checksum32(stored))
        self._stored_size += len(stored)
        self._raw_size += len(raw)
        return stored

    def finish(self) -> tuple[bytes, Payload]:
        """Return the seek table, which follows the last chunk, and what the entry must say."""
        table = bytes(self._table)
        summary = Payload(
            content_hash=self._hash.digest()[:NAME_BYTES],
            checksum=checksum32(table),
            codec=self._codec,
            stored_size=self._stored_size + len(table),
            raw_size=self._raw_size,
        )
        return table, summary


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """Chunks `[first, last)` of a payload and where their stored bytes lie, `[start, end)` from the payload's beginning."""

    first: int
    last: int
    start: int
    end: int


class SeekTable:
    """The chunks of one large payload."""

    def __init__(self, entry: Entry, table: Buffer) -> None:
        """Check a seek table against its entry.

        Raises:
            CorruptShardError: wrong length or checksum, or chunks that do not add up to the payload.
        """
        if len(table) != seek_table_bytes(entry.raw_size):
            raise CorruptShardError("a seek table is cut short.")
        if checksum32(table) != entry.checksum:
            raise CorruptShardError("a seek table's checksum is wrong.")
        self._entry = entry
        self._table = bytes(table)
        lengths = array("I", (length for length, _ in _SEEK_ITEM.iter_unpack(self._table)))
        if max(lengths, default=0) > CHUNK_BYTES:
            raise CorruptShardError("a chunk of a payload is stored in more bytes than it has.")
        self._starts = array("Q", accumulate(lengths, initial=0))
        if self._starts[-1] + len(table) != entry.stored_size:
            raise CorruptShardError("a seek table does not add up to its payload.")

    @staticmethod
    def place(entry: Entry) -> tuple[int, int]:
        """Return where an entry's seek table lies in its segment, `[start, end)`.

        Raises:
            CorruptShardError: the table would be longer than the payload.
        """
        end = entry.offset + entry.stored_size
        start = end - seek_table_bytes(entry.raw_size)
        if start < entry.offset:
            raise CorruptShardError("a payload is shorter than its seek table.")
        return start, end

    def span(self, start: int, end: int) -> ChunkSpan:
        """Return the chunks that hold the raw bytes `[start, end)`, which must not be empty and lie in the payload."""
        first, last = start // CHUNK_BYTES, chunk_count(end)
        return ChunkSpan(first, last, self._starts[first], self._starts[last])

    def stored_length(self, index: int) -> int:
        """Return the stored bytes of a chunk."""
        length: int = self._starts[index + 1] - self._starts[index]
        return length

    def decode_chunk(self, index: int, stored: Buffer) -> bytes:
        """Check and decode one chunk.

        Raises:
            CorruptShardError: its checksum or size is wrong.
        """
        length, checksum = _SEEK_ITEM.unpack_from(self._table, index * _SEEK_ITEM.size)
        if len(stored) != length or checksum32(stored) != checksum:
            raise CorruptShardError(f"chunk {index} of a payload is damaged.")
        raw_length = self._raw_length(index)
        codec = Codec.NONE if length == raw_length else self._entry.codec
        return decode(codec, stored, raw_length)

    def _raw_length(self, index: int) -> int:
        return min(CHUNK_BYTES, self._entry.raw_size - index * CHUNK_BYTES)


def decode_large(entry: Entry, stored: Buffer) -> bytes:
    """Check and decode a whole large payload from all its stored bytes, seek table included.

    Raises:
        CorruptShardError: anything about it is damaged.
    """
    view = memoryview(stored)
    table_start = entry.stored_size - seek_table_bytes(entry.raw_size)
    if len(view) != entry.stored_size or table_start < 0:
        raise CorruptShardError("a payload is shorter than its seek table.")
    table = SeekTable(entry, view[table_start:])
    parts = []
    position = 0
    for index in range(chunk_count(entry.raw_size)):
        length = table.stored_length(index)
        parts.append(table.decode_chunk(index, view[position : position + length]))
        position += length
    return b"".join(parts)
