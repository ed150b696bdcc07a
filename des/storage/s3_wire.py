"""A small HTTP/1.1 client for many GETs on few connections: what a range read needs, and nothing else.

It exists because a general client spends several times as much CPU on a reply of a few KiB as the reply is worth. It
knows GET requests that the caller has written out, replies with Content-Length, chunked or ended by close (RFC 9112),
keep-alive, TLS and backpressure. It follows no redirect, stores no cookie, decodes nothing and retries nothing but a
connection that the server closed while it was idle.

Rules:

- One request at a time per connection. A connection goes back to the pool only when its reply has been received to the
  last byte; a reply that is given up, for whatever reason and at whatever await, takes its connection with it.
- Progress is bound in time: the head of a reply, and then each piece of its body, must come within the time the caller
  allows. Bytes that drip do not extend it.
- Memory is bound: no more than a piece and one receive buffer per reply; beyond that the socket is not read.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, cast

import anyio
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

if TYPE_CHECKING:
    from collections.abc import Mapping

PIECE_BYTES = 256 * 1024
MAX_HEAD_BYTES = 64 * 1024
HEADERS = ("content-length", "content-range", "etag", "retry-after", "transfer-encoding")
# Servers close idle connections after 5 s and more; one that is found closed costs a reconnect, no error.
IDLE_SECONDS = 12.0
# A timer may fire this much before its time.
_CLOCK_SECONDS = 0.002

_FINAL = int(HTTPStatus.OK)  # below it a reply is an interim one
_WANTED_HEADERS = {name.encode("ascii") for name in HEADERS}


class WireError(Exception):
    """The reply broke off, or is no HTTP."""


class ConnectError(WireError):
    """There is no connection."""


class WireTimeoutError(WireError):
    """Not enough came within the time allowed."""


class _IdleClosedError(WireError):
    """The server had closed the kept connection before it took the request."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to connect: `scheme` is http or https."""

    scheme: str
    host: str
    port: int


