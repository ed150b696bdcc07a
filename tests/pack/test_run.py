from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import threading
from contextlib import asynccontextmanager
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, TypeVar

import anyio
import psutil
import pytest

from des.errors import (
    DESError,
    ManifestError,
    PreconditionFailedError,
    SettingsError,
    StorageDeniedError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from des.pack import run as pack_run
from des.pack.run import PackJob
from des.pack.workshop import Limits, Workshop
from des.shard.chunking import LARGE_BYTES
from des.shard.codecs import Compression
from des.storage.descriptor import DESCRIPTOR_KEY, Descriptor, IndexRange
from des.storage.local import LocalStorage
from des.storage.paths import TEMPORARY_PREFIX
from des.storage.protocol import IfAbsent
from des.storage.testing import Fail, Fault, FaultyStorage, LoseReply, RecordingStorage, StorageWrapper
from tests.pack.packing import Run, Sources, check_store, names_of_one_shard, objects_under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator
    from pathlib import Path

    from des.storage.protocol import Storage
    from des.storage.testing import Call, Tally

pytestmark = pytest.mark.usefixtures("no_pauses")

Result = TypeVar("Result")

EARLIER = {uid: b"earlier " + uid.encode() for uid in names_of_one_shard(6, stem="earlier")}
LATER = {uid: os.urandom(300) for uid in names_of_one_shard(5, stem="later")}
LATER[next(iter(LATER))] = os.urandom(LARGE_BYTES + 3)


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    return tmp_path / "store"


@asynccontextmanager
async def opened(base_dir: Path) -> AsyncIterator[LocalStorage]:
    local = LocalStorage(base_dir)
    try:
        yield local
    finally:
        await local.aclose()


async def pack_into(base_dir: Path, *manifests: Path, **options: object) -> Run:
    run = Run()
    async with opened(base_dir) as local:
        await run.pack(local, *manifests, **options)  # type: ignore[arg-type]  # as of `Run.pack`
    return run


class TestManifests:
    async def test_several_are_numbered_on(self, base_dir: Path, sources: Sources) -> None:
        first = sources.manifest([sources.row("a", b"a"), {"uid": "b"}], "first.json")
        second = sources.manifest([5, sources.row("c", b"c"), sources.row("a", b"a")], "second.json")
        run = await pack_into(base_dir, first, second)
        assert run.report.files == 5
        assert run.counts == (2, 1, 2)
        assert [(row["row"], row["uid"]) for row in run.failures] == [(2, "b"), (3, None)]
        await check_store(base_dir, {"a": b"a", "c": b"c"})

    async def test_none_of_several_is_packed_where_one_cannot_be_read(self, base_dir: Path, sources: Sources) -> None:
        good = sources.manifest([sources.row("a", b"a")], "good.json")
        bad = sources.directory / "bad.json"
        bad.write_text(json.dumps([sources.row("b", b"b")])[:-1])
        run = Run()
        async with opened(base_dir) as local:
            with pytest.raises(ManifestError):
                await run.pack(local, good, bad)
        assert not base_dir.exists()
        assert run.report.failed == 0

    @pytest.mark.parametrize("rows", [[], [{"uid": "a"}, None]])
    async def test_nothing_to_pack_writes_nothing(self, base_dir: Path, sources: Sources, rows: list[object]) -> None:
        run = await pack_into(base_dir, sources.manifest(rows))
        assert run.counts == (0, 0, len(rows))
        assert not base_dir.exists()

    async def test_bad_rows_stand_beside_good_ones(self, base_dir: Path, sources: Sources) -> None:
        rows = [
            sources.row("a", b"a") | {"created_at": "2024-01-31T12:00:00"},
            sources.row("", b"x"),
            sources.row("b", b"b"),
            sources.row("c", b"c", size_bytes=-1),
        ]
        run = await pack_into(base_dir, sources.manifest(rows))
        assert run.counts == (1, 0, 3)
        assert [row["row"] for row in run.failures] == [1, 2, 4]
        assert {row["status"] for row in run.failures} == {"invalid"}
        await check_store(base_dir, {"b": b"b"})


class TestStores:
    async def test_another_n_bits_is_refused_before_the_manifest_is_read(
        self, base_dir: Path, sources: Sources
    ) -> None:
        await pack_into(base_dir, sources.manifest([sources.row("a", b"a")]), n_bits=2)
        before = objects_under(base_dir)
        with pytest.raises(SettingsError, match="n_bits is configured as 3, but the store has 2"):
            await pack_into(base_dir, sources.directory / "missing.json", n_bits=3)
        assert objects_under(base_dir) == before

    async def test_a_newer_store_is_refused(self, base_dir: Path, sources: Sources) -> None:
        manifest = sources.manifest([sources.row("a", b"a")])
        await pack_into(base_dir, manifest)
        path = base_dir / DESCRIPTOR_KEY
        path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
        before = objects_under(base_dir)
        with pytest.raises(SettingsError, match="upgrade DES"):
            await pack_into(base_dir, manifest)
        assert objects_under(base_dir) == before

    async def test_a_lost_descriptor_is_refused(self, base_dir: Path, sources: Sources) -> None:
        manifest = sources.manifest([sources.row("a", b"a")])
        await pack_into(base_dir, manifest)
        (base_dir / DESCRIPTOR_KEY).unlink()
        before = objects_under(base_dir)
        with pytest.raises(SettingsError, match="--adopt"):
            await pack_into(base_dir, manifest)
        assert objects_under(base_dir) == before

    async def test_a_zone_is_no_whole_store(self, base_dir: Path, sources: Sources) -> None:
        own, other = (names_of_one_shard(1, index=index)[0] for index in (0, 1))
        zone = Descriptor(b"s" * 16, Descriptor.new(1).epochs, IndexRange(1, 0, 0))
        async with opened(base_dir) as local:
            await local.put(DESCRIPTOR_KEY, zone.encode(), IfAbsent())
        before = objects_under(base_dir)
        rows = [sources.row(own, b"own"), sources.row(other, b"other")]
        with pytest.raises(SettingsError, match="zone"):
            await pack_into(base_dir, sources.manifest(rows), n_bits=None)
        assert objects_under(base_dir) == before
        await pack_into(base_dir, sources.manifest(rows[:1]), n_bits=None)
        await check_store(base_dir, {own: b"own"})

    async def test_n_bits_of_a_new_store(self, base_dir: Path, sources: Sources) -> None:
        await pack_into(base_dir, sources.manifest([sources.row("a", b"a")]), n_bits=None)
        assert Descriptor.decode((base_dir / DESCRIPTOR_KEY).read_bytes()).n_bits_on("20240131") == 8

    async def test_conditional_writes_are_proven_once_a_run(self, base_dir: Path, sources: Sources) -> None:
        manifest = sources.manifest(sources.rows(EARLIER))
        for single_writer, times in ((True, 0), (False, 1)):
            async with opened(base_dir) as local:
                recording = RecordingStorage(local)
                await Run().pack(recording, manifest, single_writer=single_writer)
            assert recording.count(verb="check_conditional_writes") == times
        await check_store(base_dir, EARLIER)

    async def test_a_storage_that_cannot_keep_writers_apart_is_refused(self, base_dir: Path, sources: Sources) -> None:
        manifest = sources.manifest(sources.rows(EARLIER))
        async with opened(base_dir) as local:
            refusal = SettingsError("cannot keep two writers apart")
            faulty = FaultyStorage(local, [Fault(Fail(refusal), verb="check_conditional_writes")])
            with pytest.raises(SettingsError):
                await Run().pack(faulty, manifest, single_writer=False)
        assert set(objects_under(base_dir)) == {DESCRIPTOR_KEY}


THREE_SHARDS = property(lambda job: Limits(job.memory, job.threads, shards=3))


class TestWorkshop:
    async def test_many_shards_share_few_slots(
        self, base_dir: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More batches a shard than there are slots, and more shards at once than the worker threads."""
        monkeypatch.setattr(PackJob, "limits", THREE_SHARDS)
        monkeypatch.setattr("des.pack.workshop.BATCH_FILES", 2)
        files = {f"file-{number}": os.urandom(number) for number in range(300)}
        for threads in (1, 4):
            run = await pack_into(
                base_dir, sources.manifest(sources.rows(files)), n_bits=3, threads=threads, max_segment_bytes=2000
            )
            assert sum(run.counts) == 300
            assert run.progress.files == 300
        await check_store(base_dir, files)


def leftovers(base_dir: Path) -> list[str]:
    return [str(path) for path in base_dir.rglob(TEMPORARY_PREFIX + "*")]


class Watch:
    """What a run must give back: slots, threads, tasks, open files."""

    def __init__(self) -> None:
        self.workshops: list[Workshop] = []
        self.slots: list[int] = []
        self.process = psutil.Process()
        self.files = self.open_files()

    def open_files(self) -> set[str]:
        return {file.path for file in self.process.open_files()}

    def workshop(self, *args: object, **options: object) -> Workshop:
        workshop = Workshop(*args, **options)  # type: ignore[arg-type]  # what the run gives
        self.workshops.append(workshop)
        self.slots.append(workshop.batches.value)
        return workshop

    async def check(self) -> None:
        await anyio.wait_all_tasks_blocked()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        for workshop, slots in zip(self.workshops, self.slots, strict=True):
            assert workshop.batches.value == slots
            assert workshop.threads.borrowed_tokens == 0
            assert workshop._turn.borrowed_tokens == 0
        assert self.open_files() == self.files
        gc.collect()  # what is not closed by now warns, which is an error here


@pytest.fixture
async def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(pack_run, "Workshop", watch.workshop)
    return watch


class Stage:
    """A small pack of one shard with two segments, on a store with or without earlier files, again and again."""

    def __init__(self, directory: Path, sources: Sources, earlier: dict[str, bytes]) -> None:
        self.directory = directory
        self.earlier = earlier
        self.expected = earlier | LATER
        self.manifest = sources.manifest(sources.rows(LATER), "later.json")
        self.earlier_manifest = sources.manifest(sources.rows(earlier), "earlier.json")
        self.pack = partial(self._pack, max_segment_bytes=1000, compression=Compression("none"))

    @staticmethod
    async def _pack(storage: Storage, manifest: Path, **options: object) -> Run:
        run = Run()
        await run.pack(storage, manifest, **options)  # type: ignore[arg-type]  # as of `Run.pack`
        return run

    async def prepare(self) -> int:
        """Make the earlier store; return how many storage calls the pack takes."""
        async with opened(self.directory / "earlier") as local:
            await self.pack(local, self.earlier_manifest)
        async with opened(self.fresh("counted")) as local:
            counting = FaultyStorage(local, [])
            await self.pack(counting, self.manifest)
            return counting.seen

    def fresh(self, name: str) -> Path:
        """Return a store as it was before the pack."""
        target = self.directory / name
        if self.earlier:
            shutil.copytree(self.directory / "earlier", target)
        return target

    async def check_after_trouble(self, base_dir: Path) -> None:
        """Nothing half done, and a rerun completes it."""
        assert leftovers(base_dir) == []
        if self.earlier:
            listed = {uid for uid in self.expected if await exists(base_dir, uid)}
            assert listed >= set(self.earlier)
            await check_store(base_dir, {uid: self.expected[uid] for uid in listed})
        run = await pack_into(base_dir, self.manifest)
        assert run.report.failed == 0
        await check_store(base_dir, self.expected)


async def exists(base_dir: Path, uid: str) -> bool:
    from des import NotFoundError, open_store
    from tests.pack.packing import DAY, date_of

    async with open_store(base_dir) as store:
        try:
            await store.stat(uid, date_of(DAY))
        except NotFoundError:
            return False
        return True


@pytest.fixture(params=[pytest.param("empty", marks=pytest.mark.soak), "with earlier files"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, sources: Sources) -> Stage:
    return Stage(tmp_path, sources, {} if request.param == "empty" else EARLIER)


async def outcome_of(packing: Awaitable[Result]) -> tuple[Result | None, StorageError | None]:
    """Return what came of a pack, or the storage's error that ended it."""
    try:
        return await packing, None
    except StorageError as error:
        return None, error


def nth_calls(count: int) -> Iterator[int]:
    assert count > 10
    yield from range(1, count + 1)


class TestTrouble:
    async def test_a_call_that_fails(self, stage: Stage, watch: Watch) -> None:
        failure = StorageUnavailableError("No space left")
        ended = []
        for n in nth_calls(await stage.prepare()):
            base_dir = stage.fresh(f"failed-{n}")
            async with opened(base_dir) as local:
                faulty = FaultyStorage(local, [Fault(Fail(failure), at=n)])
                run, error = await outcome_of(stage.pack(faulty, stage.manifest))
                if run is None:
                    assert error is failure, "as itself: no group, nothing wrapped"
                    ended.append(n)
                else:
                    assert run.counts == (5, 0, 0), "only an unknown outcome may turn out well"
                assert faulty.fired
            await watch.check()
            await stage.check_after_trouble(base_dir)
        assert len(ended) > 10

    async def test_a_call_whose_reply_is_lost(self, stage: Stage, watch: Watch) -> None:
        failure = StorageTimeoutError("no answer")
        done = set()
        for n in nth_calls(await stage.prepare()):
            base_dir = stage.fresh(f"lost-{n}")
            async with opened(base_dir) as local:
                recording = RecordingStorage(local)
                faulty = FaultyStorage(recording, [Fault(LoseReply(failure), at=n)])
                run, error = await outcome_of(stage.pack(faulty, stage.manifest))
                if run is None:
                    assert error is failure
                else:
                    done.add(faulty.fired[0].verb)
                    assert run.counts == (5, 0, 0)
                    assert (run.report.segments, run.report.objects_written) == (3, 4)
                (call,) = faulty.fired
            await watch.check()
            if call.verb == "put" and call.key != DESCRIPTOR_KEY:
                assert "put" in done, "a lost reply to a commit is no failure"
            await stage.check_after_trouble(base_dir)
        assert done - {"read_suffix"} == {"put"}, "reading what is not there fails before a reply can be lost"

    async def test_a_write_that_reports_the_failure_of_its_own_success(self, stage: Stage, watch: Watch) -> None:
        await stage.prepare()
        failure = PreconditionFailedError("412")
        for n in range(1, 4 - bool(stage.earlier) * 2):  # descriptor, empty head, head
            base_dir = stage.fresh(f"echoed-{n}")
            async with opened(base_dir) as local:
                recording = RecordingStorage(local)
                faulty = FaultyStorage(recording, [Fault(LoseReply(failure), verb="put", at=n)])
                run = await stage.pack(faulty, stage.manifest)
                assert faulty.fired
            assert run.counts == (5, 0, 0)
            assert recording.count(verb="put") == 3 - bool(stage.earlier) * 2
            await watch.check()
            await check_store(base_dir, stage.expected)

    async def test_all_calls_fail_from_one_on(self, stage: Stage, watch: Watch) -> None:
        failure = StorageUnavailableError("No space left")
        for n in nth_calls(await stage.prepare()):
            base_dir = stage.fresh(f"dead-{n}")

            async with opened(base_dir) as local:
                with pytest.raises(StorageUnavailableError) as caught:
                    await stage.pack(FaultyStorage(local, [Fault(Fail(failure), at=n, lasting=True)]), stage.manifest)
                assert caught.value is failure
            await watch.check()
            await stage.check_after_trouble(base_dir)

    async def test_no_more_of_one_kind_of_write(self, stage: Stage, watch: Watch) -> None:
        """A disk that is full: the same call fails however often it is tried."""
        await stage.prepare()
        failures = (StorageUnavailableError("No space left"), StorageDeniedError("Read-only file system"))
        for verb, failure in product(("put", "open_writer", "write", "commit"), failures):
            base_dir = stage.fresh(f"full-{verb}-{failure.status}")
            async with opened(base_dir) as local:
                faulty = FaultyStorage(local, [Fault(Fail(failure), verb=verb, at=None)])  # type: ignore[arg-type]  # a verb
                with pytest.raises(StorageError) as caught:
                    await stage.pack(faulty, stage.manifest)
                assert caught.value is failure
                assert len(faulty.fired) < 10
            await watch.check()
            await stage.check_after_trouble(base_dir)


class CancelAt(StorageWrapper):
    """Cancels a scope at the n-th call, before it or once it took effect."""

    def __init__(self, inner: Storage, scope: anyio.CancelScope, n: int, *, after: bool) -> None:
        super().__init__(inner)
        self.fired = False
        self._scope = scope
        self._left = n
        self._after = after

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        self._left -= 1
        is_due = self._left == 0
        if is_due and not self._after:
            self._cancel()
        try:
            async with super().around(call) as tally:
                yield tally
        finally:
            if is_due and self._after:
                self._cancel()

    def _cancel(self) -> None:
        self.fired = True
        self._scope.cancel()


# Cancelled after a call is cancelled before the next one, but where calls run at the same time.
@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["before", "after"])
async def test_cancelled_at_any_call(stage: Stage, watch: Watch, after: bool) -> None:
    caught = 0
    for n in nth_calls(await stage.prepare()):
        base_dir = stage.fresh(f"cancelled-{n}")
        async with opened(base_dir) as local:
            with anyio.CancelScope() as scope:
                cancelling = CancelAt(local, scope, n, after=after)
                await stage.pack(cancelling, stage.manifest)
            assert cancelling.fired
            caught += scope.cancelled_caught
        await watch.check()
        await stage.check_after_trouble(base_dir)
    assert caught > 10


@pytest.mark.parametrize("effect", ["fail", pytest.param("cancel", marks=pytest.mark.soak)])
async def test_many_shards_stopped_anywhere(
    tmp_path: Path, sources: Sources, watch: Watch, effect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several shards at once, each with several batches ahead: what is under way elsewhere ends too."""
    monkeypatch.setattr(PackJob, "limits", THREE_SHARDS)
    monkeypatch.setattr("des.pack.workshop.BATCH_FILES", 3)
    files = {f"file-{number}": os.urandom(50 * number) for number in range(60)} | {"big": os.urandom(LARGE_BYTES + 1)}
    manifest = sources.manifest(sources.rows(files))
    failure = StorageUnavailableError("gone")
    async with opened(tmp_path / "counted") as local:
        counting = FaultyStorage(local, [])
        await Run().pack(counting, manifest, n_bits=2, max_segment_bytes=20_000)
    caught = 0
    for n in range(3, counting.seen - 5, counting.seen // 15):
        base_dir = tmp_path / f"store-{n}"
        async with opened(base_dir) as local:
            pack = partial(Run().pack, n_bits=2, max_segment_bytes=20_000)
            if effect == "fail":
                faulty = FaultyStorage(local, [Fault(Fail(failure), at=n)])
                _, error = await outcome_of(pack(faulty, manifest))
                assert error in {None, failure}
                caught += error is failure
                assert faulty.fired
            else:
                with anyio.CancelScope() as scope:
                    await pack(CancelAt(local, scope, n, after=n % 2 == 0), manifest)
                caught += scope.cancelled_caught
        await watch.check()
        assert leftovers(base_dir) == []
        run = await pack_into(base_dir, manifest, n_bits=2)
        assert run.report.failed == 0
        await check_store(base_dir, files)
    assert caught > 10


async def test_a_shard_that_fails_for_good_stops_no_other(base_dir: Path, sources: Sources) -> None:
    class Full(StorageWrapper):
        @asynccontextmanager
        async def around(self, call: Call) -> AsyncIterator[Tally]:
            if call.verb == "open_writer" and "/0/" in call.key:
                raise DESError("of this shard alone")
            async with super().around(call) as tally:
                yield tally

    files = {uid: b"x" for index in (0, 1) for uid in names_of_one_shard(3, index=index)}
    run = Run()
    async with opened(base_dir) as local:
        await run.pack(Full(local), sources.manifest(sources.rows(files)))
    assert run.counts == (3, 0, 3)
    assert {row["error"] for row in run.failures} == {"of this shard alone"}


async def test_no_thread_waits_for_a_pipe(base_dir: Path, sources: Sources, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = threading.active_count()
    run = await pack_into(base_dir, sources.manifest([sources.row("a", b"") | {"source_path": str(tmp_path / "pipe")}]))
    assert run.counts == (0, 0, 1)
    assert "not a regular file" in run.failures[0]["error"]
    assert threading.active_count() <= before + 4
