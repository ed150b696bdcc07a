"""Repair: rebuild a shard's head from the catalogs of its segments, where the head is lost or damaged. A good head is left alone.

The segments are the log of all that was decided, the head is its view. A row is decided on the head of some generation, and one that takes the place
of another, or deletes it, on a later head than that one. So of the rows of one file

1. the highest generation wins, be it a file or a tombstone;
2. where a file and a tombstone, or two different files, have the same generation, only one of them can have been committed, and nothing tells which: that is
   reported. The tombstone is taken;
3. where the winner is a file that did not replace what was there, but an earlier and different file is there and was not deleted in between, that is
   reported too: a packer that was killed before its commit leaves just such a row;
4. copies of a row are alike. Of those the one in a segment that no other one supersedes is taken, so that what a compaction left behind can be collected.
   Rows that stand in superseded segments alone count as any other: of a compaction that was killed some of the new segments may be missing.

Forgotten deletions do not come back: the tombstone outlives the file's rows, see `condemned`.

What a catalog that cannot be read holds would be "not found" afterwards. That is no proof, so such a shard is not repaired unless told to. Payloads are
not read: that is verification's work.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from des.errors import (
    ConflictError,
    CorruptShardError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageUnavailableError,
    UnsupportedFormatError,
)
from des.lifecycle.clock import microseconds_now
from des.pack.commit import close_shard, new_name, settle
from des.shard.layout import ENTRY_BYTES, Entry, decode_entry, to_microseconds
from des.shard.reading import Head, parse_tail
from des.shard.tables import HeadTables, SegmentRef
from des.shard.writing import encode_head
from des.storage.protocol import IfAbsent, IfVersion
from des.store.catalogs import load_segment, read_rows
from des.store.checking import check_head
from des.store.heads import MAX_HEAD_BYTES, unproven, whole_head
from des.store.places import list_everywhere
from des.store.shards import segment_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from des.shard.layout import Identity
    from des.storage.protocol import ObjectInfo, PutMode, Storage
    from des.store.catalogs import LoadedSegment

# A row as it is sorted: file_id, generation, number of its segment; then its content type and its encoded entry.
_ROW = struct.Struct(f">16sQHH{ENTRY_BYTES}s")


@dataclass(frozen=True, slots=True)
class Unclear:
    """A file of which the catalogs do not tell which version counts: the one that was taken, and the others."""

    file_id: bytes
    taken: str
    others: tuple[str, ...]


@dataclass(slots=True)
class Repair:
    """What happened to a shard.

    Attributes:
        shard: `YYYYMMDD/HH`.
        outcome: `good` (nothing to do), `rebuilt`, `refused` (something cannot be read), or `absent` (there is no such shard).
        files: live files of the rebuilt head.
        deleted: its tombstones.
        segments: those it lists.
        unclear: files whose version had to be chosen.
        unreadable: segments whose catalog cannot be read.
    """

    shard: str
    outcome: Literal["good", "rebuilt", "refused", "absent"] = "good"
    files: int = 0
    deleted: int = 0
    segments: int = 0
    unclear: list[Unclear] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def is_certain(self) -> bool:
        """Whether the shard is as it was, as far as its segments tell."""
        return self.outcome != "refused" and not (self.unclear or self.unreadable)


async def repair_shard(storage: Storage, identity: Identity, *, give_up_unreadable: bool = False) -> Repair:
    """Rebuild a shard's head where it is lost or damaged.

    Args:
        storage: the store's place.
        identity: the shard.
        give_up_unreadable: go on without segments whose catalog cannot be read: their files will be "not found".

    Raises:
        UnsupportedFormatError: the shard is of a newer format.
        ConflictError: the head was repaired by somebody else meanwhile.
        NotSettledError: the head is good now, but too few places hold it.
        ShardFullError: the segments hold more than a shard takes.
        StorageError: the storage is unwell, or one of its places: a segment may be left in that one alone.
    """
    repair = Repair(identity.shard_name)
    state = await _state_of_head(storage, identity)
    if state is None:
        await settle(storage, identity)  # an earlier repair may not be everywhere yet
        return repair
    mode, generation = state
    found = await _read_segments(storage, identity, repair)
    if not found and isinstance(mode, IfAbsent) and not repair.unreadable:
        repair.outcome = "absent"
        return repair
    if (repair.unreadable or not found) and not give_up_unreadable:
        repair.outcome = "refused"
        return repair
    rebuilt = _Rebuilt(identity, found)
    rows = await rebuilt.collect(storage)
    tables, entries = rebuilt.resolve(rows, repair)
    tables = replace(tables, generation=max(generation, tables.generation)).committed(new_name())
    try:
        await storage.put(identity.head_key, encode_head(identity, tables, entries), mode)
    except PreconditionFailedError as error:
        raise ConflictError(f"{identity.head_key} was repaired or made anew meanwhile; run again.") from error
    await _require_segments(storage, identity, tables)
    await settle(storage, identity)
    repair.outcome = "rebuilt"
    repair.files, repair.deleted, repair.segments = tables.files, tables.deleted, len(tables.segments)
    return repair


async def _require_segments(storage: Storage, identity: Identity, tables: HeadTables) -> None:
    """Make sure that the shard was not being removed all the while: that alone deletes segments of a shard whose head is lost.

    Raises:
        ConflictError: it was; the new head is closed again.
    """
    there = {segment_name(identity, info.key) for info in await list_everywhere(storage, identity)}
    if not {ref.name for ref in tables.segments} <= there:
        await close_shard(storage, identity, await microseconds_now(storage))
        raise ConflictError(f"shard {identity.shard_name} is being removed by `des expire`; run that again.")


async def _state_of_head(storage: Storage, identity: Identity) -> tuple[PutMode, int] | None:
    """Tell how a new head would take the place of this one, and the generation this one says; None: it is good.

    What is judged and what would be replaced is one and the same version.
    """
    try:
        suffix = await storage.read_suffix(identity.head_key, MAX_HEAD_BYTES)
    except ObjectNotFoundError:
        return IfAbsent(), 0
    if suffix is None:
        raise StorageUnavailableError(f"{identity.head_key}: the storage gave no answer to a plain read.")
    if not suffix.is_proof:
        raise unproven(identity)
    generation = 0
    try:
        tail = Head(parse_tail(suffix.data, suffix.total_size), identity)
        tail.check_writable()
        generation = tail.tables.generation
        if not check_head(whole_head(identity, suffix.data, suffix.version)):
            return None
    except UnsupportedFormatError:
        raise
    except CorruptShardError:
        pass
    return IfVersion(suffix.version), generation


@dataclass(frozen=True, slots=True)
class _Found:
    """A segment that is there, with its tail."""

    name: bytes
    info: ObjectInfo
    loaded: LoadedSegment


async def _read_segments(storage: Storage, identity: Identity, repair: Repair) -> list[_Found]:
    found = []
    for info in await list_everywhere(storage, identity):
        name = segment_name(identity, info.key)
        if name is None:
            continue
        try:
            loaded = await load_segment(storage, identity, name)
            async for _ in read_rows(storage, loaded):
                pass  # proves that all of the catalog can be read before anything is decided
        except UnsupportedFormatError:
            raise
        except CorruptShardError:
            repair.unreadable.append(info.key)
        except ObjectNotFoundError:
            continue  # collected since it was listed
        else:
            found.append(_Found(name, info, loaded))
    superseded = {name for one in found for name in one.loaded.segment.tables.superseded}
    found.sort(key=lambda one: (one.name not in superseded, one.loaded.segment.tables.generation, one.name))
    return found


class _Rebuilt:
    """A head in the making."""

    def __init__(self, identity: Identity, found: Sequence[_Found]) -> None:
        self._identity = identity
        self._found = found
        self._types: dict[str, int] = {}
        self._generation = 0

    async def collect(self, storage: Storage) -> list[bytes]:
        """Return all rows, sorted by file_id, then generation."""
        rows: list[bytes] = []
        for number, one in enumerate(self._found):
            self._generation = max(self._generation, one.loaded.segment.tables.generation)
            async for chunk in read_rows(storage, one.loaded):
                for row in chunk:
                    self._generation = max(self._generation, row.generation)
                    type_number = (
                        self._types.setdefault(row.content_type, len(self._types) + 1) if row.content_type else 0
                    )
                    rows.append(_ROW.pack(row.entry.file_id, row.generation, number, type_number, row.entry.encode()))
        rows.sort()
        return rows

    def resolve(self, rows: Sequence[bytes], repair: Repair) -> tuple[HeadTables, bytes]:
        """Decide which row of each file counts; return the head's tables and entries."""
        chosen: list[Entry] = []
        for file_id, group in groupby(rows, key=lambda row: row[:16]):
            winner, others = _winner([_version(row) for row in group])
            chosen.append(winner.entry)
            if others:
                repair.unclear.append(
                    Unclear(file_id, self._key(winner.entry), tuple(self._key(one.entry) for one in others))
                )
        return self._head(chosen)

    def _age(self, number: int) -> tuple[int, int]:
        """Segments stand in a head in the order in which they came."""
        return self._found[number].loaded.segment.tables.generation, number

    def _key(self, entry: Entry) -> str:
        return f"{self._found[entry.segment].info.key}@{entry.offset}"

    def _head(self, entries: Sequence[Entry]) -> tuple[HeadTables, bytes]:
        used = sorted({entry.segment for entry in entries}, key=self._age)
        numbers = {old: new for new, old in enumerate(used)}
        types = sorted({entry.content_type for entry in entries} - {0})
        type_numbers = {0: 0} | {old: new for new, old in enumerate(types, start=1)}
        names = list(self._types)
        counts = [[0, 0] for _ in numbers]
        encoded = []
        for entry in entries:
            renumbered = entry._replace(segment=numbers[entry.segment], content_type=type_numbers[entry.content_type])
            counts[renumbered.segment][0] += 1
            counts[renumbered.segment][1] += renumbered.stored_size
            encoded.append(renumbered.encode())
        live = [entry for entry in entries if not entry.deleted]
        tables = HeadTables(
            generation=self._generation,
            lineage=new_name(),
            files=len(live),
            deleted=len(entries) - len(live),
            raw_bytes=sum(entry.raw_size for entry in live),
            stored_bytes=sum(entry.stored_size for entry in live),
            segments=tuple(
                SegmentRef(
                    self._found[old].name,
                    self._found[old].info.size,
                    to_microseconds(self._found[old].info.modified),
                    counts[new][0],
                    counts[new][1],
                    self._found[old].loaded.segment.tables.dictionary,
                )
                for old, new in numbers.items()
            ),
            content_types=tuple(names[number - 1] for number in types),
        )
        return tables, b"".join(encoded)


