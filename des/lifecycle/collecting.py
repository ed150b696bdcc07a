"""Collecting garbage: segments that no head lists, condemned ones whose grace is over, and what broken-off writes left behind.

A segment that no head lists is collected when it is older than the age limit and the head knows all files in it: it may be the only copy of a file that
a packer never committed, and those are listed instead, unless the caller says that they may go. First a swap lists it as condemned, which stops a
writer that was asleep all the time from swapping it in; then it is deleted. Of the segments of a compaction that was killed, those that name
what they supersede go first: a repair must never believe such a name when the rest of its set is gone.

A shard whose head is lost is not touched at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from des.errors import CorruptShardError, ObjectNotFoundError, UnsupportedFormatError
from des.lifecycle.compacting import name_of
from des.lifecycle.condemned import condemn, delete_overdue, delete_segments, forget_condemned
from des.shard.layout import to_microseconds
from des.store.catalogs import load_segment, read_rows
from des.store.heads import read_whole_head
from des.store.shards import segment_name

if TYPE_CHECKING:
    from des.shard.layout import Identity
    from des.storage.protocol import Leftover, Storage
    from des.store.heads import WholeHead


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be collected.

    Attributes:
        written_before: only what is older than this time, microseconds since 1970 by the storage's clock.
        condemned_before: condemned segments since before this time.
        discard_unknown: also segments with files that the head does not know.
        apply: delete; else only tell.
    """

    written_before: int
    condemned_before: int
    discard_unknown: bool = False
    apply: bool = False


@dataclass(slots=True)
class Collected:
    """What was found, and collected where that was asked for; keys.

    Attributes:
        condemned: segments whose grace is over.
        orphans: segments that no head lists and nobody needs.
        unknown: segments that no head lists and that hold files the head does not know.
        unreadable: segments that no head lists and whose catalog is damaged: what they hold cannot be told.
        young: how many others are not old enough.
        lost_heads: shards that were not touched, because their head is lost or damaged.
        leftovers: what broken-off writes left.
    """

    condemned: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    young: int = 0
    lost_heads: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    def add(self, other: Collected) -> None:
        """Add what was found elsewhere."""
        self.condemned += other.condemned
        self.orphans += other.orphans
        self.unknown += other.unknown
        self.unreadable += other.unreadable
        self.young += other.young
        self.lost_heads += other.lost_heads
        self.leftovers += other.leftovers


async def collect_shard(storage: Storage, identity: Identity, limits: Limits) -> Collected:
    """Collect in one shard.

    Raises:
        UnsupportedFormatError: the shard is of a newer format.
        ConflictError: others kept changing the head.
        StorageError: the storage is unwell.
    """
    collected = Collected()
    try:
        head = await read_whole_head(storage, identity)
    except UnsupportedFormatError:
        raise
    except (ObjectNotFoundError, CorruptShardError):
        collected.lost_heads.append(name_of(identity))
        return collected
    overdue = [item.name for item in head.tables.condemned if item.since < limits.condemned_before]
    collected.condemned = [identity.segment_key(name) for name in overdue]
    orphans = await _orphans(storage, head, limits, collected)
    collected.orphans = [identity.segment_key(name) for name in orphans]
    if not limits.apply:
        return collected
    gone = await delete_overdue(storage, head, limits.condemned_before)
    doomed = await condemn(storage, head, orphans, to_microseconds(await storage.now())) if orphans else []
    gone |= await delete_segments(storage, identity, doomed)
    if gone:
        await forget_condemned(storage, await read_whole_head(storage, identity), gone)
    return collected


async def _orphans(storage: Storage, head: WholeHead, limits: Limits, collected: Collected) -> list[bytes]:
    """Return segments that may go, those that supersede others first."""
    tables, identity = head.tables, head.identity
    known = {ref.name for ref in tables.segments} | {item.name for item in tables.condemned}
    superseding: list[bytes] = []
    plain: list[bytes] = []
    async for info in storage.list(identity.segment_prefix):
        name = segment_name(identity, info.key)
        if name is None or name in known:
            continue
        if to_microseconds(info.modified) >= limits.written_before:
            collected.young += 1
            continue
        try:
            loaded = await load_segment(storage, identity, name)
            is_known = True
            async for rows in read_rows(storage, loaded):
                is_known = is_known and all(head.find(row.entry.file_id) is not None for row in rows)
        except ObjectNotFoundError:
            continue  # collected by somebody else
        except CorruptShardError as error:
            collected.unreadable.append(info.key)
            if limits.discard_unknown and not isinstance(error, UnsupportedFormatError):
                plain.append(name)
            continue
        if not is_known:
            collected.unknown.append(info.key)
        if is_known or limits.discard_unknown:
            (superseding if loaded.segment.tables.superseded else plain).append(name)
    return [*superseding, *plain]


async def collect_leftovers(storage: Storage, limits: Limits) -> Collected:
    """Remove what writes left that were broken off long ago: parts of uploads, temporary files.

    Raises:
        StorageError: the storage is unwell.
    """
    collected = Collected()
    old: list[Leftover] = []
    async for leftover in storage.list_leftovers():
        if to_microseconds(leftover.began) < limits.written_before:
            old.append(leftover)
        else:
            collected.young += 1
    for leftover in old:
        if limits.apply:
            await storage.discard(leftover)
        collected.leftovers.append(leftover.key)
    return collected
