from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from des.errors import (
    CorruptShardError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageUnavailableError,
)
from des.pack.commit import new_name
from des.shard.layout import ENTRY_BYTES, HEADER, TAIL_READ_BYTES, Codec, Entry, Identity
from des.shard.tables import Condemned, HeadTables, SegmentRef
from des.shard.writing import encode_head
from des.storage.protocol import IfAbsent, Overwrite
from des.store.heads import LoadedHead, load_head, read_page
from tests.store.meddling import Meddler

if TYPE_CHECKING:
    from des.storage.local import LocalStorage
    from des.storage.testing import Call, RecordingStorage

SHARD = Identity(bytes(range(16)), "20240131", 4, 3)
OTHER = Identity(bytes(range(16)), "20240131", 4, 4)
KEY = SHARD.head_key


def entries(count: int, seed: int = 0) -> list[Entry]:
    generator = random.Random(seed)
    ids = sorted({b"\x30" + generator.randbytes(15) for _ in range(count)})
    return [
        Entry(identifier, generator.randbytes(16), 7, 0, 0, Codec.NONE, 0, HEADER.size, 5, 5, number % 86_400)
        for number, identifier in enumerate(ids)
    ]


def encode(files: list[Entry], *, identity: Identity = SHARD, types: int = 0, generation: int = 1) -> bytes:
    tables = HeadTables(
        generation=generation,
        lineage=bytes(16),
        files=len(files),
        segments=(SegmentRef(bytes(16), 1000, 0, len(files), 5 * len(files)),),
        content_types=tuple(f"{number:04}/{'x' * 200}" for number in range(types)),
    ).committed(generation.to_bytes(16, "little"))
    return encode_head(identity, tables, b"".join(entry.encode() for entry in files))


async def find(storage: RecordingStorage, loaded: LoadedHead, identifier: bytes) -> Entry | None:
    ref = loaded.find_page(identifier)
    if ref is None:
        return None
    page = loaded.page_that_came_along(ref)
    return loaded.find(await read_page(storage, loaded, ref) if page is None else page, identifier)


