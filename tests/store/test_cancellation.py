"""Cancelling every kind of read before and after each of its storage calls leaves everything as it was."""

from __future__ import annotations

import asyncio
import gc
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import psutil
import pytest

from des.shard.codecs import Compression
from des.storage.local import LocalStorage
from des.store.cache import SingleFlight
from tests.making import DAY, WHEN, File, make_store, reading
from tests.store.contents import DICTIONARY, noise, read_stream, text
from tests.store.meddling import Meddler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from des.storage.testing import Call
    from des.store import Store


class Canceller:
    """Cancels a scope at the n-th storage call, before or after it."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls = 0
        self.scope = anyio.CancelScope()

    async def __call__(self, call: Call) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.scope.cancel()
            await anyio.lowlevel.checkpoint()


async def get(store: Store) -> object:
    return await store.get("small", WHEN)


async def get_with_dictionary(store: Store) -> object:
    return await store.get("dictionary", WHEN)


async def get_large(store: Store) -> object:
    return await store.get("large", WHEN)


async def stat(store: Store) -> object:
    return await store.stat("small", WHEN, metadata=True)


async def stream(store: Store) -> object:
    return await read_stream(store, "large", 300_000)


async def stream_a_bit(store: Store) -> object:
    async with store.stream("large", WHEN) as pieces:
        return await anext(pieces)


async def get_many(store: Store) -> object:
    files = [(uid, WHEN) for uid in ("small", "dictionary", "large", "missing", *(f"{number}" for number in range(50)))]
    results = [result async for result in store.get_many(files)]
    return sorted((result.uid, result.data, str(result.error)) for result in results)


async def list_day(store: Store) -> object:
    return [info async for info in store.list(DAY)]


async def list_a_bit(store: Store) -> object:
    infos: Any = store.list(DAY)
    async with aclosing(infos):
        return await anext(infos)


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store that all tests read."""
    base_dir = tmp_path_factory.mktemp("store")

    async def make() -> None:
        local = LocalStorage(base_dir)
        maker = await make_store(local, {"large": noise(1_200_000), "small": File(text(4096), metadata={"n": 1})})
        await maker.add({"dictionary": text(500)}, compression=Compression(dictionary=DICTIONARY))
        await maker.add({f"{number}": text(300 * number % 7000) for number in range(40)})
        await local.aclose()

    anyio.run(make)
    return base_dir


@pytest.fixture
async def local(base_dir: Path) -> AsyncIterator[LocalStorage]:
    local = LocalStorage(base_dir)
    yield local
    await local.aclose()


def flights(store: Store) -> int:
    """Return how many keys are in flight in any of the store's tables."""
    gc.collect()
    owners = (store.index, store._prerequisites, store._catalogs)
    tables = [table for owner in owners for table in vars(owner).values() if isinstance(table, SingleFlight)]
    assert len(tables) == 7
    return sum(len(table) for table in tables)


def descriptors() -> int:
    return int(psutil.Process().num_fds())


ALL = [get, get_with_dictionary, get_large, stat, stream, stream_a_bit, get_many, list_day, list_a_bit]
OFTEN = {(get, "before"), (get, "after"), *((read, "before") for read in (stream, get_many, list_day))}
BEFORE_AND_AFTER = [
    pytest.param(read, when, marks=[] if (read, when) in OFTEN else [pytest.mark.soak])
    for read in ALL
    for when in ("before", "after")
]


@pytest.mark.parametrize(("read", "when"), BEFORE_AND_AFTER, ids=lambda value: getattr(value, "__name__", value))
async def test_at_every_storage_call(
    local: LocalStorage, read: Callable[[Store], Awaitable[object]], when: str
) -> None:
    async with reading(local) as store:
        expected = await read(store)
    await local.aclose()
    await settle()
    tasks, files = asyncio.all_tasks(), descriptors()
    at = cancelled = 0
    while cancelled == at:
        at += 1
        canceller = Canceller(at)
        storage = Meddler(local, **{when: canceller})
        async with reading(storage) as store:
            with canceller.scope:
                await read(store)
            cancelled += canceller.scope.cancelled_caught
            with anyio.fail_after(20):
                while len(asyncio.all_tasks()) > len(tasks):
                    await anyio.lowlevel.checkpoint()
            assert flights(store) == 0
            assert await read(store) == expected, f"after a cancellation at call {at}"
        await local.aclose()
        await settle()
        assert asyncio.all_tasks() == tasks
        with anyio.fail_after(20):  # a worker thread may hold one for the moment that it needs to forget its work
            while descriptors() > files:
                await anyio.lowlevel.checkpoint()
    assert cancelled >= 3


@pytest.mark.parametrize("read", [get, stat, stream, get_many, list_day], ids=lambda read: read.__name__)
async def test_whoever_else_reads_is_not_disturbed(
    local: LocalStorage, read: Callable[[Store], Awaitable[object]]
) -> None:
    """One of twenty equal reads is cancelled at each of its calls in turn, those included that it makes for the others."""
    async with reading(local) as store:
        expected = await read(store)
    for at in range(1, 8):
        canceller = Canceller(at)
        results: list[object] = []
        async with reading(Meddler(local, before=canceller)) as store:

            async def one(store: Store = store, canceller: Canceller = canceller) -> None:
                with canceller.scope:
                    await read(store)

            async def another(store: Store = store, results: list[object] = results) -> None:
                results.append(await read(store))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one)
                await anyio.lowlevel.checkpoint()
                for _ in range(5):
                    tasks.start_soon(another)
            assert flights(store) == 0
        assert results == [expected] * 5


@pytest.mark.parametrize("read", ALL, ids=lambda read: read.__name__)
async def test_at_every_step_of_the_loop(local: LocalStorage, read: Callable[[Store], Awaitable[object]]) -> None:
    """Cancelled at whatever it waits for: locks, threads, channels and flights as well."""
    async with reading(local) as store:
        expected = await read(store)
    tasks = asyncio.all_tasks()
    steps = 0
    finished = False
    while not finished and steps < 300:
        steps += 1 + steps // 3
        async with reading(local) as store:
            outcome: list[object] = []

            async def act(store: Store = store, outcome: list[object] = outcome) -> None:
                outcome.append(await read(store))

            async with anyio.create_task_group() as group:
                group.start_soon(act)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            finished = bool(outcome)
            assert outcome in ([], [expected])
            with anyio.fail_after(20):
                while len(asyncio.all_tasks()) > len(tasks):
                    await anyio.lowlevel.checkpoint()
            assert flights(store) == 0
            assert await read(store) == expected


async def settle() -> None:
    gc.collect()
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
