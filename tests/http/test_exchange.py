"""What holds for every request: versions, sizes, ids, logs, clients that stall or leave, and what they send."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded

from des.storage.testing import Fail, Fault, FaultyStorage, Hold
from tests.http.live import close, listening, parse_reply, read_to_end, request, running
from tests.making import DAY, make_store

if TYPE_CHECKING:
    from des.storage.testing import RecordingStorage
    from tests.http.live import Server

AT = f"created_at={DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"
TARGET = f"/files/small?{AT}"
LARGE = bytes(24 << 20)  # more than the buffers of two sockets hold
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
URN = "urn:uuid:4bf92f35-77b3-4da6-a3ce-929d0e0e4736"


async def instance_of(server: Server, *fields: str) -> str:
    problem = json.loads((await server.ask("/nowhere", *fields)).body)
    assert isinstance(problem["instance"], str)
    return problem["instance"]


async def test_the_trace_id_is_the_request_id(storage: RecordingStorage) -> None:
    async with running(storage) as server:
        assert await instance_of(server, f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01") == URN
        assert await instance_of(server, f"traceparent: cc-{TRACE}-00f067aa0ba902b7-01-what-ever") == URN


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        TRACE,
        f"00-{TRACE}-00f067aa0ba902b7",
        f"00-{TRACE}-00f067aa0ba902b7-01-more",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{TRACE}x-00f067aa0ba902b7-01",
    ],
)
async def test_a_bad_traceparent_is_ignored(storage: RecordingStorage, traceparent: str) -> None:
    async with running(storage) as server:
        first, second = [await instance_of(server, f"traceparent: {traceparent}") for _ in range(2)]
        assert first != second
        assert URN not in {first, second}
        assert len(first) == len(URN)


async def test_the_access_log_has_what_happened_and_no_secret(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content"})
    async with running(storage) as server:
        with listening("des.http.access") as heard:
            await server.ask(f"/files/sm%61ll?{AT}&signature=SECRET&key=SECRET", "Authorization: Bearer SECRET")
            await server.ask("/nowhere", f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01", method="HEAD")
        got, lost = [record.__dict__["fields"] for record in heard.records]
        assert got | {"ms": 0, "request_id": ""} == {
            "request_id": "",
            "client": "127.0.0.1",
            "method": "GET",
            "target": f"/files/sm%61ll?{AT}",
            "status": 200,
            "bytes": 7,
            "ms": 0,
        }
        assert (lost["status"], lost["bytes"], lost["request_id"]) == (404, 0, TRACE)
        text = heard.records[0].getMessage()
        assert text.startswith(f'127.0.0.1 "GET /files/sm%61ll?{AT}" 200 7 B ')
        assert "SECRET" not in text


async def test_an_unexpected_error_tells_nothing_and_is_logged(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content"})
    faulty = FaultyStorage(storage, [Fault(Fail(ZeroDivisionError("a secret")), verb="read_range")])
    async with running(faulty) as server:
        with listening("des.http") as heard:
            reply = await server.ask(TARGET, f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01")
        assert reply.status == 500
        problem = json.loads(reply.body)
        assert faulty.fired
        assert problem["detail"] == "The service failed on this request."
        assert problem["instance"] == URN
        [record] = [record for record in heard.records if record.levelname == "ERROR"]
        assert TRACE in record.getMessage()
        assert record.exc_info


async def test_an_oversized_header_is_431(storage: RecordingStorage) -> None:
    async with running(storage) as server:
        for fields in ([f"X: {'x' * 17_000}"], [f"X-{n}: {'x' * 500}" for n in range(40)]):
            reply = await server.ask("/health", *fields)
            assert reply.status == 431
            assert reply.headers["content-type"] == "application/problem+json"
        assert (await server.ask(f"/health?{'x' * 17_000}")).status == 431
        assert (await server.ask("/health", f"X: {'x' * 200_000}")).status == 431
        assert (await server.ask("/health", f"X: {'x' * 15_000}")).status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        bytes(range(256)) * 300,
    ],
)
async def test_garbage_is_refused_and_the_end_of_its_connection(storage: RecordingStorage, garbage: bytes) -> None:
    async with running(storage) as server:
        assert parse_reply(await server.send(garbage)).status in {400, 431, 505}
        assert (await server.ask("/health")).status == 200


async def test_other_spellings_of_a_request(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content"})
    async with running(storage) as server:
        assert (await server.ask(f"http://test{TARGET}")).body == b"content"
        assert (await server.ask("http://test/health?x")).status == 200
        assert (await server.ask("http://test")).status == 404
        assert (await server.ask("xfiles/small")).status == 404
        reply = parse_reply(await server.send(f"GET {TARGET} HTTP/1.0\r\n\r\n".encode()))
        assert (reply.status, reply.body) == (200, b"content")
        assert (await server.ask("*", method="OPTIONS")).status == 404


def h2_client() -> H2Connection:
    return H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))


async def h2_answer(server: Server, client: H2Connection, opening: bytes) -> tuple[dict[str, str], bytes]:
    """Speak HTTP/2 until the first stream ends; return its header and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    header: dict[str, str] = {}
    body = b""
    try:
        writer.write(opening)
        if opening.startswith(b"GET"):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        while True:
            for event in client.receive_data(await reader.read(1 << 16)):
                if isinstance(event, ResponseReceived):
                    header = {str(name): str(value) for name, value in event.headers or ()}
                elif isinstance(event, DataReceived):
                    body += event.data or b""
                elif isinstance(event, StreamEnded):
                    return header, body
    finally:
        await close(writer)