class TestLoading:
    @pytest.mark.parametrize("count", [0, 1, 5, 700])
    async def test_a_small_head_comes_as_a_whole(self, storage: RecordingStorage, count: int) -> None:
        files = entries(count)
        version = await storage.put(KEY, encode(files), IfAbsent())
        storage.calls.clear()
        loaded = await load_head(storage, SHARD)
        assert loaded is not None
        assert loaded.version == version
        assert [await find(storage, loaded, entry.file_id) for entry in files] == files
        assert await find(storage, loaded, b"\x30" + bytes(15)) is None
        assert await find(storage, loaded, b"\x30" + b"\xff" * 15) is None
        assert [(call.verb, call.purpose) for call in storage.calls] == [("read_suffix", "footer")]

    async def test_pages_that_did_not_come_along_are_read(self, storage: RecordingStorage) -> None:
        files = entries(3000)
        await storage.put(KEY, encode(files), IfAbsent())
        loaded = await load_head(storage, SHARD)
        assert loaded is not None
        storage.calls.clear()
        assert await find(storage, loaded, files[0].file_id) == files[0]
        assert [(call.verb, call.purpose) for call in storage.calls] == [("read_range", "index")]
        storage.calls.clear()
        assert await find(storage, loaded, files[-1].file_id) == files[-1]
        assert storage.calls == [], "the last page came with the tail"

    async def test_only_whole_pages_are_kept(self, storage: RecordingStorage) -> None:
        await storage.put(KEY, encode(entries(3000)), IfAbsent())
        loaded = await load_head(storage, SHARD)
        assert loaded is not None
        refs = loaded.head.directory.refs()
        kept = [ref for ref in refs if loaded.page_that_came_along(ref) is not None]
        assert kept == refs[-len(kept) :]
        assert len(loaded.suffix) == loaded.head.tail.size + sum(ref.length for ref in kept) < TAIL_READ_BYTES

    @pytest.mark.parametrize("difference", [-1, 0, 1])
    async def test_a_tail_about_as_long_as_the_suffix_read(self, storage: RecordingStorage, difference: int) -> None:
        """A tail of exactly the suffix's length, one byte shorter and one longer: the last costs one read more."""

        condemned = tuple(Condemned(number.to_bytes(16, "big"), 0) for number in range(2715))

        def encode_with(text: int) -> bytes:
            return encode_head(SHARD, HeadTables(1, bytes(16), content_types=("y" * text,), condemned=condemned), b"")

        base = len(encode_with(1)) - HEADER.size
        data = encode_with(1 + TAIL_READ_BYTES + difference - base)
        assert len(data) == HEADER.size + TAIL_READ_BYTES + difference
        await storage.put(KEY, data, IfAbsent())
        storage.calls.clear()
        loaded = await load_head(storage, SHARD)
        assert loaded is not None
        assert loaded.head.tables.condemned == condemned
        assert storage.count(purpose="footer") == len(storage.calls) == (2 if difference == 1 else 1)
        assert storage.moved() == TAIL_READ_BYTES + (difference == 1)

    async def test_a_tail_much_longer_than_the_suffix_read(self, storage: RecordingStorage) -> None:
        files = entries(100)
        await storage.put(KEY, encode(files, types=4096), IfAbsent())
        storage.calls.clear()
        loaded = await load_head(storage, SHARD)
        assert loaded is not None
        assert len(loaded.head.tables.content_types) == 4096
        assert [call.verb for call in storage.calls] == ["read_suffix", "read_range"]
        assert await find(storage, loaded, files[7].file_id) == files[7]

    async def test_nothing_where_it_is_still_at_the_version(self, storage: RecordingStorage) -> None:
        version = await storage.put(KEY, encode(entries(1)), IfAbsent())
        assert await load_head(storage, SHARD, unless=version) is None
        await storage.put(KEY, encode(entries(2), generation=2), Overwrite())
        loaded = await load_head(storage, SHARD, unless=version)
        assert loaded is not None
        assert loaded.head.tables.files == 2

    async def test_no_head(self, storage: RecordingStorage) -> None:
        with pytest.raises(ObjectNotFoundError):
            await load_head(storage, SHARD)


class TestReplacement:
    """The head is replaced, or lost, between the two reads of a long tail."""

    @pytest.fixture(autouse=True)
    async def long_tail(self, local: LocalStorage) -> None:
        await local.put(KEY, encode(entries(1), types=4096), IfAbsent())

    async def test_it_is_read_again(self, local: LocalStorage) -> None:
        head = encode(entries(2), types=4000, generation=2)

        async def replace(call: Call) -> None:
            if call.verb == "read_range":
                await local.put(KEY, head, Overwrite())

        loaded = await load_head(Meddler(local, before=replace), SHARD)
        assert loaded is not None
        assert (loaded.head.tables.files, loaded.head.tables.generation) == (2, 3)

    async def test_replaced_again_and_again_is_trouble_and_no_damage(self, local: LocalStorage) -> None:
        generations = itertools.count(2)

        async def replace(call: Call) -> None:
            if call.verb == "read_range":
                head = encode(entries(2), types=4000, generation=next(generations))
                await local.put(KEY, head, Overwrite())

        with pytest.raises(StorageUnavailableError, match="faster than it can be read"):
            await load_head(Meddler(local, before=replace), SHARD)

    async def test_lost_in_between_it_is_absent(self, local: LocalStorage) -> None:
        async def lose(call: Call) -> None:
            if call.verb == "read_range":
                await local.delete(KEY)

        with pytest.raises(ObjectNotFoundError):
            await load_head(Meddler(local, before=lose), SHARD)

    async def test_a_page_is_read_at_its_heads_version_only(self, local: LocalStorage) -> None:
        await local.put(KEY, encode(entries(3000)), Overwrite())
        loaded = await load_head(local, SHARD)
        assert loaded is not None
        await local.put(KEY, encode(entries(3000, seed=1), generation=2), Overwrite())
        with pytest.raises(PreconditionFailedError):
            await read_page(local, loaded, loaded.head.directory.ref(0))


