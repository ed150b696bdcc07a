"""Copies that missed something, and copies that are new, on places in memory; what is compared in the end is every object."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from des.errors import StorageUnavailableError
from des.lifecycle.syncing import SyncReport, sync_zones
from des.storage.descriptor import DESCRIPTOR_KEY, Descriptor
from des.storage.place import Place
from des.storage.protocol import IfAbsent, Overwrite
from des.storage.wrapper import Call, StorageWrapper, Tally
from des.storage.zone import Zone
from des.storage.zones import ZonedStorage
from des.store.whole_objects import WholeObjects
from tests.making import DAY, Maker
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOUR = timedelta(hours=1)
FILES = {f"file-{number}": b"content %d " % number * 9 for number in range(12)}


class Killed(BaseException):
    """The process ends here."""


class Bucket(StorageWrapper):
    """A place in memory that can be away, or end the process at its n-th write."""

    def __init__(self, memory: MemoryStorage) -> None:
        super().__init__(memory)
        self.memory = memory
        self.is_down = False
        self.writes_left: int | None = None
        self.writes = 0

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        if self.is_down:
            raise StorageUnavailableError(f"{self.address} is away.")
        if call.verb in {"put", "open_writer", "delete"}:
            self.writes += 1
            if self.writes_left is not None:
                self.writes_left -= 1
                if self.writes_left < 0:
                    raise Killed
        yield Tally()

    @property
    def contents(self) -> dict[str, bytes]:
        return {key: data for key, data in self.memory.contents().items() if key != DESCRIPTOR_KEY}


@dataclass(slots=True)
class Ground:
    """A store with two zones of a primary and two copies each, at n_bits 2."""

    buckets: dict[str, Bucket] = field(default_factory=dict)

    def open(self) -> ZonedStorage:
        """Open it as a new process does: nothing is remembered."""
        return ZonedStorage(
            [
                Zone(name, start, start + 1, [self._place(f"{name}{n}", name) for n in range(3)], quorum=1)
                for name, start in (("a", 0), ("b", 2))
            ],
            2,
            WholeObjects(),
        )

    def _place(self, name: str, zone: str) -> Place:
        bucket = self.buckets.setdefault(name, Bucket(MemoryStorage(address=name)))
        return Place(bucket, zone, is_primary=name.endswith("0"))

    def put_away(self, *names: str) -> None:
        for name, bucket in self.buckets.items():
            bucket.is_down = name in names

    async def sync(self) -> SyncReport:
        return await sync_zones(self.open(), HOUR)

    def check_same(self) -> None:
        """Check that the places of each zone are identical, object by object."""
        for zone in "ab":
            contents = [self.buckets[f"{zone}{n}"].contents for n in range(3)]
            assert contents[0]
            assert contents[1:] == [contents[0], contents[0]]

    async def check_nothing_to_do(self) -> None:
        self.check_same()
        before = {name: bucket.writes for name, bucket in self.buckets.items()}
        report = await self.sync()
        assert (report.brought_up, report.segments, report.deleted, report.kept) == (0, 0, [], [])
        assert (report.failed, report.unreached, report.copies) == ([], [], 4)
        assert {name: bucket.writes for name, bucket in self.buckets.items()} == before


@pytest.fixture
def ground() -> Ground:
    return Ground()


async def made(ground: Ground) -> Maker:
    """Make a store whose copies were away all the time."""
    storage = ground.open()
    ground.put_away("a1", "a2", "b1", "b2")
    await storage.put(DESCRIPTOR_KEY, Descriptor.new(2).encode(), IfAbsent())
    maker = Maker(storage, await storage.descriptors.read())
    await maker.add(FILES)
    await maker.add({"later": b"later"}, "20240201")
    ground.put_away()
    return maker


async def test_what_was_missed_and_what_is_new_comes_up(ground: Ground) -> None:
    await made(ground)
    report = await ground.sync()
    assert report.shards == 2 * 5, "four shards of one day, one of another, at two copies each"
    assert (report.brought_up, report.failed, report.unreached, report.deleted) == (10, [], [], [])
    await ground.check_nothing_to_do()
    ground.buckets["b2"] = Bucket(MemoryStorage(address="b2"))
    new = await ground.sync()
    assert new.brought_up
    assert new.segment_bytes == sum(
        len(data) for key, data in ground.buckets["b2"].contents.items() if key.count("/") > 1
    )
    assert DESCRIPTOR_KEY in ground.buckets["b2"].memory.contents()
    await ground.check_nothing_to_do()


async def test_what_was_collected_at_the_primary_goes_from_the_copy(ground: Ground) -> None:
    await made(ground)
    await ground.sync()
    ground.put_away("a1", "b1")
    storage = ground.open()
    maker = Maker(storage, await storage.descriptors.read(), {DAY: {}})
    await maker.add(FILES | {"more": b"more"})
    await maker.delete(["file-0"])
    await maker.compact(collect=False)
    for zone in "ab":  # the primaries and the copies that are there
        for key in ground.buckets[f"{zone}1"].contents:
            if key.startswith(f"{DAY}/") and key.count("/") > 1:
                for bucket in (ground.buckets[f"{zone}0"], ground.buckets[f"{zone}2"]):
                    await bucket.delete(key)
    ground.put_away()
    former = sum(
        key.startswith(f"{DAY}/") and key.count("/") > 1 for zone in "ab" for key in ground.buckets[f"{zone}1"].contents
    )
    report = await ground.sync()
    assert len(report.deleted) == former
    assert all(key.startswith(("a1/", "b1/")) for key in report.deleted)
    assert (report.kept, report.failed) == ([], [])


@pytest.mark.parametrize(("age", "is_deleted"), [(timedelta(minutes=59), False), (timedelta(minutes=61), True)])
async def test_what_no_head_knows_goes_when_it_is_old(ground: Ground, age: timedelta, is_deleted: bool) -> None:
    maker = await made(ground)
    await ground.sync()
    key = maker.identity("file-0").segment_key(b"\xaa" * 16)
    copy = ground.buckets["a1" if maker.identity("file-0").shard_index < 2 else "b1"]
    await copy.put(key, b"on its way", IfAbsent())
    copy.memory.ahead += age
    report = await ground.sync()
    named = [f"{copy.address}/{key}"]
    assert (report.deleted, report.kept) == ((named, []) if is_deleted else ([], named))
    assert (key in copy.contents) is not is_deleted


async def test_a_segment_that_is_gone_at_one_place_comes_back(ground: Ground) -> None:
    await made(ground)
    await ground.sync()
    for name, place in (("a1", "copy"), ("b0", "primary")):
        bucket = ground.buckets[name]
        gone = next(key for key in bucket.contents if key.count("/") > 1)
        await bucket.delete(gone)
        assert gone not in bucket.contents, place
    short = next(key for key in ground.buckets["a2"].contents if key.count("/") > 1)
    await ground.buckets["a2"].put(short, b"short", Overwrite())
    report = await ground.sync()
    assert report.segments >= 3, "both copies may bring the primary's back"
    assert (report.brought_up, report.failed) == (0, [])
    await ground.check_nothing_to_do()


async def test_one_place_that_is_away_does_not_stop_the_others(ground: Ground) -> None:
    await made(ground)
    ground.put_away("a2")
    report = await ground.sync()
    assert [(one.zone, one.place) for one in report.unreached] == [("a", "a2")]
    assert (report.copies, report.failed) == (3, [])
    assert "a2 is away" in report.unreached[0].error
    ground.put_away()
    await ground.sync()
    await ground.check_nothing_to_do()


async def test_damage_is_told_and_not_copied(ground: Ground) -> None:
    await made(ground)
    primary, copy = ground.buckets["a0"], ground.buckets["a1"]
    damaged = next(key for key in primary.contents if key.count("/") > 1)
    data = bytearray(primary.contents[damaged])
    data[200] ^= 1
    await primary.put(damaged, bytes(data), Overwrite())
    report = await ground.sync()
    shard = damaged.rpartition("/")[0]
    assert [(one.shard, one.status) for one in report.failed] == [(f"{shard} at a{n}", "corrupt") for n in (1, 2)]
    assert damaged not in copy.contents
    assert f"{shard}.des" not in copy.contents, "a head names nothing that the copy lacks"
    assert DESCRIPTOR_KEY not in copy.memory.contents(), "its word on what is not there must not count"
    assert ground.buckets["b1"].contents == ground.buckets["b0"].contents


async def test_a_head_that_only_copies_have_was_lost_and_nothing_is_touched(ground: Ground) -> None:
    await made(ground)
    await ground.sync()
    primary = ground.buckets["a0"]
    head = next(key for key in primary.contents if key.count("/") == 1)
    shard = head.removesuffix(".des")
    for key in [key for key in primary.contents if key.startswith(shard)]:
        await primary.delete(key)
    before = {name: bucket.contents for name, bucket in ground.buckets.items()}
    report = await ground.sync()
    assert [one.shard for one in report.failed] == [f"{shard} at a1", f"{shard} at a2"]
    assert f"put {head} back there" in report.failed[0].error
    assert {name: bucket.contents for name, bucket in ground.buckets.items()} == before


async def test_segments_without_any_head_stay(ground: Ground) -> None:
    await made(ground)
    await ground.sync()
    copy = ground.buckets["a1"]
    key = f"20230101/0/{'ab' * 16}.des"
    await copy.put(key, b"perhaps the only one", IfAbsent())
    copy.memory.ahead += 1000 * HOUR
    report = await ground.sync()
    assert (report.kept, report.deleted, report.failed) == ([f"a1/{key}"], [], [])
    assert key in copy.contents


async def test_a_run_that_is_killed_anywhere_is_finished_by_the_next(ground: Ground) -> None:
    await made(ground)
    for name in ("a1", "b2"):
        ground.buckets[name] = Bucket(MemoryStorage(address=name))
    kills = 0
    while await _is_killed(ground, after_writes=kills % 3):
        kills += 1
    assert kills > 3
    for one in ground.buckets.values():
        one.writes_left = None
    await ground.check_nothing_to_do()


async def _is_killed(ground: Ground, after_writes: int) -> bool:
    """Sync in a process that ends before a place gets more than so many writes; tell whether it did."""
    for bucket in ground.buckets.values():
        bucket.writes_left = after_writes
    try:
        await ground.sync()
    except Killed:
        return True
    except BaseExceptionGroup as group:
        if group.subgroup(Killed) is None:
            raise
        return True
    return False
