"""A quick part of the read path's suite on moto: no more than it can, and nothing that stands on conditions it is blind to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.store import test_heads, test_listing, test_many, test_store, test_store_staleness

if TYPE_CHECKING:
    from des.storage.s3 import S3Storage

pytest_plugins = ["tests.servers.fixtures"]


@pytest.fixture
def local(on_moto: S3Storage) -> S3Storage:
    return on_moto


@pytest.mark.soak
class TestStat(test_store.TestStat): ...


class TestReadPath:
    test_every_content = test_many.TestAnswers.test_all_kinds_of_contents
    test_a_failed_file = test_many.TestAnswers.test_a_failed_file_is_a_result
    test_replaced_and_deleted = test_store.TestReading.test_replaced_and_deleted
    test_metadata = test_store_staleness.TestCompaction.test_metadata
    test_a_lost_head = test_listing.TestLostHeads.test_segments_without_a_head


class TestHeadReplacement(test_heads.TestReplacement): ...


@pytest.mark.soak
class TestLostHeads(test_listing.TestLostHeads): ...


@pytest.mark.soak
class TestReading(test_store.TestReading): ...


@pytest.mark.soak
class TestCompaction(test_store_staleness.TestCompaction): ...
