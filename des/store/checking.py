"""What verification checks, as functions over bytes that were read: they return flaws, and do not stop at the first. They block: for worker threads.

A segment's rows are kept as 64-byte entries, not as objects: a shard of millions of files is verified in some 100 bytes a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from des.errors import CorruptShardError, UnsupportedFormatError
from des.routing import FILE_ID_BYTES, date_dir, shard_index
from des.shard.chunking import is_large
from des.shard.codecs import decode
from des.shard.layout import (
    ENTRY_BYTES,
    HEADER,
    Codec,
    Entry,
    checksum32,
    checksum64,
    decode_entry,
    from_microseconds,
)
from des.shard.reading import check_sizes, find_entry
from des.shard.writing import content_hash
from des.store.planning import MAX_GAP_BYTES, Read, Want, coalesce

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from des.shard.catalog import CatalogRow
    from des.shard.layout import Identity
    from des.shard.reading import Segment
    from des.shard.tables import DictionaryPlace
    from des.store.heads import WholeHead

READ_BYTES = 4 << 20
_PLANNED_AT_ONCE = 1_024


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that is wrong with an object.

    Attributes:
        sentence: what.
        file_id: the file it concerns; None: no single one.
        live: whether anything is lost by it; False for what no head points at any more.
    """

    sentence: str
    file_id: bytes | None = None
    live: bool = True


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which payloads are read: a share of them, 0 to 1, chosen by file_id and seed. Heads and catalogs are always read."""

    share: float = 1.0
    seed: int = 0

    def takes(self, file_id: bytes) -> bool:
        """Tell whether the payload of a file is read."""
        return checksum64(self.seed.to_bytes(8, "little") + file_id) < self.share * 2**64


# ---- heads ------------------------------------------------------------------------------------------------------------------


def check_head(whole: WholeHead) -> list[Flaw]:
    """Check every entry of a head, and its counters against them.

    Raises:
        UnsupportedFormatError: an entry is of a newer format.
    """
    head, tables = whole.head, whole.head.tables
    flaws: list[Flaw] = []
    previous = b""
    files = deleted = raw_bytes = stored_bytes = 0
    counted = [[0, 0] for _ in tables.segments]
    for at in range(0, len(whole.entries), ENTRY_BYTES):
        try:
            entry = decode_entry(whole.entries, at)
            head.check_entry(entry)
            _check_order(previous, entry.file_id)
            _check_route(entry.file_id, head.identity)
        except UnsupportedFormatError:
            raise
        except CorruptShardError as error:
            flaws.append(Flaw(str(error), bytes(whole.entries[at : at + 16])))
            continue
        previous = entry.file_id
        counted[entry.segment][0] += 1
        counted[entry.segment][1] += entry.stored_size
        if entry.deleted:
            deleted += 1
        else:
            files, raw_bytes, stored_bytes = files + 1, raw_bytes + entry.raw_size, stored_bytes + entry.stored_size
    if flaws:
        return flaws
    said = (tables.files, tables.deleted, tables.raw_bytes, tables.stored_bytes)
    by_segment = [[ref.entries, ref.stored_bytes] for ref in tables.segments]
    if said != (files, deleted, raw_bytes, stored_bytes) or by_segment != counted:
        flaws.append(Flaw("its counters contradict its entries."))
    names = [ref.name for ref in tables.segments]
    if len(set(names)) != len(names):
        flaws.append(Flaw("it lists a segment twice."))
    if not {condemned.name for condemned in tables.condemned}.isdisjoint(names):
        flaws.append(Flaw("it lists a segment that it condemns."))
    return flaws


def entries_in(whole: WholeHead, number: int) -> Iterator[Entry]:
    """Yield the entries of a checked head that point into a segment."""
    for at in range(0, len(whole.entries), ENTRY_BYTES):
        entry = decode_entry(whole.entries, at)
        if entry.segment == number:
            yield entry


def _check_order(previous: bytes, file_id: bytes) -> None:
    if previous >= file_id:
        raise CorruptShardError("the entries are not in order.")


def _check_route(file_id: bytes, identity: Identity) -> None:
    if shard_index(file_id, identity.n_bits) != identity.shard_index:
        raise CorruptShardError("a file does not belong to this shard.")


# ---- catalogs ---------------------------------------------------------------------------------------------------------------


class Worklist:
    """The payloads of a segment."""

    __slots__ = ("_entries", "_live", "_order")

    def __init__(self) -> None:
        """Begin empty."""
        self._entries = bytearray()
        self._live = bytearray()
        self._order: list[int] = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._live)

    def add(self, entry: Entry, *, live: bool) -> None:
        """Add a payload."""
        self._entries += entry.encode()
        self._live.append(live)

    def entry(self, number: int) -> Entry:
        """Return the entry of a payload by its number, the order of adding."""
        return decode_entry(self._entries, number * ENTRY_BYTES)

    def is_live(self, number: int) -> bool:
        """Tell whether a head points at a payload."""
        return bool(self._live[number])

    def sort(self) -> None:
        """Bring them into the order of their places."""
        self._order = sorted(range(len(self)), key=self._place)

    def _place(self, number: int) -> tuple[int, int]:
        at = number * ENTRY_BYTES
        offset, size = self._entries[at + 42 : at + 48], self._entries[at + 48 : at + 54]
        return int.from_bytes(offset, "little"), int.from_bytes(size, "little")

    def check_tiling(self, dictionary: DictionaryPlace | None, data_end: int) -> list[Flaw]:
        """Check that sorted payloads and the dictionary fill the data without gap or overlap."""
        position = HEADER.size
        for number in self._order:
            offset, size = self._place(number)
            if dictionary is not None and position == dictionary.offset:
                position += dictionary.length
            if offset != position:
                return [Flaw(f"its payloads leave a gap or overlap at byte {min(position, offset):,}.")]
            position += size
        if dictionary is not None and position == dictionary.offset:
            position += dictionary.length
        return [] if position == data_end else [Flaw(f"its payloads end at byte {position:,}, not at {data_end:,}.")]

    def plan(self, sampling: Sampling) -> Iterator[Read | int]:
        """Plan reading sorted payloads: requests for small ones together, and the numbers of large ones, which are streamed."""
        for start in range(0, len(self), _PLANNED_AT_ONCE):
            wants: list[Want] = []
            for number in self._order[start : start + _PLANNED_AT_ONCE]:
                entry = self.entry(number)
                if not sampling.takes(entry.file_id):
                    continue
                if is_large(entry.raw_size):
                    yield number
                else:
                    wants.append(Want(number, entry.offset, entry.offset + entry.stored_size))
            yield from coalesce(wants, MAX_GAP_BYTES, READ_BYTES)


class CatalogCheck:
    """Takes the rows of a segment's catalog in order, and compares them with the head that lists the segment.

    Attributes:
        flaws: what was found so far.
        work: the payloads so far; those that a head points at as the head describes them.
    """

    def __init__(self, identity: Identity, segment: Segment, whole: WholeHead | None, number: int) -> None:
        """Begin.

        Args:
            identity: the shard.
            segment: the segment's tail.
            whole: the checked head that lists it as `number`; None: there is none, so every row counts as live.
            number: see above.
        """
        self.flaws: list[Flaw] = []
        self.work = Worklist()
        self._identity = identity
        self._tables = segment.tables
        self._whole = whole
        self._number = number
        self._previous = b""
        self._tombstones = 0
        self._matched = bytearray()
        self._missing_chunks = False

    def skip(self) -> None:
        """Go on without a chunk that is damaged."""
        self._missing_chunks = True

    def take(self, rows: Sequence[CatalogRow]) -> None:
        """Check the rows of the next chunk.

        Raises:
            UnsupportedFormatError: a row is of a newer format.
        """
        for row in rows:
            entry = row.entry
            self._tombstones += entry.deleted
            try:
                self._check(row)
                _check_order(self._previous, entry.file_id)
            except CorruptShardError as error:
                self.flaws.append(Flaw(f"the catalog is wrong: {error}", entry.file_id))
                continue
            self._previous = entry.file_id
            known = self._known(row)
            if not entry.deleted:
                self.work.add(known or entry, live=self._whole is None or known is not None)

    def _check(self, row: CatalogRow) -> None:
        entry, tables = row.entry, self._tables
        _check_route(entry.file_id, self._identity)
        row.metadata_object()
        if entry.deleted:
            if entry.offset or entry.stored_size:
                raise CorruptShardError("a tombstone has a payload.")
            return
        if date_dir(from_microseconds(row.created_at)) != self._identity.date:
            raise CorruptShardError("a file is of another day.")
        if entry.offset < HEADER.size or entry.offset + entry.stored_size > tables.data_end:
            raise CorruptShardError("a payload lies outside the data.")
        check_sizes(entry)
        if entry.codec is Codec.ZSTD_DICT and tables.dictionary is None:
            raise CorruptShardError("a payload needs a dictionary, and there is none.")

    def _known(self, row: CatalogRow) -> Entry | None:
        """Return the head's entry where it points at this row, and note where the two disagree."""
        known = find_entry(self._whole.entries, row.entry.file_id) if self._whole is not None else None
        if self._whole is None or known is None or known.segment != self._number:
            return None
        self._matched += known.file_id
        content_type = self._whole.tables.content_types[known.content_type - 1] if known.content_type else None
        if known._replace(segment=0, content_type=0) != row.entry or content_type != row.content_type:
            self.flaws.append(Flaw("head and catalog say different things about a file.", known.file_id))
        return known

    def finish(self) -> None:
        """Check what only the whole catalog shows, and take over from the head what the catalog does not tell."""
        complete = not self._missing_chunks and not self.flaws
        if complete and self._tombstones != self._tables.tombstones:
            self.flaws.append(Flaw("its catalog does not have as many tombstones as it says."))
        self.work.sort()
        if complete:
            self.flaws += self.work.check_tiling(self._tables.dictionary, self._tables.data_end)
        if self._whole is None:
            return
        expected = self._whole.tables.segments[self._number].entries
        if len(self._matched) == expected * FILE_ID_BYTES:
            return
        matched = {bytes(self._matched[at : at + FILE_ID_BYTES]) for at in range(0, len(self._matched), FILE_ID_BYTES)}
        for entry in entries_in(self._whole, self._number):
            if entry.file_id in matched:
                continue
            if complete:
                self.flaws.append(Flaw("its catalog lacks a file of the head.", entry.file_id))
            if not entry.deleted:
                self.work.add(entry, live=True)
        self.work.sort()


# ---- payloads ---------------------------------------------------------------------------------------------------------------


def check_payload(entry: Entry, stored: memoryview, dictionary: bytes | None) -> str | None:
    """Check a payload that is not large: length, checksum, decoding, content hash. Returns what is wrong."""
    if len(stored) != entry.stored_size:
        return "the segment ends within its content."
    if checksum32(stored) != entry.checksum:
        return "its stored bytes are damaged."
    if entry.codec is Codec.ZSTD_DICT and dictionary is None:
        return "it cannot be decoded without the dictionary."
    try:
        raw = decode(entry.codec, stored, entry.raw_size, dictionary)
    except CorruptShardError as error:
        return str(error)
    return None if content_hash(raw) == entry.content_hash else "its content is not what was packed."


def check_payloads(work: Worklist, read: Read, data: bytes, dictionary: bytes | None) -> dict[int, str]:
    """Check all payloads of one request. Returns what is wrong, by the payload's number."""
    view = memoryview(data)
    flaws = {}
    for want in read.wants:
        entry = work.entry(want.number)
        sentence = check_payload(entry, view[want.start - read.start : want.end - read.start], dictionary)
        if sentence:
            flaws[want.number] = sentence
    return flaws