@dataclass(frozen=True, slots=True)
class _Version:
    """A row of a file that may count."""

    generation: int
    entry: Entry

    def says_the_same_as(self, other: _Version) -> bool:
        one, two = self.entry, other.entry
        return (one.content_hash, one.raw_size, one.content_type, one.second) == (
            two.content_hash,
            two.raw_size,
            two.content_type,
            two.second,
        )


def _version(row: bytes) -> _Version:
    _, generation, number, type_number, encoded = _ROW.unpack(row)
    return _Version(generation, decode_entry(encoded)._replace(segment=number, content_type=type_number))


def _winner(versions: Sequence[_Version]) -> tuple[_Version, list[_Version]]:
    """Return the row that counts, and those that may count as well as it does.

    Args:
        versions: at least one, by rising generation; of one generation, copies in superseded segments first.
    """
    highest = versions[-1].generation
    tombstone = next((one for one in reversed(versions) if one.entry.deleted), None)
    if tombstone is not None and tombstone.generation == highest:
        return tombstone, _different(one for one in versions if one.generation == highest and not one.entry.deleted)
    since = -1 if tombstone is None else tombstone.generation
    best = versions[-1]
    return best, _different(
        one
        for one in versions
        if one.generation > since
        and not one.says_the_same_as(best)
        and (one.generation == highest or not best.entry.replaced)
    )


def _different(versions: Iterable[_Version]) -> list[_Version]:
    found: list[_Version] = []
    for one in versions:
        if not any(one.says_the_same_as(other) for other in found):
            found.append(one)
    return found