class TestDamage:
    async def test_another_shards_head_is_refused_by_name(self, storage: RecordingStorage) -> None:
        await storage.put(KEY, encode(entries(1), identity=OTHER), IfAbsent())
        with pytest.raises(CorruptShardError, match=r"^20240131/3\.des: the object belongs to shard 20240131/4"):
            await load_head(storage, SHARD)

    async def test_another_stores_head_is_refused_by_name(self, storage: RecordingStorage) -> None:
        await storage.put(KEY, encode(entries(1), identity=Identity(new_name(), "20240131", 4, 3)), IfAbsent())
        with pytest.raises(CorruptShardError, match=r"^20240131/3\.des: the object belongs to another store"):
            await load_head(storage, SHARD)

    @pytest.mark.parametrize("size", [0, 1, 31, 32, 64, 200])
    async def test_a_head_cut_short(self, storage: RecordingStorage, size: int) -> None:
        await storage.put(KEY, encode(entries(1))[:size], IfAbsent())
        with pytest.raises(CorruptShardError, match=r"^20240131/3\.des: "):
            await load_head(storage, SHARD)

    async def test_a_damaged_page_that_came_along(self, storage: RecordingStorage) -> None:
        files = entries(10)
        data = bytearray(encode(files))
        data[HEADER.size + 5 * ENTRY_BYTES] ^= 1
        await storage.put(KEY, bytes(data), IfAbsent())
        loaded = await load_head(storage, SHARD)
        assert loaded is not None
        for _ in range(2):
            with pytest.raises(CorruptShardError, match=r"^20240131/3\.des: a page of the index is damaged"):
                await find(storage, loaded, files[0].file_id)

    async def test_a_damaged_page_that_is_read(self, storage: RecordingStorage) -> None:
        files = entries(3000)
        data = bytearray(encode(files))
        data[HEADER.size + 20] ^= 1
        await storage.put(KEY, bytes(data), IfAbsent())
        loaded = await load_head(storage, SHARD)
        assert loaded is not None
        with pytest.raises(CorruptShardError, match=r"^20240131/3\.des: a page of the index is damaged"):
            await find(storage, loaded, files[0].file_id)
        assert await find(storage, loaded, files[-1].file_id) == files[-1]

    @pytest.mark.parametrize(
        "fields",
        [
            {"segment": 1},
            {"content_type": 1},
            {"offset": 999},
            {"offset": 0},
            {"stored_size": 6},
            {"codec": Codec.ZSTD_DICT},
        ],
    )
    async def test_an_entry_that_contradicts_the_tables(
        self, storage: RecordingStorage, fields: dict[str, int]
    ) -> None:
        (good,) = entries(1)
        await storage.put(KEY, encode([good._replace(**fields)]), IfAbsent())  # type: ignore[arg-type]  # by name
        loaded = await load_head(storage, SHARD)
        assert loaded is not None
        with pytest.raises(CorruptShardError, match=r"^20240131/3\.des: an entry"):
            await find(storage, loaded, good.file_id)


async def test_a_checked_page_is_checked_once(storage: RecordingStorage) -> None:
    files = entries(600)
    await storage.put(KEY, encode(files), IfAbsent())
    loaded = await load_head(storage, SHARD)
    assert loaded is not None
    ref = loaded.find_page(files[0].file_id)
    assert ref is not None
    assert loaded.page_that_came_along(ref) is loaded.page_that_came_along(ref)
    other = ref._replace(checksum=ref.checksum ^ 1)
    with pytest.raises(CorruptShardError):
        loaded.page_that_came_along(other)


async def test_a_head_knows_what_it_weighs(storage: RecordingStorage) -> None:
    await storage.put(KEY, encode(entries(5000), types=300), IfAbsent())
    loaded = await load_head(storage, SHARD)
    assert loaded is not None
    assert loaded.weight > len(loaded.suffix) + 300 * len(f"0000/{'x' * 20}")
