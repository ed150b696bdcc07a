"""What tests of a file's later life share: a store with a history, and what it must hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import DeletedError, NotFoundError
from des.shard.layout import to_microseconds
from des.store.shards import find_shards
from des.store.verifying import verify
from tests.making import DAY, WHEN, reading

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from des.shard.layout import Identity
    from des.storage.protocol import Storage
    from tests.making import Maker

MINUTE = 60_000_000


async def shards(maker: Maker, day: str = DAY) -> list[Identity]:
    return [found.identity for found in (await find_shards(maker.storage, maker.descriptor, day)).shards]


async def now(storage: Storage) -> int:
    return to_microseconds(await storage.now())


async def check(storage: Storage, files: Mapping[str, bytes], deleted: Collection[str] = (), day: str = DAY) -> None:
    """Read all files of a day and prove that there are no others, and no damage."""
    async with reading(storage, index_ttl=0, negative_ttl=0) as store:
        for uid, content in files.items():
            assert await store.get(uid, WHEN) == content, uid
        for uid in deleted:
            with pytest.raises(DeletedError):
                await store.get(uid, WHEN)
        assert {info.uid async for info in store.list(day)} == set(files)
        with pytest.raises(NotFoundError):
            await store.get("never-there", WHEN)
        assert (await verify(store)).damage == []


async def every_byte(storage: Storage) -> bytes:
    """Return the bytes of all objects of a store, one after another."""
    parts = []
    async for info in storage.list(""):
        suffix = await storage.read_suffix(info.key, 1 << 40)
        assert suffix is not None
        parts.append(suffix.data)
    return b"".join(parts)
