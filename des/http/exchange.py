"""One request and its answer: what holds for all of them, whichever endpoint answers.

Rules:

1. HTTP/1 only. Below HTTP/2 the server has no backpressure, and does not reset a body that failed: 505.
2. The request line's target and the fields together stay within 16 KiB, else 431.
3. Every request has an id: the trace id of a valid `traceparent` (W3C Trace Context, section 3.2), else random. It stands in
   the log and in problems.
4. Whatever goes wrong before the first byte is answered by a problem. After it the body is left unfinished, so that the
   server breaks the connection and the client notices; an answer never ends well that is not whole.
5. A client that leaves cancels the work for it. Each `send` has a deadline: a client that takes nothing for that long is let go.
6. Content of a request is thrown away as it comes, unless its endpoint takes it: what nobody reads would block the server. An endpoint
   takes it whole, within a size and `request_timeout`, before it does anything else.
7. While the service drains, every answer asks the client to close the connection.
8. An answer that is there as a whole goes to the server as a whole, where the server takes it so (`AT_ONCE_KEY`): in parts it
   costs half as much again.

Cancelling is the task's own (`Task.cancel`, and `uncancel` where it ends here, as asyncio.timeout does it): a cancel scope
and a timeout around each `send` would cost a tenth of a small answer.

To know that a client left, somebody has to wait for `receive`, in a task of its own. That costs more than most answers, so
it begins only when an answer takes up to `WATCH_AFTER` seconds, or when content is on its way. A timer for each answer costs too
much, too: one patrol goes by all that are under way.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import anyio
from starlette.exceptions import HTTPException

from des import metrics
from des.errors import DESError
from des.http.access_log import access_log, log_access
from des.http.addressing import raw_path
from des.http.problems import Problem, RefusedError, describe, send_problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from des.http.access import AccessControl
    from des.http.problems import Header
    from des.http.service import Service

    AtOnce = Callable[[int, list[Header], bytes], Awaitable[None]]

SCOPE_KEY: Final = "des.exchange"
ABORT_KEY: Final = "des.abort"  # in the scope's state: drops the connection at once, where the server lets us
AT_ONCE_KEY: Final = "des.at_once"  # there too: sends status, headers and body of at most a slice
WATCH_AFTER: Final = 0.05
DISCARD_SECONDS: Final = 1.0
MAX_HEADER_BYTES: Final = 16 * 1024

_log = logging.getLogger("des.http")
_HTTP_1 = ("1.1", "1.0")
_MULTIPLEXED = frozenset({"2", "3"})
_LEFT = "the client left"
CLOSE: Final = (b"connection", b"close")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_FIRST_VERSION_LENGTH = 55


class ExchangeMiddleware:
    """The outermost middleware."""

    __slots__ = ("_access", "_app", "_patrol", "_service", "_takes_content")

    def __init__(
        self, app: ASGIApp, service: Service, takes_content: Callable[[Scope], bool], access: AccessControl | None
    ) -> None:
        """Wrap the application.

        Args:
            app: answers.
            service: limits and state.
            takes_content: tells for which requests an endpoint calls `Exchange.content`.
            access: decides who may make a request; None: everybody.
        """
        self._app, self._service, self._access = app, service, access
        self._takes_content = takes_content
        self._patrol = _Patrol()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a request; pass on what is none."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        if not scope["path"].startswith("/"):  # the absolute form, which a server must accept: RFC 9112 section 3.2.2
            scope["path"] = unquote(raw_path(scope).decode("latin-1"))
        exchange = scope[SCOPE_KEY] = Exchange(self._service, scope, receive, send)
        return exchange.answer(self._app, self._takes_content, self._patrol, self._access)


class Exchange:
    """A request, and how far its answer has come.

    Attributes:
        fields: header fields by lower-case name; repeated ones joined by commas (RFC 9110 section 5.3).
    """

    __slots__ = (
        "_finishing",
        "_listener",
        "_loop",
        "_receive",
        "_request_id",
        "_scope",
        "_send",
        "_sending_since",
        "_sent_bytes",
        "_service",
        "_started",
        "_status",
        "_task",
        "_timer",
        "_trouble",
        "_unread",
        "fields",
    )

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        """Begin an exchange."""
        self._service, self._scope, self._receive, self._send = service, scope, receive, send
        self._started = perf_counter()
        self._loop = asyncio.get_running_loop()
        self.fields = _joined(scope["headers"])
        self._request_id = ""
        self._task = asyncio.current_task()
        self._timer: asyncio.Handle | None = None
        self._listener: asyncio.Task[None] | None = None
        self._sending_since: float | None = None
        self._finishing = False
        self._status = 0
        self._sent_bytes = 0
        self._trouble = ""
        self._unread = False  # there is content that an endpoint is to take

    async def answer(
        self, app: ASGIApp, takes_content: Callable[[Scope], bool], patrol: _Patrol, access: AccessControl | None
    ) -> None:
        """Let the application answer, and see to it that there is an answer or a broken connection."""
        if self._has_content():
            self._unread = takes_content(self._scope)
            if not self._unread:
                self.watch()
        else:
            patrol.enter(self, self._loop)
        try:
            try:
                self._check()
                if access:
                    access.decide(self._scope, self.fields, self.request_id)
                await app(self._scope, self._receive, self.send)
            except Exception as error:  # noqa: BLE001 - the last line of defence: reported, and answered or broken off
                await self._fail(error)
        except asyncio.CancelledError:
            if not self._trouble or self._task is None:
                raise  # the server's doing, not ours
            self._task.uncancel()
        finally:
            patrol.leave(self)
            if self._timer:
                self._timer.cancel()
            if self._listener:
                self._listener.cancel()
            metrics.bytes_out.add(self._sent_bytes)
            if access_log.isEnabledFor(logging.INFO):
                milliseconds = (perf_counter() - self._started) * 1000
                log_access(self._scope, self.request_id, self._status, self._sent_bytes, milliseconds, self._trouble)

    @property
    def request_id(self) -> str:
        """32 hex digits."""
        if not self._request_id:
            self._request_id = _trace_id(self.fields.get(b"traceparent")) or secrets.token_hex(16)
        return self._request_id

    @property
    def has_begun(self) -> bool:
        """Whether the answer's header has gone out, so that no other answer can."""
        return self._status != 0

    @property
    def declared_length(self) -> int | None:
        """Bytes of content that the request says it has; None where it does not say."""
        declared = self.fields.get(b"content-length", b"")
        return int(declared) if declared.isdigit() else None

    async def content(self, limit: int) -> bytes:
        """Return the request's content, once, to an endpoint that was said to take it.

        Args:
            limit: bytes it may have.

        Raises:
            RefusedError: it is longer, or does not come within `request_timeout`.
        """
        if not self._unread:
            return b""
        if (self.declared_length or 0) > limit:
            raise _too_long(limit)
        received = bytearray()
        try:
            with anyio.fail_after(self._service.settings.request_timeout):
                while await self._receive_content(received):
                    if len(received) > limit:
                        raise _too_long(limit)
        except TimeoutError as error:
            detail = "The request's content did not come in time."
            raise RefusedError(Problem(HTTPStatus.REQUEST_TIMEOUT, detail, (CLOSE,))) from error
        if len(received) > limit:
            raise _too_long(limit)
        self.watch()
        return bytes(received)

    async def _receive_content(self, received: bytearray) -> bool:
        """Add what comes next to what was received, and return whether more is to come."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._trouble = _LEFT
            raise asyncio.CancelledError(_LEFT)
        self._unread = message.get("more_body", False)
        received += message.get("body", b"")
        return self._unread

    async def respond(self, status: int, headers: list[Header], body: bytes = b"") -> None:
        """Send a whole answer, of at most a slice; never a body to a HEAD."""
        at_once: AtOnce | None = (self._scope.get("state") or {}).get(AT_ONCE_KEY)
        if at_once is None:
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})
            return
        self._status, self._finishing = status, True
        if self._service.draining:
            headers = [*headers, CLOSE]
        if self._scope["method"] == "HEAD":
            body = b""
        self._sent_bytes += len(body)
        self._sending_since = self._loop.time()
        await at_once(status, headers, body)
        self._sending_since = None

    async def send(self, message: Message) -> None:
        """Send a part of the answer; never a body to a HEAD."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._service.draining and self._scope["http_version"] in _HTTP_1:
                message["headers"] = [*message["headers"], CLOSE]
        else:
            if self._scope["method"] == "HEAD":
                message["body"] = b""
            self._sent_bytes += len(message.get("body", b""))
            self._finishing = not message.get("more_body", False)
        self._sending_since = self._loop.time()
        try:
            await self._send(message)
        except OSError as error:  # what a server may raise once the client is gone (ASGI, "Disconnected Client")
            self._trouble = _LEFT
            raise asyncio.CancelledError(_LEFT) from error
        self._sending_since = None

    # ---- before the endpoint ------------------------------------------------------------------------------------------------

    def _has_content(self) -> bool:
        return b"transfer-encoding" in self.fields or self.fields.get(b"content-length", b"0") != b"0"

    def _check(self) -> None:
        if self._scope["http_version"] not in _HTTP_1:
            detail = "This service speaks HTTP/1.1; let a proxy in front of it speak HTTP/2."
            fields = () if self._scope["http_version"] in _MULTIPLEXED else (CLOSE,)  # RFC 9113 section 8.2.2
            raise RefusedError(Problem(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, detail, fields))
        size = sum(map(len, self.fields)) + sum(map(len, self.fields.values()))
        size += len(self._scope.get("raw_path") or self._scope["path"]) + len(self._scope["query_string"])
        if size > MAX_HEADER_BYTES:
            detail = f"The request's header is longer than {MAX_HEADER_BYTES} bytes."
            raise RefusedError(Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail, (CLOSE,)))

    # ---- while it works -----------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Begin to look after the client: whether it is there, and takes something."""
        self._listener = self._loop.create_task(self._listen())
        self._check_progress()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._finishing:  # servers report the end of an answer in the same way
            self._let_go(_LEFT)

    def _check_progress(self) -> None:
        now = self._loop.time()
        since = now if self._sending_since is None else self._sending_since
        due = since + self._service.settings.http_send_timeout
        if now >= due:
            self._let_go("the client takes nothing")
            abort = (self._scope.get("state") or {}).get(ABORT_KEY)
            if abort:
                abort()
        else:
            self._timer = self._loop.call_at(due, self._check_progress)

    def _let_go(self, why: str) -> None:
        self._trouble = why
        if self._task:
            self._task.cancel()

    # ---- when it fails ------------------------------------------------------------------------------------------------------

    async def _fail(self, error: Exception) -> None:
        problem = describe(error)
        self._report(error, problem)
        if self._unread:
            # A connection that is closed with content on its way is reset, and the answer lost with it.
            with anyio.move_on_after(DISCARD_SECONDS):
                while await self._receive_content(bytearray()):
                    pass
        if self.has_begun:
            self._trouble = "broken off"
        else:
            await send_problem(self.send, problem, self.request_id)

    def _report(self, error: Exception, problem: Problem) -> None:
        if isinstance(error, RefusedError | HTTPException):
            return
        if not isinstance(error, DESError):
            _log.error("request %s failed unexpectedly", self.request_id, exc_info=error)
        elif problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("request %s: %s: %s", self.request_id, type(error).__name__, error)
        elif problem.status > HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.warning("request %s: %s: %s", self.request_id, type(error).__name__, error)


