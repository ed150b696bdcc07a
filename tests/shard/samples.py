"""Containers to test with, and the two ways to look at one: read everything in it, and check every byte of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from des.errors import CorruptShardError
from des.routing import file_id
from des.shard.catalog import CatalogRow, decode_chunk
from des.shard.chunking import decode_large, is_large
from des.shard.codecs import Compression, Encoder, decode
from des.shard.layout import (
    ENTRY_BYTES,
    HEADER,
    TAIL_READ_BYTES,
    Codec,
    Entry,
    Identity,
    Kind,
    checksum32,
    decode_entry,
    decode_header,
)
from des.shard.merging import Addition, merge
from des.shard.reading import Head, Segment, Tail, check_page_order, check_sizes, find_entry, parse_tail, tail_length
from des.shard.tables import DictionaryPlace, HeadTables
from des.shard.writing import (
    FileRecord,
    SegmentSummary,
    SegmentWriter,
    content_hash,
    encode_head,
)
from tests.payloads import encode_payload

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

IDENTITY = Identity(bytes(range(16)), "20240131", 8, 0x5A)
MIDNIGHT = 1_706_659_200_000_000  # 2024-01-31T00:00Z in microseconds
COMMITTED = MIDNIGHT + 90_000_000
LINEAGE = b"lineage of tests"
WORDS = b"the quick brown fox jumps over the lazy dog and looks back at it; "
# A raw-content dictionary that the words above profit from.
DICTIONARY = WORDS * 4


@dataclass(frozen=True, slots=True)
class Sample:
    """A file to pack."""

    uid: str
    raw: bytes
    created_at: int = MIDNIGHT
    content_type: str | None = None
    metadata: bytes = b""
    flags: int = 0

    @property
    def file_id(self) -> bytes:
        return file_id(self.uid)


@dataclass(frozen=True, slots=True)
class BuiltSegment:
    """A finished segment, its name, and what a head takes over from it."""

    name: bytes
    data: bytes
    summary: SegmentSummary


def segment_name(number: int) -> bytes:
    return hashlib.sha256(b"segment %d" % number).digest()[:16]


def build_segment(
    samples: Iterable[Sample],
    *,
    number: int = 0,
    compressions: Sequence[Compression] = (Compression(),),
    tombstones: Iterable[Sample] = (),
    superseded: Sequence[bytes] = (),
    generation: int = 1,
    identity: Identity = IDENTITY,
) -> BuiltSegment:
    """Pack samples into one segment, each with the next of the compressions."""
    dictionary = next((c.dictionary for c in compressions if c.dictionary is not None), None)
    writer = SegmentWriter(identity, generation, dictionary, superseded)
    encoders = [Encoder(compression) for compression in compressions]
    pieces = [writer.opening]
    for position, sample in enumerate(samples):
        encoder = encoders[position % len(encoders)]
        record = FileRecord(
            sample.file_id, sample.uid, sample.created_at, sample.content_type, sample.metadata, sample.flags
        )
        stored, payload = encode_payload(encoder, sample.raw)
        pieces.append(stored)
        writer.add(record, payload)
    for sample in tombstones:
        writer.add_tombstone(sample.file_id, content_hash(sample.raw), sample.created_at)
    rest, built = writer.finish()
    return BuiltSegment(segment_name(number), b"".join([*pieces, *rest]), built)


def build_head(segments: Iterable[BuiltSegment], *, identity: Identity = IDENTITY) -> bytes:
    """Commit segments one after another, and return the head."""
    tables, entries = HeadTables(1, LINEAGE), b""
    for number, segment in enumerate(segments):
        tables, entries = merge(tables, entries, [Addition(segment.name, segment.summary)], COMMITTED)
        tables = tables.committed(hashlib.sha256(b"commit %d" % number).digest()[:16])
    return encode_head(identity, tables, entries)


def entry_of(summary: SegmentSummary, uid: str) -> Entry:
    found = find_entry(summary.entries, file_id(uid))
    assert found is not None
    return found


def read_tail(data: bytes) -> Tail:
    """Read a tail as a store does: one suffix, one more read where that was too short."""
    suffix = data[-TAIL_READ_BYTES:]
    return parse_tail(data[-tail_length(suffix, len(data)) :], len(data))


def open_head(data: bytes, identity: Identity = IDENTITY) -> Head:
    return Head(read_tail(data), identity)


def open_segment(data: bytes, identity: Identity = IDENTITY) -> Segment:
    return Segment(read_tail(data), identity)


def lookup(head: Head, data: bytes, identifier: bytes) -> Entry | None:
    """Find an entry as a store does."""
    ref = head.find_page(identifier)
    if ref is None:
        return None
    page = data[ref.offset : ref.end]
    ref.check(page)
    entry = find_entry(page, identifier)
    if entry is not None:
        head.check_entry(entry)
    return entry


def read_dictionary(segment: bytes, place: DictionaryPlace) -> bytes:
    dictionary = segment[place.offset : place.offset + place.length]
    if content_hash(dictionary) != place.content_hash:
        raise CorruptShardError("the dictionary is damaged.")
    return dictionary


def read_payload(entry: Entry, segment: bytes, place: DictionaryPlace | None) -> bytes:
    """Check and decode one payload as a store does."""
    stored = segment[entry.offset : entry.offset + entry.stored_size]
    if is_large(entry.raw_size):
        return decode_large(entry, stored)
    if len(stored) != entry.stored_size or checksum32(stored) != entry.checksum:
        raise CorruptShardError("the payload is damaged.")
    dictionary = read_dictionary(segment, place) if place and entry.codec is Codec.ZSTD_DICT else None
    return decode(entry.codec, stored, entry.raw_size, dictionary)


@dataclass(frozen=True, slots=True)
class Answers:
    """All answers a shard gives: contents (None: deleted) and catalog rows by file_id."""

    contents: dict[bytes, bytes | None] = field(default_factory=dict)
    rows: dict[tuple[bytes, bytes], CatalogRow] = field(default_factory=dict)


def read_everything(
    head_data: bytes, segments: Mapping[bytes, bytes], wanted: Iterable[bytes], identity: Identity = IDENTITY
) -> Answers:
    """Look every wanted file up in the head and read its content, then read every catalog.

    Raises:
        CorruptShardError, UnsupportedFormatError: whatever the public reading functions raise; here they are not caught.
    """
    answers = Answers()
    head = open_head(head_data, identity)
    for identifier in wanted:
        entry = lookup(head, head_data, identifier)
        if entry is None:
            continue
        ref = head.tables.segments[entry.segment]
        answers.contents[identifier] = (
            None if entry.deleted else read_payload(entry, segments[ref.name], ref.dictionary)
        )
    for ref in head.tables.segments:
        for row in read_rows(segments[ref.name], identity):
            row.metadata_object()
            answers.rows[ref.name, row.entry.file_id] = row
    return answers


def read_rows(data: bytes, identity: Identity = IDENTITY) -> list[CatalogRow]:
    segment = open_segment(data, identity)
    types = segment.tables.content_types
    return [row for ref in segment.directory.refs() for row in decode_chunk(data[ref.offset : ref.end], ref, types)]


def check_opening(data: bytes, tail: Tail) -> None:
    if decode_header(data[: HEADER.size]) != (tail.identity, tail.kind):
        raise CorruptShardError("the header contradicts the tail.")


def check_head_fully(data: bytes, identity: Identity = IDENTITY) -> bytes:
    """Check every byte of a head; return its entries.

    Raises:
        CorruptShardError: a byte is not what it was.
    """
    head = open_head(data, identity)
    check_opening(data, head.tail)
    head.check_structure()
    pages = []
    for ref in head.directory.refs():
        page = data[ref.offset : ref.end]
        ref.check(page)
        check_page_order(page, ref)
        for at in range(0, len(page), ENTRY_BYTES):
            head.check_entry(decode_entry(page, at))
        pages.append(page)
    return b"".join(pages)


def _place(entry: Entry) -> tuple[int, int]:
    return entry.offset, entry.stored_size  # an empty payload has the offset of the next


def check_segment_fully(data: bytes, identity: Identity = IDENTITY) -> None:
    """Check every byte of a segment: its index, its dictionary, and every payload down to its content.

    Raises:
        CorruptShardError: a byte is not what it was.
    """
    segment = open_segment(data, identity)
    assert segment.tail.kind is Kind.SEGMENT
    check_opening(data, segment.tail)
    place = segment.tables.dictionary
    position = HEADER.size
    if place is not None:
        read_dictionary(data, place)
        position += place.length
    rows = read_rows(data, identity)
    for entry in sorted((row.entry for row in rows if not row.entry.deleted), key=_place):
        check_sizes(entry)
        if entry.offset != position:
            raise CorruptShardError("the payloads of a segment do not follow each other.")
        if content_hash(read_payload(entry, data, place)) != entry.content_hash:
            raise CorruptShardError("a content is not what it was.")
        position += entry.stored_size
    if position != segment.tables.data_end:
        raise CorruptShardError("the payloads of a segment do not fill its data.")
