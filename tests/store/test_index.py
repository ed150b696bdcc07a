from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from des.errors import (
    CorruptShardError,
    NotFoundError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageDeniedError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from des.routing import file_id
from des.shard.tables import HeadTables
from des.shard.writing import encode_head
from des.storage.descriptor import DESCRIPTOR_KEY, Descriptor, Epoch, IndexRange
from des.storage.protocol import Overwrite
from des.storage.testing import Call, Fail, Fault, FaultyStorage, Hold, RecordingStorage
from tests.making import DAY, WHEN, make_store, reading
from tests.store.meddling import Meddler

if TYPE_CHECKING:
    from des.storage.local import LocalStorage
    from tests.store.conftest import Clock


def asked(storage: RecordingStorage) -> list[str]:
    """Return what was asked of the storage since the last time, briefly."""
    names = {"read_suffix": "tail", "read_range": "range"}
    calls = [
        "descriptor" if call.key == DESCRIPTOR_KEY else call.purpose if call.verb == "read_range" else names[call.verb]
        for call in storage.calls
    ]
    storage.calls.clear()
    return [str(call) for call in calls]


class TestFreshness:
    async def test_a_head_serves_until_its_ttl_and_is_then_revalidated(
        self, storage: RecordingStorage, clock: Clock
    ) -> None:
        await make_store(storage, {"a": b"content"})
        async with reading(storage, index_ttl=60) as store:
            await store.stat("a", WHEN)
            storage.calls.clear()
            clock.advance(60)
            await store.stat("a", WHEN)
            assert asked(storage) == []
            clock.advance(0.001)
            await store.stat("a", WHEN)
            assert storage.moved(key=f"{DAY}/1.des") == storage.moved(key=f"{DAY}/0.des") == 0, (
                "it is still what it was"
            )
            assert sorted(asked(storage)) == ["descriptor", "tail"]
            clock.advance(60)
            await store.stat("a", WHEN)
            assert asked(storage) == [], "counted from the last time it was asked for"

    async def test_replaced_content_shows_after_the_ttl(self, storage: RecordingStorage, clock: Clock) -> None:
        maker = await make_store(storage, {"a": b"old"})
        async with reading(storage, index_ttl=60) as store:
            assert await store.get("a", WHEN) == b"old"
            await maker.add({"a": b"new"})
            assert await store.get("a", WHEN) == b"old"
            clock.advance(61)
            assert await store.get("a", WHEN) == b"new"

    async def test_a_ttl_of_zero_asks_every_time(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"a": b"old"})
        async with reading(storage, index_ttl=0, negative_ttl=0) as store:
            assert await store.get("a", WHEN) == b"old"
            await maker.add({"a": b"new"})
            assert await store.get("a", WHEN) == b"new"
            await maker.delete(["a"])
            with pytest.raises(NotFoundError):
                await store.get("a", WHEN)
            await maker.add({"a": b"again"})
            storage.calls.clear()
            assert await store.get("a", WHEN) == b"again"
            assert asked(storage) == ["descriptor", "tail", "payload"]

    async def test_the_descriptor_is_read_again_and_believed(self, storage: RecordingStorage, clock: Clock) -> None:
        maker = await make_store(storage, {"a": b"content"})
        async with reading(storage) as store:
            await store.stat("a", WHEN)
            changed = Descriptor(
                maker.descriptor.store_id,
                (*maker.descriptor.epochs, Epoch("20250101", 3)),
                maker.descriptor.index_range,
            )
            await storage.put(DESCRIPTOR_KEY, changed.encode(), Overwrite())
            assert (await store.index.descriptor()).n_bits_on("20250101") == 1
            clock.advance(61)
            assert (await store.index.descriptor()).n_bits_on("20250101") == 3

    async def test_pages_survive_a_commit(self, storage: RecordingStorage, clock: Clock) -> None:
        """A commit changes the pages that it adds to; the others stay in the cache."""
        maker = await make_store(storage)
        uids = sorted(maker.uids_of_one_shard(3000), key=file_id)
        await maker.add(dict.fromkeys(uids, b"x"))
        async with reading(storage) as store:
            for uid in uids:
                await store.stat(uid, WHEN)
            await maker.add({uids[-1]: b"changed"})
            clock.advance(61)
            storage.calls.clear()
            for uid in uids[:1000]:
                await store.stat(uid, WHEN)
            assert asked(storage) == ["descriptor", "tail"]
            assert (await store.stat(uids[-1], WHEN)).raw_size == len(b"changed")


