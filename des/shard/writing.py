"""Writing containers: the same rows and settings give the same bytes. Names, clocks and storage belong to the caller."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from des.shard.catalog import draft_row, encode_chunks, placed_row
from des.shard.layout import (
    CHECKSUM_AT_END,
    DIRECTORY_ITEM,
    ENTRY_BYTES,
    FOOTER,
    FOOTER_MAGIC,
    HEADER,
    MAX_CONTENT_TYPES,
    NAME_BYTES,
    RO_COMPAT_CLOSED,
    TAIL_READ_BYTES,
    VERSION,
    Buffer,
    Codec,
    Flag,
    Identity,
    Kind,
    checksum64,
)
from des.shard.tables import DictionaryPlace, HeadTables, SegmentTables, check_limit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from des.shard.catalog import CatalogRow

# Entries a page: 32 KiB preferred, up to 64 KiB where that keeps the tail within one suffix read. See benchmarks/page_size.py.
_PAGE_COUNTS = (512, 640, 768, 896, 1024)


@dataclass(frozen=True, slots=True)
class Payload:
    """A stored payload, or the part of it that an entry describes.

    Attributes:
        content_hash: SHA-256[:16] of the content.
        checksum: of the stored bytes; of the seek table for a large one.
        codec: how it is stored.
        stored_size: bytes in the segment.
        raw_size: bytes of content.
    """

    content_hash: bytes
    checksum: int
    codec: Codec
    stored_size: int
    raw_size: int


def content_hash(raw: Buffer) -> bytes:
    """Return SHA-256[:16] of a content."""
    return hashlib.sha256(raw).digest()[:NAME_BYTES]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a catalog and a head keep of a file besides its payload; see `CatalogRow`."""

    file_id: bytes
    uid: str
    created_at: int
    content_type: str | None
    metadata: bytes
    flags: int = 0


@dataclass(frozen=True, slots=True)
class SegmentSummary:
    """What a head takes over from a finished segment.

    Attributes:
        size: bytes of the object.
        entries: encoded entries sorted by file_id; their content type refers to `content_types`, their segment is 0.
        content_types: the segment's table.
        dictionary: where its dictionary is, if it has one.
    """

    size: int
    entries: bytes
    content_types: tuple[str, ...]
    dictionary: DictionaryPlace | None


class SegmentWriter:
    """Builds one segment. The caller writes `opening`, then each payload it adds, then what `finish` returns."""

    def __init__(
        self,
        identity: Identity,
        generation: int,
        dictionary: bytes | None = None,
        superseded: Sequence[bytes] = (),
    ) -> None:
        """Begin a segment.

        Args:
            identity: the shard it belongs to.
            generation: of the head its rows are decided on.
            dictionary: zstd dictionary its payloads may use.
            superseded: names of the segments it takes the place of.
        """
        self.opening = identity.encode(Kind.SEGMENT) + (dictionary or b"")
        self.size = len(self.opening)
        self._identity = identity
        self._generation = generation
        self._superseded = tuple(superseded)
        self._dictionary = (
            DictionaryPlace(HEADER.size, len(dictionary), content_hash(dictionary)) if dictionary is not None else None
        )
        self._rows: list[bytes] = []
        self._types: dict[str, int] = {}
        self._tombstones = 0
        self.row_bytes = 0

    @property
    def rows(self) -> int:
        """How many rows were added."""
        return len(self._rows)

    def add(self, record: FileRecord, payload: Payload) -> None:
        """Add a file whose stored bytes are the next to be written."""
        draft = draft_row(
            record.file_id,
            payload.content_hash,
            payload.checksum,
            payload.codec,
            record.flags,
            payload.stored_size,
            payload.raw_size,
            self._generation,
            record.created_at,
            record.uid.encode("utf-8"),
            record.metadata,
        )
        self.extend([draft], [record.content_type], [payload.stored_size])

    def extend(self, drafts: Sequence[bytes], content_types: Sequence[str | None], stored_sizes: Sequence[int]) -> None:
        """Add files whose stored bytes are the next to be written, in this order.

        Args:
            drafts: their rows as of `draft_row`.
            content_types: of each; None for none.
            stored_sizes: bytes that the payload of each takes.

        Raises:
            ShardFullError: more content types than a shard takes.
        """
        types, rows, position = self._types, self._rows, self.size
        for draft, content_type, stored_size in zip(drafts, content_types, stored_sizes, strict=True):
            number = types.setdefault(content_type, len(types) + 1) if content_type else 0
            rows.append(placed_row(draft, position, number))
            position += stored_size
        self.size = position
        self.row_bytes += sum(map(len, drafts))
        check_limit(len(types), MAX_CONTENT_TYPES, "content types")

    def add_tombstone(self, file_id: bytes, deleted_hash: bytes, deleted_at: int) -> None:
        """Add a tombstone: the file's id and content hash and the time of its deletion are all that is kept."""
        fields = (0, Codec.NONE, Flag.DELETED, 0, 0, self._generation, deleted_at)
        self._append_tombstone(draft_row(file_id, deleted_hash, *fields, b"", b""))

    def carry(self, row: CatalogRow, payload: Payload | None = None) -> None:
        """Add a row of another segment as it is, with its generation; its stored bytes, if it has any, are the next to be written.

        Args:
            row: a file or a tombstone.
            payload: what is stored now, where the file was encoded anew.
        """
        entry = row.entry
        stored = payload or entry
        fields = (stored.codec, entry.flags, stored.stored_size, entry.raw_size, row.generation, row.created_at)
        draft = draft_row(
            entry.file_id,
            entry.content_hash,
            stored.checksum,
            *fields,
            row.uid.encode(),
            row.metadata,
        )
        if entry.deleted:
            self._append_tombstone(draft)
        else:
            self.extend([draft], [row.content_type], [stored.stored_size])

    def supersede(self, names: Iterable[bytes]) -> None:
        """Name further segments that this one, with those finished before it, takes the place of."""
        self._superseded += tuple(names)

    def _append_tombstone(self, row: bytes) -> None:
        self.row_bytes += len(row)
        self._rows.append(row)
        self._tombstones += 1

    def finish(self) -> tuple[list[bytes], SegmentSummary]:
        """Return the rest of the object (catalog and tail) in pieces, and what the head takes over.

        Raises:
            ShardFullError: more files or content types than a shard takes.
        """
        self._rows.sort()
        pieces: list[bytes] = []
        directory: list[bytes] = []
        position = self.size
        for first_key, stored, count in encode_chunks(self._rows):
            directory.append(DIRECTORY_ITEM.pack(first_key, checksum64(stored), position, len(stored), count, 0))
            pieces.append(stored)
            position += len(stored)
        tables = SegmentTables(
            generation=self._generation,
            rows=len(self._rows),
            tombstones=self._tombstones,
            data_end=self.size,
            dictionary=self._dictionary,
            content_types=tuple(self._types),
            superseded=self._superseded,
        )
        tail = encode_tail(self._identity, Kind.SEGMENT, tables.encode(), directory, position, bytes(NAME_BYTES))
        pieces.append(tail)
        entries = b"".join([row[:38] + row[80:82] + row[40:ENTRY_BYTES] for row in self._rows])
        return pieces, SegmentSummary(position + len(tail), entries, tables.content_types, self._dictionary)


