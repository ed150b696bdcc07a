from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import (
    CorruptShardError,
    InvalidRequestError,
    NotFoundError,
)
from des.shard.chunking import LARGE_BYTES
from des.shard.codecs import Compression
from des.store import ContentChangedError
from tests.making import WHEN, File, make_store, reading
from tests.store.contents import CONTENTS, DICTIONARY, TEXT, noise, read_stream, text
from tests.store.meddling import Meddler

if TYPE_CHECKING:
    from des.storage.local import LocalStorage
    from des.storage.testing import Call, RecordingStorage


class TestCompaction:
    """A reader with a head of before, whose segments are gone."""

    @pytest.fixture(params=["zstd", "dictionary", "lz4"])
    def before(self, request: pytest.FixtureRequest) -> Compression:
        return Compression(dictionary=DICTIONARY) if request.param == "dictionary" else Compression(request.param)

    @pytest.mark.parametrize(("way", "start", "end"), [("get", 0, None), ("stream", 0, None), ("stream", 3, 10**6)])
    async def test_right_bytes_by_every_way(
        self, storage: RecordingStorage, before: Compression, way: str, start: int, end: int | None
    ) -> None:
        maker = await make_store(storage)
        files = {uid: File(content, None, {"uid": uid}) for uid, content in CONTENTS.items()}
        await maker.add(files, compression=before)
        async with reading(storage, index_ttl=3600) as store:
            for uid in CONTENTS:
                await store.stat(uid, WHEN)
            await maker.compact(compression=Compression("none"))
            storage.calls.clear()
            for uid, content in CONTENTS.items():
                read = await (store.get(uid, WHEN) if way == "get" else read_stream(store, uid, start, end))
                assert read == content[start:end], uid
            assert storage.count(purpose="footer") == 2, "each head is read again once"

    async def test_metadata(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"a": File(b"content", metadata={"n": 1})})
        async with reading(storage, index_ttl=3600) as store:
            await store.stat("a", WHEN)
            await maker.compact()
            assert (await store.stat("a", WHEN, metadata=True)).metadata == {"n": 1}

    async def test_metadata_of_a_file_that_was_replaced_as_well(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"a": File(b"content", metadata={"n": 1})})
        async with reading(storage, index_ttl=3600) as store:
            await store.stat("a", WHEN)
            await maker.add({"a": File(b"changed", metadata={"n": 2})})
            await maker.compact()
            info = await store.stat("a", WHEN, metadata=True)
            assert (info.metadata, info.raw_size, info.etag) == ({"n": 2}, 7, (await store.find("a", WHEN)).etag)

    async def test_a_file_that_was_replaced_as_well(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"a": b"old", "large": noise(LARGE_BYTES + 1)})
        new = {"a": b"new", "large": noise(2 * LARGE_BYTES, seed=1)}
        async with reading(storage, index_ttl=3600) as store:
            found = {uid: await store.find(uid, WHEN) for uid in new}
            await maker.add(new)
            await maker.compact()
            for uid in new:
                with pytest.raises(ContentChangedError):
                    await store.read(found[uid])
            with pytest.raises(ContentChangedError):
                async with store.open_range(found["large"], 0, 10):
                    pass
        async with reading(storage, index_ttl=3600) as store:
            for uid in new:
                await store.stat(uid, WHEN)
            for uid, content in new.items():
                assert await store.get(uid, WHEN) == content
                assert await read_stream(store, uid) == content

    async def test_a_file_that_was_replaced_meanwhile_is_found_anew(self, local: LocalStorage) -> None:
        maker = await make_store(local, {"a": b"old", "large": noise(LARGE_BYTES + 1)})
        async with reading(local, index_ttl=3600) as store:
            for uid in ("a", "large"):
                await store.stat(uid, WHEN)
            new = {"a": b"new", "large": noise(2 * LARGE_BYTES, seed=1)}
            await maker.add(new)
            await maker.compact()
            assert await store.get("a", WHEN) == b"new"
            assert await read_stream(store, "large") == new["large"]

    async def test_a_file_that_was_deleted_meanwhile(self, local: LocalStorage) -> None:
        maker = await make_store(local)
        first, second = maker.uids_of_one_shard(2)
        await maker.add({first: b"first", second: b"second"})
        async with reading(local, index_ttl=3600) as store:
            found = await store.find(first, WHEN)
            await maker.delete([first])
            await maker.compact()
            with pytest.raises(ContentChangedError):
                await store.read(found)
            with pytest.raises(NotFoundError):
                await store.get(first, WHEN)

    async def test_a_day_that_expired_meanwhile(self, local: LocalStorage) -> None:
        maker = await make_store(local, {"a": b"content"})
        async with reading(local, index_ttl=3600) as store:
            segment = (await store.stat("a", WHEN)).segment
            await local.delete(maker.identity("a").head_key)
            await local.delete(segment)
            with pytest.raises(NotFoundError):
                await store.get("a", WHEN)

    async def test_stored_bytes_are_those_that_were_found(self, local: LocalStorage) -> None:
        """Headers that describe the stored bytes may be out already: other bytes of the same content will not do."""
        content = text(5000)
        maker = await make_store(local, {"a": content})
        async with reading(local, index_ttl=3600) as store:
            found = await store.find("a", WHEN)
            stored = await store.read_stored(found)
            assert len(stored) == found.entry.stored_size < len(content)
        async with reading(local, index_ttl=3600) as store:
            found = await store.find("a", WHEN)
            await maker.compact()
            assert await store.read_stored(found) == stored, "moved, but the same"
            for other in (Compression("lz4"), Compression(level=19), Compression(dictionary=DICTIONARY)):
                found = await store.find("a", WHEN)
                await maker.compact(compression=other)
                with pytest.raises(ContentChangedError):
                    await store.read_stored(found)
                assert await store.read(found) == content

    async def test_stored_bytes_of_a_large_file_are_not_to_be_had(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"large": noise(LARGE_BYTES + 1)})
        async with reading(storage) as store:
            with pytest.raises(InvalidRequestError, match="the file 'large' is large"):
                await store.read_stored(await store.find("large", WHEN))

    async def test_a_dictionary_that_goes_between_payload_and_dictionary(self, local: LocalStorage) -> None:
        maker = await make_store(local)
        await maker.add({"a": TEXT * 3}, compression=Compression(dictionary=DICTIONARY))
        compacted = False

        async def compact(call: Call) -> None:
            nonlocal compacted
            if call.purpose == "payload" and not compacted:
                compacted = True
                await maker.compact(compression=Compression(dictionary=DICTIONARY[:-1]))

        async with reading(Meddler(local, after=compact), index_ttl=3600) as store:
            assert await store.get("a", WHEN) == TEXT * 3
            assert compacted

    @pytest.mark.parametrize("size", [10, LARGE_BYTES + 1])
    async def test_a_segment_that_is_gone_under_an_unchanged_head(self, storage: RecordingStorage, size: int) -> None:
        await make_store(storage, {"a": noise(size)})
        async with reading(storage) as store:
            info = await store.stat("a", WHEN)
            await storage.delete(info.segment)
            storage.calls.clear()
            for ask in (
                store.get("a", WHEN),
                read_stream(store, "a"),
                store.stat("a", WHEN, metadata=True),
            ):
                with pytest.raises(
                    CorruptShardError, match=rf"{info.shard}: it points at an object that is gone.*{info.segment}"
                ):
                    await ask
            assert storage.count(purpose="footer") == 3, "each asks for the head once"
