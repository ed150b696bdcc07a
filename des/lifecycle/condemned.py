"""Condemned segments: listed by their head as about to be deleted, deleted when their grace is over, forgotten when they are proven gone.

The list is the fence between those who delete and writers that were stopped in the middle: a writer swaps in no segment that the head
condemns, and none that is not there. So a name leaves the list only once its object is proven absent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from des.errors import ObjectNotFoundError
from des.pack.commit import lost_head, require_shard, settle, swap
from des.shard.tables import Condemned
from des.store.heads import load_head

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from des.pack.commit import Change
    from des.shard.layout import Identity
    from des.shard.tables import HeadTables
    from des.storage.protocol import Storage
    from des.store.heads import WholeHead


async def delete_condemned(storage: Storage, identity: Identity, names: Collection[bytes]) -> frozenset[bytes]:
    """Delete those of some segments that the shard's head condemns now, in the order of its list; return what is proven gone.

    The head is read for it: between condemning and deleting the caller may have slept for long, and a repair may have put one of them to use again.
    The order matters to `des repair`: a tombstone is condemned after, or with and behind, the files it stands for, and outlives them.
    It is settled first, so that no place that must hold it goes on listing what is deleted; and where one of several places does not delete an object,
    its name stays on the list.

    Raises:
        LostHeadError: the head is gone, so nothing is deleted.
        NotSettledError: too few places hold the head, so nothing is deleted.
        CorruptShardError: it is damaged.
        StorageError: the storage is unwell.
    """
    if not names:
        return frozenset()
    try:
        loaded = await load_head(storage, identity)
    except ObjectNotFoundError as error:
        raise lost_head(identity) from error
    loaded.require_proof()
    await settle(storage, identity)
    gone = set()
    for name in [item.name for item in loaded.head.tables.condemned if item.name in names]:
        key = identity.segment_key(name)
        await storage.delete(key)
        try:
            await storage.head(key)
        except ObjectNotFoundError:
            gone.add(name)
        else:
            break  # what comes behind it on the list must outlive it
    return frozenset(gone)


async def remove_unlisted(storage: Storage, identity: Identity, names: Sequence[bytes], now: int) -> frozenset[bytes]:
    """Condemn, delete and forget segments that no head lists; return those that are gone. Errors as for `condemn`."""
    gone = await delete_condemned(storage, identity, await condemn(storage, identity, names, now))
    await forget_condemned(storage, identity, gone)
    return gone


def overdue(tables: HeadTables, condemned_before: int) -> list[bytes]:
    """Return what a head condemned before a time (microseconds since 1970)."""
    return [item.name for item in tables.condemned if item.since < condemned_before]


async def condemn(storage: Storage, identity: Identity, names: Sequence[bytes], now: int) -> list[bytes]:
    """Swap in a head that condemns segments which no head lists.

    Args:
        storage: the store's place.
        identity: the shard.
        names: the segments.
        now: microseconds since 1970, by the storage's clock.

    Returns:
        Those that are condemned now, in the same order: a segment that was listed meanwhile is not.

    Raises:
        As for `require_shard` and `swap`.
    """
    if not names:
        return []

    async def change(current: WholeHead) -> Change | None:
        listed = {ref.name for ref in current.tables.segments}
        known = {item.name for item in current.tables.condemned}
        fresh = [Condemned(name, now) for name in names if name not in known | listed]
        if not fresh:
            return None
        return replace(current.tables, condemned=(*current.tables.condemned, *fresh)), bytes(current.entries)

    swapped = await swap(storage, await require_shard(storage, identity), change)
    condemned = {item.name for item in swapped.tables.condemned}
    return [name for name in names if name in condemned]


def without_condemned(tables: HeadTables, gone: Collection[bytes]) -> HeadTables:
    """Return tables that forget condemned segments which are proven gone."""
    return replace(tables, condemned=tuple(item for item in tables.condemned if item.name not in gone))


async def forget_condemned(storage: Storage, identity: Identity, gone: Collection[bytes]) -> None:
    """Swap in a head that forgets condemned segments which are proven gone. Errors as for `require_shard` and `swap`."""

    async def change(current: WholeHead) -> Change | None:
        tables = without_condemned(current.tables, gone)
        return None if tables == current.tables else (tables, bytes(current.entries))

    if gone:
        await swap(storage, await require_shard(storage, identity), change)
