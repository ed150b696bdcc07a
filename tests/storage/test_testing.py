from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from des.errors import ObjectNotFoundError, PreconditionFailedError, StorageTimeoutError, StorageUnavailableError
from des.storage.local import LocalStorage
from des.storage.protocol import IfAbsent, IfVersion, Overwrite
from des.storage.testing import (
    Call,
    Delay,
    Fail,
    Fault,
    FaultyStorage,
    Hold,
    LoseReply,
    RecordingStorage,
    ScheduledStorage,
    Scheduler,
    StorageWrapper,
    Tally,
    Tear,
)
from tests.storage.contract import KEY, StorageContract, content, list_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from des.storage.protocol import Storage
    from des.storage.wrapper import Verb

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def inner(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


class TestWrappedStorage(StorageContract):
    """A wrapper with nothing planned changes nothing, and wrappers wrap each other."""

    LISTED = 20

    @pytest.fixture
    async def storage(self, inner: LocalStorage) -> Storage:
        return ScheduledStorage(FaultyStorage(RecordingStorage(inner), []), Scheduler(0), "nobody")


def files_under(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def write_parts(storage: Storage) -> None:
    async with storage.open_writer(KEY) as writer:
        await writer.write(b"12")
        await writer.write(b"345")


class TestRecording:
    async def test_each_call_with_what_it_moved(self, inner: LocalStorage) -> None:
        storage = RecordingStorage(inner)
        version = await storage.put(KEY, b"0123456789", IfAbsent())
        await storage.read_suffix(KEY, 4)
        await storage.read_suffix(KEY, 4, unless=version)
        await storage.read_range(KEY, 2, 100, version=version, purpose="index")
        async with storage.stream_range(KEY, 1, 4) as pieces:
            assert [piece async for piece in pieces] == [b"123"]
        await storage.head(KEY)
        await list_keys(storage, "2024")
        await storage.list_level("")
        await storage.check_conditional_writes(KEY)
        await storage.delete(KEY)
        assert storage.calls == [
            Call("put", KEY, size=10),
            Call("read_suffix", KEY, start=-4, purpose="footer", size=4),
            Call("read_suffix", KEY, start=-4, purpose="footer"),
            Call("read_range", KEY, 2, 100, "index", 8),
            Call("stream_range", KEY, 1, 4, "payload"),
            Call("piece", KEY, 1, 4, "payload", 3),
            Call("piece", KEY, 1, 4, "payload", 0),
            Call("head", KEY),
            Call("list", "2024"),
            Call("list_level", ""),
            Call("check_conditional_writes", KEY),
            Call("delete", KEY),
        ]

    async def test_parts_of_a_writer(self, inner: LocalStorage) -> None:
        storage = RecordingStorage(inner)
        await write_parts(storage)
        assert storage.calls == [
            Call("open_writer", KEY),
            Call("write", KEY, size=2),
            Call("write", KEY, size=3),
            Call("commit", KEY),
        ]

    async def test_failed_calls_too(self, inner: LocalStorage) -> None:
        storage = RecordingStorage(inner)
        with pytest.raises(ObjectNotFoundError):
            await storage.read_range(KEY, 0, 1)
        with pytest.raises(PreconditionFailedError):
            await storage.put(KEY, b"1", IfVersion("1"))
        assert storage.calls == [Call("read_range", KEY, 0, 1, "payload"), Call("put", KEY)]

    async def test_questions(self, inner: LocalStorage) -> None:
        storage = RecordingStorage(inner)
        await storage.put(KEY, b"0123456789", IfAbsent())
        await storage.put("des.json", b"{}", IfAbsent())
        await storage.read_range(KEY, 0, 3, purpose="index")
        await storage.read_range(KEY, 3, 7, purpose="payload")
        await storage.read_suffix(KEY, 2)
        assert storage.count() == 5
        assert storage.count(verb="put") == storage.count(verb="read_range") == 2
        assert storage.count(verb="put", key=KEY) == 1
        assert storage.count(purpose="index") == storage.count(verb="read_range", purpose="payload") == 1
        assert storage.moved(verb="read_range") == 7
        assert storage.moved(purpose="footer") == 2
        assert storage.select(key="des.json") == [Call("put", "des.json", size=2)]


class TestFaults:
    async def test_failure_at_the_nth_call_that_matches(self, inner: LocalStorage) -> None:
        fault = Fault(Fail(StorageUnavailableError("disk")), at=2, verb="put", key=lambda key: key.startswith("2024"))
        storage = FaultyStorage(inner, [fault])
        await storage.put("2024/1", b"1", IfAbsent())
        await storage.put("des.json", b"1", IfAbsent())
        await storage.head("2024/1")
        with pytest.raises(StorageUnavailableError, match="disk"):
            await storage.put("2024/2", b"1", IfAbsent())
        await storage.put("2024/3", b"1", IfAbsent())
        assert await list_keys(inner) == ["2024/1", "2024/3", "des.json"]
        assert storage.fired == [Call("put", "2024/2")]
        assert storage.seen == 5

    async def test_every_call(self, inner: LocalStorage) -> None:
        storage = FaultyStorage(inner, [Fault(Fail(StorageUnavailableError("down")), at=None)])
        for _ in range(3):
            with pytest.raises(StorageUnavailableError):
                await storage.put(KEY, b"1", Overwrite())
        assert await list_keys(inner) == []
        assert len(storage.fired) == 3

    async def test_lost_reply_takes_effect(self, inner: LocalStorage) -> None:
        storage = FaultyStorage(inner, [Fault(LoseReply(), verb="put")])
        with pytest.raises(StorageTimeoutError):
            await storage.put(KEY, b"1", IfAbsent())
        assert await inner.read_range(KEY, 0, 10) == b"1"
        assert storage.fired

    async def test_lost_reply_of_a_refusal_is_the_refusal(self, inner: LocalStorage) -> None:
        await inner.put(KEY, b"1", IfAbsent())
        storage = FaultyStorage(inner, [Fault(LoseReply())])
        with pytest.raises(PreconditionFailedError):
            await storage.put(KEY, b"2", IfAbsent())

    async def test_torn_writes_and_reads(self, inner: LocalStorage) -> None:
        plan = [Fault(Tear(2), verb="put"), Fault(Tear(2), verb="write", at=2), Fault(Tear(1), verb="read_range")]
        plan += [Fault(Tear(1), verb="read_suffix"), Fault(Tear(1), verb="piece")]
        storage = FaultyStorage(inner, plan)
        await storage.put("20240131/0.des", b"12345", IfAbsent())
        await write_parts(storage)
        assert await storage.read_range(KEY, 0, 10) == b"1"
        assert await storage.read_range(KEY, 0, 10) == b"1234"
        suffix = await storage.read_suffix("20240131/0.des", 10)
        assert suffix is not None
        assert (suffix.data, suffix.total_size) == (b"1", 2)
        async with storage.stream_range(KEY, 1, 4) as pieces:
            assert [piece async for piece in pieces] == [b"2"]
        assert [call.verb for call in storage.fired] == ["put", "write", "read_range", "read_suffix", "piece"]

    async def test_torn_write_that_is_told(self, inner: LocalStorage) -> None:
        storage = FaultyStorage(inner, [Fault(Tear(2, StorageUnavailableError("torn")))])
        with pytest.raises(StorageUnavailableError):
            await storage.put(KEY, b"12345", IfAbsent())
        assert await inner.read_range(KEY, 0, 10) == b"12"

    async def test_delayed_call(self, inner: LocalStorage) -> None:
        storage = FaultyStorage(inner, [Fault(Delay(3600), verb="put")])
        with anyio.move_on_after(0.01) as scope:
            await storage.put(KEY, b"1", IfAbsent())
        assert scope.cancelled_caught
        assert await list_keys(inner) == []
        await storage.put(KEY, b"1", IfAbsent())
        assert len(storage.fired) == 1

    async def test_lasting_failure(self, inner: LocalStorage) -> None:
        storage = FaultyStorage(inner, [Fault(Fail(StorageUnavailableError("gone")), at=2, verb="head", lasting=True)])
        await inner.put(KEY, b"1", IfAbsent())
        await storage.head(KEY)
        for _ in range(3):
            with pytest.raises(StorageUnavailableError):
                await storage.head(KEY)
        assert await storage.read_range(KEY, 0, 1) == b"1"
        assert len(storage.fired) == 3

    async def test_held_call(self, inner: LocalStorage) -> None:
        hold = Hold()
        storage = FaultyStorage(inner, [Fault(hold, verb="put")])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(storage.put, KEY, b"1", IfAbsent())
            await hold.reached.wait()
            assert await list_keys(storage) == []
            hold.release.set()
        assert await list_keys(storage) == [KEY]

    @pytest.mark.parametrize("verb", ["open_writer", "write", "commit"])
    async def test_writer_that_fails_leaves_nothing(self, inner: LocalStorage, tmp_path: Path, verb: Verb) -> None:
        storage = FaultyStorage(inner, [Fault(Fail(StorageUnavailableError("disk")), verb=verb)])
        with pytest.raises(StorageUnavailableError):
            await write_parts(storage)
        assert storage.fired
        assert files_under(tmp_path) == []

    async def test_lost_reply_of_a_commit(self, inner: LocalStorage) -> None:
        storage = FaultyStorage(inner, [Fault(LoseReply(), verb="commit")])
        with pytest.raises(StorageTimeoutError):
            await write_parts(storage)
        assert await inner.read_range(KEY, 0, 10) == b"12345"

    async def test_failure_in_a_stream(self, inner: LocalStorage) -> None:
        await inner.put(KEY, content(600_000), IfAbsent())
        storage = FaultyStorage(inner, [Fault(Fail(StorageUnavailableError("cut")), verb="piece", at=2)])
        received: list[bytes] = []

        async def read() -> None:
            async with storage.stream_range(KEY, 0, 600_000) as pieces:
                async for piece in pieces:
                    received.append(piece)  # noqa: PERF401 - what came before the failure is the point

        with pytest.raises(StorageUnavailableError):
            await read()
        assert len(received) == 1

    @pytest.mark.parametrize("after", [False, True])
    async def test_killed_process(self, inner: LocalStorage, after: bool) -> None:
        command = [sys.executable, "-c", DYING_WRITER, inner.address, KEY, str(after)]
        done = await anyio.run_process(command, cwd=CHECKOUT, check=False)
        assert done.returncode == -9, done.stderr.decode()
        assert await list_keys(inner) == ([KEY] if after else [])


DYING_WRITER = """
import asyncio, sys
from pathlib import Path
from des.storage.local import LocalStorage
from des.storage.testing import Fault, FaultyStorage, Kill

async def write():
    storage = FaultyStorage(LocalStorage(Path(sys.argv[1])), [Fault(Kill(after=sys.argv[3] == "True"), verb="commit")])
    async with storage.open_writer(sys.argv[2]) as writer:
        await writer.write(b"data")

asyncio.run(write())
"""


class TestScheduler:
    async def test_whoever_went_last_goes_on_where_that_is_asked_for(self, inner: LocalStorage) -> None:
        await inner.put(KEY, b"0", Overwrite())
        for seed in range(5):
            scheduler = Scheduler(seed, persistence=1)

            async def look(storage: Storage) -> None:
                for _ in range(4):
                    await storage.head(KEY)

            first, second = (ScheduledStorage(inner, scheduler, name) for name in ("first", "second"))
            await scheduler.run({"first": partial(look, first), "second": partial(look, second)})
            names = [line.partition(":")[0] for line in scheduler.trace]
            assert names in (["first"] * 4 + ["second"] * 4, ["second"] * 4 + ["first"] * 4)

    async def count_together(self, inner: LocalStorage, seed: int) -> tuple[list[str], int, bytes]:
        """Two participants increment a counter by plain writes, so that some schedules lose an increment."""
        await inner.put(KEY, b"0", Overwrite())
        scheduler = Scheduler(seed)
        recording = RecordingStorage(inner)

        def participant(name: str) -> Callable[[], Awaitable[None]]:
            storage = ScheduledStorage(recording, scheduler, name)

            async def increment() -> None:
                for _ in range(2):
                    value = int(await storage.read_range(KEY, 0, 10, version=(await storage.head(KEY)).version))
                    await storage.put(KEY, b"%d" % (value + 1), Overwrite())

            return increment

        try:
            await scheduler.run({"a": participant("a"), "b": participant("b")})
        except* PreconditionFailedError:
            pass
        return (
            scheduler.trace,
            recording.count(),
            await inner.read_range(KEY, 0, 10, version=(await inner.head(KEY)).version),
        )

    async def test_a_seed_repeats_its_schedule(self, inner: LocalStorage) -> None:
        for seed in range(10):
            assert await self.count_together(inner, seed) == await self.count_together(inner, seed)

    async def test_seeds_reach_different_outcomes(self, inner: LocalStorage) -> None:
        outcomes = [await self.count_together(inner, seed) for seed in range(30)]
        assert len({tuple(trace) for trace, _, _ in outcomes}) > 15
        assert len({value for _, _, value in outcomes}) > 1, "no schedule lost an increment"
        assert {line for trace, _, _ in outcomes for line in trace} >= {f"a: head {KEY}", f"b: put {KEY}"}

    async def test_one_call_runs_at_a_time(self, inner: LocalStorage) -> None:
        scheduler = Scheduler(1)
        running: list[str] = []

        class Watching(StorageWrapper):
            @asynccontextmanager
            async def around(self, call: Call) -> AsyncIterator[Tally]:
                running.append(call.key)
                assert len(running) == 1
                yield Tally()
                running.remove(call.key)

        await inner.put(KEY, b"1", IfAbsent())

        async def look(storage: Storage) -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(storage.head, KEY)

        storages = {name: ScheduledStorage(Watching(inner), scheduler, name) for name in "abc"}
        await scheduler.run({name: partial(look, storage) for name, storage in storages.items()})
        assert len(scheduler.trace) == 15

    async def test_who_finishes_or_fails_quietly_holds_nobody_up(self, inner: LocalStorage) -> None:
        scheduler = Scheduler(3)
        a, b, c = (ScheduledStorage(inner, scheduler, name) for name in "abc")

        async def fail_early() -> None:
            with pytest.raises(ObjectNotFoundError):
                await a.head("nothing")

        async def never_call() -> None:
            await anyio.lowlevel.checkpoint()

        async def go_on() -> None:
            for _ in range(5):
                await b.list_level("")

        await scheduler.run({"a": fail_early, "b": go_on, "c": never_call})
        assert scheduler.trace.count("b: list_level ") == 5
        await c.list_level("")  # after the run nobody waits

    async def test_failure_ends_all_and_names_the_schedule(self, inner: LocalStorage) -> None:
        scheduler = Scheduler(4)
        a, b = (ScheduledStorage(inner, scheduler, name) for name in "ab")

        async def fail() -> None:
            await a.head("nothing")

        async def go_on() -> None:
            while True:
                await b.list_level("")

        with pytest.raises(ExceptionGroup) as caught:
            await scheduler.run({"a": fail, "b": go_on})
        assert caught.group_contains(ObjectNotFoundError)
        (note,) = caught.value.__notes__
        assert note.startswith("Schedule of seed 4:")
        assert "a: head nothing" in note

    async def test_cancelled_calls_hold_nobody_up(self, inner: LocalStorage) -> None:
        scheduler = Scheduler(5)
        a, b = (ScheduledStorage(inner, scheduler, name) for name in "ab")
        parked = anyio.Event()

        async def give_up() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(a.list_level, "")
                await parked.wait()
                tasks.cancel_scope.cancel()

        async def go_on() -> None:
            await anyio.wait_all_tasks_blocked()
            parked.set()
            await b.list_level("")

        await scheduler.run({"a": give_up, "b": go_on})
        assert "b: list_level " in scheduler.trace

    async def test_a_participant_may_make_several_calls_at_once(self, inner: LocalStorage) -> None:
        scheduler = Scheduler(6)
        a, b = (ScheduledStorage(inner, scheduler, name) for name in "ab")

        async def fan_out(storage: Storage, name: str) -> None:
            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(storage.put, f"{name}/{number}", b"1", IfAbsent())

        await scheduler.run({"a": lambda: fan_out(a, "a"), "b": lambda: fan_out(b, "b")})
        assert len(await list_keys(inner)) == len(scheduler.trace) == 10
