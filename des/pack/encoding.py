"""Encoding batches of small files in a worker thread: read, look up, compress, hash, draft their catalog rows.

One hop to a worker serves a whole batch, and one entry into the compressor all that is compressed together. What comes out needs no more work by file than
to be told its offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from des.pack.decisions import Candidate
from des.pack.per_thread import PerThread
from des.pack.sources import SourceError, read_small
from des.shard.catalog import draft_row
from des.shard.chunking import LargeEncoder
from des.shard.codecs import Compression, Encoder, extension_of, type_of_extension, worth_trying
from des.shard.layout import Codec, Entry, checksum32, second_of_day
from des.shard.writing import FileRecord, content_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from des.errors import Status
    from des.pack.plan import PlannedRow
    from des.pack.remote import Fetched, RemoteLarge

BATCH_FILES = 512
# Files are compressed together once so many bytes of them were read, so that little is held both raw and encoded.
RUN_BYTES = 1 << 20
# A batch ends early once it holds this many stored bytes: it bounds the memory of a batch to this and one small file.
BATCH_BYTES = 4 << 20
_NOTHING_FETCHED: Mapping[int, Fetched] = MappingProxyType({})
# What is encoded anew comes on top of its batch.
ANEW_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class EncodedRun:
    """Small files ready to be written, one after another.

    In columns, because an object for each would take longer to make than to use.

    Attributes:
        numbers: of their rows, rising.
        drafts: their catalog rows as of `draft_row`.
        content_types: None for none.
        stored_sizes: bytes of their payloads.
        raw_sizes: bytes of their contents.
        stored: their payloads, back to back.
    """

    numbers: Sequence[int]
    drafts: Sequence[bytes]
    content_types: Sequence[str | None]
    stored_sizes: Sequence[int]
    raw_sizes: Sequence[int]
    stored: bytes

    def split(self, count: int) -> tuple[EncodedRun, EncodedRun]:
        """Return the first `count` files, and the others."""
        size = sum(self.stored_sizes[:count])
        return self._part(slice(count), self.stored[:size]), self._part(slice(count, None), self.stored[size:])

    def _part(self, files: slice, stored: bytes) -> EncodedRun:
        return EncodedRun(
            self.numbers[files],
            self.drafts[files],
            self.content_types[files],
            self.stored_sizes[files],
            self.raw_sizes[files],
            stored,
        )


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


Item = EncodedRun | Existing | Large | Unusable


@dataclass(frozen=True, slots=True)
class Base:
    """What encoding needs to know of the head that is decided on.

    Attributes:
        find: returns the entry of a file_id; None where the head is empty.
        generation: of the head.
    """

    find: Callable[[bytes], Entry | None] | None
    generation: int


_encoder_for = PerThread(Encoder)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a row's names and media type say: the media type to keep, and whether compressing is worth an attempt."""

    content_type: str | None
    is_worth_trying: bool


@lru_cache(maxsize=4096)
def _kind(uid: str, source: str, content_type: str | None) -> _Kind:
    """Judge by the extensions of uid and source. A media type the manifest does not say is the source's, where the uid itself lets none be guessed."""
    worth = worth_trying((uid, source), content_type)
    if content_type is None and type_of_extension(uid) is None:
        content_type = type_of_extension(source)
    return _Kind(content_type, worth)


def _kind_of(row: PlannedRow) -> _Kind:
    return _kind(extension_of(row.uid), extension_of(row.source_path), row.content_type)


def is_worth_trying(row: PlannedRow) -> bool:
    """Tell whether compressing a row's content is worth an attempt, going by its names and media type."""
    return _kind_of(row).is_worth_trying


def large_encoder_for(compression: Compression, row: PlannedRow) -> LargeEncoder:
    """Return an encoder of its own for a large file, whose pieces go through several threads, one after another."""
    return LargeEncoder(Encoder(compression if _kind_of(row).is_worth_trying else Compression("none")))


def candidate_for(row: PlannedRow, digest: bytes, size: int) -> Candidate:
    """Return what makes a source the same as a stored file."""
    return Candidate(digest, size, _kind_of(row).content_type, second_of_day(row.created_at))


def record_for(row: PlannedRow, flags: int) -> FileRecord:
    """Return what catalog and head keep of a row."""
    return FileRecord(row.file_id, row.uid, row.created_at, _kind_of(row).content_type, row.metadata, flags)


