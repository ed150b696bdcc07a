from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from des.storage.protocol import Storage


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    storage = LocalStorage(tmp_path / "store")
    yield storage
    await storage.aclose()
