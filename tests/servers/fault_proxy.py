"""A proxy before a real S3 server that does harm on purpose, and counts what arrives.

It speaks enough HTTP/1.1 to know requests from replies. Signatures stay valid, because the Host header is passed on as
it came. What it counts is what a server would see.

    async with FaultProxy.before(seaweedfs) as proxy:
        storage = await open_s3(proxy.config(bucket))
        with proxy.fault(Cut(after=1000), method="GET", key="x.des") as fault:
            ...
        assert fault.fired == 1
        assert [request.method for request in proxy.requests] == ["GET", "GET"]

Effects are values and may be shared. A fault that never fired is a test that tested nothing: assert `fired`.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterator

    from des.settings import Settings
    from des.storage.s3_config import S3Config
    from tests.servers.s3_servers import S3Server

_PIECE = 64 * 1024
_KEPT_FIELDS = frozenset({"etag", "content-range", "content-type", "content-length", "last-modified", "date"})


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived.

    Attributes:
        method: GET, PUT, ...
        bucket: first part of the path.
        key: the rest of it, decoded; "" for requests about the bucket.
        query: decoded.
        headers: lower-case names.
        body: what was sent.
    """

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def range(self) -> str | None:
        """The Range header."""
        return self.headers.get("range")

    @property
    def presigned(self) -> bool:
        """Signed in the query."""
        return "X-Amz-Signature" in self.query


@dataclass(slots=True)
class Exchange:
    """One request on its way through, for effects."""

    request: Request
    proxy: FaultProxy
    head: bytes
    client: asyncio.StreamWriter
    client_gone: asyncio.Event

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    async def forward(self) -> None:
        """Ask the server, and take its whole reply."""
        reader, writer = await asyncio.open_connection(*self.proxy.upstream, limit=_PIECE)
        try:
            writer.write(self.head + self.request.body)
            await writer.drain()
            self.status, self.headers = await _read_head(reader)
            bodiless = self.request.method == "HEAD" or self.status in {204, 304}
            self.body = b"" if bodiless else await _read_body(reader, self.headers)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def send_head(self) -> None:
        """Send status and headers as they stand."""
        lines = [f"HTTP/1.1 {self.status} S", *(f"{name}: {value}" for name, value in self.headers.items()), "", ""]
        self.client.write("\r\n".join(lines).encode("latin-1"))
        await self.client.drain()

    async def send(self, body: bytes) -> None:
        """Send a part of the body."""
        for start in range(0, len(body), _PIECE):
            piece = body[start : start + _PIECE]
            self.proxy.body_bytes += len(piece)
            self.client.write(piece)
            await self.client.drain()

    async def reply(self) -> None:
        """Send the reply as it stands."""
        await self.send_head()
        await self.send(self.body)

    async def begin(self, after: int | None) -> bool:
        """Forward, and reply up to so many bytes of the body; None: not even the head. Tell whether that was all of a body."""
        await self.forward()
        if after is None:
            return False
        await self.send_head()
        await self.send(self.body[:after])
        return 0 < len(self.body) <= after

    def abort(self) -> None:
        """Reset the connection."""
        self.client.transport.abort()


