from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.errors import (
    InvalidRequestError,
    StorageUnavailableError,
)
from des.shard.chunking import CHUNK_BYTES, LARGE_BYTES
from des.storage.testing import Fail, Fault, FaultyStorage
from tests.making import WHEN, make_store, reading
from tests.store.contents import CONTENTS, noise, read_stream, text

if TYPE_CHECKING:
    from des.storage.local import LocalStorage
    from des.storage.testing import RecordingStorage
    from des.store import Store


class TestStream:
    @pytest.mark.parametrize("kind", [text, noise])
    @pytest.mark.parametrize("size", [10, LARGE_BYTES, LARGE_BYTES + 1, 5 * CHUNK_BYTES])
    async def test_any_range(self, storage: RecordingStorage, kind: type, size: int) -> None:
        content = kind(size)
        await make_store(storage, {"a": content})
        edges = [
            0,
            1,
            5,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            3 * CHUNK_BYTES,
            size - 1,
            size,
            size + 1,
            10**12,
        ]
        async with reading(storage) as store:
            for start in edges:
                for end in (*edges, None):
                    if end is None or start <= end:
                        assert await read_stream(store, "a", start, end) == content[start:end], (start, end)

    @pytest.mark.parametrize(("start", "end"), [(-1, None), (-5, -1), (5, 4), (0, -1)])
    async def test_impossible_ranges(self, storage: RecordingStorage, start: int, end: int | None) -> None:
        await make_store(storage, {"a": b"content"})
        async with reading(storage) as store:
            with pytest.raises(InvalidRequestError, match="impossible"):
                async with store.stream("a", WHEN, start=start, end=end):
                    pass
            found = await store.find("a", WHEN)
            with pytest.raises(InvalidRequestError, match="does not lie in a file of 7 bytes"):
                async with store.open_range(found, start, 100 if end is None else end):
                    pass

    async def test_pieces_are_never_empty_and_never_big(self, storage: RecordingStorage) -> None:
        await make_store(storage, CONTENTS)
        async with reading(storage) as store:
            for uid, content in CONTENTS.items():
                async with store.stream(uid, WHEN, start=1) as pieces:
                    sizes = [len(piece) async for piece in pieces]
                assert sum(sizes) == max(len(content) - 1, 0)
                assert all(0 < size <= CHUNK_BYTES for size in sizes)

    async def test_leaving_early_ends_it(self, local: LocalStorage) -> None:
        await make_store(local, {"a": noise(8 * CHUNK_BYTES)})
        async with reading(local) as store:
            async with store.stream("a", WHEN) as pieces:
                assert len(await anext(pieces)) == CHUNK_BYTES
            with pytest.raises(StopAsyncIteration):
                await anext(pieces)

    async def test_an_error_of_the_body_comes_out_as_itself(self, storage: RecordingStorage) -> None:
        await make_store(storage, {"a": noise(8 * CHUNK_BYTES)})
        async with reading(storage) as store:
            with pytest.raises(ZeroDivisionError):
                await self.fail_midway(store)

    async def fail_midway(self, store: Store) -> None:
        async with store.stream("a", WHEN) as pieces:
            async for _ in pieces:
                raise ZeroDivisionError

    async def test_trouble_midway_comes_from_the_iterator(self, local: LocalStorage) -> None:
        content = noise(8 * CHUNK_BYTES)
        await make_store(local, {"a": content})
        faulty = FaultyStorage(local, [Fault(Fail(StorageUnavailableError("cut")), verb="piece", at=7)])
        received = bytearray()
        async with reading(faulty) as store:
            with pytest.raises(StorageUnavailableError, match="cut"):
                await receive(store, received)
            assert faulty.fired
        assert 0 < len(received) < len(content)
        assert content.startswith(received)


async def receive(store: Store, received: bytearray) -> None:
    async with store.stream("a", WHEN) as pieces:
        async for piece in pieces:
            received += piece
