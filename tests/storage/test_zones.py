from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from des.errors import SettingsError, StorageUnavailableError
from des.storage.place import Place
from des.storage.protocol import Overwrite
from des.storage.wrapper import StorageWrapper
from des.storage.zone import Zone
from des.storage.zone_keys import index_of
from des.storage.zone_listing import list_level
from des.storage.zones import ZonedStorage
from tests.storage.contract import StorageContract
from tests.storage.memory import MemoryStorage
from tests.storage.test_zone_descriptors import made

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from des.storage.protocol import ObjectInfo, Storage
    from tests.storage.zoned import Ground

SEGMENT = "0123456789abcdef0123456789abcdef.des"


class Trusting:
    """Takes everything for good."""

    def check_head(self, key: str, data: bytes) -> None:
        pass

    async def check_segment(self, storage: Storage, key: str) -> None:
        pass


class TestContract(StorageContract):
    LISTED = 60

    @pytest.fixture
    async def storage(self) -> ZonedStorage:
        zones = []
        for start in (0, 8, 200):
            end = {0: 7, 8: 199, 200: 255}[start]
            places = [Place(MemoryStorage(address=f"{start}-{n}"), f"z{start}", is_primary=not n) for n in range(3)]
            zones.append(Zone(f"z{start}", start, end, places))
        return ZonedStorage(zones, 8, Trusting())


# ---- routing and listing ------------------------------------------------------------------------------------------------------------


async def spread() -> Ground:
    """Two zones, each with a head and a segment a shard."""
    ground = await made()
    for index in range(4):
        for place in ground.ill[index // 2]:
            for key in (f"20240131/{index}.des", f"20240131/{index}/{SEGMENT}", f"20240201/{index}.des"):
                await place.memory.put(key, b"%d" % index, Overwrite())
    return ground


def test_keys_of_shards_and_others() -> None:
    assert index_of("20240131/0A.des", 8) == 10
    assert index_of(f"20240131/0A/{SEGMENT}", 8) == 10
    assert index_of("20240131/0A/", 8) == 10
    assert index_of("20240131/1FF.des", 9) == 511
    for stranger in ("des.json", "20240131/", "20240131/0A", "20240131/0a.des", "20240131/A.des", "20240131/100.des"):
        assert index_of(stranger, 8) is None
    assert index_of("20240199/0A.des", 8) is None


async def test_each_key_goes_to_the_zone_that_holds_its_index() -> None:
    storage = (await spread()).open()
    for index in range(4):
        assert await storage.read_range(f"20240131/{index}/{SEGMENT}", 0, 9) == b"%d" % index
    storage.zones = storage.zones[:1]
    with pytest.raises(SettingsError, match="shard index 2 "):
        await storage.read_range("20240131/2.des", 0, 9)


@pytest.mark.parametrize("broken", [(), ((0, 0, "is_down"),), ((0, 0, "is_hung"), (1, 0, "is_down"))])
async def test_listings_are_of_all_zones_in_order(broken: tuple[tuple[int, int, str], ...]) -> None:
    ground = await spread()
    storage = ground.open()
    await storage.read_suffix("des.json", 100)
    for zone, number, fault in broken:
        setattr(ground.ill[zone][number], fault, True)
    keys = [
        *(key for index in range(4) for key in (f"20240131/{index}.des", f"20240131/{index}/{SEGMENT}")),
        *(f"20240201/{index}.des" for index in range(4)),
        "des.json",
    ]
    assert [info.key async for info in storage.list("")] == sorted(keys)
    assert [info.key async for info in storage.list("20240131/2/")] == [f"20240131/2/{SEGMENT}"]
    level = await storage.list_level("20240131/")
    assert [info.key for info in level.objects] == [f"20240131/{index}.des" for index in range(4)]
    assert level.prefixes == tuple(f"20240131/{index}/" for index in range(4))
    assert [place.waiting for zone in ground.ill for place in zone] == [0] * 4
    for zone, number, _ in broken:
        assert ground.ill[zone][number].met


async def test_a_listing_is_whole_or_an_error() -> None:
    ground = await spread()
    storage = ground.open()
    await storage.read_suffix("des.json", 100)
    for place in ground.ill[1]:
        place.is_down = True
    with pytest.raises(StorageUnavailableError):
        await storage.list_level("20240131/")
    with pytest.raises(StorageUnavailableError):
        [info async for info in storage.list("")]
    assert [info.key async for info in storage.list("20240131/0/")]


async def test_what_lies_in_the_wrong_zone_is_not_listed() -> None:
    ground = await spread()
    await ground.ill[0][0].memory.put("20240131/3/stray.des", b"", Overwrite())
    storage = ground.open()
    assert "20240131/3/stray.des" not in [info.key async for info in storage.list("")]
    assert "20240131/3/" not in (await list_level(storage.zones[0], "x")).prefixes


async def test_a_listing_that_breaks_midway_goes_on_with_the_copies() -> None:
    ground = await spread()
    storage = ground.open()
    await storage.read_suffix("des.json", 100)

    class Breaking(StorageWrapper):
        async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
            count = 0
            async for info in self.inner.list(prefix):
                if count == 2:
                    raise StorageUnavailableError("broken on purpose.")
                yield info
                count += 1

    whole = [info.key async for info in storage.list("")]
    storage.zones[0].primary.inner = Breaking(ground.ill[0][0])
    assert [info.key async for info in storage.list("")] == whole


async def test_every_place_is_an_alternative_and_tells_versions_as_all_do() -> None:
    ground = await spread()
    storage = ground.open()
    suffix = await storage.read_suffix("20240131/2.des", 10)
    assert suffix is not None
    places = storage.alternatives("20240131/2.des")
    assert [place.address for place in places] == ["b0", "b1"]
    for place in places:
        assert await place.read_range("20240131/2.des", 0, 10, version=suffix.version) == b"2"
    assert len(storage.alternatives("des.json")) == 4


async def test_the_time_is_that_of_the_first_primary_that_answers() -> None:
    ground = await spread()
    ground.ill[1][0].memory.ahead = timedelta(days=3)
    assert abs(await ground.open().now() - datetime.now(UTC)) < timedelta(days=1)
    ground.ill[0][0].is_hung = True
    assert await ground.open().now() - datetime.now(UTC) > timedelta(days=2)
