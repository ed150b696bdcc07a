from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread

from des.errors import (
    StorageDeniedError,
    StorageError,
    StorageUnavailableError,
)
from des.storage.local import LocalStorage
from des.storage.open_files import OwnedFile
from des.storage.protocol import IfAbsent, IfVersion, Level, Overwrite
from tests.storage.contract import KEY, MIB, content, list_keys
from tests.storage.on_disk import CHECKOUT, SEGMENT, OsCalls, files_under, open_files_under, write_whole

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from des.storage.protocol import Storage


@pytest.fixture
def os_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OsCalls:
    return OsCalls(monkeypatch, tmp_path)


class TestDurability:
    @pytest.mark.parametrize(
        ("write", "locks"),
        [
            (lambda storage, key, data: storage.put(key, data, IfAbsent()), ["mkdir store/.locks", "fsync store"]),
            (write_whole, []),
        ],
        ids=["put", "writer"],
    )
    async def test_write_sync_rename_sync(
        self,
        local: LocalStorage,
        os_calls: OsCalls,
        write: Callable[[Storage, str, bytes], Awaitable[None]],
        locks: list[str],
    ) -> None:
        await write(local, SEGMENT, b"data")
        assert [line for line in os_calls.log if not line.startswith("open")] == [
            "mkdir store",
            "fsync .",
            *locks,
            "mkdir store/20240131",
            "fsync store",
            "mkdir store/20240131/0A",
            "fsync store/20240131",
            "write <temporary>",
            "fsync <temporary>",
            "replace <temporary>",
            "fsync store/20240131/0A",
        ]

    async def test_lock_compare_write_unlock(
        self, local: LocalStorage, os_calls: OsCalls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version = await local.put(KEY, b"1", IfAbsent())
        flock = fcntl.flock

        def watched(number: int, operation: int) -> None:
            os_calls.log.append({fcntl.LOCK_EX: "lock", fcntl.LOCK_UN: "unlock"}[operation])
            flock(number, operation)

        monkeypatch.setattr(fcntl, "flock", watched)
        os_calls.arm()
        await local.put(KEY, b"2", IfVersion(version))
        log = [
            line
            for line in os_calls.log
            if not line.startswith(("open store/.locks", "open <", "mkdir", "fsync store"))
        ]
        assert log == [
            "lock",
            f"open store/{KEY}",
            "write <temporary>",
            "fsync <temporary>",
            "replace <temporary>",
            "open store/20240131",
            "unlock",
        ]

    async def test_each_process_syncs_the_way_to_a_directory_once(self, base: Path, os_calls: OsCalls) -> None:
        first, second = LocalStorage(base), LocalStorage(base)
        await first.put(SEGMENT, b"1", Overwrite())
        os_calls.arm()
        await second.put(SEGMENT, b"2", Overwrite())
        assert {"fsync store", "fsync store/20240131"} <= set(os_calls.log), "the maker may not have synced it yet"
        os_calls.arm()
        await second.put(SEGMENT, b"3", Overwrite())
        assert [line for line in os_calls.log if line.startswith("fsync")] == [
            "fsync <temporary>",
            "fsync store/20240131/0A",
        ]

    async def test_deletion_is_synced(self, local: LocalStorage, os_calls: OsCalls) -> None:
        await local.put(SEGMENT, b"1", Overwrite())
        await local.put(SEGMENT + "2", b"1", Overwrite())
        os_calls.arm()
        await local.delete(SEGMENT)
        assert os_calls.log[-1] == "fsync store/20240131/0A"

    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (errno.ENOSPC, StorageUnavailableError),
            (errno.EIO, StorageUnavailableError),
            (errno.EDQUOT, StorageUnavailableError),
            (errno.EROFS, StorageDeniedError),
            (errno.EACCES, StorageDeniedError),
        ],
    )
    @pytest.mark.parametrize("existing", [False, True], ids=["new", "replacing"])
    async def test_put_that_fails_at_any_call(
        self, base: Path, os_calls: OsCalls, number: int, expected: type[StorageError], existing: bool
    ) -> None:
        os_calls.fail_with = number
        if existing:
            await LocalStorage(base).put(KEY, b"old", IfAbsent())
        for step in range(1, 100):
            storage = LocalStorage(base)  # does not know yet which directories last
            os_calls.arm(fail_at=step)
            try:
                await storage.put(KEY, b"new", Overwrite())
            except expected as error:
                sentence = str(error)
            else:
                assert len(os_calls.log) < step, "a failure was swallowed"
                break
            assert os.strerror(number) in sentence
            assert str(base) in sentence
            is_in_place = "replace <temporary>" in os_calls.log[:-1]
            expected_files = {KEY} if existing or is_in_place else set()
            os_calls.arm()
            assert files_under(base) == expected_files
            if expected_files:
                assert (base / KEY).read_bytes() == (b"new" if is_in_place else b"old")
            if not existing:
                await storage.delete(KEY)
                assert await storage.list_level("") == Level((), ())
            elif is_in_place:
                await storage.put(KEY, b"old", Overwrite())
        assert step > 8
        assert (base / KEY).read_bytes() == b"new"

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
    async def test_writer_that_fails_at_any_call(self, base: Path, os_calls: OsCalls, number: int) -> None:
        os_calls.fail_with = number
        data = content(3 * MIB)
        for step in range(1, 100):
            storage = LocalStorage(base)
            os_calls.arm(fail_at=step)
            try:
                await write_whole(storage, SEGMENT, data)
            except (StorageUnavailableError, StorageDeniedError):
                os_calls.arm()
                assert files_under(base) == set()
                assert await storage.list_level("") == Level((), ())
            else:
                assert len(os_calls.log) < step
                break
        assert step > 8
        assert (base / SEGMENT).read_bytes() == data

    async def test_writer_does_not_complete_after_a_failure_that_its_user_ignored(
        self, local: LocalStorage, base: Path, os_calls: OsCalls
    ) -> None:
        async def ignore_failure() -> None:
            async with local.open_writer(SEGMENT) as writer:
                os_calls.arm(fail_at=1)
                with pytest.raises(StorageUnavailableError):
                    await writer.write(content(2 * MIB))
                os_calls.arm()

        with pytest.raises(StorageUnavailableError, match="earlier part"):
            await ignore_failure()
        assert files_under(base) == set()

    async def test_kill_at_any_call(self, tmp_path: Path) -> None:
        done = await anyio.run_process(
            [sys.executable, "-c", DYING_WRITERS, str(tmp_path), KEY], cwd=CHECKOUT, stderr=None
        )
        statuses = [int(line) for line in done.stdout.split()]
        assert len(statuses) > 8
        assert statuses == [-signal.SIGKILL] * (len(statuses) - 1) + [0]
        seen: set[bytes] = set()
        for step, status in enumerate(statuses, start=1):
            local = LocalStorage(tmp_path / str(step))
            suffix = await local.read_suffix(KEY, 100)
            assert suffix is not None
            assert suffix.data in ({b"old", b"new"} if status else {b"new"})
            assert await list_keys(local) == [KEY]
            await local.put(KEY, b"newer", IfVersion(suffix.version))
            seen.add(suffix.data)
        assert seen == {b"old", b"new"}


