from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import InvalidRequestError, SettingsError
from des.lifecycle.growing import adopt, grow
from des.storage.descriptor import DESCRIPTOR_KEY, require_descriptor
from des.storage.protocol import Overwrite
from des.storage.testing import Fault, FaultyStorage, LoseReply
from des.store.verifying import verify
from tests.making import DAY, Maker, make_store, reading

if TYPE_CHECKING:
    from des.storage.protocol import Storage

NEXT = "20240201"
FILES = {f"file-{number}": b"content %d" % number for number in range(60)}


async def test_more_shards_from_a_day_on(storage: Storage) -> None:
    maker = await make_store(storage, FILES, n_bits=4)
    grown = await grow(storage, "2024-02-01", 6)
    assert (grown.n_bits_on(DAY), grown.n_bits_on(NEXT)) == (4, 6)
    assert await require_descriptor(storage) == grown
    assert await grow(storage, NEXT, 6) == grown
    await Maker(storage, grown).add(FILES, NEXT)
    assert maker.descriptor.n_bits_on(NEXT) == 4
    async with reading(storage) as store:
        for day, created_at in ((DAY, "2024-01-31"), (NEXT, "2024-02-01")):
            assert {info.uid async for info in store.list(day)} == set(FILES)
            for uid, content in FILES.items():
                assert await store.get(uid, created_at) == content
        assert (await verify(store)).damage == []


async def test_days_with_shards_keep_theirs(storage: Storage) -> None:
    await make_store(storage, FILES, n_bits=4)
    before = await require_descriptor(storage)
    for day in (DAY, "20231231"):
        with pytest.raises(SettingsError, match="has shards already"):
            await grow(storage, day, 6)
    with pytest.raises(InvalidRequestError):
        await grow(storage, "tomorrow", 6)
    assert await require_descriptor(storage) == before
    await grow(storage, NEXT, 6)
    with pytest.raises(SettingsError, match="already"):
        await grow(storage, NEXT, 7)


async def test_a_packer_that_was_faster_undoes_it(storage: Storage) -> None:
    maker = await make_store(storage, FILES, n_bits=4)
    before = await require_descriptor(storage)

    class Racing(FaultyStorage):
        async def put(self, key: str, data: bytes, mode: object) -> str:
            if not raced:
                raced.append(key)
                await maker.add({"early": b"bird"}, NEXT)
            return await super().put(key, data, mode)  # type: ignore[arg-type]  # passed on

    raced: list[str] = []
    with pytest.raises(SettingsError, match="has shards already"):
        await grow(Racing(storage, []), NEXT, 6)
    assert raced
    assert (await require_descriptor(storage)).epochs == before.epochs


async def test_a_lost_reply_is_told_from_a_lost_race(storage: Storage) -> None:
    await make_store(storage, FILES, n_bits=4)
    faulty = FaultyStorage(storage, [Fault(LoseReply(), verb="put", at=1)])
    assert (await grow(faulty, NEXT, 6)).n_bits_on(NEXT) == 6
    assert faulty.fired


@pytest.mark.parametrize("harm", ["gone", "damaged"])
async def test_a_lost_descriptor_is_restored(storage: Storage, harm: str) -> None:
    await make_store(storage, FILES, n_bits=4)
    grown = await grow(storage, NEXT, 6)
    await Maker(storage, grown).add(FILES, NEXT)
    if harm == "gone":
        await storage.delete(DESCRIPTOR_KEY)
    else:
        await storage.put(DESCRIPTOR_KEY, b"{", Overwrite())
    restored, is_new = await adopt(storage)
    assert is_new
    assert (restored.store_id, restored.epochs) == (grown.store_id, grown.epochs)
    assert await adopt(storage) == (restored, False)
    async with reading(storage) as store:
        assert {info.uid async for info in store.list(NEXT)} == set(FILES)


async def test_a_day_without_shards_tells_nothing_to_adopt(storage: Storage) -> None:
    """An expired day may be listed for a while, and a packer that was killed may leave as little."""
    maker = await make_store(storage, FILES, n_bits=4)
    await storage.put(f"{NEXT}/0/leftover.txt", b"no shard", Overwrite())
    await storage.delete(DESCRIPTOR_KEY)
    restored, is_new = await adopt(storage)
    assert (restored, is_new) == (maker.descriptor, True)


async def test_there_is_nothing_to_adopt(storage: Storage) -> None:
    with pytest.raises(SettingsError, match=r"nothing at .*; make a store"):
        await adopt(storage)
    await storage.put(DESCRIPTOR_KEY, b"{", Overwrite())
    with pytest.raises(SettingsError, match=r"nothing at .*; delete its des.json and make a store"):
        await adopt(storage)
    await storage.delete(DESCRIPTOR_KEY)
    await make_store(storage, {}, n_bits=4)
    await storage.put(DESCRIPTOR_KEY, b'{"format": "des", "version": 2}', Overwrite())
    with pytest.raises(SettingsError, match="upgrade"):
        await adopt(storage)