class TestNotFound:
    @pytest.mark.parametrize("has_head", [True, False])
    async def test_known_for_the_negative_ttl(self, storage: RecordingStorage, clock: Clock, has_head: bool) -> None:
        maker = await make_store(storage)
        if has_head:
            await maker.make_shard(DAY, "a")
        async with reading(storage, negative_ttl=1) as store:
            with pytest.raises(NotFoundError, match=f"there is no file 'a' on {DAY}"):
                await store.get("a", WHEN)
            storage.calls.clear()
            clock.advance(1)
            with pytest.raises(NotFoundError):
                await store.get("a", WHEN)
            assert asked(storage) == []
            clock.advance(0.001)
            with pytest.raises(NotFoundError):
                await store.get("a", WHEN)
            assert asked(storage) == (["tail"] if has_head else ["tail", "descriptor"])

    @pytest.mark.parametrize("has_head", [True, False])
    async def test_a_new_file_shows_after_the_negative_ttl(
        self, storage: RecordingStorage, clock: Clock, has_head: bool
    ) -> None:
        maker = await make_store(storage)
        if has_head:
            await maker.make_shard(DAY, "a")
        async with reading(storage, index_ttl=3600, negative_ttl=1) as store:
            with pytest.raises(NotFoundError):
                await store.get("a", WHEN)
            await maker.add({"a": b"content"})
            clock.advance(1.001)
            assert await store.get("a", WHEN) == b"content"

    async def test_it_is_as_old_as_the_question_and_not_as_the_answer(self, local: LocalStorage, clock: Clock) -> None:
        """A head that took long to read is not fresher for that."""

        async def take_long(call: Call) -> None:
            clock.advance(10)

        maker = await make_store(local)
        await maker.make_shard(DAY, "a")
        storage = RecordingStorage(Meddler(local, after=take_long))
        async with reading(storage, negative_ttl=5) as store:
            for _ in range(2):
                storage.calls.clear()
                with pytest.raises(NotFoundError):
                    await store.get("a", WHEN)
                assert storage.count(key=f"{DAY}/{maker.identity('a').shard_hex}.des") == 1

    async def test_a_negative_ttl_above_the_index_ttl(self, storage: RecordingStorage, clock: Clock) -> None:
        maker = await make_store(storage)
        await maker.make_shard(DAY, "a")
        async with reading(storage, index_ttl=1, negative_ttl=60) as store:
            for seconds in (0.0, 2.0):
                clock.advance(seconds)
                storage.calls.clear()
                with pytest.raises(NotFoundError):
                    await store.get("a", WHEN)
                assert asked(storage) == ["descriptor", "tail"]

    async def test_a_stale_head_is_asked_again_before_it_denies(self, storage: RecordingStorage, clock: Clock) -> None:
        maker = await make_store(storage)
        first, second = maker.uids_of_one_shard(2)
        await maker.add({first: b"first"})
        async with reading(storage, index_ttl=60, negative_ttl=1) as store:
            assert await store.get(first, WHEN) == b"first"
            await maker.add({second: b"second"})
            clock.advance(2)
            assert await store.get(second, WHEN) == b"second"

    async def test_deleted_is_known_without_asking(self, storage: RecordingStorage, clock: Clock) -> None:
        maker = await make_store(storage, {"a": b"content"})
        await maker.delete(["a"])
        async with reading(storage) as store:
            for _ in range(2):
                with pytest.raises(NotFoundError, match="was deleted"):
                    await store.get("a", WHEN)
                clock.advance(30)
            assert storage.count(purpose="payload") == 0

    @pytest.mark.parametrize(
        "error",
        [
            StorageUnavailableError("unavailable"),
            StorageTimeoutError("timeout"),
            StorageDeniedError("denied"),
            PreconditionFailedError("no such version"),
        ],
        ids=lambda error: error.status,
    )
    @pytest.mark.parametrize("at", [1, 2])
    async def test_trouble_is_never_not_found(
        self, local: LocalStorage, error: StorageUnavailableError, at: int
    ) -> None:
        maker = await make_store(local)
        await maker.make_shard(DAY, "a")
        faulty = FaultyStorage(local, [Fault(Fail(error), at=at)])
        async with reading(faulty) as store:
            with pytest.raises(type(error), match=str(error)):
                await store.get("a", WHEN)
            assert faulty.fired
            with pytest.raises(NotFoundError):
                await store.get("a", WHEN)

    async def test_trouble_at_the_revalidation_is_no_proof(self, local: LocalStorage, clock: Clock) -> None:
        maker = await make_store(local)
        await maker.make_shard(DAY, "a")
        faulty = FaultyStorage(local, [Fault(Fail(StorageUnavailableError("down")), at=3)])
        async with reading(faulty) as store:
            with pytest.raises(NotFoundError):
                await store.get("a", WHEN)
            clock.advance(2)
            with pytest.raises(StorageUnavailableError, match="down"):
                await store.get("a", WHEN)
            assert faulty.fired


