from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import CorruptShardError
from des.lifecycle.collecting import Collected, Limits, collect_leftovers, collect_shard
from des.pack.commit import are_usable, open_shard
from des.storage.protocol import Overwrite
from des.store.heads import read_whole_head
from tests.lifecycle.living import MINUTE, check, now, shards
from tests.lifecycle.test_erasing import add_orphan
from tests.making import WHEN, make_store, reading
from tests.store.meddling import Meddler

if TYPE_CHECKING:
    from des.storage.protocol import Storage
    from des.storage.wrapper import Call
    from tests.making import Maker

FILES = {f"file-{number}": b"content %d" % number for number in range(20)}


async def collect(maker: Maker, *, apply: bool = True, discard_unknown: bool = False, later: int = MINUTE) -> Collected:
    at = await now(maker.storage) + later
    collected = Collected()
    for identity in await shards(maker):
        collected.add(await collect_shard(maker.storage, identity, Limits(at, at, discard_unknown, apply)))
    return collected


async def keys_of(storage: Storage) -> set[str]:
    return {info.key async for info in storage.list("")}


async def test_what_nobody_needs_is_collected(storage: Storage) -> None:
    maker = await make_store(storage, FILES, n_bits=1)
    identity = maker.identity("file-1")
    before = await keys_of(storage)
    orphan = await add_orphan(storage, identity, {"file-1": b"another version"})
    assert (await collect(maker, later=-MINUTE)).young == 1
    listed = await collect(maker, apply=False)
    assert listed.orphans == [orphan]
    assert await keys_of(storage) == before | {orphan}
    assert (await collect(maker)).orphans == [orphan]
    assert await keys_of(storage) == before
    assert (await open_shard(storage, identity)).tables.condemned == ()
    await check(storage, FILES)


async def test_the_only_copy_of_a_file_is_listed(storage: Storage) -> None:
    maker = await make_store(storage, FILES, n_bits=1)
    identity = maker.identity("file-1")
    orphan = await add_orphan(storage, identity, {"file-1": b"another version", "new": b"new"})
    collected = await collect(maker)
    assert (collected.orphans, collected.unknown) == ([], [orphan])
    assert orphan in await keys_of(storage)
    assert (await collect(maker, discard_unknown=True)).orphans == [orphan]
    assert orphan not in await keys_of(storage)


async def test_what_is_collected_cannot_be_swapped_in(storage: Storage) -> None:
    maker = await make_store(storage, FILES, n_bits=1)
    identity = maker.identity("file-1")
    orphan = await add_orphan(storage, identity, {"file-1": b"another version"})
    name = bytes.fromhex(orphan.rpartition("/")[2].removesuffix(".des"))
    assert await are_usable(storage, await read_whole_head(storage, identity), [name])
    await collect(maker)
    assert not await are_usable(storage, await read_whole_head(storage, identity), [name])


async def test_what_is_deleted_was_condemned_before(storage: Storage) -> None:
    """A writer that read the head before, and swaps after, finds it changed: in between nothing may go."""
    maker = await make_store(storage, FILES, n_bits=1)
    identity = maker.identity("file-1")
    orphan = await add_orphan(storage, identity, {"file-1": b"another version"})
    deleted = []

    async def look(call: Call) -> None:
        if call.verb == "delete":
            tables = (await read_whole_head(storage, identity)).tables
            assert call.key in [identity.segment_key(item.name) for item in tables.condemned]
            deleted.append(call.key)

    later = await now(storage) + MINUTE
    await collect_shard(Meddler(storage, before=look), identity, Limits(later, later, apply=True))
    assert deleted == [orphan]
    assert (await read_whole_head(storage, identity)).tables.condemned == ()


@pytest.mark.parametrize("harm", ["gone", "damaged", "another's"])
async def test_a_shard_without_a_good_head_is_not_touched(storage: Storage, harm: str) -> None:
    maker = await make_store(storage, FILES, n_bits=1)
    identity = maker.identity("file-1")
    await add_orphan(storage, identity, {"file-1": b"another version"})
    if harm == "gone":
        await storage.delete(identity.head_key)
    elif harm == "damaged":
        await storage.put(identity.head_key, b"no head at all", Overwrite())
    else:
        other = next(one for one in await shards(maker) if one != identity)
        head = await storage.read_suffix(other.head_key, 1 << 20)
        assert head is not None
        await storage.put(identity.head_key, head.data, Overwrite())
        async with reading(storage) as store:
            with pytest.raises(CorruptShardError, match="belongs to shard"):
                await store.get("file-1", WHEN)
    before = await keys_of(storage)
    collected = await collect(maker, discard_unknown=True)
    assert collected.lost_heads == [f"{identity.date}/{identity.shard_hex}"]
    assert await keys_of(storage) == before


async def test_leftovers(storage: Storage) -> None:
    await make_store(storage, FILES, n_bits=1)
    at = await now(storage) + MINUTE
    async with storage.open_writer("20240131/0/unfinished.des") as writer:
        for _ in range(3):
            await writer.write(bytes(9 << 20))
        assert (await collect_leftovers(storage, Limits(at - 2 * MINUTE, 0, apply=True))).young == 1
        listed = await collect_leftovers(storage, Limits(at, 0))
        assert len(listed.leftovers) == 1
        assert len([one async for one in storage.list_leftovers()]) == 1
    assert (await collect_leftovers(storage, Limits(at, 0, apply=True))).leftovers == []
