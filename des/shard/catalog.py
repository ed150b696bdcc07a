"""The catalog of a segment: one row a file with all that is known of it. The segments' catalogs are the log, the head is its view."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import zstandard

from des.errors import CorruptShardError, InvalidRequestError
from des.routing import file_id
from des.shard.codecs import decompress_frame, frame_content_size
from des.shard.layout import (
    ENTRY_BYTES,
    MAX_CHUNK_RAW_BYTES,
    MAX_CHUNK_ROWS,
    MAX_METADATA_BYTES,
    ROW,
    Buffer,
    Entry,
    decode_entry,
    second_of_day,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from des.shard.reading import PageRef

# A row with the fields of its entry in place; numbers of 48 bits as their low 32 and high 16.
_DRAFT = struct.Struct("<16s16sIIBBIHIHIHIQqHHI")
# A chunk is what one user metadata read or one step of a listing costs.
CHUNK_TARGET_BYTES = 64 << 10
_CHUNK_LEVEL = 3


@dataclass(frozen=True, slots=True)
class CatalogRow:
    """All that is known of one file or tombstone.

    Attributes:
        entry: its head entry, with segment and content type 0.
        uid: the caller's name; "" in a tombstone that does not keep it.
        created_at: microseconds since 1970, in full precision.
        content_type: from the manifest or guessed from the source's name; None where neither says anything.
        metadata: the user's object as canonical JSON; b"" for none.
        generation: of the head the row was decided on.
    """

    entry: Entry
    uid: str
    created_at: int
    content_type: str | None
    metadata: bytes
    generation: int

    def metadata_object(self) -> dict[str, Any]:
        """Return the user's metadata, {} where there is none.

        Raises:
            CorruptShardError: it is no JSON object.
        """
        try:
            value = json.loads(self.metadata) if self.metadata else {}
        except (ValueError, RecursionError) as error:
            raise CorruptShardError("a file's metadata is no JSON, or nested too deeply.") from error
        if not isinstance(value, dict):
            raise CorruptShardError("a file's metadata is no JSON object.")
        return value


def _number(value: object) -> float:
    """Write a number as streaming parsers hand it over."""
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"a {type(value).__name__} is no JSON")


def encode_metadata(metadata: object) -> bytes:
    """Return user metadata as canonical JSON (sorted keys, no spaces); b"" for None or {}.

    Raises:
        InvalidRequestError: it is no JSON object, or longer than 8 KiB.
    """
    if metadata is None or metadata == {}:
        return b""
    if not isinstance(metadata, dict):
        raise InvalidRequestError("the metadata is not a JSON object.")
    try:
        text = json.dumps(
            metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_number
        )
        encoded = text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the metadata cannot be written as JSON: {error}.") from error
    if len(encoded) > MAX_METADATA_BYTES:
        raise InvalidRequestError(
            f"the metadata has {len(encoded):,} bytes as JSON, but at most {MAX_METADATA_BYTES:,} are kept."
        )
    return encoded


def placed_row(row: bytes, offset: int, type_number: int) -> bytes:
    """Return a draft with the place of its payload and the number of its content type.

    Rows compare as bytes by their file_id first, so sorting them sorts the catalog.
    """
    return row[:42] + offset.to_bytes(6, "little") + row[48:80] + type_number.to_bytes(2, "little") + row[82:]


def draft_row(
    file_id: bytes,
    content_hash: bytes,
    checksum: int,
    codec: int,
    flags: int,
    stored_size: int,
    raw_size: int,
    generation: int,
    created_at: int,
    uid: bytes,
    metadata: bytes,
) -> bytes:
    """Return a row before its payload has a place: encoded, its offset and the number of its content type still 0.

    See `Entry` and `CatalogRow` for its fields. `uid` is UTF-8.
    """
    fixed = _DRAFT.pack(
        file_id,
        content_hash,
        checksum,
        0,
        codec,
        flags,
        0,
        0,
        stored_size & 0xFFFF_FFFF,
        stored_size >> 32,
        raw_size & 0xFFFF_FFFF,
        raw_size >> 32,
        second_of_day(created_at),
        generation,
        created_at,
        0,
        len(uid),
        len(metadata),
    )
    return fixed + uid + metadata


def encode_chunks(rows: Iterable[bytes]) -> Iterator[tuple[bytes, bytes, int]]:
    """Cut encoded, sorted rows into chunks and compress them.

    Yields:
        First key, stored bytes, number of rows.
    """
    compressor = zstandard.ZstdCompressor(level=_CHUNK_LEVEL, write_content_size=True, write_checksum=False)
    pending: list[bytes] = []
    size = 0
    for row in rows:
        if pending and (size + len(row) > CHUNK_TARGET_BYTES or len(pending) == MAX_CHUNK_ROWS):
            yield pending[0][:16], compressor.compress(b"".join(pending)), len(pending)
            pending, size = [], 0
        pending.append(row)
        size += len(row)
    if pending:
        yield pending[0][:16], compressor.compress(b"".join(pending)), len(pending)


def decode_chunk(data: Buffer, ref: PageRef, content_types: Sequence[str]) -> list[CatalogRow]:
    """Check and decode a catalog chunk.

    Args:
        data: its stored bytes.
        ref: its directory item.
        content_types: the segment's table.

    Raises:
        CorruptShardError: damaged, too big, or rows that contradict themselves.
    """
    ref.check(data)
    size = frame_content_size(data)
    if not 0 < size <= MAX_CHUNK_RAW_BYTES:
        raise CorruptShardError("a catalog chunk has an impossible size.")
    raw = memoryview(decompress_frame(data, size))
    rows: list[CatalogRow] = []
    position = 0
    while position < size:
        row, position = _decode_row(raw, position, content_types)
        if rows and rows[-1].entry.file_id >= row.entry.file_id:
            raise CorruptShardError("the rows of a catalog chunk are not in order.")
        rows.append(row)
    if len(rows) != ref.items or rows[0].entry.file_id != ref.first_key:
        raise CorruptShardError("a catalog chunk does not hold what the directory says.")
    return rows


def _decode_row(raw: memoryview, position: int, content_types: Sequence[str]) -> tuple[CatalogRow, int]:
    fixed_end = position + ROW.size
    if fixed_end > len(raw):
        raise CorruptShardError("a catalog row is cut short.")
    _, generation, created_at, type_number, uid_length, metadata_length = ROW.unpack_from(raw, position)
    uid_end = fixed_end + uid_length
    end = uid_end + metadata_length
    if end > len(raw) or type_number > len(content_types):
        raise CorruptShardError("a catalog row points outside its chunk or tables.")
    entry = decode_entry(raw[position : position + ENTRY_BYTES])
    try:
        uid = str(raw[fixed_end:uid_end], "utf-8")
    except UnicodeDecodeError as error:
        raise CorruptShardError("a uid in a catalog is not UTF-8.") from error
    consistent = file_id(uid) == entry.file_id if uid else entry.deleted
    if entry.segment or entry.content_type:
        raise CorruptShardError("an entry in a catalog points into the tables of a head.")
    if not consistent or (not entry.deleted and second_of_day(created_at) != entry.second):
        raise CorruptShardError("a catalog row contradicts its entry.")
    content_type = content_types[type_number - 1] if type_number else None
    return CatalogRow(entry, uid, created_at, content_type, bytes(raw[uid_end:end]), generation), end
