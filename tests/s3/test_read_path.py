"""The read path's suite on SeaweedFS: the tests of `tests/store`, collected again on another place.

What meets S3 in another way than files runs always, all of it as soak. Left out is what never reaches a storage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.shard.codecs import Compression
from tests.store import (
    test_catalogs,
    test_costs,
    test_heads,
    test_index,
    test_listing,
    test_many,
    test_store,
    test_store_damage,
    test_store_staleness,
    test_store_stream,
    test_store_trouble,
)
from tests.store.contents import DICTIONARY
from tests.store.test_costs import maker, uids

if TYPE_CHECKING:
    from des.storage.s3 import S3Storage
    from des.storage.testing import RecordingStorage

__all__ = ["maker", "uids"]

pytest_plugins = ["tests.servers.fixtures"]


@pytest.fixture
def local(on_seaweedfs: S3Storage) -> S3Storage:
    return on_seaweedfs


@pytest.mark.soak
class TestReading(test_store.TestReading): ...


@pytest.mark.soak
class TestStat(test_store.TestStat): ...


@pytest.mark.soak
class TestCosts(test_costs.TestOne): ...


class TestAlways:
    """What meets S3 in another way than files."""

    test_any_spelling = test_store.TestReading.test_any_spelling_of_uid_and_time
    test_replaced_and_deleted = test_store.TestReading.test_replaced_and_deleted
    test_a_thousand_reads_at_once = test_store.TestReading.test_a_thousand_reads_of_one_file_at_once
    test_no_head = test_listing.TestLostHeads.test_segments_without_a_head
    test_a_head_lost_meanwhile = test_listing.TestLostHeads.test_a_head_that_is_lost_between_listing_and_reading
    test_none_of_ours = test_listing.TestLostHeads.test_objects_that_are_none_of_ours_are_passed_over
    test_pages_survive_a_commit = test_index.TestFreshness.test_pages_survive_a_commit
    test_metadata = test_store_staleness.TestCompaction.test_metadata
    test_replaced_and_gone = test_store_staleness.TestCompaction.test_a_file_that_was_replaced_as_well
    test_gone_between_two_reads = (
        test_store_staleness.TestCompaction.test_a_dictionary_that_goes_between_payload_and_dictionary
    )
    test_gone_under_an_unchanged_head = (
        test_store_staleness.TestCompaction.test_a_segment_that_is_gone_under_an_unchanged_head
    )
    test_damaged_chunk = test_store_damage.TestDamage.test_a_damaged_chunk_stops_a_stream_before_it
    test_trouble_midway = test_store_stream.TestStream.test_trouble_midway_comes_from_the_iterator
    test_listed_while_it_is_compacted = test_listing.TestMeanwhile.test_compaction_midway

    async def test_every_content(self, storage: RecordingStorage) -> None:
        by_every_way = test_store.TestReading().test_every_content_comes_back_by_every_way
        await by_every_way(storage, Compression(dictionary=DICTIONARY))


@pytest.mark.soak
class TestStream(test_store_stream.TestStream): ...


@pytest.mark.soak
class TestDamage(test_store_damage.TestDamage): ...


@pytest.mark.soak
class TestCompaction(test_store_staleness.TestCompaction): ...


@pytest.mark.soak
class TestManyAnswers(test_many.TestAnswers): ...


class TestManyRemedies(test_many.TestRemedies): ...


class TestHeadReplacement(test_heads.TestReplacement): ...


@pytest.mark.soak
class TestFreshness(test_index.TestFreshness): ...


@pytest.mark.soak
class TestListingContent(test_listing.TestContent): ...


@pytest.mark.soak
class TestListingMeanwhile(test_listing.TestMeanwhile): ...


@pytest.mark.soak
class TestLostHeads(test_listing.TestLostHeads): ...


@pytest.mark.soak
class TestCostsOfManyAtOnce(test_costs.TestManyAtOnce): ...


@pytest.mark.soak
class TestManyCost(test_many.TestCost): ...


@pytest.mark.soak
class TestManyLifetime(test_many.TestLifetime): ...


@pytest.mark.soak
class TestNotFound(test_index.TestNotFound): ...


@pytest.mark.soak
class TestDescriptor(test_index.TestDescriptor): ...


@pytest.mark.soak
class TestIndexHeads(test_index.TestHeads): ...


@pytest.mark.soak
class TestHeadLoading(test_heads.TestLoading): ...


@pytest.mark.soak
class TestHeadDamage(test_heads.TestDamage): ...


@pytest.mark.soak
class TestListingCursor(test_listing.TestCursor): ...


@pytest.mark.soak
class TestListingTrouble(test_listing.TestTrouble): ...


@pytest.mark.soak
class TestTrouble(test_store_trouble.TestTrouble): ...


@pytest.mark.soak
class TestCatalogLoading(test_catalogs.TestLoading): ...


@pytest.mark.soak
class TestCatalogReader(test_catalogs.TestReader): ...


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
async def test_the_model(storage: RecordingStorage, seed: int) -> None:
    await test_store.test_the_model(storage, seed)
