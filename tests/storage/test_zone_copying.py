"""Bringing copies up: what is written where, what is refused, and that nothing older ever takes the place of something newer."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial

import anyio
import pytest

from des.errors import CorruptShardError, LostHeadError, StorageUnavailableError
from des.shard.reading import parse_tail
from des.shard.tables import History
from des.storage.place import Place
from des.storage.protocol import Overwrite
from des.storage.testing import ScheduledStorage, Scheduler
from des.storage.zone import Zone
from des.storage.zone_copying import Primary, bring_up
from des.storage.zones import ZonedStorage
from des.store.whole_objects import WholeObjects
from tests.making import WHEN, File, Maker, make_store, reading
from tests.storage.test_zone_heads import Shard
from tests.storage.zoned import N_BITS, Ground, Ill


async def lagging(*, without: tuple[int, ...] = (0,)) -> Shard:
    """A shard of two commits, the second of which some copies missed."""
    shard = await Shard.make()
    await shard.add(*shard.uids[1:4], without=without)
    return shard


def is_same_everywhere(shard: Shard) -> bool:
    first, *others = shard.ground.contents()
    return all(one == first for one in others)


async def test_a_copy_that_missed_a_commit_is_brought_up() -> None:
    shard = await lagging()
    assert not is_same_everywhere(shard)
    await (await shard.open()).settle(shard.key)
    assert is_same_everywhere(shard)


async def test_what_is_settled_already_takes_one_look_at_each_place() -> None:
    shard = await lagging()
    storage = await shard.open()
    await storage.settle(shard.key)
    for place in shard.ground.ill[0]:
        place.calls.clear()
    await storage.settle(shard.key)
    assert [[call.verb for call in place.calls] for place in shard.ground.ill[0]] == [["read_suffix"]] * 3


async def test_a_head_that_is_gone_needs_no_settling() -> None:
    shard = await Shard.make()
    storage = await shard.open()
    await storage.delete(shard.key)
    await storage.settle(shard.key)


@pytest.mark.parametrize(
    ("quorum", "down", "is_enough"),
    [(3, (), True), (3, (1,), False), (2, (1,), True), (2, (0, 1), False), (1, (0, 1), True)],
)
async def test_the_quorum_counts_the_places_that_hold_the_commit(
    quorum: int, down: tuple[int, ...], is_enough: bool
) -> None:
    shard = await lagging(without=(0, 1))
    storage = await shard.open(quorum=quorum)
    for number in down:
        shard.copies[number].is_down = True
    if is_enough:
        await storage.settle(shard.key)
    else:
        with pytest.raises(StorageUnavailableError, match=r"committed at the primary.*des zones sync"):
            await storage.settle(shard.key)
    for number in down:
        shard.copies[number].heal()
    await storage.settle(shard.key)
    assert is_same_everywhere(shard)


async def test_without_the_primary_nothing_is_settled() -> None:
    shard = await lagging()
    storage = await shard.open(quorum=1)
    shard.primary.is_down = True
    with pytest.raises(StorageUnavailableError):
        await storage.settle(shard.key)


@pytest.mark.parametrize("is_divergent", [False, True], ids=["ahead", "divergent"])
async def test_a_copy_ahead_of_the_primary_is_never_set_back(is_divergent: bool) -> None:
    shard = await Shard.make()
    before = shard.ground.contents()[0][shard.key]
    await shard.add(shard.uids[1])
    await shard.primary.memory.put(shard.key, before, Overwrite())
    if is_divergent:
        await shard.add(shard.uids[2], without=(0, 1))
        assert shard.history_at(0) == shard.history_at(1)
    held = shard.ground.contents()[1:]
    with pytest.raises(LostHeadError, match="des repair"):
        await (await shard.open(quorum=1)).settle(shard.key)
    assert shard.ground.contents()[1:] == held


async def test_what_this_process_saw_is_not_settled_away() -> None:
    shard = await Shard.make()
    before = shard.ground.contents()[0][shard.key]
    storage = await shard.open()
    await shard.add(shard.uids[1], without=(0, 1))
    await storage.read_suffix(shard.key, 100)
    await shard.primary.memory.put(shard.key, before, Overwrite())
    with pytest.raises(LostHeadError):
        await storage.settle(shard.key)


async def test_a_new_lineage_of_the_primary_goes_to_the_copies() -> None:
    shard = await lagging()
    await shard.put_other_lineage(0, generation=7)
    await (await shard.open()).settle(shard.key)
    assert is_same_everywhere(shard)
    assert shard.history_at(1).generation == 8


async def test_a_shard_that_the_primary_lost_and_began_anew_leaves_the_copies_alone() -> None:
    shard = await Shard.make()
    await shard.add(shard.uids[1])
    held = shard.ground.contents()[1:]
    await shard.put_other_lineage(0, generation=0)
    with pytest.raises(LostHeadError, match="des repair"):
        await (await shard.open(quorum=1)).settle(shard.key)
    assert shard.ground.contents()[1:] == held


async def test_damage_at_a_copy_gives_way_to_the_primary() -> None:
    shard = await lagging()
    shard.copies[0].damage(shard.key, -20)
    await (await shard.open()).settle(shard.key)
    assert is_same_everywhere(shard)


async def test_shards_of_another_store_are_not_overwritten() -> None:
    shard, other = await Shard.make(), await Shard.make()
    foreign = other.ground.contents()[0][other.key]
    await shard.copies[0].memory.put(shard.key, foreign, Overwrite())
    with pytest.raises(Exception, match="another store"):
        await (await shard.open()).settle(shard.key)
    assert shard.ground.contents()[1][shard.key] == foreign


async def test_what_is_copied_is_whole_or_comes_from_elsewhere() -> None:
    shard = await lagging()
    segment = next(key for key in shard.ground.contents()[0] if key not in shard.ground.contents()[1])
    shard.primary.damage(segment, 200)
    await (await shard.open()).settle(shard.key)
    assert shard.ground.contents()[1][segment] == shard.ground.contents()[2][segment]
    await shard.copies[0].memory.delete(segment)
    await shard.copies[0].memory.delete(shard.key)
    shard.copies[1].damage(segment, 300)
    with pytest.raises(CorruptShardError):
        await (await shard.open()).settle(shard.key)
    assert segment not in shard.ground.contents()[1]
    assert shard.key not in shard.ground.contents()[1], "no head names what is not there"


async def test_a_segment_that_nobody_has_is_damage() -> None:
    shard = await lagging()
    segment = next(key for key in shard.ground.contents()[0] if key not in shard.ground.contents()[1])
    for place in shard.ground.ill[0]:
        await place.memory.delete(segment)
    with pytest.raises(CorruptShardError, match="no place"):
        await (await shard.open()).settle(shard.key)


async def test_a_damaged_primary_is_copied_nowhere() -> None:
    shard = await lagging()
    shard.primary.damage(shard.key, 60)
    before = shard.ground.contents()[1:]
    with pytest.raises(CorruptShardError):
        await (await shard.open()).settle(shard.key)
    assert shard.ground.contents()[1:] == before


async def test_a_run_that_was_broken_off_anywhere_is_finished_by_the_next() -> None:
    model = await lagging()
    at_the_start = model.copies[0].memory.copy()
    for failing in range(1, 100):
        shard = model
        shard.copies[0].memory = shard.copies[0].inner = at_the_start.copy()
        calls = 0

        def is_due(_: object, failing: int = failing) -> bool:
            nonlocal calls
            calls += 1
            return calls == failing

        shard.copies[0].is_ill_for, shard.copies[0].is_down = is_due, True
        shard.copies[0].met = 0
        with suppress(StorageUnavailableError):
            await (await shard.open()).settle(shard.key)
        head = shard.ground.contents()[1].get(shard.key)
        if head == shard.ground.contents()[0][shard.key]:
            assert is_same_everywhere(shard), "the head comes last"
        if not shard.copies[0].met:
            assert failing > 8
            return
        shard.copies[0].heal()
        await (await shard.open()).settle(shard.key)
        assert is_same_everywhere(shard)


async def test_settling_at_once_is_done_in_few_runs() -> None:
    shard = await lagging(without=(0, 1))
    storage = await shard.open()
    for place in shard.ground.ill[0]:
        place.calls.clear()
    async with anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(storage.settle, shard.key)
    assert is_same_everywhere(shard)
    assert len([call for call in shard.primary.calls if call.verb == "read_suffix" and call.start == -(64 << 10)]) <= 2


async def test_settling_sees_what_was_put_before_it_was_called() -> None:
    shard = await lagging(without=(0, 1))
    storage = await shard.open()
    shard.copies[0].is_hung = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(storage.settle, shard.key)
        while not shard.copies[0].waiting:
            await anyio.lowlevel.checkpoint()
        maker = Maker(shard.ground.open(quorum=1), shard.maker.descriptor)
        shard.copies[0].is_hung = False
        shard.primary.is_ill_for = lambda _: False
        await maker.add({shard.uids[9]: File(b"later")})
        shard.copies[0].heal()
        await storage.settle(shard.key)
        assert is_same_everywhere(shard)


async def test_bringing_up_tells_what_it_took() -> None:
    shard = await lagging()
    storage = await shard.open()
    zone = storage.zones[0]
    brought = await bring_up(Primary(zone, shard.key, WholeObjects()), zone.copies[0])
    assert (brought.segments, brought.head) == (1, True)
    assert brought.segment_bytes > 150
    brought = await bring_up(Primary(zone, shard.key, WholeObjects()), zone.copies[0])
    assert (brought.segments, brought.head) == (0, False)


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(6, 200))])
async def test_processes_that_commit_and_settle_in_any_order_agree(seed: int) -> None:
    shard = await Shard.make(copies=1)
    scheduler = Scheduler(seed, persistence=0.3)
    generations: list[int] = []

    class Watched(Ill):
        """Notes what generation each head has that a copy is given."""

        async def put(self, key: str, data: bytes, mode: object) -> str:
            version = await super().put(key, data, mode)  # type: ignore[arg-type]
            generations.append(History.of(parse_tail(data, len(data)).tables).generation)
            return version

    copy = Watched(shard.copies[0].memory)

    def process(name: str) -> ZonedStorage:
        places = [
            Place(ScheduledStorage(inner, scheduler, name), "a", is_primary=inner is shard.primary)
            for inner in (shard.primary, copy)
        ]
        return ZonedStorage([Zone("a", 0, 3, places, place_timeout=600)], N_BITS, WholeObjects())

    async def act(name: str, uids: list[str]) -> None:
        storage = process(name)
        maker = Maker(storage, shard.maker.descriptor)
        for uid in uids:
            await maker.add({uid: File(uid.encode())})
            await storage.settle(shard.key)

    names = {"x": shard.uids[1:4], "y": shard.uids[4:7]}
    await scheduler.run({name: partial(act, name, uids) for name, uids in names.items()})
    assert is_same_everywhere(shard)
    assert generations == sorted(set(generations)), "an older head took the place of a newer one"
    shard.primary.is_down = True
    async with reading(await shard.open()) as store:
        for uid in shard.uids[1:7]:
            assert await store.get(uid, WHEN) == uid.encode()


def test_the_descriptor_names_one_store() -> None:
    async def make() -> list[object]:
        ground = Ground.of(zones=2, copies=1)
        await make_store(ground.open(), n_bits=N_BITS)
        return [json.loads(place.memory.contents()["des.json"]) for zone in ground.ill for place in zone]

    found = anyio.run(make)
    assert len({one["store_id"] for one in found}) == 1  # type: ignore[index]
