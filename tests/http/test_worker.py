"""What goes over a connection that is kept: answers follow each other without a byte too many or too few."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from des.http import files
from des.http.answer import answer_headers
from tests.http.live import request, running
from tests.making import DAY, make_store

if TYPE_CHECKING:
    from des.storage.testing import RecordingStorage

AT = f"created_at={DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"
TARGET = f"/files/small?{AT}"


async def test_answers_of_one_connection_are_framed_each(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content", "empty": b"", "slice": bytes(files.SLICE_BYTES)})
    async with running(storage) as server:
        etag = (await server.ask(TARGET)).headers["etag"]
        asked = [
            request(TARGET, method="HEAD", last=False),
            request(TARGET, f"If-None-Match: {etag}", last=False),
            request(f"/files/empty?{AT}", last=False),
            request(f"/files/slice?{AT}", "Range: bytes=-3", last=False),
            request(f"/files/slice?{AT}", last=False),
            request("/nowhere", method="HEAD", last=False),
            request(TARGET),
        ]
        raw = await server.send(b"".join(asked))
    heads = re.findall(rb"HTTP/1\.1 (\d+) ", raw)
    assert heads == [b"200", b"304", b"200", b"206", b"200", b"404", b"200"]
    bodies = [part.partition(b"\r\n\r\n")[2] for part in raw.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [b"", b"", b"", bytes(3), bytes(files.SLICE_BYTES), b"", b"content"]
    assert raw.count(b"\r\ndate: ") == len(heads)
    assert raw.lower().count(b"\r\nconnection: close\r\n") == 1


async def test_a_connection_ends_after_so_many_requests_and_says_so(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content"})
    async with running(storage) as server:
        raw = await server.send(request(TARGET, method="HEAD", last=False) * 1100)
    answers = raw.split(b"HTTP/1.1 ")[1:]
    assert len(answers) <= 1001
    assert [b"connection: close" in answer.lower() for answer in answers] == [False] * (len(answers) - 1) + [True]


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b", b"a\x7fb"])
async def test_a_field_that_would_end_its_line_is_never_sent(
    storage: RecordingStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: bytes
) -> None:
    def with_odd_field(*arguments: object) -> list[tuple[bytes, bytes]]:
        return [*answer_headers(*arguments), (b"x-odd", value)]  # type: ignore[arg-type]  # passed through

    await make_store(storage, {"small": b"content"})
    async with running(storage) as server:
        monkeypatch.setattr(files, "answer_headers", with_odd_field)
        raw = await server.send(request(TARGET))
        assert raw.startswith(b"HTTP/1.1 500 ")
        assert b"odd" not in raw
        assert b"cookie" not in raw
        monkeypatch.undo()
        assert (await server.ask(TARGET)).body == b"content"
    assert "a field of the answer cannot be sent as it is" in caplog.text
