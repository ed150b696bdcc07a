"""The read caches take no more memory than they say, and they say no more than `cache_bytes`."""

from __future__ import annotations

import gc
import tracemalloc
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

import des
from des.errors import NotFoundError
from des.routing import file_id
from des.storage.local import LocalStorage
from tests.making import WHEN, File, make_store, reading

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from des.store import Store

FILES = 600
DAYS = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Make a store that all tests read; return its place and the uids of its big shard."""
    base_dir = tmp_path_factory.mktemp("store")

    async def make() -> list[str]:
        local = LocalStorage(base_dir)
        maker = await make_store(local)
        uids = sorted(maker.uids_of_one_shard(FILES, stem="ünïcödé 🎈"), key=file_id)
        await maker.add({uid: File(b"x", f"text/{uid}", {"🎈": uid * 5}) for uid in uids})
        for day in range(1, DAYS + 1):
            await maker.add({"large": bytes((1 << 20) + day)}, f"202402{day:02}")
        await local.aclose()
        return uids

    return base_dir, anyio.run(make)


@pytest.fixture
async def local(made: tuple[Path, list[str]]) -> AsyncIterator[LocalStorage]:
    local = LocalStorage(made[0])
    yield local
    await local.aclose()


@pytest.fixture
def uids(made: tuple[Path, list[str]]) -> list[str]:
    return made[1]


async def absent_heads(store: Store, _uids: list[str]) -> None:
    for days in range(300):
        with pytest.raises(NotFoundError):
            await store.get("a", date(1990, 1, 1) + timedelta(days))


async def heads(store: Store, _uids: list[str]) -> None:
    for day in range(1, DAYS + 1):
        await store.stat("large", date(2024, 2, day))


async def pages(store: Store, uids: list[str]) -> None:
    for uid in uids:
        await store.stat(uid, WHEN)


async def catalogs(store: Store, uids: list[str]) -> None:
    for uid in uids[::20]:
        await store.stat(uid, WHEN, metadata=True)


async def seek_tables(store: Store, _uids: list[str]) -> None:
    for day in range(1, DAYS + 1):
        found = await store.find("large", date(2024, 2, day))
        async with store.open_range(found, 0, 1) as pieces:
            assert await anext(pieces) == b"\0"


def taken_by_des() -> int:
    """Return how many bytes that code of ours asked for since the tracing began are still in use."""
    ours = tracemalloc.Filter(inclusive=True, filename_pattern=str(Path(des.__file__).parent / "*"))
    return sum(found.size for found in tracemalloc.take_snapshot().filter_traces([ours]).statistics("filename"))


KINDS = [absent_heads, heads, pages, catalogs, seek_tables]


@pytest.mark.parametrize("fill", KINDS, ids=lambda fill: fill.__name__)
async def test_what_is_kept_weighs_what_it_is_said_to(
    local: LocalStorage,
    uids: list[str],
    fill: Callable[[Store, list[str]], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("des.store.index._KEPT_PLACES", 1)
    async with reading(local) as warm_up:
        await fill(warm_up, uids)
    async with reading(local) as store:
        await store.check()
        gc.collect()
        tracemalloc.start()
        try:
            await fill(store, uids)
            await anyio.to_thread.run_sync(gc.collect)  # in a worker thread, which else remembers its last work
            taken = taken_by_des()
        finally:
            tracemalloc.stop()
        assert store.cache.used_bytes > 10_000
        assert taken < 1.2 * store.cache.used_bytes + 10_000


async def test_it_never_says_more_than_it_may(local: LocalStorage, uids: list[str]) -> None:
    async with reading(local, cache_bytes=300_000, negative_ttl=0) as store:
        for fill in (*KINDS, *KINDS):
            await fill(store, uids[::10])
            assert 0 < store.cache.used_bytes <= 300_000
        assert store.cache.evictions > 0
        assert await store.get(uids[0], WHEN) == b"x"
