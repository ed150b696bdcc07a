from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from des.errors import StorageTimeoutError
from des.http.readiness import places_asked
from des.storage.protocol import PlaceState
from des.storage.wrapper import Call, StorageWrapper, Tally
from tests.http.live import Server, running
from tests.making import make_store, reading
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class Places(StorageWrapper):
    """A storage with two places, which fail or not as the test says; reading works as long as one of them does."""

    def __init__(self) -> None:
        super().__init__(MemoryStorage())
        self.read_again = anyio.Event()
        self.is_down = {"s3://one": False, "s3://two/b": False}
        self.left_alone: set[str] = set()
        self.reads = 0

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        self.reads += 1
        if self.reads > 3:
            self.read_again.set()
        self.left_alone = {place for place, is_down in self.is_down.items() if is_down}
        if all(self.is_down.values()):
            raise StorageTimeoutError("s3://one does not answer.")
        yield Tally()

    def states(self) -> Sequence[PlaceState]:
        return [
            PlaceState(
                "a" if place == "s3://one" else "b", place, is_primary=True, is_well=place not in self.left_alone
            )
            for place in self.is_down
        ]


class OnePlace(Places):
    def states(self) -> Sequence[PlaceState]:
        return []


async def ready(server: Server) -> tuple[int, object]:
    reply = await server.ask("/ready")
    assert reply.headers["cache-control"] == "no-store"
    body = json.loads(reply.body)
    if reply.status == 200:
        return 200, (body["status"], body["zones"])
    assert int(reply.headers["retry-after"]) > 0
    return reply.status, body["detail"]


async def test_each_place_says_how_it_fares_and_degraded_is_ready() -> None:
    storage = Places()
    await make_store(storage, {"a": b"content"})
    async with running(storage) as server:
        assert await ready(server) == (200, ("ok", {"a": {"s3://one": "ok"}, "b": {"s3://two/b": "ok"}}))
        storage.left_alone = {"s3://one"}
        assert await ready(server) == (200, ("degraded", {"a": {"s3://one": "failing"}, "b": {"s3://two/b": "ok"}}))


async def test_without_a_readable_place_it_is_not_ready_until_there_is_one_again() -> None:
    storage = Places()
    await make_store(storage, {"a": b"content"})
    async with running(storage, index_ttl=3600) as server:
        assert (await ready(server))[0] == 200
        storage.is_down = dict.fromkeys(storage.is_down, True)
        storage.left_alone = set(storage.is_down)
        before = storage.reads
        assert await ready(server) == (503, "No place of the store can be read; try again later.")
        assert storage.reads > before, "nobody else would find out that they are well again"
        storage.is_down["s3://one"] = False
        assert await ready(server) == (200, ("degraded", {"a": {"s3://one": "ok"}, "b": {"s3://two/b": "failing"}}))


async def test_a_service_that_never_read_its_descriptor_is_not_ready() -> None:
    storage = Places()
    await make_store(storage, {"a": b"content"})
    async with running(storage) as server:
        storage.is_down = dict.fromkeys(storage.is_down, True)
        assert await ready(server) == (503, "No place of the store can be read; try again later.")


async def test_places_that_nobody_reads_from_are_asked_all_the_same() -> None:
    storage = Places()
    await make_store(storage, {})
    async with reading(storage) as store, places_asked(store, every=0):
        storage.reads, storage.read_again = 0, anyio.Event()
        storage.is_down = dict.fromkeys(storage.is_down, True)  # which does not end it
        await storage.read_again.wait()
    assert not any(one.is_well for one in storage.states())


async def test_a_store_in_one_place_is_asked_only_by_requests() -> None:
    storage = OnePlace()
    await make_store(storage, {})
    async with reading(storage) as store, places_asked(store, every=0):
        before = storage.reads
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert storage.reads == before