class _Patrol:
    """Begins to watch the exchanges that last, by `WATCH_AFTER` after they began and no earlier than half of it."""

    __slots__ = ("_due", "_new", "_timer")

    def __init__(self) -> None:
        self._new: set[Exchange] = set()
        self._due: set[Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, exchange: Exchange, loop: asyncio.AbstractEventLoop) -> None:
        self._new.add(exchange)
        if self._timer is None:
            self._timer = loop.call_later(WATCH_AFTER / 2, self._go_by, loop)

    def leave(self, exchange: Exchange) -> None:
        self._new.discard(exchange)
        self._due.discard(exchange)

    def _go_by(self, loop: asyncio.AbstractEventLoop) -> None:
        for exchange in self._due:
            exchange.watch()
        self._due, self._new = self._new, set()
        self._timer = loop.call_later(WATCH_AFTER / 2, self._go_by, loop) if self._due else None


def _too_long(limit: int) -> RefusedError:
    detail = f"The request's content is longer than {limit} bytes."
    return RefusedError(Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, (CLOSE,)))


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    pairs = list(headers)
    fields = dict(pairs)
    if len(fields) < len(pairs):
        fields = {}
        for name, value in pairs:
            fields[name] = fields[name] + b", " + value if name in fields else value
    return fields


def _trace_id(traceparent: bytes | None) -> str | None:
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match and traceparent and (not traceparent.startswith(b"00-") or len(traceparent) == _FIRST_VERSION_LENGTH):
        return match[1].decode()
    return None