class TestDescriptor:
    async def test_no_descriptor_is_no_not_found(self, storage: RecordingStorage) -> None:
        async with reading(storage) as store:
            for _ in range(2):
                with pytest.raises(SettingsError, match="there is no store at"):
                    await store.get("a", WHEN)
            assert [call.key for call in storage.calls] == [DESCRIPTOR_KEY] * 2

    async def test_a_store_may_come_later(self, storage: RecordingStorage) -> None:
        async with reading(storage) as store:
            with pytest.raises(SettingsError):
                await store.check()
            await make_store(storage, {"a": b"content"})
            await store.check()
            assert await store.get("a", WHEN) == b"content"

    async def test_a_store_that_went_away_has_no_missing_files(self, local: LocalStorage, clock: Clock) -> None:
        """An unmounted or emptied place makes every head look absent; only a descriptor of now makes that a proof."""
        maker = await make_store(local, {"a": b"content"})
        async with reading(local, index_ttl=60, negative_ttl=1) as store:
            assert await store.get("a", WHEN) == b"content"
            await local.delete(DESCRIPTOR_KEY)
            await local.delete(maker.identity("a").head_key)
            clock.advance(2)
            with pytest.raises(SettingsError, match="there is no store at"):
                await store.get("b", "2024-02-01")

    async def test_many_missing_heads_cost_one_descriptor(self, storage: RecordingStorage, clock: Clock) -> None:
        await make_store(storage)
        async with reading(storage) as store:
            await store.check()
            clock.advance(30)
            storage.calls.clear()
            for day in range(1, 29):
                with pytest.raises(NotFoundError):
                    await store.get("a", f"2024-02-{day:02}")
            calls = asked(storage)
            assert (calls.count("descriptor"), calls.count("tail")) == (1, 28)

    async def test_n_bits_that_changed_meanwhile(self, local: LocalStorage, clock: Clock) -> None:
        """A missing head is no proof under an n_bits that is no longer in force."""
        maker = await make_store(local)
        day = "20250101"
        async with reading(local, index_ttl=3600, negative_ttl=1) as store:
            await store.check()
            changed = Descriptor(
                maker.descriptor.store_id, (*maker.descriptor.epochs, Epoch(day, 9)), maker.descriptor.index_range
            )
            await local.put(DESCRIPTOR_KEY, changed.encode(), Overwrite())
            maker.descriptor = changed
            await maker.add({"a": b"content"}, day)
            clock.advance(2)
            assert await store.get("a", "2025-01-01") == b"content"

    async def test_another_n_bits_in_the_settings(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"a": b"content"}, n_bits=3)
        async with reading(storage, n_bits=8) as store:
            with pytest.raises(SettingsError, match="n_bits is configured as 8, but the store has 3"):
                await store.get("a", WHEN)

    async def test_a_zone_opened_as_if_it_were_a_whole_store(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {f"{n}": b"content" for n in range(20)}, n_bits=1)
        zone = Descriptor(maker.descriptor.store_id, maker.descriptor.epochs, IndexRange(1, 0, 0))
        await storage.put(DESCRIPTOR_KEY, zone.encode(), Overwrite())
        here = {uid for uid in maker.files[DAY] if maker.identity(uid).shard_index == 0}
        assert 0 < len(here) < 20
        async with reading(storage) as store:
            for uid in maker.files[DAY]:
                if uid in here:
                    assert await store.get(uid, WHEN) == b"content"
                else:
                    with pytest.raises(SettingsError, match="not in this place, a zone that holds 0 to 0"):
                        await store.get(uid, WHEN)
            results = {result.uid: result async for result in store.get_many((uid, WHEN) for uid in maker.files[DAY])}
            assert {uid for uid, result in results.items() if isinstance(result.error, SettingsError)} == set(
                results
            ) - here


