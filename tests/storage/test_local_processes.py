from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
from subprocess import PIPE
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread

from des.errors import (
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageUnavailableError,
)
from des.storage.local import LocalStorage
from des.storage.protocol import IfAbsent, IfVersion, Overwrite
from tests.storage.contract import KEY, StorageContract, content, list_keys
from tests.storage.on_disk import CHECKOUT, SEGMENT, files_under, names_in, write_whole

if TYPE_CHECKING:
    from pathlib import Path


class TestProcesses:
    async def test_two_processes_lose_no_update(self, local: LocalStorage) -> None:
        await local.put(KEY, b"0", IfAbsent())

        async def count() -> None:
            command = [sys.executable, "-c", COUNTER, local.address, KEY, "10"]
            await anyio.run_process(command, cwd=CHECKOUT, stderr=None)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            tasks.start_soon(count)
        suffix = await local.read_suffix(KEY, 64)
        assert suffix is not None
        assert suffix.data == b"20"

    async def test_lock_of_another_process_is_waited_for_off_the_loop(
        self, local: LocalStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await local.put(SEGMENT, content(1000), Overwrite())
        is_waiting = threading.Event()
        flock = fcntl.flock

        def watched_flock(number: int, operation: int) -> None:
            is_waiting.set()
            flock(number, operation)

        monkeypatch.setattr(fcntl, "flock", watched_flock)
        outcomes: list[bool] = []

        async def put(number: int) -> None:
            try:
                await local.put(KEY, b"%d" % number, IfAbsent())
            except PreconditionFailedError:
                outcomes.append(False)
            else:
                outcomes.append(True)

        command = [sys.executable, "-c", LOCK_HOLDER, local.address, KEY]
        async with await anyio.open_process(command, stdin=PIPE, stdout=PIPE, stderr=None, cwd=CHECKOUT) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert (await holder.stdout.receive()).startswith(b"held")
            async with anyio.create_task_group() as tasks:
                for number in range(100):
                    tasks.start_soon(put, number)
                await to_thread.run_sync(is_waiting.wait)
                # More wait than there are threads, and yet all that needs no lock goes on.
                assert await local.read_range(SEGMENT, 0, 2000) == content(1000)
                assert (await local.head(SEGMENT)).size == 1000
                await write_whole(local, SEGMENT + "2", b"data")
                assert await list_keys(local) == [SEGMENT, SEGMENT + "2"]
                assert outcomes == []
                await holder.stdin.send(b"\n")
        assert (outcomes.count(True), outcomes.count(False)) == (1, 99)

    async def test_many_writers_share_one_thread(self, local: LocalStorage) -> None:
        to_thread.current_default_thread_limiter().total_tokens = 1
        version = await local.put(KEY, b"first", IfAbsent())
        refused: list[PreconditionFailedError] = []

        async def swap(number: int) -> None:
            try:
                await local.put(KEY, b"%d" % number, IfVersion(version))
            except PreconditionFailedError as error:
                refused.append(error)
            await write_whole(local, f"{number}", b"data")

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(swap, number)
        assert len(refused) == 49

    async def test_directories_come_and_go_under_two_writers(self, base: Path) -> None:
        async def write_and_delete(storage: LocalStorage, name: str) -> None:
            for _ in range(40):
                await storage.put(f"20240131/0A/{name}", b"1", IfAbsent())
                await storage.delete(f"20240131/0A/{name}")

        async with anyio.create_task_group() as tasks:
            for name in ("a", "b", "c"):
                tasks.start_soon(write_and_delete, LocalStorage(base), name)
        assert names_in(base) == [".locks"]


COUNTER = """
import asyncio, sys
from pathlib import Path
from des.errors import PreconditionFailedError
from des.storage.local import LocalStorage
from des.storage.protocol import IfVersion

async def count():
    storage = LocalStorage(Path(sys.argv[1]))
    counted = 0
    while counted < int(sys.argv[3]):
        suffix = await storage.read_suffix(sys.argv[2], 64)
        try:
            await storage.put(sys.argv[2], b"%d" % (int(suffix.data) + 1), IfVersion(suffix.version))
        except PreconditionFailedError:
            continue
        counted += 1

asyncio.run(count())
"""

LOCK_HOLDER = """
import sys
from pathlib import Path
from des.storage.locks import KeyLocks
from des.storage.publishing import Directories

base = Path(sys.argv[1])
with KeyLocks(base / ".locks", Directories(base), single_writer=False).hold(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.readline()
"""


class TestProbe:
    async def test_locks_that_do_not_lock(self, local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        await local.put("des.json", b"{}", IfAbsent())
        monkeypatch.setattr(fcntl, "flock", lambda number, operation: None)
        with pytest.raises(SettingsError, match=r"not kept out.*NFS.*DES_SINGLE_WRITER=true"):
            await local.check_conditional_writes("des.json")

    async def test_locks_that_are_never_let_go(self, local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        await local.put("des.json", b"{}", IfAbsent())
        flock = fcntl.flock
        monkeypatch.setattr(
            fcntl, "flock", lambda number, operation: None if operation == fcntl.LOCK_UN else flock(number, operation)
        )
        with pytest.raises(SettingsError, match=r"did not get a lock.*DES_SINGLE_WRITER=true"):
            await local.check_conditional_writes("des.json")

    async def test_no_locks_at_all(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(number: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", fail)
        with pytest.raises(SettingsError, match="DES_SINGLE_WRITER=true"):
            await LocalStorage(base).check_conditional_writes("des.json")
        with pytest.raises(StorageUnavailableError):
            await LocalStorage(base).put(KEY, b"1", IfAbsent())
        assert files_under(base) == set()

    async def test_single_writer_needs_no_locks(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(number: int, operation: int) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(fcntl, "flock", fail)
        storage = LocalStorage(base, single_writer=True)
        await StorageContract().test_one_of_many_writers_wins(storage, existing=False)

    async def test_conditions_that_do_not_hold(self, local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        await local.put("des.json", b"{}", IfAbsent())
        monkeypatch.setattr("des.storage.local._check", lambda path, mode: None)
        with pytest.raises(SettingsError, match="IfAbsent"):
            await local.check_conditional_writes("des.json")

    async def test_nothing_is_left_behind(self, local: LocalStorage, base: Path) -> None:
        await local.put("des.json", b"{}", IfAbsent())
        await local.check_conditional_writes("des.json")
        assert files_under(base) == {"des.json"}

    async def test_a_missing_object_is_named(self, local: LocalStorage) -> None:
        with pytest.raises(ObjectNotFoundError):
            await local.check_conditional_writes("des.json")
