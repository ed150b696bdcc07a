"""What a request for a file is answered with: pure, from the request's fields and the index alone.

1. The representation is selected: zstd as stored, or identity. A request with a Range is answered in identity, so that byte
   positions mean the content; so is one for a file that is not stored as one plain zstd frame.
2. The preconditions are evaluated against *its* entity tag: 412, 304, or on.
3. A GET may have a Range, if If-Range lets it: 206, 416 or the whole file. On a HEAD it is ignored (RFC 9110 section 14.2).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from des.http.conditions import Verdict, evaluate, range_applies
from des.http.dates import format_http_date
from des.http.negotiation import prefers_zstd
from des.http.ranges import Slice, Unsatisfiable, select_range

if TYPE_CHECKING:
    from collections.abc import Mapping

    from des.http.problems import Header
    from des.store import FoundFile

OK, PARTIAL, NOT_MODIFIED, FAILED, UNSATISFIABLE = 200, 206, 304, 412, 416

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110 section 5.6.2
_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t\x20-\x7e])*"'
_MEDIA_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*")
_MAX_MEDIA_TYPE = 255
_OCTET_STREAM = b"application/octet-stream"
_CONTENT_HEADERS = (
    (b"accept-ranges", b"bytes"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox"),
)
_ZSTD = (b"content-encoding", b"zstd")


class Answer(NamedTuple):
    """What to answer.

    Attributes:
        status: 200, 206, 304, 412 or 416.
        start: first byte of the representation to send.
        end: one past the last.
        size: bytes of the whole representation.
        etag: its entity tag.
        modified: its Last-Modified in seconds since 1970, None where it has none.
        is_zstd: whether it is the stored zstd frame rather than the content.
    """

    status: int
    start: int
    end: int
    size: int
    etag: str
    modified: int | None
    is_zstd: bool


def plan_answer(method: str, fields: Mapping[bytes, bytes], found: FoundFile, now: float) -> Answer:
    """Decide what a GET or HEAD of a file is answered with.

    Args:
        method: `GET` or `HEAD`.
        fields: header fields by lower-case name, repeated ones joined by commas.
        found: the file.
        now: seconds since 1970.
    """
    wanted = fields.get(b"range")
    etag, size, is_zstd = found.etag, found.entry.raw_size, False
    if wanted is None and b"accept-encoding" in fields:
        zstd_etag = found.zstd_etag
        if zstd_etag and prefers_zstd(fields[b"accept-encoding"]):
            etag, size, is_zstd = zstd_etag, found.entry.stored_size, True
    modified = found.committed_second
    if modified is not None and not 0 <= modified <= now:
        modified = None  # one in the future must not be sent: RFC 9110 section 8.8.2.1; one before 1970 is none
    verdict = evaluate(fields, etag, modified)
    if verdict is not Verdict.PROCEED:
        return Answer(verdict.value, 0, 0, size, etag, modified, is_zstd)
    if wanted is not None and method == "GET" and range_applies(fields.get(b"if-range"), etag, modified):
        part = select_range(wanted, size)
        if isinstance(part, Slice):
            return Answer(PARTIAL, part.start, part.end, size, etag, modified, is_zstd)
        if isinstance(part, Unsatisfiable):
            return Answer(UNSATISFIABLE, 0, 0, size, etag, modified, is_zstd)
    return Answer(OK, 0, size, size, etag, modified, is_zstd)


def answer_headers(answer: Answer, content_type: str, cache_control: bytes) -> list[Header]:
    """Return the header of a 200, 206 or 304 (RFC 9110 sections 8, 14.4 and 15.4.5)."""
    headers: list[Header] = [
        (b"etag", answer.etag.encode("latin-1")),
        (b"vary", b"Accept-Encoding"),
        (b"cache-control", cache_control),
    ]
    if answer.modified is not None:
        headers.append((b"last-modified", format_http_date(answer.modified)))
    if answer.status == NOT_MODIFIED:
        return headers
    headers += (
        (b"content-length", b"%d" % (answer.end - answer.start)),
        (b"content-type", media_type(content_type)),
        *_CONTENT_HEADERS,
    )
    if answer.is_zstd:
        headers.append(_ZSTD)
    if answer.status == PARTIAL:
        headers.append((b"content-range", b"bytes %d-%d/%d" % (answer.start, answer.end - 1, answer.size)))
    return headers


@lru_cache(maxsize=1024)
def media_type(text: str) -> bytes:
    """Return a media type as a field value; what is none (RFC 9110 section 8.3.1) becomes octet-stream, and so injects nothing."""
    acceptable = len(text) <= _MAX_MEDIA_TYPE and _MEDIA_TYPE.fullmatch(text)
    return text.encode() if acceptable else _OCTET_STREAM
