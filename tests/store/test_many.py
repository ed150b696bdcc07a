from __future__ import annotations

import asyncio
import gc
import random
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from des.errors import (
    CorruptShardError,
    DeletedError,
    InvalidRequestError,
    NotFoundError,
    SettingsError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from des.routing import file_id
from des.shard.chunking import LARGE_BYTES
from des.shard.codecs import Compression
from des.storage.descriptor import DESCRIPTOR_KEY
from des.storage.protocol import Overwrite
from des.storage.testing import Fail, Fault, FaultyStorage, Hold, RecordingStorage
from des.store import GetResult, Store
from tests.making import WHEN, Maker, make_store, reading
from tests.store.contents import DICTIONARY, noise, text
from tests.store.meddling import Meddler

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from des.storage.local import LocalStorage
    from des.storage.testing import Call

MIDNIGHT = datetime(2024, 1, 31, tzinfo=UTC)


async def get_all(store: Store, uids: Iterable[Any]) -> dict[str, GetResult]:
    results = [result async for result in store.get_many((uid, WHEN) for uid in uids)]
    found = {result.uid: result for result in results}
    assert len(found) == len(results)
    assert all((result.data is None) != (result.error is None) for result in results)
    return found


def iterate(store: Store, uids: Iterable[str]) -> AsyncGenerator[GetResult, None]:
    """Return the iterator as what it is, so that a test can close it."""
    results: Any = store.get_many((uid, WHEN) for uid in uids)
    return results  # type: ignore[no-any-return]  # an async generator


def other_tasks() -> int:
    return len(asyncio.all_tasks()) - 1


class TestAnswers:
    async def test_all_kinds_of_contents(self, storage: RecordingStorage) -> None:
        contents = {
            f"{size}": text(size) for size in (0, 1, 2, 100, 5000, 70_000, 300_000, LARGE_BYTES, 3 * LARGE_BYTES)
        }
        await make_store(storage, contents, n_bits=2)
        async with reading(storage) as store:
            results = await get_all(store, contents)
        assert {uid: result.data for uid, result in results.items()} == contents
        assert {result.created_at for result in results.values()} == {MIDNIGHT}

    async def test_nothing_asked_nothing_answered(self, storage: RecordingStorage) -> None:
        async with reading(storage) as store:
            assert [result async for result in store.get_many([])] == []

    async def test_duplicates_are_answered_each(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"a": b"first", "b": b"second"})
        async with reading(storage) as store:
            results = [result async for result in store.get_many([("a", WHEN)] * 3 + [("b", WHEN)] * 2)]
        assert sorted(result.data or b"" for result in results) == [b"first"] * 3 + [b"second"] * 2

    async def test_times_are_given_back_as_asked_in_utc(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"a": b"content"})
        async with reading(storage) as store:
            (result,) = [r async for r in store.get_many([("a", "2024-01-31T08:00:00.25+02:00")])]
        assert result == GetResult("a", datetime(2024, 1, 31, 6, 0, 0, 250_000, tzinfo=UTC), b"content", None)

    async def test_a_failed_file_is_a_result(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"good": b"content", "deleted": b"x"})
        await maker.delete(["deleted"])
        asked: list[tuple[Any, Any]] = [
            ("good", WHEN),
            ("deleted", WHEN),
            ("missing", WHEN),
            ("good", "2024-02-01"),
            ("", WHEN),
            ("x" * 1025, WHEN),
            ("naive", datetime(2024, 1, 31)),  # noqa: DTZ001 - naive on purpose
            ("bad day", "2024-02-31"),
            (10**5000, WHEN),
            (None, WHEN),
        ]
        async with reading(storage) as store:
            results = [result async for result in store.get_many(asked)]
        kinds = {(result.uid[:10], type(result.error)) for result in results}
        assert kinds == {
            ("good", type(None)),
            ("good", NotFoundError),
            ("deleted", DeletedError),
            ("missing", NotFoundError),
            ("", InvalidRequestError),
            ("xxxxxxxxxx", InvalidRequestError),
            ("naive", InvalidRequestError),
            ("bad day", InvalidRequestError),
            (f"{10**5000:#x}"[:10], InvalidRequestError),
            ("None", InvalidRequestError),
        }
        assert len(results) == len(asked)

    async def test_without_a_store_every_file_says_so_and_it_is_asked_for_once(self, storage: RecordingStorage) -> None:
        async with reading(storage) as store:
            results = await get_all(store, [f"{number}" for number in range(500)])
        assert {type(result.error) for result in results.values()} == {SettingsError}
        assert [call.key for call in storage.calls] == [DESCRIPTOR_KEY]

    async def test_an_error_that_nobody_thought_of_reaches_the_caller(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"a": b"content"})
        async with reading(storage) as store:
            with pytest.raises(ValueError, match="unpack"):
                [result async for result in store.get_many([("a", WHEN, "too much")])]  # type: ignore[list-item]  # wrong on purpose
            assert await store.get("a", WHEN) == b"content"

    async def test_an_error_of_the_storage_that_nobody_thought_of(self, local: LocalStorage) -> None:
        await make_store(local, {"a": b"content"})
        faulty = FaultyStorage(local, [Fault(Fail(ZeroDivisionError("odd")), verb="read_range")])
        async with reading(faulty) as store:
            with pytest.raises(ZeroDivisionError, match="odd"):
                await get_all(store, ["a"])
            assert faulty.fired
            assert (await get_all(store, ["a"]))["a"].data == b"content"

    async def test_an_iterable_that_fails(self, storage: RecordingStorage) -> None:
        def files() -> Iterable[tuple[str, Any]]:
            yield "a", WHEN
            raise RuntimeError("no more")

        async with reading(storage) as store:
            with pytest.raises(RuntimeError, match="no more"):
                [result async for result in store.get_many(files())]


