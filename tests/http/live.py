"""A real hypercorn on a real socket over a real store, in the test's own event loop; and a client that hides nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from des.http.app import build_app
from des.http.worker import serve_until
from des.settings import Settings
from des.tasks import open_tasks
from tests.making import reading

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from des.http.service import Service
    from des.storage.protocol import Storage

ZSTD = "Accept-Encoding: zstd"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came over the wire; `is_whole` tells whether its body is as long as was promised."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_whole(self) -> bool:
        return len(self.body) == int(self.headers["content-length"])


@dataclass(frozen=True, slots=True)
class Server:
    """A running service."""

    port: int
    service: Service

    async def ask(self, target: str, *fields: str, method: str = "GET") -> Reply:
        """Send one request on a connection of its own and read until the server closes it."""
        return parse_reply(await self.send(request(target, *fields, method=method)))

    async def send(self, raw: bytes) -> bytes:
        """Send bytes and return all that comes back until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(raw)
            return await read_to_end(reader)
        finally:
            await close(writer)


def request(target: str, *fields: str, method: str = "GET", last: bool = True) -> bytes:
    """Write a request; the `last` one of a connection asks to close it."""
    lines = [f"{method} {target} HTTP/1.1", "Host: test", *fields, *(["Connection: close"] if last else [])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def parse_reply(raw: bytes) -> Reply:
    """Take an answer apart; nothing but what stands there."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs), "a field came twice"
    return Reply(int(status_line.split(" ")[1]), headers, body)


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Read until the connection ends, in whichever way."""
    received = bytearray()
    with suppress(ConnectionResetError):
        while piece := await reader.read(1 << 16):
            received += piece
    return bytes(received)


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a client's end, whatever became of the other one."""
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def running(storage: Storage, **values: object) -> AsyncIterator[Server]:
    """Serve the store that lies on a storage, with these settings, on a free port."""
    settings = Settings(**values)
    app = build_app(settings, lambda: reading(storage, **values))
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.settimeout(0)
    port: int = listener.getsockname()[1]
    told_to_end, ended = anyio.Event(), anyio.Event()

    async def serve() -> None:
        try:
            await serve_until(told_to_end, app, listener, settings)
        finally:
            ended.set()

    with listener:
        async with open_tasks() as tasks:
            tasks.start_soon(serve)
            yield Server(port, app.state.service)
            told_to_end.set()
            await ended.wait()


@dataclass(slots=True)
class Heard:
    """What the log said; `next` waits for more."""

    records: list[logging.LogRecord] = field(default_factory=list)
    _more: anyio.Event = field(default_factory=anyio.Event)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def add(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._loop.call_soon_threadsafe(self._wake)  # worker threads log, too

    def _wake(self) -> None:
        self._more.set()

    async def next(self) -> str:
        """Wait for a record, and return what it says; those before it are forgotten."""
        while not self.records:
            self._more = anyio.Event()
            await self._more.wait()
        message = self.records[-1].getMessage()
        self.records.clear()
        return message

    async def trouble(self) -> str:
        """Wait for the end of an exchange that did not end well, and return why."""
        while True:
            for record in self.records:
                fields = getattr(record, "fields", {})
                if "trouble" in fields:
                    return str(fields["trouble"])
            self._more = anyio.Event()
            await self._more.wait()


class _Handler(logging.Handler):
    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.add(record)


@contextmanager
def listening(name: str = "des.http") -> Iterator[Heard]:
    """Listen to a part of the log."""
    logger, heard = logging.getLogger(name), Heard()
    handler, level = _Handler(heard), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
