"""Several places: damage in one is read in another, and no copy's word counts for what is not there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from des.errors import (
    CorruptShardError,
    DeletedError,
    NotFoundError,
    ObjectNotFoundError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedFormatError,
)
from des.lifecycle.deleting import delete_files
from des.shard.chunking import CHUNK_BYTES, LARGE_BYTES, SeekTable
from des.shard.codecs import Compression
from des.shard.layout import HEADER, TAIL_READ_BYTES
from des.storage.protocol import Overwrite
from des.storage.wrapper import StorageWrapper
from des.store.places import first_good
from des.store.shard_listing import list_shards
from des.store.verifying import verify
from tests.making import DAY, WHEN, File, make_store, reading
from tests.storage.mirrored import Mirrored
from tests.store.contents import DICTIONARY, noise, read_stream, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from des.storage.protocol import Purpose, Storage, Suffix
    from des.store import Store
    from des.store.shard_listing import ShardInfo
    from tests.making import Maker
    from tests.store.conftest import Clock

LARGE = noise(LARGE_BYTES + 3 * CHUNK_BYTES + 77)
FILES = {
    "small": File(text(5_000), metadata={"of": "small"}),
    "raw": File(noise(300), metadata={"of": "raw"}),
    "large": File(LARGE, metadata={"of": "large"}),
}


@pytest.fixture
def storage() -> Mirrored:
    return Mirrored()


async def make(storage: Mirrored) -> Maker:
    maker = await make_store(storage, dict(FILES))
    await maker.add({"with dictionary": File(text(9_000, seed=1))}, compression=Compression(dictionary=DICTIONARY))
    storage.forget_calls()
    return maker


async def read_all(store: Store) -> dict[str, bytes]:
    """Read all files by every way that reads payloads, and return them."""
    files = {**FILES, "with dictionary": File(text(9_000, seed=1))}
    for uid, file in files.items():
        assert await read_stream(store, uid) == file.content
        assert await read_stream(store, uid, 3, len(file.content) - 5) == file.content[3:-5]
        info = await store.stat(uid, WHEN, metadata=True)
        assert info.metadata == (file.metadata or {})
    stored = await store.read_stored(found := await store.find("small", WHEN))
    assert await store.decode(found, stored) == files["small"].content
    many = {result.uid: result async for result in store.get_many([(uid, WHEN) for uid in files])}
    assert {uid: result.data for uid, result in many.items()} == {uid: file.content for uid, file in files.items()}
    return {uid: await store.get(uid, WHEN) for uid in files}


def segments_of(storage: Mirrored) -> list[str]:
    return [key for key in storage.primary.memory.contents() if key.count("/") == 2]


def heads_of(storage: Mirrored) -> list[str]:
    return [key for key in storage.primary.memory.contents() if key.count("/") == 1]


class TestFirstGood:
    async def read_at(self, storage: Mirrored, said: Mapping[str, bytes | Exception]) -> bytes:
        async def read(place: Storage) -> bytes:
            answer = said[place.address]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return await first_good(storage, "key", read)

    async def test_the_first_that_has_it_whole(self, storage: Mirrored) -> None:
        damage = CorruptShardError("bad")
        said: dict[str, bytes | Exception] = {"mirrored": b"good"}
        assert await self.read_at(storage, said) == b"good"
        assert storage.mended == [], "nothing is to be mended where nothing was bad"
        said = {"mirrored": damage, "place-0": damage, "place-1": ObjectNotFoundError("gone"), "place-2": b"good"}
        assert await self.read_at(storage, said) == b"good"
        assert storage.mended == ["key"]

    async def test_none_has_it_whole(self, storage: Mirrored) -> None:
        first, second = CorruptShardError("first"), CorruptShardError("second")
        gone = ObjectNotFoundError("gone")
        with pytest.raises(CorruptShardError, match="first"):
            await self.read_at(storage, {"mirrored": first, "place-0": second, "place-1": gone, "place-2": second})
        assert storage.mended == []

    async def test_one_cannot_be_asked(self, storage: Mirrored) -> None:
        damage = CorruptShardError("bad")
        said = {"mirrored": damage, "place-0": damage, "place-1": StorageTimeoutError("slow"), "place-2": damage}
        with pytest.raises(StorageUnavailableError, match=r"key is damaged where it was read.*slow") as raised:
            await self.read_at(storage, said)
        assert raised.value.__cause__ is damage
        assert await self.read_at(storage, {**said, "place-2": b"good"}) == b"good"

    async def test_a_newer_format_is_no_damage(self, storage: Mirrored) -> None:
        newer = UnsupportedFormatError("newer")
        with pytest.raises(UnsupportedFormatError):
            await self.read_at(storage, {"mirrored": newer})
        with pytest.raises(UnsupportedFormatError):
            await self.read_at(storage, {"mirrored": CorruptShardError("bad"), "place-0": newer})


class TestDamage:
    """Whatever is damaged in one place is served from another; all else stays as it is with one."""

    async def test_segments_damaged_all_over(self, storage: Mirrored) -> None:
        await make(storage)
        for key in segments_of(storage):
            for place in storage.places[:2]:
                await place.spoil(key)
        async with reading(storage) as store:
            await read_all(store)
            assert len([info async for info in store.list(DAY)]) == len(FILES) + 1
        assert set(storage.mended) == set(segments_of(storage))

    async def test_everywhere(self, storage: Mirrored) -> None:
        await make(storage)
        for key in segments_of(storage):
            for place in storage.places:
                await place.spoil(key)
        async with reading(storage) as store:
            for uid in FILES:
                with pytest.raises(CorruptShardError):
                    await store.get(uid, WHEN)
                with pytest.raises(CorruptShardError):
                    await read_stream(store, uid)
                with pytest.raises(CorruptShardError):
                    await store.stat(uid, WHEN, metadata=True)
            results = [result async for result in store.get_many([(uid, WHEN) for uid in FILES])]
            assert all(type(result.error) is CorruptShardError for result in results)
        assert storage.mended == []

    async def test_in_one_and_the_others_are_down(self, storage: Mirrored) -> None:
        await make(storage)
        async with reading(storage) as store:
            for key in segments_of(storage):
                await storage.primary.spoil(key)
            for copy in storage.copies:
                copy.is_down = True
            for uid in FILES:
                with pytest.raises(StorageUnavailableError, match="is damaged where it was read") as raised:
                    await store.get(uid, WHEN)
                assert isinstance(raised.value.__cause__, CorruptShardError)
            results = [result async for result in store.get_many([(uid, WHEN) for uid in FILES])]
            assert all(type(result.error) is StorageUnavailableError for result in results)

    async def test_parts_damaged_in_different_places(self, storage: Mirrored) -> None:
        await make(storage)
        async with reading(storage) as store:
            found = await store.find("large", WHEN)
            entry, key = found.entry, found.segment_key
            table, _ = SeekTable.place(entry)
            place, copy, last = storage.places
            await place.spoil(key, entry.offset + 2 * CHUNK_BYTES, entry.offset + 4 * CHUNK_BYTES)
            await copy.spoil(key, entry.offset + 3 * CHUNK_BYTES + 5, entry.offset + 3 * CHUNK_BYTES + 6)
            await copy.spoil(key, table, table + 1)
            await last.spoil(key, entry.offset, entry.offset + 1)
            storage.forget_calls()
            assert await read_stream(store, "large") == LARGE
            assert await read_stream(store, "large", 3 * CHUNK_BYTES + 9) == LARGE[3 * CHUNK_BYTES + 9 :]
            assert place.count(verb="stream_range") == 2, "it goes on where it was"
            assert copy.count(purpose="payload") == 3, "the two chunks, and the second of them again"
            assert last.count(purpose="payload") == 2, "the chunk that is bad in the copy too"
            with pytest.raises(CorruptShardError):  # as a whole it is good nowhere
                await store.get("large", WHEN)

    async def test_a_segment_cut_short_goes_on_elsewhere(self, storage: Mirrored) -> None:
        await make(storage)
        async with reading(storage) as store:
            found = await store.find("large", WHEN)
            assert await read_stream(store, "large", 0, 1) == LARGE[:1]  # so that the seek table is known
            whole = storage.primary.memory.contents()[found.segment_key]
            cut = whole[: found.entry.offset + 3 * CHUNK_BYTES + 100]
            await storage.primary.memory.put(found.segment_key, cut, Overwrite())
            assert await read_stream(store, "large") == LARGE

    async def test_pages_of_a_head(self, storage: Mirrored, clock: Clock) -> None:
        """Pages that came with the tail, and pages that are read apart from it, each fetched once."""
        maker = await make_store(storage)
        count = TAIL_READ_BYTES // 64 + 300
        uids = maker.uids_of_one_shard(count)
        await maker.add(dict.fromkeys(uids, b"content"))
        [key] = heads_of(storage)
        size = len(storage.primary.memory.contents()[key])
        await storage.primary.spoil(key, HEADER.size, HEADER.size + 64 * count)
        storage.forget_calls()
        async with reading(storage, index_ttl=3600) as store:
            assert [r.data async for r in store.get_many([(uid, WHEN) for uid in uids])] == [b"content"] * count
            assert len([info async for info in store.list(DAY)]) == count
            pages = {
                (call.start, call.end)
                for call in storage.copies[0].calls
                if call.purpose == "index" and call.key == key
            }
            assert len(pages) > 2, size
            asked = storage.copies[0].count(key=key)
            for uid in uids[::50]:
                await store.stat(uid, WHEN)
            assert storage.copies[0].count(key=key) == asked, "what was good elsewhere is kept"
            with pytest.raises(NotFoundError):
                await store.stat("nothing", WHEN)
        assert set(storage.mended) == {key}

    async def test_the_tail_of_a_head(self, storage: Mirrored) -> None:
        maker = await make(storage)
        await delete_files(storage, [("raw", WHEN)])
        storage.quorum, storage.copies[0].is_down = 1, True
        await maker.add({"small": b"new"})  # one of the copies does not get it
        storage.copies[0].is_down = False
        for key in heads_of(storage):
            await storage.primary.spoil(key, -100, -20)
        async with reading(storage) as store:
            assert await store.get("small", WHEN) == b"new", "the newest of the heads"
            assert await store.get("large", WHEN) == LARGE
            for uid in ("raw", "nothing"):
                with pytest.raises(StorageUnavailableError, match="may lag behind"):
                    await store.get(uid, WHEN)
            with pytest.raises(StorageUnavailableError, match="may lag behind"):
                _ = [info async for info in store.list(DAY)]
        with pytest.raises(CorruptShardError):
            await delete_files(storage, [("small", WHEN)])

    async def test_a_tail_whose_copies_are_of_different_lineages(self, storage: Mirrored) -> None:
        maker = await make(storage)
        key = maker.identity("small").head_key
        stranger = Mirrored(1)
        await stranger.put("des.json", storage.primary.memory.contents()["des.json"], Overwrite())
        await make_store(stranger, {"small": b"other"})
        await storage.copies[0].memory.put(key, stranger.primary.memory.contents()[key], Overwrite())
        await storage.primary.spoil(key, -100, -20)
        async with reading(storage) as store:
            with pytest.raises(CorruptShardError):
                await store.get("small", WHEN)


class TestProof:
    """A copy's head says what is there, and neither what is not nor what is deleted."""

    async def unproven(self, store: Store, uid: str) -> None:
        for ask in (store.get, store.stat, store.find):
            with pytest.raises(StorageUnavailableError, match="primary of this shard cannot be asked"):
                await ask(uid, WHEN)
        [result] = [result async for result in store.get_many([(uid, WHEN)])]
        assert type(result.error) is StorageUnavailableError

    async def test_the_primary_down_and_up_again(self, storage: Mirrored, clock: Clock) -> None:
        maker = await make(storage)
        await delete_files(storage, [("raw", WHEN)])
        async with reading(storage, index_ttl=60, negative_ttl=1) as store:
            storage.primary.is_down = True
            assert await store.get("small", WHEN) == FILES["small"].content
            assert await read_stream(store, "large") == LARGE
            for _ in range(2):
                await self.unproven(store, "raw")
                await self.unproven(store, "nothing")
                clock.advance(2)
            for listing in (store.list(DAY), _listed(store)):
                with pytest.raises(StorageUnavailableError):
                    _ = [info async for info in listing]
            with pytest.raises(StorageUnavailableError):
                await delete_files(storage, [("small", WHEN)])

            storage.primary.is_down = False
            assert await store.get("small", WHEN) == FILES["small"].content
            clock.advance(2)
            with pytest.raises(DeletedError):
                await store.get("raw", WHEN)
            with pytest.raises(NotFoundError):
                await store.get("nothing", WHEN)
            uids = {info.uid async for info in store.list(DAY)}
            assert uids == {"small", "large", "with dictionary"}
            storage.forget_calls()
            with pytest.raises(DeletedError):
                await store.get("raw", WHEN)
            with pytest.raises(NotFoundError):
                await store.get("nothing", WHEN)
            assert not any(place.calls for place in storage.places), "what was proven is kept"
            assert maker.files

    @pytest.mark.parametrize("list_all", [False, True], ids=["days_files", "shards"])
    async def test_a_listing_while_only_heads_cannot_be_had_from_the_primary(
        self, storage: Mirrored, *, list_all: bool
    ) -> None:
        await make(storage)
        async with reading(HeadsFromCopies(storage)) as store:
            assert await store.get("small", WHEN) == FILES["small"].content
            with pytest.raises(StorageUnavailableError, match="primary of this shard cannot be asked"):
                _ = [info async for info in (_listed(store) if list_all else store.list(DAY))]

    async def test_nothing_older_than_what_was_seen(self, storage: Mirrored, clock: Clock) -> None:
        maker = await make(storage)
        storage.quorum = 1
        storage.copies[0].is_down = storage.copies[1].is_down = True
        await maker.add({"small": b"new"})
        storage.copies[0].is_down = storage.copies[1].is_down = False
        async with reading(storage, index_ttl=60) as store:
            assert await store.get("small", WHEN) == b"new"
            storage.primary.is_down = True
            clock.advance(100)
            with pytest.raises(StorageUnavailableError):
                await store.get("small", WHEN)
        async with reading(storage) as store:  # one that has seen nothing takes what there is
            assert await store.get("small", WHEN) == FILES["small"].content

    async def test_what_a_copy_points_at_is_gone(self, storage: Mirrored) -> None:
        await make(storage)
        for key in segments_of(storage):
            await storage.delete(key)
        async with reading(HeadsFromCopies(storage)) as store:
            with pytest.raises(StorageUnavailableError, match="primary of this shard cannot be asked"):
                await store.get("large", WHEN)
        async with reading(storage) as store:
            with pytest.raises(CorruptShardError, match="points at an object that is gone"):
                await store.get("large", WHEN)


