"""What a store holds: `GET /files?date=…`, the files of a day, and `GET /shards/{date}`, its shards.

A page has `limit` entries or less; `next` is the cursor after which the listing goes on, null at its end. A page of files also
ends at `PAGE_BYTES` of JSON, so that its memory is bounded whatever metadata the files have. Cursors are stable: they name the
last entry of a page, not a position.
"""

from __future__ import annotations

import json
import re
from contextlib import aclosing
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from des.errors import InvalidRequestError
from des.http.addressing import parse_parameters
from des.http.files import send_body
from des.routing import parse_day
from des.store.fileinfo import file_json
from des.store.listing import cursor_of
from des.store.shard_listing import list_shards

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

    from des.http.service import Service
    from des.store import FileInfo

MAX_LIMIT = 1000
PAGE_BYTES = 4 << 20
ENTRY_BYTES = 16 << 10  # of a file with the longest uid and metadata, at most
# As many digits as the greatest limit has: Python refuses to convert thousands of them, zeros included.
_LIMIT = re.compile(r"\d{1,4}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Page:
    """The page a request asks for: of which day (YYYYMMDD), after which cursor, and how many entries at most."""

    date: str
    after: str | None
    limit: int


def parse_page(query: bytes, date: str | None = None) -> Page:
    """Read which page a request asks for.

    Args:
        query: the raw query string.
        date: the day, where the path names it.

    Raises:
        InvalidRequestError: a parameter is missing, given twice or impossible.
    """
    names = ("after", "limit") if date is not None else ("date", "after", "limit")
    given = parse_parameters(query, names, {})
    limit = given.get("limit", str(MAX_LIMIT))
    if not _LIMIT.fullmatch(limit) or not 1 <= int(limit) <= MAX_LIMIT:
        raise InvalidRequestError(f"limit is {limit[:20]!r}, but must be a number from 1 to {MAX_LIMIT}.")
    return Page(parse_day(given["date"] if date is None else date), given.get("after"), int(limit))


class FilesOfDayEndpoint:
    """Answers `GET /files?date=…`."""

    def __init__(self, service: Service) -> None:
        """Answer from a service's store."""
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's own signature
        """Answer."""
        page = parse_page(scope["query_string"])
        held = min(PAGE_BYTES, ENTRY_BYTES * page.limit)
        self._service.limits.take_bytes(held)
        try:
            files, cursor = await self._files(page)
            head = json.dumps({"date": page.date}).encode().removesuffix(b"}")
            await _send_json(
                send, b'%b, "files": [%b], "next": %b}' % (head, b", ".join(files), json.dumps(cursor).encode())
            )
        finally:
            self._service.limits.give_bytes(held)

    async def _files(self, page: Page) -> tuple[list[bytes], str | None]:
        files: list[bytes] = []
        size, last = 0, None
        listing = self._service.store.list(page.date, after=page.after)
        async with aclosing(cast("AsyncGenerator[FileInfo, None]", listing)) as infos:
            async for info in infos:
                if last is not None and (len(files) == page.limit or size >= PAGE_BYTES):
                    return files, cursor_of(last)
                files.append(json.dumps(file_json(info), ensure_ascii=False).encode())
                size, last = size + len(files[-1]), info
        return files, None


class ShardsOfDayEndpoint:
    """Answers `GET /shards/{date}`."""

    def __init__(self, service: Service) -> None:
        """Answer from a service's store."""
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's own signature
        """Answer."""
        page = parse_page(scope["query_string"], scope["path_params"]["date"])
        found = await list_shards(self._service.store, page.date, page.after, page.limit)
        shards = [asdict(shard) for shard in found.shards]
        await _send_json(send, json.dumps({"date": page.date, "shards": shards, "next": found.next}).encode())


async def _send_json(send: Send, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": int(HTTPStatus.OK), "headers": headers})
    await send_body(send, body, more=False)