def encode_batch(
    rows: Sequence[PlannedRow],
    base: Base,
    compression: Compression,
    fetched: Mapping[int, Fetched] = _NOTHING_FETCHED,
) -> tuple[list[Item], Sequence[PlannedRow]]:
    """Read and encode rows in order.

    Args:
        rows: at most `BATCH_FILES`.
        base: the head. What it has is not compressed but handed back for a decision.
        compression: of the run.
        fetched: what came of the rows whose sources are on S3, by row number.

    Returns:
        The items in order, and the rows that did not fit into the batch's bytes.
    """
    items: list[Item] = []
    held = size = 0
    waiting: list[PlannedRow] = []
    raws: list[bytes] = []
    for index, row in enumerate(rows):
        if held + size > BATCH_BYTES:
            rest = rows[index:]
            break
        other: Item | None = None
        try:
            raw = read_source(row, fetched) if fetched else read_small(row)
        except SourceError as error:
            other = Unusable(row, str(error), error.status)
        else:
            if not isinstance(raw, bytes):
                other = _large(row, raw)
            elif base.find is not None and (entry := base.find(row.file_id)) is not None:
                other = Existing(row, len(raw), candidate_for(row, content_hash(raw), len(raw)), entry)
            else:
                waiting.append(row)
                raws.append(raw)
                size += len(raw)
        if waiting and (other is not None or size >= RUN_BYTES):
            run = _encode_run(waiting, raws, 0, base.generation, compression)
            items.append(run)
            held += len(run.stored)
            size, waiting, raws = 0, [], []
        if other is not None:
            items.append(other)
    else:
        rest = ()
    if waiting:
        items.append(_encode_run(waiting, raws, 0, base.generation, compression))
    return items, rest


def _large(row: PlannedRow, raw: int | RemoteLarge) -> Large:
    return Large(row, raw) if isinstance(raw, int) else Large(row, raw.size, raw.version)


def read_source(row: PlannedRow, fetched: Mapping[int, Fetched]) -> bytes | int | RemoteLarge:
    """Return a small source's content, wherever it is; of a large one, what it takes to stream it.

    Raises:
        SourceError: as for `read_small`, or what came of fetching it.
    """
    found = fetched.get(row.number)
    if found is None:
        return read_small(row)
    if isinstance(found, SourceError):
        raise found
    return found


def _encode_run(
    rows: Sequence[PlannedRow], raws: Sequence[bytes], flags: int, generation: int, compression: Compression
) -> EncodedRun:
    kinds = [_kind_of(row) for row in rows]
    wanted = [raw for raw, kind in zip(raws, kinds, strict=True) if kind.is_worth_trying]
    tried = iter(_encoder_for(compression).encode_many(wanted))
    drafts = []
    payloads = []
    for row, raw, kind in zip(rows, raws, kinds, strict=True):
        codec, stored = next(tried) if kind.is_worth_trying else (Codec.NONE, raw)
        draft = draft_row(
            row.file_id,
            content_hash(raw),
            checksum32(stored),
            codec,
            flags,
            len(stored),
            len(raw),
            generation,
            row.created_at,
            row.uid.encode(),
            row.metadata,
        )
        payloads.append(stored)
        drafts.append(draft)
    return EncodedRun(
        [row.number for row in rows],
        drafts,
        [kind.content_type for kind in kinds],
        list(map(len, payloads)),
        list(map(len, raws)),
        b"".join(payloads),
    )


@dataclass(frozen=True, slots=True)
class Anew:
    """A small file that shall be written although the head has its file_id: not encoded yet."""

    item: Existing
    flags: int


def encode_anew(
    wanted: Sequence[Anew],
    generation: int,
    compression: Compression,
    fetched: Mapping[int, Fetched] = _NOTHING_FETCHED,
) -> list[EncodedRun | Unusable]:
    """Read and encode small files that shall be packed although the head has their file_ids.

    Returns:
        As many as fit into `ANEW_BYTES`, one at least, in order and each for itself: `Unusable` where the source is not any more what was decided on.
    """
    encoded: list[EncodedRun | Unusable] = []
    held = 0
    for anew in wanted:
        if held > ANEW_BYTES:
            break
        row = anew.item.row
        try:
            raw = read_source(row, fetched)
        except SourceError as error:
            encoded.append(Unusable(row, str(error), error.status))
            continue
        if not isinstance(raw, bytes) or content_hash(raw) != anew.item.candidate.content_hash:
            encoded.append(Unusable(row, "the source changed while it was read."))
            continue
        run = _encode_run([row], [raw], anew.flags, generation, compression)
        held += len(run.stored)
        encoded.append(run)
    return encoded
