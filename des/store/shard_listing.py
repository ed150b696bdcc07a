"""Listing the shards of a day, from their heads alone: one listing, and one read of each head that is not known yet."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from des.errors import InvalidRequestError
from des.routing import parse_day
from des.store.listing import require_no_segments, shards_of
from des.tasks import mapped_in_order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from des.shard.layout import Identity
    from des.store.store import Store

CONCURRENT_HEADS = 16
_CURSOR = re.compile(r"[0-9A-F]{1,4}")


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """A shard, as its head counts it.

    Attributes:
        shard: object key of its head.
        files: live files.
        deleted: files that were deleted.
        raw_bytes: of the live files' contents.
        stored_bytes: what those take in segments.
        segments: how many it has.
    """

    shard: str
    files: int
    deleted: int
    raw_bytes: int
    stored_bytes: int
    segments: int


@dataclass(frozen=True, slots=True)
class ShardPage:
    """Some shards of a day in the order of their indices, and the cursor after which the listing goes on, None at its end."""

    shards: tuple[ShardInfo, ...]
    next: str | None


async def list_shards(store: Store, day: str, after: str | None, limit: int) -> ShardPage:
    """Return a page of a day's shards.

    Args:
        store: the store.
        day: YYYYMMDD or YYYY-MM-DD.
        after: a cursor: only shards behind it; None for all.
        limit: at most so many, 1 or more.

    Raises:
        InvalidRequestError: an impossible day or cursor.
        LostHeadError, CorruptShardError, StorageError, SettingsError: as for `Store.list`.
    """
    date = parse_day(day)
    if after is not None and not _CURSOR.fullmatch(after):
        raise InvalidRequestError(f"{after[:64]!r} is no cursor; pass on what the last page gave.")
    listed_at = time.monotonic()
    descriptor = await store.in_time(store.index.descriptor())
    shards = await store.in_time(shards_of(store.storage, descriptor, date))
    rest = [one for one in shards if after is None or one.shard_index > int(after, 16)]
    page = rest[:limit]
    async with mapped_in_order(partial(_read, store, listed_at), _each(page), CONCURRENT_HEADS) as read:
        infos = [info async for info in read if info is not None]
    return ShardPage(tuple(infos), page[-1].shard_hex if len(rest) > limit else None)


async def _each(shards: Iterable[Identity]) -> AsyncIterator[Identity]:
    for identity in shards:
        yield identity


async def _read(store: Store, listed_at: float, identity: Identity) -> ShardInfo | None:
    """Read the head of a shard that was listed at `listed_at`; None: the shard has gone since."""
    looked = await store.in_time(store.index.look_for_all(identity, listed_at - store.settings.negative_ttl))
    if looked.loaded is None:
        looked = await store.in_time(store.index.look_for_all(identity, listed_at))
    if looked.loaded is None:
        await store.in_time(require_no_segments(store.storage, identity))
        return None
    tables = looked.loaded.head.tables
    return ShardInfo(
        identity.head_key, tables.files, tables.deleted, tables.raw_bytes, tables.stored_bytes, len(tables.segments)
    )
