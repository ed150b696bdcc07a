from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from des.storage.local import LocalStorage
from des.storage.testing import RecordingStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalStorage]:
    local = LocalStorage(tmp_path / "store")
    yield local
    await local.aclose()


@pytest.fixture
def storage(local: LocalStorage) -> RecordingStorage:
    return RecordingStorage(local)


class Clock:
    """The time as the store sees it: it stands still until a test moves it on."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("index", "listing", "many", "store"):
        monkeypatch.setattr(f"des.store.{module}.time", clock)
    return clock
