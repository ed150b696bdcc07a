"""`POST /batch`: many files as one tar, in the order of the request.

Rules:

1. All items are looked up first, by the index alone. Then the batch is read stretch by stretch: small files that follow each
   other, up to `STRETCH_BYTES` of them, by one `get_many`; a large file alone. While a stretch goes out the next one is read,
   and no further: what is held is two stretches, whatever is asked for.
2. A file that cannot be had has no member; the report, the last member, says why. Only a large file that turns out damaged after
   its member began breaks the connection, as there is no other way to take it back.
3. A tar that lacks its report is not whole.
4. Where the storage answers nothing for `request_timeout`, it is not asked again: the items that are left time out at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import anyio
import anyio.to_thread

from des.errors import DESError, StorageTimeoutError
from des.http.addressing import raw_path
from des.http.batch_items import BYTES_AN_ITEM, parse_batch
from des.http.exchange import SCOPE_KEY
from des.http.files import SLICE_BYTES, STREAM_BYTES, Stopwatch, send_body
from des.http.problems import describe
from des.routing import parse_created_at
from des.store.archive import END, REPORT_NAME, member_header, member_name, padding, report_end, report_line
from des.tasks import mapped_in_order, run_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from datetime import datetime

    from starlette.types import Receive, Scope, Send

    from des.http.batch_items import BatchItem
    from des.http.exchange import Exchange
    from des.http.service import Service
    from des.store import FoundFile, Store

PATH = "/batch"
STRETCH_BYTES = 4 << 20
STRETCH_FILES = 256  # the gaps that are read between so many are about as long as the stretch at most
CONCURRENT_LOOKUPS = 64
# The request, what was parsed of it, and the report on it, as a multiple of the request.
_REQUEST_FACTOR = 4
_HEADERS = [
    (b"content-type", b"application/x-tar"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox"),
]


def takes_content(scope: Scope) -> bool:
    """Tell whether a request's content is a batch."""
    return scope["method"] == "POST" and unquote_to_bytes(raw_path(scope)) == PATH.encode()


@dataclass(slots=True)
class _Wanted:
    """An item, and how far it has come: found or not, read or not, failed or not."""

    item: BatchItem
    found: FoundFile | None = None
    content: bytes | None = None
    error: DESError | None = None

    @property
    def is_large(self) -> bool:
        return self.found is not None and self.found.is_large

    @property
    def held(self) -> int:
        """Bytes that are held for it."""
        return 0 if self.found is None or self.found.is_large else self.found.entry.raw_size


def stretches(wanted: Iterable[_Wanted]) -> list[list[_Wanted]]:
    """Cut a batch into what is read at once; see the rules."""
    cut: list[list[_Wanted]] = []
    open_one: list[_Wanted] = []
    held = 0
    for one in wanted:
        if one.is_large or held + one.held > STRETCH_BYTES or len(open_one) == STRETCH_FILES:
            cut.append(open_one)
            open_one, held = [], 0
        if one.is_large:
            cut.append([one])
        else:
            open_one.append(one)
            held += one.held
    cut.append(open_one)
    return [stretch for stretch in cut if stretch]


class BatchEndpoint:
    """Answers `POST`."""

    def __init__(self, service: Service) -> None:
        """Answer from a service's store."""
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's own signature
        """Answer."""
        limits, max_items = self._service.limits, self._service.settings.http_batch_items
        exchange: Exchange = scope[SCOPE_KEY]
        longest = BYTES_AN_ITEM * max_items
        held = min(longest, _REQUEST_FACTOR * exchange.declared_length) if exchange.declared_length else longest
        limits.take_bytes(held)
        try:
            content = await exchange.content(longest)
            items = await anyio.to_thread.run_sync(parse_batch, content, max_items)
            batch = _Batch(self._service, [_Wanted(item) for item in items])
            await batch.look_up()
            limits.give_bytes(held)
            request_held, held = held, 0
            limits.take_bytes(request_held + batch.held)  # as one body, so that a batch that is alone always passes
            held = request_held + batch.held
            await batch.send(send)
        finally:
            limits.give_bytes(held)


