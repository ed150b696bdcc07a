from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from des.errors import (
    CorruptShardError,
    ObjectNotFoundError,
    StorageDeniedError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from des.shard.chunking import LARGE_BYTES
from des.storage.testing import Fail, Fault, FaultyStorage, Hold
from tests.making import WHEN, make_store, reading
from tests.store.contents import noise, read_stream

if TYPE_CHECKING:
    from des.errors import StorageError
    from des.storage.local import LocalStorage


class TestTrouble:
    @pytest.mark.parametrize(
        "error", [StorageUnavailableError("down"), StorageTimeoutError("slow"), StorageDeniedError("denied")], ids=repr
    )
    @pytest.mark.parametrize("at", [1, 2, 3])
    async def test_trouble_is_what_it_is_at_every_read(self, local: LocalStorage, error: StorageError, at: int) -> None:
        await make_store(local, {"a": b"content"})
        faulty = FaultyStorage(local, [Fault(Fail(error), at=at)])
        async with reading(faulty) as store:
            with pytest.raises(type(error), match=str(error)):
                await store.get("a", WHEN)
            assert faulty.fired
            assert await store.get("a", WHEN) == b"content"

    @pytest.mark.parametrize("at", [1, 2, 3])
    async def test_the_deadline(self, local: LocalStorage, at: int) -> None:
        await make_store(local, {"a": b"content"})
        faulty = FaultyStorage(local, [Fault(Hold(), at=at)])
        async with reading(faulty, request_timeout=0.05) as store:
            with pytest.raises(StorageTimeoutError, match=r"did not answer within 0\.05 seconds"):
                await store.get("a", WHEN)
            assert faulty.fired
            assert await store.get("a", WHEN) == b"content"

    @pytest.mark.parametrize("verb", ["read_range", "stream_range", "piece"])
    async def test_the_deadline_of_a_streams_first_byte(self, local: LocalStorage, verb: str) -> None:
        content = noise(3 * LARGE_BYTES)
        await make_store(local, {"a": content})
        faulty = FaultyStorage(local, [Fault(Hold(), verb=verb)])  # type: ignore[arg-type]  # one of the verbs
        async with reading(faulty, request_timeout=0.05) as store:
            with pytest.raises(StorageTimeoutError):
                await read_stream(store, "a", 5, 6)
            assert faulty.fired
            assert await read_stream(store, "a") == content

    async def test_the_deadline_of_metadata_and_of_the_descriptor(self, local: LocalStorage) -> None:
        await make_store(local, {"a": b"content"})
        faulty = FaultyStorage(local, [Fault(Hold(), at=at) for at in (1, 4)])
        async with reading(faulty, request_timeout=0.05) as store:
            with pytest.raises(StorageTimeoutError):
                await store.check()
            await store.stat("a", WHEN)
            with pytest.raises(StorageTimeoutError):
                await store.stat("a", WHEN, metadata=True)
            assert len(faulty.fired) == 2

    async def test_a_deadline_of_one_does_not_end_another(self, local: LocalStorage) -> None:
        """Whoever leads a flight may run out of time; who asked later still has his own."""
        maker = await make_store(local, {"a": b"content"})
        hold = Hold()
        key = maker.identity("a").head_key
        faulty = FaultyStorage(local, [Fault(hold, key=lambda k: k == key)])
        outcomes: list[object] = []
        async with reading(faulty, request_timeout=0.2) as store:

            async def get() -> None:
                try:
                    outcomes.append(await store.get("a", WHEN))
                except StorageTimeoutError as error:
                    outcomes.append(type(error))

            async def follow() -> None:
                store.settings = store.settings.model_copy(update={"request_timeout": 60.0})
                await get()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(get)
                await hold.reached.wait()
                tasks.start_soon(follow)
            assert outcomes == [StorageTimeoutError, b"content"]

    async def test_not_found_of_an_object_never_comes_out(self, local: LocalStorage) -> None:
        """An object that is not there is not a file that is not there: even where it is always another one."""
        await make_store(local, {"a": b"content"})
        faulty = FaultyStorage(local, [Fault(Fail(ObjectNotFoundError("gone")), at=None, verb="read_range")])
        async with reading(faulty) as store:
            with pytest.raises(CorruptShardError):
                await store.get("a", WHEN)
