"""Condemned segments: listed by their head as about to be deleted, deleted when their grace is over, forgotten when they are proven gone.

The list is the fence between those who delete and writers that were stopped in the middle: a writer swaps in no segment that the head
condemns, and none that is not there. So a name leaves the list only once its object is proven absent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from des.errors import ObjectNotFoundError
from des.pack.commit import swap
from des.shard.tables import Condemned

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from des.pack.commit import Change
    from des.shard.layout import Identity
    from des.shard.tables import HeadTables
    from des.storage.protocol import Storage
    from des.store.heads import WholeHead


async def delete_segments(storage: Storage, identity: Identity, names: Iterable[bytes]) -> frozenset[bytes]:
    """Delete segments that their head condemns; return those that are proven gone.

    Raises:
        StorageError: the storage is unwell.
    """
    gone = set()
    for name in names:
        key = identity.segment_key(name)
        await storage.delete(key)
        try:
            await storage.head(key)
        except ObjectNotFoundError:
            gone.add(name)
    return frozenset(gone)


async def delete_overdue(storage: Storage, head: WholeHead, condemned_before: int) -> frozenset[bytes]:
    """Delete what a head condemned before a time (microseconds since 1970); return what is proven gone. Errors as `delete_segments`."""
    overdue = [item.name for item in head.tables.condemned if item.since < condemned_before]
    return await delete_segments(storage, head.identity, overdue)


async def condemn(storage: Storage, head: WholeHead, names: Sequence[bytes], now: int) -> list[bytes]:
    """Swap in a head that condemns segments which no head lists.

    Args:
        storage: the store's place.
        head: of the shard.
        names: the segments.
        now: microseconds since 1970, by the storage's clock.

    Returns:
        Those that are condemned now, in the same order: a segment that was listed meanwhile is not.

    Raises:
        As for `swap`.
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

    swapped = await swap(storage, head, change)
    condemned = {item.name for item in swapped.tables.condemned}
    return [name for name in names if name in condemned]


def without_condemned(tables: HeadTables, gone: Collection[bytes]) -> HeadTables:
    """Return tables that forget condemned segments which are proven gone."""
    return replace(tables, condemned=tuple(item for item in tables.condemned if item.name not in gone))


async def forget_condemned(storage: Storage, head: WholeHead, gone: Collection[bytes]) -> None:
    """Swap in a head that forgets condemned segments which are proven gone. Errors as for `swap`."""

    async def change(current: WholeHead) -> Change | None:
        tables = without_condemned(current.tables, gone)
        return None if tables == current.tables else (tables, bytes(current.entries))

    if gone:
        await swap(storage, head, change)
