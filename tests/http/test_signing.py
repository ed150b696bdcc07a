from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode

import pytest

from des.http.signing import file_target, is_signed, parse_signed_query, sign, verify

SECRET = bytes(range(32))
PATH = b"/files/mail/a%20b"
QUERY = b"created_at=2024-01-31"
SIGNED = QUERY + b"&expires=1767225600&key=k1"


def test_a_signature_is_what_the_module_says() -> None:
    message = b"des-signed-url-1\nGET\n" + PATH + b"\n" + SIGNED
    expected = urlsafe_b64encode(hmac.new(SECRET, message, hashlib.sha256).digest()).decode().rstrip("=")
    query = sign(SECRET, "k1", PATH, QUERY, 1767225600)
    assert query == SIGNED + b"&signature=" + expected.encode()
    assert is_signed(query)
    parsed = parse_signed_query(query)
    assert parsed is not None
    assert (parsed.key_id, parsed.expires, parsed.signed) == ("k1", 1767225600, SIGNED)
    assert verify(SECRET, PATH, parsed)


def test_any_other_byte_is_another_signature() -> None:
    query = sign(SECRET, "k1", PATH, QUERY, 1767225600)
    parsed = parse_signed_query(query)
    assert parsed is not None
    assert not verify(SECRET[:-1] + b"\0", PATH, parsed)
    for position in range(len(PATH)):
        assert not verify(SECRET, PATH[:position] + b"~" + PATH[position + 1 :], parsed)
    for position in range(len(query)):
        changed = query[:position] + (b"0" if query[position : position + 1] != b"0" else b"1") + query[position + 1 :]
        other = parse_signed_query(changed)
        assert other is None or not verify(SECRET, PATH, other) or changed == query, changed


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"signature=",
        SIGNED,
        SIGNED + b"&signature=short",
        SIGNED + b"&signature=" + b"A" * 43 + b"&created_at=2024-02-01",
        b"created_at=2024-02-01&signature=" + b"A" * 43,
        SIGNED.replace(b"1767225600", b"-1") + b"&signature=" + b"A" * 43,
        SIGNED.replace(b"1767225600", b"9" * 13) + b"&signature=" + b"A" * 43,
        SIGNED.replace(b"k1", b"k%31") + b"&signature=" + b"A" * 43,
    ],
)
def test_what_is_not_written_as_it_is_signed(query: bytes) -> None:
    assert parse_signed_query(query) is None


@pytest.mark.parametrize(
    ("uid", "path", "query"),
    [
        ("a/b c", b"/files/a/b%20c", b"created_at=2024-01-31"),
        ("ü?", b"/files/%C3%BC%3F", b"created_at=2024-01-31"),
        ("a/../b", b"/files", b"uid=a/../b&created_at=2024-01-31"),
        ("/a", b"/files", b"uid=/a&created_at=2024-01-31"),
        ("a//b", b"/files", b"uid=a//b&created_at=2024-01-31"),
        (".", b"/files", b"uid=.&created_at=2024-01-31"),
    ],
)
def test_a_path_that_somebody_would_resolve_is_spelled_as_a_query(uid: str, path: bytes, query: bytes) -> None:
    assert file_target(uid, "2024-01-31", None) == (path, query)


def test_a_name_to_save_it_under() -> None:
    assert file_target("a", "2024-01-31T00:00:00+02:00", "b&c.pdf")[1] == (
        b"created_at=2024-01-31T00:00:00%2B02:00&download=b%26c.pdf"
    )