class TestHeads:
    async def test_another_stores_head(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"a": b"content"})
        identity = maker.identity("a")
        stranger = identity._replace(store_id=bytes(16))
        await storage.put(identity.head_key, encode_head(stranger, HeadTables(1, bytes(16)), b""), Overwrite())
        async with reading(storage) as store:
            with pytest.raises(CorruptShardError, match="belongs to another store"):
                await store.get("a", WHEN)

    async def test_a_head_replaced_between_tail_and_page(self, local: LocalStorage) -> None:
        maker = await make_store(local)
        uids = sorted(maker.uids_of_one_shard(3000), key=file_id)
        await maker.add({uid: uid.encode() for uid in uids[1:]})

        versions = iter((b"first", b"second", b"third"))
        last = b""

        async def replace_head(call: Call) -> None:
            nonlocal last
            if call.purpose == "index" and (version := next(versions, None)):
                last = version
                await maker.add({uids[0]: version})

        async with reading(Meddler(local, before=replace_head)) as store:
            assert await store.get(uids[1], WHEN) == uids[1].encode()
            assert last == b"third"
            assert await store.get(uids[0], WHEN) == b"third"

    async def test_a_head_lost_between_tail_and_page(self, local: LocalStorage) -> None:
        """The file is not there any more, and that is an answer."""
        maker = await make_store(local)
        uids = sorted(maker.uids_of_one_shard(3000), key=file_id)
        await maker.add(dict.fromkeys(uids, b"x"))

        async def lose_head(call: Call) -> None:
            if call.purpose == "index":
                await local.delete(call.key)

        async with reading(Meddler(local, before=lose_head)) as store:
            with pytest.raises(NotFoundError):
                await store.stat(uids[0], WHEN)

    async def test_a_page_that_is_gone_under_an_unchanged_head(self, local: LocalStorage) -> None:
        maker = await make_store(local)
        uids = sorted(maker.uids_of_one_shard(3000), key=file_id)
        await maker.add(dict.fromkeys(uids, b"x"))
        error = ObjectNotFoundError("There is no such object.")
        faulty = FaultyStorage(local, [Fault(Fail(error), verb="read_range")])
        async with reading(faulty) as store:
            with pytest.raises(CorruptShardError, match="points at an object that is gone"):
                await store.stat(uids[0], WHEN)
            assert faulty.fired

    async def test_without_a_cache_everything_still_works(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = sorted(maker.uids_of_one_shard(3000), key=file_id)
        await maker.add({uid: uid.encode() for uid in uids})
        async with reading(storage, cache_bytes=0) as store:
            for uid in (uids[0], uids[1], uids[-1]):
                storage.calls.clear()
                assert await store.get(uid, WHEN) == uid.encode()
                assert asked(storage)[-1] == "payload"
            assert store.cache.used_bytes == 0

    async def test_whoever_joins_a_flight_that_left_before_asks_again(self, local: LocalStorage) -> None:
        """With a TTL of zero, an answer to a question of before is not good enough."""
        maker = await make_store(local, {"a": b"old"})
        hold = Hold()
        key = maker.identity("a").head_key
        faulty = FaultyStorage(RecordingStorage(local), [Fault(hold, key=lambda k: k == key)])
        results: list[bytes] = []
        async with reading(faulty, index_ttl=0, negative_ttl=0) as store:

            async def get() -> None:
                results.append(await store.get("a", WHEN))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(get)
                await hold.reached.wait()
                tasks.start_soon(get)
                await anyio.lowlevel.checkpoint()
                hold.release.set()
            assert results == [b"old"] * 2
            assert isinstance(faulty.inner, RecordingStorage)
            assert faulty.inner.count(key=key) == 2
