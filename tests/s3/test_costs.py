"""What retrievals cost on S3, counted before the server: DESIGN's table, in requests that really arrived."""

from __future__ import annotations

import os
import random
import re
import sys
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from des import Store, open_store
from des.errors import NotFoundError
from des.storage.descriptor import DESCRIPTOR_KEY
from des.storage.s3 import open_s3
from des.store.planning import MAX_GAP_BYTES, MAX_READ_BYTES
from tests.http.live import running
from tests.making import WHEN
from tests.pack.packing import Run, Sources
from tests.s3.sample import FILES, LARGE, NAMES, OTHERS, PREFIX, WITH_DICTIONARY, kind, missing
from tests.servers.s3_servers import REGION
from tests.store.contents import noise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.servers.fault_proxy import FaultProxy

pytest_plugins = ["tests.servers.fixtures"]

DAY_TEXT = "2024-01-31"


@pytest.fixture
def bucket(sample_bucket: str, s3_credentials: None) -> str:
    return sample_bucket


@asynccontextmanager
async def opened(proxy: FaultProxy, bucket: str, **settings: Any) -> AsyncIterator[Store]:  # noqa: ANN401
    """Open the store as everybody does; nothing is counted until it knows its descriptor."""
    async with open_store(proxy.settings(bucket, s3_prefix=PREFIX, **settings)) as store:
        await store.check()
        proxy.clear()
        yield store


def kinds(proxy: FaultProxy) -> list[str]:
    """Return what has arrived since the last time."""
    seen = [kind(request) for request in proxy.requests]
    proxy.clear()
    return seen


class TestOne:
    @pytest.mark.parametrize("presigned", ["auto", "off"])
    async def test_cold_three_or_two_then_one_then_none(
        self, fault_proxy: FaultProxy, bucket: str, presigned: str
    ) -> None:
        async with opened(fault_proxy, bucket, s3_presigned=presigned, negative_ttl=60) as store:
            assert await store.get(NAMES[0], WHEN) == FILES[NAMES[0]]
            assert kinds(fault_proxy) == ["tail", "page", "segment"]
            for uid in NAMES[:2]:
                assert await store.get(uid, WHEN) == FILES[uid]
                assert kinds(fault_proxy) == ["segment"]
                assert (await store.stat(uid, WHEN)).raw_size == len(FILES[uid])
                assert kinds(fault_proxy) == []
            await store.get(NAMES[-1], WHEN)
            assert kinds(fault_proxy) == ["segment"], "its page came with the tail"
            with pytest.raises(NotFoundError):
                await store.get(missing(), WHEN)
            assert kinds(fault_proxy) == []
        async with opened(fault_proxy, bucket, s3_presigned=presigned) as store:
            assert await store.get(NAMES[-1], WHEN) == FILES[NAMES[-1]]
            assert kinds(fault_proxy) == ["tail", "segment"]

    async def test_http(self, fault_proxy: FaultProxy, bucket: str) -> None:
        storage = await open_s3(fault_proxy.config(bucket, prefix=PREFIX))
        async with running(storage, negative_ttl=60) as server:
            await server.ask("/ready")
            fault_proxy.clear()
            reply = await server.ask(target(NAMES[0]))
            assert (reply.status, reply.body) == (200, FILES[NAMES[0]])
            assert kinds(fault_proxy) == ["tail", "page", "segment"]
            assert (await server.ask(target(NAMES[1]), "Range: bytes=5-9")).body == FILES[NAMES[1]][5:10]
            assert kinds(fault_proxy) == ["segment"]
            statuses = [
                (await server.ask(target(NAMES[0]), method="HEAD")).status,
                (await server.ask(target(NAMES[0]), f"If-None-Match: {reply.headers['etag']}")).status,
                (await server.ask(target(NAMES[0]), 'If-Match: "other"')).status,
                (await server.ask(target(NAMES[0]), "Range: bytes=100000-")).status,
                (await server.ask(target(missing()))).status,
            ]
            assert statuses == [200, 304, 412, 416, 404]
            assert kinds(fault_proxy) == []
        await storage.aclose()


def target(uid: str) -> str:
    return f"/files/{uid}?created_at={DAY_TEXT}"


