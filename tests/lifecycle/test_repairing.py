from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import CorruptShardError, LostHeadError
from des.lifecycle.choosing import Rules
from des.lifecycle.compacting import compact_shard
from des.lifecycle.deleting import delete_files
from des.lifecycle.repairing import repair_shard
from des.lifecycle.rewriting import Rewriting
from des.pack.commit import open_shard
from des.storage.protocol import Overwrite
from des.store.heads import read_whole_head
from tests.lifecycle.living import MINUTE, check, now, shards
from tests.lifecycle.test_erasing import add_orphan
from tests.making import WHEN, File, make_store

if TYPE_CHECKING:
    from des.storage.protocol import Storage
    from tests.making import Maker

FILES = {f"file-{number}": b"content %d" % number * number for number in range(40)}


async def with_a_history(storage: Storage) -> tuple[Maker, dict[str, bytes], list[str]]:
    """Return a store of two shards with files that were replaced, deleted, brought back, and compacted on the way."""
    maker = await make_store(storage, FILES, n_bits=1)
    files = dict(FILES)
    await maker.add({"file-1": b"replaced", "file-2": File(b"replaced", "text/x", {"a": 1})})
    files |= {"file-1": b"replaced", "file-2": b"replaced"}
    await delete_files(storage, [("file-3", WHEN), ("file-4", WHEN), ("file-1", WHEN)])
    await maker.add({"file-4": b"back again"})
    files["file-4"] = b"back again"
    del files["file-1"], files["file-3"]
    for identity in await shards(maker):
        await compact_shard(
            storage, identity, Rules(small_segments=2), Rewriting(), now=await now(storage), grace=MINUTE
        )
    await maker.add({"file-5": b"after the compaction"})
    await delete_files(storage, [("file-6", WHEN)])
    files["file-5"] = b"after the compaction"
    del files["file-6"]
    return maker, files, ["file-1", "file-3", "file-6"]


@pytest.mark.parametrize("harm", ["gone", "cut", "flipped", "another's"])
async def test_every_file_comes_back(storage: Storage, harm: str) -> None:
    maker, files, deleted = await with_a_history(storage)
    identities = await shards(maker)
    before = [await read_whole_head(storage, identity) for identity in identities]
    heads = [await storage.read_suffix(identity.head_key, 1 << 30) for identity in identities]
    for number, identity in enumerate(identities):
        data = heads[number].data  # type: ignore[union-attr]  # it is there
        if harm == "gone":
            await storage.delete(identity.head_key)
            with pytest.raises(LostHeadError):
                await open_shard(storage, identity)
            continue
        other = heads[1 - number].data  # type: ignore[union-attr]  # as above
        bad = {"cut": data[:-1], "flipped": data[:100] + bytes([data[100] ^ 1]) + data[101:], "another's": other}[harm]
        await storage.put(identity.head_key, bad, Overwrite())
        with pytest.raises(CorruptShardError):
            await open_shard(storage, identity)
    for identity, old in zip(identities, before, strict=True):
        repair = await repair_shard(storage, identity)
        assert (repair.outcome, repair.is_certain) == ("rebuilt", True)
        assert (repair.files, repair.deleted) == (old.tables.files, old.tables.deleted)
        head = await read_whole_head(storage, identity)
        assert head.tables.lineage != old.tables.lineage
        assert head.tables.generation >= old.tables.generation
        assert (await repair_shard(storage, identity)).outcome == "good"
    await check(storage, files, deleted)
    await maker.add({"new": b"goes on"})
    await check(storage, files | {"new": b"goes on"}, deleted)


async def test_a_good_head_is_left_alone(storage: Storage) -> None:
    maker, files, deleted = await with_a_history(storage)
    before = [info async for info in storage.list("")]
    for identity in await shards(maker):
        assert (await repair_shard(storage, identity)).outcome == "good"
    assert [info async for info in storage.list("")] == before
    await check(storage, files, deleted)


async def test_there_is_nothing_to_repair(storage: Storage) -> None:
    maker = await make_store(storage, FILES, n_bits=1)
    assert (await repair_shard(storage, maker.identity("a", "20200101"))).outcome == "absent"
    assert [info.key async for info in storage.list("20200101/")] == []


async def test_two_versions_that_cannot_be_told_apart_are_reported(storage: Storage) -> None:
    maker = await make_store(storage, {"file-1": b"one", "file-2": b"two"}, n_bits=1)
    identity = maker.identity("file-1")
    await add_orphan(storage, identity, {"file-1": b"another"})
    await storage.delete(identity.head_key)
    repair = await repair_shard(storage, identity)
    assert repair.outcome == "rebuilt"
    assert len(repair.unclear) == 1
    assert not repair.is_certain


async def test_what_cannot_be_read_is_not_given_up_by_itself(storage: Storage) -> None:
    maker = await make_store(storage, n_bits=1)
    [key] = await maker.add({"file-1": b"one"})
    await maker.add(
        {"file-1b": b"two"} if maker.identity("file-1b") == maker.identity("file-1") else {"file-1": b"two"}
    )
    identity = maker.identity("file-1")
    suffix = await storage.read_suffix(key, 1 << 30)
    assert suffix is not None
    await storage.put(key, suffix.data[:-1], Overwrite())
    await storage.delete(identity.head_key)
    refused = await repair_shard(storage, identity)
    assert (refused.outcome, refused.unreadable) == ("refused", [key])
    assert identity.head_key not in [info.key async for info in storage.list("")]
    rebuilt = await repair_shard(storage, identity, give_up_unreadable=True)
    assert (rebuilt.outcome, rebuilt.is_certain) == ("rebuilt", False)
