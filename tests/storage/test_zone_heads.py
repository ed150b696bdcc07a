"""Which of a zone's heads is believed. Each test says how the places stand, and what may and may not be read then."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from des.errors import ObjectNotFoundError, StorageUnavailableError
from des.pack.commit import new_name
from des.shard.reading import parse_tail
from des.shard.tables import HeadTables, History
from des.shard.writing import encode_head
from des.storage.protocol import Overwrite
from tests.making import File, Maker, make_store
from tests.storage.zoned import N_BITS, Ground, noise

if TYPE_CHECKING:
    from des.storage.protocol import Suffix
    from des.storage.zones import ZonedStorage

MISSING = "20240131/3.des"
LENGTH = 64 << 10


class Shard:
    """A store in one zone with one shard of some generations."""

    def __init__(self, ground: Ground, maker: Maker, uids: list[str]) -> None:
        self.ground = ground
        self.primary, *self.copies = ground.ill[0]
        self.maker = maker
        self.uids = uids
        self.key = maker.identity(uids[0]).head_key

    @classmethod
    async def make(cls, copies: int = 2) -> Shard:
        ground = Ground.of(copies=copies)
        storage = ground.open()
        maker = await make_store(storage, n_bits=N_BITS)
        shard = cls(ground, maker, maker.uids_of_one_shard(20))
        await shard.add(shard.uids[0])
        return shard

    async def add(self, *uids: str, without: tuple[int, ...] = ()) -> None:
        """Commit files; the copies with these numbers miss it."""
        for number in without:
            self.copies[number].is_down = True
        self.maker.storage = self.ground.open(quorum=1)
        files = {uid: File(noise(50, seed)) for seed, uid in enumerate(uids)}
        await self.maker.add(files)
        await self.maker.storage.settle(self.key)
        for number in without:
            self.copies[number].heal()

    def history(self, suffix: Suffix | None) -> History:
        assert suffix is not None
        return History.of(parse_tail(suffix.data, suffix.total_size).tables)

    def history_at(self, number: int) -> History:
        data = self.ground.contents()[number][self.key]
        return History.of(parse_tail(data, len(data)).tables)

    async def open(self, **options: object) -> ZonedStorage:
        """Open a process, which reads the descriptor first, as all do."""
        storage = self.ground.open(**options)  # type: ignore[arg-type]
        await storage.read_suffix("des.json", 4096)
        return storage

    async def put_other_lineage(self, number: int, generation: int) -> None:
        data = self.ground.contents()[number][self.key]
        tables = HeadTables.decode(parse_tail(data, len(data)).tables)
        identity = self.maker.identity(self.uids[0])
        other = replace(tables, lineage=new_name(), generation=generation).committed(new_name())
        entries = data[42 : len(data) - parse_tail(data, len(data)).size]
        place = self.ground.ill[0][number]
        await place.memory.put(self.key, encode_head(identity, other, entries), Overwrite())


async def test_the_primary_alone_is_asked_while_it_is_well() -> None:
    shard = await Shard.make()
    storage = await shard.open()
    for place in shard.copies:
        place.calls.clear()
    suffix = await storage.read_suffix(shard.key, LENGTH)
    assert suffix is not None
    assert suffix.is_proof
    assert await storage.read_suffix(shard.key, LENGTH, unless=suffix.version) is None
    with pytest.raises(ObjectNotFoundError):
        await storage.read_suffix(MISSING, LENGTH)
    assert [place.calls for place in shard.copies] == [[], []]


@pytest.mark.parametrize("fault", ["is_down", "is_hung"])
async def test_all_copies_together_stand_in_for_the_primary(fault: str) -> None:
    shard = await Shard.make()
    storage = await shard.open()
    version = (await storage.head(shard.key)).version
    setattr(shard.primary, fault, True)
    fresh = await shard.open()
    for reader in (storage, fresh):
        suffix = await reader.read_suffix(shard.key, LENGTH)
        assert suffix is not None
        assert (suffix.version, suffix.is_proof) == (version, True)
        assert await reader.read_suffix(shard.key, LENGTH, unless=version) is None
        with pytest.raises(ObjectNotFoundError):
            await reader.read_suffix(MISSING, LENGTH)
    assert shard.primary.met
    assert shard.primary.waiting == 0, "nobody waits any more"


async def test_fewer_than_all_copies_prove_nothing() -> None:
    shard = await Shard.make()
    storage = await shard.open()
    version = (await storage.head(shard.key)).version
    shard.primary.is_down = shard.copies[0].is_down = True
    suffix = await storage.read_suffix(shard.key, LENGTH, unless=version)
    assert suffix is not None
    assert (suffix.version, suffix.is_proof) == (version, False)
    with pytest.raises(StorageUnavailableError):
        await storage.read_suffix(MISSING, LENGTH)


async def test_copies_prove_nothing_where_the_primary_alone_makes_a_quorum() -> None:
    shard = await Shard.make()
    storage = await shard.open(quorum=1)
    shard.primary.is_down = True
    suffix = await storage.read_suffix(shard.key, LENGTH)
    assert suffix is not None
    assert not suffix.is_proof
    with pytest.raises(StorageUnavailableError):
        await storage.read_suffix(MISSING, LENGTH)
    with pytest.raises(StorageUnavailableError):
        await storage.list_level("20240131/")


async def test_a_copy_that_was_never_brought_up_proves_nothing() -> None:
    shard = await Shard.make(copies=1)
    await shard.copies[0].memory.delete("des.json")
    await shard.copies[0].memory.delete(shard.key)
    storage = await shard.open()
    shard.primary.is_down = True
    for key in (shard.key, MISSING):
        with pytest.raises(StorageUnavailableError):
            await storage.read_suffix(key, LENGTH)
    with pytest.raises(StorageUnavailableError):
        await storage.list_level("20240131/")


async def test_the_newest_of_the_copies_counts() -> None:
    shard = await Shard.make()
    await shard.add(shard.uids[1], without=(0,))
    assert [shard.history_at(n).generation for n in range(3)] == [3, 2, 3]
    shard.primary.is_down = True
    suffix = await (await shard.open()).read_suffix(shard.key, LENGTH)
    assert suffix is not None
    assert (shard.history(suffix).generation, suffix.is_proof) == (3, True)


async def test_nothing_older_than_what_was_seen() -> None:
    shard = await Shard.make()
    saw_old, saw_new = await shard.open(), await shard.open()
    await saw_old.read_suffix(shard.key, LENGTH)
    await shard.add(shard.uids[1], without=(0, 1))
    await saw_new.read_suffix(shard.key, LENGTH)
    shard.primary.is_down = True
    with pytest.raises(StorageUnavailableError, match="older"):
        await saw_new.read_suffix(shard.key, LENGTH)
    assert shard.history(await saw_old.read_suffix(shard.key, LENGTH)).generation == 2
    shard.primary.heal()
    await anyio.lowlevel.checkpoint()
    assert shard.history(await saw_new.read_suffix(shard.key, LENGTH)).generation == 3


@pytest.mark.parametrize("is_gone", [False, True], ids=["older", "absent"])
async def test_a_primary_that_is_behind_is_not_believed(is_gone: bool) -> None:
    shard = await Shard.make()
    before = shard.ground.contents()[0][shard.key]
    await shard.add(shard.uids[1])
    storage = await shard.open()
    await storage.read_suffix(shard.key, LENGTH)
    if is_gone:
        await shard.primary.memory.delete(shard.key)
    else:
        await shard.primary.memory.put(shard.key, before, Overwrite())
    suffix = await storage.read_suffix(shard.key, LENGTH)
    assert suffix is not None
    assert (shard.history(suffix).generation, suffix.is_proof) == (3, True)
    for copy in shard.copies:
        copy.is_down = True
    with pytest.raises(StorageUnavailableError):
        await storage.read_suffix(shard.key, LENGTH)


async def test_a_head_that_is_gone_everywhere_is_gone() -> None:
    shard = await Shard.make()
    storage = await shard.open()
    await storage.read_suffix(shard.key, LENGTH)
    other = await shard.open()
    await other.delete(shard.key)
    for reader in (storage, other):
        with pytest.raises(ObjectNotFoundError):
            await reader.read_suffix(shard.key, LENGTH)


async def test_a_new_lineage_is_taken_from_the_primary_alone() -> None:
    shard = await Shard.make()
    storage = await shard.open()
    old = shard.history(await storage.read_suffix(shard.key, LENGTH))
    await shard.put_other_lineage(1, generation=9)
    shard.primary.is_down = True
    assert shard.history(await storage.read_suffix(shard.key, LENGTH)) == old
    fresh = await (await shard.open()).read_suffix(shard.key, LENGTH)
    assert fresh is not None
    assert not fresh.is_proof, "copies of several lineages prove nothing"
    shard.primary.heal()
    await shard.put_other_lineage(0, generation=3)
    storage = await shard.open()
    new = shard.history(await storage.read_suffix(shard.key, LENGTH))
    assert new == shard.history_at(0)
    shard.primary.is_down = True
    with pytest.raises(StorageUnavailableError):
        await storage.read_suffix(shard.key, LENGTH)


@pytest.mark.parametrize("at", [0, 50, -1, -20], ids=["page", "tail", "magic", "checksum"])
async def test_damage_at_the_primary(at: int) -> None:
    shard = await Shard.make()
    good = shard.ground.contents()[1][shard.key]
    shard.primary.damage(shard.key, at if at < 0 else len(good) - parse_tail(good, len(good)).size + at - 1)
    noted: list[str] = []
    storage = await shard.open()
    storage.zones[0].when_damaged = noted.append
    suffix = await storage.read_suffix(shard.key, LENGTH)
    assert suffix is not None
    if at == 0:
        assert suffix.data != good, "what lies in a page, only the reader can tell"
        assert not noted
    else:
        assert (suffix.data, suffix.is_proof, noted) == (good, True, [shard.key])
    for number in (1, 2):
        shard.ground.ill[0][number].damage(shard.key, len(good) - 100)
    suffix = await storage.read_suffix(shard.key, LENGTH)
    assert suffix is not None
    assert suffix.data == shard.ground.contents()[0][shard.key], "damage everywhere is for the reader to tell"


async def test_all_of_a_long_head_comes_from_one_place_at_one_version() -> None:
    shard = await Shard.make()
    await shard.add(*shard.maker.uids_of_one_shard(2200))
    whole = shard.ground.contents()[0][shard.key]
    assert len(whole) > 2 * LENGTH
    storage = await shard.open()
    shard.primary.is_ill_for = lambda call: call.verb == "read_suffix" and call.start == -(1 << 29)
    for fault in ("is_down", "is_hung"):
        setattr(shard.primary, fault, True)
        suffix = await storage.read_suffix(shard.key, 1 << 29)
        assert suffix is not None
        assert suffix.data == whole
        assert shard.primary.met
        shard.primary.heal()
    assert shard.primary.waiting == 0


async def test_readers_at_once_never_see_an_older_head_after_a_newer_one() -> None:
    shard = await Shard.make()
    storage = await shard.open()
    seen = 0

    async def read() -> None:
        nonlocal seen
        while seen < 12:
            before = seen
            suffix = await storage.read_suffix(shard.key, LENGTH)
            generation = shard.history(suffix).generation
            assert generation >= before
            seen = max(seen, generation)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(read)
        for number in range(10):
            await shard.add(shard.uids[number + 1])
