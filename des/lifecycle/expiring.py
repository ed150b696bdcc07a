"""Retention: remove whole days when they are old enough.

Of each shard the head goes first, in a manner of speaking: an empty head is swapped in that condemns all segments and that no writer may change any more.
From then on readers are told "not found", which is true, and never find damage. Then the segments are deleted, then the head. Whoever finishes what a crash
broke off finds a closed head, or segments that have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING

from des.errors import ObjectNotFoundError
from des.pack.commit import close_shard
from des.routing import parse_day
from des.store.heads import load_head
from des.store.listing import days_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from des.shard.layout import Identity
    from des.storage.protocol import Storage


@dataclass(frozen=True, slots=True)
class ExpiredShard:
    """A shard that was removed, or would be: its files and stored bytes as its head counted them (0 where that was gone), and its objects."""

    shard: str
    files: int
    stored_bytes: int
    objects: int


async def days_to_expire(storage: Storage, older_than: timedelta, held: Collection[str]) -> list[str]:
    """Return the days (YYYYMMDD) that ended longer ago than that, by the storage's clock, but for those that are held.

    Args:
        storage: the store's place.
        older_than: the retention time.
        held: days that stay, YYYYMMDD or YYYY-MM-DD.

    Raises:
        InvalidRequestError: an impossible day.
        StorageError: the storage is unwell.
    """
    stays = {parse_day(day) for day in held}
    limit = await storage.now() - older_than
    return [day for day in await days_of(storage) if day not in stays and _end_of(day, limit) <= limit]


def _end_of(day: str, like: datetime) -> datetime:
    begin = datetime.combine(datetime.strptime(day, "%Y%m%d").date(), time(), like.tzinfo)  # noqa: DTZ007 - the zone follows
    return begin + timedelta(days=1)


async def expire_shard(storage: Storage, identity: Identity, now: int) -> ExpiredShard:
    """Remove a shard.

    Args:
        storage: the store's place.
        identity: the shard.
        now: microseconds since 1970, by the storage's clock.

    Raises:
        CorruptShardError: its head is damaged; repair it first.
        ConflictError: others kept changing the head.
        StorageError: the storage is unwell.
    """
    measured = await measure_shard(storage, identity)
    await close_shard(storage, identity, now)
    keys = [info.key async for info in storage.list(identity.segment_prefix)]
    for key in keys:
        await storage.delete(key)
    await storage.delete(identity.head_key)
    return measured


async def measure_shard(storage: Storage, identity: Identity) -> ExpiredShard:
    """Tell what `expire_shard` would remove. Errors as there."""
    objects = sum([1 async for _ in storage.list(identity.segment_prefix)])
    name = f"{identity.date}/{identity.shard_hex}"
    try:
        loaded = await load_head(storage, identity)
    except ObjectNotFoundError:
        loaded = None
    if loaded is None:
        return ExpiredShard(name, 0, 0, objects)
    tables = loaded.head.tables
    return ExpiredShard(name, tables.files, tables.stored_bytes, objects + 1)
