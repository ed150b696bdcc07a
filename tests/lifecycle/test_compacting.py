from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from des.errors import CorruptShardError
from des.lifecycle.choosing import Rules
from des.lifecycle.compacting import Compaction, compact_shard, plan_compaction
from des.lifecycle.deleting import delete_files
from des.lifecycle.rewriting import Rewriting
from des.shard.codecs import Compression
from des.storage.protocol import Overwrite
from des.store.heads import read_whole_head
from tests.lifecycle.living import MINUTE, check, now, shards
from tests.making import WHEN, File, make_store, reading

if TYPE_CHECKING:
    from des.storage.protocol import Storage
    from tests.making import Maker

JOIN = Rules(small_segments=2)
GRACE = 15 * MINUTE


def contents(seed: int, count: int) -> dict[str, bytes]:
    source = random.Random(seed)
    files = {
        f"{seed}/{n}": source.randbytes(source.randrange(5_000)) + b"text " * source.randrange(500)
        for n in range(count)
    }
    return files | {f"{seed}/empty": b"", f"{seed}/large": b"line %d\n" % seed * 300_000}


async def compact(
    maker: Maker, rules: Rules = JOIN, how: Rewriting | None = None, *, grace: int = GRACE
) -> list[Compaction]:
    at = await now(maker.storage)
    return [
        await compact_shard(maker.storage, identity, rules, how or Rewriting(), now=at, grace=grace)
        for identity in await shards(maker)
    ]


async def test_many_segments_become_one(storage: Storage) -> None:
    maker = await make_store(storage)
    files: dict[str, bytes] = {}
    for seed in range(5):
        files |= contents(seed, 20)
        await maker.add(contents(seed, 20))
    compactions = await compact(maker)
    assert [(one.segments_before, one.segments_after) for one in compactions] == [(5, 1), (5, 1)]
    assert sum(one.files for one in compactions) == len(files)
    await check(storage, files)
    assert [one.choice.names for one in await compact(maker)] == [(), ()]


@pytest.mark.parametrize(
    "how",
    [
        Rewriting(memory=20_000, max_segment_bytes=100_000),
        Rewriting(compression=Compression("lz4")),
        Rewriting(compression=Compression("zstd", 9, b"text text text line line line" * 20)),
        Rewriting(compression=Compression("none")),
    ],
    ids=["little memory", "lz4", "dictionary", "none"],
)
async def test_other_ways_of_rewriting(storage: Storage, how: Rewriting) -> None:
    maker = await make_store(storage, n_bits=1)
    files: dict[str, bytes] = {}
    for seed, compression in enumerate(
        [Compression("lz4"), Compression("zstd", 3, b"text text text" * 50), Compression("none")]
    ):
        files |= contents(seed, 30)
        await maker.add(contents(seed, 30), compression=compression)
    await delete_files(storage, [("0/1", WHEN), ("2/large", WHEN)])
    del files["0/1"], files["2/large"]
    await compact(maker, how=how)
    await check(storage, files, ["0/1", "2/large"])


async def test_segments_with_different_dictionaries_stay_apart(storage: Storage) -> None:
    maker = await make_store(storage, n_bits=1)
    files: dict[str, bytes] = {}
    for seed in range(6):
        dictionary = [None, b"text text text" * 50, b"line line line" * 50][seed % 3]
        files |= contents(seed, 10)
        await maker.add(contents(seed, 10), compression=Compression("zstd", 3, dictionary))
    await compact(maker)
    await check(storage, files)
    for identity in await shards(maker):
        tables = (await read_whole_head(storage, identity)).tables
        assert len(tables.segments) == 3
        assert len({ref.dictionary for ref in tables.segments}) == 3


async def test_what_is_known_of_a_file_comes_along(storage: Storage) -> None:
    maker = await make_store(storage, n_bits=1)
    for number in range(4):
        await maker.add({"a": File(b"%d" % number, "text/x", {"n": number}), f"b{number}": b"other"})
    async with reading(storage) as store:
        before = await store.stat("a", WHEN, metadata=True)
    await compact(maker)
    async with reading(storage) as store:
        after = await store.stat("a", WHEN, metadata=True)
    assert (after.etag, after.metadata, after.content_type, after.created_at) == (
        before.etag,
        {"n": 3},
        "text/x",
        before.created_at,
    )
    assert after.segment != before.segment


async def test_condemned_segments_go_when_their_time_has_come(storage: Storage) -> None:
    maker = await make_store(storage, n_bits=1)
    for number in range(4):
        await maker.add({f"a{number}": b"content"})
    objects = len([info async for info in storage.list("")])
    await compact(maker)
    assert len([info async for info in storage.list("")]) > objects
    assert sum(one.collected for one in await compact(maker)) == 0
    collected = await compact(maker, grace=-1)
    assert sum(one.collected for one in collected) == 4
    for identity in await shards(maker):
        assert (await read_whole_head(storage, identity)).tables.condemned == ()
    await check(storage, {f"a{number}": b"content" for number in range(4)})


async def test_tombstones_are_carried_until_they_are_old(storage: Storage) -> None:
    maker = await make_store(storage, {f"a{number}": b"content" for number in range(8)}, n_bits=1)
    await delete_files(storage, [("a0", WHEN), ("a1", WHEN)])
    await compact(maker)
    await compact(maker, grace=-1)
    left = {f"a{number}": b"content" for number in range(2, 8)}
    await check(storage, left, ["a0", "a1"])
    much_later = await now(storage) + MINUTE
    dropped = await compact(maker, how=Rewriting(drop_tombstones_before=much_later))
    assert sum(one.tombstones_dropped for one in dropped) == 2
    await check(storage, left)
    for identity in await shards(maker):
        assert (await read_whole_head(storage, identity)).tables.deleted == 0


async def test_a_plan_changes_nothing(storage: Storage) -> None:
    maker = await make_store(storage, n_bits=1)
    for number in range(4):
        await maker.add({"a": b"%d" % number})
    before = [info async for info in storage.list("")]
    [plan] = [await plan_compaction(storage, identity, JOIN) for identity in await shards(maker)]
    assert (len(plan.choice.names), plan.choice.reason) == (3, "3 empty of 4 segments")
    assert [info async for info in storage.list("")] == before


async def test_damage_is_not_carried_along(storage: Storage) -> None:
    maker = await make_store(storage, n_bits=1)
    keys = []
    for number in range(4):
        keys += await maker.add({f"a{number}": b"content %d" % number * 100}, compression=Compression("none"))
    suffix = await storage.read_suffix(keys[0], 1 << 20)
    assert suffix is not None
    await storage.put(keys[0], suffix.data.replace(b"content 0", b"content X", 1), Overwrite())
    before = [info.key async for info in storage.list("")]
    with pytest.raises(CorruptShardError, match="damaged"):
        await compact(maker)
    assert [info.key async for info in storage.list("")] == before
