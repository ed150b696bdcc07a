"""Payloads: stored bytes in, checked content out. Nothing is decoded or handed out before its checksum was found good."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from des.errors import CorruptShardError
from des.shard.chunking import CHUNK_BYTES, chunk_count, decode_large
from des.shard.codecs import decode
from des.shard.layout import Codec, checksum32
from des.store.heads import named
from des.store.places import elsewhere

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from des.shard.chunking import SeekTable
    from des.shard.layout import Entry
    from des.storage.protocol import Storage
    from des.store.found import FoundFile


def is_same_payload(one: FoundFile, other: FoundFile) -> bool:
    """Tell whether two findings of one file describe the same stored bytes, wherever they lie."""
    a, b = one.entry, other.entry
    return (a.content_hash, a.checksum, a.codec, a.stored_size) == (b.content_hash, b.checksum, b.codec, b.stored_size)


def check_stored(found: FoundFile, stored: bytes | memoryview) -> None:
    """Check a payload's length, and the checksum of one that is not large (a large one has one per chunk).

    Raises:
        CorruptShardError: it is not what the entry says.
    """
    entry = found.entry
    if len(stored) != entry.stored_size or (not found.is_large and checksum32(stored) != entry.checksum):
        raise CorruptShardError(f"{found.segment_key}: the payload of {found.uid!r} is damaged.")


def decode_stored(found: FoundFile, stored: bytes | memoryview, dictionary: bytes | None) -> bytes:
    """Decode a checked payload.

    Raises:
        CorruptShardError: it does not decode to what the entry says.
    """
    entry = found.entry
    try:
        if found.is_large:
            return decode_large(entry, stored)
        return decode(entry.codec, stored, entry.raw_size, dictionary)
    except CorruptShardError as error:
        raise named(error, found.segment_key) from error


async def sliced(content: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a content that is there already, in pieces like those of a large one."""
    for start in range(0, len(content), CHUNK_BYTES):
        yield content[start : start + CHUNK_BYTES]


async def stored_chunks(table: SeekTable, entry: Entry, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Cut the arriving bytes of a whole large payload into its chunks, unchecked; one that is short, and so fails its check, where they end too early."""
    buffer = bytearray()
    for index in range(chunk_count(entry.raw_size)):
        length = table.stored_length(index)
        while len(buffer) < length and (piece := await anext(pieces, b"")):
            buffer += piece
        stored = bytes(memoryview(buffer)[:length])
        del buffer[:length]
        yield stored


async def decoded(
    storage: Storage,
    found: FoundFile,
    table: SeekTable,
    beginning: bytes,
    pieces: AsyncIterator[bytes],
    start: int,
    end: int,
) -> AsyncGenerator[bytes, None]:
    """Cut the arriving bytes of a large payload into chunks, check and decode each, and yield `[start, end)` of the content.

    A chunk that arrives damaged, or not at all, is read in another place of the storage.

    Raises:
        CorruptShardError: the payload is damaged or ends too early.
        StorageError: what the pieces raise.
    """
    span = table.span(start, end)
    buffer = bytearray(beginning)
    position = span.first * CHUNK_BYTES
    for index in range(span.first, span.last):
        length = table.stored_length(index)
        while len(buffer) < length:
            piece = await anext(pieces, b"")
            if not piece:
                break
            buffer += piece
            del piece
        stored = bytes(memoryview(buffer)[:length])
        del buffer[:length]
        try:
            raw = await _decoded_chunk(found, table, index, stored)
        except CorruptShardError as damage:
            raw = await elsewhere(storage, found.segment_key, damage, partial(_read_chunk, found, table, index))
        del stored  # whoever takes the chunk may take its time
        yield raw[max(start - position, 0) : end - position]
        position += len(raw)


async def _read_chunk(found: FoundFile, table: SeekTable, index: int, place: Storage) -> bytes:
    span = table.span(index * CHUNK_BYTES, index * CHUNK_BYTES + 1)
    offset = found.entry.offset
    stored = await place.read_range(found.segment_key, offset + span.start, offset + span.end)
    return await _decoded_chunk(found, table, index, stored)


async def _decoded_chunk(found: FoundFile, table: SeekTable, index: int, stored: bytes) -> bytes:
    if len(stored) < table.stored_length(index):
        raise CorruptShardError(f"{found.segment_key}: the segment ends within the payload of {found.uid!r}.")
    try:
        if found.entry.codec is Codec.NONE:
            return table.decode_chunk(index, stored)
        return await anyio.to_thread.run_sync(table.decode_chunk, index, stored)
    except CorruptShardError as error:
        raise named(error, found.segment_key) from error
