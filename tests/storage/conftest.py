from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def local(base: Path) -> AsyncIterator[LocalStorage]:
    storage = LocalStorage(base)
    yield storage
    await storage.aclose()
