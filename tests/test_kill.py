"""kill -9 at every storage call of a small pack: what was acknowledged stays readable, nothing is damaged, and a rerun completes it."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from des import NotFoundError, open_store
from des.errors import ObjectNotFoundError
from des.shard.chunking import LARGE_BYTES
from des.storage.descriptor import DESCRIPTOR_KEY
from tests.pack.forking import PackingJob, PackingProcesses
from tests.pack.grounds import LocalGround, open_at
from tests.pack.packing import DAY, Run, Sources, check_store, date_of, head_of, names_of_one_shard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from des.storage.protocol import Storage
    from tests.pack.grounds import Ground

EARLIER = {uid: b"earlier " + uid.encode() for uid in names_of_one_shard(5, stem="earlier")}
LATER = {uid: os.urandom(400) for uid in names_of_one_shard(4, stem="later")} | {
    names_of_one_shard(1, stem="big")[0]: os.urandom(LARGE_BYTES + 1)
}
REPLACING = dict.fromkeys(list(EARLIER)[:2], b"replaced")


@pytest.fixture(scope="module")
def processes() -> Iterator[PackingProcesses]:
    with PackingProcesses() as processes:
        yield processes


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return LocalGround(tmp_path)


class Stage:
    """A pack on copies of one earlier store, or on none."""

    def __init__(
        self, directory: Path, ground: Ground, earlier: Mapping[str, bytes], files: Mapping[str, bytes]
    ) -> None:
        sources = Sources(directory / "sources")
        self.directory = directory
        self.ground = ground
        self.earlier = earlier
        self.files = files
        earlier_manifest = sources.manifest(sources.rows(earlier), "earlier.json")
        manifest = sources.manifest(sources.rows(files), "later.json")
        outcome = str(directory / "outcome.json")
        self.earlier_job = PackingJob(ground.address("earlier"), str(earlier_manifest), outcome)
        self.job = PackingJob("", str(manifest), outcome, on_conflict="replace", max_segment_bytes=900)

    def fresh(self, name: str) -> str:
        """Return the address of a store as it was before the pack."""
        if self.earlier:
            self.ground.copy("earlier", name)
        return self.ground.address(name)

    def outcome(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = json.loads((self.directory / "outcome.json").read_text())
        return found


STORES: dict[str, tuple[Mapping[str, bytes], Mapping[str, bytes]]] = {
    "an empty store": ({}, LATER),
    "a store with earlier files": (EARLIER, LATER),
    "a store whose files it replaces": (EARLIER, LATER | REPLACING),
}
# A call that was made and one that was not differ most where there is most to lose.
EVERYWHERE = [
    pytest.param(
        store,
        kill_after,
        id=f"{store}-{'after' if kill_after else 'before'}",
        marks=[pytest.mark.soak] if "earlier" in store or (kill_after and "replaces" not in store) else [],
    )
    for store in STORES
    for kill_after in (False, True)
]


@pytest.mark.parametrize(("store", "kill_after"), EVERYWHERE)
async def test_killed_at_every_storage_call(
    tmp_path: Path, ground: Ground, processes: PackingProcesses, store: str, kill_after: bool
) -> None:
    assert await kill_at_every_storage_call(Stage(tmp_path, ground, *STORES[store]), processes, kill_after) > 12


async def kill_at_every_storage_call(stage: Stage, processes: PackingProcesses, kill_after: bool) -> int:
    """Do so, check what remains and that a rerun completes it; return how many calls there were."""
    if stage.earlier:
        assert processes.run([stage.earlier_job]) == [0]
    assert processes.run([replace(stage.job, store=stage.fresh("counted"))]) == [0]
    calls: int = int(stage.outcome()["calls"])  # type: ignore[call-overload]  # a number
    states, kills = set(), 0
    for killed_at in range(1, calls + 1, 2):
        stores = [stage.fresh(f"killed-{at}") for at in (killed_at, killed_at + 1) if at <= calls]
        jobs = [
            replace(stage.job, store=address, kill_at=killed_at + at, kill_after=kill_after)
            for at, address in enumerate(stores)
        ]
        statuses = processes.run(jobs)
        # After a call means after its success: one that finds nothing, such as the first look for a head, is not followed by a kill.
        assert set(statuses) <= ({-signal.SIGKILL, 0} if kill_after else {-signal.SIGKILL})
        kills += statuses.count(-signal.SIGKILL)
        for address in stores:
            states.add(await check_killed(stage, address))
    assert kills >= calls - 3 * kill_after
    assert states == ({"old", "new"} if kill_after else {"old"})
    return calls


async def check_killed(stage: Stage, address: str) -> str:
    """Check a store after a kill and after a rerun; return whether it was in the old state or the new one."""
    union = {**stage.earlier, **stage.files}
    storage = await open_at(address)
    exists = await has_descriptor(storage)
    found = await files_in(address, union) if exists else {}
    assert found in (dict(stage.earlier), union), "the old state or the new one, never a mixture"
    if exists:
        await check_store(address, found)
    run = Run()
    # Whatever the killed process left behind is in nobody's way.
    await run.pack(storage, stage.directory / "sources" / "later.json", on_conflict="replace", max_segment_bytes=900)
    assert run.report.failed == 0
    assert run.report.packed == (0 if found == union else len(stage.files))
    await check_store(address, union)
    generation = 2 + bool(stage.earlier)
    assert (await head_of(storage, next(iter(union)))).tables.generation == generation, "converged: one commit, not two"
    await storage.aclose()
    return "new" if found == union else "old"


async def has_descriptor(storage: Storage) -> bool:
    try:
        await storage.head(DESCRIPTOR_KEY)
    except ObjectNotFoundError:
        return False
    return True


async def files_in(address: str, names: Mapping[str, bytes]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    async with open_store(address) as store:
        for uid in names:
            try:
                found[uid] = await store.get(uid, date_of(DAY))
            except NotFoundError:
                continue
    return found


def test_killed_while_it_proves_that_locks_hold(tmp_path: Path, ground: Ground, processes: PackingProcesses) -> None:
    stage = Stage(tmp_path, ground, EARLIER, LATER)
    assert processes.run([stage.earlier_job]) == [0]
    job = replace(stage.job, store=stage.fresh("killed"), single_writer=False)
    assert processes.run([replace(job, kill_at=3), replace(job, kill_at=3, kill_after=True)]) == [-9, -9]
    assert processes.run([job]) == [0]
    assert stage.outcome()["report"]["packed"] == len(LATER)


class TestAtOnce:
    """Three packers as real processes on one store."""

    def jobs(self, tmp_path: Path, ground: Ground, brought: Sequence[Mapping[str, bytes]]) -> list[PackingJob]:
        sources = Sources(tmp_path / "sources")
        jobs = []
        for at, files in enumerate(brought):
            manifest = sources.manifest(sources.rows(files), f"{at}.json")
            outcome = str(tmp_path / f"outcome-{at}.json")
            jobs.append(PackingJob(ground.address("store"), str(manifest), outcome, single_writer=False))
        return jobs

    def outcomes(self, tmp_path: Path) -> list[dict[str, int]]:
        return [json.loads((tmp_path / f"outcome-{at}.json").read_text())["report"] for at in range(3)]

    async def test_the_union_remains(self, tmp_path: Path, ground: Ground, processes: PackingProcesses) -> None:
        brought = [{f"packer-{at}/{number}": os.urandom(100) for number in range(40)} for at in range(3)]
        assert processes.run(self.jobs(tmp_path, ground, brought)) == [0, 0, 0]
        assert [outcome["packed"] for outcome in self.outcomes(tmp_path)] == [40, 40, 40]
        await check_store(ground.address("store"), brought[0] | brought[1] | brought[2])

    async def test_each_file_counts_once(self, tmp_path: Path, ground: Ground, processes: PackingProcesses) -> None:
        files = {f"file-{number}": os.urandom(100) for number in range(40)}
        assert processes.run(self.jobs(tmp_path, ground, [files] * 3)) == [0, 0, 0]
        outcomes = self.outcomes(tmp_path)
        assert sum(outcome["packed"] for outcome in outcomes) == 40
        assert sum(outcome["skipped"] for outcome in outcomes) == 80
        await check_store(ground.address("store"), files)

    async def test_one_of_three_contents_wins(
        self, tmp_path: Path, ground: Ground, processes: PackingProcesses
    ) -> None:
        brought = [{f"file-{number}": b"%d of %d" % (number, at) for number in range(20)} for at in range(3)]
        assert processes.run(self.jobs(tmp_path, ground, brought)) == [0, 0, 0]
        outcomes = self.outcomes(tmp_path)
        assert sum(outcome["packed"] for outcome in outcomes) == 20
        assert sum(outcome["failed"] for outcome in outcomes) == 40
        found = await files_in(ground.address("store"), brought[0])
        assert all(found[uid] in {files[uid] for files in brought} for uid in brought[0])
        await check_store(ground.address("store"), found)
