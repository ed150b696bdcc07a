"""What a retrieval costs, in storage requests and bytes: DESIGN's table, asserted on what really reached the storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from des.errors import DeletedError, NotFoundError
from des.routing import file_id
from des.shard.chunking import CHUNK_BYTES, LARGE_BYTES
from des.shard.codecs import Compression
from des.storage.descriptor import DESCRIPTOR_KEY
from des.storage.testing import Fault, FaultyStorage, Hold, RecordingStorage
from tests.making import WHEN, File, Maker, make_store, reading
from tests.store.contents import DICTIONARY, noise, read_stream, text

if TYPE_CHECKING:
    from des.storage.local import LocalStorage

# Enough for several pages, only the last of which comes with the tail.
MANY = 3000


@pytest.fixture
async def maker(local: LocalStorage) -> Maker:
    """Return a store whose shard has many pages; `first` lies on one that does not come with the tail, `last` on one that does."""
    maker = await make_store(local)
    uids = sorted(maker.uids_of_one_shard(MANY), key=file_id)
    await maker.add({uid: File(uid.encode() * 20, metadata={"uid": uid}) for uid in uids})
    return maker


@pytest.fixture
def uids(maker: Maker) -> list[str]:
    (files,) = maker.files.values()
    return list(files)


def reads(storage: RecordingStorage) -> list[tuple[str | None, str]]:
    """Return purpose and verb of each call since the last time, less the descriptor."""
    calls = [(call.purpose, call.verb) for call in storage.calls if call.key != DESCRIPTOR_KEY]
    storage.calls.clear()
    return [(purpose, verb) for purpose, verb in calls]


TAIL = ("footer", "read_suffix")
PAGE = ("index", "read_range")
PAYLOAD = ("payload", "read_range")


class TestOne:
    async def test_cold_three_reads_and_the_descriptor_once(self, storage: RecordingStorage, uids: list[str]) -> None:
        async with reading(storage) as store:
            await store.get(uids[0], WHEN)
            assert storage.calls[0].key == DESCRIPTOR_KEY
            assert storage.count(key=DESCRIPTOR_KEY) == 1
            index_bytes = storage.moved(purpose="footer") + storage.moved(purpose="index")
            assert index_bytes <= 128 << 10
            assert reads(storage) == [TAIL, PAGE, PAYLOAD]

    async def test_cold_two_where_the_page_came_with_the_tail(self, storage: RecordingStorage, uids: list[str]) -> None:
        async with reading(storage) as store:
            await store.get(uids[-1], WHEN)
            assert reads(storage) == [TAIL, PAYLOAD]

    async def test_warm_one(self, storage: RecordingStorage, uids: list[str]) -> None:
        async with reading(storage) as store:
            for uid in (uids[0], uids[-1]):
                await store.get(uid, WHEN)
            reads(storage)
            for uid in (uids[0], uids[1], uids[-1], uids[-2]):
                content = await store.get(uid, WHEN)
                assert storage.moved() < len(content)
                assert reads(storage) == [PAYLOAD]

    async def test_an_empty_file_has_no_payload_to_read(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"empty": b""})
        storage.calls.clear()
        async with reading(storage) as store:
            assert await store.get("empty", WHEN) == b""
            assert reads(storage) == [TAIL]

    async def test_what_the_index_knows_is_free_once_it_is_warm(
        self, storage: RecordingStorage, maker: Maker, uids: list[str]
    ) -> None:
        await maker.delete([uids[7]])
        async with reading(storage) as store:
            await store.stat(uids[0], WHEN)
            reads(storage)
            await store.stat(uids[0], WHEN)
            await store.find(uids[1], WHEN)
            with pytest.raises(DeletedError):
                await store.get(uids[7], WHEN)
            # On the page that is warm, between two files that are there.
            low, high = file_id(uids[0]), file_id(uids[400])
            names = (f"missing {number}" for number in range(10**6))
            missing = next(
                uid for uid in names if maker.identity(uid) == maker.identity(uids[0]) and low < file_id(uid) < high
            )
            with pytest.raises(NotFoundError):
                await store.get(missing, WHEN)
            assert reads(storage) == []

    async def test_cold_stat_is_a_cold_get_without_the_payload(
        self, storage: RecordingStorage, uids: list[str]
    ) -> None:
        async with reading(storage) as store:
            await store.stat(uids[0], WHEN)
            assert reads(storage) == [TAIL, PAGE]

    async def test_metadata_one_more_and_one_for_the_segments_tail_at_first(
        self, storage: RecordingStorage, uids: list[str]
    ) -> None:
        async with reading(storage) as store:
            await store.stat(uids[0], WHEN)
            reads(storage)
            await store.stat(uids[0], WHEN, metadata=True)
            assert reads(storage) == [("index", "read_suffix"), PAGE]
            await store.stat(uids[1], WHEN, metadata=True)
            assert reads(storage) == [], "of the same chunk"
            await store.stat(uids[1500], WHEN)
            reads(storage)
            await store.stat(uids[1500], WHEN, metadata=True)
            assert reads(storage) == [PAGE]

    @pytest.mark.parametrize("size", [LARGE_BYTES + 1, 20 * CHUNK_BYTES])
    async def test_a_range_of_a_large_payload_one_more(self, storage: RecordingStorage, size: int) -> None:
        content = noise(size)
        await make_store(storage, {"large": content})
        async with reading(storage) as store:
            await store.stat("large", WHEN)
            reads(storage)
            storage.calls.clear()
            middle = 2 * CHUNK_BYTES
            assert await read_stream(store, "large", middle - 5, middle + 5) == content[middle - 5 : middle + 5]
            assert storage.moved() <= 2 * CHUNK_BYTES + 8 * (size // CHUNK_BYTES + 1)
            opened = [call for call in reads(storage) if call[1] != "piece"]
            assert opened == [PAGE, ("payload", "stream_range")]
            await read_stream(store, "large", 0, 1)
            opened = [call for call in reads(storage) if call[1] != "piece"]
            assert opened == [("payload", "stream_range")], "the seek table is known by now"

    async def test_all_of_a_large_payload_in_one(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"large": noise(5 * CHUNK_BYTES)})
        async with reading(storage) as store:
            await store.stat("large", WHEN)
            reads(storage)
            await store.get("large", WHEN)
            assert reads(storage) == [PAYLOAD]

    async def test_a_range_of_a_small_payload_is_a_get(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"small": noise(LARGE_BYTES)})
        async with reading(storage) as store:
            await store.stat("small", WHEN)
            reads(storage)
            await read_stream(store, "small", 5, 10)
            assert reads(storage) == [PAYLOAD]

    async def test_an_empty_range_is_free(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"large": noise(LARGE_BYTES + 1)})
        async with reading(storage) as store:
            await store.stat("large", WHEN)
            reads(storage)
            for start, end in ((5, 5), (LARGE_BYTES + 1, None), (10**10, 10**11)):
                assert await read_stream(store, "large", start, end) == b""
            assert reads(storage) == []

    async def test_a_dictionary_once_a_process_wherever_it_stands(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = maker.uids_of_one_shard(20)
        for some in (uids[:10], uids[10:]):
            await maker.add({uid: text(500, len(uid)) for uid in some}, compression=Compression(dictionary=DICTIONARY))
        async with reading(storage) as store:
            await store.stat(uids[0], WHEN)
            reads(storage)
            await store.get(uids[0], WHEN)
            assert reads(storage) == [PAYLOAD, PAGE]
            for uid in uids:
                await store.get(uid, WHEN)
            assert reads(storage) == [PAYLOAD] * 20


class TestManyAtOnce:
    async def test_a_thousand_cold_gets_in_one_shard(
        self, storage: RecordingStorage, maker: Maker, uids: list[str]
    ) -> None:
        contents: dict[str, bytes] = {}
        async with reading(storage) as store:

            async def get(uid: str) -> None:
                contents[uid] = await store.get(uid, WHEN)

            async with anyio.create_task_group() as tasks:
                for uid in uids[::3]:
                    tasks.start_soon(get, uid)
            found = await store.find(uids[0], WHEN)
        assert contents == {uid: uid.encode() * 20 for uid in uids[::3]}
        assert storage.count(key=DESCRIPTOR_KEY) == 1
        assert storage.count(key=maker.identity(uids[0]).head_key, purpose="footer") == 1
        pages = storage.select(purpose="index")
        missing = [ref for ref in found.loaded.head.directory.refs() if found.loaded.page_that_came_along(ref) is None]
        assert sorted((call.start, call.end) for call in pages) == [(ref.offset, ref.end) for ref in missing]
        assert storage.count(purpose="payload") == 1000

    @pytest.mark.parametrize("held", ["descriptor", "tail", "page"])
    async def test_cancelling_the_leader_loses_nobody(self, local: LocalStorage, uids: list[str], held: str) -> None:
        """The first request of its kind hangs; its leader is cancelled, and one of a thousand others goes on."""
        hold = Hold()
        fault = {
            "descriptor": Fault(hold, key=lambda key: key == DESCRIPTOR_KEY),
            "tail": Fault(hold, verb="read_suffix", at=2),
            "page": Fault(hold, verb="read_range", at=1),
        }[held]
        recording = RecordingStorage(local)
        faulty = FaultyStorage(recording, [fault])
        leader = anyio.CancelScope()
        contents: list[bytes] = []
        async with reading(faulty) as store:

            async def lead() -> None:
                with leader:
                    await store.get(uids[0], WHEN)

            async def get() -> None:
                contents.append(await store.get(uids[0], WHEN))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lead)
                await hold.reached.wait()
                for _ in range(1000):
                    tasks.start_soon(get)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                leader.cancel()
            assert leader.cancelled_caught
            assert contents == [uids[0].encode() * 20] * 1000
            assert faulty.fired
            assert [recording.count(key=DESCRIPTOR_KEY), recording.count(purpose="index")] == [1, 1]
            assert recording.count(purpose="footer") == 2
