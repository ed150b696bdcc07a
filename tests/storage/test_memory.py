from __future__ import annotations

import pytest

from tests.storage.contract import StorageContract
from tests.storage.memory import MemoryStorage


class TestMemoryStorage(StorageContract):
    LISTED = 60

    @pytest.fixture
    async def storage(self) -> MemoryStorage:
        return MemoryStorage()
