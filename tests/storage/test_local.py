from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread
from blockbuster import BlockingError

from des.errors import (
    InvalidRequestError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageDeniedError,
    StorageError,
    StorageUnavailableError,
)
from des.storage.local import INLINE_BYTES, LocalStorage
from des.storage.open_files import Descriptor, DescriptorCache, OwnedFile
from des.storage.protocol import IfAbsent, IfVersion, Level, Overwrite
from tests.storage.contract import KEY, MIB, StorageContract, content, list_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from des.storage.protocol import Storage

CHECKOUT = Path(__file__).parents[2]
SEGMENT = "20240131/0A/0123456789abcdef0123456789abcdef.des"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def local(base: Path) -> AsyncIterator[LocalStorage]:
    storage = LocalStorage(base)
    yield storage
    await storage.aclose()


class TestLocalStorage(StorageContract):
    LISTED = 60

    @pytest.fixture
    async def storage(self, local: LocalStorage) -> Storage:
        return local


def files_under(base: Path) -> set[str]:
    """All files but the locks."""
    found = {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(".lock")}


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def open_files_under(base: Path) -> list[str]:
    gc.collect()
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(descriptor.readlink()))
    return [link for link in links if link.startswith(str(base))]


async def write_whole(storage: Storage, key: str, data: bytes) -> None:
    async with storage.open_writer(key) as writer:
        await writer.write(data)


