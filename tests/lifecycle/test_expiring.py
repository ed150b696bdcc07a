from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from des.errors import ConflictError, InvalidRequestError
from des.lifecycle.expiring import days_to_expire, expire_shard, measure_shard
from des.pack.commit import close_shard, open_shard
from des.storage.protocol import Level
from des.storage.wrapper import StorageWrapper
from tests.lifecycle.living import check, now, shards
from tests.making import DAY, make_store, reading

if TYPE_CHECKING:
    from des.storage.protocol import Storage

OLD = "20010101"
FILES = {f"file-{number}": b"content %d" % number for number in range(20)}


async def test_days_are_expired_whole(storage: Storage) -> None:
    maker = await make_store(storage, FILES, n_bits=2)
    await maker.add(FILES, OLD)
    assert await days_to_expire(storage, timedelta(days=20 * 365), []) == [OLD]
    assert await days_to_expire(storage, timedelta(days=20 * 365), ["2001-01-01"]) == []
    assert await days_to_expire(storage, timedelta(days=1), []) == [OLD, DAY]
    with pytest.raises(InvalidRequestError):
        await days_to_expire(storage, timedelta(days=1), ["someday"])
    plan = [await measure_shard(storage, identity) for identity in await shards(maker, OLD)]
    assert (sum(one.files for one in plan), sum(one.objects for one in plan)) == (len(FILES), 8)
    for identity in await shards(maker, OLD):
        assert (await expire_shard(storage, identity, await now(storage))).files
    assert {info.key.partition("/")[0] async for info in storage.list("")} == {DAY, "des.json"}
    await check(storage, FILES)


async def test_a_closed_shard_says_not_found_and_takes_nothing(storage: Storage) -> None:
    maker = await make_store(storage, FILES, n_bits=1)
    for identity in await shards(maker):
        await close_shard(storage, identity, await now(storage))
        with pytest.raises(ConflictError, match="being removed"):
            await open_shard(storage, identity)
    await check(storage, {})


async def test_what_a_crash_broke_off_is_finished(storage: Storage) -> None:
    maker = await make_store(storage, FILES, n_bits=1)
    first, second = await shards(maker)
    await close_shard(storage, first, await now(storage))
    await storage.delete(second.head_key)
    for identity in await shards(maker):
        await expire_shard(storage, identity, await now(storage))
    assert [info.key async for info in storage.list("")] == ["des.json"]
    await maker.add(FILES)
    async with reading(storage) as store:
        assert {info.uid async for info in store.list(DAY)} == set(FILES)


async def test_a_prefix_that_outlives_its_objects_is_no_shard(storage: Storage) -> None:
    maker = await make_store(storage, FILES, n_bits=1)
    for identity in await shards(maker):
        await expire_shard(storage, identity, await now(storage))

    class Ghostly(StorageWrapper):
        """Lists prefixes below which nothing is left, as SeaweedFS does for a while."""

        async def list_level(self, prefix: str) -> Level:
            level = await super().list_level(prefix)
            return Level(level.objects, {"": (f"{DAY}/",), f"{DAY}/": (f"{DAY}/0/",)}.get(prefix, ()))

    await check(Ghostly(storage), {})
