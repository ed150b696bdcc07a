"""What a running service holds while its clients misbehave: memory under stalled readers, headers that drip, full shedding."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psutil
import pytest

from des.http import worker
from des.storage.local import LocalStorage
from des.storage.testing import Fault, FaultyStorage, Hold
from tests.http.live import close, parse_reply, read_to_end, request, running
from tests.http.test_serving import serving
from tests.making import DAY, make_store

if TYPE_CHECKING:
    from pathlib import Path

    from des.storage.testing import RecordingStorage

AT = f"created_at={DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"
MIB = 1 << 20
READERS = 200
HELD_MIB = 256  # DES_HTTP_MAX_BYTES; a stream holds 1.5 MiB of it
ALLOWED_MIB = HELD_MIB + 100


@pytest.fixture
def base(tmp_path: Path) -> Path:
    async def make() -> None:
        storage = LocalStorage(tmp_path / "store")
        noise = random.Random(2).randbytes(MIB)
        await make_store(storage, {"large": (noise + bytes(MIB)) * 12, "small": b"content"})
        await storage.aclose()

    asyncio.run(make())
    return tmp_path / "store"


def batch() -> bytes:
    content = json.dumps([{"uid": "large", "created_at": DAY[:4] + "-01-31"}] * 10).encode()
    return request("/batch", f"Content-Length: {len(content)}", method="POST", last=False) + content


@pytest.mark.parametrize(
    "asking",
    [
        pytest.param(request(f"/files/large?{AT}", last=False), id="files"),
        pytest.param(batch(), id="batch", marks=pytest.mark.soak),
    ],
)
def test_stalled_readers_hold_no_more_memory_than_is_allowed(base: Path, asking: bytes) -> None:
    """Some are refused, the others take the beginning and then nothing more."""
    with serving(base, http_max_bytes=HELD_MIB * MIB, log_level="warning") as service, ExitStack() as stack:
        assert service.ask(f"/files/small?{AT}")[0] == 200
        process = psutil.Process(service.process.pid)
        before = process.memory_info().rss
        statuses = []
        for _ in range(READERS):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", service.port))
            client.sendall(asking)
            statuses.append(client)
        answers = [client.recv(12).partition(b" ")[2] for client in statuses]
        grown = [0]
        while process.cpu_percent(interval=0.2) > 5:  # until all of them have stalled
            grown.append(process.memory_info().rss - before)
        grown.append(process.memory_info().rss - before)
        assert max(grown) <= ALLOWED_MIB * MIB, f"{max(grown) // MIB} MiB"
        assert answers.count(b"200") >= HELD_MIB / 2
        assert answers.count(b"200") + answers.count(b"503") == READERS
        assert service.ask("/health")[0] == 200


async def test_a_header_that_drips_is_waited_for_only_so_long(
    storage: RecordingStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte is on time, the whole is not."""
    monkeypatch.setattr(worker, "KEEP_ALIVE", 0.5)
    await make_store(storage, {"small": b"content"})
    async with running(storage) as server:
        connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]

        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
            written = 0
            for byte in request(f"/files/small?{AT}", f"X: {'x' * 2000}"):
                writer.write(bytes([byte]))
                written += 1
                try:
                    async with asyncio.timeout(0.02):
                        assert await reader.read(100) == b""
                        break
                except TimeoutError:
                    continue
                except ConnectionResetError:
                    break
            await close(writer)
            return written

        dripping = [asyncio.create_task(drip(*connection)) for connection in connections]
        assert (await server.ask(f"/files/small?{AT}")).body == b"content"
        assert max(await asyncio.gather(*dripping)) < 500  # of more than 2000


async def test_everything_beyond_the_limit_is_shed_and_what_is_within_is_served(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content"})
    hold = Hold()
    target = f"/files/small?{AT}"
    async with running(
        FaultyStorage(storage, [Fault(hold, at=None, verb="read_range")]), http_max_requests=8
    ) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        waiting = [asyncio.create_task(server.ask(target)) for _ in range(8)]
        await hold.reached.wait()
        while not any(task.done() for task in waiting) and (await server.ask(target, method="HEAD")).status != 503:
            pass
        shed = await asyncio.gather(*(server.ask(target) for _ in range(100)))
        assert {(reply.status, reply.headers["retry-after"]) for reply in shed} == {(503, "1")}
        # A connection that was shed is good for the next request.
        writer.write(request(target, last=False))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503")
        assert json.loads(await reader.readuntil(b"}"))["status"] == 503
        hold.release.set()
        assert [reply.body for reply in await asyncio.gather(*waiting)] == [b"content"] * 8
        writer.write(request(target))
        assert parse_reply(await read_to_end(reader)).body == b"content"
        await close(writer)