class TestVerify:
    async def test_each_place_by_itself(self, storage: Mirrored) -> None:
        await make(storage)
        key = max(segments_of(storage), key=lambda key: len(storage.primary.memory.contents()[key]))
        async with reading(storage) as store:
            whole = await verify(store)
            assert (whole.damage, whole.days, whole.shards) == ([], 1, 3 * len(heads_of(storage)))
            await storage.copies[1].spoil(key, HEADER.size + 50, HEADER.size + 51)
            await storage.copies[0].memory.delete(key)
            head = next(iter(set(heads_of(storage)) - {f"{key.rsplit('/', 1)[0]}.des"}))
            await storage.primary.spoil(head, -40)
            found = await verify(store)
        assert {(damage.key, damage.place) for damage in found.damage} == {
            (key, "place-2"),
            (key, "place-1"),
            (head, "place-0"),
        }
        assert storage.mended == [], "verification asks nobody else"

    async def test_a_copy_that_lags_behind_is_no_damage(self, storage: Mirrored) -> None:
        maker = await make(storage)
        for key in heads_of(storage):
            await storage.copies[0].memory.delete(key)  # segments come before their head
        storage.quorum, storage.copies[1].is_down = 1, True
        old = segments_of(storage)
        await maker.compact(collect=False)
        storage.copies[1].is_down = False
        for key in old:
            await storage.delete(key)
        async with reading(storage) as store:
            found = await verify(store)
        assert found.damage == []

    async def test_a_place_that_is_down(self, storage: Mirrored) -> None:
        await make(storage)
        async with reading(storage) as store:
            await store.get("small", WHEN)
            storage.copies[1].is_down = True
            with pytest.raises(StorageUnavailableError, match="place-2 is down"):
                await verify(store)


class HeadsFromCopies(StorageWrapper):
    """Gives each head as if a copy had."""

    async def read_suffix(
        self, key: str, length: int, *, unless: str | None = None, purpose: Purpose = "footer"
    ) -> Suffix | None:
        del unless
        suffix = await super().read_suffix(key, length, purpose=purpose)
        return replace(suffix, is_proof=False) if suffix else None


async def _listed(store: Store) -> AsyncIterator[ShardInfo]:
    for shard in (await list_shards(store, DAY, None, 10)).shards:
        yield shard