@pytest.mark.parametrize("readers", [2_000, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_cold_gets_at_once_in_one_shard(fault_proxy: FaultProxy, bucket: str, readers: int) -> None:
    wanted = [NAMES[number * 7 % len(NAMES)] for number in range(readers)]
    contents: list[tuple[str, bytes]] = []
    async with opened(fault_proxy, bucket, max_connections=24, request_timeout=300) as store:

        async def get(uid: str) -> None:
            contents.append((uid, await store.get(uid, WHEN)))

        async with anyio.create_task_group() as tasks:
            for uid in wanted:
                tasks.start_soon(get, uid)
        found = await store.find(NAMES[0], WHEN)
        head = found.loaded.head
    assert len(contents) == readers
    assert all(content == FILES[uid] for uid, content in contents)
    assert fault_proxy.peak == 24, "as many at once as configured, and never more"
    apart = [ref for ref in head.directory.refs() if found.loaded.page_that_came_along(ref) is None]
    assert len(apart) > 2
    pages = sorted(request.range or "" for request in fault_proxy.requests if kind(request) == "page")
    assert pages == sorted(f"bytes={ref.offset}-{ref.end - 1}" for ref in apart)
    seen = kinds(fault_proxy)
    assert {name: seen.count(name) for name in set(seen)} == {"tail": 1, "page": len(apart), "segment": readers}


async def test_get_many_merges_what_lies_together(fault_proxy: FaultProxy, bucket: str) -> None:
    wanted = [*random.Random(5).sample(NAMES, 300), LARGE]
    async with opened(fault_proxy, bucket) as store:
        results = {result.uid: result.data async for result in store.get_many((uid, WHEN) for uid in wanted)}
        assert results == {uid: {**FILES, **OTHERS}[uid] for uid in wanted}
        read: dict[str, list[range]] = {}
        for request in fault_proxy.requests:
            if kind(request) == "segment":
                first, last = re.findall(r"\d+", request.range or "")
                read.setdefault(request.key.removeprefix(f"{PREFIX}/"), []).append(range(int(first), int(last) + 1))
        seen = kinds(fault_proxy)
        assert set(seen) == {"tail", "page", "segment"}
        assert seen.count("tail") == 2
        found = [await store.find(uid, WHEN) for uid in wanted]
        assert seen.count("segment") < 12, "three hundred files in a few requests"
    over_read = 0
    for key, ranges in read.items():
        entries = [file.entry for file in found if file.segment_key == key]
        wants = [range(entry.offset, entry.offset + entry.stored_size) for entry in entries]
        assert all(any(want[0] in part and want[-1] in part for part in ranges) for want in wants)
        assert all(len(part) <= MAX_READ_BYTES or len(wants) == 1 for part in ranges)
        ends = sorted((part.start, part.stop) for part in ranges)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(ends)), "no byte is read twice"
        over_read += sum(map(len, ranges)) - sum(map(len, wants))
    assert 0 <= over_read <= MAX_GAP_BYTES * len(wanted)


@pytest.mark.parametrize(
    "uid",
    [
        pytest.param(NAMES[0], id="page"),
        pytest.param(LARGE, id="large"),
        pytest.param(NAMES[-1], id="tail", marks=pytest.mark.soak),
        pytest.param(WITH_DICTIONARY, id="dictionary", marks=pytest.mark.soak),
    ],
)
async def test_des_stat_names_what_really_happens(
    fault_proxy: FaultProxy, bucket: str, uid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is asked with the proxy in its way too, so that it is seen to read no content."""
    monkeypatch.setenv("DES_S3_ENDPOINT_URL", fault_proxy.endpoint)
    monkeypatch.setenv("DES_S3_REGION", REGION)
    address = f"s3://{bucket}/{PREFIX}"
    command = [sys.executable, "-m", "des", "--store", address, "stat", uid, "--created-at", DAY_TEXT]
    printed = (await anyio.run_process(command, env=dict(os.environ))).stdout.decode()
    asked = kinds(fault_proxy)
    assert [name for name in asked if name.startswith("GET")] == ["GET "], "one listing, when it opens"
    said = {
        name: (int(requests.replace(",", "")), int(size.replace(",", "")))
        for name, requests, size in re.findall(
            r"^\W*(cold|warm) +([\d,]+) requests?, ([\d,]+) bytes", printed, re.MULTILINE
        )
    }
    counted = {}
    async with opened(fault_proxy, bucket) as store:
        for name in ("cold", "warm"):
            async with store.stream(uid, WHEN) as pieces:
                assert b"".join([piece async for piece in pieces]) == {**FILES, **OTHERS}[uid]
            await fault_proxy.idle()
            counted[name] = len(fault_proxy.requests), fault_proxy.body_bytes
            fault_proxy.clear()
    assert said == counted, printed


async def test_the_same_manifest_again_writes_nothing(
    fault_proxy: FaultProxy, seaweedfs_bucket: str, prefix: str, tmp_path: Path
) -> None:
    sources = Sources(tmp_path)
    manifest = sources.manifest(sources.rows(dict.fromkeys(NAMES[:40], b"content") | {"big": noise(1_200_000)}))
    storage = await open_s3(fault_proxy.config(seaweedfs_bucket, prefix=prefix))
    await Run().pack(storage, manifest, single_writer=False)
    fault_proxy.clear()
    again = Run()
    await again.pack(storage, manifest, single_writer=False)
    assert again.counts == (0, 41, 0)
    await storage.aclose()
    writes = [request for request in fault_proxy.requests if request.method not in {"GET", "HEAD"}]
    # The proof that conditions hold, which must be refused.
    assert [(request.method, request.key) for request in writes] == [("PUT", f"{prefix}/{DESCRIPTOR_KEY}")] * 2
    assert {"if-match", "if-none-match"} <= {name for request in writes for name in request.headers}
    assert not [request for request in fault_proxy.requests if request.method == "GET" and not request.key], "no LIST"
