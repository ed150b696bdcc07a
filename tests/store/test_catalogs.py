from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from des.errors import CorruptShardError, ObjectNotFoundError, StorageUnavailableError
from des.routing import file_id
from des.shard.layout import TAIL_READ_BYTES
from des.storage.protocol import Overwrite
from des.storage.testing import Fail, Fault, FaultyStorage
from des.store.cache import ByteLRU
from des.store.catalogs import CatalogReader, load_segment, read_chunk
from tests.making import File, make_store

if TYPE_CHECKING:
    from des.shard.layout import Identity
    from des.storage.local import LocalStorage
    from des.storage.protocol import Storage
    from des.storage.testing import RecordingStorage
    from tests.making import Maker


def name_of(key: str) -> bytes:
    return bytes.fromhex(key.rpartition("/")[2].removesuffix(".des"))


async def make_segment(
    storage: Storage, count: int, metadata_bytes: int = 10
) -> tuple[Maker, Identity, bytes, list[str]]:
    """Make one segment of many files with metadata; return its maker, shard, name and uids in file_id order."""
    maker = await make_store(storage)
    uids = sorted(maker.uids_of_one_shard(count), key=file_id)
    files = {uid: File(b"x", "text/plain", {"uid": uid, "filler": uid * (metadata_bytes // len(uid))}) for uid in uids}
    (key,) = await maker.add(files)
    return maker, maker.identity(uids[0]), name_of(key), uids


class TestLoading:
    @pytest.mark.parametrize(("count", "reads"), [(1, 1), (100, 1), (3000, 1)])
    async def test_one_read_gets_the_tail(self, storage: RecordingStorage, count: int, reads: int) -> None:
        _, identity, name, _ = await make_segment(storage, count)
        storage.calls.clear()
        loaded = await load_segment(storage, identity, name)
        assert loaded.segment.tables.rows == count
        assert [call.purpose for call in storage.calls] == ["index"] * reads
        assert len(loaded.suffix) <= TAIL_READ_BYTES

    async def test_a_tail_longer_than_that_takes_another(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        uids = maker.uids_of_one_shard(400)
        (key,) = await maker.add({uid: File(b"x", f"text/{uid:0>200}") for uid in uids})
        storage.calls.clear()
        loaded = await load_segment(storage, maker.identity(uids[0]), name_of(key))
        assert len(loaded.segment.tables.content_types) == 400
        assert [call.verb for call in storage.calls] == ["read_suffix", "read_range"]
        assert loaded.weight > len(loaded.suffix) > TAIL_READ_BYTES

    async def test_chunks_that_did_not_come_along_are_read(self, storage: RecordingStorage) -> None:
        _, identity, name, uids = await make_segment(storage, 3000, metadata_bytes=500)
        loaded = await load_segment(storage, identity, name)
        refs = loaded.segment.directory.refs()
        storage.calls.clear()
        rows = [row for ref in refs for row in await read_chunk(storage, loaded, ref)]
        assert [row.uid for row in rows] == uids
        assert 0 < len(storage.calls) < len(refs), "some came with the tail"

    async def test_a_segment_that_is_gone(self, storage: RecordingStorage) -> None:
        maker, identity, name, _ = await make_segment(storage, 1)
        await storage.delete(identity.segment_key(name))
        with pytest.raises(ObjectNotFoundError):
            await load_segment(storage, identity, name)
        assert maker.files

    async def test_another_shards_segment(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {f"{number}": b"x" for number in range(9)})
        keys = [info.key async for info in storage.list("2024") if info.key.count("/") == 2]
        one, other = (
            maker.identity(uid)
            for uid in ("0", next(u for u in "12345678" if maker.identity(u) != maker.identity("0")))
        )
        mine = next(key for key in keys if key.startswith(one.segment_prefix))
        theirs = next(key for key in keys if key.startswith(other.segment_prefix))
        await storage.put(mine, await storage.read_range(theirs, 0, 1 << 20), Overwrite())
        with pytest.raises(CorruptShardError, match=rf"^{mine}: the object belongs to shard"):
            await load_segment(storage, one, name_of(mine))

    async def test_every_byte_of_a_catalog(self, storage: RecordingStorage) -> None:
        _, identity, name, uids = await make_segment(storage, 5)
        key = identity.segment_key(name)
        loaded = await load_segment(storage, identity, name)
        good = await storage.read_range(key, 0, 1 << 20)
        for position in range(loaded.segment.tables.data_end, len(good)):
            bad = bytearray(good)
            bad[position] ^= 2
            await storage.put(key, bytes(bad), Overwrite())
            reader = CatalogReader(storage, ByteLRU(1 << 20))
            with pytest.raises(CorruptShardError, match=rf"^{key}: "):
                await reader.find(identity, name, [file_id(uids[0])])


class TestReader:
    async def test_rows_of_some_files(self, storage: RecordingStorage) -> None:
        _, identity, name, uids = await make_segment(storage, 3000, metadata_bytes=500)
        reader = CatalogReader(storage, ByteLRU(64 << 20))
        wanted = [uids[number] for number in (0, 1, 777, 1500, 2999)]
        rows = await reader.find(identity, name, [file_id(uid) for uid in wanted])
        assert sorted(row.uid for row in rows.values()) == sorted(wanted)
        assert all(
            row.metadata_object()["uid"] == row.uid and row.content_type == "text/plain" for row in rows.values()
        )

    async def test_a_file_that_is_not_in_it(self, storage: RecordingStorage) -> None:
        _, identity, name, uids = await make_segment(storage, 10)
        reader = CatalogReader(storage, ByteLRU(64 << 20))
        strangers = [bytes(16), b"\xff" * 16, file_id("stranger")]
        rows = await reader.find(identity, name, [*strangers, file_id(uids[3])])
        assert [row.uid for row in rows.values()] == [uids[3]]
        assert await reader.find(identity, name, []) == {}

    async def test_what_was_read_is_kept(self, storage: RecordingStorage) -> None:
        _, identity, name, uids = await make_segment(storage, 3000, metadata_bytes=500)
        reader = CatalogReader(storage, ByteLRU(64 << 20))
        ids = [file_id(uid) for uid in uids]
        await reader.find(identity, name, ids)
        storage.calls.clear()
        assert len(await reader.find(identity, name, ids)) == 3000
        assert storage.calls == []

    async def test_without_room_it_is_read_again(self, storage: RecordingStorage) -> None:
        _, identity, name, uids = await make_segment(storage, 10)
        reader = CatalogReader(storage, ByteLRU(0))
        for _ in range(2):
            storage.calls.clear()
            assert len(await reader.find(identity, name, [file_id(uids[0])])) == 1
            assert len(storage.calls) == 1

    async def test_a_thousand_at_once_read_once(self, storage: RecordingStorage) -> None:
        _, identity, name, uids = await make_segment(storage, 3000, metadata_bytes=500)
        reader = CatalogReader(storage, ByteLRU(64 << 20))
        storage.calls.clear()
        async with anyio.create_task_group() as tasks:
            for _ in range(1000):
                tasks.start_soon(reader.find, identity, name, [file_id(uids[0])])
        assert [call.verb for call in storage.calls] == ["read_suffix", "read_range"]

    async def test_trouble_is_not_kept(self, local: LocalStorage) -> None:
        _, identity, name, uids = await make_segment(local, 10)
        faulty = FaultyStorage(local, [Fault(Fail(StorageUnavailableError("down")))])
        reader = CatalogReader(faulty, ByteLRU(1 << 20))
        with pytest.raises(StorageUnavailableError):
            await reader.find(identity, name, [file_id(uids[0])])
        assert faulty.fired
        assert len(await reader.find(identity, name, [file_id(uids[0])])) == 1
