"""Which file a request names. Pure.

Two spellings: `/files/{uid}?created_at=…` and `/files?uid=…&created_at=…`, the one that survives proxies which rewrite paths.
`/files?date=…` without a uid is no file but the listing of a day.

- The uid is the rest of the *raw* path, percent-decoded once, as strict UTF-8: `%2F` and `/` are the same slash, and `//`,
  a slash at either end and `..` are kept. A server's decoded `path` will not do: it maps bad UTF-8 to U+FFFD, so that
  different uids collide.
- In the query a `+` is a space, as forms write it; in `created_at` a space before the offset was a `+` that somebody forgot
  to escape.
- A parameter that is missing or given twice is an error; unknown ones are ignored.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from des.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_COLLECTION = b"files"
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE_FORM = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_LOST_PLUS = re.compile(r"(\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(?:\.\d+)?) (\d{2}:\d{2})", re.ASCII)
_PATH_SAFE = "/:@!$&'()*+,;=~"  # pchar, RFC 3986 section 3.3


class FileAddress(NamedTuple):
    """The file a request names; all parts as the client wrote them, decoded but not yet checked.

    Attributes:
        uid: its name.
        created_at: a time of its day.
        download: the name under which it is to be saved; None where it is not asked for.
    """

    uid: str
    created_at: str
    download: str | None = None


def raw_path(scope: Mapping[str, Any]) -> bytes:
    """Return the request's path as it was sent, below the application's root, beginning with a slash.

    The absolute form of a request target (RFC 9112 section 3.2.2) loses its scheme and host. A server that keeps no raw
    path has decoded it once: it is encoded again, so that decoding gives the same text.
    """
    path: bytes | None = scope.get("raw_path")
    if path is None:
        path = quote(scope["path"], safe=_PATH_SAFE, errors="surrogateescape").encode()
    if not path.startswith(b"/"):
        path = _ABSOLUTE_FORM.sub(b"", path, count=1) or b"/"
    root = scope.get("root_path")
    if root:
        prefix = quote(root, safe=_PATH_SAFE).encode().rstrip(b"/")
        if path.startswith(prefix + b"/"):
            return path[len(prefix) :]
    return path


def path_below_files(path: bytes) -> bytes | None:
    """Return what follows `/files/` in a raw path, b"" where nothing does, None where the path leads elsewhere."""
    if path.startswith(b"/files/"):
        return path[7:]
    if not path.startswith(b"/"):
        return None
    first, _, rest = path[1:].partition(b"/")
    # An escaped letter is the letter: RFC 3986 section 6.2.2.2.
    return rest if first == _COLLECTION or (b"%" in first and unquote_to_bytes(first) == _COLLECTION) else None


def parse_file_address(below_files: bytes, query: bytes) -> FileAddress:
    """Read the address of a file.

    Args:
        below_files: the raw path below `/files/`; empty in the query spelling.
        query: the raw query string.

    Raises:
        InvalidRequestError: the uid or created_at is missing, given twice, or not decodable.
    """
    given = {"uid": _decode(below_files, "uid")} if below_files else {}
    parse_parameters(query, ("uid", "created_at", "download"), given)
    if "uid" not in given:
        raise InvalidRequestError("the uid is missing; ask for /files/UID?created_at=… or /files?uid=UID&created_at=….")
    if "created_at" not in given:
        raise InvalidRequestError("created_at is missing; add ?created_at=2024-01-31T12:00:00Z, or a date.")
    created_at = given["created_at"]
    lost_plus = _LOST_PLUS.fullmatch(created_at) if " " in created_at else None
    if lost_plus:
        created_at = f"{lost_plus[1]}+{lost_plus[2]}"
    return FileAddress(given["uid"], created_at, given.get("download"))


def names_listing(query: bytes) -> bool:
    """Tell whether a query asks for a listing rather than a file: it has a date, and no uid."""
    names = {_parameter_name(field.partition(b"=")[0]) for field in query.split(b"&")}
    return "date" in names and "uid" not in names


def parse_parameters(query: bytes, names: Collection[str], given: dict[str, str]) -> dict[str, str]:
    """Read some parameters of a query.

    Args:
        query: the raw query string.
        names: which; others are ignored.
        given: those that are given in another way already; extended, and returned.

    Raises:
        InvalidRequestError: one is given twice, or not decodable.
    """
    for field in query.split(b"&"):
        raw_name, _, raw_value = field.partition(b"=")
        name = _parameter_name(raw_name)
        if name not in names:
            continue
        if name in given:
            raise InvalidRequestError(f"{name} is given more than once.")
        given[name] = _decode(raw_value.replace(b"+", b" "), name)
    return given


def _parameter_name(raw: bytes) -> str:
    return (unquote_to_bytes(raw) if b"%" in raw else raw).decode("latin-1")


def _decode(raw: bytes, what: str) -> str:
    if b"%" in raw:
        if _BROKEN_ESCAPE.search(raw):
            raise InvalidRequestError(f"the {what} has a % that is not followed by two hex digits; write a % as %25.")
        raw = unquote_to_bytes(raw)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the {what} is not UTF-8.") from error
