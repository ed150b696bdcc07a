"""A real service before an S3 that fails now and then, under clients of every kind at once: its memory and descriptors stay, and its end loses nothing."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest
from anyio import to_thread

from tests.http.live import close, parse_reply, read_to_end, request
from tests.http.test_serving import serving
from tests.s3.sample import FILES, LARGE, NAMES, OTHERS, PREFIX
from tests.servers.fault_proxy import Answer, Cut, Shorten, Stall
from tests.servers.s3_servers import REGION
from tests.trust.sampling import scale

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.servers.fault_proxy import Effect, FaultProxy, Request

pytest_plugins = ["tests.servers.fixtures"]

MIB = 1 << 20
CONTENTS = FILES | {LARGE: OTHERS[LARGE]}
# How likely each is at a request for content.
FAULTS: dict[Effect, float] = {
    Answer(503, "SlowDown"): 0.03,
    Cut(after=None): 0.01,
    Cut(after=10): 0.02,
    Shorten(by=7): 0.01,
    Stall(after=10): 0.003,
}
GARBAGE = (b"\r\n\r\n", b"GET\r\n\r\n", b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", bytes(range(256)) * 300)


def target(uid: str) -> str:
    return f"/files/{uid}?created_at=2024-01-31"


@dataclass(slots=True)
class Clients:
    """Clients of every kind, each of which begins again until it is time.

    Attributes:
        port: of the service.
        end: by `time.monotonic`.
        seen: how often each came to its end, and which answers the good ones got.
    """

    port: int
    end: float
    chance: random.Random = field(default_factory=lambda: random.Random(9))
    seen: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        many = {self.good: 6, self.batch: 1, self.slow: 2, self.stalled: 2, self.vanishing: 2, self.dripping: 2}
        async with asyncio.TaskGroup() as tasks:
            for kind, count in (many | {self.malformed: 1}).items():
                for _ in range(count):
                    tasks.create_task(self.repeat(kind))

    async def repeat(self, kind: Callable[[], Awaitable[None]]) -> None:
        while True:
            await kind()
            self.seen[kind.__name__] += 1
            if time.monotonic() >= self.end:
                return
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Connect with as small a buffer as there is, so that the service notices who does not read."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=client)
        try:
            yield reader, writer
        finally:
            await close(writer)

    async def good(self) -> None:
        uid = LARGE if self.chance.random() < 0.1 else self.chance.choice(NAMES)
        async with self.connected() as (reader, writer):
            writer.write(request(target(uid)))
            reply = parse_reply(await read_to_end(reader))
        self.seen[f"{reply.status}"] += 1
        assert reply.status in {200, 503, 504}, reply
        if reply.status == 200:
            assert CONTENTS[uid].startswith(reply.body), "what came before an error is right as well"
            self.seen["whole"] += reply.body == CONTENTS[uid]

    async def batch(self) -> None:
        items = [{"uid": self.chance.choice(NAMES), "created_at": "2024-01-31"} for _ in range(20)]
        content = json.dumps(items).encode()
        async with self.connected() as (reader, writer):
            writer.write(request("/batch", f"Content-Length: {len(content)}", method="POST") + content)
            assert b"HTTP/1.1 " in await read_to_end(reader)

    async def slow(self) -> None:
        async with self.connected() as (reader, writer):
            writer.write(request(target(LARGE)))
            while await reader.read(20_000):  # noqa: ASYNC110 - slowness is what it does
                await asyncio.sleep(0.01)

    async def stalled(self) -> None:
        async with self.connected() as (reader, writer):
            writer.write(request(target(LARGE)))
            await reader.read(100)
            await asyncio.sleep(1)

    async def vanishing(self) -> None:
        async with self.connected() as (_, writer):
            writer.write(request(target(LARGE)))
            await asyncio.sleep(self.chance.random() / 50)
            writer.transport.abort()

    async def dripping(self) -> None:
        async with self.connected() as (_, writer):
            for byte in request(target(LARGE))[:60]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

    async def malformed(self) -> None:
        async with self.connected() as (reader, writer):
            writer.write(self.chance.choice(GARBAGE))
            assert parse_reply(await read_to_end(reader)).status in {400, 431}


async def ask(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request(path))
        return await read_to_end(reader)
    finally:
        await close(writer)


async def watch(process: psutil.Process, held: list[int], until: float) -> None:
    """Note the memory of a process until it is time."""
    while time.monotonic() < until:
        held.append(process.memory_info().rss)
        await asyncio.sleep(0.2)


@pytest.mark.parametrize(
    "seconds", [3, pytest.param(600, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])], ids=["short", "long"]
)
async def test_clients_of_every_kind(
    fault_proxy: FaultProxy, sample_bucket: str, s3_credentials: None, tmp_path: Path, seconds: float
) -> None:
    seconds = seconds if seconds < 10 else seconds * min(1.0, scale())
    place = {"backend": "s3", "s3_bucket": sample_bucket, "s3_prefix": PREFIX, "s3_region": REGION}
    place |= {"s3_endpoint_url": fault_proxy.endpoint, "request_timeout": "6", "log_level": "error"}
    chance = random.Random(20240131)

    def falls(share: float) -> Callable[[Request], bool]:
        return lambda request: request.key.count("/") == 3 and chance.random() < share

    with serving(tmp_path, **place) as service:
        port = await to_thread.run_sync(lambda: service.port)
        assert (await ask(port, target(NAMES[0]))).endswith(FILES[NAMES[0]])
        process = psutil.Process(service.process.pid)
        files = process.num_fds()
        clients = Clients(port, time.monotonic() + seconds)
        held: list[int] = []
        with ExitStack() as stack:
            faults = [
                stack.enter_context(fault_proxy.fault(effect, method="GET", when=falls(share), times=None))
                for effect, share in FAULTS.items()
            ]
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(watch(process, held, clients.end))
                await clients.run()
        fault_proxy.clear()
        assert sum(fault.fired for fault in faults) > 0
        assert all(fault.fired for fault in faults) or seconds < 10
        assert clients.seen["whole"] > clients.seen["good"] / 2
        assert (
            min(clients.seen[kind] for kind in ("batch", "slow", "stalled", "vanishing", "dripping", "malformed")) > 0
        )
        settled, last = held[len(held) // 5], max(held[-max(1, len(held) // 5) :])
        assert last <= settled + 64 * MIB, f"{settled // MIB} MiB, then {last // MIB} MiB"
        with anyio.fail_after(60):
            while b"des_http_requests_in_flight 0.0\n" not in await ask(port, "/metrics"):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
            # Connections to the storage are kept for a while.
            while process.num_fds() > files + 40:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        await check_end(clients, lambda: service.process.send_signal(signal.SIGTERM))
        assert await to_thread.run_sync(service.finish) == 0


async def check_end(clients: Clients, tell: Callable[[], None]) -> None:
    """End the service while downloads are under way: each of them is finished."""
    async with AsyncExitStack() as stack:
        readers = []
        for _ in range(10):
            reader, writer = await stack.enter_async_context(clients.connected())
            writer.write(request(target(LARGE)))
            readers.append((reader, await reader.readuntil(b"\r\n\r\n")))
        tell()
        for reader, head in readers:
            assert head.startswith(b"HTTP/1.1 200")
            assert await read_to_end(reader) == OTHERS[LARGE]
