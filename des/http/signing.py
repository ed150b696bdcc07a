"""Signed URLs: whoever holds one may get one file until it expires. Pure.

    /files/UID?created_at=…&expires=1767225600&key=ID&signature=…

1. `expires` is a time in whole seconds since 1970, `key` names the signing key, `signature` is the last parameter: base64url
   without padding of HMAC-SHA-256 (RFC 2104) under the key's secret.
2. Signed are, a line each: the scheme's name, the method class (`GET`, which covers HEAD), the raw path as it is sent, and the raw
   query before `&signature=`. So nothing in the URL can be changed, added, left out or put in another order.
3. A URL is good for reading, for one file, and while its key stands in the keys file.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from urllib.parse import quote

SCHEME = b"des-signed-url-1"
_SIGNATURE = b"&signature="
_SIGNED_QUERY = re.compile(
    rb"(?P<signed>(?:[^&]*&)*?expires=(?P<expires>[0-9]{1,12})&key=(?P<key>[A-Za-z0-9_-]{1,64}))"
    rb"&signature=(?P<signature>[A-Za-z0-9_-]{43})"
)


@dataclass(frozen=True, slots=True)
class SignedQuery:
    """What a signed query says of itself, not yet verified.

    Attributes:
        signed: the query before the signature.
        key_id: which key it says it was signed with.
        expires: seconds since 1970.
        signature: as it came.
    """

    signed: bytes
    key_id: str
    expires: int
    signature: bytes


def is_signed(query: bytes) -> bool:
    """Tell whether a raw query has a signature, be it good or bad."""
    return query.startswith(b"signature=") or _SIGNATURE in query


def parse_signed_query(query: bytes) -> SignedQuery | None:
    """Take a signed query apart; None where it is not written as `sign` writes it."""
    match = _SIGNED_QUERY.fullmatch(query)
    if match is None:
        return None
    return SignedQuery(match["signed"], match["key"].decode(), int(match["expires"]), match["signature"])


def verify(secret: bytes, path: bytes, query: SignedQuery) -> bool:
    """Tell whether a query was signed for this raw path with this secret; takes the same time for every wrong signature."""
    return hmac.compare_digest(_signature(secret, path, query.signed), query.signature)


def sign(secret: bytes, key_id: str, path: bytes, query: bytes, expires: int) -> bytes:
    """Return a raw query with its signature.

    Args:
        secret: of the signing key.
        key_id: its id.
        path: the raw path, as clients will send it.
        query: the raw query so far, without `expires`, `key` and `signature`.
        expires: seconds since 1970.
    """
    signed = b"&".join(filter(None, (query, b"expires=%d" % expires, b"key=" + key_id.encode())))
    return signed + _SIGNATURE + _signature(secret, path, signed)


def file_target(uid: str, created_at: str, download: str | None) -> tuple[bytes, bytes]:
    """Return the raw path and query that ask for a file; in the query spelling where clients or proxies would change the path."""
    query = b"created_at=" + quote(created_at, safe=":").encode()
    if {"", ".", ".."}.isdisjoint(uid.split("/")):
        path = b"/files/" + quote(uid, safe="/").encode()
    else:
        path = b"/files"
        query = b"uid=" + quote(uid, safe="/").encode() + b"&" + query
    if download is not None:
        query += b"&download=" + quote(download, safe="").encode()
    return path, query


def _signature(secret: bytes, path: bytes, signed: bytes) -> bytes:
    message = b"\n".join((SCHEME, b"GET", path, signed))
    return urlsafe_b64encode(hmac.digest(secret, message, hashlib.sha256)).rstrip(b"=")
