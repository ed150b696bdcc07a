"""`des.http.answer`: one plan from fields, conditions, ranges and codings together, on files as a real store finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from des.http.answer import Answer, answer_headers, media_type, plan_answer
from des.http.dates import format_http_date
from tests.making import WHEN, make_store, reading

if TYPE_CHECKING:
    from des.storage.testing import RecordingStorage
    from des.store import FoundFile

TEXT = b"the quick brown fox jumps over the lazy dog\n" * 10
LATER = 4_000_000_000.0


async def found_file(storage: RecordingStorage) -> FoundFile:
    await make_store(storage, {"text.txt": TEXT})
    async with reading(storage) as store:
        return await store.find("text.txt", WHEN)


def plan(found: FoundFile, method: str = "GET", now: float = LATER, /, **fields: str) -> Answer:
    encoded = {name.replace("_", "-").encode(): value.encode() for name, value in fields.items()}
    return plan_answer(method, encoded, found, now)


async def test_conditions_are_compared_with_the_representation_that_was_selected(storage: RecordingStorage) -> None:
    found = await found_file(storage)
    zstd = found.zstd_etag
    assert zstd
    for fields, status in [
        ({"accept_encoding": "zstd", "if_none_match": zstd}, 304),
        ({"accept_encoding": "zstd", "if_none_match": found.etag}, 200),
        ({"accept_encoding": "zstd", "if_none_match": zstd, "range": "bytes=0-1"}, 206),
        ({"accept_encoding": "zstd", "if_none_match": found.etag, "range": "bytes=0-1"}, 304),
        ({"accept_encoding": "zstd", "if_range": zstd, "range": "bytes=0-1"}, 200),
        ({"accept_encoding": "zstd", "if_range": found.etag, "range": "bytes=0-1"}, 206),
        ({"if_match": '"x"', "range": "bytes=9999-"}, 412),
        ({"if_match": found.etag, "range": "bytes=9999-"}, 416),
        ({"if_range": '"x"', "range": "bytes=9999-"}, 200),
    ]:
        assert plan(found, **fields).status == status, fields
        expected = 200 if status in {206, 416} else status
        assert plan(found, "HEAD", **fields).status == expected, fields


async def test_a_date_in_the_future_is_no_date(storage: RecordingStorage) -> None:
    found = await found_file(storage)
    committed = found.committed_second
    assert committed
    after = format_http_date(committed + 10).decode()
    known = plan(found, "GET", committed, if_modified_since=after)
    assert (known.status, known.modified) == (304, committed)
    unknown = plan(found, "GET", committed - 1, if_modified_since=after)
    assert (unknown.status, unknown.modified) == (200, None)
    names = [name for name, _ in answer_headers(unknown, "text/plain", b"no-cache")]
    assert b"last-modified" not in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "value",
    [
        "text/html",
        "text/html; charset=utf-8",
        'text/html;charset="a b\\"c"',
        "application/vnd.api+json",
        "a/b;c=d ; e=f",
    ],
)
def test_a_media_type_is_sent_as_it_is(value: str) -> None:
    assert media_type(value) == value.encode()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "text",
        "text/",
        "/html",
        "text/html\r\nSet-Cookie: a=b",
        "text/html\n",
        " text/html",
        "text/html; charset",
        "text/html; charset=\x00",
        'text/html; a="\r\n"',
        "text/html, text/plain",
        "text/h\xe4ml",
        "text/html; a=\N{GRINNING FACE}",
        "text/" + "x" * 300,
        "a/b" + ";" * 250,
        "text/html;" + " " * 240 + "x",
    ],
)
def test_what_is_no_media_type_becomes_octet_stream(value: str) -> None:
    assert media_type(value) == b"application/octet-stream"
