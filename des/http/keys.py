"""The keys file (`DES_HTTP_API_KEYS_FILE`): who may do what. One JSON object a line; empty lines and lines that begin with `#` are ignored.

    {"id": "mailer", "sha256": "<64 hex>", "actions": ["read", "batch"], "prefixes": ["mail/"], "expires": "2027-01-01", "rate": 50}
    {"id": "web", "signing_secret": "<43 base64url>", "prefixes": ["public/"]}

1. An *API key* is the secret `ID.SECRET`, of which the file has the SHA-256 only: with 256 random bits there is nothing to guess,
   so that a slow hash would add nothing. `des keys new` makes both.
2. A *signing key* signs and verifies URLs (see `signing`), so the file has its secret: keep the file from others' eyes; one that everybody may read is warned about.
3. `actions`: `read` (a file), `list` (files of a day, shards), `batch`, `delete` (a file). `prefixes`: what the decoded uid must begin with; absent: any.
   `expires`: RFC 3339 time or date; absent: never. `rate`: requests a second, in each worker; absent: any.
4. Ids are unique, so a key is replaced by adding its successor, moving the clients over, and deleting its line.
5. The file is read again when it changes. One that cannot be read or understood changes nothing: the keys stay as they were, and the
   log says why, once a change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import stat
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from des.errors import InvalidRequestError, SettingsError
from des.routing import parse_created_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

READING: Final = ("read", "list", "batch")
ACTIONS: Final = (*READING, "delete")
SECRET_BYTES: Final = 32

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_COMMON = frozenset({"id", "prefixes", "expires"})
_FIELDS = {"sha256": _COMMON | {"sha256", "actions", "rate"}, "signing_secret": _COMMON | {"signing_secret"}}
MAX_KEYS_FILE_BYTES = 16 << 20
_MAX_RATE = 1e9
_NO_EXPIRY = "its expires must be a date, or a time with its zone."

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """A line of the file.

    Attributes:
        key_id: its id.
        digest: SHA-256 of an API key; empty for a signing key.
        signing_secret: of a signing key; empty for an API key.
        actions: what it is good for.
        prefixes: what a uid must begin with; None: any uid.
        expires: seconds since 1970, None: never.
        rate: requests a second in a worker, None: any.
    """

    key_id: str
    digest: bytes
    signing_secret: bytes
    actions: frozenset[str]
    prefixes: tuple[str, ...] | None
    expires: float | None
    rate: float | None

    @property
    def is_unlimited(self) -> bool:
        """Whether it may read everything there is."""
        return self.prefixes is None and self.actions.issuperset(READING)

    def is_expired(self, now: float) -> bool:
        """Tell whether it is good no more."""
        return self.expires is not None and now >= self.expires


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of a file, by id."""

    api_keys: Mapping[str, Key]
    signing_keys: Mapping[str, Key]

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Read the lines of a file.

        Raises:
            SettingsError: a line is not understood; the sentence names it, and no secret.
        """
        api_keys: dict[str, Key] = {}
        signing_keys: dict[str, Key] = {}
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            try:
                key = _parse_key(json.loads(line))
            except (ValueError, RecursionError) as error:
                reason = "it is no JSON." if isinstance(error, json.JSONDecodeError | RecursionError) else error
                raise SettingsError(f"line {number} of the keys file is not understood: {reason}") from error
            if key.key_id in api_keys or key.key_id in signing_keys:
                raise SettingsError(f"line {number} of the keys file repeats the id {key.key_id!r}.")
            (signing_keys if key.signing_secret else api_keys)[key.key_id] = key
        return cls(api_keys, signing_keys)

    def newest_signing_key(self, now: float) -> Key | None:
        """Return the last signing key of the file that is good."""
        good = [key for key in self.signing_keys.values() if not key.is_expired(now)]
        return good[-1] if good else None


class KeysFile:
    """The keys file, and what it last said.

    Attributes:
        keyring: the keys that hold.
    """

    def __init__(self, path: Path) -> None:
        """Read nothing yet: no key is good."""
        self.keyring = Keyring({}, {})
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def load(self) -> None:
        """Read the file. Blocks.

        Raises:
            SettingsError: it cannot be read or understood.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                data = file.read(MAX_KEYS_FILE_BYTES + 1)
        except OSError as error:
            raise SettingsError(f"the keys file {self._path} cannot be read: {error.strerror}.") from error
        if len(data) > MAX_KEYS_FILE_BYTES:
            raise SettingsError(f"the keys file {self._path} is longer than {MAX_KEYS_FILE_BYTES} bytes.")
        try:
            self.keyring = Keyring.parse(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise SettingsError(f"the keys file {self._path} is not UTF-8.") from error
        if self.keyring.signing_keys and status.st_mode & stat.S_IROTH:
            _log.warning("the keys file %s has secrets, and may be read by everybody: chmod o-r.", self._path)
        self._seen = _signature_of(status)

    def reload(self) -> None:
        """Read the file if it changed; keep the keys where it cannot be read or understood, and say so. Blocks."""
        now: tuple[int, int, int] | None
        try:
            now = _signature_of(self._path.stat())
        except OSError:
            now = None
        if now == self._seen:
            return
        try:
            self.load()
        except SettingsError as error:
            self._seen = now
            _log.error("%s The keys stay as they were.", error)
        else:
            _log.warning("the keys file changed: %d keys.", _count(self.keyring))


def new_api_key(key_id: str, limits: Mapping[str, object]) -> tuple[str, str]:
    """Return a new API key as its holder presents it, and its line for the file.

    Args:
        key_id: its id.
        limits: `actions`, `prefixes`, `expires`, `rate`, as in the file.

    Raises:
        SettingsError: the file could not have such a line.
    """
    token = f"{key_id}.{secrets.token_urlsafe(SECRET_BYTES)}"
    return token, _line({"id": key_id, "sha256": digest_of(token).hex(), **limits})


def new_signing_key(key_id: str, limits: Mapping[str, object]) -> str:
    """Return the line of a new signing key; arguments and errors as for `new_api_key`."""
    return _line({"id": key_id, "signing_secret": secrets.token_urlsafe(SECRET_BYTES), **limits})


def digest_of(token: str) -> bytes:
    """Return what the file has of an API key."""
    return hashlib.sha256(token.encode()).digest()


def _line(fields: Mapping[str, object]) -> str:
    line = json.dumps(fields, ensure_ascii=False)
    try:
        _parse_key(json.loads(line))
    except ValueError as error:
        raise SettingsError(f"there can be no such key: {error}") from error
    return line


def _parse_key(fields: Any) -> Key:  # noqa: ANN401 - whatever JSON has
    if not isinstance(fields, dict):
        raise ValueError("it is no object.")  # noqa: TRY004 - of the value, not of a type in a program
    kinds = [name for name in _FIELDS if name in fields]
    if len(kinds) != 1:
        raise ValueError("it needs either sha256 or signing_secret.")
    unknown = sorted(fields.keys() - _FIELDS[kinds[0]])
    if unknown:
        raise ValueError(f"it has the unknown field {unknown[0]!r}.")
    key_id = fields.get("id")
    if not isinstance(key_id, str) or not _ID.fullmatch(key_id):
        raise ValueError("its id must be 1 to 64 letters, digits, - or _.")
    is_api_key = kinds[0] == "sha256"
    value = fields[kinds[0]]
    if not isinstance(value, str) or not (_HASH if is_api_key else _SECRET).fullmatch(value):
        raise ValueError(
            f"its {kinds[0]} must be {'64 hex digits in lower case' if is_api_key else '43 characters of base64url'}."
        )
    actions = _texts(fields, "actions") if is_api_key else ("read",)
    if not actions or not set(actions) <= set(ACTIONS):
        raise ValueError(f"its actions must be some of {', '.join(ACTIONS)}.")
    rate = fields.get("rate")
    if rate is not None and (not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < _MAX_RATE):
        raise ValueError("its rate must be a number of requests a second.")
    return Key(
        key_id=key_id,
        digest=bytes.fromhex(value) if is_api_key else b"",
        signing_secret=b"" if is_api_key else urlsafe_b64decode(value + "="),
        actions=frozenset(actions),
        prefixes=_texts(fields, "prefixes") if "prefixes" in fields else None,
        expires=_expiry(fields.get("expires")),
        rate=rate,
    )


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = fields.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise ValueError(f"its {name} must be a list of texts.")
    return tuple(values)


def _expiry(value: object) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return parse_created_at(value).timestamp()
    except InvalidRequestError as error:
        raise ValueError(_NO_EXPIRY) from error
    raise ValueError(_NO_EXPIRY)


def _signature_of(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _count(keyring: Keyring) -> int:
    groups: Iterable[Mapping[str, Key]] = (keyring.api_keys, keyring.signing_keys)
    return sum(map(len, groups))
