"""The suites of the layers above storage, on S3: what they ask for stands here, on a place that each test module names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des import metrics
from des.storage.testing import RecordingStorage
from tests.store.conftest import clock

if TYPE_CHECKING:
    from des.storage.protocol import Storage

__all__ = ["clock"]


@pytest.fixture(scope="session", autouse=True)
def counting() -> None:
    """Import what counts before there is an event loop to block."""
    metrics.activate()


@pytest.fixture
def storage(local: Storage) -> RecordingStorage:
    return RecordingStorage(local)
