from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from des.storage import s3_multipart
from des.storage.s3 import open_s3
from des.storage.s3_multipart import FIRST_PART_BYTES, part_size
from tests.servers.fault_proxy import Stall

if TYPE_CHECKING:
    from tests.servers.fault_proxy import FaultProxy
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

MIB = 1024 * 1024


def test_parts_carry_an_object_to_the_limits_of_s3() -> None:
    sizes = [part_size(number) for number in range(1, 10_001)]
    assert sizes[0] == FIRST_PART_BYTES >= 5 * MIB
    assert max(sizes) <= 5 * 1024 * MIB
    assert sum(sizes) >= 5 * 1024 * 1024 * MIB


@pytest.mark.parametrize(
    ("size", "methods"),
    [
        (0, ["PUT"]),
        (1, ["PUT"]),
        (FIRST_PART_BYTES - 1, ["PUT"]),
        (FIRST_PART_BYTES, ["POST", "PUT", "POST"]),
        (FIRST_PART_BYTES + 1, ["POST", "PUT", "PUT", "POST"]),
        (2 * FIRST_PART_BYTES, ["POST", "PUT", "PUT", "POST"]),
    ],
)
async def test_requests_of_a_write(fault_proxy: FaultProxy, bucket: str, size: int, methods: list[str]) -> None:
    storage = await open_s3(fault_proxy.config(bucket))
    async with storage.open_writer("key") as writer:
        await writer.write(bytes(size))
    assert [request.method for request in fault_proxy.requests] == methods
    assert (await storage.head("key")).size == size
    await storage.aclose()


async def test_parts_grow(fault_proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_multipart, "PARTS_PER_SIZE", 2)
    monkeypatch.setattr(s3_multipart, "FIRST_PART_BYTES", 5 * MIB)
    storage = await open_s3(fault_proxy.config(bucket))
    data = b"".join(bytes([number]) * MIB for number in range(43))
    async with storage.open_writer("key") as writer:
        await writer.write(data)
    parts = {int(r.query["partNumber"]): len(r.body) // MIB for r in fault_proxy.requests if "partNumber" in r.query}
    assert [parts[number] for number in sorted(parts)] == [5, 5, 10, 10, 13]
    assert await storage.read_range("key", 0, len(data)) == data
    await storage.aclose()


@pytest.mark.parametrize("writers", [1, 5])
async def test_memory_is_bound_and_parts_overlap(seaweedfs: S3Server, bucket: str, writers: int) -> None:
    storage = await open_s3(seaweedfs.config(bucket, upload_memory=3 * FIRST_PART_BYTES))
    uploads = storage.endpoint.uploads
    most = 0

    async def write(key: str) -> None:
        nonlocal most
        async with storage.open_writer(key) as writer:
            for _ in range(60 // writers):
                await writer.write(bytes(MIB))
                most = max(most, uploads.held_bytes)
                await anyio.lowlevel.checkpoint()

    tracemalloc.start()
    async with anyio.create_task_group() as tasks:
        for number in range(writers):
            tasks.start_soon(write, f"key-{number}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [info.size async for info in storage.list("")] == [60 // writers * MIB] * writers
    assert FIRST_PART_BYTES < most <= uploads.max_bytes
    # The parts under way, the one that each gathers, and the slack with which buffers grow.
    assert peak < 1.3 * (uploads.max_bytes + writers * FIRST_PART_BYTES)
    assert uploads.held_bytes == 0
    await storage.aclose()


async def test_a_part_larger_than_the_memory_goes_alone(seaweedfs: S3Server, bucket: str) -> None:
    storage = await open_s3(seaweedfs.config(bucket, upload_memory=1))
    data = bytes(3 * FIRST_PART_BYTES)
    async with storage.open_writer("key") as writer:
        await writer.write(data)
        assert storage.endpoint.uploads.held_bytes == FIRST_PART_BYTES
    assert await storage.read_range("key", 0, len(data)) == data
    await storage.aclose()


async def test_a_writer_that_fails_gives_up_its_share(fault_proxy: FaultProxy, bucket: str) -> None:
    storage = await open_s3(fault_proxy.config(bucket))

    async def write_and_fail() -> None:
        async with storage.open_writer("key") as writer:
            await writer.write(bytes(2 * FIRST_PART_BYTES))
            while not fault.fired:
                await anyio.lowlevel.checkpoint()
            assert storage.endpoint.uploads.held_bytes == 2 * FIRST_PART_BYTES
            raise ZeroDivisionError

    with fault_proxy.fault(Stall(), method="PUT") as fault, pytest.raises(ZeroDivisionError):
        await write_and_fail()
    assert storage.endpoint.uploads.held_bytes == 0
    await storage.aclose()