async def test_http_2_is_refused_with_prior_knowledge(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content"})
    async with running(storage) as server:
        client = h2_client()
        client.initiate_connection()
        pseudo = [(":method", "GET"), (":path", TARGET), (":scheme", "http"), (":authority", "test")]
        client.send_headers(1, pseudo, end_stream=True)
        storage.calls.clear()
        header, body = await h2_answer(server, client, client.data_to_send())
        assert header[":status"] == "505"
        assert json.loads(body)["status"] == 505
        assert storage.calls == []


async def test_http_2_is_refused_by_upgrade(storage: RecordingStorage) -> None:
    async with running(storage) as server:
        client = h2_client()
        settings = client.initiate_upgrade_connection() or b""
        upgrade = request(
            "/health",
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            f"HTTP2-Settings: {settings.decode()}",
            last=False,
        )
        header, _ = await h2_answer(server, client, upgrade + client.data_to_send())
        assert header[":status"] == "505"
        assert (await server.ask("/health")).status == 200


async def test_a_web_socket_is_refused(storage: RecordingStorage) -> None:
    async with running(storage) as server:
        key = ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
        raw = await server.send(request("/files", "Upgrade: websocket", "Connection: Upgrade", *key, last=False))
        assert raw.startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_content_is_thrown_away(storage: RecordingStorage, method: str) -> None:
    await make_store(storage, {"small": b"content"})
    expected = 200 if method == "GET" else 405
    async with running(storage) as server:
        length = 3 << 20
        raw = request(TARGET, f"Content-Length: {length}", method=method) + bytes(length)
        assert parse_reply(await server.send(raw)).status == expected
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        raw = request(TARGET, "Transfer-Encoding: chunked", method=method) + chunk * 40 + b"0\r\n\r\n"
        assert parse_reply(await server.send(raw)).status == expected
        raw = request(TARGET, "Content-Length: 2", last=False, method=method) + b"{}" + request(TARGET)
        assert (await server.send(raw)).count(b"HTTP/1.1 ") == 2


async def test_content_that_comes_while_the_storage_is_slow_blocks_nothing(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content"})
    hold = Hold()
    async with running(FaultyStorage(storage, [Fault(hold, verb="read_range")])) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        length = 8 << 20
        writer.write(request(TARGET, f"Content-Length: {length}"))
        await hold.reached.wait()
        writer.write(bytes(length))
        await writer.drain()
        hold.release.set()
        assert parse_reply(await read_to_end(reader)).body == b"content"
        await close(writer)


async def test_a_client_that_leaves_ends_the_work_for_it(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content"})
    hold = Hold()
    async with running(FaultyStorage(storage, [Fault(hold, verb="read_range")])) as server:
        with listening("des.http.access") as heard:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request(TARGET))
            await hold.reached.wait()
            await close(writer)
            assert await heard.trouble() == "the client left"
        assert not hold.release.is_set()
        assert (await server.ask(TARGET)).body == b"content"


async def test_a_client_that_leaves_a_stream_ends_it(storage: RecordingStorage) -> None:
    await make_store(storage, {"large": LARGE})
    async with running(storage) as server:
        with listening("des.http.access") as heard:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request(f"/files/large?{AT}"))
            await reader.readexactly(1000)
            writer.transport.abort()
            assert await heard.trouble() == "the client left"
        [record] = heard.records
        assert record.__dict__["fields"]["bytes"] < len(LARGE)


async def stalled(server: Server, target: str) -> socket.socket:
    """Ask for something and take nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(0)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", server.port))
    await loop.sock_sendall(client, request(target))
    return client


async def test_a_client_that_takes_nothing_is_let_go_and_blocks_nobody(storage: RecordingStorage) -> None:
    await make_store(storage, {"large": LARGE, "small": b"content"})
    async with running(storage, http_send_timeout=0.2) as server:
        with listening("des.http.access") as heard, await stalled(server, f"/files/large?{AT}") as client:
            assert (await server.ask(TARGET)).body == b"content"
            assert await heard.trouble() == "the client takes nothing"
            reader, writer = await asyncio.open_connection(sock=client)
            reply = parse_reply(await read_to_end(reader))
            await close(writer)
        assert reply.status == 200
        assert not reply.is_whole


async def test_a_slow_client_that_takes_something_is_served(storage: RecordingStorage) -> None:
    await make_store(storage, {"large": LARGE})
    async with running(storage, http_send_timeout=2) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 12)
        writer.write(request(f"/files/large?{AT}"))
        received = bytearray()
        while piece := await reader.read(1 << 12):
            received += piece
        await close(writer)
        assert parse_reply(bytes(received)).body == LARGE
