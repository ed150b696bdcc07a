"""Erasure: after it, the bytes of deleted and replaced files are in no object of the shard, and a scan has proven it.

Unlike a compaction it knows no threshold and no grace time: every segment that holds a row the head does not point at is rewritten or, where no head
lists it, deleted. A dictionary may hold parts of the files it was made from, so segments that have the same one are compressed anew without it.

Segments that no head lists are those of writers that were killed, or that are at work now. One that holds a deleted or replaced file beside the only copy of
something else is left alone and named: nothing here decides to lose a file. A compaction that was at work meanwhile finds its sources gone, and
deletes what it copied. Beyond reach, and the README's business: what a packer uploads later, unfinished uploads, versions that a bucket
keeps, replicas, backups, and dictionaries in other shards that were made from samples of the same run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from des.errors import ConflictError, CorruptShardError, ObjectNotFoundError
from des.lifecycle.compacting import require_changed, swap_rewritten
from des.lifecycle.condemned import condemn, delete_condemned, forget_condemned
from des.lifecycle.rewriting import rewrite
from des.pack.commit import find_shard, settle
from des.shard.codecs import Compression
from des.shard.layout import HEADER
from des.store.cache import ByteLRU
from des.store.catalogs import CatalogReader, load_segment, read_rows
from des.store.places import list_everywhere
from des.store.shards import segment_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from des.lifecycle.rewriting import Rewriting
    from des.shard.catalog import CatalogRow
    from des.shard.layout import Entry, Identity
    from des.storage.protocol import Storage
    from des.store.heads import WholeHead

_ATTEMPTS = 5
_CACHE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ErasedFile:
    """A version of a file whose bytes were erased: its id, and the SHA-256[:16] of its content."""

    file_id: bytes
    content_hash: bytes


@dataclass(slots=True)
class Erasure:
    """What was erased of a shard.

    Attributes:
        shard: `YYYYMMDD/HH`.
        erased: versions of files whose bytes are gone.
        removed: keys of the objects that were deleted.
        kept: keys of segments that hold a deleted file beside the only copy of something else, and were left alone.
        scanned: how many objects the closing scan read.
        remaining: keys of objects in which the scan still found something; none after a success.
    """

    shard: str
    erased: list[ErasedFile] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    scanned: int = 0
    remaining: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether nothing that should be erased is left."""
        return not self.kept and not self.remaining


async def erase_in_shard(storage: Storage, identity: Identity, how: Rewriting, now: int) -> Erasure:
    """Erase what is deleted or replaced in one shard.

    Args:
        storage: the store's place.
        identity: the shard.
        how: how to rewrite.
        now: microseconds since 1970, by the storage's clock.

    Raises:
        LostHeadError: the shard's head is gone.
        CorruptShardError: the head or a segment is damaged: what it holds cannot be told.
        ConflictError: others kept changing the same files.
        StorageError: the storage is unwell.
    """
    erasure = Erasure(identity.shard_name)
    for _ in range(_ATTEMPTS):
        base = await find_shard(storage, identity)
        if base is None:
            return erasure
        try:
            survey = await _survey(storage, base)
            erasure.scanned = survey.scanned
            erasure.kept = [identity.segment_key(name) for name in survey.mixed]
            erasure.remaining = [identity.segment_key(name) for name in (*survey.names, *survey.unlisted)]
            if not erasure.remaining:
                await settle(storage, identity)
                return erasure
            if survey.names and not await _rewrite(storage, base, survey.names, how, now):
                continue
        except ObjectNotFoundError as error:
            await require_changed(storage, base, error)
            continue
        doomed = await condemn(storage, identity, survey.unlisted, now)
        gone = await delete_condemned(storage, identity, {*doomed, *survey.names})
        await forget_condemned(storage, identity, gone)
        erasure.removed += [identity.segment_key(name) for name in sorted(gone)]
        erasure.erased += sorted(survey.dead - {*erasure.erased}, key=lambda one: (one.file_id, one.content_hash))
    if erasure.remaining:
        raise ConflictError(
            f"{identity.head_key}: other writers left deleted files behind {_ATTEMPTS} times; run again."
        )
    return erasure


async def _rewrite(storage: Storage, base: WholeHead, names: tuple[bytes, ...], how: Rewriting, now: int) -> bool:
    """Copy what lives in some segments into new ones, and condemn the old ones; False: another compaction was first."""
    if how.compression is None and any(ref.dictionary for ref in base.tables.segments if ref.name in names):
        how = replace(how, compression=Compression())
    rewritten = await rewrite(storage, base, names, how)
    return await swap_rewritten(storage, base, names, rewritten, now, frozenset()) is not None