class Effect(Protocol):
    async def __call__(self, exchange: Exchange) -> None:
        """Carry the exchange out, to its bitter end."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection is reset after so many bytes of the body; `after=None` before the head. A shorter body is whole."""

    after: int | None = 0

    async def __call__(self, exchange: Exchange) -> None:
        if await exchange.begin(self.after):
            return
        if self.after:  # a reset may overtake bytes that the kernel still holds: end in order, but early
            exchange.client.write_eof()
            await exchange.client_gone.wait()
        exchange.abort()


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing more comes after so many bytes of the body; `after=None`: not even the head. A shorter body is whole."""

    after: int | None = 0

    async def __call__(self, exchange: Exchange) -> None:
        if await exchange.begin(self.after):
            return
        await exchange.client_gone.wait()


@dataclass(frozen=True, slots=True)
class Drip:
    """After so many bytes the body comes one byte at a time, `interval` seconds apart."""

    after: int = 0
    interval: float = 0.02

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.forward()
        await exchange.send_head()
        await exchange.send(exchange.body[: self.after])
        for number in range(self.after, len(exchange.body)):
            await exchange.send(exchange.body[number : number + 1])
            with suppress(TimeoutError):
                await asyncio.wait_for(exchange.client_gone.wait(), self.interval)
                return


@dataclass(frozen=True, slots=True)
class Down:
    """The server is not asked; the connection is reset."""

    async def __call__(self, exchange: Exchange) -> None:
        exchange.abort()


@dataclass(frozen=True, slots=True)
class Delay:
    """The reply comes so many seconds late."""

    seconds: float

    async def __call__(self, exchange: Exchange) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(exchange.client_gone.wait(), self.seconds)
            return
        await _pass_on(exchange)


@dataclass(frozen=True, slots=True)
class OtherBucket:
    """A read is answered from another bucket: the place as it was when that was filled."""

    bucket: str

    async def __call__(self, exchange: Exchange) -> None:
        request = exchange.request
        wanted = {
            argument: request.headers[field]
            for argument, field in (("Range", "range"), ("IfMatch", "if-match"), ("IfNoneMatch", "if-none-match"))
            if field in request.headers
        }
        exchange.status, exchange.headers, exchange.body = await exchange.proxy.read_object(
            request.method, self.bucket, request.key, wanted
        )
        await exchange.reply()


@dataclass(frozen=True, slots=True)
class Answer:
    """The server is not asked; this is the answer."""

    status: int = 503
    code: str = "SlowDown"
    retry_after: str | None = None

    async def __call__(self, exchange: Exchange) -> None:
        exchange.status = self.status
        exchange.body = b"" if self.status == 304 else f"<Error><Code>{self.code}</Code></Error>".encode()
        exchange.headers = {"content-type": "application/xml", "content-length": str(len(exchange.body))}
        if self.retry_after is not None:
            exchange.headers["retry-after"] = self.retry_after
        if exchange.request.method == "HEAD":
            exchange.body = b""
        await exchange.reply()


@dataclass(frozen=True, slots=True)
class Shorten:
    """The body lacks its last bytes; the Content-Length says so (`honest`), or promises all of it."""

    by: int = 1
    honest: bool = True

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.forward()
        exchange.body = exchange.body[: -self.by]
        if self.honest:
            exchange.headers["content-length"] = str(len(exchange.body))
        await exchange.reply()
        if not self.honest:
            exchange.client.write_eof()
            await exchange.client_gone.wait()


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """200 and the whole object, whatever was asked for."""

    async def __call__(self, exchange: Exchange) -> None:
        whole = await exchange.proxy.whole_object(exchange.request)
        exchange.status = 200
        exchange.body = whole["body"]
        exchange.headers = {"etag": whole["etag"], "content-length": str(len(exchange.body))}
        await exchange.reply()


@dataclass(frozen=True, slots=True)
class SetHeader:
    """A header of the reply has another value; None takes it away."""

    name: str
    value: str | None

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.forward()
        exchange.headers.pop(self.name.lower(), None)
        if self.value is not None:
            exchange.headers[self.name.lower()] = self.value
        await exchange.reply()


def change_etag() -> SetHeader:
    """Another ETag than the object's."""
    return SetHeader("etag", f'"{secrets.token_hex(16)}"')


def wrong_content_range(value: str = "bytes 1-4096/1000000") -> SetHeader:
    """Another Content-Range than that of the body."""
    return SetHeader("content-range", value)


