"""The packer's suite on SeaweedFS: the tests of `tests/pack`, collected again on another place.

What packs, appends, repeats, conflicts and races runs always; what turns on sources and encodings more than on the place
runs as soak.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.pack import test_packer
from tests.pack.conftest import no_pauses, sources

if TYPE_CHECKING:
    from des.settings import Settings
    from des.storage.s3 import S3Storage
    from tests.servers.s3_servers import S3Server

__all__ = ["no_pauses", "sources"]

pytest_plugins = ["tests.servers.fixtures"]
pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture
def base_dir(seaweedfs: S3Server, seaweedfs_bucket: str, prefix: str) -> Settings:
    return seaweedfs.settings(seaweedfs_bucket, s3_prefix=prefix)


@pytest.fixture
def storage(on_seaweedfs: S3Storage) -> S3Storage:
    return on_seaweedfs


class TestPacking:
    test_report_and_content = test_packer.TestOnce.test_report_and_content
    test_all_that_a_row_says_is_kept = test_packer.TestOnce.test_all_that_a_row_says_is_kept
    test_replacing_ends_with_the_last = test_packer.TestRepeated.test_replacing_ends_with_the_last
    test_a_big_file_that_is_the_same = test_packer.TestConflicts.test_a_big_file_that_is_the_same
    test_a_bigger_file_has_its_own_segment = test_packer.TestSegments.test_a_bigger_file_has_its_own
    test_a_source_that_fails_midway = test_packer.TestSourcesThatFailMidway.test_it_is_named_and_the_rest_packed


class TestAgain(test_packer.TestAgain): ...


class TestOtherWriters(test_packer.TestOtherWriters): ...


@pytest.mark.soak
class TestOnce(test_packer.TestOnce): ...


@pytest.mark.soak
class TestConflicts(test_packer.TestConflicts): ...


@pytest.mark.soak
class TestRepeated(test_packer.TestRepeated): ...


@pytest.mark.soak
class TestSegments(test_packer.TestSegments): ...


@pytest.mark.soak
class TestSourcesThatFailMidway(test_packer.TestSourcesThatFailMidway): ...


class OnMoto:
    @pytest.fixture
    def base_dir(self, moto: S3Server, moto_bucket: str, prefix: str) -> Settings:
        return moto.settings(moto_bucket, s3_prefix=prefix)

    @pytest.fixture
    def storage(self, on_moto: S3Storage) -> S3Storage:
        return on_moto


class TestOnMoto(OnMoto):
    """Plain conditional puts work there, so heads are safe; what it is blind to is not asked of it."""

    test_all_that_a_row_says_is_kept = test_packer.TestOnce.test_all_that_a_row_says_is_kept
    test_a_segment_that_is_gone = test_packer.TestAgain.test_a_segment_that_is_gone_makes_its_files_new
    test_a_big_file_that_is_the_same = test_packer.TestConflicts.test_a_big_file_that_is_the_same


@pytest.mark.soak
class TestConflictsOnMoto(OnMoto, test_packer.TestConflicts): ...


@pytest.mark.soak
class TestOtherWritersOnMoto(OnMoto, test_packer.TestOtherWriters): ...
