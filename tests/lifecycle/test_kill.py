"""kill -9 at every storage call of what changes a shard: it stays readable and undamaged, and a rerun ends the same."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import pytest

from des.storage.protocol import Overwrite
from tests.lifecycle.acting import BOTH, VICTIM, Actions, Told, build, check_told, found_in
from tests.lifecycle.forking import MaintenanceJob
from tests.pack.forking import PackingProcesses
from tests.pack.grounds import Ground, LocalGround, S3Ground, open_at
from tests.pack.packing import Sources
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from des.shard.layout import Identity
    from des.storage.protocol import Storage
    from des.storage.s3 import S3Storage
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

ACTIONS = ["delete", "compact", "forget", "erase", "gc", "repair", "expire"]


@pytest.fixture(scope="module")
def built() -> tuple[MemoryStorage, Identity]:
    storage = MemoryStorage()
    return storage, anyio.run(build, storage)


@pytest.fixture(scope="module")
def processes() -> Iterator[PackingProcesses]:
    with PackingProcesses("tests.lifecycle.forking") as processes:
        yield processes


@dataclass(frozen=True, slots=True)
class Stage:
    """An action on copies of one store."""

    directory: Path
    ground: Ground
    objects: dict[str, bytes]
    identity: Identity
    action: str

    async def fresh(self, name: str) -> tuple[str, Storage]:
        """Return the address of a store as it was before the action, and the store opened."""
        address = self.ground.address(name)
        storage = await open_at(address)
        for key, data in self.objects.items():
            if self.action != "repair" or key != self.identity.head_key:
                await storage.put(key, data, Overwrite())
        return address, storage

    def job(self, address: str, kill_at: int | None = None) -> MaintenanceJob:
        return MaintenanceJob(address, self.action, str(self.directory / "calls"), kill_at)

    async def kill_at_every_call(self, processes: PackingProcesses, step: int) -> None:
        address, storage = await self.fresh("whole")
        assert processes.run([self.job(address)]) == [0]
        calls = int((self.directory / "calls").read_text())
        expected = await self.state_after_rerun(storage)
        await storage.aclose()
        for first in range(1, calls + 1, 2 * step):
            numbers = [number for number in (first, first + step) if number <= calls]
            stores = [await self.fresh(f"killed at {number}") for number in numbers]
            jobs = [self.job(one[0], number) for one, number in zip(stores, numbers, strict=True)]
            assert set(processes.run(jobs)) == {-signal.SIGKILL}
            for (_, store), number in zip(stores, numbers, strict=True):
                try:
                    await self.check_killed(store)
                    assert await self.state_after_rerun(store) == expected
                except BaseException as error:
                    error.add_note(f"{self.action} was killed at call {number} of {calls}.")
                    raise
                await store.aclose()

    async def check_killed(self, storage: Storage) -> None:
        """Whatever was done of it, every file is what it was, or what it shall be."""
        told = Told(forgets=self.action == "forget", expires=self.action == "expire")
        told.maybe |= {VICTIM, BOTH} if self.action == "delete" else set()
        keys = [info.key async for info in storage.list("")]
        if self.action != "repair" or self.identity.head_key in keys:
            check_told(await found_in(storage), told)

    async def state_after_rerun(self, storage: Storage) -> tuple[dict[str, bytes | str], int]:
        """Do it again, collect what is left of the first time, and return what there is."""
        actions = Actions(self.identity, Sources(self.directory / "sources"))
        await actions.all()[self.action](storage, Told())
        await actions.gc(storage, Told())
        return await found_in(storage), len([info async for info in storage.list("")])


def steps(few: dict[str, int]) -> pytest.MarkDecorator:
    """At every so many calls of some actions, and at every call of all actions as a soak."""
    soak = [pytest.param(action, 1, marks=pytest.mark.soak) for action in ACTIONS if few.get(action) != 1]
    return pytest.mark.parametrize(("action", "step"), [*few.items(), *soak])


@steps({"delete": 1, "compact": 3, "gc": 1, "repair": 1, "erase": 5, "expire": 3})
async def test_on_files(
    tmp_path: Path, processes: PackingProcesses, built: tuple[MemoryStorage, Identity], action: str, step: int
) -> None:
    ground = LocalGround(tmp_path)
    await Stage(tmp_path, ground, built[0].contents(), built[1], action).kill_at_every_call(processes, step)


@steps({"compact": 24, "gc": 24})
async def test_on_seaweedfs(
    tmp_path: Path,
    seaweedfs: S3Server,
    seaweedfs_bucket: str,
    prefix: str,
    s3_addresses: None,
    on_seaweedfs: S3Storage,
    built: tuple[MemoryStorage, Identity],
    action: str,
    step: int,
) -> None:
    stage = Stage(tmp_path, S3Ground(seaweedfs, seaweedfs_bucket, prefix), built[0].contents(), built[1], action)
    with PackingProcesses("tests.lifecycle.forking") as processes:
        await stage.kill_at_every_call(processes, step)