@dataclass(frozen=True, slots=True)
class Flip:
    """A bit of the body is flipped, and nothing says so: at a byte, or in the middle. A body without bytes stays as it is."""

    at: int | None = 0

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.forward()
        body = bytearray(exchange.body)
        if body:
            body[len(body) // 2 if self.at is None else self.at] ^= 1
        exchange.body = bytes(body)
        await exchange.reply()


@dataclass(frozen=True, slots=True)
class LoseReply:
    """The server has done it, but the reply never arrives."""

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.forward()
        exchange.abort()


@dataclass(frozen=True, slots=True)
class IgnoreConditions:
    """A PUT is carried out whatever its conditions say."""

    async def __call__(self, exchange: Exchange) -> None:
        etag = await exchange.proxy.put_object(exchange.request)
        exchange.status, exchange.body = 200, b""
        exchange.headers = {"etag": etag, "content-length": "0"}
        await exchange.reply()


@dataclass(frozen=True, slots=True)
class Hold:
    """The request says that it has come (`reached`), and waits to be let go (`release`)."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, exchange: Exchange) -> None:
        self.reached.set()
        waits = {asyncio.create_task(self.release.wait()), asyncio.create_task(exchange.client_gone.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.release.is_set():
            await exchange.forward()
            await exchange.reply()


@dataclass(slots=True)
class Fault:
    """An effect, and which requests it meets.

    Attributes:
        effect: what happens.
        method: of the request; None for any.
        key: end of the request's key; "" for any.
        when: what else must hold of the request.
        times: how often it happens at most; None without limit.
        fired: how often it did.
    """

    effect: Effect
    method: str | None = None
    key: str = ""
    when: Callable[[Request], bool] | None = None
    times: int | None = 1
    fired: int = 0

    def meets(self, request: Request) -> bool:
        """Tell whether it happens to a request."""
        return (
            self.method in {None, request.method}
            and request.key.endswith(self.key)
            and (self.times is None or self.fired < self.times)
            and (self.when is None or self.when(request))
        )


class FaultProxy:
    """The proxy; see the module.

    Attributes:
        requests: what has arrived, in order.
        in_flight: requests that have not been answered yet.
        peak: the most there ever were.
        connections: open connections from clients.
        body_bytes: bytes of bodies that went to clients, or wait to be taken.
        endpoint: the URL to use in place of the server's.
        upstream: host and port of the server.
    """

    def __init__(self, server: S3Server) -> None:
        address = urlsplit(server.endpoint)
        self.upstream = (address.hostname or "", address.port or 80)
        self.requests: list[Request] = []
        self.in_flight = 0
        self.peak = 0
        self.connections = 0
        self.body_bytes = 0
        self.endpoint = ""
        self._server = server
        self._faults: list[Fault] = []
        self._changed = asyncio.Condition()
        self._handlers: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def before(cls, server: S3Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[FaultProxy]:
        """Run a proxy before a server, until the context ends; with `tls` it speaks https to its clients."""
        proxy = cls(server)
        listener = await asyncio.start_server(proxy._accept, "127.0.0.1", 0, limit=_PIECE, backlog=1024, ssl=tls)
        port = listener.sockets[0].getsockname()[1]
        proxy.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        try:
            yield proxy
        finally:
            listener.close()
            handlers = tuple(proxy._handlers)
            for handler in handlers:
                handler.cancel()
            await asyncio.gather(*handlers, return_exceptions=True)
            await listener.wait_closed()

    @contextmanager
    def fault(
        self,
        effect: Effect,
        *,
        method: str | None = None,
        key: str = "",
        when: Callable[[Request], bool] | None = None,
        times: int | None = 1,
    ) -> Iterator[Fault]:
        """Do harm to the requests described, while the context lasts; see `Fault`.

        Of several faults that meet a request, the latest has it.
        """
        fault = Fault(effect, method, key, when, times)
        self._faults.insert(0, fault)
        try:
            yield fault
        finally:
            self._faults.remove(fault)

    def config(self, bucket: str, **changes: Any) -> S3Config:  # noqa: ANN401 - any of its fields
        """Return a place behind this proxy."""
        return self._server.config(bucket, endpoint_url=self.endpoint, **changes)

    def settings(self, bucket: str, **changes: Any) -> Settings:  # noqa: ANN401 - any of its fields
        """Return settings that name a place behind this proxy."""
        return self._server.settings(bucket, s3_endpoint_url=self.endpoint, **changes)

    def clear(self) -> None:
        """Forget what has arrived."""
        self.requests.clear()
        self.peak = self.in_flight
        self.body_bytes = 0

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.in_flight == 0)

    async def quiet(self) -> None:
        """Wait until no client is connected any more."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.connections == 0)

    async def arrived(self, count: int) -> None:
        """Wait until so many requests have arrived in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= count)

    async def whole_object(self, request: Request) -> dict[str, Any]:
        """Return body and ETag of the object a request is about."""

        def get() -> dict[str, Any]:
            found = self._server.client.get_object(Bucket=request.bucket, Key=request.key)
            return {"body": found["Body"].read(), "etag": found["ETag"]}

        return await asyncio.to_thread(get)

    async def read_object(
        self, method: str, bucket: str, key: str, wanted: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of a GET or HEAD of any object."""

        def read() -> tuple[int, dict[str, str], bytes]:
            call = self._server.client.head_object if method == "HEAD" else self._server.client.get_object
            try:
                found = call(Bucket=bucket, Key=key, **wanted)
            except ClientError as error:
                answer, body = error.response["ResponseMetadata"], b""
                if method == "GET" and answer["HTTPStatusCode"] != HTTPStatus.NOT_MODIFIED:
                    body = f"<Error><Code>{error.response['Error']['Code']}</Code></Error>".encode()
            else:
                answer, body = found["ResponseMetadata"], b"" if method == "HEAD" else found["Body"].read()
            headers = {name: value for name, value in answer["HTTPHeaders"].items() if name in _KEPT_FIELDS}
            if method == "GET":
                headers["content-length"] = str(len(body))
            return answer["HTTPStatusCode"], headers, body

        return await asyncio.to_thread(read)

    async def put_object(self, request: Request) -> str:
        """Write what a request carries, without its conditions; return the ETag."""

        def put() -> str:
            done = self._server.client.put_object(Bucket=request.bucket, Key=request.key, Body=request.body)
            return str(done["ETag"])

        return await asyncio.to_thread(put)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either side went away; a cancelled handler ends the same way, which is what its canceller waits for
        finally:
            writer.transport.abort()
            with suppress(OSError, asyncio.CancelledError):  # see above: it may be told to end here, too
                await writer.wait_closed()
            self.connections -= 1
            await self._note()
            self._handlers.discard(handler)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun = b""
        while not writer.is_closing():
            request, head = await _read_request(reader, begun)
            self.requests.append(request)
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            await self._note()
            client_gone = asyncio.Event()
            watcher = asyncio.create_task(_watch(reader, client_gone))
            try:
                await self._effect(request)(Exchange(request, self, head, writer, client_gone))
            finally:
                watcher.cancel()
                await asyncio.wait([watcher])
                self.in_flight -= 1
                await self._note()
            if client_gone.is_set():
                return
            begun = b"" if watcher.cancelled() else watcher.result()

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _effect(self, request: Request) -> Effect:
        for fault in self._faults:
            if fault.meets(request):
                fault.fired += 1
                return fault.effect
        return _pass_on


async def _pass_on(exchange: Exchange) -> None:
    """Carry request and reply through, piece by piece: a large body needs no memory, a slow reader slows the server."""
    reader, writer = await asyncio.open_connection(*exchange.proxy.upstream, limit=_PIECE)
    try:
        writer.write(exchange.head + exchange.request.body)
        await writer.drain()
        exchange.status, exchange.headers = await _read_head(reader)
        if exchange.request.method == "HEAD" or exchange.status in {204, 304}:
            await exchange.send_head()
        elif "content-length" in exchange.headers:
            await exchange.send_head()
            left = int(exchange.headers["content-length"])
            while left:
                piece = await reader.read(min(left, _PIECE))
                if not piece:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(piece)
                await exchange.send(piece)
        else:
            exchange.body = await _read_body(reader, exchange.headers)
            await exchange.reply()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _watch(reader: asyncio.StreamReader, gone: asyncio.Event) -> bytes:
    """Notice that the client hangs up; return the byte that came instead, which begins its next request."""
    try:
        byte = await reader.read(1)
    except OSError:
        byte = b""
    if not byte:
        gone.set()
    return byte


async def _read_request(reader: asyncio.StreamReader, begun: bytes) -> tuple[Request, bytes]:
    raw = begun + await reader.readuntil(b"\r\n\r\n")
    line, _, fields = raw[:-4].decode("latin-1").partition("\r\n")
    method, target, _ = line.split(" ")
    headers = _parse_fields(fields)
    body = await _read_body(reader, headers) if {"content-length", "transfer-encoding"} & headers.keys() else b""
    parts = urlsplit(target)
    bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
    query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    kept = {name: value for name, value in headers.items() if name not in {"connection", "transfer-encoding"}}
    if "transfer-encoding" in headers:
        kept["content-length"] = str(len(body))
    lines = [line, *(f"{name}: {value}" for name, value in kept.items()), "connection: close", "", ""]
    return Request(method, bucket, key, query, headers, body), "\r\n".join(lines).encode("latin-1")


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    raw = await reader.readuntil(b"\r\n\r\n")
    line, _, fields = raw[:-4].decode("latin-1").partition("\r\n")
    headers = _parse_fields(fields)
    headers.pop("connection", None)
    return int(line.split(" ")[1]), headers


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """Read a body; where it is not of a known length, the headers are made to say it."""
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    body = b""
    if headers.pop("transfer-encoding", "") == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        body = await reader.read()
    headers["content-length"] = str(len(body))
    return body


def _parse_fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.split("\r\n"):
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    return fields
