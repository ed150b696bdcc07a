"""Compaction: rewrite the segments of a shard that are worth it, and swap the new ones in; the old ones are condemned in the same swap.

At every attempt of the swap an entry is moved only if it still points where it was copied from, and a segment leaves the head only when no entry or
tombstone points into it any more. So packers, deletions and readers go on meanwhile, and a compaction that is killed has changed nothing but
left segments that nobody lists, for `des gc`. Two compactions of the same segments: the second starts over. What was condemned is deleted by a later run, when its grace time is over: readers may still
hold a head that lists it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from des.errors import ConflictError, CorruptShardError, ObjectNotFoundError
from des.lifecycle.choosing import Choice, choose, maybe_sparse
from des.lifecycle.condemned import delete_condemned, forget_condemned, overdue, remove_unlisted, without_condemned
from des.lifecycle.rewriting import Rewriting, Rewritten, rewrite
from des.pack.commit import are_usable, find_shard, settle, swap
from des.shard.dropping import drop_entries, drop_segments
from des.shard.layout import ENTRY_BYTES
from des.shard.merging import merge
from des.store.catalogs import load_segment, read_rows
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
        stored_bytes: of all segments that the head listed before.
    """

    shard: str
    choice: Choice = field(default_factory=Choice)
    segments_before: int = 0
    segments_after: int = 0
    files: int = 0
    bytes_moved: int = 0
    tombstones_dropped: int = 0
    collected: int = 0
    stored_bytes: int = 0


async def plan_compaction(storage: Storage, identity: Identity, rules: Rules) -> Compaction:
    """Tell what a compaction of a shard would do. Errors as for `compact_shard`."""
    for _ in range(_ATTEMPTS):
        base = await find_shard(storage, identity)
        if base is None:
            return Compaction(identity.shard_name)
        try:
            return _unchanged(base, await _choose(storage, base, rules), 0)
        except ObjectNotFoundError as error:
            await require_changed(storage, base, error)
    raise ConflictError(f"{identity.head_key}: it changes faster than it can be read; run again.")


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
        ConflictError: others kept compacting the same segments.
        StorageError: the storage is unwell.
    """
    collected: frozenset[bytes] = frozenset()
    for _ in range(_ATTEMPTS):
        base = await find_shard(storage, identity)
        if base is None:
            return Compaction(identity.shard_name)
        collected |= await delete_condemned(storage, identity, overdue(base.tables, now - grace))
        try:
            choice = await _with_old_tombstones(storage, base, await _choose(storage, base, rules), how)
            if not choice.names:
                await forget_condemned(storage, identity, collected)
                await settle(storage, identity)  # an earlier compaction may not be everywhere yet
                return _unchanged(base, choice, len(collected))
            rewritten = await rewrite(storage, base, choice.names, _within(how, choice))
        except ObjectNotFoundError as error:
            await require_changed(storage, base, error)
            continue
        swapped = await swap_rewritten(storage, base, choice.names, rewritten, now, collected)
        if swapped is not None:
            return Compaction(
                identity.shard_name,
                choice,
                len(base.tables.segments),
                len(swapped.tables.segments),
                rewritten.files,
                rewritten.bytes_moved,
                len(rewritten.dropped),
                len(collected),
                _stored_bytes(base),
            )
    raise ConflictError(f"{identity.head_key}: others compacted it {_ATTEMPTS} times meanwhile; run again.")


def _unchanged(base: WholeHead, choice: Choice, collected: int) -> Compaction:
    segments = len(base.tables.segments)
    return Compaction(
        base.identity.shard_name, choice, segments, segments, collected=collected, stored_bytes=_stored_bytes(base)
    )


def _stored_bytes(base: WholeHead) -> int:
    return sum(ref.size for ref in base.tables.segments)


async def _choose(storage: Storage, base: WholeHead, rules: Rules) -> Choice:
    data_ends = {}
    for ref in maybe_sparse(base.tables, rules):
        data_ends[ref.name] = (await load_segment(storage, base.identity, ref.name)).segment.tables.data_end
    return choose(base.tables, rules, data_ends)


async def require_changed(storage: Storage, base: WholeHead, cause: ObjectNotFoundError) -> None:
    """Make sure that a segment is gone because the head was replaced meanwhile.

    Raises:
        CorruptShardError: it was not: the head lists a segment that is not there.
        LostHeadError: the head is gone.
        StorageError: the storage is unwell.
    """
    head = await find_shard(storage, base.identity)
    if head is not None and head.version == base.version:
        raise CorruptShardError(f"{base.identity.head_key}: it points at an object that is gone. {cause}") from cause


async def swap_rewritten(
    storage: Storage, base: WholeHead, names: tuple[bytes, ...], rewritten: Rewritten, now: int, gone: frozenset[bytes]
) -> Swapped | None:
    """Swap rewritten segments in for those they were copied from, and forget condemned ones that are gone.

    Returns:
        None: another compaction, or an erasure, was there first. What was rewritten is deleted again, because it may hold what that one left out
        for good: bytes that were erased, files whose tombstones were dropped.
    """
    committed_at = max(
        (ref.committed_at for ref in base.tables.segments if ref.name in names and ref.entries), default=now
    )

    async def change(head: WholeHead) -> Change:
        additions = rewritten.additions
        dropped = rewritten.dropped
        if head.version != base.version:
            if not {*names} <= {ref.name for ref in head.tables.segments}:
                raise _OvertakenError
            if not await are_usable(storage, head, [addition.name for addition in additions]):
                raise _OvertakenError
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
    except _OvertakenError:
        await remove_unlisted(storage, base.identity, [addition.name for addition in rewritten.additions], now)
        return None


class _OvertakenError(Exception):
    """Segments that were rewritten are not in the head any more, or the new ones were collected."""


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
