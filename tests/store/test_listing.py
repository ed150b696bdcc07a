from __future__ import annotations

import random
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from des.errors import (
    CorruptShardError,
    InvalidRequestError,
    LostHeadError,
    SettingsError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from des.routing import file_id
from des.storage.protocol import Level, Overwrite
from des.storage.testing import Fail, Fault, FaultyStorage, Hold, RecordingStorage, StorageWrapper
from des.store.listing import cursor_of, days_of, parse_cursor, shards_of
from tests.making import DAY, WHEN, File, make_store, reading
from tests.shard.forging import Parts
from tests.store.meddling import Meddler

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from des.storage.local import LocalStorage
    from des.storage.testing import Call
    from des.store import FileInfo, Store


async def list_all(store: Store, after: str | None = None) -> list[FileInfo]:
    return [info async for info in store.list(DAY, after=after)]


def in_order(uids: Any) -> list[str]:  # noqa: ANN401 - any collection of texts
    return sorted(uids, key=file_id)


def iterate(store: Store) -> AsyncGenerator[FileInfo, None]:
    infos: Any = store.list(DAY)
    return infos  # type: ignore[no-any-return]  # an async generator


class TestContent:
    async def test_all_that_is_known(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        time = timedelta(hours=3, microseconds=123_456)
        await maker.add({"a.json": File(b"{}" * 100, "text/x-mine", {"n": 1}, time), "b.json": b"{}"})
        async with reading(storage) as store:
            infos = {info.uid: info for info in await list_all(store)}
            for uid, info in infos.items():
                exact = await store.stat(uid, WHEN, metadata=True)
                assert replace(info, created_at=exact.created_at) == exact
            assert infos["a.json"].created_at == datetime(2024, 1, 31, 3, 0, 0, 123_456, tzinfo=UTC)
            assert (infos["a.json"].content_type, infos["b.json"].content_type) == ("text/x-mine", "application/json")
            assert (infos["a.json"].metadata, infos["b.json"].metadata) == ({"n": 1}, {})

    async def test_in_the_order_of_file_ids_over_shards_pages_and_segments(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, n_bits=3)
        uids = [f"file {number}" for number in range(6000)]
        for start in range(0, 6000, 2000):
            await maker.add(dict.fromkeys(uids[start : start + 2000], b"x"))
        gone = set(random.Random(3).sample(uids, 500))
        await maker.delete(gone)
        await maker.add({uids[5]: b"replaced"})
        async with reading(storage) as store:
            infos = await list_all(store)
        live = (set(uids) - gone) | {uids[5]}
        assert [info.uid for info in infos] == in_order(live)
        assert {info.raw_size for info in infos if info.uid == uids[5]} == {8}

    async def test_a_day_without_files(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"a": b"content"})
        async with reading(storage) as store:
            assert [info async for info in store.list("20240201")] == []
            await maker.delete(["a"])
        async with reading(storage) as store:
            assert await list_all(store) == []

    async def test_other_days_are_not_listed(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"a": b"content"})
        await maker.add({"b": b"content"}, "20240201")
        async with reading(storage) as store:
            for day, uid in ((DAY, "a"), ("2024-01-31", "a"), ("20240201", "b")):
                assert [info.uid async for info in store.list(day)] == [uid]
        assert await days_of(storage) == ["20240131", "20240201"]

    async def test_days_are_directories_of_eight_digits(self, storage: RecordingStorage) -> None:
        for key in ("20240131/0.des", "19991231/0/x.des", "notes/1.txt", "2024/x", "2024013²/x", "des.json"):
            await storage.put(key, b"", Overwrite())
        assert await days_of(storage) == ["19991231", "20240131"]


