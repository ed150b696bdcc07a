from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des import metrics
from des.storage.local import LocalStorage
from des.storage.testing import RecordingStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def counting() -> None:
    """Import what counts before there is an event loop to block; a server makes its application then, too."""
    metrics.activate()


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[RecordingStorage]:
    local = LocalStorage(tmp_path / "store")
    yield RecordingStorage(local)
    await local.aclose()
