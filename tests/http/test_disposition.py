from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.errors import InvalidRequestError
from des.http.disposition import MAX_NAME_BYTES, attachment
from tests.http.live import running
from tests.making import DAY, make_store

if TYPE_CHECKING:
    from des.storage.testing import RecordingStorage

AT = f"created_at={DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"
# RFC 6266 section 4.1 with the names used here, RFC 8187 section 3.2.1.
GRAMMAR = re.compile(
    rb"attachment(?:; filename=\"[\x20\x21\x23-\x5b\x5d-\x7e]*\"(?:; filename\*=UTF-8''(?:[A-Za-z0-9!#$&+.^_`|~-]|%[0-9A-F]{2})+)?)?"
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "attachment"),
        ("report.pdf", 'attachment; filename="report.pdf"'),
        ("a b;c=d,e'f.txt", 'attachment; filename="a b;c=d,e\'f.txt"'),
        ("\u20ac rates", "attachment; filename=\"_ rates\"; filename*=UTF-8''%E2%82%AC%20rates"),
        ('quo"te', "attachment; filename=\"quo_te\"; filename*=UTF-8''quo%22te"),
        ("100%41", "attachment; filename=\"100_41\"; filename*=UTF-8''100%2541"),
        ("../../etc/passwd", 'attachment; filename=".._.._etc_passwd"'),
        ("..\\x", 'attachment; filename=".._x"'),
        ("a\r\nSet-Cookie: x=1", 'attachment; filename="a__Set-Cookie: x=1"'),
        ("\x00\x7f\x85", 'attachment; filename="___"'),
        ("a\u202efdp.exe", 'attachment; filename="a_fdp.exe"'),
    ],
)
def test_the_field(name: str, expected: str) -> None:
    assert attachment(name) == expected.encode()


@given(st.text(max_size=60))
def test_no_name_leaves_the_grammar_and_each_comes_back(name: str) -> None:
    value = attachment(name)
    assert GRAMMAR.fullmatch(value)
    exact = value.partition(b"filename*=UTF-8''")[2] or value.partition(b'filename="')[2].rstrip(b'"')
    if name:
        assert unquote_to_bytes(exact).decode() == re.sub(
            "[\x00-\x1f\x7f-\x9f/\\\\\u200e\u200f\u2028-\u202e\u2066-\u2069]", "_", name
        )


def test_a_name_longer_than_file_systems_take_is_refused() -> None:
    assert attachment("\u20ac" * (MAX_NAME_BYTES // 3))
    with pytest.raises(InvalidRequestError, match="255"):
        attachment("\u20ac" * (MAX_NAME_BYTES // 3 + 1))


async def test_on_a_file(storage: RecordingStorage) -> None:
    await make_store(storage, {"a/b": b"content"})
    async with running(storage) as server:
        for target in (f"/files/a/b?{AT}", f"/files?uid=a/b&{AT}"):
            assert "content-disposition" not in (await server.ask(target)).headers
            name = quote("a\r\nX-Injected: 1\u20ac.txt")
            asked = f"{target}&download={name}"
            for method, fields, status in (("GET", (), 200), ("HEAD", (), 200), ("GET", ("Range: bytes=1-2",), 206)):
                reply = await server.ask(asked, *fields, method=method)
                assert reply.status == status
                assert reply.headers["content-disposition"].startswith('attachment; filename="a__X-Injected: 1_.txt";')
                assert "x-injected" not in reply.headers
            etag = (await server.ask(target)).headers["etag"]
            assert "content-disposition" not in (await server.ask(asked, f"If-None-Match: {etag}")).headers
            assert (await server.ask(f"{target}&download=")).headers["content-disposition"] == "attachment"
            for bad in ("%FF", "x" * 256, "a&download=b", "%zz"):
                assert (await server.ask(f"{target}&download={bad}")).status == 400
