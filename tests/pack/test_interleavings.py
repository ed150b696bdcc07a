"""Two packers on one shard, their storage calls interleaved by a seed; replies lost at any call. A failing schedule is printed with its seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import pytest

from des import open_store
from des.errors import StorageTimeoutError
from des.storage.testing import Fault, FaultyStorage, LoseReply, ScheduledStorage, Scheduler
from tests.pack.grounds import LocalGround, open_at
from tests.pack.packing import DAY, Row, Run, Sources, check_store, date_of, head_of, names_of_one_shard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from des.pack.decisions import OnConflict
    from des.storage.protocol import Storage
    from tests.pack.grounds import Ground

pytestmark = pytest.mark.usefixtures("no_pauses")

EARLIER = dict.fromkeys(names_of_one_shard(2, stem="earlier"), b"earlier")
NAMES = names_of_one_shard(6)
BOTH = NAMES[4:]


@dataclass(frozen=True, slots=True)
class Case:
    """What two packers bring. In `files` each brings its own, in `shared` both bring the same uids."""

    mine: Mapping[str, bytes]
    yours: Mapping[str, bytes]
    mode: OnConflict = "error"
    times: int = 1
    earlier: Mapping[str, bytes] | None = None

    def rows(self, sources: Sources, files: Mapping[str, bytes]) -> list[Row]:
        return sources.rows(files) * self.times


def files(names: list[str], whose: str) -> dict[str, bytes]:
    return {uid: f"{whose} {uid}".encode() * 9 for uid in names}


DISJOINT = Case(files(NAMES[:2], "a"), files(NAMES[2:4], "b"))
SAME = Case(files(NAMES[:2] + BOTH, "any"), files(NAMES[2:4] + BOTH, "any"))
OTHER = Case(files(NAMES[:2] + BOTH, "a"), files(NAMES[2:4] + BOTH, "b"))
CASES = {
    "disjoint": DISJOINT,
    "disjoint, after earlier ones": replace(DISJOINT, earlier=EARLIER),
    "the same": SAME,
    "all the same, after earlier ones": Case(files(BOTH, "any"), files(BOTH, "any"), earlier=EARLIER),
    "the same, each row twice": replace(SAME, times=2),
    "other content, error": OTHER,
    "other content, skip": replace(OTHER, mode="skip"),
    "other content, replace": replace(OTHER, mode="replace"),
    "other content, replace, over earlier content": replace(OTHER, mode="replace", earlier=files(BOTH, "old")),
    "other content, skip, each row twice": replace(OTHER, mode="skip", times=2, earlier=EARLIER),
}


class Stage:
    """One case: its manifests, its earlier store, and runs of both packers on copies of that."""

    def __init__(self, directory: Path, ground: Ground, case: Case) -> None:
        self.ground = ground
        self.case = case
        sources = Sources(directory / "sources")
        self.mine = sources.manifest(case.rows(sources, case.mine), "mine.json")
        self.yours = sources.manifest(case.rows(sources, case.yours), "yours.json")
        self.earlier = sources.manifest(sources.rows(case.earlier or {}), "earlier.json")
        self.generation = 1

    async def prepare(self) -> None:
        if self.case.earlier:
            storage = await open_at(self.ground.address("earlier"))
            await Run().pack(storage, self.earlier)
            self.generation = 2
            await storage.aclose()

    def fresh(self, name: str) -> str:
        if self.case.earlier:
            self.ground.copy("earlier", name)
        return self.ground.address(name)

    async def run(self, address: str, seed: int, lost: int | None = None) -> tuple[Run, Run, FaultyStorage]:
        """Run both; `lost` is the call of mine whose reply is lost."""
        scheduler = Scheduler(seed)
        mine, yours = Run(), Run()
        one, other = await open_at(address), await open_at(address)
        faulty = FaultyStorage(one, [] if lost is None else [Fault(LoseReply(), at=lost)])
        mode = self.case.mode

        has_failed = False

        async def pack_mine() -> None:
            nonlocal has_failed
            try:
                await mine.pack(ScheduledStorage(faulty, scheduler, "mine"), self.mine, on_conflict=mode)
            except StorageTimeoutError:
                has_failed = True
                assert faulty.fired, "it failed without a reason"
                assert faulty.fired[0].verb != "put", "a write whose reply was lost is resolved, not given up"

        try:
            await scheduler.run(
                {
                    "mine": pack_mine,
                    "yours": lambda: yours.pack(
                        ScheduledStorage(other, scheduler, "yours"), self.yours, on_conflict=mode
                    ),
                }
            )
            if has_failed:
                # At a lost reply of something else than a write: what it did stays, and the same again completes it.
                await Run().pack(one, self.mine, on_conflict=mode)
            else:
                await self.check_commits(one, mine, yours)
                self.check_counts(mine, yours)
            await self.check_contents(address)
        except AssertionError as error:
            error.add_note("\n".join([f"Schedule of seed {seed}, lost {lost}:", *scheduler.trace]))
            raise
        finally:
            await one.aclose()
            await other.aclose()
        return mine, yours, faulty

    async def check_commits(self, storage: Storage, mine: Run, yours: Run) -> None:
        head = await head_of(storage, NAMES[0])
        commits = sum(run.report.objects_written - run.report.segments for run in (mine, yours))
        assert head.tables.generation == self.generation + commits, "each swap is one commit"
        assert len(set(head.tables.commit_log)) == len(head.tables.commit_log) == head.tables.generation - 1
        assert len(head.tables.segments) == sum(run.report.segments for run in (mine, yours)) + (self.generation - 1)

    async def check_contents(self, address: str) -> None:
        """The store is sound and holds the union; of two contents of a uid either may be the one."""
        earlier, brought = dict(self.case.earlier or {}), (self.case.mine, self.case.yours)
        async with open_store(address) as store:
            found = {uid: await store.get(uid, date_of(DAY)) for uid in {**earlier, **brought[0], **brought[1]}}
        for uid, content in found.items():
            assert content in ({files[uid] for files in brought if uid in files} or {earlier[uid]})
        await check_store(address, found)

    def check_counts(self, mine: Run, yours: Run) -> None:
        case, runs = self.case, (mine, yours)
        assert [run.report.files for run in runs] == [len(case.mine) * case.times, len(case.yours) * case.times]
        for run in runs:
            assert sum(run.counts) == run.report.files == run.progress.files
            assert len(run.failures) == run.report.failed
            assert {row["status"] for row in run.failures} <= {"conflict"}
        packed, skipped, failed = (sum(counts) for counts in zip(*(run.counts for run in runs), strict=True))
        names = {*case.mine, *case.yours}
        shared = {*case.mine} & {*case.yours}
        repeats = (len(case.mine) + len(case.yours)) * (case.times - 1)
        is_same = all(case.mine[uid] == case.yours[uid] for uid in shared)
        if case.mode == "replace" and not is_same:
            assert (packed, skipped, failed) == (len(names) + len(shared), 0, 0)
        elif case.mode == "error" and not is_same:
            assert (packed, skipped, failed) == (len(names), repeats, len(shared))
        else:
            assert (packed, skipped, failed) == (len(names), repeats + len(shared), 0)


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 100), marks=pytest.mark.soak)], ids=str)
@pytest.mark.parametrize("name", CASES)
async def test_two_packers(tmp_path: Path, name: str, seeds: range) -> None:
    stage = Stage(tmp_path, LocalGround(tmp_path), CASES[name])
    await stage.prepare()
    for seed in seeds:
        await stage.run(stage.fresh(f"store-{seed}"), seed)


@pytest.mark.parametrize(
    "name", ["disjoint", "all the same, after earlier ones", "other content, error", "other content, replace"]
)
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 6), marks=pytest.mark.soak)], ids=str)
async def test_two_packers_and_a_lost_reply(tmp_path: Path, name: str, seeds: range) -> None:
    stage = Stage(tmp_path, LocalGround(tmp_path), CASES[name])
    await stage.prepare()
    verbs = []
    for lost in count(1):
        fired = []
        for seed in (100 * number + lost for number in seeds):
            *_, faulty = await stage.run(stage.fresh(f"store-{lost}-{seed}"), seed, lost)
            fired += [call.verb for call in faulty.fired]
        if not fired:
            break
        verbs += fired
    assert verbs.count("put") > len(seeds) / 2  # where both bring the same, only one writes
    assert len(verbs) >= 7 * len(seeds)
