"""Reading containers: tail first, then what its directory points to.

Rules:

- A checksum is checked before any field it covers is interpreted. The one exception is the tail's own length, which only decides how
  many bytes the checksum must be good for.
- Nothing is allocated by a count or size that was not checked against bytes that are there.
- A page stays bytes: a lookup is a binary search over a memoryview, and an entry becomes an object only when it was found. Its keys are
  unpacked by C code alone (`KEY.unpack_from`), which takes half the time of slicing. Of a directory only the first keys are objects.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from des.errors import ConflictError, CorruptShardError, UnsupportedFormatError
from des.shard.chunking import is_large, seek_table_bytes
from des.shard.layout import (
    CHECKSUM_AT_END,
    DIRECTORY_ITEM,
    ENTRY_BYTES,
    FOOTER,
    FOOTER_MAGIC,
    FROZEN,
    HEADER,
    KEY,
    MAX_TAIL_BYTES,
    MAX_U48,
    RO_COMPAT_CLOSED,
    Buffer,
    Codec,
    Entry,
    Identity,
    Kind,
    check_version,
    checksum64,
    decode_entry,
    decode_header,
)
from des.shard.tables import HeadTables, SegmentTables

KNOWN_INCOMPAT = 0
KNOWN_RO_COMPAT = 0
_FIRST_KEY = struct.Struct("<16s24x")  # of a directory item
# Every read asks for its page: so many of a head's are kept once they were checked, all of them up to 8,000 files.
KEPT_PAGES = 16
MINIMUM_TAIL = HEADER.size + FOOTER.size


class PageRef(NamedTuple):
    """An item of a directory: where a page or catalog chunk lies, `[offset, offset + length)`, and its checksum."""

    first_key: bytes
    checksum: int
    offset: int
    length: int
    items: int
    object_number: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.offset + self.length

    def check(self, data: Buffer) -> None:
        """Check the bytes of the page or chunk.

        Raises:
            CorruptShardError: they are not what the directory says.
        """
        if len(data) != self.length or checksum64(data) != self.checksum:
            raise CorruptShardError("a page of the index is damaged.")


class Directory:
    """First key, checksum and place of each page or chunk; kept as bytes, but for the keys."""

    __slots__ = ("_items", "_keys", "count")

    def __init__(self, items: memoryview) -> None:
        """Take the directory's bytes."""
        self._items = items
        self._keys = [key for (key,) in _FIRST_KEY.iter_unpack(items)]
        self.count = len(self._keys)

    def ref(self, index: int) -> PageRef:
        """Return the item at a position."""
        return PageRef(*DIRECTORY_ITEM.unpack_from(self._items, index * DIRECTORY_ITEM.size))

    def refs(self) -> list[PageRef]:
        """Return all items."""
        return [self.ref(index) for index in range(self.count)]

    def find(self, file_id: bytes) -> int | None:
        """Return the position of the only page that can hold a file_id, or None."""
        position = bisect_right(self._keys, file_id) - 1
        return position if position >= 0 else None


@dataclass(frozen=True, slots=True)
class Tail:
    """The checked tail of an object.

    Attributes:
        identity: whose container it is.
        kind: head or segment.
        incompat: feature flags a reader must know.
        ro_compat: feature flags a writer must know.
        stamp: last commit id of a head.
        object_size: bytes of the whole object.
        size: bytes of the tail.
        tables: the encoded tables.
        directory: the pages or chunks.
    """

    identity: Identity
    kind: Kind
    incompat: int
    ro_compat: int
    stamp: bytes
    object_size: int
    size: int
    tables: memoryview
    directory: Directory

    @property
    def start(self) -> int:
        """Where the tail begins in the object."""
        return self.object_size - self.size


def tail_length(suffix: Buffer, object_size: int) -> int:
    """Return how many bytes the tail has, from an object's last bytes: 32 are enough.

    Raises:
        CorruptShardError: the object does not end in a footer, or says an impossible length.
    """
    view = memoryview(suffix)
    if len(view) < FROZEN.size or view[-8:] != FOOTER_MAGIC:
        raise CorruptShardError("the object does not end in a DES footer: it is cut short, or no DES object.")
    length, said_size = FROZEN.unpack(view[-FROZEN.size :])[:2]
    if said_size != object_size:
        raise CorruptShardError(f"the object has {object_size} bytes, but its footer says {said_size}.")
    if not FROZEN.size <= length <= min(object_size, MAX_TAIL_BYTES):
        raise CorruptShardError("the footer says an impossible tail length.")
    return int(length)


