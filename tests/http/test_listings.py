"""The listings of a day over a socket: what they say, in pages, and what they cost."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from des.errors import InvalidRequestError
from des.http import listings
from des.http.listings import Page, parse_page
from des.store.fileinfo import file_json
from tests.http.live import running
from tests.making import DAY, File, make_store, reading

if TYPE_CHECKING:
    from des.storage.testing import RecordingStorage
    from tests.http.live import Server

FILES = f"/files?date={DAY}"
SHARDS = f"/shards/{DAY}"


async def get(server: Server, target: str) -> dict[str, Any]:
    reply = await server.ask(target)
    assert reply.status == 200, reply.body
    assert reply.is_whole
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    found: dict[str, Any] = json.loads(reply.body)
    head = await server.ask(target, method="HEAD")
    assert (head.body, head.headers["content-length"]) == (b"", reply.headers["content-length"])
    return found


async def pages(server: Server, target: str, name: str, limit: int) -> list[list[dict[str, Any]]]:
    found = []
    after = ""
    while True:
        page = await get(server, f"{target}{'&' if '?' in target else '?'}limit={limit}{after}")
        assert set(page) == {"date", name, "next"}
        assert page["date"] == DAY
        found.append(page[name])
        if page["next"] is None:
            return found
        after = f"&after={page['next']}"


async def test_the_files_of_a_day_in_pages(storage: RecordingStorage) -> None:
    maker = await make_store(storage, n_bits=3)
    odd = File(b"odd", "text/odd", {"k": ["\N{SNOWMAN}", None]}, timedelta(hours=3, microseconds=5))
    await maker.add({f"file-{n}": b"%d" % n for n in range(50)} | {'odd "\N{SNOWMAN}': odd, "gone": b""})
    await maker.add({"file-7": b"replaced"})
    await maker.delete(["gone"])
    async with reading(storage) as store:
        known = [file_json(info) async for info in store.list(DAY)]
    async with running(storage) as server:
        whole = await get(server, FILES)
        assert whole == {"date": DAY, "files": known, "next": None}
        [found] = [one for one in known if one["uid"].startswith("odd")]
        assert found["metadata"] == {"k": ["\N{SNOWMAN}", None]}
        assert found["created_at"] == "2024-01-31T03:00:00.000005Z"
        assert {one["uid"] for one in known} == set(maker.files[DAY])
        for limit in (1, 7, 50, 51, 52):
            parts = await pages(server, FILES, "files", limit)
            assert [one for part in parts for one in part] == known
            assert [len(part) for part in parts[:-1]] == [limit] * (len(parts) - 1)
            assert len(parts[-1]) > 0
        # A cursor stays good while files come and go.
        first = await get(server, f"{FILES}&limit=10")
        await maker.delete([first["files"][-1]["uid"]])
        rest = await get(server, f"{FILES}&after={first['next']}")
        assert rest["files"] == known[10:]
        assert (await get(server, "/files?date=2023-12-31")) == {"date": "20231231", "files": [], "next": None}


async def test_the_shards_of_a_day_in_pages(storage: RecordingStorage) -> None:
    maker = await make_store(storage, n_bits=5)
    contents = {f"file-{n}": b"%d" % n * n for n in range(400)}
    await maker.add(contents)
    await maker.add({"another": b"x", "file-9": b"replaced"})
    await maker.delete(["file-1", "file-2"])
    expected: dict[str, dict[str, Any]] = {}
    async with reading(storage) as store:
        async for info in store.list(DAY):
            one = expected.setdefault(info.shard, {"shard": info.shard, "files": 0, "raw_bytes": 0, "stored_bytes": 0})
            one["files"] += 1
            one["raw_bytes"] += info.raw_size
            one["stored_bytes"] += info.stored_size
    async with running(storage) as server:
        [found] = await pages(server, SHARDS, "shards", 1000)
        assert [one["shard"] for one in found] == sorted(expected)
        assert len(found) == 32
        for one in found:
            assert set(one) == {"shard", "files", "deleted", "raw_bytes", "stored_bytes", "segments"}
            assert one.items() >= expected[one["shard"]].items()
        assert sum(one["deleted"] for one in found) == 2
        gone = [one for one in found if one["deleted"]]
        assert {one["shard"] for one in gone} == {maker.identity(uid).head_key for uid in ("file-1", "file-2")}
        segments = [info.key async for info in storage.list(f"{DAY}/") if info.key.count("/") == 2]
        assert sum(one["segments"] for one in found) == len(segments)
        for limit in (1, 31, 32, 33):
            parts = await pages(server, SHARDS, "shards", limit)
            assert [one for part in parts for one in part] == found
            assert len(parts[-1]) > 0
        assert (await get(server, "/shards/2023-12-31")) == {"date": "20231231", "shards": [], "next": None}


async def test_what_listings_cost(storage: RecordingStorage) -> None:
    maker = await make_store(storage, n_bits=4)
    await maker.add({f"file-{n}": b"content" for n in range(200)})
    async with running(storage) as server:
        storage.calls.clear()
        await server.ask(f"{SHARDS}?limit=5")
        assert storage.count(verb="list_level") == 1
        assert storage.count(purpose="footer") == 5 + 1  # and the descriptor
        assert len(storage.calls) == 5 + 1 + 1
        storage.calls.clear()
        await server.ask(f"{FILES}&limit=1000")
        assert storage.count(verb="list_level") == 1
        assert storage.count(purpose="footer") == 11  # those that are not known yet
        assert storage.count(purpose="index") == 16  # one a catalog
        assert storage.count(purpose="payload") == 0


async def test_a_page_ends_where_its_bytes_do(storage: RecordingStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "PAGE_BYTES", 4000)
    metadata = {"k": "x" * 1000}
    await make_store(storage, {f"file-{n}": File(b"", metadata=metadata) for n in range(20)})
    async with running(storage) as server:
        parts = await pages(server, FILES, "files", 1000)
        assert [len(part) for part in parts] == [3] * 6 + [2]


@pytest.mark.parametrize(
    "target",
    [
        "/files?date=",
        "/files?date=20240231",
        "/files?date=yesterday",
        f"{FILES}&date={DAY}",
        f"{FILES}&limit=0",
        f"{FILES}&limit=1001",
        f"{FILES}&limit=-1",
        f"{FILES}&limit=%2B1",
        f"{FILES}&limit=1&limit=1",
        f"{FILES}&limit=",
        f"{FILES}&limit={'0' * 9_000}1",
        f"{FILES}&limit={'9' * 9_000}",
        f"{FILES}&after={'0' * 9_000}",
        f"{FILES}&limit=%D9%A1",
        f"{FILES}&after=x",
        f"{FILES}&after=00",
        f"{FILES}&after={'0' * 31}",
        "/shards/20240231",
        "/shards/today",
        f"{SHARDS}?after=x",
        f"{SHARDS}?after=-1",
        f"{SHARDS}?after=00000",
        f"{SHARDS}?after=",
        f"{SHARDS}?limit=1e3",
        f"{SHARDS}?after=%FF",
    ],
)
async def test_a_wrong_call_is_400(storage: RecordingStorage, target: str) -> None:
    await make_store(storage, {"a": b"content"})
    async with running(storage) as server:
        reply = await server.ask(target)
        assert reply.status == 400
        assert reply.headers["content-type"] == "application/problem+json"


async def test_trouble_is_answered_as_elsewhere(storage: RecordingStorage) -> None:
    async with running(storage) as server:
        for target in (FILES, SHARDS):
            assert (await server.ask(target)).status == 503  # no store
    maker = await make_store(storage, {"a": b"content"})
    await storage.delete(maker.identity("a").head_key)
    async with running(storage) as server:
        for target in (FILES, SHARDS):
            assert (await server.ask(target)).status == 500  # a lost head
            assert (await server.ask(target, method="POST")).headers["allow"] == "GET, HEAD"


async def test_a_uid_makes_it_a_file(storage: RecordingStorage) -> None:
    await make_store(storage, {"a": b"content"})
    async with running(storage) as server:
        assert (await server.ask(f"/files?uid=a&created_at=2024-01-31&date={DAY}")).body == b"content"
        assert (await server.ask(f"/files/a?created_at=2024-01-31&date={DAY}")).body == b"content"
        assert (await server.ask(f"/files/a?date={DAY}")).status == 400
        assert (await get(server, f"/files?created_at=2024-01-31&d%61te={DAY}"))["files"][0]["uid"] == "a"


def test_which_page_is_asked_for() -> None:
    assert parse_page(b"date=2024-01-31") == Page("20240131", None, 1000)
    assert parse_page(b"limit=5&after=AB&x=1", "20240131") == Page("20240131", "AB", 5)
    with pytest.raises(InvalidRequestError, match="more than once"):
        parse_page(b"after=a&after=b", "20240131")
