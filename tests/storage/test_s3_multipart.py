from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from des.storage import s3_multipart
from des.storage.s3 import open_s3
from des.storage.s3_multipart import FIRST_PART_BYTES, MAX_IN_FLIGHT, part_size

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


async def test_memory_is_bound_and_parts_overlap(seaweedfs: S3Server, bucket: str) -> None:
    storage = await open_s3(seaweedfs.config(bucket))
    piece = bytes(MIB)
    tracemalloc.start()
    async with storage.open_writer("key") as writer:
        for _ in range(160):
            await writer.write(piece)
            await anyio.lowlevel.checkpoint()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (await storage.head("key")).size == 160 * MIB
    # The parts under way, the one being gathered, and the slack with which buffers grow.
    assert 2 * FIRST_PART_BYTES < peak < 1.3 * (MAX_IN_FLIGHT + FIRST_PART_BYTES)
    await storage.aclose()
