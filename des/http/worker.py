"""One worker on hypercorn, the only module that knows it.

hypercorn's connections (`TCPServer`) are used, its `serve` is not: that closes idle connections while requests are on their way
in them, waits without bound on some Pythons, and gives no way to drop a client that takes nothing.

Rules:

1. HTTP/1.1 in clear text: HTTP/2 and TLS are the proxy's. (What still arrives as HTTP/2 is refused by the exchange.)
2. On SIGTERM or SIGINT, or when the parent is gone: accept no more; answer what arrives on open connections and ask the clients
   to close them; after `LINGER` close those that are idle; after the drain time cut what is left. A watchdog thread ends the
   process where even that hangs.
3. A connection that is closed while its client does not take the rest is cut after the send timeout: else it would keep
   its buffer as long as the client likes.
4. Waiting connections are accepted many at a time: uvloop's server takes one per turn of the loop, and a turn is long when
   many downloads are under way.
5. No read timeout: it would cut healthy downloads. The time to send a header is bounded by the keep-alive timeout.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
import time
from functools import lru_cache
from http import HTTPStatus
from multiprocessing import parent_process
from typing import TYPE_CHECKING

import anyio
import h11
import uvloop
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream

from des.http.dates import format_http_date
from des.http.exchange import ABORT_KEY, AT_ONCE_KEY, CLOSE, MAX_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.applications import Starlette

    from des.http.problems import Header
    from des.settings import Settings

BACKLOG = 2048
ACCEPTS_A_TURN = 64
ACCEPT_PAUSE = 1.0
LINGER = 0.5
KEEP_ALIVE = 75.0  # longer than a load balancer keeps its end, usually 60 s, so that it is the one that closes
WATCHDOG_GRACE = 3.0

_NO_CONTENT = b"content-length: 0\r\n"
_EMPTY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
# What a field may consist of: RFC 9110 section 5.5. That names are tokens is up to the code, which has all of them.
_FIELD_OCTETS = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
# Up to here one copy costs less than what the event loop makes of two pieces.
_COPIED_BYTES = 16 << 10

_END = h11.EndOfMessage()  # it has no state
_log = logging.getLogger(__name__)


def run_worker(
    app: Starlette,
    listener: socket.socket,
    settings: Settings,
    on_ready: Callable[[], object] | None = None,
    admin_listener: socket.socket | None = None,
) -> None:
    """Serve until the process is told to end.

    Args:
        app: the application of `des.http.app`.
        listener: a bound socket; several workers may share it. It is closed in the end.
        settings: as for `serve_until`.
        on_ready: called once requests are answered.
        admin_listener: the same for probes and metrics, where they have a port of their own.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(app, listener, settings, on_ready, admin_listener))


async def _serve(
    app: Starlette,
    listener: socket.socket,
    settings: Settings,
    on_ready: Callable[[], object] | None,
    admin_listener: socket.socket | None,
) -> None:
    told_to_end = anyio.Event()

    def end() -> None:
        if not told_to_end.is_set():
            watchdog = threading.Timer(settings.http_drain + WATCHDOG_GRACE, _end_hard)
            watchdog.daemon = True
            watchdog.start()
            told_to_end.set()

    def be_ready() -> None:
        gc.collect()
        gc.freeze()  # what is there stays: collections need not walk through it again and again
        if on_ready:
            on_ready()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    parent = parent_process()
    if parent is not None:
        loop.add_reader(parent.sentinel, end)
    try:
        await serve_until(told_to_end, app, listener, settings, be_ready, admin_listener)
    finally:
        if parent is not None:
            loop.remove_reader(parent.sentinel)


async def serve_until(
    told_to_end: anyio.Event,
    app: Starlette,
    listener: socket.socket,
    settings: Settings,
    on_ready: Callable[[], object] | None = None,
    admin_listener: socket.socket | None = None,
) -> None:
    """Serve on the running event loop until an event, then drain.

    Args:
        told_to_end: when to end.
        app: the application of `des.http.app`.
        listener: a bound socket, closed at once when the end begins.
        settings: `http_drain`, `http_send_timeout`, seconds.
        on_ready: called once requests are answered.
        admin_listener: for probes and metrics, which are answered until the drain is over.
    """
    async with app.router.lifespan_context(app):
        connections = _Connections(app, listener, settings.http_send_timeout)
        connections.listen()
        admin = _Connections(app.state.admin, admin_listener, settings.http_send_timeout) if admin_listener else None
        if admin:
            admin.listen()
        try:
            if on_ready:
                on_ready()
            await told_to_end.wait()
            app.state.service.draining = True
        finally:
            connections.stop_listening()
        await connections.drain(settings.http_drain)
        if admin:
            admin.stop_listening()
            await admin.drain(0)


def _end_hard() -> None:
    _log.error("the worker hangs while ending: cut.")
    logging.shutdown()
    os._exit(1)


