from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.storage.local import LocalStorage
from des.storage.testing import RecordingStorage
from tests.scraping import counting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["counting"]


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[RecordingStorage]:
    local = LocalStorage(tmp_path / "store")
    yield RecordingStorage(local)
    await local.aclose()
