from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from des.errors import (
    DeletedError,
    InvalidRequestError,
    NotFoundError,
)
from des.shard.chunking import LARGE_BYTES
from des.shard.codecs import Compression
from des.shard.layout import HEADER
from tests.making import DAY, WHEN, File, Maker, make_store, reading
from tests.store.contents import CONTENTS, DICTIONARY, TEXT, read_stream, text

if TYPE_CHECKING:
    from des.storage.testing import RecordingStorage


class TestReading:
    @pytest.mark.parametrize(
        "compression",
        [
            Compression("none"),
            Compression("lz4"),
            Compression("zstd"),
            Compression("zstd", level=9),
            Compression("zstd", dictionary=DICTIONARY),
        ],
        ids=["none", "lz4", "zstd", "zstd-9", "dictionary"],
    )
    async def test_every_content_comes_back_by_every_way(
        self, storage: RecordingStorage, compression: Compression
    ) -> None:
        maker = await make_store(storage)
        await maker.add(CONTENTS, compression=compression)
        async with reading(storage) as store:
            for uid, content in CONTENTS.items():
                assert await store.get(uid, WHEN) == content, uid
                assert await read_stream(store, uid) == content, uid
                found = await store.find(uid, WHEN)
                assert await store.read(found) == content, uid
                info = await store.stat(uid, WHEN)
                assert info.raw_size == len(content)
            answers = {result.uid: result.data async for result in store.get_many((uid, WHEN) for uid in CONTENTS)}
            assert answers == CONTENTS

    async def test_any_spelling_of_uid_and_time(self, storage: RecordingStorage) -> None:
        files = {"7": b"seven", "with space/and ünïcödé 🎈": b"odd", "x" * 1024: b"long"}
        await make_store(storage, files)
        async with reading(storage) as store:
            assert await store.get(7, WHEN) == b"seven"
            for uid, content in files.items():
                for when in (
                    date(2024, 1, 31),
                    datetime(2024, 1, 31, 23, 59, 59, tzinfo=UTC),
                    datetime(2024, 2, 1, 1, 30, tzinfo=timezone(timedelta(hours=2))),
                    "2024-01-31",
                    "2024-01-31T12:00:00.5Z",
                    "2024-01-30T20:00:00-05:00",
                ):
                    assert await store.get(uid, when) == content
            with pytest.raises(NotFoundError):
                await store.get(7, date(2024, 2, 1))

    @pytest.mark.parametrize(
        ("uid", "when"),
        [
            ("", WHEN),
            ("a\0b", WHEN),
            ("x" * 1025, WHEN),
            (10**1100, WHEN),
            ("a", "yesterday"),
            ("a", datetime(2024, 1, 31)),  # noqa: DTZ001 - naive on purpose
            ("a", "2024-02-30"),
        ],
        ids=repr,
    )
    async def test_what_cannot_be_asked_is_refused_before_the_storage_is(
        self, storage: RecordingStorage, uid: str | int, when: str
    ) -> None:
        async with reading(storage) as store:
            for ask in (store.get, store.stat, store.find):
                with pytest.raises(InvalidRequestError):
                    await ask(uid, when)
            with pytest.raises(InvalidRequestError):
                async with store.stream(uid, when):
                    pass
        assert storage.calls == []

    async def test_replaced_and_deleted(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"a": b"one", "b": b"two", "c": b"three"})
        await maker.add({"a": b"another one"})
        await maker.delete(["b"])
        async with reading(storage) as store:
            assert await store.get("a", WHEN) == b"another one"
            assert await store.get("c", WHEN) == b"three"
            for ask in (store.get, store.stat, store.find):
                with pytest.raises(DeletedError, match=f"the file 'b' of {DAY} was deleted"):
                    await ask("b", WHEN)
            await maker.add({"b": b"back again"})
        async with reading(storage) as store:
            assert await store.get("b", WHEN) == b"back again"

    async def test_a_read_yields_now_and_then(self, storage: RecordingStorage) -> None:
        """A loop over reads that never wait lets others run, and can be cancelled."""
        await make_store(storage, {"a": b"content"})
        async with reading(storage) as store:
            reads = 0
            with anyio.move_on_after(0.05):
                while True:
                    assert await store.get("a", WHEN) == b"content"
                    reads += 1
            assert reads

    async def test_a_thousand_reads_of_one_file_at_once(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"a": b"content"})
        right: list[bytes] = []
        async with reading(storage) as store:

            async def get() -> None:
                right.append(await store.get("a", WHEN))

            async with anyio.create_task_group() as tasks:
                for _ in range(1000):
                    tasks.start_soon(get)
        assert right == [b"content"] * 1000


