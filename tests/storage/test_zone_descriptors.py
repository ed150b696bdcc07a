"""One descriptor of many places: what is made where, what is read, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest

from des.errors import ObjectNotFoundError, PreconditionFailedError, SettingsError, StorageUnavailableError
from des.storage.descriptor import (
    DESCRIPTOR_KEY,
    Descriptor,
    IndexRange,
    ensure_descriptor,
    read_descriptor,
    require_descriptor,
)
from des.storage.protocol import IfAbsent, IfVersion, Overwrite
from tests.storage.zoned import N_BITS, Ground

HEAD = "20240131/3.des"
HEAD_OF_A = "20240131/0.des"


async def made(zones: int = 2, copies: int = 1) -> Ground:
    ground = Ground.of(zones, copies)
    await ensure_descriptor(ground.open(), N_BITS)
    return ground


def held(ground: Ground) -> list[Descriptor | None]:
    contents = [place.memory.contents().get(DESCRIPTOR_KEY) for zone in ground.ill for place in zone]
    return [None if one is None else Descriptor.decode(one) for one in contents]


async def test_a_new_store_has_one_id_and_each_place_its_zones_range() -> None:
    ground = await made()
    found = [one for one in held(ground) if one is not None]
    assert [one.index_range for one in found] == [
        IndexRange(2, 0, 1),
        IndexRange(2, 0, 1),
        IndexRange(2, 2, 3),
        IndexRange(2, 2, 3),
    ]
    assert len({one.store_id for one in found}) == 1
    whole = await require_descriptor(ground.open())
    assert (whole.store_id, whole.index_range, whole.epochs) == (
        found[0].store_id,
        IndexRange(2, 0, 3),
        found[0].epochs,
    )


async def test_the_version_is_the_same_for_everyone() -> None:
    ground = await made()
    first = await ground.open().read_suffix(DESCRIPTOR_KEY, 1000)
    assert first is not None
    ground.ill[0][0].is_down = ground.ill[1][1].is_hung = True
    assert await ground.open().read_suffix(DESCRIPTOR_KEY, 1000) == first
    assert await ground.open().read_suffix(DESCRIPTOR_KEY, 1000, unless=first.version) is None
    assert ground.ill[1][1].waiting == 0


async def test_two_first_writers_make_one_store() -> None:
    ground = Ground.of(2, 1)
    first, second = Descriptor.new(N_BITS), Descriptor.new(N_BITS)
    await ground.open().put(DESCRIPTOR_KEY, first.encode(), IfAbsent())
    with pytest.raises(PreconditionFailedError):
        await ground.open().put(DESCRIPTOR_KEY, second.encode(), IfAbsent())
    assert {one.store_id for one in held(ground) if one is not None} == {first.store_id}


@pytest.mark.parametrize("failing", range(1, 30))
async def test_a_creation_that_was_broken_off_is_finished_by_the_next(failing: int) -> None:
    ground = Ground.of(2, 1)
    calls = 0

    def is_due(_: object) -> bool:
        nonlocal calls
        calls += 1
        return calls == failing

    for zone in ground.ill:
        for place in zone:
            place.is_down, place.is_ill_for = True, is_due
    with suppress(StorageUnavailableError):
        await ensure_descriptor(ground.open(), N_BITS)
    for zone in ground.ill:
        for place in zone:
            place.heal()
    storage = ground.open()
    descriptor = await ensure_descriptor(storage, N_BITS)
    await storage.check_conditional_writes(DESCRIPTOR_KEY)
    assert [one and one.store_id for one in held(ground)] == [descriptor.store_id] * 4


async def test_no_store_is_no_store_only_on_proof() -> None:
    ground = Ground.of(2, 1)
    assert await read_descriptor(ground.open()) is None
    for zone in ground.ill:
        zone[0].is_down = True
    with pytest.raises(StorageUnavailableError):
        await read_descriptor(ground.open())


async def test_a_zone_that_cannot_be_asked_does_not_stop_the_others() -> None:
    ground = await made()
    for place in ground.ill[1]:
        place.is_down = True
    assert (await require_descriptor(ground.open())).index_range == IndexRange(2, 0, 3)


async def test_changing_it_is_refused() -> None:
    ground = await made()
    storage = ground.open()
    suffix = await storage.read_suffix(DESCRIPTOR_KEY, 1000)
    assert suffix is not None
    for mode in (IfVersion(suffix.version), Overwrite()):
        with pytest.raises(SettingsError, match="not changed"):
            await storage.put(DESCRIPTOR_KEY, Descriptor.new(N_BITS).encode(), mode)
    with pytest.raises(SettingsError, match="n_bits"):
        await Ground.of().open().put(DESCRIPTOR_KEY, Descriptor.new(5).encode(), IfAbsent())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Descriptor.new(N_BITS), "another store"),
        ("n_bits", "n_bits 3"),
        ("range", "indices 1 to 2"),
    ],
    ids=["id", "n_bits", "range"],
)
@pytest.mark.parametrize("place", [(0, 1), (1, 0)], ids=["copy", "primary"])
async def test_a_place_that_contradicts_is_named(wrong: Descriptor | str, said: str, place: tuple[int, int]) -> None:
    ground = await made()
    right = held(ground)[0]
    assert right is not None
    if wrong == "n_bits":
        wrong = Descriptor(right.store_id, Descriptor.new(3).epochs, IndexRange(3, 0, 3))
    elif wrong == "range":
        wrong = Descriptor(right.store_id, right.epochs, IndexRange(2, 1, 2))
    assert isinstance(wrong, Descriptor)
    ill = ground.ill[place[0]][place[1]]
    await ill.memory.put(DESCRIPTOR_KEY, wrong.encode(), Overwrite())
    with pytest.raises(SettingsError, match=f"{ill.address} .*{said}"):
        await read_descriptor(ground.open())


async def test_shards_without_a_descriptor_are_nobodys() -> None:
    ground = Ground.of(2, 1)
    await ground.ill[1][0].memory.put(HEAD, b"a head", IfAbsent())
    with pytest.raises(SettingsError, match="--adopt"):
        await ensure_descriptor(ground.open(), N_BITS)
    ground = Ground.of(2, 1)
    await ground.ill[1][1].memory.put(HEAD, b"a head", IfAbsent())
    with pytest.raises(SettingsError, match=r"b1 .*--adopt"):
        await ensure_descriptor(ground.open(), N_BITS)


async def test_a_primary_that_lost_its_content_is_no_empty_store() -> None:
    ground = await made()
    await ground.ill[1][0].memory.delete(DESCRIPTOR_KEY)
    with pytest.raises(SettingsError, match=r"b0 .*lost its content"):
        await require_descriptor(ground.open())


async def test_a_new_copy_of_a_store_with_shards_gets_its_descriptor_last() -> None:
    ground = await made()
    await ground.ill[0][0].memory.put(HEAD_OF_A, b"a head", IfAbsent())
    await ground.ill[0][1].memory.delete(DESCRIPTOR_KEY)
    storage = ground.open()
    descriptor = await ensure_descriptor(storage, N_BITS)
    with pytest.raises(StorageUnavailableError, match="des zones sync"):
        await storage.check_conditional_writes(DESCRIPTOR_KEY)
    await ground.open(quorum=1).check_conditional_writes(DESCRIPTOR_KEY)
    zone = storage.zones[0]
    assert not zone.copies[0].holds_store
    await ground.ill[0][1].memory.put(HEAD_OF_A, b"a head", IfAbsent())
    await storage.descriptors.make(zone, zone.copies[0], descriptor.store_id, is_brought_up=True)
    await storage.check_conditional_writes(DESCRIPTOR_KEY)
    await require_descriptor(storage)
    assert zone.copies[0].holds_store


@pytest.mark.parametrize(("quorum", "is_enough"), [(2, False), (1, True)])
async def test_writers_need_as_many_places_as_the_quorum(quorum: int, is_enough: bool) -> None:
    ground = await made()
    ground.ill[0][1].is_down = True
    storage = ground.open(quorum=quorum)
    if is_enough:
        await storage.check_conditional_writes(DESCRIPTOR_KEY)
    else:
        with pytest.raises(StorageUnavailableError, match=r"1 of the 2 places .*nothing was written"):
            await storage.check_conditional_writes(DESCRIPTOR_KEY)
    ground.ill[1][0].is_down = True
    with pytest.raises(StorageUnavailableError):
        await ground.open(quorum=quorum).check_conditional_writes(DESCRIPTOR_KEY)


async def test_a_head_of_a_missing_store_is_not_found_for_no_reason() -> None:
    storage = Ground.of().open()
    with pytest.raises(ObjectNotFoundError):
        await storage.read_suffix(HEAD, 100)
