from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from des.storage.protocol import Overwrite
from des.storage.s3 import open_s3
from des.storage.s3_config import S3Config
from tests.servers.fault_proxy import FaultProxy, Stall

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]


async def test_places_on_one_endpoint_share_it_until_the_last_leaves(seaweedfs: S3Server, bucket: str) -> None:
    first = await open_s3(seaweedfs.config(bucket, prefix="a"))
    second = await open_s3(seaweedfs.config(bucket, prefix="b", storage_class="STANDARD", presigned="off"))
    assert first.endpoint is second.endpoint
    await first.put("key", b"1", Overwrite())
    await first.aclose()
    await first.aclose()
    await second.put("key", b"2", Overwrite())
    await second.aclose()
    third = await open_s3(seaweedfs.config(bucket))
    assert third.endpoint is not first.endpoint
    assert await third.read_range("a/key", 0, 1) == b"1"
    await third.aclose()


async def test_openings_at_once_make_one_client(seaweedfs: S3Server, bucket: str) -> None:
    storages = []

    async def open_one() -> None:
        storages.append(await open_s3(seaweedfs.config(bucket)))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(open_one)
    assert len({id(storage.endpoint) for storage in storages}) == 1
    for storage in storages:
        await storage.aclose()


@pytest.mark.parametrize("changes", [{"max_connections": 7}, {"region": "eu-west-1"}, {"addressing": "path"}])
async def test_other_options_are_another_endpoint(seaweedfs: S3Server, bucket: str, changes: dict[str, object]) -> None:
    first = await open_s3(seaweedfs.config(bucket))
    second = await open_s3(seaweedfs.config(bucket, **changes))
    assert first.endpoint is not second.endpoint
    await first.aclose()
    await second.aclose()


async def test_loops_share_nothing(seaweedfs: S3Server, bucket: str) -> None:
    storage = await open_s3(seaweedfs.config(bucket))
    await storage.put("key", b"1", Overwrite())

    async def elsewhere() -> bool:
        other = await open_s3(seaweedfs.config(bucket))
        same = other.endpoint is storage.endpoint or await other.read_range("key", 0, 1) != b"1"
        await other.aclose()
        return same

    assert await asyncio.to_thread(asyncio.run, elsewhere()) is False
    assert await storage.read_range("key", 0, 1) == b"1"
    await storage.aclose()


async def test_opening_sends_nothing_and_leaves_no_thread(s3_credentials: None) -> None:
    threads = threading.active_count()
    storage = await open_s3(S3Config(bucket="b", endpoint_url="http://127.0.0.1:9"))
    await storage.aclose()
    assert threading.active_count() <= threads + 1, "anyio keeps one idle worker"


async def test_an_opening_that_is_cancelled_leaves_nothing(seaweedfs: S3Server, bucket: str) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await open_s3(seaweedfs.config(bucket))
    storage = await open_s3(seaweedfs.config(bucket))
    await storage.put("key", b"1", Overwrite())
    await storage.aclose()


async def test_closing_does_not_wait_for_a_silent_server(fault_proxy: FaultProxy, bucket: str) -> None:
    storage = await open_s3(fault_proxy.config(bucket))
    with fault_proxy.fault(Stall(after=None), times=None), anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(storage.head, "key")
            tasks.start_soon(storage.read_range, "key", 0, 1)
            await fault_proxy.arrived(2)
            tasks.cancel_scope.cancel()
        await storage.aclose()
        await fault_proxy.quiet()


async def test_credentials_of_a_profile(
    seaweedfs: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_text("[des]\naws_access_key_id = test\naws_secret_access_key = testsecret\n")
    storage = await open_s3(seaweedfs.config(bucket, profile="des"))
    await storage.check_access()
    await storage.aclose()


async def test_region_of_the_aws_configuration(
    fault_proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text("[default]\nregion = eu-south-2\n")
    storage = await open_s3(replace(fault_proxy.config(bucket), region=None))
    await storage.check_access()
    await storage.aclose()
    assert "/eu-south-2/s3/" in fault_proxy.requests[0].headers["authorization"]


async def test_no_region_at_all_on_a_custom_endpoint(fault_proxy: FaultProxy, bucket: str) -> None:
    storage = await open_s3(replace(fault_proxy.config(bucket), region=None))
    await storage.check_access()
    await storage.aclose()
    assert "/us-east-1/s3/" in fault_proxy.requests[0].headers["authorization"]


async def test_no_request_asks_to_be_expected_or_carries_a_checksum_trailer(
    fault_proxy: FaultProxy, bucket: str
) -> None:
    storage = await open_s3(fault_proxy.config(bucket))
    await storage.put("key", bytes(3_000_000), Overwrite())
    await storage.aclose()
    (put,) = fault_proxy.requests
    assert not {"expect", "x-amz-trailer", "transfer-encoding", "content-encoding"} & put.headers.keys()
    assert put.headers["content-length"] == "3000000"


@pytest.mark.parametrize(
    ("changes", "headers"),
    [
        ({"sse": "AES256"}, {"x-amz-server-side-encryption": "AES256"}),
        (
            {"sse": "aws:kms", "sse_kms_key_id": "key-1"},
            {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "key-1"},
        ),
        ({"storage_class": "STANDARD_IA"}, {"x-amz-storage-class": "STANDARD_IA"}),
    ],
)
async def test_options_of_writes(
    moto: S3Server, s3_credentials: None, changes: dict[str, str], headers: dict[str, str]
) -> None:
    async with FaultProxy.before(moto) as proxy:
        storage = await open_s3(proxy.config(moto.make_bucket(), **changes))
        await storage.put("key", b"1", Overwrite())
        async with storage.open_writer("small") as writer:
            await writer.write(b"1")
        async with storage.open_writer("large") as writer:
            await writer.write(bytes(9 * 1024 * 1024))
        assert await storage.read_range("large", 0, 3) == bytes(3)
        await storage.aclose()
    writes = [request for request in proxy.requests if request.method == "PUT" and "partNumber" not in request.query]
    begun = [request for request in proxy.requests if "uploads" in request.query]
    assert (len(writes), len(begun)) == (2, 1)
    for request in writes + begun:
        assert headers.items() <= request.headers.items()
    (get,) = [request for request in proxy.requests if request.method == "GET"]
    assert not headers.keys() & get.headers.keys(), "reading needs none of it"
