"""Mending: what is damaged at one place is put anew from where it is whole, and nothing is ever made worse."""

from __future__ import annotations

import anyio.lowlevel
import pytest

from des.errors import CorruptShardError
from des.storage.protocol import IfVersion
from des.storage.zone_mending import mend
from des.store.whole_objects import WholeObjects
from tests.storage.test_zone_copying import is_same_everywhere
from tests.storage.test_zone_heads import Shard


async def run(shard: Shard, key: str, **options: object) -> dict[str, str]:
    storage = await shard.open(**options)
    found = await mend(storage.zones[0], key, WholeObjects())
    return {place.address: status for place, status in found.items()}


def segment_of(shard: Shard) -> str:
    return next(key for key in shard.ground.contents()[0] if key != shard.key)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("at", [20, 100, -100, -1], ids=["header", "payload", "catalog", "magic"])
async def test_a_damaged_segment(number: int, at: int) -> None:
    shard = await Shard.make()
    segment = segment_of(shard)
    shard.ground.ill[0][number].damage(segment, at)
    expected = {f"a{n}": "mended" if n == number else "good" for n in range(3)}
    assert await run(shard, segment) == expected
    assert is_same_everywhere(shard)
    assert await run(shard, segment) == dict.fromkeys(expected, "good")


async def test_a_long_segment_is_written_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("des.storage.zone_mending.PUT_BYTES", 10)
    shard = await Shard.make()
    shard.copies[1].damage(segment_of(shard), 100)
    assert (await run(shard, segment_of(shard)))["a2"] == "mended"
    assert is_same_everywhere(shard)


async def test_what_is_missing_is_not_put_and_what_is_damaged_everywhere_stays() -> None:
    shard = await Shard.make()
    segment = segment_of(shard)
    await shard.copies[0].memory.delete(segment)
    assert await run(shard, segment) == {"a0": "good", "a2": "good"}
    shard.primary.damage(segment, 99)
    shard.copies[1].damage(segment, 100)
    before = shard.ground.contents()
    assert await run(shard, segment) == {"a0": "failed", "a2": "failed"}
    assert shard.ground.contents() == before


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("at", [60, -150, -20, -1], ids=["page", "tables", "checksum", "magic"])
async def test_a_damaged_head(number: int, at: int) -> None:
    shard = await Shard.make()
    shard.ground.ill[0][number].damage(shard.key, at)
    assert await run(shard, shard.key) == {f"a{n}": "mended" if n == number else "good" for n in range(3)}
    assert is_same_everywhere(shard)


async def test_a_primary_is_mended_only_by_all_copies_that_prove() -> None:
    shard = await Shard.make()
    shard.primary.damage(shard.key, -20)
    assert (await run(shard, shard.key, quorum=1))["a0"] == "failed"
    shard.copies[0].is_down = True
    assert (await run(shard, shard.key))["a0"] == "failed"
    shard.copies[0].heal()
    await shard.put_other_lineage(1, generation=9)
    assert (await run(shard, shard.key))["a0"] == "failed"


async def test_a_primary_is_not_mended_with_what_is_older_than_was_seen() -> None:
    shard = await Shard.make()
    storage = await shard.open()
    await shard.add(shard.uids[1], without=(0, 1))
    await storage.read_suffix(shard.key, 100)
    shard.primary.damage(shard.key, -20)
    damaged = shard.ground.contents()[0]
    found = await mend(storage.zones[0], shard.key, WholeObjects())
    assert found[storage.zones[0].primary] == "failed"
    assert shard.ground.contents()[0] == damaged


async def test_a_copy_that_is_behind_is_no_source() -> None:
    shard = await Shard.make()
    await shard.add(shard.uids[1], without=(0,))
    shard.copies[1].damage(shard.key, 60)
    assert await run(shard, shard.key) == {"a0": "good", "a1": "good", "a2": "mended"}
    assert shard.ground.contents()[2][shard.key] == shard.ground.contents()[0][shard.key]


async def test_readers_note_damage_and_it_is_mended_behind_them() -> None:
    shard = await Shard.make()
    shard.copies[0].damage(segment_of(shard), 100)
    shard.primary.damage(shard.key, -20)
    storage = await shard.open(read_repair=True)
    await storage.read_suffix(shard.key, 100)
    for _ in range(3):
        storage.mend(segment_of(shard))
    await storage.mended()
    assert is_same_everywhere(shard)
    assert sorted(shard.ground.counted.mends) == sorted(
        [("a0", "good"), ("a1", "mended"), ("a2", "good"), ("a0", "mended"), ("a1", "good"), ("a2", "good")]
    )
    await storage.aclose()


async def test_nothing_is_mended_where_it_was_not_asked_for() -> None:
    shard = await Shard.make()
    shard.copies[0].damage(segment_of(shard), 100)
    storage = await shard.open()
    storage.mend(segment_of(shard))
    await storage.mended()
    assert not is_same_everywhere(shard)


async def test_closing_ends_what_is_being_mended() -> None:
    shard = await Shard.make()
    storage = await shard.open(read_repair=True)
    shard.copies[0].is_hung = True
    storage.mend(segment_of(shard))
    while not shard.copies[0].waiting:
        await anyio.lowlevel.checkpoint()
    await storage.aclose()
    assert shard.copies[0].waiting == 0


async def test_nothing_is_written_on_a_head_that_only_copies_have_whole() -> None:
    shard = await Shard.make()
    shard.primary.damage(shard.key, -20)
    storage = await shard.open()
    suffix = await storage.read_suffix(shard.key, 1 << 20)
    assert suffix is not None
    before = shard.ground.contents()
    shard.primary.damage(shard.key, -25)
    with pytest.raises(CorruptShardError, match="mended"):
        await storage.put(shard.key, b"another head", IfVersion(suffix.version))
    assert shard.ground.contents()[1:] == before[1:]
