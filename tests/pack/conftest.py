"""What tests of packing share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.pack.packing import Sources

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path / "sources")


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever loses a swap try again at once."""
    monkeypatch.setattr("des.pack.commit._FIRST_PAUSE", 0.0)
