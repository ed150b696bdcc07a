from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread
from blockbuster import BlockingError

from des.errors import (
    InvalidRequestError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageUnavailableError,
)
from des.storage.local import INLINE_BYTES, LocalStorage
from des.storage.open_files import Descriptor
from des.storage.protocol import Level, Overwrite
from tests.storage.contract import KEY, StorageContract, content, list_keys
from tests.storage.on_disk import SEGMENT, names_in, write_whole

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from des.storage.protocol import Storage


class TestLocalStorage(StorageContract):
    LISTED = 60

    @pytest.fixture
    async def storage(self, local: LocalStorage) -> Storage:
        return local


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
