"""`des.http.addressing`."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.errors import InvalidRequestError
from des.http.addressing import FileAddress, parse_file_address, path_below_files, raw_path

DAY = b"created_at=2024-01-31"


def scope(path: str, raw: bytes | None, root: str = "") -> dict[str, Any]:
    return {"path": path, "raw_path": raw, "root_path": root}


@pytest.mark.parametrize(
    ("path", "below"),
    [
        (b"/files", b""),
        (b"/files/", b""),
        (b"/files/a", b"a"),
        (b"/files//a", b"/a"),
        (b"/files/a/", b"a/"),
        (b"/files/a//b/../c", b"a//b/../c"),
        (b"/files/../secret", b"../secret"),
        (b"/files/%2Fa", b"%2Fa"),
        (b"/%66iles/a", b"a"),
        (b"/%66iles", b""),
        (b"/", None),
        (b"", None),
        (b"//files/a", None),
        (b"/Files/a", None),
        (b"/filesx", None),
        (b"/files%2Fa", None),
        (b"/x/files/a", None),
        (b"*", None),
        (b"xfiles/a", None),
        (b"files/a", None),
    ],
)
def test_what_lies_below_files(path: bytes, below: bytes | None) -> None:
    assert path_below_files(path) == below


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a%2Fb", "a/b"),
        (b"a/b", "a/b"),
        (b"//a//", "//a//"),
        (b"../a/..", "../a/.."),
        (b"a%20b", "a b"),
        (b"a+b", "a+b"),
        (b"100%25", "100%"),
        (b"%2525", "%25"),
        (b"a%3Fb%23c", "a?b#c"),
        (b"%F0%9F%98%80", "\N{GRINNING FACE}"),
        ("\N{GRINNING FACE}".encode(), "\N{GRINNING FACE}"),
        (b"12345", "12345"),
        (b"-a", "-a"),
        (b"a=b&c", "a=b&c"),
        (b"%EF%BF%BD", "\ufffd"),
    ],
)
def test_the_uid_is_the_raw_path_decoded_once(raw: bytes, expected: str) -> None:
    assert parse_file_address(raw, DAY) == FileAddress(expected, "2024-01-31")


@pytest.mark.parametrize(
    "raw", [b"%FF", b"%C0%AF", b"%ED%A0%80", b"%F0%9F%98", b"\xff", b"%", b"a%2", b"%zz", b"a%%20"]
)
def test_what_cannot_be_decoded_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="uid"):
        parse_file_address(raw, DAY)
    with pytest.raises(InvalidRequestError, match="uid"):
        parse_file_address(b"", b"uid=" + raw + b"&" + DAY)


@pytest.mark.parametrize(
    ("query", "uid"),
    [
        (b"uid=a/b&" + DAY, "a/b"),
        (DAY + b"&uid=a%2Fb", "a/b"),
        (b"uid=a+b&" + DAY, "a b"),
        (b"uid=a%2Bb&" + DAY, "a+b"),
        (b"uid=a%26b%3Dc&" + DAY, "a&b=c"),
        (b"uid=a=b&" + DAY, "a=b"),
        (b"%75id=a&" + DAY, "a"),
        (b"&&uid=a&&" + DAY + b"&utm_source=x&utm_source=y&junk", "a"),
        (b"uid=&" + DAY, ""),
    ],
)
def test_the_query_spelling(query: bytes, uid: str) -> None:
    assert parse_file_address(b"", query) == FileAddress(uid, "2024-01-31")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (b"", "uid is missing"),
        (b"uid=a", "created_at is missing"),
        (DAY, "uid is missing"),
        (b"uid=a&uid=a&" + DAY, "uid is given more than once"),
        (b"uid=a&" + DAY + b"&" + DAY, "created_at is given more than once"),
        (b"uid=a&created_at=%FF", "created_at is not UTF-8"),
        (b"UID=a&" + DAY, "uid is missing"),
    ],
)
def test_missing_and_doubled_parameters(query: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        parse_file_address(b"", query)


def test_a_uid_in_path_and_query_is_given_twice() -> None:
    with pytest.raises(InvalidRequestError, match="uid is given more than once"):
        parse_file_address(b"a", b"uid=a&" + DAY)


@pytest.mark.parametrize(
    ("value", "created_at"),
    [
        (b"2024-01-31T10:00:00+02:00", "2024-01-31T10:00:00+02:00"),
        (b"2024-01-31T10:00:00%2B02:00", "2024-01-31T10:00:00+02:00"),
        (b"2024-01-31T10:00:00%2b02%3a00", "2024-01-31T10:00:00+02:00"),
        (b"2024-01-31T10:00:00.5%2002:00", "2024-01-31T10:00:00.5+02:00"),
        (b"2024-01-31+10:00:00+02:00", "2024-01-31 10:00:00+02:00"),
        (b"2024-01-31T10:00:00-02:00", "2024-01-31T10:00:00-02:00"),
        (b"2024-01-31+10:00:00Z", "2024-01-31 10:00:00Z"),
        (b"2024-01-31+10:00", "2024-01-31 10:00"),
        (b"2024-01-31T10:00:00", "2024-01-31T10:00:00"),
        (b"", ""),
    ],
)
def test_a_plus_that_arrived_as_a_space_is_a_plus_again(value: bytes, created_at: str) -> None:
    assert parse_file_address(b"a", b"created_at=" + value).created_at == created_at


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
def test_every_text_survives_both_spellings(uid: str) -> None:
    escaped = quote(uid, safe="").encode()
    assert parse_file_address(escaped, DAY).uid == uid
    assert parse_file_address(b"", b"uid=" + escaped + b"&" + DAY).uid == uid


def test_the_raw_path_is_taken_as_it_is() -> None:
    assert raw_path(scope("/files/a/b", b"/files/a%2Fb")) == b"/files/a%2Fb"


@pytest.mark.parametrize("root", ["/api", "/api/"])
def test_the_root_path_is_cut_off(root: str) -> None:
    assert raw_path(scope("/api/files/a/b", b"/api/files/a%2Fb", root)) == b"/files/a%2Fb"
    assert raw_path(scope("/files/a", b"/files/a", root)) == b"/files/a"
    assert raw_path(scope("/apis/files", b"/apis/files", root)) == b"/apis/files"


@pytest.mark.parametrize(
    "path", ["/files/a b", "/files/100%", "/files/a?b#c", "/files/\N{GRINNING FACE}", "/files//a/../b/", "/files/%41"]
)
def test_a_decoded_path_is_encoded_again_where_there_is_no_raw_one(path: str) -> None:
    below = path_below_files(raw_path({"path": path}))
    assert below is not None
    assert parse_file_address(below, DAY).uid == path.removeprefix("/files/")


def test_bad_utf8_in_a_decoded_path_is_refused_and_not_replaced() -> None:
    below = path_below_files(raw_path(scope("/files/\udcff", None)))
    assert below == b"%FF"


@pytest.mark.parametrize(
    ("target", "expected"),
    [(b"http://host/files/a", b"/files/a"), (b"HTTPS://host:1/files//a", b"/files//a"), (b"http://host", b"/")],
)
def test_the_absolute_form_loses_scheme_and_host(target: bytes, expected: bytes) -> None:
    assert raw_path(scope("", target)) == expected
