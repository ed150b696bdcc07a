"""The storage contract as tests: every sentence of `des.storage.protocol`, for any backend.

The test file of a backend is a subclass with one fixture:

    class TestOtherStorage(StorageContract):
        @pytest.fixture
        async def storage(self) -> AsyncIterator[Storage]:
            storage = OtherStorage(...)          # empty, and nobody else's
            yield storage
            await storage.aclose()
"""

from __future__ import annotations

import hashlib
import random
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar

import anyio
import anyio.lowlevel
import pytest

from des.errors import ObjectNotFoundError, PreconditionFailedError, StorageError
from des.storage.protocol import IfAbsent, IfVersion, Level, ObjectInfo, Overwrite, Suffix

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from des.storage.protocol import PutMode, Storage

KEY = "20240131/0A.des"
MIB = 1024 * 1024


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


async def list_keys(storage: Storage, prefix: str = "") -> list[str]:
    return [info.key async for info in storage.list(prefix)]


async def stream(storage: Storage, start: int, end: int, *, version: str | None = None) -> bytes:
    collected = bytearray()
    async with storage.stream_range(KEY, start, end, version=version) as pieces:
        async for piece in pieces:
            assert piece
            collected += piece
    return bytes(collected)


class StorageContract:
    # More objects than one page of a listing has. A backend whose listing has no pages lowers it.
    LISTED: ClassVar[int] = 1_100
    # Whether the server says when an upload began.
    TELLS_WHEN_UPLOADS_BEGAN: ClassVar[bool] = True

    # Reading the end

    @pytest.mark.parametrize(
        ("size", "length"), [(1000, 1), (1000, 64), (1000, 999), (1000, 1000), (1000, 5000), (10, 64), (1, 1)]
    )
    async def test_suffix_is_the_end_or_all_of_a_smaller_object(self, storage: Storage, size: int, length: int) -> None:
        data = content(size)
        version = await storage.put(KEY, data, Overwrite())
        assert await storage.read_suffix(KEY, length) == Suffix(data[-length:], size, version)

    async def test_suffix_of_an_empty_object(self, storage: Storage) -> None:
        version = await storage.put(KEY, b"", Overwrite())
        assert await storage.read_suffix(KEY, 64) == Suffix(b"", 0, version)

    async def test_suffix_is_not_read_again_at_the_same_version(self, storage: Storage) -> None:
        old = await storage.put(KEY, content(1000, 1), Overwrite())
        assert await storage.read_suffix(KEY, 64, unless=old) is None
        new = await storage.put(KEY, content(1000, 2), Overwrite())
        assert await storage.read_suffix(KEY, 64, unless=old) == Suffix(content(1000, 2)[-64:], 1000, new)
        assert await storage.read_suffix(KEY, 64, unless=new) is None

    # Reading ranges

    @pytest.mark.parametrize(
        ("start", "end"),
        [(0, 1), (0, 4096), (1, 2), (5000, 70_000), (69_999, 70_000), (69_990, 70_010), (0, 10**12), (0, 70_000)],
    )
    async def test_range_is_cut_at_the_end(self, storage: Storage, start: int, end: int) -> None:
        data = content(70_000)
        version = await storage.put(KEY, data, Overwrite())
        assert await storage.read_range(KEY, start, end) == data[start:end]
        assert await storage.read_range(KEY, start, end) == data[start:end], "the second read may take another way"
        assert await storage.read_range(KEY, start, end, version=version) == data[start:end]
        assert await stream(storage, start, end) == data[start:end]
        assert await stream(storage, start, end, version=version) == data[start:end]

    @pytest.mark.parametrize(("size", "start", "end"), [(100, 100, 101), (100, 5000, 6000), (0, 0, 1), (0, 7, 10**9)])
    async def test_range_past_the_end_is_empty(self, storage: Storage, size: int, start: int, end: int) -> None:
        version = await storage.put(KEY, content(size), Overwrite())
        assert await storage.read_range(KEY, start, end) == b""
        assert await storage.read_range(KEY, start, end) == b""
        assert await storage.read_range(KEY, start, end, version=version) == b""
        assert await stream(storage, start, end) == b""

    async def test_range_is_read_at_its_version_only(self, storage: Storage) -> None:
        old = await storage.put(KEY, content(1000, 1), Overwrite())
        new = await storage.put(KEY, content(1000, 2), Overwrite())
        with pytest.raises(PreconditionFailedError):
            await storage.read_range(KEY, 0, 100, version=old)
        with pytest.raises(PreconditionFailedError):
            await stream(storage, 0, 100, version=old)
        assert await storage.read_range(KEY, 0, 100, version=new) == content(1000, 2)[:100]

    async def test_many_ranges_at_once(self, storage: Storage) -> None:
        data = content(100_000)
        await storage.put(KEY, data, Overwrite())
        right: list[int] = []

        async def read(start: int) -> None:
            if await storage.read_range(KEY, start, start + 777) == data[start : start + 777]:
                right.append(start)

        async with anyio.create_task_group() as tasks:
            for start in range(0, 100_000, 1000):
                tasks.start_soon(read, start)
        assert len(right) == 100

    # Streaming

    async def test_stream_of_a_large_object(self, storage: Storage) -> None:
        data = content(3 * MIB + 17)
        await storage.put(KEY, data, Overwrite())
        assert await stream(storage, 0, len(data)) == data
        assert await stream(storage, 123_457, 2 * MIB + 1) == data[123_457 : 2 * MIB + 1]

    async def test_stream_left_early(self, storage: Storage) -> None:
        data = content(3 * MIB)
        await storage.put(KEY, data, Overwrite())
        async with storage.stream_range(KEY, 0, len(data)) as pieces:
            first = await anext(pieces)
        assert data.startswith(first)
        assert await stream(storage, 0, len(data)) == data

    async def test_stream_cancelled(self, storage: Storage) -> None:
        data = content(3 * MIB)
        await storage.put(KEY, data, Overwrite())
        with anyio.CancelScope() as scope:
            async with storage.stream_range(KEY, 0, len(data)) as pieces:
                async for _ in pieces:
                    scope.cancel()
        assert scope.cancelled_caught
        assert await stream(storage, 0, len(data)) == data

    async def test_stream_passes_on_the_error_of_its_user(self, storage: Storage) -> None:
        await storage.put(KEY, content(1000), Overwrite())

        async def send_to_nobody() -> None:
            async with storage.stream_range(KEY, 0, 1000) as pieces:
                async for _ in pieces:
                    raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await send_to_nobody()

    # What is not there

    @pytest.mark.parametrize(
        "read",
        [
            lambda storage: storage.read_suffix(KEY, 64),
            lambda storage: storage.read_suffix(KEY, 64, unless="1"),
            lambda storage: storage.read_range(KEY, 0, 1),
            lambda storage: storage.read_range(KEY, 0, 1, version="1"),
            lambda storage: stream(storage, 0, 1),
            lambda storage: storage.head(KEY),
        ],
        ids=["suffix", "suffix_unless", "range", "range_at_version", "stream", "head"],
    )
    @pytest.mark.parametrize("others", [(), ("20240131/0A/0.des", "20240131/0A.des0")], ids=["empty", "others"])
    async def test_reading_what_is_not_there(
        self, storage: Storage, others: tuple[str, ...], read: Callable[[Storage], Awaitable[object]]
    ) -> None:
        for other in others:
            await storage.put(other, b"1", Overwrite())
        with pytest.raises(ObjectNotFoundError):
            await read(storage)

    async def test_a_prefix_is_no_object(self, storage: Storage) -> None:
        await storage.put("20240131/0A/0.des", b"1", Overwrite())
        with pytest.raises(ObjectNotFoundError):
            await storage.head("20240131/0A")
        with pytest.raises(ObjectNotFoundError):
            await storage.read_range("20240131", 0, 1)
        await storage.delete("20240131")
        assert await list_keys(storage) == ["20240131/0A/0.des"]

    async def test_an_object_is_no_prefix(self, storage: Storage) -> None:
        await storage.put("20240131/0A", b"1", Overwrite())
        with pytest.raises(ObjectNotFoundError):
            await storage.head("20240131/0A/0.des")
        await storage.delete("20240131/0A/0.des")
        assert await list_keys(storage, "20240131/0A/") == []

    # Asking

    async def test_head_says_what_was_written(self, storage: Storage) -> None:
        version = await storage.put(KEY, content(1234), Overwrite())
        info = await storage.head(KEY)
        assert (info.key, info.size, info.version) == (KEY, 1234, version)
        assert abs(info.modified - datetime.now(UTC)) < timedelta(hours=1)

    # Putting

    @pytest.mark.parametrize("mode", [IfAbsent(), Overwrite()])
    async def test_put_where_there_is_nothing(self, storage: Storage, mode: PutMode) -> None:
        version = await storage.put(KEY, b"first", mode)
        assert await storage.read_suffix(KEY, 64) == Suffix(b"first", 5, version)

    async def test_put_at_a_version_where_there_is_nothing(self, storage: Storage) -> None:
        version = await storage.put("other", b"first", IfAbsent())
        with pytest.raises(PreconditionFailedError):
            await storage.put(KEY, b"second", IfVersion(version))
        assert await list_keys(storage) == ["other"]

    async def test_put_if_absent_where_there_is_something(self, storage: Storage) -> None:
        version = await storage.put(KEY, b"first", IfAbsent())
        with pytest.raises(PreconditionFailedError):
            await storage.put(KEY, b"second", IfAbsent())
        assert await storage.read_suffix(KEY, 64) == Suffix(b"first", 5, version)

    async def test_put_in_place_of_a_version(self, storage: Storage) -> None:
        first = await storage.put(KEY, b"first", IfAbsent())
        second = await storage.put(KEY, b"second", IfVersion(first))
        with pytest.raises(PreconditionFailedError):
            await storage.put(KEY, b"third", IfVersion(first))
        assert await storage.read_suffix(KEY, 64) == Suffix(b"second", 6, second)
        await storage.put(KEY, b"fourth", Overwrite())
        with pytest.raises(PreconditionFailedError):
            await storage.put(KEY, b"fifth", IfVersion(second))
        assert await storage.read_range(KEY, 0, 64, version=(await storage.head(KEY)).version) == b"fourth"

    async def test_put_again_after_deletion(self, storage: Storage) -> None:
        version = await storage.put(KEY, b"first", IfAbsent())
        await storage.delete(KEY)
        with pytest.raises(PreconditionFailedError):
            await storage.put(KEY, b"second", IfVersion(version))
        await storage.put(KEY, b"third", IfAbsent())
        assert await storage.read_range(KEY, 0, 64) == b"third"

    async def test_put_of_nothing(self, storage: Storage) -> None:
        version = await storage.put(KEY, b"", IfAbsent())
        assert (await storage.head(KEY)).size == 0
        with pytest.raises(PreconditionFailedError):
            await storage.put(KEY, b"second", IfAbsent())
        await storage.put(KEY, b"third", IfVersion(version))

    async def test_version_changes_at_every_replacement(self, storage: Storage) -> None:
        versions = [await storage.put(KEY, content(5000, seed), Overwrite()) for seed in range(20)]
        assert len(set(versions)) == 20
        assert "" not in versions

    async def test_version_changes_with_the_size_alone(self, storage: Storage) -> None:
        versions = [await storage.put(KEY, b"0" * size, Overwrite()) for size in (63, 64, 65, 1000)]
        assert len(set(versions)) == 4

    @pytest.mark.parametrize("existing", [False, True], ids=["if_absent", "if_version"])
    async def test_one_of_many_writers_wins(self, storage: Storage, existing: bool) -> None:
        mode: PutMode = IfVersion(await storage.put(KEY, b"before", Overwrite())) if existing else IfAbsent()
        winners: dict[bytes, str] = {}
        losers: list[int] = []

        async def write(number: int) -> None:
            data = content(10_000 + number, number)
            try:
                winners[data] = await storage.put(KEY, data, mode)
            except PreconditionFailedError:
                losers.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(16):
                tasks.start_soon(write, number)
        assert (len(winners), len(losers)) == (1, 15)
        ((data, version),) = winners.items()
        assert await storage.read_suffix(KEY, 10**6) == Suffix(data, len(data), version)

    async def test_readers_see_one_content_or_the_other(self, storage: Storage) -> None:
        await storage.put(KEY, b"0" * 200_000, Overwrite())
        seen: list[Suffix] = []
        is_writing = True

        async def read() -> None:
            while is_writing:
                suffix = await storage.read_suffix(KEY, 10**6)
                assert suffix is not None
                seen.append(suffix)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            for number in range(1, 21):
                await storage.put(KEY, b"%d" % (number % 10) * (200_000 + number), Overwrite())
            is_writing = False
        assert seen
        for suffix in seen:
            assert len(suffix.data) == suffix.total_size
            assert len(set(suffix.data)) == 1, "a mixture of two contents"

    # Writing part by part

    async def test_writer_of_a_large_object(self, storage: Storage) -> None:
        data = content(20 * MIB + 3)
        sizes = random.Random(1)
        async with storage.open_writer(KEY) as writer:
            position = 0
            while position < len(data):
                size = sizes.choice([1, 7, 4096, 65_537, MIB + 1, 5 * MIB + 11])
                await writer.write(data[position : position + size])
                position += size
            assert await list_keys(storage) == [], "an unfinished object is not there"
            with pytest.raises(ObjectNotFoundError):
                await storage.head(KEY)
        digest = hashlib.sha256()
        async with storage.stream_range(KEY, 0, len(data)) as pieces:
            async for piece in pieces:
                digest.update(piece)
        assert digest.digest() == hashlib.sha256(data).digest()
        assert await storage.read_range(KEY, 7 * MIB - 3, 7 * MIB + 900) == data[7 * MIB - 3 : 7 * MIB + 900]
        info = await storage.head(KEY)
        assert info.size == len(data)
        assert await storage.read_suffix(KEY, 100) == Suffix(data[-100:], len(data), info.version)

    async def test_writer_of_a_small_object(self, storage: Storage) -> None:
        async with storage.open_writer(KEY) as writer:
            await writer.write(b"a few")
            await writer.write(b"")
            await writer.write(b" bytes")
        assert await storage.read_range(KEY, 0, 100) == b"a few bytes"

    async def test_writer_of_nothing(self, storage: Storage) -> None:
        async with storage.open_writer(KEY):
            pass
        assert (await storage.head(KEY)).size == 0

    @pytest.mark.parametrize("size", [10, 6 * MIB])
    async def test_writer_that_fails_leaves_nothing(self, storage: Storage, size: int) -> None:
        async def fail_midway() -> None:
            async with storage.open_writer(KEY) as writer:
                await writer.write(content(size))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail_midway()
        await self.assert_empty(storage)

    async def test_writer_passes_on_the_error_of_its_user(self, storage: Storage) -> None:
        with pytest.raises(FileNotFoundError):
            async with storage.open_writer(KEY):
                raise FileNotFoundError
        await self.assert_empty(storage)

    @pytest.mark.parametrize("size", [10, 6 * MIB])
    async def test_writer_that_is_cancelled_leaves_nothing(self, storage: Storage, size: int) -> None:
        with anyio.CancelScope() as scope:
            async with storage.open_writer(KEY) as writer:
                await writer.write(content(size))
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        await self.assert_empty(storage)

    async def test_writers_at_once(self, storage: Storage) -> None:
        async def write(number: int) -> None:
            async with storage.open_writer(f"20240131/{number:02X}/0.des") as writer:
                for part in range(3):
                    await writer.write(content(100_000, number * 10 + part))

        async with anyio.create_task_group() as tasks:
            for number in range(16):
                tasks.start_soon(write, number)
        for number in range(16):
            expected = b"".join(content(100_000, number * 10 + part) for part in range(3))
            assert await storage.read_range(f"20240131/{number:02X}/0.des", 0, 10**6) == expected

    async def assert_empty(self, storage: Storage) -> None:
        assert await list_keys(storage) == []
        assert await storage.list_level("") == Level((), ())
        with pytest.raises(ObjectNotFoundError):
            await storage.head(KEY)

    # Listing

    # In order: '-' and '.' come before '/', digits before capitals before small letters.
    KEYS: ClassVar[tuple[str, ...]] = (
        "20240131/0A-x/_.des",
        "20240131/0A.des",
        "20240131/0A/0123456789abcdef0123456789abcdef.des",
        "20240131/0A/f.des",
        "20240131/0A0.des",
        "20240131/0B.des",
        "20240131/0a.des",
        "20240201/FFFF/Z-z_9.des",
        "A/b/c/d/e/f",
        "readme.txt",
    )

    async def put_all(self, storage: Storage) -> dict[str, str]:
        shuffled = random.Random(7).sample(self.KEYS, len(self.KEYS))
        return {key: await storage.put(key, content(len(key)), Overwrite()) for key in shuffled}

    async def test_list_is_complete_and_in_order_of_keys(self, storage: Storage) -> None:
        versions = await self.put_all(storage)
        infos = [info async for info in storage.list("")]
        assert [info.key for info in infos] == list(self.KEYS)
        for info in infos:
            assert info.size == len(info.key)
            assert info.version in {"", versions[info.key]}
            assert abs(info.modified - datetime.now(UTC)) < timedelta(hours=1)

    @pytest.mark.parametrize(
        "prefix",
        [
            "20240131/",
            "20240131/0A",
            "20240131/0A.",
            "20240131/0A/",
            "20240131/0A/f",
            "2024",
            "r",
            "A/b/c/",
            "readme.txt",
        ],
    )
    async def test_list_by_prefix(self, storage: Storage, prefix: str) -> None:
        await self.put_all(storage)
        expected = [key for key in self.KEYS if key.startswith(prefix)]
        assert expected
        assert await list_keys(storage, prefix) == expected

    @pytest.mark.parametrize(
        "prefix", ["20240131/0C", "20240131/0A.des/", "2023/", "x", "20240131/0A.des.", "A/b/c/d/e/f/"]
    )
    async def test_list_of_what_is_not_there(self, storage: Storage, prefix: str) -> None:
        assert await list_keys(storage, prefix) == []
        await self.put_all(storage)
        assert await list_keys(storage, prefix) == []

    async def test_list_level(self, storage: Storage) -> None:
        await self.put_all(storage)

        async def level(prefix: str) -> tuple[list[str], list[str]]:
            found = await storage.list_level(prefix)
            return [info.key for info in found.objects], list(found.prefixes)

        assert await level("") == (["readme.txt"], ["20240131/", "20240201/", "A/"])
        assert await level("20240131/") == (
            ["20240131/0A.des", "20240131/0A0.des", "20240131/0B.des", "20240131/0a.des"],
            ["20240131/0A-x/", "20240131/0A/"],
        )
        assert await level("A/b/c/d/e/") == (["A/b/c/d/e/f"], [])
        assert await level("A/b/c/d/e/f/") == ([], [])
        assert await level("20240101/") == ([], [])
        (info,) = (await storage.list_level("")).objects
        assert info == ObjectInfo("readme.txt", 10, info.version, info.modified)

    async def test_list_of_more_than_a_page(self, storage: Storage) -> None:
        keys = [f"20240131/0A/{number:06}.des" for number in range(self.LISTED)]
        limiter = anyio.CapacityLimiter(32)

        async def put(key: str) -> None:
            async with limiter:
                await storage.put(key, b"1", Overwrite())

        async with anyio.create_task_group() as tasks:
            for key in random.Random(3).sample(keys, len(keys)):
                tasks.start_soon(put, key)
        assert await list_keys(storage, "20240131/") == keys
        level = await storage.list_level("20240131/0A/")
        assert [info.key for info in level.objects] == keys
        assert await storage.list_level("20240131/") == Level((), ("20240131/0A/",))

    async def test_list_left_early(self, storage: Storage) -> None:
        await self.put_all(storage)
        async with aclosing(storage.list("")) as infos:  # type: ignore[type-var]  # every backend's is a generator
            assert (await anext(infos)).key == self.KEYS[0]
        assert await list_keys(storage) == list(self.KEYS)

    # Deleting

    async def test_delete(self, storage: Storage) -> None:
        await self.put_all(storage)
        await storage.read_range(KEY, 0, 1)
        await storage.delete(KEY)
        with pytest.raises(ObjectNotFoundError):
            await storage.head(KEY)
        with pytest.raises(ObjectNotFoundError):
            await storage.read_suffix(KEY, 1)
        assert await list_keys(storage) == [key for key in self.KEYS if key != KEY]

    async def test_delete_twice(self, storage: Storage) -> None:
        await storage.delete(KEY)
        await storage.put(KEY, b"1", Overwrite())
        await storage.delete(KEY)
        await storage.delete(KEY)
        assert await list_keys(storage) == []

    async def test_a_prefix_goes_with_its_last_object(self, storage: Storage) -> None:
        await storage.put("20240131/0A/0.des", b"1", Overwrite())
        await storage.put("20240131/0B/0.des", b"1", Overwrite())
        await storage.delete("20240131/0A/0.des")
        assert await storage.list_level("20240131/") == Level((), ("20240131/0B/",))
        await storage.delete("20240131/0B/0.des")
        assert await storage.list_level("") == Level((), ())
        await storage.put("20240131/0A/1.des", b"1", Overwrite())
        assert await list_keys(storage) == ["20240131/0A/1.des"]

    # Leftovers

    async def test_a_write_that_goes_on_is_a_leftover_by_its_age_alone(self, storage: Storage) -> None:
        before = await storage.now()
        async with storage.open_writer(KEY) as writer:
            for number in range(3):
                await writer.write(content(9 * MIB, number))
            [leftover] = [one async for one in storage.list_leftovers()]
            resolution = timedelta(seconds=1)
            if self.TELLS_WHEN_UPLOADS_BEGAN:
                assert before - resolution <= leftover.began <= await storage.now() + resolution
        assert [one async for one in storage.list_leftovers()] == []
        await storage.discard(leftover)
        assert await list_keys(storage) == [KEY]

    async def test_a_leftover_is_discarded_once(self, storage: Storage) -> None:
        async def write_what_is_discarded() -> None:
            async with storage.open_writer(KEY) as writer:
                for number in range(3):
                    await writer.write(content(9 * MIB, number))
                [leftover] = [one async for one in storage.list_leftovers()]
                await storage.discard(leftover)
                await storage.discard(leftover)
                assert [one async for one in storage.list_leftovers()] == []

        with pytest.raises(StorageError):
            await write_what_is_discarded()
        assert await list_keys(storage) == []

    async def test_an_empty_place_has_no_leftovers_but_the_time(self, storage: Storage) -> None:
        assert [one async for one in storage.list_leftovers()] == []
        assert abs(await storage.now() - datetime.now(UTC)) < timedelta(minutes=1)

    # The whole

    async def test_conditional_writes_are_proven_and_nothing_is_left_behind(self, storage: Storage) -> None:
        data = content(300)
        version = await storage.put(KEY, data, IfAbsent())
        await storage.check_conditional_writes(KEY)
        assert await storage.read_suffix(KEY, 1000) == Suffix(data, 300, version)
        assert await list_keys(storage) == [KEY]

    async def test_close_twice(self, storage: Storage) -> None:
        await storage.put(KEY, content(1000), Overwrite())
        await storage.read_range(KEY, 0, 100)
        await storage.aclose()
        await storage.aclose()

    async def test_names_itself(self, storage: Storage) -> None:
        assert storage.backend in {"local", "s3", "multi_s3"}
        assert storage.address
