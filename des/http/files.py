"""`/files`: one file by its uid and day, as a raw ASGI endpoint.

Rules:

1. HEAD, 304, 404, 410, 412 and 416 are answered from the index; no payload is read for them.
2. A file up to 1 MiB is read whole and verified before the first byte goes out. A larger one, or a part of it, streams piece
   by piece, each verified; the header goes out when the first piece is there, and damage later breaks the connection.
3. Bodies go out in slices of 64 KiB: what a client that stalls can hold in a server's buffers is a multiple of the slice.
   Between slices the event loop gets its turn, since a `send` that does not block does not yield either.
4. A file that is replaced between finding and reading is found again and answered anew.
"""

from __future__ import annotations

import asyncio
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from des.errors import DESError, SettingsError
from des.http.addressing import parse_file_address
from des.http.answer import FAILED, NOT_MODIFIED, PARTIAL, UNSATISFIABLE, answer_headers, plan_answer
from des.http.disposition import attachment
from des.http.exchange import SCOPE_KEY
from des.http.problems import Problem, send_problem, unsatisfiable
from des.store import ContentChangedError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from des.http.addressing import FileAddress
    from des.http.answer import Answer
    from des.http.exchange import Exchange
    from des.http.problems import Header
    from des.http.service import Service
    from des.store import FoundFile, Store

SLICE_BYTES = 64 << 10
# What a stream holds of a file at once: stored chunks, a decoded one, slices on their way. Measured with 200 stalled readers.
STREAM_BYTES = 3 << 19
_ATTEMPTS = 4
_FIELD_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")
_FAILED_CONDITION = Problem(
    HTTPStatus.PRECONDITION_FAILED, "The file is not in the state that the request is conditional on."
)


class FileEndpoint:
    """Answers `GET` and `HEAD`, in both spellings."""

    def __init__(self, service: Service) -> None:
        """Answer from a service's store.

        Raises:
            SettingsError: the Cache-Control of the settings cannot be a field's value.
        """
        cache_control = service.settings.http_cache_control
        if not _FIELD_VALUE.fullmatch(cache_control):
            raise SettingsError(f"DES_HTTP_CACHE_CONTROL is {cache_control!r}, which is no header field's value.")
        self._service = service
        self._cache_control = cache_control.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's own signature
        """Answer, and count the retrieval."""
        store, retrieval = self._service.store, Stopwatch()
        exchange: Exchange = scope[SCOPE_KEY]
        try:
            address = parse_file_address(scope["path_params"]["below_files"], scope["query_string"])
            for attempt in range(_ATTEMPTS):
                try:
                    await self._answer(store, address, exchange, scope["method"], send, retrieval)
                    break
                except ContentChangedError:
                    if exchange.has_begun or attempt == _ATTEMPTS - 1:
                        raise
        except DESError as error:
            self._service.retrieval_done(error.status, retrieval.seconds)
            raise
        self._service.retrieval_done("ok", retrieval.seconds)

    async def _answer(
        self, store: Store, address: FileAddress, exchange: Exchange, method: str, send: Send, retrieval: Stopwatch
    ) -> None:
        disposition = None if address.download is None else attachment(address.download)
        found = store.known(address.uid, address.created_at) or await store.find(address.uid, address.created_at)
        answer = plan_answer(method, exchange.fields, found, time.time())
        if answer.status == FAILED:
            await send_problem(send, _FAILED_CONDITION, exchange.request_id)
            return
        if answer.status == UNSATISFIABLE:
            await send_problem(send, unsatisfiable(answer.size), exchange.request_id)
            return
        headers = answer_headers(answer, found.content_type, self._cache_control)
        if disposition and answer.status != NOT_MODIFIED:
            headers.append((b"content-disposition", disposition))
        if method == "HEAD" or answer.status == NOT_MODIFIED:
            retrieval.stop()
            await exchange.respond(answer.status, headers)
            return
        held = min(answer.size, STREAM_BYTES)
        self._service.limits.take_bytes(held)
        try:
            if found.is_large:
                await self._stream(store, found, answer, headers, send, retrieval)
            else:
                await self._send_whole(store, found, answer, headers, exchange, retrieval)
        finally:
            self._service.limits.give_bytes(held)

    async def _send_whole(
        self,
        store: Store,
        found: FoundFile,
        answer: Answer,
        headers: list[Header],
        exchange: Exchange,
        retrieval: Stopwatch,
    ) -> None:
        content = await (store.read_stored(found) if answer.is_zstd else store.read(found))
        retrieval.stop()
        if answer.status == PARTIAL:
            content = content[answer.start : answer.end]
        if len(content) <= SLICE_BYTES:
            await exchange.respond(answer.status, headers, content)
            return
        await exchange.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send_body(exchange.send, content, more=False)

    async def _stream(
        self,
        store: Store,
        found: FoundFile,
        answer: Answer,
        headers: list[Header],
        send: Send,
        retrieval: Stopwatch,
    ) -> None:
        async with store.open_range(found, answer.start, answer.end) as pieces:
            piece = await anext(pieces, b"")
            retrieval.stop()
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            while piece:
                await send_body(send, piece, more=True)
                piece = await anext(pieces, b"")
        await send({"type": "http.response.body", "body": b""})


class Stopwatch:
    """The seconds since it was made, until it is stopped for the first time."""

    __slots__ = ("_seconds", "_started")

    def __init__(self) -> None:
        """Begin to count."""
        self._started = time.perf_counter()
        self._seconds: float | None = None

    def stop(self) -> None:
        """Stop counting."""
        if self._seconds is None:
            self._seconds = time.perf_counter() - self._started

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        return time.perf_counter() - self._started if self._seconds is None else self._seconds


async def send_body(send: Send, body: bytes, *, more: bool) -> None:
    """Send a body, or a part of one with `more` to come, slice by slice."""
    if len(body) <= SLICE_BYTES:
        await send({"type": "http.response.body", "body": body, "more_body": more})
        return
    for start in range(0, len(body), SLICE_BYTES):
        end = start + SLICE_BYTES
        await send({"type": "http.response.body", "body": body[start:end], "more_body": more or end < len(body)})
        await asyncio.sleep(0)