class _Connections:
    """The listening socket and the open connections of a worker."""

    def __init__(self, app: Starlette, listener: socket.socket, linger: float) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]  # hypercorn's ASGI types are narrower than Starlette's
        self._listener = listener
        self._linger = linger
        self._loop = asyncio.get_running_loop()
        self._context = WorkerContext(max_requests=None)
        self._config = _config()
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_ended: anyio.Event | None = None

    def listen(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    def stop_listening(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors, no memory: it would come back at once
                _log.error("no connection can be accepted: %s.", error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(ACCEPT_PAUSE, self.listen)
                return
            client.settimeout(0)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._serve(client))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._all_ended and not self._tasks:
            self._all_ended.set()

    async def _serve(self, client: socket.socket) -> None:
        try:
            await self._talk(client)
        except Exception as error:  # noqa: BLE001 - one connection is none of the others' business
            _log.error("a connection failed unexpectedly", exc_info=error)

    async def _talk(self, client: socket.socket) -> None:
        reader = asyncio.StreamReader(loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, client)
        connection = _Connection(transport, protocol, reader, self._loop, self._linger)
        state: dict[str, object] = {ABORT_KEY: transport.abort}
        server = TCPServer(self._app, self._loop, self._config, self._context, state, reader, connection)
        server.idle_task = connection  # type: ignore[assignment]  # it has the two methods that are called
        state[AT_ONCE_KEY] = _AtOnce(server)
        self._open.add(connection)
        try:
            await server
        finally:
            self._open.discard(connection)

    async def drain(self, seconds: float) -> None:
        """Let requests end, close idle connections, and cut what is left after `seconds`."""
        self._all_ended = anyio.Event()
        if not self._tasks:
            self._all_ended.set()
        with anyio.move_on_after(min(LINGER, seconds)):
            await self._all_ended.wait()
        await self._context.terminated.set()
        for connection in list(self._open):
            connection.close_if_idle()
        with anyio.move_on_after(max(seconds - LINGER, 0)):
            await self._all_ended.wait()
        if self._open:
            _log.warning("%d connections were cut: they did not end within %g seconds.", len(self._open), seconds)
        for connection in list(self._open):
            connection.transport.abort()
        with anyio.move_on_after(LINGER):
            await self._all_ended.wait()


class _AtOnce:
    """Sends a whole answer.

    hypercorn takes an answer apart into header, body and end, each of which passes through five layers; this does with
    its protocol's h11 connection what they do in the end. h11 is told of an answer without content: all that it would do with the
    content is count it, and with the fields check them, which is done here for all of them together.
    """

    __slots__ = ("_server",)

    def __init__(self, server: TCPServer) -> None:
        self._server = server

    async def __call__(self, status: int, headers: list[Header], body: bytes) -> None:
        server = self._server
        protocol = server.protocol.protocol
        stream = protocol.stream if isinstance(protocol, H11Protocol) else None
        if not isinstance(protocol, H11Protocol) or not isinstance(stream, HTTPStream):
            return  # the client is gone
        connection = protocol.connection
        if not _is_framed(stream.scope["method"], status, headers, body):
            raise ValueError("the answer has another length than it says")
        lines = _lines([*headers, *server.config.response_headers("h11")])
        closes = protocol.keep_alive_requests >= server.config.keep_alive_max_requests or CLOSE in headers
        try:
            begun = connection.send(_without_content(status, closes))
            connection.send(_END)
        except h11.LocalProtocolError:
            if connection.their_state is not h11.ERROR:
                raise
        else:
            try:
                header = b"%b%b\r\n" % (begun.replace(_NO_CONTENT, b"", 1)[:-2], lines)
                if len(body) <= _COPIED_BYTES:
                    server.writer.write(header + body)
                else:
                    server.writer.writelines((header, body))
                await server.writer.drain()
            except (ConnectionError, RuntimeError):
                await protocol.handle(Closed())
        stream.state = ASGIHTTPState.CLOSED
        await stream.send(StreamClosed(stream_id=stream.stream_id))


@lru_cache
def _without_content(status: int, closes: bool) -> h11.Response:
    return h11.Response(status_code=status, headers=[(b"content-length", b"0"), *([CLOSE] if closes else [])])


def _is_framed(method: str, status: int, headers: list[Header], body: bytes) -> bool:
    """Tell whether a client will find the end of the body: RFC 9112 section 6.3."""
    if method == "HEAD" or status in _EMPTY:
        return not body
    return (b"content-length", b"%d" % len(body)) in headers


def _lines(headers: list[Header]) -> bytes:
    """Return the lines of the fields, whose octets are checked; without that of the connection, which is h11's."""
    lines = [b"%b: %b\r\n" % field for field in headers if field[0] != b"connection"]
    joined = b"".join(lines)
    if joined.translate(None, _FIELD_OCTETS) != b"\r\n" * len(lines):
        raise ValueError("a field of the answer cannot be sent as it is")
    return joined


class _Connection(asyncio.StreamWriter):
    """A connection's writing end, which is also its idle timer.

    hypercorn makes two tasks per request to wait for a connection to be idle for too long; a timer costs a tenth of that.
    """

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.StreamReaderProtocol,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
        linger: float,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self._loop_of_timers = loop
        self._linger = linger
        self._idle: asyncio.TimerHandle | None = None

    async def restart(self, _task_group: object, _action: object) -> None:
        """Begin to wait for a request."""
        await self.stop()
        self._idle = self._loop_of_timers.call_later(KEEP_ALIVE, self.close)

    async def stop(self) -> None:
        """Wait no more: one is there, or none will come."""
        if self._idle:
            self._idle.cancel()
            self._idle = None

    def close_if_idle(self) -> None:
        if self._idle:
            self.close()

    def close(self) -> None:
        """Close, and drop what the client does not take in time."""
        super().close()
        if self.transport.get_write_buffer_size():
            self._loop_of_timers.call_later(self._linger, self.transport.abort)


class _Config(Config):
    """hypercorn's configuration, with a `Date` that is written once a second."""

    _date: tuple[int, list[tuple[bytes, bytes]]] = (0, [])

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:  # noqa: ARG002 - hypercorn's own signature
        now = int(time.time())
        if self._date[0] != now:
            self._date = now, [(b"date", format_http_date(now))]
        return self._date[1]


def _config() -> Config:
    config = _Config()
    config.errorlog = logging.getLogger("hypercorn.error")
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    return config
