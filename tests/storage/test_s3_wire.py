"""The wire client against servers that speak, misspeak and fall silent: scripted replies over real sockets."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
import uvloop

from des.storage import s3_wire
from des.storage.s3_wire import (
    MAX_HEAD_BYTES,
    PIECE_BYTES,
    ConnectError,
    Origin,
    Pool,
    Reply,
    WireError,
    WireTimeoutError,
)
from tests.servers.processes import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Server:
    """Answers the n-th request with the n-th script, the last one for ever."""

    def __init__(
        self, *scripts: bytes | Callable[[asyncio.StreamWriter, asyncio.StreamReader], Awaitable[None]]
    ) -> None:
        self.scripts = list(scripts)
        self.connections = 0
        self.open = 0
        self.requests = 0
        self.changed = asyncio.Condition()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                script = self.scripts[min(self.requests, len(self.scripts) - 1)]
                self.requests += 1
                if isinstance(script, bytes):
                    writer.write(script)
                    await writer.drain()
                else:
                    await script(writer, reader)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            self.open -= 1
            async with self.changed:
                self.changed.notify_all()

    async def deserted(self) -> None:
        """Wait until no client is connected."""
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: self.open == 0), 10)


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Pool]:
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    pool = Pool(Origin("http", "127.0.0.1", listener.sockets[0].getsockname()[1]), None)
    try:
        yield pool
    finally:
        pool.close()
        listener.close()
        await server.deserted()
        await listener.wait_closed()
        assert pool.connections == set()


async def get(pool: Pool, want: int = 4096, within: float = 10) -> Reply:
    return await pool.get(REQUEST, want=want, within=within)


async def body(reply: Reply, within: float = 10) -> bytes:
    pieces = []
    while piece := await reply.read(1000, within):
        pieces.append(piece)
    reply.close()
    return b"".join(pieces)


async def hang_up(writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
    writer.transport.abort()
    raise ConnectionResetError


async def say_nothing(writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
    await reader.read()
    raise ConnectionResetError


GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "v"\r\n\r\nhello'


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: "v"\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: 1\r\n\r\n',
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + GOOD,
    ],
    ids=["length", "chunked", "interim"],
)
async def test_replies_of_every_framing(reply: bytes) -> None:
    server = Server(reply)
    async with serving(server) as pool:
        for _ in range(3):
            answer = await get(pool)
            assert (answer.status, answer.headers["etag"]) == (200, '"v"')
            assert await body(answer) == b"hello"
    assert (server.connections, server.requests) == (1, 3)


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_replies_that_come_in_splinters(size: int) -> None:
    async def splinter(writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        for start in range(0, len(GOOD), size):
            writer.write(GOOD[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(Server(splinter)) as pool:
        assert await body(await get(pool)) == b"hello"
        assert await body(await get(pool)) == b"hello"


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["said", "old"],
)
async def test_a_connection_that_ends_is_not_kept(reply: bytes) -> None:
    server = Server(reply)
    async with serving(server) as pool:
        for _ in range(2):
            assert await body(await get(pool)) == b"hello"
    assert server.connections == 2


async def test_a_body_that_ends_with_its_connection() -> None:
    async def until_close(writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        writer.close()
        raise ConnectionResetError

    async with serving(Server(until_close)) as pool:
        assert await body(await get(pool)) == b"hello"


@pytest.mark.parametrize("status", [204, 304])
async def test_replies_without_a_body(status: int) -> None:
    server = Server(f'HTTP/1.1 {status} X\r\nETag: "v"\r\n\r\n'.encode())
    async with serving(server) as pool:
        for _ in range(2):
            answer = await get(pool)
            assert answer.status == status
            assert await body(answer) == b""
    assert server.connections == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * (MAX_HEAD_BYTES + 10),
    ],
    ids=["ssh", "two_lengths", "negative", "no_colon", "upgrade", "endless_head"],
)
async def test_what_is_no_reply(reply: bytes) -> None:
    server = Server(reply)
    async with serving(server) as pool:
        with pytest.raises(WireError):
            await get(pool)
        assert len(pool.connections) <= 1


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    ],
    ids=["length", "chunked", "bad_chunk"],
)
async def test_a_body_that_breaks_gives_what_came_and_then_the_error(reply: bytes) -> None:
    async def break_off(writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        writer.write(reply)
        writer.write_eof()

    async with serving(Server(break_off)) as pool:
        answer = await get(pool)
        assert await answer.read(1000, 10) == b"hello"
        with pytest.raises(WireError):
            await answer.read(1000, 10)
        answer.close()


async def test_a_second_reply_that_nobody_asked_for_ends_the_connection() -> None:
    server = Server(GOOD + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", GOOD)
    async with serving(server) as pool:
        assert (await (await get(pool)).read(1000, 10)) == b"hello"
        assert await body(await get(pool)) == b"hello"
    assert server.connections == 2


async def test_bytes_on_an_idle_connection_end_it() -> None:
    spoken = asyncio.Event()

    async def speak_late(writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        writer.write(GOOD)
        await writer.drain()
        await spoken.wait()
        writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")

    server = Server(speak_late, GOOD)
    async with serving(server) as pool:
        assert await body(await get(pool)) == b"hello"
        spoken.set()
        await server.deserted()
        assert await body(await get(pool)) == b"hello"
    assert server.connections == 2


async def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    server = Server(GOOD, hang_up, GOOD)
    async with serving(server) as pool:
        assert await body(await get(pool)) == b"hello"
        assert await body(await get(pool)) == b"hello"
    assert (server.connections, server.requests) == (2, 3)


async def test_a_new_connection_that_is_closed_without_a_reply_is_an_error() -> None:
    server = Server(hang_up)
    async with serving(server) as pool:
        with pytest.raises(WireError, match="before the reply"):
            await get(pool)
    assert server.requests == 1


async def test_a_connection_that_was_idle_for_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(GOOD)
    async with serving(server) as pool:
        assert await body(await get(pool)) == b"hello"
        monkeypatch.setattr(s3_wire, "IDLE_SECONDS", 0.0)
        assert await body(await get(pool)) == b"hello"
    assert server.connections == 2


async def test_silence_before_the_reply_is_a_timeout() -> None:
    async with serving(Server(say_nothing)) as pool:
        with pytest.raises(WireTimeoutError):
            await get(pool, within=0.05)


async def test_each_wait_has_its_own_time() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def take_time(writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        asked.set()
        await go_on.wait()
        writer.write(GOOD)

    async with serving(Server(take_time, say_nothing)) as pool:
        patient = asyncio.create_task(get(pool, within=10))
        await asked.wait()
        for _ in range(2):  # within the time of the patient one, one after the other
            with pytest.raises(WireTimeoutError):
                await get(pool, within=0.02)
        go_on.set()
        assert await body(await patient) == b"hello"


async def test_a_reader_that_is_cancelled_too_late_leaves_its_connection_to_the_next() -> None:
    server = Server(GOOD)
    async with serving(server) as pool:
        reading = asyncio.create_task(get(pool))
        while not pool._idle:  # noqa: ASYNC110 - an event would wake this task after the reader
            await asyncio.sleep(0)
        reading.cancel()  # the reply is complete, and the reader has not run since
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await body(await get(pool)) == b"hello"
    assert server.connections == 1


async def test_a_drip_is_a_timeout() -> None:
    async def drip(writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serving(Server(drip)) as pool:
        with anyio.fail_after(10):
            answer = await get(pool, within=0.2)
            dripped = await answer.read(4096, 0.2)
            assert 0 < len(dripped) < 4096
            with pytest.raises(WireTimeoutError):
                await answer.read(4096, 0.2)
        answer.close()


async def test_nobody_listens() -> None:
    pool = Pool(Origin("http", "127.0.0.1", free_ports(1)[0]), None)
    with pytest.raises(ConnectError):
        await get(pool)


async def test_a_cancelled_wait_takes_its_connection_with_it() -> None:
    server = Server(say_nothing)
    async with serving(server) as pool:
        with anyio.move_on_after(0.05):
            await get(pool)
        await server.deserted()
        assert pool.connections == set()


async def test_a_reply_that_is_dropped_takes_its_connection_with_it() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"." * 5000)
    async with serving(server) as pool:
        (await get(pool)).close()
        await server.deserted()


async def test_a_reader_that_takes_its_time_stops_the_server() -> None:
    """Memory is bound: what the reader has not taken stays with the sender, beyond a piece and a receive buffer."""
    size = 64 * 1024 * 1024
    sent = 0

    async def pour(writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        nonlocal sent
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        while sent < size:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with serving(Server(pour)) as pool:
        answer = await get(pool)
        received = 0
        largest = 0
        while piece := await answer.read(65536, 10):
            received += len(piece)
            largest = max(largest, len(piece))
            for _ in range(20):  # let whatever could arrive arrive
                await asyncio.sleep(0)
            assert answer._buffered <= 2 * PIECE_BYTES
        answer.close()
    assert received == size
    assert largest <= 2 * PIECE_BYTES


async def test_many_at_once_and_again() -> None:
    server = Server(GOOD)
    async with serving(server) as pool:

        async def fetch() -> None:
            for _ in range(10):
                assert await body(await get(pool)) == b"hello"

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(fetch)
        assert server.requests == 500
        assert server.connections <= 50


@pytest.mark.parametrize(
    "scenario",
    [
        test_a_connection_that_was_closed_while_idle_is_replaced,
        test_a_new_connection_that_is_closed_without_a_reply_is_an_error,
        test_silence_before_the_reply_is_a_timeout,
        test_a_drip_is_a_timeout,
        test_a_cancelled_wait_takes_its_connection_with_it,
        test_a_reply_that_is_dropped_takes_its_connection_with_it,
        test_a_reader_that_takes_its_time_stops_the_server,
        test_nobody_listens,
        test_many_at_once_and_again,
    ],
)
def test_the_same_on_uvloop(scenario: Callable[[], Coroutine[object, object, None]]) -> None:
    uvloop.run(scenario())