class TestCursor:
    async def test_resume_at_every_position(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {f"{number}": b"x" for number in range(60)}, n_bits=3)
        await maker.add({f"{number}": b"y" for number in range(40, 90)})
        async with reading(storage) as store:
            infos = await list_all(store)
            assert len(infos) == 90
            for position, info in enumerate(infos):
                assert await list_all(store, cursor_of(info)) == infos[position + 1 :]

    async def test_resume_over_pages(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = in_order(maker.uids_of_one_shard(1500))
        await maker.add(dict.fromkeys(uids, b"x"))
        async with reading(storage) as store:
            for position in (0, 1, 510, 511, 512, 513, 1023, 1024, 1498, 1499):
                listed = [info.uid for info in await list_all(store, file_id(uids[position]).hex())]
                assert listed == uids[position + 1 :]

    async def test_a_page_that_ends_before_the_cursor_is_not_read(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = in_order(maker.uids_of_one_shard(3000))
        await maker.add(dict.fromkeys(uids, b"x"))
        async with reading(storage) as store:
            found = await store.find(uids[0], WHEN)
            refs = found.loaded.head.directory.refs()
            storage.calls.clear()
            infos: Any = store.list(DAY, after=refs[1].first_key.hex())
            async with aclosing(infos):
                await anext(infos)
            pages = storage.select(verb="read_range", key=found.identity.head_key)
            assert [(call.start, call.end) for call in pages] == [(refs[1].offset, refs[1].end)]

    async def test_a_cursor_need_not_be_a_file(self, storage: RecordingStorage) -> None:
        await make_store(storage, {f"{number}": b"x" for number in range(20)}, n_bits=3)
        uids = in_order(f"{number}" for number in range(20))
        async with reading(storage) as store:
            assert [info.uid for info in await list_all(store, "00" * 16)] == uids
            assert await list_all(store, "ff" * 16) == []
            middle = file_id(uids[10])[:-1] + bytes([file_id(uids[10])[-1] ^ 1])
            assert len(await list_all(store, middle.hex())) in {9, 10}

    async def test_shards_before_the_cursor_are_not_read(self, storage: RecordingStorage) -> None:
        await make_store(storage, {f"{number}": b"x" for number in range(100)}, n_bits=3)
        last = in_order(f"{number}" for number in range(100))[-1]
        async with reading(storage) as store:
            await store.check()
            storage.calls.clear()
            assert await list_all(store, file_id(last).hex()) == []
            assert [call.verb for call in storage.calls] == ["list_level", "read_suffix"]

    @pytest.mark.parametrize("cursor", ["x", "00", "00" * 15, "00" * 17, "zz" * 16, " " + "00" * 16 + "0"])
    async def test_what_is_no_cursor(self, storage: RecordingStorage, cursor: str) -> None:
        await make_store(storage, {"a": b"content"})
        async with reading(storage) as store:
            with pytest.raises(InvalidRequestError, match="is no cursor"):
                await list_all(store, cursor)

    @pytest.mark.parametrize("day", ["", "today", "20240230", "2024-1-31", "202401311"])
    async def test_what_is_no_day(self, storage: RecordingStorage, day: str) -> None:
        async with reading(storage) as store:
            with pytest.raises(InvalidRequestError):
                [info async for info in store.list(day)]

    def test_no_cursor_is_the_beginning(self) -> None:
        assert parse_cursor(None) == parse_cursor("") == b""


class TestMeanwhile:
    async def test_files_added_and_deleted_midway(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = in_order(maker.uids_of_one_shard(3000))
        await maker.add(dict.fromkeys(uids[::2], b"x"))
        async with reading(storage) as store:
            listed = []
            async for info in store.list(DAY):
                listed.append(info.uid)
                if len(listed) == 5:
                    await maker.add(dict.fromkeys(uids[1::2], b"x"))
                    await maker.delete(uids[-2:])
        assert listed == in_order(set(listed)), "in order, and none twice"
        assert set(uids[:-2:2]) <= set(listed), "what was there all the time"

    async def test_compaction_midway(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = in_order(maker.uids_of_one_shard(2500))
        for start in range(3):
            await maker.add({uid: File(b"x", metadata={"uid": uid}) for uid in uids[start::3]})
        async with reading(storage, cache_bytes=0) as store:
            listed = []
            async for info in store.list(DAY):
                listed.append((info.uid, (info.metadata or {})["uid"]))
                if len(listed) % 700 == 0:
                    await maker.compact()
        assert listed == [(uid, uid) for uid in uids]

    async def test_a_head_that_changes_faster_than_it_can_be_listed(self, local: LocalStorage) -> None:
        maker = await make_store(local)
        uids = in_order(maker.uids_of_one_shard(3000))
        await maker.add(dict.fromkeys(uids, b"x"))
        count = 0

        async def replace_head(call: Call) -> None:
            nonlocal count
            if call.verb == "read_range" and call.key.count("/") == 1:
                count += 1
                await maker.add({uids[0]: f"{count}".encode()})

        async with reading(Meddler(local, before=replace_head)) as store:
            with pytest.raises(StorageUnavailableError, match="changes faster than it can be listed"):
                await list_all(store)

    async def test_a_segment_that_is_gone_under_an_unchanged_head(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"a": b"content"})
        async with reading(storage) as store:
            info = await store.stat("a", WHEN)
            await storage.delete(info.segment)
            storage.calls.clear()
            with pytest.raises(CorruptShardError, match=rf"{info.shard}: it points at an object that is gone"):
                await list_all(store)
            assert storage.count(purpose="index") == 1, "said at once"

    async def test_a_shard_made_a_moment_ago(self, storage: RecordingStorage) -> None:
        """What a listing shows is there, whatever was known of it before."""
        maker = await make_store(storage)
        async with reading(storage, index_ttl=3600, negative_ttl=3600) as store:
            with pytest.raises(KeyError):
                await store.get("a", WHEN)
            await maker.add({"a": b"content"})
            assert [info.uid for info in await list_all(store)] == ["a"]

    async def test_a_day_that_expires_midway(self, local: LocalStorage) -> None:
        maker = await make_store(local, {"a": b"content"})
        segment = [info.key async for info in local.list(DAY) if info.key.count("/") == 2]

        async def expire(call: Call) -> None:
            if call.verb == "list_level":
                await local.delete(maker.identity("a").head_key)
                for key in segment:
                    await local.delete(key)

        async with reading(Meddler(local, after=expire)) as store:
            assert await list_all(store) == []

    async def test_a_closed_listing_goes_no_further(self, storage: RecordingStorage) -> None:
        await make_store(storage, {f"{number}": b"x" for number in range(60)}, n_bits=3)
        async with reading(storage) as store:
            await store.check()
            storage.calls.clear()
            async with aclosing(iterate(store)) as infos:
                await anext(infos)
            assert storage.count(purpose="footer") == 1


class TestLostHeads:
    async def test_segments_without_a_head(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {f"{number}": b"x" for number in range(20)}, n_bits=1)
        await storage.delete(f"{DAY}/1.des")
        async with reading(storage) as store:
            with pytest.raises(
                LostHeadError, match=f"{DAY}/1/ holds segments but its head is gone; run `des repair {DAY}/1`"
            ):
                await list_all(store)
        assert maker.files

    async def test_a_head_that_is_lost_between_listing_and_reading(self, local: LocalStorage) -> None:
        await make_store(local, {f"{number}": b"x" for number in range(20)}, n_bits=1)

        async def lose(call: Call) -> None:
            if call.verb == "list_level":
                await local.delete(f"{DAY}/1.des")

        async with reading(Meddler(local, after=lose)) as store:
            with pytest.raises(LostHeadError, match=f"des repair {DAY}/1"):
                await list_all(store)

    async def test_a_head_that_came_after_its_page_of_the_listing(self, local: LocalStorage) -> None:
        """A listing of many pages may show the segments of a shard whose head came a moment too late for it."""

        class Paged(StorageWrapper):
            async def list_level(self, prefix: str) -> Level:
                level = await super().list_level(prefix)
                return Level(tuple(info for info in level.objects if not info.key.endswith("/0.des")), level.prefixes)

        maker = await make_store(local, {f"{number}": b"x" for number in range(20)}, n_bits=1)
        async with reading(Paged(local)) as store:
            assert [info.uid for info in await list_all(store)] == in_order(maker.files[DAY])

    @pytest.mark.parametrize("stray", ["2.des", "00.des", "x.des", "-1.des", "+1.des", "1_0.des"])
    async def test_objects_that_are_no_heads(self, storage: RecordingStorage, stray: str) -> None:
        await make_store(storage, {"a": b"content"}, n_bits=1)
        await storage.put(f"{DAY}/{stray}", b"stray", Overwrite())
        async with reading(storage) as store:
            with pytest.raises(CorruptShardError, match="no shard of a day with n_bits 1 has this key"):
                await list_all(store)

    @pytest.mark.parametrize("stray", ["0.txt", "README"])
    async def test_objects_that_are_none_of_ours_are_passed_over(self, storage: RecordingStorage, stray: str) -> None:
        await make_store(storage, {"a": b"content"}, n_bits=1)
        await storage.put(f"{DAY}/{stray}", b"left here by someone", Overwrite())
        async with reading(storage) as store:
            assert [info.uid for info in await list_all(store)] == ["a"]

    async def test_shards_in_the_order_of_their_indices(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {f"{number}": b"x" for number in range(300)}, n_bits=5)
        shards = await shards_of(storage, maker.descriptor, DAY)
        assert [shard.shard_index for shard in shards] == list(range(32))


class TestTrouble:
    async def test_no_store(self, storage: RecordingStorage) -> None:
        async with reading(storage) as store:
            with pytest.raises(SettingsError, match="there is no store at"):
                await list_all(store)

    @pytest.mark.parametrize("at", range(1, 5))
    async def test_trouble_at_every_call(self, local: LocalStorage, at: int) -> None:
        await make_store(local, {"a": b"content"})
        faulty = FaultyStorage(local, [Fault(Fail(StorageUnavailableError("down")), at=at)])
        async with reading(faulty) as store:
            with pytest.raises(StorageUnavailableError, match="down"):
                await list_all(store)
            assert faulty.fired
            assert [info.uid for info in await list_all(store)] == ["a"]

    @pytest.mark.parametrize("at", range(1, 5))
    async def test_the_deadline_at_every_call(self, local: LocalStorage, at: int) -> None:
        await make_store(local, {"a": b"content"})
        faulty = FaultyStorage(local, [Fault(Hold(), at=at)])
        async with reading(faulty, request_timeout=0.5) as store:
            with pytest.raises(StorageTimeoutError):
                await list_all(store)
            assert faulty.fired
            assert [info.uid for info in await list_all(store)] == ["a"]

    @pytest.mark.parametrize("lie", [{"object_number": 1}, {"length": 0xFFFF_FFFF}, {"offset": 1 << 40}, {"items": 0}])
    async def test_a_directory_that_points_outside(self, storage: RecordingStorage, lie: dict[str, Any]) -> None:
        """Found by fuzzing: the object of a page was looked up in a list that was shorter, and its length not limited."""
        maker = await make_store(storage, {"a": b"content"})
        key = maker.identity("a").head_key
        good = await storage.read_suffix(key, 1 << 20)
        assert good is not None
        parts = Parts.of(good.data)
        parts.directory[0] = parts.directory[0]._replace(**lie)
        await storage.put(key, parts.build(), Overwrite())
        reads = storage.count(verb="read_range")
        async with reading(storage) as store:
            with pytest.raises(CorruptShardError, match=rf"^{key}: the directory points outside"):
                await list_all(store)
        assert storage.count(verb="read_range") == reads

    async def test_every_byte_of_a_head(self, storage: RecordingStorage) -> None:
        """A listing is whole and right, or an error."""
        maker = await make_store(storage, {"a": b"content", "b": b"more"})
        key = maker.identity("a").head_key
        good = await storage.read_suffix(key, 1 << 20)
        assert good is not None
        async with reading(storage) as store:
            right = await list_all(store)
        for position in range(42, good.total_size, 3):
            bad = bytearray(good.data)
            bad[position] ^= 8
            await storage.put(key, bytes(bad), Overwrite())
            async with reading(storage) as store:
                with pytest.raises(CorruptShardError, match=rf"^{key}: "):
                    await list_all(store)
        await storage.put(key, good.data, Overwrite())
        async with reading(storage) as store:
            assert await list_all(store) == right
