from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.storage.place import Place
from des.storage.zone import Zone
from des.storage.zones import ZonedStorage
from tests.storage.contract import StorageContract
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from des.storage.protocol import Storage


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