class Reply:
    """One reply, while it arrives. Made by `Pool.get`; whoever got it closes it.

    Attributes:
        status: of HTTP; 0 until the head is there.
        headers: the fields named in `HEADERS`.
        error: why there will be no more of it.
    """

    __slots__ = ("_buffered", "_chunks", "_complete", "_connection", "_waiter", "_want", "error", "headers", "status")

    def __init__(self, connection: _Connection, want: int) -> None:
        """Begin with nothing received.

        Args:
            connection: where it comes from.
            want: bytes of body that are worth waking the reader for.
        """
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._connection = connection
        self._want = want
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._complete = False
        self.error: WireError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self, want: int, within: float) -> bytes:
        """Return the next bytes of the body.

        Args:
            want: bytes to gather, at most `PIECE_BYTES` of them count.
            within: seconds until they must be there.

        Returns:
            At least `want` bytes, or what is left of the body; b"" after its end.

        Raises:
            WireTimeoutError: they did not come in time.
            WireError: the reply broke off. What had come before is returned first.
        """
        self._want = min(want, PIECE_BYTES)
        await self.wait(within)
        if not self._chunks:
            if self.error:
                raise self.error
            return b""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if not self._complete:
            self._connection.resume()
        return data

    def close(self) -> None:
        """Drop what has not been received; the connection is lost with it."""
        if not self._complete:
            self._connection.abort()

    async def wait(self, within: float) -> None:
        """Wait until `read` has something to return, and the head of the reply is there; or until that cannot be."""
        if self._ready():
            return
        self._waiter = self._connection.limit(within)
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None

    def _ready(self) -> bool:
        return self._complete or self.error is not None or (self.status != 0 and self._buffered >= self._want)

    def wake(self) -> None:
        """Let the reader go on, where it has what it waits for."""
        if self._waiter is not None and not self._waiter.done() and self._ready():
            self._connection.expires = inf  # now: when the reader runs, the connection may be another's
            self._waiter.set_result(None)

    # What the connection reports.

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Take the head of the reply."""
        self.status = status
        self.headers = headers

    def feed(self, data: bytes) -> bool:
        """Take a part of the body; True when the reader has enough for now."""
        self._chunks.append(data)
        self._buffered += len(data)
        return self._buffered >= PIECE_BYTES

    def finish(self) -> None:
        """Take the end of the body."""
        self._complete = True

    def fail(self, error: WireError) -> None:
        """Take the end of the connection before the end of the body."""
        if not self._complete and self.error is None:
            self.error = error
            self._connection.abort()
        self.wake()


class _Connection(asyncio.Protocol):
    """One connection, and the callbacks of its parser."""

    def __init__(self, pool: Pool) -> None:
        self.idle_since = 0.0
        self.expires = inf  # when who waits for it has waited too long, by the loop's clock
        self.closed = False
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        self._reply: Reply | None = None
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._silent = True
        self._reusable = False
        self._paused = False

    def send(self, request: bytes, want: int) -> Reply:
        """Send a request on this idle connection."""
        reply = self._reply = Reply(self, want)
        self._silent = True
        self._head_bytes = 0
        if self._transport is None or self.closed:
            reply.fail(_IdleClosedError("the connection was closed while idle"))
        else:
            self._transport.write(request)
        return reply

    def limit(self, within: float) -> asyncio.Future[None]:
        """Return a future for the reader to wait for, which the reply will resolve after so many seconds at the latest."""
        return self._pool.limit(self, within)

    def expire(self) -> None:
        """End the wait for it."""
        self.expires = inf
        if self._reply is not None:
            self._reply.fail(WireTimeoutError("no progress within the time allowed"))

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        """Read the socket again, after the reader took a piece."""
        if self._paused and self._transport is not None and not self.closed:
            self._paused = False
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._pool.connections.add(self)

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:  # nothing was asked: the server is confused, or says goodbye
            self.abort()
            return
        self._silent = False
        if reply.status == 0:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            reply.fail(WireError(f"not a reply of HTTP/1.1 ({type(error).__name__})"))
            return
        if reply.status == 0 and self._head_bytes > MAX_HEAD_BYTES:
            reply.fail(WireError("the head of the reply is too long"))
            return
        if self._reply is None:
            reply.finish()
            self._pool.release(self, reusable=self._reusable)
        reply.wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._pool.connections.discard(self)
        reply, self._reply = self._reply, None
        if reply is None:
            return
        ended_by_close = reply.status and not self._headers.keys() & {"content-length", "transfer-encoding"}
        if ended_by_close and exc is None:  # RFC 9112 section 6.3, rule 8
            reply.finish()
            reply.wake()
        elif self._silent:
            reply.fail(_IdleClosedError("the connection was closed before the reply"))
        else:
            reply.fail(WireError("the connection was closed within the reply"))

    # httptools

    def on_message_begin(self) -> None:
        if self._reply is None:
            self._reusable = False  # a second reply to one request
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _WANTED_HEADERS:
            self._headers[name.decode("ascii")] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._reply is not None and status >= _FINAL:
            self._reply.start(status, self._headers)

    def on_body(self, body: bytes) -> None:
        if self._reply is not None and self._reply.feed(body) and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._reply is not None and self._reply.status:  # else an interim reply, RFC 9110 section 15.2
            self._reusable = self._parser.should_keep_alive()
            self._reply = None


class Pool:
    """The connections to one origin. How many are used at once is the caller's business.

    Attributes:
        connections: all that are open.
    """

    def __init__(self, origin: Origin, tls: ssl.SSLContext | None) -> None:
        """Hold no connection yet.

        Args:
            origin: where to connect.
            tls: for https.
        """
        self.connections: set[_Connection] = set()
        self._origin = origin
        self._tls = tls
        self._idle: list[_Connection] = []
        # One for all connections: a timer for each wait would take a tenth of a small read.
        self._timer: asyncio.TimerHandle | None = None

    async def get(self, request: bytes, *, want: int, within: float) -> Reply:
        """Send a request and wait for the head of its reply, and for `want` bytes of the body or all of it.

        Args:
            request: request line, header fields and empty line.
            want: bytes of body to gather, at most `PIECE_BYTES` of them count.
            within: seconds until they must be there.

        Raises:
            ConnectError: no connection.
            ssl.SSLError: TLS could not be agreed.
            WireTimeoutError: no reply in time.
            WireError: the connection broke before the head of the reply was there.
        """
        deadline = time.monotonic() + within
        while True:
            connection = self._take_idle()
            kept = connection is not None
            connection = connection or await self._connect(within)
            reply = connection.send(request, min(want, PIECE_BYTES))
            await reply.wait(deadline - time.monotonic())
            if reply.status:
                return reply
            if not (kept and isinstance(reply.error, _IdleClosedError)):
                raise reply.error or WireError("no reply")

    def release(self, connection: _Connection, *, reusable: bool) -> None:
        """Take a connection back after the last byte of its reply."""
        if reusable and not connection.closed:
            connection.resume()
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.abort()

    def limit(self, connection: _Connection, within: float) -> asyncio.Future[None]:
        """Let a wait for a connection expire after so many seconds; see `_Connection.limit`."""
        loop = asyncio.get_running_loop()
        connection.expires = loop.time() + max(0.0, within)
        self._watch(loop, connection.expires)
        return loop.create_future()

    def _watch(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        due = loop.time() + _CLOCK_SECONDS
        for connection in tuple(self.connections):
            if connection.expires <= due:
                connection.expire()
        soonest = min((connection.expires for connection in self.connections), default=inf)
        if soonest < inf:
            self._watch(loop, soonest)

    def close(self) -> None:
        """Close all connections. The pool may be used again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._idle.clear()
        for connection in tuple(self.connections):
            connection.abort()

    def _take_idle(self) -> _Connection | None:
        oldest = time.monotonic() - IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self, within: float) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            with anyio.fail_after(within):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self._origin.host, self._origin.port, ssl=self._tls
                )
        except TimeoutError as error:
            raise WireTimeoutError("no connection within the time allowed") from error
        except ssl.SSLError:
            raise
        except OSError as error:
            raise ConnectError("no connection") from error
        return connection