class TestCost:
    async def test_ten_thousand_small_files(self, storage: RecordingStorage) -> None:
        generator = random.Random(7)
        contents = {f"small/{number}": generator.randbytes(generator.randrange(200)) for number in range(10_000)}
        await make_store(storage, contents, n_bits=4)
        storage.calls.clear()
        async with reading(storage) as store:
            results = await get_all(store, generator.sample(sorted(contents), 10_000))
        assert {uid: result.data for uid, result in results.items()} == contents
        shards = 16
        assert storage.count(key=DESCRIPTOR_KEY) == 1
        assert storage.count(purpose="footer") == 1 + shards
        assert storage.count(purpose="payload") == shards, "what lies together is read together"
        assert storage.count() < 100

    async def test_what_lies_far_apart_is_not_read(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = maker.uids_of_one_shard(21)
        await maker.add({uid: noise(50_000, number) for number, uid in enumerate(uids)})
        storage.calls.clear()
        async with reading(storage) as store:
            await get_all(store, [uids[number] for number in (0, 10, 20)])
        assert [call.size for call in storage.select(purpose="payload")] == [50_000] * 3

    async def test_a_request_is_of_a_mebibyte_at_most(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = maker.uids_of_one_shard(50)
        await maker.add({uid: noise(100_000, number) for number, uid in enumerate(uids)})
        storage.calls.clear()
        async with reading(storage) as store:
            await get_all(store, uids)
        reads = storage.select(purpose="payload")
        assert len(reads) == 5
        assert sum(call.size for call in reads) == 50 * 100_000

    async def test_it_is_asked_as_of_its_beginning(self, storage: RecordingStorage) -> None:
        """Without any TTL, each head is asked for once a call, not once a file; missing files included."""
        maker = await make_store(storage)
        uids = maker.uids_of_one_shard(200)
        await maker.add(dict.fromkeys(uids[:100], b"content"))
        async with reading(storage, index_ttl=0, negative_ttl=0) as store:
            for _ in range(2):
                storage.calls.clear()
                results = await get_all(store, uids)
                assert sum(result.error is None for result in results.values()) == 100
                assert storage.count(purpose="footer") == 2

    async def test_a_dictionary_is_read_once(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = maker.uids_of_one_shard(100)
        contents = {uid: text(500, number) for number, uid in enumerate(uids)}
        await maker.add(contents, compression=Compression(dictionary=DICTIONARY))
        storage.calls.clear()
        async with reading(storage) as store:
            results = await get_all(store, uids)
        assert {uid: result.data for uid, result in results.items()} == contents
        assert storage.count(purpose="index", verb="read_range") == 1


class TestRemedies:
    async def test_segments_that_were_compacted_away(self, local: LocalStorage) -> None:
        maker = await make_store(local)
        uids = maker.uids_of_one_shard(30)
        contents = {uid: uid.encode() * 9 for uid in uids}
        await maker.add(contents)
        compacted = False

        async def compact(call: Call) -> None:
            nonlocal compacted
            if call.purpose == "payload" and not compacted:
                compacted = True
                await maker.compact(compression=Compression("none"))

        async with reading(Meddler(local, before=compact), index_ttl=3600) as store:
            results = await get_all(store, uids)
            assert compacted
        assert {uid: result.data for uid, result in results.items()} == contents

    async def test_a_dictionary_that_was_compacted_away(self, local: LocalStorage) -> None:
        maker = await make_store(local)
        uids = maker.uids_of_one_shard(10)
        contents = {uid: text(900, number) for number, uid in enumerate(uids)}
        await maker.add(contents, compression=Compression(dictionary=DICTIONARY))
        compacted = False

        async def compact(call: Call) -> None:
            nonlocal compacted
            if call.purpose == "payload" and not compacted:
                compacted = True
                await maker.compact(compression=Compression(dictionary=DICTIONARY[1:]))

        async with reading(Meddler(local, after=compact), index_ttl=3600) as store:
            results = await get_all(store, uids)
            assert compacted
        assert {uid: result.data for uid, result in results.items()} == contents

    async def test_damage_hits_the_damaged_alone(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = maker.uids_of_one_shard(20)
        await maker.add({uid: noise(100, number) for number, uid in enumerate(uids)})
        async with reading(storage) as store:
            info = await store.stat(uids[7], WHEN)
            data = bytearray(await storage.read_range(info.segment, 0, 1 << 20))
            data[info.offset + 50] ^= 1
            await storage.put(info.segment, bytes(data), Overwrite())
            results = await get_all(store, uids)
        assert [uid for uid, result in results.items() if result.error] == [uids[7]]
        assert isinstance(results[uids[7]].error, CorruptShardError)

    async def test_a_segment_cut_short_hits_what_is_cut_off_alone(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = maker.uids_of_one_shard(20)
        await maker.add({uid: noise(100, number) for number, uid in enumerate(uids)})
        async with reading(storage) as store:
            info = await store.stat(uids[15], WHEN)
            data = await storage.read_range(info.segment, 0, info.offset + 99)
            await storage.put(info.segment, data, Overwrite())
            results = await get_all(store, uids)
        assert {uid for uid, result in results.items() if isinstance(result.error, CorruptShardError)} == set(uids[15:])
        assert all(result.data for uid, result in results.items() if uid in uids[:15])

    async def test_trouble_fails_what_it_hits_and_is_not_repeated_for_every_file(self, local: LocalStorage) -> None:
        await make_store(local, {f"{number}": b"x" * number for number in range(1, 200)})
        recording = RecordingStorage(local)
        error = StorageUnavailableError("down")
        faulty = FaultyStorage(recording, [Fault(Fail(error), verb="read_range", at=1)])
        async with reading(faulty) as store:
            results = await get_all(store, [f"{number}" for number in range(1, 200)])
        assert faulty.fired
        failed = {uid for uid, result in results.items() if result.error}
        assert 0 < len(failed) < 199
        assert {str(results[uid].error) for uid in failed} == {"down"}
        assert recording.count(purpose="payload") == 1

    @pytest.mark.parametrize("at", [1, 2, 4])
    async def test_the_deadline(self, local: LocalStorage, at: int) -> None:
        """Held are, in turn, the descriptor, a head and a payload."""
        await make_store(local, {f"{number}": b"x" * number for number in range(1, 50)})
        faulty = FaultyStorage(local, [Fault(Hold(), at=at)])
        async with reading(faulty, request_timeout=0.1) as store:
            results = await get_all(store, [f"{number}" for number in range(1, 50)])
            assert faulty.fired
            assert {type(result.error) for result in results.values()} <= {StorageTimeoutError, type(None)}
            assert any(result.error for result in results.values())
            assert all(result.data for result in (await get_all(store, ["1", "2", "3"])).values())


class TestLifetime:
    @pytest.fixture
    async def maker(self, local: LocalStorage) -> Maker:
        return await make_store(local, {f"{number}": noise(10_000, number) for number in range(400)}, n_bits=3)

    async def test_a_closed_iterator_leaves_no_task(self, local: LocalStorage, maker: Maker) -> None:
        async with reading(local) as store:
            before = other_tasks()
            async with aclosing(iterate(store, maker.files["20240131"])) as results:
                async for _ in results:
                    assert other_tasks() > before
                    break
            with anyio.fail_after(10):
                while other_tasks() > before:
                    await anyio.lowlevel.checkpoint()
            assert await store.get("7", WHEN) == noise(10_000, 7)

    async def test_a_dropped_iterator_leaves_no_task(self, local: LocalStorage, maker: Maker) -> None:
        async with reading(local) as store:
            before = other_tasks()
            async for _ in store.get_many((uid, WHEN) for uid in maker.files["20240131"]):
                break
            gc.collect()
            with anyio.fail_after(10):
                while other_tasks() > before:
                    await anyio.lowlevel.checkpoint()

    async def test_a_slow_caller_slows_it_down(self, local: LocalStorage, maker: Maker) -> None:
        """What is read ahead is bounded, whatever is asked."""
        storage = RecordingStorage(local)
        uids = sorted(maker.files["20240131"], key=file_id)
        async with reading(storage) as store, aclosing(iterate(store, uids * 20)) as results:
            await anext(results)
            for _ in range(2000):
                await anyio.lowlevel.checkpoint()
            assert storage.moved(purpose="payload") < 20 * 400 * 10_000 / 2
            count = 1
            async for result in results:
                assert result.data is not None
                count += 1
        assert count == 20 * 400

    async def test_a_store_that_closes_meanwhile_says_so(self, local: LocalStorage, maker: Maker) -> None:
        """An end without an error would look like all of the answers."""
        uids = list(maker.files["20240131"])
        async with reading(local) as store:
            results = iterate(store, uids)
            received = [await anext(results)]
        with pytest.raises(StorageUnavailableError, match="closed before all files were read"):
            received += [result async for result in results]
        assert len(received) < len(uids)

    async def test_a_store_that_was_closed_before(self, local: LocalStorage, maker: Maker) -> None:
        async with reading(local) as store:
            pass
        with pytest.raises(StorageUnavailableError, match="closed before all files were read"):
            await anext(iterate(store, maker.files["20240131"]))

    async def test_a_store_that_closes_under_a_waiting_caller(self, local: LocalStorage, maker: Maker) -> None:
        hold = Hold()
        faulty = FaultyStorage(local, [Fault(hold, verb="read_range")])
        errors: list[str] = []

        async def ask(store: Store) -> None:
            try:
                await get_all(store, maker.files["20240131"])
            except StorageUnavailableError as error:
                errors.append(str(error))

        async with anyio.create_task_group() as tasks, reading(faulty) as store:
            tasks.start_soon(ask, store)
            await hold.reached.wait()
        assert errors == ["the store was closed before all files were read."]

    async def test_many_calls_at_once(self, local: LocalStorage, maker: Maker) -> None:
        right: list[bool] = []
        async with reading(local) as store:

            async def ask(seed: int) -> None:
                uids = random.Random(seed).sample(sorted(maker.files["20240131"]), 100)
                results = await get_all(store, uids)
                right.append(all(results[uid].data == noise(10_000, int(uid)) for uid in uids))

            async with anyio.create_task_group() as tasks:
                for seed in range(20):
                    tasks.start_soon(ask, seed)
        assert right == [True] * 20