class OsCalls:
    """What the storage asks of the operating system under one directory, and a failure of one of these calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.log: list[str] = []
        self.fail_at: int | None = None
        self.fail_with = errno.EIO
        self._root = root
        for name in ("fsync", "mkdir", "open", "replace", "write"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands for any call
            where = Path(f"/proc/self/fd/{args[0]}").readlink() if isinstance(args[0], int) else args[0]
            if str(where).startswith(str(self._root)):
                relative = os.path.relpath(where, self._root)
                self.log.append(f"{name} {'<temporary>' if '.des-tmp-' in relative else relative}")
                if len(self.log) == self.fail_at:
                    raise OSError(self.fail_with, os.strerror(self.fail_with), str(where))
            return call(*args, **kwargs)

        return watched

    def arm(self, fail_at: int | None = None) -> None:
        self.log.clear()
        self.fail_at = fail_at


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
        await TestLocalStorage().test_one_of_many_writers_wins(storage, existing=False)

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


class TestReading:
    async def test_reading_makes_nothing(self, local: LocalStorage, tmp_path: Path) -> None:
        with pytest.raises(ObjectNotFoundError):
            await local.head(KEY)
        assert await list_keys(local) == []
        assert await local.list_level("20240131/") == Level((), ())
        await local.delete(KEY)
        assert names_in(tmp_path) == []

    async def test_small_warm_reads_need_no_thread(self, local: LocalStorage) -> None:
        data = content(INLINE_BYTES + 1)
        await local.put(SEGMENT, data, Overwrite())
        await local.read_range(SEGMENT, 0, 1)
        limiter = to_thread.current_default_thread_limiter()
        limiter.total_tokens = 1
        limiter.acquire_on_behalf_of_nowait("a thread that never comes back")
        assert await local.read_range(SEGMENT, 100, 4196) == data[100:4196]
        assert await local.read_range(SEGMENT, 1, INLINE_BYTES + 1) == data[1:]
        with anyio.move_on_after(0) as scope:
            await local.read_range(SEGMENT, 0, INLINE_BYTES + 1)
        assert scope.cancelled_caught, "a larger read waits for a thread"

    @pytest.mark.parametrize("outcome", ["nothing cached", "not supported", "partly cached"])
    async def test_what_is_not_cached_is_read_in_a_thread(
        self, local: LocalStorage, monkeypatch: pytest.MonkeyPatch, outcome: str
    ) -> None:
        data = content(5000)
        await local.put(SEGMENT, data, Overwrite())
        await local.read_range(SEGMENT, 0, 1)
        asked: list[int] = []

        def preadv(number: int, buffers: tuple[memoryview], offset: int, flags: int) -> int:
            asked.append(flags)
            if outcome == "nothing cached":
                raise BlockingIOError(errno.EAGAIN, "not now")
            if outcome == "not supported":
                raise OSError(errno.EOPNOTSUPP, "not here")
            buffers[0][:10] = data[offset : offset + 10]
            return 10

        monkeypatch.setattr(os, "preadv", preadv)
        assert await local.read_range(SEGMENT, 1000, 4000) == data[1000:4000]
        assert asked == [os.RWF_NOWAIT]

    async def test_disk_errors_are_not_missing_objects(
        self, local: LocalStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await local.put(SEGMENT, content(1000), Overwrite())

        def fail(*args: object) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "pread", fail)
        monkeypatch.setattr(os, "scandir", fail)
        reads: list[Callable[[], Awaitable[object]]] = [
            lambda: local.read_range(SEGMENT, 0, 1),
            lambda: local.read_suffix(SEGMENT, 1),
            lambda: local.head(SEGMENT),
            lambda: local.list_level(""),
            lambda: list_keys(local),
        ]
        for read in reads:
            with pytest.raises(StorageUnavailableError, match="Input/output error") as caught:
                await read()
            assert isinstance(caught.value.__cause__, OSError)

    async def test_a_part_that_was_read_of_a_large_range_is_completed(
        self, local: LocalStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = content(50_000)
        await local.put(SEGMENT, data, Overwrite())
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda number, size, offset: pread(number, min(size, 999), offset))
        assert await local.read_range(SEGMENT, 7, 49_000) == data[7:49_000]

    async def test_a_range_and_its_version_come_from_one_file(
        self, local: LocalStorage, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version = await local.put(KEY, b"old" * 100, Overwrite())
        (base / "20240131/other").write_bytes(b"new" * 100)
        tag = Descriptor.version

        def replaced_after_the_check(self: Descriptor) -> str:
            found = tag(self)
            (base / "20240131/other").replace(base / KEY)
            return found

        monkeypatch.setattr(Descriptor, "version", replaced_after_the_check)
        assert await local.read_range(KEY, 0, 300, version=version) == b"old" * 100
        monkeypatch.undo()
        with pytest.raises(PreconditionFailedError):
            await local.read_range(KEY, 0, 300, version=version)

    async def test_listing_hides_what_is_no_object(self, local: LocalStorage, base: Path) -> None:
        await local.put(KEY, b"1", Overwrite())
        (base / ".des-tmp-0123").write_bytes(b"left behind")
        (base / "20240131/.des-tmp-4567").write_bytes(b"left behind")
        for number in range(20):
            (base / f"link{number:02}").symlink_to("nowhere")
            (base / f"object{number:02}").write_bytes(b"1")
        os.mkfifo(base / "pipe")
        objects = [f"object{number:02}" for number in range(20)]
        assert await list_keys(local) == [KEY, *objects]
        assert await list_keys(local, ".") == []
        level = await local.list_level("")
        assert [info.key for info in level.objects] == objects
        assert level.prefixes == ("20240131/",)


class TestOpenFiles:
    async def test_kept_open_within_bounds_and_closed_at_the_end(self, local: LocalStorage, base: Path) -> None:
        for number in range(150):
            await local.put(f"20240131/{number}", b"%d" % number, Overwrite())
        for number in range(150):
            assert await local.read_range(f"20240131/{number}", 0, 10) == b"%d" % number
        assert len(open_files_under(base)) == 128
        await local.aclose()
        assert open_files_under(base) == []

    async def test_nothing_else_stays_open(self, local: LocalStorage, base: Path) -> None:
        version = await local.put(KEY, content(MIB), Overwrite())
        await local.read_suffix(KEY, 64)
        await local.read_range(KEY, 0, 64, version=version)
        with pytest.raises(PreconditionFailedError) as caught:
            await local.read_range(KEY, 0, 64, version="other")
        await local.head(KEY)
        async with local.stream_range(KEY, 0, MIB) as pieces:
            await anext(pieces)
            assert len(open_files_under(base)) == 1
        assert open_files_under(base) == []
        del caught  # it was there all the while, with its traceback

    async def test_a_replaced_object_is_opened_anew(self, local: LocalStorage) -> None:
        await local.put(SEGMENT, b"first", Overwrite())
        assert await local.read_range(SEGMENT, 0, 10) == b"first"
        await local.put(SEGMENT, b"second", Overwrite())
        assert await local.read_range(SEGMENT, 0, 10) == b"second"
        await write_whole(local, SEGMENT, b"third")
        assert await local.read_range(SEGMENT, 0, 10) == b"third"
        await local.delete(SEGMENT)
        with pytest.raises(ObjectNotFoundError):
            await local.read_range(SEGMENT, 0, 10)

    def test_least_recently_used_goes_first(self, tmp_path: Path) -> None:
        cache = DescriptorCache(limit=2)
        for name in ("a", "b", "c"):
            (tmp_path / name).write_bytes(b"1")
        cache.add("a", Descriptor(tmp_path / "a"))
        cache.add("b", Descriptor(tmp_path / "b"))
        assert cache.get("a")
        cache.add("c", Descriptor(tmp_path / "c"))
        assert (cache.get("a") is None, cache.get("b") is None, cache.get("c") is None) == (False, True, False)
        assert len(open_files_under(tmp_path)) == len(cache) == 2

    def test_old_files_are_opened_anew(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"1")
        cache = DescriptorCache(max_age=0)
        cache.add("a", Descriptor(tmp_path / "a"))
        assert cache.get("a") is None
        cache.add("a", Descriptor(tmp_path / "a"))
        cache.add("b", Descriptor(tmp_path / "a"))
        assert len(cache) == 1, "old ones make room without being asked for"
        cache.clear()
        assert open_files_under(tmp_path) == []

    def test_a_file_is_closed_after_its_last_reader(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"still there")
        cache = DescriptorCache(limit=1)
        cache.add("a", Descriptor(tmp_path / "a"))
        reader = cache.get("a")
        assert reader is not None
        cache.clear()
        assert reader.read(0, 100) == b"still there"
        del reader
        assert open_files_under(tmp_path) == []

    def test_a_directory_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Descriptor(tmp_path)
        assert open_files_under(tmp_path) == []


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


class TestKeys:
    @pytest.mark.parametrize(
        "key", ["", "/etc/passwd", "../x", "a/../../x", "a/..", ".", "./a", "a//b", "a/", "/", "a\0b", ".locks/00.lock"]
    )
    async def test_a_key_stays_under_the_base(self, local: LocalStorage, tmp_path: Path, key: str) -> None:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: local.read_suffix(key, 1),
            lambda: local.read_range(key, 0, 1),
            lambda: local.read_range(key, 0, 1, version="1"),
            lambda: local.head(key),
            lambda: local.put(key, b"1", Overwrite()),
            lambda: write_whole(local, key, b"1"),
            lambda: local.delete(key),
            lambda: local.stream_range(key, 0, 1).__aenter__(),
        ]
        for call in calls:
            with pytest.raises(InvalidRequestError):
                await call()
        assert names_in(tmp_path) == []

    async def test_temporary_names_are_no_keys(self, local: LocalStorage) -> None:
        with pytest.raises(InvalidRequestError):
            await local.put("20240131/.des-tmp-1", b"1", Overwrite())

    @pytest.mark.parametrize("prefix", ["../", "/", "a//", "a/../", "/etc/"])
    async def test_a_prefix_stays_under_the_base(self, local: LocalStorage, prefix: str) -> None:
        with pytest.raises(InvalidRequestError):
            await local.list_level(prefix)
        with pytest.raises(InvalidRequestError):
            await list_keys(local, prefix)

    async def test_a_level_has_a_whole_prefix(self, local: LocalStorage) -> None:
        with pytest.raises(InvalidRequestError):
            await local.list_level("20240131")


async def test_the_suite_notices_blocking_calls(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    with pytest.raises(BlockingError):
        Descriptor(tmp_path / "a")
