"""One worker on hypercorn, the only module that knows it.

hypercorn's connections (`TCPServer`) are used, its `serve` is not: that closes idle connections while requests are on their way
in them, waits without bound on some Pythons, and gives no way to drop a client that takes nothing.

Rules:

1. HTTP/1.1 in clear text: HTTP/2 and TLS are the proxy's. (What still arrives as HTTP/2 is refused by the exchange.)
2. On SIGTERM or SIGINT, or when the parent is gone: accept no more; answer what arrives on open connections and ask the clients
   to close them; after `LINGER` close those that are idle; after the drain time cut what is left. A watchdog thread ends the
   process where even that hangs.
3. A connection that is closed while its client does not take the rest is cut after `LINGER`: else it would keep its
   buffer as long as the client likes.
4. No read timeout: it would cut healthy downloads. The time to send a header is bounded by the keep-alive timeout.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from multiprocessing import parent_process
from typing import TYPE_CHECKING

import anyio
import uvloop
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from des.http.exchange import MAX_HEADER_BYTES

if TYPE_CHECKING:
    import socket

    from starlette.applications import Starlette

    from des.settings import Settings

BACKLOG = 2048
LINGER = 0.5
KEEP_ALIVE = 75.0  # longer than a load balancer keeps its end, usually 60 s, so that it is the one that closes
WATCHDOG_GRACE = 3.0

_log = logging.getLogger(__name__)


def run_worker(app: Starlette, listener: socket.socket, settings: Settings) -> None:
    """Serve until the process is told to end.

    Args:
        app: the application of `des.http.app`.
        listener: a bound socket; several workers may share it. It is closed in the end.
        settings: `http_drain`, seconds.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(app, listener, settings))


async def _serve(app: Starlette, listener: socket.socket, settings: Settings) -> None:
    told_to_end = anyio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_end.set)
    parent = parent_process()
    if parent is not None:
        loop.add_reader(parent.sentinel, told_to_end.set)
    try:
        async with app.router.lifespan_context(app):
            connections = _Connections(app)
            server = await asyncio.start_server(connections.serve, sock=listener, backlog=BACKLOG)
            await told_to_end.wait()
            watchdog = threading.Timer(settings.http_drain + WATCHDOG_GRACE, _end_hard)
            watchdog.daemon = True
            watchdog.start()
            app.state.service.draining = True
            server.close()
            await connections.drain(settings.http_drain)
    finally:
        if parent is not None:
            loop.remove_reader(parent.sentinel)


def _end_hard() -> None:
    _log.error("the worker hangs while ending: cut.")
    logging.shutdown()
    os._exit(1)


class _Connections:
    """The open connections of a worker."""

    def __init__(self, app: Starlette) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]  # hypercorn's ASGI types are narrower than Starlette's
        self._context = WorkerContext(max_requests=None)
        self._config = _config()
        self._open: set[asyncio.WriteTransport] = set()
        self._all_closed: anyio.Event | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop, transport = asyncio.get_running_loop(), writer.transport
        lingering = _Writer(transport, transport.get_protocol(), reader, loop)
        self._open.add(transport)
        try:
            await TCPServer(self._app, loop, self._config, self._context, {}, reader, lingering)
        finally:
            self._open.discard(transport)
            if self._all_closed and not self._open:
                self._all_closed.set()

    async def drain(self, seconds: float) -> None:
        """Let requests end, close idle connections, and cut what is left after `seconds`."""
        self._all_closed = anyio.Event()
        if not self._open:
            self._all_closed.set()
        with anyio.move_on_after(min(LINGER, seconds)):
            await self._all_closed.wait()
        await self._context.terminated.set()
        with anyio.move_on_after(max(seconds - LINGER, 0)):
            await self._all_closed.wait()
        if self._open:
            _log.warning("%d connections were cut: they did not end within %g seconds.", len(self._open), seconds)
        for transport in list(self._open):
            transport.abort()
        with anyio.move_on_after(LINGER):
            await self._all_closed.wait()


class _Writer(asyncio.StreamWriter):
    """Closes for good: what the client has not taken soon after is dropped."""

    def close(self) -> None:
        super().close()
        if self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(LINGER, self.transport.abort)


def _config() -> Config:
    config = Config()
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.keep_alive_timeout = KEEP_ALIVE
    return config
