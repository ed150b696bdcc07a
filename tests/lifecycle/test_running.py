from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import ConflictError, CorruptShardError, InvalidRequestError, LostHeadError, StorageUnavailableError
from des.lifecycle.running import Failed, Place, chosen_shards, maintain
from tests.making import DAY, make_store

if TYPE_CHECKING:
    from des.shard.layout import Identity
    from des.storage.protocol import Storage

FILES = {f"file-{number}": b"content" for number in range(60)}
NEXT = "20240201"


async def make_place(storage: Storage) -> Place:
    maker = await make_store(storage, FILES, n_bits=2)
    await maker.add({"file-1": b"next day"}, NEXT)
    return Place(storage, maker.descriptor)


async def test_shards_by_their_names(storage: Storage) -> None:
    place = await make_place(storage)

    async def named(*names: str) -> list[str]:
        return [identity.shard_name for identity in await chosen_shards(place, names)]

    whole = [f"{DAY}/{index}" for index in range(4)]
    assert await named(DAY) == await named("2024-01-31") == whole
    assert await named() == [*whole, *await named(NEXT)]
    assert await named(f"{DAY}/3", f"{DAY}/3.des", "2024-01-31/3/", DAY) == [f"{DAY}/3", *whole[:3]]
    assert await named("20200101") == []
    for name in ("yesterday", f"{DAY}/4", f"{DAY}/03", f"{DAY}/x"):
        with pytest.raises(InvalidRequestError):
            await named(name)


async def test_a_lost_head_hides_no_shard(storage: Storage) -> None:
    place = await make_place(storage)
    await storage.delete(f"{DAY}/2.des")
    assert f"{DAY}/2" in [identity.shard_name for identity in await chosen_shards(place, [DAY])]


async def test_one_that_fails_does_not_stop_the_others(storage: Storage) -> None:
    place = await make_place(storage)
    done = []

    async def work(identity: Identity) -> str:
        error = {1: CorruptShardError("it is damaged."), 2: LostHeadError("its head is lost.")}.get(
            identity.shard_index
        )
        if error:
            raise error
        return identity.shard_name

    outcome = await maintain(await chosen_shards(place, [DAY]), work, lambda: done.append(1))
    assert sorted(outcome.results) == [f"{DAY}/0", f"{DAY}/3"]
    assert outcome.failed == [
        Failed(f"{DAY}/1", "corrupt", "it is damaged."),
        Failed(f"{DAY}/2", "corrupt", "its head is lost."),
    ]
    assert len(done) == 4


async def test_trouble_of_the_storage_ends_all(storage: Storage) -> None:
    place = await make_place(storage)

    async def work(identity: Identity) -> None:
        raise StorageUnavailableError("it is away.") if identity.shard_index else ConflictError("others won.")

    with pytest.raises(StorageUnavailableError, match="away"):
        await maintain(await chosen_shards(place, [DAY]), work)
