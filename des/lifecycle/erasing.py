"""Erasure: after it, the bytes of deleted and replaced files are in no object of the shard, and a scan has proven it.

Unlike a compaction it knows no threshold and no grace time: every segment that holds a row the head does not point at is rewritten or, where no head
lists it, deleted. A dictionary may hold parts of the files it was made from, so segments that have one are compressed anew without it.

Segments that no head lists are those of packers that were killed, or that are at work now. One that holds a deleted file beside the only copy of
something else is left alone and named: nothing here decides to lose a file. Beyond the store's reach, and the README's business: versions that a bucket keeps,
replicas, backups, and dictionaries in other shards that were made from samples of the same run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from des.errors import ConflictError, CorruptShardError, ObjectNotFoundError
from des.lifecycle.compacting import name_of, swap_rewritten
from des.lifecycle.condemned import condemn, delete_segments, forget_condemned
from des.lifecycle.rewriting import Rewriting, rewrite
from des.pack.commit import lost_head
from des.shard.codecs import Compression
from des.shard.layout import HEADER
from des.store.catalogs import load_segment, read_rows
from des.store.heads import read_whole_head
from des.store.shards import segment_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from des.shard.catalog import CatalogRow
    from des.shard.layout import Identity
    from des.storage.protocol import Storage
    from des.store.heads import WholeHead

_ATTEMPTS = 5


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
    erasure = Erasure(name_of(identity))
    for _ in range(_ATTEMPTS):
        try:
            base = await read_whole_head(storage, identity)
        except ObjectNotFoundError as error:
            raise lost_head(identity) from error
        survey = await _survey(storage, base)
        erasure.kept = [identity.segment_key(name) for name in survey.mixed]
        if survey.names or survey.unlisted:
            rewritten = await rewrite(storage, base, survey.names, _without_dictionary(base, survey.names, how))
            gone = await delete_segments(storage, identity, await condemn(storage, base, survey.unlisted, now))
            swapped = await swap_rewritten(storage, base, survey.names, rewritten, now, gone)
            if swapped is None:
                continue
            erasure.removed += [identity.segment_key(name) for name in sorted(gone)]
            leaving = set(survey.names) - {ref.name for ref in swapped.tables.segments}
            gone = await delete_segments(storage, identity, sorted(leaving))
            await forget_condemned(storage, await read_whole_head(storage, identity), gone)
            erasure.removed += [identity.segment_key(name) for name in sorted(gone)]
            erasure.erased += sorted(survey.dead, key=lambda one: (one.file_id, one.content_hash))
        if await _scan(storage, identity, erasure):
            return erasure
    if erasure.remaining:
        raise ConflictError(
            f"{identity.head_key}: other writers left deleted files behind {_ATTEMPTS} times; run again."
        )
    return erasure


@dataclass(slots=True)
class _Survey:
    """What a shard holds that its head does not point at.

    Attributes:
        names: listed segments with such rows.
        unlisted: segments that no head lists, and that may be deleted.
        mixed: those that must not be, although they hold a deleted file.
        dead: the files of those rows.
    """

    names: tuple[bytes, ...] = ()
    unlisted: list[bytes] = field(default_factory=list)
    mixed: list[bytes] = field(default_factory=list)
    dead: set[ErasedFile] = field(default_factory=set)

    def note(self, row: CatalogRow) -> None:
        """Take down a row that nothing points at."""
        if not row.entry.deleted:
            self.dead.add(ErasedFile(row.entry.file_id, row.entry.content_hash))


async def _survey(storage: Storage, base: WholeHead) -> _Survey:
    survey = _Survey()
    names = []
    for ref in base.tables.segments:
        is_worth_it = False
        async for row in _rows(storage, base.identity, ref.name):
            if _is_dead(base, ref.name, row):
                is_worth_it = True
                survey.note(row)
        if is_worth_it:
            names.append(ref.name)
    survey.names = tuple(names)
    listed = {ref.name for ref in base.tables.segments}
    async for info in storage.list(base.identity.segment_prefix):
        name = segment_name(base.identity, info.key)
        if name is not None and name not in listed:
            await _survey_unlisted(storage, base, name, survey)
    return survey


async def _survey_unlisted(storage: Storage, base: WholeHead, name: bytes, survey: _Survey) -> None:
    try:
        rows = [row async for row in _rows(storage, base.identity, name) if not row.entry.deleted]
    except ObjectNotFoundError:
        return  # collected since it was listed
    known = [base.find(row.entry.file_id) for row in rows]
    has_dead = any(entry is not None and entry.deleted for entry in known)
    is_condemned = any(item.name == name for item in base.tables.condemned)
    if is_condemned or (has_dead and None not in known):
        survey.unlisted.append(name)
        for row, entry in zip(rows, known, strict=True):
            if entry is None or entry.deleted or entry.content_hash != row.entry.content_hash:
                survey.note(row)
    elif has_dead:
        survey.mixed.append(name)


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


def _without_dictionary(base: WholeHead, names: Collection[bytes], how: Rewriting) -> Rewriting:
    has_dictionary = any(ref.dictionary for ref in base.tables.segments if ref.name in names)
    return replace(how, compression=Compression()) if has_dictionary and how.compression is None else how


async def _scan(storage: Storage, identity: Identity, erasure: Erasure) -> bool:
    """Read what is there now, and look for what should have been erased. True: nothing is, or nothing more can be done."""
    base = await read_whole_head(storage, identity)
    survey = await _survey(storage, base)
    erasure.scanned = 1 + sum([1 async for _ in storage.list(identity.segment_prefix)])
    erasure.kept = [identity.segment_key(name) for name in survey.mixed]
    erasure.remaining = [identity.segment_key(name) for name in (*survey.names, *survey.unlisted)]
    return not erasure.remaining
