"""Retention: remove whole days when they are old enough.

Of each shard the head goes first, in a manner of speaking: an empty head is swapped in that condemns all segments and that no writer may change any more.
From then on readers are told "not found", which is true, and never find damage. Then the segments are deleted, then the head. Whoever finishes what a crash
broke off finds a closed head. A packer that was about to add to the shard is refused; the segment it may have uploaded by then goes with the next run.

No store can delete on condition, so two runs that remove the same shard, and a packer that begins it anew between the last look of the one and
its deletion of the head, can leave a shard without its head, for `des repair`. Its segments are never deleted: what is deleted was listed under the closed head.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING

from des.errors import ObjectNotFoundError
from des.pack.commit import close_shard
from des.routing import parse_day
from des.store.heads import load_head, unproven
from des.store.listing import days_of
from des.store.places import list_everywhere

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
    try:
        limit = await storage.now() - older_than
    except OverflowError:
        return []  # before the first day there is
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
    version = await close_shard(storage, identity, now)
    infos = await list_everywhere(storage, identity)
    if not await _is_still(storage, identity, version):
        return measured  # another run has removed the shard; what was listed may belong to a new one
    for info in infos:
        await storage.delete(info.key)
    if await _is_still(storage, identity, version):
        await storage.delete(identity.head_key)
    return measured


async def _is_still(storage: Storage, identity: Identity, version: str) -> bool:
    try:
        suffix = await storage.read_suffix(identity.head_key, 1, unless=version)
    except ObjectNotFoundError:
        return False
    if suffix is not None and not suffix.is_proof:
        raise unproven(identity)
    return suffix is None


async def measure_shard(storage: Storage, identity: Identity) -> ExpiredShard:
    """Tell what `expire_shard` would remove. Errors as there."""
    objects = sum([1 async for _ in storage.list(identity.segment_prefix)])
    try:
        tables = (await load_head(storage, identity)).head.tables
    except ObjectNotFoundError:
        return ExpiredShard(identity.shard_name, 0, 0, objects)
    return ExpiredShard(identity.shard_name, tables.files, tables.stored_bytes, objects + 1)
