from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from des.storage.protocol import Storage


@pytest.fixture
def storage() -> Storage:
    return MemoryStorage()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("des.pack.commit._FIRST_PAUSE", 0.0)