class _Batch:
    def __init__(self, service: Service, wanted: Sequence[_Wanted]) -> None:
        self._service, self._wanted = service, wanted
        self._store: Store = service.store
        self._timeout = service.settings.request_timeout
        self._is_given_up = False
        self._report: list[bytes] = []

    @property
    def held(self) -> int:
        """Bytes of files that are held at once, at most."""
        small = sum(one.held for one in self._wanted)
        return min(small, 2 * STRETCH_BYTES) + (STREAM_BYTES if any(one.is_large for one in self._wanted) else 0)

    # ---- reading ------------------------------------------------------------------------------------------------------------

    async def look_up(self) -> None:
        """Find all items.

        Raises:
            SettingsError: there is no store.
            StorageError: it cannot be read at all.
        """
        await self._store.check()

        async def find(one: _Wanted) -> None:
            started = time.perf_counter()
            try:
                one.found = await self._store.find(one.item.uid, one.item.created_at)
            except DESError as error:
                one.error = error
                self._service.retrieval_done(error.status, time.perf_counter() - started)
            self._answered(patience, one.error)

        with anyio.move_on_after(self._timeout) as patience:
            await run_all(find, self._wanted, CONCURRENT_LOOKUPS)
        if patience.cancelled_caught:
            self._give_up(one for one in self._wanted if one.found is None)

    def _answered(self, patience: anyio.CancelScope, error: DESError | None) -> None:
        """Have patience anew where the storage gave an answer, of whatever kind."""
        if not isinstance(error, StorageTimeoutError):
            patience.deadline = anyio.current_time() + self._timeout

    async def _read(self, stretch: list[_Wanted]) -> list[_Wanted]:
        """Read the small files of a stretch."""
        waiting: dict[tuple[str, datetime], list[_Wanted]] = defaultdict(list)
        for one in stretch:
            if one.found is not None and not one.is_large and one.error is None:
                waiting[one.found.uid, parse_created_at(one.item.created_at)].append(one)
        if self._is_given_up:
            self._give_up(stretch)
            return stretch
        asked = [key for key, some in waiting.items() for _ in some]
        started = time.perf_counter()
        with anyio.move_on_after(self._timeout) as patience:
            async for result in self._store.get_many(asked):
                one = waiting[result.uid, result.created_at].pop()
                one.content, one.error = result.data, result.error
                self._service.retrieval_done(
                    result.error.status if result.error else "ok", time.perf_counter() - started
                )
                self._answered(patience, result.error)
        if patience.cancelled_caught:
            self._give_up(one for some in waiting.values() for one in some)
        return stretch

    def _give_up(self, wanted: Iterable[_Wanted]) -> None:
        self._is_given_up = True
        for one in wanted:
            if one.error is None:
                one.found = None
                one.error = StorageTimeoutError(f"the storage did not answer within {self._timeout:g} seconds.")
                self._service.retrieval_done(one.error.status, self._timeout)

    # ---- sending ------------------------------------------------------------------------------------------------------------

    async def send(self, send: Send) -> None:
        """Send the tar."""

        async def planned() -> AsyncIterator[list[_Wanted]]:
            for stretch in stretches(self._wanted):
                yield stretch

        body = _Body(send)
        async with mapped_in_order(self._read, planned(), 2) as read:
            async for stretch in read:
                for one in stretch:
                    await self._send_one(body, one)
        report = b"".join([*self._report, report_end(len(self._wanted))])
        await body.write(member_header(REPORT_NAME, len(report), int(time.time())))
        await body.write(report)
        await body.write(padding(len(report)) + END)
        await body.end()

    async def _send_one(self, body: _Body, one: _Wanted) -> None:
        size = None
        if one.found is not None and one.error is None:
            if one.content is None:
                size = await self._send_large(body, one, one.found)
            else:
                size = len(one.content)
                await body.write(_header(one.found, one.item, size))
                await body.write(one.content)
                await body.write(padding(size))
                one.content = None  # the request's list keeps the item, and must not keep what has gone out
        error = one.error
        member = None if size is None else _name(one.item)
        self._report.append(
            report_line(
                one.item.index,
                one.item.uid,
                one.item.created_at,
                error.status if error else "ok",
                member,
                size,
                describe(error).detail if error else None,
            )
        )

    async def _send_large(self, body: _Body, one: _Wanted, found: FoundFile) -> int | None:
        """Stream a large file and return its size; None: it failed before its member began.

        Raises:
            DESError: it failed after that.
        """
        if self._is_given_up:
            self._give_up([one])
            return None
        retrieval, before = Stopwatch(), body.written
        try:
            async with self._store.open_whole(found) as (current, pieces):
                size = current.entry.raw_size
                piece = await anext(pieces, b"")
                retrieval.stop()
                await body.write(_header(current, one.item, size))
                while piece:
                    await body.write(piece)
                    piece = await anext(pieces, b"")
            await body.write(padding(size))
        except DESError as error:
            self._service.retrieval_done(error.status, retrieval.seconds)
            if body.written > before:
                raise
            self._is_given_up = isinstance(error, StorageTimeoutError)
            one.error = error
            return None
        self._service.retrieval_done("ok", retrieval.seconds)
        return size


class _Body:
    """The answer's body; begun by its first bytes, sent in slices.

    Attributes:
        written: bytes of it so far.
    """

    def __init__(self, send: Send) -> None:
        self.written = 0
        self._send = send
        self._buffer = bytearray()
        self._has_begun = False

    async def write(self, data: bytes) -> None:
        self.written += len(data)
        if len(self._buffer) + len(data) > SLICE_BYTES:
            await self._flush()
        if len(data) > SLICE_BYTES:
            await send_body(self._send, data, more=True)
        else:
            self._buffer += data

    async def end(self) -> None:
        await self._flush()
        await self._send({"type": "http.response.body", "body": b""})

    async def _flush(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            await self._send({"type": "http.response.start", "status": int(HTTPStatus.OK), "headers": list(_HEADERS)})
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            await asyncio.sleep(0)  # a `send` that does not block does not yield either


def _name(item: BatchItem) -> str:
    return member_name(item.index, str(item.uid))


def _header(found: FoundFile, item: BatchItem, size: int) -> bytes:
    modified = max(0, int(found.created_at.timestamp()))  # not every client takes a time before 1970
    return member_header(_name(item), size, modified, found.uid)
