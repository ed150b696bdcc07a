"""kill -9 at every storage call of a pack to SeaweedFS, and three packers at once on it: `tests/test_kill.py` on S3."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import test_kill
from tests.pack.forking import PackingProcesses
from tests.pack.grounds import Ground, S3Ground

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from des.storage.s3 import S3Storage
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]


@pytest.fixture
def ground(
    seaweedfs: S3Server, seaweedfs_bucket: str, prefix: str, s3_addresses: None, on_seaweedfs: S3Storage
) -> Ground:
    """Return places beside `on_seaweedfs`, which keeps the endpoint open, because opening it takes longer than most packs."""
    return S3Ground(seaweedfs, seaweedfs_bucket, prefix)


@pytest.fixture
def processes(ground: Ground) -> Iterator[PackingProcesses]:
    """Return processes that begin with the environment in which addresses on S3 mean the server."""
    with PackingProcesses() as processes:
        yield processes


FEW = dict(list(test_kill.LATER.items())[:2])


# Killed after a call is killed before the next one, but where calls run at the same time: that is left to the soak.
@pytest.mark.parametrize(("earlier", "kill_after"), [({}, True), (test_kill.EARLIER, False)], ids=["empty", "earlier"])
async def test_killed_at_every_storage_call_of_a_small_pack(
    tmp_path: Path, ground: Ground, processes: PackingProcesses, earlier: Mapping[str, bytes], kill_after: bool
) -> None:
    stage = test_kill.Stage(tmp_path, ground, earlier, FEW)
    assert await test_kill.kill_at_every_storage_call(stage, processes, kill_after) > 6


@pytest.mark.soak
@pytest.mark.parametrize("kill_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("store", test_kill.STORES)
async def test_killed_at_every_storage_call(
    tmp_path: Path, ground: Ground, processes: PackingProcesses, store: str, kill_after: bool
) -> None:
    await test_kill.test_killed_at_every_storage_call(tmp_path, ground, processes, store, kill_after)


class TestAtOnce(test_kill.TestAtOnce):
    @pytest.mark.soak
    async def test_each_file_counts_once(self, tmp_path: Path, ground: Ground, processes: PackingProcesses) -> None:
        await super().test_each_file_counts_once(tmp_path, ground, processes)

    @pytest.mark.soak
    async def test_one_of_three_contents_wins(
        self, tmp_path: Path, ground: Ground, processes: PackingProcesses
    ) -> None:
        await super().test_one_of_three_contents_wins(tmp_path, ground, processes)