def parse_tail(suffix: Buffer, object_size: int) -> Tail:
    """Check and parse a tail.

    Args:
        suffix: the object's last bytes, at least `tail_length` of them.
        object_size: bytes of the whole object, from the storage.

    Raises:
        CorruptShardError: damaged, cut short, or no DES object.
        UnsupportedFormatError: of another version, or with features this release does not know.
    """
    view = memoryview(suffix).toreadonly()
    length = tail_length(view, object_size)
    if length > len(view):
        raise CorruptShardError("the tail is cut short.")
    tail = view[-length:]
    _, _, version, kind, checksum, _ = FROZEN.unpack(tail[-FROZEN.size :])
    if checksum64(tail[:-CHECKSUM_AT_END]) != checksum:
        raise CorruptShardError("the tail's checksum is wrong.")
    check_version(version)
    if length < MINIMUM_TAIL:
        raise CorruptShardError("the tail is shorter than its fixed parts.")
    incompat, ro_compat, count, tables_length, stamp = FOOTER.unpack(tail[-FOOTER.size :])[:5]
    if incompat & ~KNOWN_INCOMPAT:
        raise UnsupportedFormatError(
            f"the object uses the features {incompat:#x}, which this release does not know; upgrade DES."
        )
    tables_end = HEADER.size + tables_length
    if tables_end + count * DIRECTORY_ITEM.size + FOOTER.size != length:
        raise CorruptShardError("the parts of the tail do not add up to its length.")
    identity, header_kind = decode_header(tail[: HEADER.size])
    if header_kind != kind:
        raise CorruptShardError("header and footer name different kinds.")
    return Tail(
        identity=identity,
        kind=header_kind,
        incompat=incompat,
        ro_compat=ro_compat,
        stamp=stamp,
        object_size=object_size,
        size=length,
        tables=tail[HEADER.size : tables_end],
        directory=Directory(tail[tables_end : -FOOTER.size]),
    )


def _check_kind_and_owner(tail: Tail, kind: Kind, expected: Identity) -> None:
    if tail.kind is not kind:
        raise CorruptShardError(f"the object is a {tail.kind.name.lower()}, not a {kind.name.lower()}.")
    if tail.identity != expected:
        found = tail.identity
        if found.store_id != expected.store_id:
            raise CorruptShardError("the object belongs to another store (its header names another store id).")
        raise CorruptShardError(
            f"the object belongs to shard {found.date}/{found.shard_hex} (n_bits {found.n_bits}), not to"
            f" {expected.date}/{expected.shard_hex} (n_bits {expected.n_bits})."
        )


def _check_tiling(directory: Directory, start: int, end: int, items: int) -> None:
    position, previous = start, b""
    for ref in map(directory.ref, range(directory.count)):
        if ref.object_number == 0:
            if ref.offset != position:
                raise CorruptShardError("the pages of the index do not follow each other.")
            position = ref.end
        if ref.first_key <= previous:
            raise CorruptShardError("the pages of the index are not in order.")
        previous = ref.first_key
        items -= ref.items
    if position != end:
        raise CorruptShardError("the index does not fill the object.")
    if items:
        raise CorruptShardError("the index does not hold as many items as the tables say.")


