"""The read path's suite on SeaweedFS: the tests of `tests/store`, collected again on another place.

What reads in every way, what counts, and what finds damage, compactions and lost heads runs always; the rest as soak.
Left out is what never reaches a storage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
from tests.store.test_costs import maker, uids

if TYPE_CHECKING:
    from des.storage.s3 import S3Storage
    from des.storage.testing import RecordingStorage

__all__ = ["maker", "uids"]

pytest_plugins = ["tests.servers.fixtures"]


@pytest.fixture
def local(on_seaweedfs: S3Storage) -> S3Storage:
    return on_seaweedfs


class TestReading(test_store.TestReading): ...


class TestStat(test_store.TestStat): ...


class TestCosts(test_costs.TestOne): ...


class TestStaleness:
    """Of the tests of damage, of streams and of segments that are gone, those that meet S3 in another way than files."""

    test_metadata = test_store_staleness.TestCompaction.test_metadata
    test_replaced_and_gone = test_store_staleness.TestCompaction.test_a_file_that_was_replaced_as_well
    test_gone_between_two_reads = (
        test_store_staleness.TestCompaction.test_a_dictionary_that_goes_between_payload_and_dictionary
    )
    test_gone_under_an_unchanged_head = (
        test_store_staleness.TestCompaction.test_a_segment_that_is_gone_under_an_unchanged_head
    )
    test_cut_short = test_store_damage.TestDamage.test_a_segment_cut_short
    test_damaged_chunk = test_store_damage.TestDamage.test_a_damaged_chunk_stops_a_stream_before_it
    test_trouble_midway = test_store_stream.TestStream.test_trouble_midway_comes_from_the_iterator
    test_listed_while_it_is_compacted = test_listing.TestMeanwhile.test_compaction_midway


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


class TestFreshness(test_index.TestFreshness): ...


@pytest.mark.soak
class TestListingContent(test_listing.TestContent): ...


@pytest.mark.soak
class TestListingMeanwhile(test_listing.TestMeanwhile): ...


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
