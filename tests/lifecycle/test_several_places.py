"""All that changes a shard, on a storage of several places: nothing is acknowledged before enough places hold it, and doing it again finishes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import StorageUnavailableError
from des.lifecycle.choosing import Rules
from des.lifecycle.compacting import compact_shard
from des.lifecycle.rewriting import Rewriting
from des.pack.commit import NotSettledError
from des.shard.chunking import CHUNK_BYTES, LARGE_BYTES
from des.shard.codecs import Compression
from des.store.heads import load_head
from des.store.verifying import verify
from tests.lifecycle.acting import Actions, Told, build, found_in, shard_on
from tests.lifecycle.living import MINUTE, now
from tests.making import WHEN, make_store, reading
from tests.pack.packing import Sources
from tests.storage.mirrored import Mirrored
from tests.store.contents import DICTIONARY, noise, text

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["pack", "replace", "delete", "compact", "forget", "erase", "gc", "expire"]
DELETING = ["compact", "erase", "gc", "expire"]


@pytest.fixture
async def built() -> Mirrored:
    storage = Mirrored()
    await build(storage)
    storage.forget_calls()
    return storage


async def actions_on(storage: Mirrored, tmp_path: Path) -> Actions:
    return Actions(await shard_on(storage), Sources(tmp_path))


def assert_alike(storage: Mirrored) -> None:
    """Each copy has what the primary has."""
    whole = storage.primary.memory.contents()
    for copy in storage.copies:
        assert copy.memory.contents().items() >= whole.items()


@pytest.mark.parametrize("name", NAMES)
async def test_a_copy_is_down_and_comes_back(built: Mirrored, tmp_path: Path, name: str) -> None:
    actions = await actions_on(built, tmp_path)
    act = actions.all()[name]
    built.copies[1].is_down = True
    with pytest.raises(StorageUnavailableError):
        await act(built, Told())
    built.copies[1].is_down = False
    built.settled.clear()
    await act(built, Told())
    assert actions.identity.head_key in built.settled or name == "gc"
    if name != "gc":
        assert_alike(built)
    await found_in(built)
    if name == "expire":
        assert all(key == "des.json" for place in built.places for key in place.memory.contents())


async def test_a_repair(built: Mirrored, tmp_path: Path) -> None:
    actions = await actions_on(built, tmp_path)
    before = await found_in(built)
    await built.primary.memory.delete(actions.identity.head_key)
    lost = next(key for key in built.primary.memory.contents() if key.startswith(actions.identity.segment_prefix))
    await built.primary.memory.delete(lost)
    built.copies[0].is_down = True
    with pytest.raises(StorageUnavailableError, match="place-1 is down"):
        await actions.repair(built, Told())  # a segment may be left there alone
    built.copies[0].is_down, built.quorum = False, 4
    with pytest.raises(NotSettledError, match="3 of 4 places"):
        await actions.repair(built, Told())
    built.quorum, built.settled[:] = 3, []
    assert (await actions.repair(built, Told())).outcome == "good"
    assert built.settled == [actions.identity.head_key]
    async with reading(built) as store:
        for uid, content in before.items():
            assert not isinstance(content, bytes) or await store.get(uid, WHEN) == content


async def test_a_quorum_is_enough(built: Mirrored, tmp_path: Path) -> None:
    actions = await actions_on(built, tmp_path)
    built.quorum, built.copies[0].is_down = 2, True
    for act in (actions.pack, actions.delete, actions.replace):
        await act(built, Told())
    built.copies[0].is_down = False
    await found_in(built)


@pytest.mark.parametrize("name", DELETING)
async def test_what_one_place_does_not_delete_stays_condemned(built: Mirrored, tmp_path: Path, name: str) -> None:
    actions = await actions_on(built, tmp_path)
    identity, act = actions.identity, actions.all()[name]
    await actions.delete(built, Told())
    copy = built.copies[1]
    copy.undeletable = {key for key in copy.memory.contents() if key.startswith(identity.segment_prefix)}
    with pytest.raises(StorageUnavailableError, match="place-2 is down"):
        await act(built, Told())
    whole, left = built.primary.memory.contents(), copy.memory.contents()
    stuck = {key for key in left if key in copy.undeletable} - set(whole)
    copy.undeletable = set()
    tables = (await load_head(built, identity)).head.tables
    condemned = {identity.segment_key(item.name) for item in tables.condemned}
    assert stuck
    assert name == "expire" or stuck <= condemned  # which removes what no head lists as well
    await act(built, Told())
    assert not stuck & set(copy.memory.contents())
    await found_in(built)


async def test_nothing_is_deleted_before_the_copies_know(built: Mirrored, tmp_path: Path) -> None:
    actions = await actions_on(built, tmp_path)
    before = set(built.primary.memory.contents())
    built.copies[0].is_down = True
    for name in DELETING:
        with pytest.raises(StorageUnavailableError):
            await actions.all()[name](built, Told())
        assert before <= set(built.primary.memory.contents())


@pytest.mark.parametrize("name", [*NAMES, "repair"])
async def test_no_changes_without_the_primary(built: Mirrored, tmp_path: Path, name: str) -> None:
    actions = await actions_on(built, tmp_path)
    before = [place.memory.contents() for place in built.places]
    built.primary.is_down = True
    with pytest.raises(StorageUnavailableError):
        await actions.all()[name](built, Told())
    assert [place.memory.contents() for place in built.places] == before


@pytest.mark.parametrize("compression", [None, Compression("lz4")], ids=["as_it_is", "anew"])
async def test_compaction_takes_from_another_place_what_is_damaged(compression: Compression | None) -> None:
    storage = Mirrored()
    files = {"small": text(3_000), "large": noise(LARGE_BYTES + CHUNK_BYTES), "packed": text(5_000, seed=2)}
    maker = await make_store(storage)
    uids = dict(zip(maker.uids_of_one_shard(3, stem="small"), files.values(), strict=True))
    identity = maker.identity(next(iter(uids)))
    for uid, content in uids.items():
        await maker.add({uid: content}, compression=Compression(dictionary=DICTIONARY))
    for place in storage.places[:2]:
        for key in [key for key in place.memory.contents() if key.startswith(identity.segment_prefix)]:
            await place.spoil(key)
    rules = Rules(garbage_share=0.0)
    done = await compact_shard(storage, identity, rules, Rewriting(compression), now=await now(storage), grace=-MINUTE)
    assert done.files == len(files)
    async with reading(storage) as store:
        assert (await verify(store)).garbage == []
        for uid, content in uids.items():
            assert await store.get(uid, WHEN) == content