class TestStat:
    async def test_all_that_is_known(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage)
        time = timedelta(hours=13, minutes=14, seconds=15, microseconds=987_654)
        metadata = {"author": "Jack", "nested": {"ü": [1, None]}}
        (segment,) = await maker.add({"a": File(TEXT * 10, "text/x-dull", metadata, time)})
        async with reading(storage) as store:
            info = await store.stat("a", WHEN)
            assert info.created_at == datetime(2024, 1, 31, 13, 14, 15, tzinfo=UTC)
            assert (info.uid, info.raw_size, info.codec, info.content_type) == (
                "a",
                len(TEXT) * 10,
                "zstd",
                "text/x-dull",
            )
            assert 0 < info.stored_size < info.raw_size
            assert info.etag == f'"{info.content_hash}"'
            assert (info.shard, info.segment, info.offset) == (maker.identity("a").head_key, segment, HEADER.size)
            assert info.metadata is None
            assert await store.stat("a", WHEN, metadata=True) == replace(info, metadata=metadata)

    async def test_no_metadata_is_an_empty_object(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"a": b"content"})
        async with reading(storage) as store:
            assert (await store.stat("a", WHEN, metadata=True)).metadata == {}

    @pytest.mark.parametrize(
        ("uid", "given", "expected"),
        [
            ("a.json", None, "application/json"),
            ("a.json", "text/x-mine", "text/x-mine"),
            ("a", None, "application/octet-stream"),
        ],
    )
    async def test_content_type(self, storage: RecordingStorage, uid: str, given: str | None, expected: str) -> None:
        await make_store(storage, {uid: File(b"content", given)})
        async with reading(storage) as store:
            assert (await store.stat(uid, WHEN)).content_type == expected

    async def test_what_a_server_asks_of_a_found_file(self, storage: RecordingStorage) -> None:
        maker = await make_store(storage, {"a": TEXT * 10, "raw": b"x", "large": text(LARGE_BYTES + 1), "r": b"old"})
        before = datetime.now(UTC)
        await maker.add({"r": b"new"})
        async with reading(storage) as store:
            found = await store.find("a", WHEN)
            assert found.etag == (await store.stat("a", WHEN)).etag
            assert found.zstd_etag is not None
            assert found.zstd_etag.startswith(found.etag[:-1])
            assert found.zstd_etag != found.etag
            assert found.committed_second is not None
            assert found.committed_second <= before.timestamp()
            assert not found.is_large
            assert (await store.find("raw", WHEN)).zstd_etag is None
            large = await store.find("large", WHEN)
            assert large.is_large
            assert large.zstd_etag is None, "more than one frame"
            assert (await store.find("r", WHEN)).committed_second is None, "replaced"


async def test_dictionaries_are_told_apart(storage: RecordingStorage) -> None:
    """Several dictionaries in one shard, and the same one in several segments."""
    maker = await make_store(storage)
    uids = maker.uids_of_one_shard(40)
    contents = {uid: text(3000, seed=number) for number, uid in enumerate(uids)}
    for start in range(0, 40, 10):
        some = {uid: contents[uid] for uid in uids[start : start + 10]}
        await maker.add(some, compression=Compression(dictionary=text(8000, seed=start // 10 % 3)))
    async with reading(storage) as store:
        for uid in random.Random(1).choices(uids, k=200):
            assert await store.get(uid, WHEN) == contents[uid]
        reads = storage.select(verb="read_range", purpose="index")
        assert [call.size for call in reads] == [8000] * 3


@pytest.mark.parametrize("seed", range(3))
async def test_the_model(storage: RecordingStorage, seed: int) -> None:
    """A random history of packing, replacing, deleting and compacting; a dict is the model."""
    generator = random.Random(seed)
    maker: Maker = await make_store(storage)
    uids = [f"file {number}" for number in range(60)]
    async with reading(storage, index_ttl=0, negative_ttl=0) as store:
        for _ in range(25):
            match generator.choice(["add", "add", "delete", "compact"]):
                case "add":
                    some = generator.sample(uids, generator.randrange(1, 20))
                    await maker.add({uid: text(generator.randrange(2000), generator.randrange(99)) for uid in some})
                case "delete":
                    present = sorted(maker.files.get(DAY, {}))
                    await maker.delete(generator.sample(present, min(len(present), 5)))
                case "compact" if maker.files.get(DAY):
                    await maker.compact()
            expected = {uid: file.content for uid, file in maker.files.get(DAY, {}).items()}
            for uid in generator.sample(uids, 10):
                if uid in expected:
                    assert await store.get(uid, WHEN) == expected[uid]
                else:
                    with pytest.raises(NotFoundError):
                        await store.get(uid, WHEN)
            answers = {r.uid: r.data async for r in store.get_many((uid, WHEN) for uid in uids) if r.error is None}
            assert answers == expected
            listed = {info.uid: info.raw_size async for info in store.list(DAY)}
            assert listed == {uid: len(content) for uid, content in expected.items()}