def encode_tail(
    identity: Identity,
    kind: Kind,
    tables: bytes,
    directory: Sequence[bytes],
    start: int,
    stamp: bytes,
    *,
    ro_compat: int = 0,
) -> bytes:
    """Return the tail of an object whose earlier parts have `start` bytes."""
    parts = b"".join([identity.encode(kind), tables, *directory])
    length = len(parts) + FOOTER.size
    fields = (0, ro_compat, len(directory), len(tables), stamp, length, start + length, VERSION, kind)
    unsigned = parts + FOOTER.pack(*fields, 0, FOOTER_MAGIC)[:-CHECKSUM_AT_END]
    return unsigned + checksum64(unsigned).to_bytes(8, "little") + FOOTER_MAGIC


def encode_head(identity: Identity, tables: HeadTables, entries: Buffer, *, closed: bool = False) -> bytes:
    """Return a whole head.

    Args:
        identity: the shard.
        tables: what it says besides its entries.
        entries: all encoded entries sorted by file_id.
        closed: no writer may change it any more.

    Raises:
        ShardFullError: more files, segments or content types than a shard takes.
    """
    view = memoryview(entries)
    encoded = tables.encode()
    stamp = tables.commit_log[-1] if tables.commit_log else bytes(NAME_BYTES)
    page_bytes = _entries_a_page(len(view) // ENTRY_BYTES, len(encoded)) * ENTRY_BYTES
    directory = []
    for start in range(0, len(view), page_bytes):
        page = view[start : start + page_bytes]
        item = (bytes(page[:16]), checksum64(page), HEADER.size + start, len(page), len(page) // ENTRY_BYTES, 0)
        directory.append(DIRECTORY_ITEM.pack(*item))
    flags = RO_COMPAT_CLOSED if closed else 0
    tail = encode_tail(identity, Kind.HEAD, encoded, directory, HEADER.size + len(view), stamp, ro_compat=flags)
    return b"".join([identity.encode(Kind.HEAD), view, tail])


def _entries_a_page(count: int, tables_length: int) -> int:
    fixed = HEADER.size + tables_length + FOOTER.size
    for entries in _PAGE_COUNTS:
        if fixed + -(-count // entries) * DIRECTORY_ITEM.size <= TAIL_READ_BYTES:
            return entries
    return _PAGE_COUNTS[-1]
