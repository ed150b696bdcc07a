from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import pytest

from des.errors import StorageDeniedError, StorageUnavailableError
from des.pack.plan import PlannedRow
from des.pack.remote import RemoteSources
from des.pack.sources import PIECE_BYTES
from des.routing import file_id
from des.settings import Settings
from des.shard.chunking import LARGE_BYTES
from des.storage.local import LocalStorage
from des.storage.opening import SourceBuckets
from des.storage.s3 import S3Storage, open_s3
from des.storage.testing import RecordingStorage, StorageWrapper
from tests.pack.packing import CREATED_AT, Run, Sources, check_store, names_of_one_shard
from tests.servers.fault_proxy import Answer, Stall
from tests.servers.processes import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from des.storage.testing import Call, Tally
    from tests.pack.packing import Row
    from tests.servers.fault_proxy import Exchange, FaultProxy
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

LARGE = os.urandom(2 * PIECE_BYTES + 77)


class Objects:
    """Objects of a bucket to pack."""

    def __init__(self, server: S3Server, bucket: str) -> None:
        self.server = server
        self.bucket = bucket

    def put(self, key: str, content: bytes) -> str:
        """Write an object; return its address."""
        self.server.client.put_object(Bucket=self.bucket, Key=key, Body=content)
        return self.address(key)

    def address(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def row(self, uid: str, content: bytes, **fields: object) -> Row:
        """Write an object named as its uid; return its row."""
        return row_of(uid, self.put(uid, content), **fields)


def row_of(uid: str, address: str, **fields: object) -> Row:
    return {"uid": uid, "created_at": CREATED_AT, "source_path": address, **fields}


def planned(number: int, address: str, size: int | None = None) -> PlannedRow:
    return PlannedRow(number, file_id(str(number)), str(number), 0, address, size, None, b"")


@pytest.fixture
def objects(seaweedfs: S3Server, bucket: str) -> Objects:
    return Objects(seaweedfs, bucket)


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(params=["seaweedfs", "moto"])
def any_objects(request: pytest.FixtureRequest, s3_credentials: None) -> Iterator[Objects]:
    server: S3Server = request.getfixturevalue(request.param)
    name = server.make_bucket()
    yield Objects(server, name)
    server.drop_bucket(name)


async def pack(settings: Settings, base_dir: Path, sources: Sources, rows: list[Row], **options: object) -> Run:
    run = Run()
    local = LocalStorage(base_dir)
    try:
        async with SourceBuckets(settings) as buckets:
            await run.pack(local, sources.manifest(rows), buckets=buckets, **options)  # type: ignore[arg-type]  # as of `Run.pack`
    finally:
        await local.aclose()
    return run


async def test_rows_of_both_kinds(any_objects: Objects, base_dir: Path, sources: Sources) -> None:
    other = any_objects.server.make_bucket()
    names = ["plain.txt", "a b/ü?x#y%20z", "some/slashes/in.it", "empty", "large.bin", "sized", "sized-large"]
    contents = [b"text " * 100, b"2", b"3", b"", LARGE, b"sized" * 10, LARGE[::-1]]
    files = dict(zip(names, contents, strict=True))
    rows: list[Row] = [
        any_objects.row(uid, content, **({"size_bytes": len(content)} if "sized" in uid else {}))
        for uid, content in files.items()
    ]
    rows.insert(3, sources.row("here", b"local"))
    rows.append(row_of("elsewhere", Objects(any_objects.server, other).put("key", b"in another bucket")))
    files |= {"here": b"local", "elsewhere": b"in another bucket"}
    settings = any_objects.server.settings(any_objects.bucket)
    run = await pack(settings, base_dir, sources, rows)
    assert run.failures == []
    assert run.counts == (9, 0, 0)
    again = await pack(settings, base_dir, sources, rows)
    assert again.counts == (0, 9, 0)
    changed = [any_objects.row("plain.txt", b"new"), any_objects.row("large.bin", LARGE + b"new")]
    replacing = await pack(settings, base_dir, sources, changed, on_conflict="replace")
    assert replacing.counts == (2, 0, 0)
    await check_store(base_dir, files | {"plain.txt": b"new", "large.bin": LARGE + b"new"})
    any_objects.server.drop_bucket(other)


async def test_to_a_store_on_the_same_endpoint_there_is_one_client(objects: Objects, sources: Sources) -> None:
    storage = await open_s3(objects.server.config(objects.bucket, prefix="store"))
    try:
        async with SourceBuckets(objects.server.settings(objects.bucket, s3_prefix="store")) as buckets:
            run = Run()
            await run.pack(storage, sources.manifest([objects.row("a", b"1"), sources.row("b", b"2")]), buckets=buckets)
            assert run.counts == (2, 0, 0)
            source = await buckets.storage(objects.bucket)
            assert isinstance(source, S3Storage)
            assert source.endpoint is storage.endpoint
    finally:
        await storage.aclose()


async def test_the_trouble_of_one_source_is_that_row_s(
    fault_proxy: FaultProxy, objects: Objects, base_dir: Path, sources: Sources
) -> None:
    bad = {
        "missing": (row_of("missing", objects.address("nowhere")), "invalid", "there is no object s3://"),
        "missing-large": (
            row_of("missing-large", objects.address("nowhere"), size_bytes=LARGE_BYTES + 1),
            "invalid",
            "there is no object s3://",
        ),
        "bucket": (row_of("bucket", "s3://no-such-bucket-anywhere/key"), "invalid", "there is no bucket"),
        "bucket-large": (
            row_of("bucket-large", "s3://no-such-bucket-anywhere/key", size_bytes=LARGE_BYTES + 1),
            "invalid",
            "there is no bucket",
        ),
        "denied": (objects.row("denied", b"secret"), "denied", "allow s3:GetObject"),
        "archived": (objects.row("archived", b"cold"), "invalid", "restore it"),
        "longer": (objects.row("longer", b"12345", size_bytes=4), "invalid", "has 5 bytes, but size_bytes says 4"),
        "shorter": (objects.row("shorter", b"", size_bytes=4), "invalid", "has 0 bytes, but size_bytes says 4"),
        "grown": (objects.row("grown", LARGE, size_bytes=9), "invalid", "but size_bytes says 9"),
        "shrunk": (objects.row("shrunk", b"1", size_bytes=LARGE_BYTES + 9), "invalid", "has 1 bytes, but size_bytes"),
        "no-key": (row_of("no-key", "s3://bucket"), "invalid", "no address such as s3://bucket/key"),
        "no-bucket": (row_of("no-bucket", "s3:///key"), "invalid", "no address such as s3://bucket/key"),
        "bad-bucket": (row_of("bad-bucket", "s3://a bucket/key"), "invalid", "no address such as s3://bucket/key"),
        "long-key": (row_of("long-key", objects.address("k" * 1025)), "invalid", "has 1025 bytes"),
    }
    rows = [row for row, _, _ in bad.values()]
    rows[5:5] = [objects.row("good", b"good"), sources.row("local", b"local")]
    with (
        fault_proxy.fault(Answer(403, "AccessDenied"), key="denied", times=None) as denied,
        fault_proxy.fault(Answer(403, "InvalidObjectState"), key="archived", times=None) as archived,
    ):
        run = await pack(fault_proxy.settings(objects.bucket), base_dir, sources, rows)
    assert denied.fired
    assert archived.fired
    assert run.counts == (2, 0, len(bad))
    for failure in run.failures:
        row, status, sentence = bad[failure["uid"]]
        assert (failure["source_path"], failure["status"]) == (row["source_path"], status)
        assert sentence in failure["error"]
        assert failure["error"].endswith(".")
        assert "\n" not in failure["error"]
    await check_store(base_dir, {"good": b"good", "local": b"local"})


async def test_trouble_of_the_endpoint_stops_the_run(
    objects: Objects, base_dir: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [objects.row("a", b"1"), objects.row("b", b"2")]
    nobody = objects.server.settings(objects.bucket, s3_endpoint_url=f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(StorageUnavailableError, match="cannot be reached"):
        await pack(nobody, base_dir, sources, rows)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageDeniedError, match="the secret key is wrong"):
        await pack(objects.server.settings(objects.bucket), base_dir, sources, rows)


async def test_without_buckets_rows_that_name_one_fail(base_dir: Path, sources: Sources) -> None:
    local = LocalStorage(base_dir)
    run = Run()
    await run.pack(local, sources.manifest([row_of("a", "s3://bucket/key"), sources.row("b", b"b")]))
    await local.aclose()
    assert run.counts == (1, 0, 1)


class Between(StorageWrapper):
    """Changes an object when the writer of a segment has been opened: after its size was taken, before it is read."""

    def __init__(self, inner: LocalStorage, objects: Objects, key: str, content: bytes) -> None:
        super().__init__(inner)
        self.change = (objects, key, content)
        self.fired = False

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        async with super().around(call) as tally:
            yield tally
        if call.verb == "open_writer" and not self.fired:
            self.fired = True
            objects, key, content = self.change
            await anyio.to_thread.run_sync(objects.put, key, content)


async def test_a_large_one_that_changes_before_it_is_read(objects: Objects, base_dir: Path, sources: Sources) -> None:
    small, large, last = names_of_one_shard(3)
    rows = [objects.row(small, b"small"), objects.row(large, LARGE), objects.row(last, b"last")]
    local = LocalStorage(base_dir)
    changing = Between(local, objects, large, LARGE[::-1])
    run = Run()
    async with SourceBuckets(objects.server.settings(objects.bucket)) as buckets:
        await run.pack(changing, sources.manifest(rows), buckets=buckets, n_bits=1)
    await local.aclose()
    assert changing.fired
    assert run.counts == (2, 0, 1)
    assert [(row["uid"], row["error"]) for row in run.failures] == [(large, "the source changed while it was read.")]
    await check_store(base_dir, {small: b"small", last: b"last"})


@dataclass(frozen=True, slots=True)
class Together:
    """Requests are answered once so many have come."""

    count: int

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.proxy.arrived(self.count)
        await exchange.forward()
        await exchange.reply()


async def test_many_are_fetched_at_once(fault_proxy: FaultProxy, objects: Objects) -> None:
    rows = [planned(at, objects.put(f"key-{at}", b"%d" % at), 1 if at < 10 else 2) for at in range(40)]
    with fault_proxy.fault(Together(40), method="GET", times=None) as together:
        async with (
            SourceBuckets(fault_proxy.settings(objects.bucket)) as buckets,
            RemoteSources(buckets, LARGE_BYTES).fetched(rows) as fetch,
        ):
            assert fetch.content == {at: b"%d" % at for at in range(40)}
            assert (fetch.rows, list(fetch.rest)) == (rows, [])
    assert together.fired == 40


async def test_no_more_at_once_than_connections(fault_proxy: FaultProxy, objects: Objects) -> None:
    rows = [planned(at, objects.put(f"key-{at}", b"x"), 1) for at in range(30)]
    async with (
        SourceBuckets(fault_proxy.settings(objects.bucket, max_connections=3)) as buckets,
        RemoteSources(buckets, LARGE_BYTES).fetched(rows) as fetch,
    ):
        assert len(fetch.content) == 30
    assert 1 < fault_proxy.peak <= 3


async def test_what_is_held_stays_within_the_budget(fault_proxy: FaultProxy, objects: Objects) -> None:
    """Sizes that the rows do not say count as a mebibyte each until they are known."""
    rows = [planned(at, objects.put(f"key-{at}", b"x" * (LARGE_BYTES // 2))) for at in range(11)]
    async with SourceBuckets(fault_proxy.settings(objects.bucket)) as buckets:
        remote = RemoteSources(buckets, 3 * LARGE_BYTES)
        done: list[int] = []

        async def drain(rows: list[PlannedRow]) -> None:
            """Take all rows, as many as fit at a time, while others do the same."""
            left = rows
            while left:
                async with remote.fetched(left) as fetch:
                    assert fetch.rows
                    held = sum(len(content) for content in fetch.content.values() if isinstance(content, bytes))
                    assert held <= 3 * LARGE_BYTES
                    done.extend(fetch.content)
                    await anyio.lowlevel.checkpoint()
                    left = list(fetch.rest)

        async with remote.fetched(rows) as fetch:
            assert len(fetch.rows) == 5, "five halves, and no room for a sixth of unknown size"
            assert fault_proxy.peak <= 3
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(drain, rows)
        assert sorted(done) == sorted(list(range(11)) * 4)
        assert fault_proxy.peak <= 3
        assert remote._budget._free == 3 * LARGE_BYTES


async def test_nothing_stays_behind_a_fetch_that_is_cancelled_or_fails(
    fault_proxy: FaultProxy, objects: Objects
) -> None:
    rows = [planned(at, objects.put(f"key-{at}", b"x"), 1) for at in range(5)]
    async with SourceBuckets(fault_proxy.settings(objects.bucket, request_timeout=2)) as buckets:
        remote = RemoteSources(buckets, LARGE_BYTES)

        async def fetch() -> None:
            async with remote.fetched(rows):
                pass

        with fault_proxy.fault(Stall(after=None), times=None):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fetch)
                await fault_proxy.arrived(5)
                tasks.cancel_scope.cancel()
        with fault_proxy.fault(Answer(400, "Odd"), times=None), pytest.raises(StorageUnavailableError, match="400 Odd"):
            await fetch()
        assert remote._budget._free == LARGE_BYTES
        await fetch()


async def test_local_rows_alone_ask_for_nothing(base_dir: Path, sources: Sources) -> None:
    recording = RecordingStorage(LocalStorage(base_dir))
    async with SourceBuckets(Settings(s3_endpoint_url="http://127.0.0.1:1")) as buckets:
        run = Run()
        await run.pack(recording, sources.manifest([sources.row("a", b"a")]), buckets=buckets)
        assert run.counts == (1, 0, 0)
        assert buckets._open == {}
    await recording.aclose()


def test_the_command_takes_them(objects: Objects, base_dir: Path, sources: Sources) -> None:
    manifest = sources.manifest([objects.row("remote", b"remote"), sources.row("local", b"local")])
    command = [sys.executable, "-m", "des.pack", "--input-json", str(manifest), "--output-dir", str(base_dir), "--json"]
    environment = os.environ | objects.server.environment | {"DES_S3_ENDPOINT_URL": objects.server.endpoint}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["packed"] == 2
    anyio.run(check_store, base_dir, {"remote": b"remote", "local": b"local"})
