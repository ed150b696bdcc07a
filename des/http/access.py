"""Access control: who may make which request. Off without a keys file (see `keys`).

Rules:

1. Deny by default: every request needs an API key (`Authorization: Bearer ID.SECRET`, RFC 6750) or a signed URL (see `signing`); only
   the probes and `/metrics` are open, and those not at all where they have a port of their own.
2. The decision is made before routing and before anything is read. No credentials, or an API key that is unknown, wrong or expired:
   401. A known key that may not do this, and a signed URL that is altered, expired or of an unknown key: 403. Past its rate: 429.
3. What a request does follows from its raw path and query, as routing takes them: one file is `read`, files of a day and shards are
   `list`, `/batch` is `batch`, `/openapi.json` needs any good key. `DELETE` of a file is `delete`, which no key has unless its line says so. Any other path, and any
   other method on a file, is for keys that may read everything.
4. Prefixes hold for the uid as it is decoded for reading, so `%2F` gains nothing. A uid with a `.` or `..` segment is refused to a key with
   prefixes, since somebody on the way may resolve it to another path; a uid that is not UTF-8 is refused to everybody (400).
   A key with prefixes can neither list nor batch: both reach past a prefix.
5. Digests and signatures are compared in constant time, also for ids that do not exist.
6. One line a decision goes to the log `des.http.audit`: allowed at level info, refused as a warning. No secret, nor anything that
   might be one: an id is named only once the key has proven it.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import anyio
import anyio.to_thread

from des.errors import InvalidRequestError
from des.http.addressing import parse_file_address, path_below_files, raw_path
from des.http.keys import Key, digest_of
from des.http.problems import Problem, RefusedError
from des.http.signing import is_signed, parse_signed_query, verify
from des.tasks import open_tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import Scope

    from des.http.keys import KeysFile

RELOAD_SECONDS: Final = 1.0
OPEN_PATHS: Final = ("/health", "/ready", "/metrics")

_audit_log = logging.getLogger("des.http.audit")
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]{43})")
_READING = ("GET", "HEAD")
_CHALLENGE = (b"www-authenticate", b'Bearer realm="des"')
_BAD_TOKEN = (b"www-authenticate", b'Bearer realm="des", error="invalid_token"')
_DUMMY = Key("", bytes(32), bytes(32), frozenset(), (), 0.0, None)
_NO_KEY = "This service needs an API key, as Authorization: Bearer …, or a signed URL."
_WRONG_KEY = "The API key is unknown, wrong or expired."
_BAD_URL = "The signed URL was altered, has expired, or its key is no longer good."
_NOT_ALLOWED = "The key does not allow this."
_TOO_FAST = "The key makes more requests than its rate allows; try again shortly."


@dataclass(frozen=True, slots=True)
class Deed:
    """What a request is about to do.

    Attributes:
        action: `read`, `list`, `batch`, `delete`; `any` needs any good key, `other` one that may read everything.
        uid: the file of a `read` or `delete`.
    """

    action: str
    uid: str | None = None


class AccessControl:
    """Decides for one worker."""

    def __init__(self, keys: KeysFile, *, open_paths: tuple[str, ...]) -> None:
        """Decide by the keys that hold at the time.

        Args:
            keys: the keys file, loaded.
            open_paths: paths that need no key.
        """
        self._keys, self._open_paths = keys, open_paths
        self._buckets: dict[str, _Bucket] = {}

    def decide(self, scope: Scope, fields: Mapping[bytes, bytes], request_id: str) -> None:
        """Let a request pass, or refuse it.

        Raises:
            RefusedError: 401, 403 or 429.
            InvalidRequestError: the address of the file cannot be read.
        """
        path = raw_path(scope)
        below_files = path_below_files(path)
        if below_files is None and unquote(path.decode("latin-1")) in self._open_paths:
            return
        audit = _Audit(scope, request_id)
        try:
            key = self._authenticated(scope, fields, path, below_files)
            audit.key_id = key.key_id
            deed = audit.deed = _deed_of(scope, path, below_files)
            if not _allows(key, deed):
                raise _refusal(HTTPStatus.FORBIDDEN, _NOT_ALLOWED)
            self._spend(key)
        except (RefusedError, InvalidRequestError) as error:
            audit.write(error)
            raise
        audit.write(None)

    def _authenticated(
        self, scope: Scope, fields: Mapping[bytes, bytes], path: bytes, below_files: bytes | None
    ) -> Key:
        now = time.time()
        authorization = fields.get(b"authorization")
        query: bytes = scope["query_string"]
        if authorization is not None:
            return self._bearer(authorization, now)
        if below_files is not None and is_signed(query):
            return self._signer(scope["method"], path, query, now)
        raise _refusal(HTTPStatus.UNAUTHORIZED, _NO_KEY, _CHALLENGE)

    def _bearer(self, authorization: bytes, now: float) -> Key:
        match = _BEARER.fullmatch(authorization)
        key_id, secret = (match[1].decode(), match[2].decode()) if match else ("", "")
        key = self._keys.keyring.api_keys.get(key_id, _DUMMY)
        is_right = hmac.compare_digest(digest_of(f"{key_id}.{secret}"), key.digest)
        if not is_right or key.is_expired(now):
            raise _refusal(HTTPStatus.UNAUTHORIZED, _WRONG_KEY, _BAD_TOKEN)
        return key

    def _signer(self, method: str, path: bytes, query: bytes, now: float) -> Key:
        signed = parse_signed_query(query)
        if signed is None or method not in _READING:
            raise _refusal(HTTPStatus.FORBIDDEN, _BAD_URL)
        key = self._keys.keyring.signing_keys.get(signed.key_id, _DUMMY)
        is_right = verify(key.signing_secret, path, signed)
        if not is_right or key is _DUMMY or now >= signed.expires or key.is_expired(now):
            raise _refusal(HTTPStatus.FORBIDDEN, _BAD_URL)
        return key

    def _spend(self, key: Key) -> None:
        if key.rate is None:
            return
        bucket = self._buckets.get(key.key_id)
        if bucket is None or bucket.rate != key.rate:
            bucket = self._buckets[key.key_id] = _Bucket(key.rate)
        if not bucket.take():
            raise _refusal(HTTPStatus.TOO_MANY_REQUESTS, _TOO_FAST, (b"retry-after", b"1"))


@asynccontextmanager
async def kept_fresh(keys: KeysFile | None) -> AsyncIterator[None]:
    """Load the keys, and read them again as their file changes, until the context ends.

    Raises:
        SettingsError: the file cannot be read or understood at the start.
    """
    if keys is None:
        yield
        return
    await anyio.to_thread.run_sync(keys.load)

    async def reload() -> None:
        while True:
            await anyio.sleep(RELOAD_SECONDS)
            await anyio.to_thread.run_sync(keys.reload)

    async with open_tasks() as tasks:
        tasks.start_soon(reload)
        yield


class _Bucket:
    """Lets `rate` requests a second pass, and as many at once after a pause; at least one."""

    __slots__ = ("_filled_at", "_level", "_size", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._size = max(rate, 1.0)
        self._level = self._size
        self._filled_at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._level = min(self._size, self._level + (now - self._filled_at) * self.rate)
        self._filled_at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class _Audit:
    """What a decision was about, gathered as it becomes known."""

    __slots__ = ("_request_id", "_scope", "deed", "key_id")

    def __init__(self, scope: Scope, request_id: str) -> None:
        self._scope, self._request_id = scope, request_id
        self.key_id: str | None = None
        self.deed: Deed | None = None

    def write(self, error: RefusedError | InvalidRequestError | None) -> None:
        level = logging.INFO if error is None else logging.WARNING
        if not _audit_log.isEnabledFor(level):
            return
        client = self._scope.get("client")
        refused = None if error is None else error.problem.status if isinstance(error, RefusedError) else 400
        entry = {
            "request_id": self._request_id,
            "client": client[0] if client else None,
            "key": self.key_id,
            "method": self._scope["method"],
            "action": self.deed.action if self.deed else None,
            "uid": self.deed.uid if self.deed else None,
            "decision": "allowed" if refused is None else "refused",
        }
        if error is not None:
            entry |= {"status": refused, "reason": str(error)}
        _audit_log.log(level, "%s", entry, extra={"fields": entry})


def _deed_of(scope: Scope, path: bytes, below_files: bytes | None) -> Deed:
    """Tell what a request does.

    Raises:
        InvalidRequestError: the address of the file cannot be read.
    """
    method = scope["method"]
    if method in _READING and below_files is not None:
        return _deed_on_files(below_files, scope["query_string"])
    if method == "DELETE" and below_files is not None:
        return Deed("delete", parse_file_address(below_files, scope["query_string"]).uid)
    decoded = unquote(path.decode("latin-1"))
    if method in _READING and decoded.startswith("/shards/"):
        return Deed("list")
    if method in _READING and decoded == "/openapi.json":
        return Deed("any")
    if method == "POST" and decoded == "/batch":
        return Deed("batch")
    return Deed("other")


def _deed_on_files(below_files: bytes, query: bytes) -> Deed:
    if below_files:
        return Deed("read", parse_file_address(below_files, query).uid)
    names = _parameter_names(query)
    if "uid" not in names:
        return Deed("list")
    if "date" in names:  # a file and a day at once are neither
        return Deed("other")
    return Deed("read", parse_file_address(below_files, query).uid)


def _parameter_names(query: bytes) -> frozenset[str]:
    return frozenset(unquote(field.partition(b"=")[0].decode("latin-1")) for field in query.split(b"&"))


def _allows(key: Key, deed: Deed) -> bool:
    if deed.action == "any" or (key.is_unlimited and deed.action != "delete"):
        return True
    if deed.action not in key.actions:
        return False
    if key.prefixes is None:
        return True
    uid = deed.uid
    return uid is not None and uid.startswith(key.prefixes) and {".", ".."}.isdisjoint(uid.split("/"))


def _refusal(status: HTTPStatus, detail: str, *headers: tuple[bytes, bytes]) -> RefusedError:
    return RefusedError(Problem(status, detail, headers))
