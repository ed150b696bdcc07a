"""Compaction: rewrite the segments of a shard that are worth it, and swap the new ones in; the old ones are condemned in the same swap.

At every attempt of the swap an entry is moved only if it still points where it was copied from, and a segment leaves the head only when no entry or
tombstone points into it any more. So packers, deletions and readers go on meanwhile, and a compaction that is killed has changed nothing but
left segments that nobody lists, for `des gc`. What was condemned is deleted by a later run, when its grace time is over: readers may still
hold a head that lists it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from des.errors import ConflictError, ObjectNotFoundError
from des.lifecycle.choosing import Choice, choose
from des.lifecycle.condemned import delete_overdue, forget_condemned, without_condemned
from des.lifecycle.rewriting import Rewriting, Rewritten, rewrite
from des.pack.commit import are_usable, lost_head, swap
from des.shard.dropping import drop_entries, drop_segments
from des.shard.layout import ENTRY_BYTES
from des.shard.merging import merge
from des.store.catalogs import load_segment, read_rows
from des.store.heads import read_whole_head
from des.store.shards import segment_name

if TYPE_CHECKING:
    from des.lifecycle.choosing import Rules
    from des.pack.commit import Change, Swapped
    from des.shard.layout import Identity
    from des.shard.merging import Addition
    from des.storage.protocol import Storage
    from des.store.heads import WholeHead

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Compaction:
    """What happened to a shard.

    Attributes:
        shard: `YYYYMMDD/HH`.
        choice: what was worth rewriting, and why.
        segments_before: in the head.
        segments_after: in the head.
        files: how many were copied.
        bytes_moved: stored bytes that were copied.
        tombstones_dropped: how many tombstones were forgotten.
        collected: condemned segments of earlier runs that were deleted.
    """

    shard: str
    choice: Choice
    segments_before: int
    segments_after: int
    files: int = 0
    bytes_moved: int = 0
    tombstones_dropped: int = 0
    collected: int = 0


async def plan_compaction(storage: Storage, identity: Identity, rules: Rules) -> Compaction:
    """Tell what a compaction of a shard would do. Errors as for `compact_shard`."""
    head = await _read_head(storage, identity)
    segments = len(head.tables.segments)
    return Compaction(name_of(identity), choose(head.tables, rules), segments, segments)


async def compact_shard(
    storage: Storage, identity: Identity, rules: Rules, how: Rewriting, *, now: int, grace: int
) -> Compaction:
    """Compact one shard.

    Args:
        storage: the store's place.
        identity: the shard.
        rules: what is worth it.
        how: how to rewrite.
        now: microseconds since 1970, by the storage's clock.
        grace: microseconds that a condemned segment is kept.

    Raises:
        LostHeadError: the shard's head is gone.
        CorruptShardError: the head, or a segment to be rewritten, is damaged; run `des verify`.
        ConflictError: others kept changing the same files.
        StorageError: the storage is unwell.
    """
    collected: frozenset[bytes] = frozenset()
    for _ in range(_ATTEMPTS):
        base = await _read_head(storage, identity)
        collected |= await delete_overdue(storage, base, now - grace)
        choice = await _with_old_tombstones(storage, base, choose(base.tables, rules), how)
        before = len(base.tables.segments)
        if not choice.names:
            await forget_condemned(storage, base, collected)
            return Compaction(name_of(identity), choice, before, before, collected=len(collected))
        rewritten = await rewrite(storage, base, choice.names, _within(how, choice))
        swapped = await swap_rewritten(storage, base, choice.names, rewritten, now, collected)
        if swapped is not None:
            return Compaction(
                name_of(identity),
                choice,
                before,
                len(swapped.tables.segments),
                rewritten.files,
                rewritten.bytes_moved,
                len(rewritten.dropped),
                len(collected),
            )
    raise ConflictError(f"{identity.head_key}: its new segments were collected {_ATTEMPTS} times in a row; run again.")


async def swap_rewritten(
    storage: Storage, base: WholeHead, names: tuple[bytes, ...], rewritten: Rewritten, now: int, gone: frozenset[bytes]
) -> Swapped | None:
    """Swap rewritten segments in for those they were copied from, and forget condemned ones that are gone; None: they may not be used."""
    committed_at = max(
        (ref.committed_at for ref in base.tables.segments if ref.name in names and ref.entries), default=now
    )

    async def change(head: WholeHead) -> Change:
        additions = rewritten.additions
        dropped = rewritten.dropped
        if head.version != base.version:
            if not await are_usable(storage, head, [addition.name for addition in additions]):
                raise _CollectedError
            additions = [replace(addition, left_out=_moved_on(addition, base, head)) for addition in additions]
            dropped = {file_id for file_id in dropped if head.placed(file_id) == base.placed(file_id)}
        tables, entries = merge(head.tables, head.entries, additions, committed_at, leaving=len(names))
        if dropped:
            tables, entries = drop_entries(tables, entries, dropped)
        leaving = {*names, *(addition.name for addition in additions)}  # a new one may have come to nothing meanwhile
        tables, entries = drop_segments(tables, entries, leaving, now)
        return without_condemned(tables, gone), entries

    try:
        return await swap(storage, base, change)
    except _CollectedError:
        return None


class _CollectedError(Exception):
    """A new segment was collected before it was swapped in."""


def _moved_on(addition: Addition, base: WholeHead, head: WholeHead) -> frozenset[bytes]:
    """Return the files of a new segment that another head does not have any more where they were copied from."""
    encoded = addition.summary.entries
    file_ids = (encoded[at : at + 16] for at in range(0, len(encoded), ENTRY_BYTES))
    return frozenset(file_id for file_id in file_ids if head.placed(file_id) != base.placed(file_id))


def _within(how: Rewriting, choice: Choice) -> Rewriting:
    return how if choice.old_tombstones else replace(how, drop_tombstones_before=None)


async def _with_old_tombstones(storage: Storage, base: WholeHead, choice: Choice, how: Rewriting) -> Choice:
    """Add to a choice what has to be rewritten so that old tombstones may be dropped: all that still has a row of such a file.

    A tombstone is what keeps `des repair` from bringing a file back out of an old catalog. So it may go only with the last row of its file; where
    there are segments that no head lists, all tombstones stay.
    """
    if how.drop_tombstones_before is None or not base.tables.deleted:
        return choice
    listed = {ref.name for ref in base.tables.segments}
    async for info in storage.list(base.identity.segment_prefix):
        name = segment_name(base.identity, info.key)
        if name is not None and name not in listed:
            return choice
    holders: dict[bytes, set[bytes]] = {}
    old: set[bytes] = set()
    for number, ref in enumerate(base.tables.segments):
        loaded = await load_segment(storage, base.identity, ref.name)
        async for rows in read_rows(storage, loaded):
            for row in rows:
                entry = base.find(row.entry.file_id)
                if entry is None or not entry.deleted:
                    continue
                holders.setdefault(entry.file_id, set()).add(ref.name)
                if entry.segment == number and row.created_at < how.drop_tombstones_before:
                    old.add(entry.file_id)
    if not old:
        return choice
    names = {*choice.names, *(name for file_id in old for name in holders[file_id])}
    return replace(
        choice,
        names=tuple(ref.name for ref in base.tables.segments if ref.name in names),
        reason=f"{choice.reason}; {len(old)} old tombstones",
        old_tombstones=len(old),
    )


async def _read_head(storage: Storage, identity: Identity) -> WholeHead:
    try:
        return await read_whole_head(storage, identity)
    except ObjectNotFoundError as error:
        raise lost_head(identity) from error


def name_of(identity: Identity) -> str:
    """Return a shard's name for people: `YYYYMMDD/HH`."""
    return f"{identity.date}/{identity.shard_hex}"
