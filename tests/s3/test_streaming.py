"""A large file from S3: constant memory, and a reader that stops taking stops the server from being read."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from des.shard.codecs import Compression
from des.storage.s3 import open_s3
from tests.http.live import close, request, running
from tests.making import WHEN, make_store, reading
from tests.store.contents import noise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from des.storage.s3 import S3Storage
    from tests.servers.fault_proxy import FaultProxy
    from tests.servers.s3_servers import S3Server

pytest_plugins = ["tests.servers.fixtures"]

MIB = 1 << 20
SIZE = 64 * MIB
# Ours, the proxy's and the client's together: what is between them, in the kernel, does not count.
MOST_MEMORY_BYTES = 12 * MIB
PREFIX = "large"


@pytest.fixture(scope="module")
def large(seaweedfs: S3Server) -> tuple[str, str]:
    """Make a store with one large file; return its bucket, and the hash of the content."""
    bucket, content = seaweedfs.make_bucket(), noise(SIZE)

    async def make() -> None:
        storage = await open_s3(seaweedfs.config(bucket, prefix=PREFIX))
        maker = await make_store(storage)
        await maker.add({"large": content}, compression=Compression("none"))
        await storage.aclose()

    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweedfs.environment.items():
            patch.setenv(name, value)
        anyio.run(make)
    return bucket, hashlib.sha256(content).hexdigest()


@asynccontextmanager
async def by_stream(storage: S3Storage) -> AsyncIterator[AsyncIterator[bytes]]:
    async with reading(storage) as store, store.stream("large", WHEN) as pieces:
        yield pieces


@asynccontextmanager
async def by_http(storage: S3Storage) -> AsyncIterator[AsyncIterator[bytes]]:
    async with running(storage) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request("/files/large?created_at=2024-01-31"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head

        async def pieces() -> AsyncIterator[bytes]:
            while piece := await reader.read(1 << 16):
                yield piece

        try:
            yield pieces()
        finally:
            await close(writer)


@pytest.mark.parametrize("way", [by_stream, by_http], ids=["stream", "http"])
async def test_constant_memory_and_backpressure(
    large: tuple[str, str],
    fault_proxy: FaultProxy,
    s3_credentials: None,
    way: Callable[[S3Storage], AbstractAsyncContextManager[AsyncIterator[bytes]]],
) -> None:
    bucket, content_hash = large
    storage = await open_s3(fault_proxy.config(bucket, prefix=PREFIX))
    digest, taken = hashlib.sha256(), 0
    tracemalloc.start()
    try:
        async with way(storage) as pieces:
            async for piece in pieces:
                digest.update(piece)
                if taken < MIB <= taken + len(piece):
                    await still(fault_proxy)
                    assert fault_proxy.body_bytes < SIZE / 2, "a reader that stops is noticed"
                    assert storage.endpoint.requests_in_flight == 1
                taken += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (taken, digest.hexdigest()) == (SIZE, content_hash)
    assert peak < MOST_MEMORY_BYTES
    assert storage.endpoint.requests_in_flight == 0
    assert fault_proxy.body_bytes < SIZE + MIB, "read once"
    await storage.aclose()


async def still(proxy: FaultProxy) -> None:
    """Wait until nothing moves any more: the buffers of the kernel are full, which nobody is told."""
    before = -1
    while proxy.body_bytes > before:
        before = proxy.body_bytes
        await anyio.sleep(0.3)
