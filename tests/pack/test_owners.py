from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from des.errors import CorruptShardError
from des.pack.commit import new_name, now_microseconds, open_shard, swap
from des.pack.owners import Owner, Owners
from des.routing import file_id
from des.shard.layout import Codec
from des.shard.merging import Addition, merge
from des.shard.writing import FileRecord, Payload, SegmentWriter, content_hash
from des.storage.local import LocalStorage
from des.storage.testing import RecordingStorage
from des.store.cache import ByteLRU
from des.store.catalogs import load_segment
from tests.making import Maker, make_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from des.pack.commit import Change
    from des.shard.layout import Entry
    from des.store.heads import WholeHead


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[LocalStorage]:
    local = LocalStorage(tmp_path / "store")
    yield local
    await local.aclose()


class Asked:
    """The owners of the shard of some files, and what finding them out took."""

    def __init__(self, storage: LocalStorage, base: WholeHead) -> None:
        self.recording = RecordingStorage(storage)
        self.base = base
        self.owners = Owners(self.recording, ByteLRU(1 << 20), base)

    def entry(self, uid: str) -> Entry:
        entry = self.base.find(file_id(uid))
        assert entry is not None
        return entry

    async def learn(self, *uids: str) -> None:
        await self.owners.learn([self.entry(uid) for uid in uids])

    def of(self, uid: str, claimed: str | None = None) -> Owner:
        return self.owners.of(self.entry(uid), claimed or uid)


def long_uids_of_one_shard(maker: Maker) -> list[str]:
    """Return names so long that their catalog has many chunks and does not come along with its tail."""
    chance = random.Random(1)
    uids = [chance.randbytes(450).hex() for _ in range(1000)]
    return [uid for uid in uids if maker.identity(uid) == maker.identity(uids[0])]


async def asked(maker: Maker, uid: str) -> Asked:
    assert isinstance(maker.storage, LocalStorage)
    return Asked(maker.storage, await open_shard(maker.storage, maker.identity(uid)))


async def test_whose_entries_they_are(storage: LocalStorage) -> None:
    maker = await make_store(storage)
    uids = maker.uids_of_one_shard(20)
    for at in range(0, 20, 5):
        await maker.add(dict.fromkeys(uids[at : at + 5], b"x"))
    shard = await asked(maker, uids[0])
    await shard.learn(*uids)
    for uid in uids:
        assert shard.of(uid) is Owner.SAME
        assert shard.of(uid, "another uid of the same file_id") is Owner.OTHER


async def test_each_chunk_is_read_once(storage: LocalStorage) -> None:
    maker = await make_store(storage)
    uids = long_uids_of_one_shard(maker)
    await maker.add(dict.fromkeys(uids, b"x"))
    shard = await asked(maker, uids[0])
    for at in range(0, len(uids), 10):
        await shard.learn(*uids[at : at + 10])
    assert all(shard.of(uid) is Owner.SAME for uid in uids)
    ranges = shard.recording.select(verb="read_range")
    assert len(ranges) == len(set(ranges)) > 5
    assert shard.recording.count(verb="read_suffix") == 1


async def test_few_files_take_few_reads(storage: LocalStorage) -> None:
    maker = await make_store(storage)
    uids = long_uids_of_one_shard(maker)
    await maker.add(dict.fromkeys(uids, b"x"))
    shard = await asked(maker, uids[0])
    await shard.learn(uids[0])
    assert len(shard.recording.calls) <= 2
    assert shard.of(uids[0]) is Owner.SAME


async def test_a_segment_that_is_gone(storage: LocalStorage) -> None:
    maker = await make_store(storage)
    lost, kept = maker.uids_of_one_shard(2)
    (key,) = await maker.add({lost: b"x"})
    await maker.add({kept: b"x"})
    await storage.delete(key)
    shard = await asked(maker, lost)
    await shard.learn(lost, kept)
    assert (shard.of(lost), shard.of(kept)) == (Owner.GONE, Owner.SAME)
    calls = len(shard.recording.calls)
    await shard.learn(lost, kept)
    assert len(shard.recording.calls) == calls


async def test_what_its_segment_does_not_list(storage: LocalStorage) -> None:
    """Also where an older segment does: the entry points into the newer one."""
    maker = await make_store(storage)
    uid, other = maker.uids_of_one_shard(2)
    (key,) = await maker.add({uid: b"old", other: b"x"})
    base = await open_shard(storage, maker.identity(uid))
    writer = SegmentWriter(base.identity, 2)
    record = FileRecord(file_id(uid), uid, 1_706_702_400_000_000, None, b"")
    writer.add(record, Payload(content_hash(b"new"), 0, Codec.NONE, 3, 3))
    _, summary = writer.finish()
    name = new_name()
    (only_other,) = await maker.add({other: b"y"})
    data = await storage.read_suffix(only_other, 1 << 20)
    assert data is not None
    async with storage.open_writer(base.identity.segment_key(name)) as out:
        await out.write(data.data)

    async def change(head: WholeHead) -> Change:
        return merge(head.tables, head.entries, [Addition(name, summary)], now_microseconds())

    await swap(storage, await open_shard(storage, base.identity), change)
    shard = await asked(maker, uid)
    await shard.learn(uid, other)
    assert (shard.of(uid), shard.of(other)) == (Owner.UNLISTED, Owner.SAME)
    assert key


async def test_a_damaged_catalog(tmp_path: Path, storage: LocalStorage) -> None:
    maker = await make_store(storage)
    (key,) = await maker.add({"file": b"content"})
    path = tmp_path / "store" / key
    damaged = bytearray(path.read_bytes())
    loaded = await load_segment(storage, maker.identity("file"), bytes.fromhex(key[-36:-4]))
    damaged[loaded.segment.directory.ref(0).offset + 5] ^= 1
    path.write_bytes(damaged)
    shard = await asked(maker, "file")
    with pytest.raises(CorruptShardError):
        await shard.learn("file")
