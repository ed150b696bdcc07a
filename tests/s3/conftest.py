"""The suites of the layers above storage, on S3: what they ask for stands here, on a place that each test module names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.storage.testing import RecordingStorage
from tests.s3.sample import make_sample
from tests.scraping import counting
from tests.store.conftest import clock

if TYPE_CHECKING:
    from des.storage.protocol import Storage
    from tests.servers.s3_servers import S3Server

__all__ = ["clock", "counting"]


@pytest.fixture
def storage(local: Storage) -> RecordingStorage:
    return RecordingStorage(local)


@pytest.fixture(scope="session")
def sample_bucket(seaweedfs: S3Server) -> str:
    """The bucket of the store that tests of reading share; see `tests.s3.sample`."""
    return make_sample(seaweedfs)
