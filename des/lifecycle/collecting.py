"""Collecting garbage: segments that no head lists, condemned ones whose grace is over, and what broken-off writes left behind.

A segment that no head lists is collected when it is older than the age limit and the head has all files in it elsewhere: it may be the only copy of a
file that a packer never committed, and those are listed instead, unless the caller says that they may go. First a swap lists it as condemned, which
stops a writer that was asleep all the time from swapping it in; then it is deleted; its name is forgotten when it is proven gone.

A shard whose head is lost or damaged is not touched at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from des.errors import CorruptShardError, LostHeadError, ObjectNotFoundError, UnsupportedFormatError
from des.lifecycle.condemned import condemn, delete_condemned, forget_condemned, overdue
from des.pack.commit import find_shard
from des.shard.layout import to_microseconds
from des.store.catalogs import load_segment, read_rows
from des.store.shards import segment_name

if TYPE_CHECKING:
    from collections.abc import Container

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
        head = await find_shard(storage, identity)
    except UnsupportedFormatError:
        raise
    except (LostHeadError, CorruptShardError):
        collected.lost_heads.append(identity.shard_name)
        return collected
    if head is None:
        return collected  # removed since it was listed
    late = overdue(head.tables, limits.condemned_before)
    orphans = await _orphans(storage, head, limits, collected)
    collected.condemned = [identity.segment_key(name) for name in late]
    collected.orphans = [identity.segment_key(name) for name in orphans]
    if not limits.apply:
        return collected
    doomed = await condemn(storage, identity, orphans, to_microseconds(await storage.now())) if orphans else []
    await forget_condemned(storage, identity, await delete_condemned(storage, identity, {*late, *doomed}))
    return collected


async def _orphans(storage: Storage, head: WholeHead, limits: Limits, collected: Collected) -> list[bytes]:
    """Return segments that may go."""
    tables, identity = head.tables, head.identity
    there = {
        name: info
        async for info in storage.list(identity.segment_prefix)
        if (name := segment_name(identity, info.key)) is not None
    }
    known = {ref.name for ref in tables.segments} | {item.name for item in tables.condemned}
    doomed: list[bytes] = []
    for name, info in there.items():
        if name in known:
            continue
        if to_microseconds(info.modified) >= limits.written_before:
            collected.young += 1
            continue
        try:
            is_needed = await _holds_an_only_copy(storage, head, name, there)
        except ObjectNotFoundError:
            continue  # collected by somebody else
        except UnsupportedFormatError:
            collected.unreadable.append(info.key)
            continue
        except CorruptShardError:
            collected.unreadable.append(info.key)
            is_needed = True
        else:
            if is_needed:
                collected.unknown.append(info.key)
        if limits.discard_unknown or not is_needed:
            doomed.append(name)
    return doomed


async def _holds_an_only_copy(storage: Storage, head: WholeHead, name: bytes, there: Container[bytes]) -> bool:
    """Tell whether a segment has a file that the head does not know, or whose segment is missing."""
    loaded = await load_segment(storage, head.identity, name)
    async for rows in read_rows(storage, loaded):
        for row in rows:
            if row.entry.deleted:
                continue
            entry = head.find(row.entry.file_id)
            if entry is None or not (entry.deleted or head.tables.segments[entry.segment].name in there):
                return True
    return False


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
