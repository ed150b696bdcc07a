from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import (
    CorruptShardError,
)
from des.shard.chunking import CHUNK_BYTES, LARGE_BYTES
from des.shard.codecs import Compression
from des.shard.layout import ENTRY_BYTES, HEADER
from des.storage.protocol import Overwrite
from tests.making import WHEN, make_store, reading
from tests.store.contents import DICTIONARY, TEXT, noise, read_stream

if TYPE_CHECKING:
    from des.storage.testing import RecordingStorage


class TestDamage:
    """Bytes that are not what they were: `CorruptShardError`, and never a byte of them."""

    async def test_every_byte_of_a_payload(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"a": TEXT * 3})
        async with reading(storage) as store:
            info = await store.stat("a", WHEN)
        good = await storage.read_range(info.segment, 0, 1 << 20)
        for position in range(info.offset, info.offset + info.stored_size):
            bad = bytearray(good)
            bad[position] ^= 0x10
            await storage.put(info.segment, bytes(bad), Overwrite())
            async with reading(storage) as store:
                with pytest.raises(CorruptShardError, match=rf"^{info.segment}: the payload of 'a' is damaged"):
                    await store.get("a", WHEN)
                with pytest.raises(CorruptShardError):
                    await store.read_stored(await store.find("a", WHEN))
        assert maker.files

    @pytest.mark.parametrize("kept", [0, HEADER.size, HEADER.size + 1, HEADER.size + CHUNK_BYTES, -1])
    @pytest.mark.parametrize("size", [100, LARGE_BYTES + 5])
    async def test_a_segment_cut_short(self, storage: RecordingStorage, size: int, kept: int) -> None:
        await make_store(storage, {"a": noise(size)})
        async with reading(storage) as store:
            info = await store.stat("a", WHEN)
        end = info.offset + info.stored_size
        await storage.put(info.segment, (await storage.read_range(info.segment, 0, end))[:kept], Overwrite())
        async with reading(storage) as store:
            if 0 < kept < end or kept <= 0:
                with pytest.raises(CorruptShardError, match=info.segment):
                    await store.get("a", WHEN)
                with pytest.raises(CorruptShardError, match=info.segment):
                    await read_stream(store, "a")

    async def test_a_damaged_chunk_stops_a_stream_before_it(self, storage: RecordingStorage) -> None:
        content = noise(6 * CHUNK_BYTES)
        await make_store(storage, {"a": content})
        async with reading(storage) as store:
            info = await store.stat("a", WHEN)
        data = bytearray(await storage.read_range(info.segment, 0, 1 << 30))
        data[info.offset + 2 * CHUNK_BYTES + 5] ^= 1
        await storage.put(info.segment, bytes(data), Overwrite())
        async with reading(storage) as store:
            async with store.stream("a", WHEN) as pieces:
                assert await anext(pieces) + await anext(pieces) == content[: 2 * CHUNK_BYTES]
                with pytest.raises(CorruptShardError, match="chunk 2 of a payload is damaged"):
                    await anext(pieces)
            assert await read_stream(store, "a", 3 * CHUNK_BYTES) == content[3 * CHUNK_BYTES :]
            with pytest.raises(CorruptShardError):
                await store.get("a", WHEN)

    async def test_a_damaged_seek_table(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"a": noise(6 * CHUNK_BYTES)})
        async with reading(storage) as store:
            info = await store.stat("a", WHEN)
        data = bytearray(await storage.read_range(info.segment, 0, 1 << 30))
        data[info.offset + info.stored_size - 1] ^= 1
        await storage.put(info.segment, bytes(data), Overwrite())
        async with reading(storage) as store:
            with pytest.raises(CorruptShardError, match=rf"^{info.segment}: a seek table's checksum is wrong"):
                await read_stream(store, "a", 5, 6)

    async def test_a_damaged_dictionary(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        await maker.add({"a": TEXT * 3}, compression=Compression(dictionary=DICTIONARY))
        async with reading(storage) as store:
            info = await store.stat("a", WHEN)
        data = bytearray(await storage.read_range(info.segment, 0, 1 << 30))
        data[HEADER.size + 100] ^= 1
        await storage.put(info.segment, bytes(data), Overwrite())
        async with reading(storage) as store:
            with pytest.raises(CorruptShardError, match=rf"^{info.segment}: its dictionary is damaged"):
                await store.get("a", WHEN)

    async def test_a_missing_row_of_metadata(self, storage: RecordingStorage) -> None:
        """The head says that a segment has a file that its catalog does not know."""
        maker = await make_store(storage)
        first, second = maker.uids_of_one_shard(2)
        await maker.add({first: b"first"})
        (other,) = await maker.add({second: b"second"})
        async with reading(storage) as store:
            segment = (await store.stat(first, WHEN)).segment
            await storage.put(segment, await storage.read_range(other, 0, 1 << 20), Overwrite())
            with pytest.raises(CorruptShardError, match=rf"^{segment}: its catalog lacks a file of the head"):
                await store.stat(first, WHEN, metadata=True)

    async def test_a_damaged_head_is_never_not_found(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"a": b"content"})
        key = maker.identity("a").head_key
        good = await storage.read_suffix(key, 1 << 20)
        assert good is not None
        for position in range(HEADER.size, good.total_size, 3):
            bad = bytearray(good.data)
            bad[position] ^= 0x40
            await storage.put(key, bytes(bad), Overwrite())
            async with reading(storage) as store:
                with pytest.raises(CorruptShardError, match=rf"^{key}: "):
                    await store.get("a", WHEN)
        assert good.total_size > ENTRY_BYTES