DYING_WRITERS = """
import asyncio, itertools, os, signal, sys
from pathlib import Path
from des.storage.local import LocalStorage
from des.storage.protocol import IfAbsent, Overwrite

def dying(act, steps, last):
    def call(*args, **kwargs):
        if next(steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return act(*args, **kwargs)
    return call

async def write(base, last):
    await LocalStorage(base).put(sys.argv[2], b"old", IfAbsent())
    steps = itertools.count(1)
    for name in ("close", "fsync", "mkdir", "open", "replace", "write"):
        setattr(os, name, dying(getattr(os, name), steps, last))
    await LocalStorage(base).put(sys.argv[2], b"new", Overwrite())

for last in range(1, 100):
    child = os.fork()
    if child == 0:
        asyncio.run(write(Path(sys.argv[1], str(last)), last))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
    if status == 0:
        break
"""


class TestCancellation:
    """Cancelled by the event loop itself, which does not wait for worker threads as anyio's scopes do."""

    async def test_writer_cancelled_while_a_thread_writes(
        self, local: LocalStorage, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entered, go_on = threading.Event(), threading.Event()
        write = os.write

        def slow_write(number: int, data: bytes) -> int:
            entered.set()
            go_on.wait()
            return write(number, data)

        monkeypatch.setattr(os, "write", slow_write)
        task = asyncio.create_task(write_whole(local, SEGMENT, content(2 * MIB)))
        await to_thread.run_sync(entered.wait)
        task.cancel()
        await anyio.lowlevel.checkpoint()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert files_under(base) == set()
        assert open_files_under(base) == []

    @pytest.mark.parametrize("step", ["open", "replace", "fsync"])
    async def test_writer_cancelled_while_a_thread_is_at(
        self, local: LocalStorage, base: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        await local.put(KEY, b"1", Overwrite())
        entered, go_on = threading.Event(), threading.Event()
        act = getattr(os, step)

        def slow(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands for any call
            entered.set()
            go_on.wait()
            return act(*args, **kwargs)

        monkeypatch.setattr(os, step, slow)
        task = asyncio.create_task(write_whole(local, SEGMENT, b"data"))
        await to_thread.run_sync(entered.wait)
        task.cancel()
        await anyio.lowlevel.checkpoint()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert files_under(base) == {KEY}
        assert open_files_under(base) == []

    async def test_stream_cancelled_while_a_thread_reads(
        self, local: LocalStorage, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await local.put(SEGMENT, content(MIB), Overwrite())
        entered, go_on, done = threading.Event(), threading.Event(), threading.Event()
        seen: list[bytes] = []

        def slow_read(self: OwnedFile, size: int) -> bytes:
            entered.set()
            go_on.wait()
            seen.append(os.pread(self.fileno(), size, 0))
            done.set()
            return seen[0]

        monkeypatch.setattr(OwnedFile, "read", slow_read)

        async def read() -> None:
            async with local.stream_range(SEGMENT, 0, MIB) as pieces:
                await anext(pieces)

        task = asyncio.create_task(read())
        await to_thread.run_sync(entered.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        assert len(open_files_under(base)) == 1, "the thread still reads from it"
        go_on.set()
        await to_thread.run_sync(done.wait)
        assert content(MIB).startswith(seen[0])
