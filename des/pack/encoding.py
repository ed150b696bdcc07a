"""Encoding batches of small files in a worker thread: read, hash, look up, compress. One thread hop serves a whole batch."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from des.pack.decisions import Candidate
from des.pack.remote import RemoteLarge
from des.pack.sources import SourceError, read_small
from des.shard.chunking import LargeEncoder
from des.shard.codecs import Compression, Encoder, guess_content_type, worth_trying
from des.shard.layout import Codec, Entry, checksum32, second_of_day
from des.shard.writing import FileRecord, Payload, content_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from des.errors import Status
    from des.pack.plan import PlannedRow
    from des.pack.remote import Fetched

BATCH_FILES = 256
# A batch ends early once it holds this many stored bytes: it bounds the memory of a batch to this and one small file.
BATCH_BYTES = 8 << 20
_NOTHING_FETCHED: Mapping[int, Fetched] = MappingProxyType({})
# What is encoded anew comes on top of its batch.
ANEW_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Encoded:
    """A small file ready to be written."""

    row: PlannedRow
    stored: bytes
    payload: Payload


@dataclass(frozen=True, slots=True)
class Existing:
    """A file whose file_id the head has already; `size` bytes long, `version` as of `Large`."""

    row: PlannedRow
    size: int
    candidate: Candidate
    entry: Entry
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Large:
    """A file to be streamed, `size` bytes long.

    Attributes:
        row: of the plan.
        size: bytes.
        version: of the object where its source is on S3.
        expected: the content hash that was decided on, None where any will do.
    """

    row: PlannedRow
    size: int
    version: str | None = None
    expected: bytes | None = None


@dataclass(frozen=True, slots=True)
class Unusable:
    """A file whose source cannot be packed."""

    row: PlannedRow
    error: str
    status: Status = "invalid"


Item = Encoded | Existing | Large | Unusable


class _Encoders(threading.local):
    def __init__(self) -> None:
        self.compression: Compression | None = None
        self.encoder: Encoder | None = None
        self.raw = Encoder(Compression("none"))


_encoders = _Encoders()


def _is_worth_trying(row: PlannedRow) -> bool:
    return worth_trying((row.uid, row.source_path), row.content_type)


def large_encoder_for(compression: Compression, row: PlannedRow) -> LargeEncoder:
    """Return an encoder of its own for a large file, whose pieces go through several threads, one after another."""
    return LargeEncoder(Encoder(compression if _is_worth_trying(row) else Compression("none")))


def _encoder_for(compression: Compression, row: PlannedRow) -> Encoder:
    """Return this thread's encoder for a file: one that stores raw where compressing is known to be vain."""
    if not _is_worth_trying(row):
        return _encoders.raw
    if _encoders.compression is not compression or _encoders.encoder is None:
        _encoders.encoder = Encoder(compression)
        _encoders.compression = compression
    return _encoders.encoder


def stored_content_type(row: PlannedRow) -> str | None:
    """Return the media type to keep: the manifest's; else the source's where the uid itself lets none be guessed."""
    if row.content_type is not None:
        return row.content_type
    return None if guess_content_type(row.uid) else guess_content_type(row.source_path)


def candidate_for(row: PlannedRow, digest: bytes, size: int) -> Candidate:
    """Return what makes a source the same as a stored file."""
    return Candidate(digest, size, stored_content_type(row), second_of_day(row.created_at))


def record_for(row: PlannedRow, flags: int) -> FileRecord:
    """Return what catalog and head keep of a row."""
    return FileRecord(row.file_id, row.uid, row.created_at, stored_content_type(row), row.metadata, flags)


def encode_batch(
    rows: Sequence[PlannedRow],
    find: Callable[[bytes], Entry | None],
    compression: Compression,
    fetched: Mapping[int, Fetched] = _NOTHING_FETCHED,
) -> tuple[list[Item], Sequence[PlannedRow]]:
    """Read and encode rows in order.

    Args:
        rows: at most `BATCH_FILES`.
        find: what the head has under a file_id. What it has is not compressed but handed back for a decision.
        compression: of the run.
        fetched: what came of the rows whose sources are on S3, by row number.

    Returns:
        The items in order, and the rows that did not fit into the batch's bytes.
    """
    items: list[Item] = []
    held = 0
    for index, row in enumerate(rows):
        if held > BATCH_BYTES:
            return items, rows[index:]
        item = _encode(row, find, compression, fetched)
        if isinstance(item, Encoded):
            held += len(item.stored)
        items.append(item)
    return items, ()


def _encode(
    row: PlannedRow, find: Callable[[bytes], Entry | None], compression: Compression, fetched: Mapping[int, Fetched]
) -> Item:
    try:
        raw = _read(row, fetched)
    except SourceError as error:
        return Unusable(row, str(error), error.status)
    if isinstance(raw, int):
        return Large(row, raw)
    if isinstance(raw, RemoteLarge):
        return Large(row, raw.size, raw.version)
    digest = content_hash(raw)
    entry = find(row.file_id)
    if entry is not None:
        return Existing(row, len(raw), candidate_for(row, digest, len(raw)), entry)
    codec, stored = _encoder_for(compression, row).encode(raw)
    return Encoded(row, stored, Payload(digest, checksum32(stored), Codec(codec), len(stored), len(raw)))


def _read(row: PlannedRow, fetched: Mapping[int, Fetched]) -> bytes | int | RemoteLarge:
    found = fetched.get(row.number)
    if found is None:
        return read_small(row)
    if isinstance(found, SourceError):
        raise found
    return found


def encode_anew(
    wanted: Sequence[Existing], compression: Compression, fetched: Mapping[int, Fetched] = _NOTHING_FETCHED
) -> list[Encoded | Unusable]:
    """Read and encode small files that shall be packed although the head has their file_ids.

    Returns:
        As many as fit into `ANEW_BYTES`, one at least, in order: `Unusable` where the source is not any more what was decided on.
    """
    encoded: list[Encoded | Unusable] = []
    held = 0
    for item in wanted:
        if held > ANEW_BYTES:
            break
        again = _encode_expected(item.row, item.candidate, compression, fetched)
        if isinstance(again, Encoded):
            held += len(again.stored)
        encoded.append(again)
    return encoded


def _encode_expected(
    row: PlannedRow, expected: Candidate, compression: Compression, fetched: Mapping[int, Fetched]
) -> Encoded | Unusable:
    item = _encode(row, lambda _: None, compression, fetched)
    if isinstance(item, Unusable):
        return item
    if isinstance(item, Encoded) and item.payload.content_hash == expected.content_hash:
        return item
    return Unusable(row, "the source changed while it was read.")