class Head:
    """A shard's head: what its tail says, and how to find a file in its pages."""

    __slots__ = ("_pages", "directory", "identity", "tables", "tail")

    def __init__(self, tail: Tail, expected: Identity) -> None:
        """Take a parsed tail.

        Raises:
            CorruptShardError: it is not the head of the expected shard, or its tables are damaged.
        """
        _check_kind_and_owner(tail, Kind.HEAD, expected)
        self.tail = tail
        self.identity = tail.identity
        self.directory = tail.directory
        self.tables = HeadTables.decode(tail.tables)
        self._pages: dict[int, PageRef] = {}

    def check_structure(self) -> None:
        """Check what a lookup does not: that pages are in order, without gaps and complete. Needed before a head is a base for writing.

        Raises:
            CorruptShardError: they are not.
        """
        _check_tiling(self.directory, HEADER.size, self.tail.start, self.tables.files + self.tables.deleted)

    @property
    def is_closed(self) -> bool:
        """Whether the shard is being removed, so that nothing may be added to it."""
        return self.tail.ro_compat & RO_COMPAT_CLOSED != 0

    def check_writable(self) -> None:
        """Check that this release may write on this head.

        Raises:
            ConflictError: the shard is being removed.
            UnsupportedFormatError: it uses features that writers must know.
        """
        if self.is_closed:
            raise ConflictError(
                f"shard {self.identity.shard_name} is being removed by `des expire`; run again when that has finished."
            )
        unknown = self.tail.ro_compat & ~KNOWN_RO_COMPAT
        if unknown:
            raise UnsupportedFormatError(
                f"the shard uses the features {unknown:#x}, which only a newer release may write; upgrade DES."
            )

    def find_page(self, file_id: bytes) -> PageRef | None:
        """Return the only page that can hold a file_id; None proves that there is none.

        Raises:
            CorruptShardError: the directory points outside the object.
        """
        position = self.directory.find(file_id)
        return None if position is None else self.page(position)

    def page(self, position: int) -> PageRef:
        """Return a page by its position in the directory.

        Raises:
            CorruptShardError: the directory points outside the object.
        """
        ref = self._pages.get(position)
        if ref is None:
            ref = self._checked(self.directory.ref(position))
            if len(self._pages) < KEPT_PAGES:
                self._pages[position] = ref
        return ref

    def _checked(self, ref: PageRef) -> PageRef:
        if ref.object_number == 0:
            inside = HEADER.size <= ref.offset and ref.end <= self.tail.start
        else:
            inside = ref.object_number <= len(self.tables.page_objects) and ref.end <= MAX_U48
        if not inside or ref.length != ref.items * ENTRY_BYTES or not ref.items:
            raise CorruptShardError("the directory points outside the object.")
        return ref

    def page_key(self, ref: PageRef) -> str | None:
        """Return the key of the immutable object a page lies in; None: in the head itself."""
        return self.identity.segment_key(self.tables.page_objects[ref.object_number - 1]) if ref.object_number else None

    def check_entry(self, entry: Entry) -> None:
        """Check an entry against the head's tables.

        Raises:
            CorruptShardError: it points outside its segment or a table, or its sizes contradict its codec.
        """
        tables = self.tables
        if entry.segment >= len(tables.segments) or entry.content_type > len(tables.content_types):
            raise CorruptShardError("an entry points outside the head's tables.")
        segment = tables.segments[entry.segment]
        if entry.deleted:
            if entry.stored_size or entry.offset:
                raise CorruptShardError("a tombstone has a payload.")
            return
        if entry.offset < HEADER.size or entry.offset + entry.stored_size > segment.size:
            raise CorruptShardError("an entry points outside its segment.")
        check_sizes(entry)
        if entry.codec is Codec.ZSTD_DICT and segment.dictionary is None:
            raise CorruptShardError("an entry uses a dictionary that its segment does not have.")


def check_sizes(entry: Entry) -> None:
    """Check that an entry's sizes and codec agree, so that decoding is bounded by them.

    Raises:
        CorruptShardError: they contradict each other.
    """
    most = entry.raw_size
    if is_large(entry.raw_size):
        most += seek_table_bytes(entry.raw_size)
        if entry.codec is Codec.ZSTD_DICT:
            raise CorruptShardError("an entry of a large payload uses a dictionary.")
    if entry.stored_size > most or (entry.codec is Codec.NONE and entry.stored_size != most):
        raise CorruptShardError("an entry's sizes contradict each other.")


def find_entry(page: Buffer, file_id: bytes) -> Entry | None:
    """Find a file in a checked page by binary search.

    Raises:
        CorruptShardError, UnsupportedFormatError: the entry found is not acceptable.
    """
    starts = range(0, len(page), ENTRY_BYTES)
    position = bisect_left(starts, (file_id,), key=partial(KEY.unpack_from, page))
    if position < len(starts) and page[starts[position] : starts[position] + KEY.size] == file_id:
        return decode_entry(page, starts[position])
    return None


def check_page_order(page: Buffer, ref: PageRef) -> None:
    """Check that a page's entries begin with the directory's key and rise strictly.

    Raises:
        CorruptShardError: they do not.
    """
    view = memoryview(page)
    keys = [bytes(view[at : at + 16]) for at in range(0, len(view), ENTRY_BYTES)]
    if not keys or keys[0] != ref.first_key or any(a >= b for a, b in pairwise(keys)):
        raise CorruptShardError("the entries of a page are not in order.")


class Segment:
    """A segment: what its tail says, and where its catalog is."""

    __slots__ = ("directory", "identity", "tables", "tail")

    def __init__(self, tail: Tail, expected: Identity) -> None:
        """Take a parsed tail.

        Raises:
            CorruptShardError: it is not a segment of the expected shard, or its tables are damaged.
        """
        _check_kind_and_owner(tail, Kind.SEGMENT, expected)
        self.tail = tail
        self.identity = tail.identity
        self.directory = tail.directory
        self.tables = SegmentTables.decode(tail.tables)
        if not HEADER.size <= self.tables.data_end <= tail.start:
            raise CorruptShardError("a segment's data lies outside the object.")
        if any(ref.object_number for ref in map(self.directory.ref, range(self.directory.count))):
            raise CorruptShardError("a segment's catalog lies in another object.")
        _check_tiling(self.directory, self.tables.data_end, tail.start, self.tables.rows)