@dataclass(slots=True)
class _Survey:
    """What a shard holds that its head does not point at.

    Attributes:
        names: listed segments with such rows.
        unlisted: segments that no head lists, and that may be deleted.
        mixed: those that must not be, although they hold a deleted file.
        dead: the files of those rows.
        scanned: how many objects were read for it.
    """

    names: tuple[bytes, ...] = ()
    unlisted: list[bytes] = field(default_factory=list)
    mixed: list[bytes] = field(default_factory=list)
    dead: set[ErasedFile] = field(default_factory=set)
    scanned: int = 1

    def note(self, row: CatalogRow, known: Entry | None) -> None:
        """Take down a row that nothing points at, unless the same content lives elsewhere in the shard."""
        if not row.entry.deleted and (known is None or known.deleted or known.content_hash != row.entry.content_hash):
            self.dead.add(ErasedFile(row.entry.file_id, row.entry.content_hash))


async def _survey(storage: Storage, base: WholeHead) -> _Survey:
    """Read all catalogs of a shard, and look for what the head does not point at."""
    survey = _Survey()
    names = set()
    for ref in base.tables.segments:
        survey.scanned += 1
        async for row in _rows(storage, base.identity, ref.name):
            if _is_dead(base, ref.name, row):
                names.add(ref.name)
                survey.note(row, base.find(row.entry.file_id))
    dictionaries = {ref.dictionary.content_hash for ref in base.tables.segments if ref.dictionary and ref.name in names}
    survey.names = tuple(
        ref.name
        for ref in base.tables.segments
        if ref.name in names or (ref.dictionary and ref.dictionary.content_hash in dictionaries)
    )
    listed = {ref.name for ref in base.tables.segments}
    catalogs = CatalogReader(storage, ByteLRU(_CACHE_BYTES))
    for info in await list_everywhere(storage, base.identity):
        name = segment_name(base.identity, info.key)
        if name is not None and name not in listed:
            await _survey_unlisted(storage, base, catalogs, name, survey)
    return survey


async def _survey_unlisted(
    storage: Storage, base: WholeHead, catalogs: CatalogReader, name: bytes, survey: _Survey
) -> None:
    """Look into a segment that no head lists. A row decided on a later head than the one that counts is no dead one: a packer may be about to commit it."""
    survey.scanned += 1
    is_condemned = any(item.name == name for item in base.tables.condemned)
    rows: list[CatalogRow] = []
    try:
        rows = [row async for row in _rows(storage, base.identity, name) if not row.entry.deleted]
    except ObjectNotFoundError:
        return  # collected since it was listed
    except CorruptShardError:
        if not is_condemned:
            raise
    known = {row.entry.file_id: entry for row in rows if (entry := base.find(row.entry.file_id)) is not None}
    decided = await _generations(catalogs, base, known.values())
    is_only_copy = False
    dead: list[CatalogRow] = []
    for row in rows:
        entry = known.get(row.entry.file_id)
        if entry is None or row.generation > decided.get(entry.file_id, 0):
            is_only_copy = True
        elif entry.deleted or entry.content_hash != row.entry.content_hash:
            dead.append(row)
    if is_condemned or (dead and not is_only_copy):
        survey.unlisted.append(name)
        for row in rows if is_condemned else dead:
            survey.note(row, known.get(row.entry.file_id))
    elif dead:
        survey.mixed.append(name)


async def _generations(catalogs: CatalogReader, base: WholeHead, entries: Iterable[Entry]) -> dict[bytes, int]:
    """Return the generations of the rows that some entries of a head point at, by file_id."""
    by_segment: dict[int, list[bytes]] = {}
    for entry in entries:
        by_segment.setdefault(entry.segment, []).append(entry.file_id)
    found: dict[bytes, int] = {}
    for number, file_ids in by_segment.items():
        rows = await catalogs.find(base.identity, base.tables.segments[number].name, file_ids)
        found |= {file_id: row.generation for file_id, row in rows.items()}
    return found


async def _rows(storage: Storage, identity: Identity, name: bytes) -> AsyncIterator[CatalogRow]:
    loaded = await load_segment(storage, identity, name)
    tables = loaded.segment.tables
    covered = HEADER.size + (tables.dictionary.length if tables.dictionary else 0)
    async for rows in read_rows(storage, loaded):
        for row in rows:
            covered += row.entry.stored_size
            yield row
    if covered != tables.data_end:
        raise CorruptShardError(f"{loaded.key}: its catalog does not account for all of its bytes; run `des verify`.")


def _is_dead(base: WholeHead, name: bytes, row: CatalogRow) -> bool:
    """Tell whether a row of a listed segment is one that the head does not point at."""
    placed = base.placed(row.entry.file_id)
    return placed is None or (placed.segment, placed.offset) != (name, row.entry.offset)
