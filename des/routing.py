"""(uid, created_at) → shard: the pure function that stands where others keep a database.

Rules:

- A file *is* (uid, UTC day of created_at). The time of day is metadata.
- `file_id` = SHA-256(uid as UTF-8)[:16]. SHA-256 because every language and every SQL engine has it, so a row's shard
  can be computed inside DuckDB, Spark, Postgres or BigQuery.
- `shard_index` = the first `n_bits` bits of the file_id, n_bits 1 to 16.
- `date_dir` = YYYYMMDD in UTC; `shard_hex` = the index in upper case hex, ceil(n_bits/4) digits;
  `object_key` = `{date_dir}/{shard_hex}.des` (the shard's head); its segments live under `{date_dir}/{shard_hex}/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import sha256

from des.errors import InvalidRequestError

MAX_UID_BYTES = 1024
MIN_N_BITS = 1
MAX_N_BITS = 16
FILE_ID_BYTES = 16

# RFC 3339 section 5.6: full-date or date-time. A space is allowed for the "T" by its note; a zone is asked for separately.
_RFC_3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}"
    r"(?:[Tt ](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)?)?",
    re.ASCII,
)
_FULL_DATE_LENGTH = len("2024-01-31")
_DATE_DIR = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})", re.ASCII)
_C0_CONTROLS = re.compile(r"[\x00-\x1f]")

CreatedAt = datetime | date | str
Uid = str | int


@dataclass(frozen=True, slots=True)
class ShardLocation:
    """Where a file lies.

    Attributes:
        uid: the uid as text.
        created_at: the instant, in UTC.
        date_dir: its UTC day, YYYYMMDD.
        shard_index: 0 to 2**n_bits - 1.
        shard_hex: the index in upper case hex, ceil(n_bits/4) digits.
        object_key: key of the shard's head object.
    """

    uid: str
    created_at: datetime
    date_dir: str
    shard_index: int
    shard_hex: str
    object_key: str


def locate_shard(uid: Uid, created_at: CreatedAt, n_bits: int = 8) -> ShardLocation:
    """Compute where a file lies. Pure: touches no store.

    Args:
        uid: 1 to 1024 bytes of UTF-8 without control characters; an int means its decimal string.
        created_at: aware datetime, date, or RFC 3339 text.
        n_bits: how many bits of the file_id select the shard, 1 to 16.

    Returns:
        The location.

    Raises:
        InvalidRequestError: the uid, the time or n_bits is not acceptable.
    """
    if not MIN_N_BITS <= n_bits <= MAX_N_BITS:
        msg = f"n_bits is {n_bits}, but must lie between {MIN_N_BITS} and {MAX_N_BITS}."
        raise InvalidRequestError(msg)
    name = normalize_uid(uid)
    instant = parse_created_at(created_at)
    day = date_dir(instant)
    index = shard_index(file_id(name), n_bits)
    digits = shard_hex(index, n_bits)
    return ShardLocation(name, instant, day, index, digits, head_key(day, digits))


def normalize_uid(uid: Uid) -> str:
    """Return the uid as text, checked.

    Raises:
        InvalidRequestError: it is empty, too long, not UTF-8, or has NUL or C0 control characters.
    """
    if isinstance(uid, bool) or not isinstance(uid, str | int):
        msg = f"a uid is a string or an integer, not {type(uid).__name__}."
        raise InvalidRequestError(msg)
    try:
        text = str(uid)
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        msg = "the uid has a lone surrogate and cannot be written as UTF-8."
        raise InvalidRequestError(msg) from error
    except ValueError as error:  # an int past sys.get_int_max_str_digits()
        msg = f"the uid is an integer of more digits than the {MAX_UID_BYTES} bytes a uid may have."
        raise InvalidRequestError(msg) from error
    if not 1 <= len(encoded) <= MAX_UID_BYTES:
        msg = f"the uid has {len(encoded)} bytes of UTF-8, but must have 1 to {MAX_UID_BYTES}."
        raise InvalidRequestError(msg)
    control = _C0_CONTROLS.search(text)
    if control:
        msg = f"the uid has the control character U+{ord(control.group()):04X} at position {control.start()}."
        raise InvalidRequestError(msg)
    return text


def parse_created_at(value: CreatedAt) -> datetime:
    """Return the instant in UTC.

    Args:
        value: aware datetime, date (its first instant in UTC), or RFC 3339 text (date-time with zone, or full-date).

    Raises:
        InvalidRequestError: no zone, an impossible date or time, or text that is neither.
    """
    try:
        return _instant(value)
    except (ValueError, OverflowError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        msg = f"created_at {str(value)[:64]!r} is not a possible date and time: {error}."
        raise InvalidRequestError(msg) from error


def _instant(value: object) -> datetime:
    if isinstance(value, datetime):
        return _aware(value, value.isoformat()).astimezone(UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, str):
        return _parse_text(value)
    msg = f"created_at is an aware datetime, a date or RFC 3339 text, not {type(value).__name__}."
    raise InvalidRequestError(msg)


def _aware(value: datetime, text: str) -> datetime:
    if value.utcoffset() is None:
        msg = f"created_at {text[:64]!r} has no time zone; add one, such as Z or +02:00."
        raise InvalidRequestError(msg)
    return value


def _parse_text(text: str) -> datetime:
    if not _RFC_3339.fullmatch(text):
        msg = f"created_at {text[:64]!r} is not RFC 3339; write 2024-01-31T12:00:00Z or 2024-01-31."
        raise InvalidRequestError(msg)
    instant = datetime.fromisoformat(text.upper())
    if len(text) == _FULL_DATE_LENGTH:
        return instant.replace(tzinfo=UTC)
    return _aware(instant, text).astimezone(UTC)


def is_day(text: str) -> bool:
    """Tell whether a text is a day as keys have it: YYYYMMDD."""
    try:
        return parse_day(text) == text
    except InvalidRequestError:
        return False


def parse_day(value: date | str) -> str:
    """Return a day as YYYYMMDD.

    Args:
        value: a date, or text as YYYYMMDD or YYYY-MM-DD.

    Raises:
        InvalidRequestError: it is neither, or no day of the calendar.
    """
    if isinstance(value, datetime):
        return date_dir(parse_created_at(value))
    if isinstance(value, date):
        return value.strftime("%Y%m%d").zfill(8)
    match = _DATE_DIR.fullmatch(value)
    try:
        if match:
            year, month, day = map(int, match.groups())
            date(year, month, day)
            return "".join(match.groups())
    except ValueError as error:
        msg = f"{value[:32]!r} is no day of the calendar: {error}."
        raise InvalidRequestError(msg) from error
    msg = f"{value[:32]!r} is not a day; write it as 20240131 or 2024-01-31."
    raise InvalidRequestError(msg)


def file_id(uid: str) -> bytes:
    """Return the 16-byte id of a uid: SHA-256 of its UTF-8 (FIPS 180-4), truncated."""
    return sha256(uid.encode()).digest()[:FILE_ID_BYTES]


def shard_index(identifier: bytes, n_bits: int) -> int:
    """Return the first `n_bits` bits of a file_id as a number."""
    return (identifier[0] << 8 | identifier[1]) >> (MAX_N_BITS - n_bits)


def shard_index_of(uid: str, n_bits: int) -> int:
    """Return `shard_index(file_id(uid), n_bits)` in one step, for whoever routes millions."""
    digest = sha256(uid.encode()).digest()
    return (digest[0] << 8 | digest[1]) >> (MAX_N_BITS - n_bits)


def shard_hex(index: int, n_bits: int) -> str:
    """Return a shard index as upper case hex of ceil(n_bits/4) digits."""
    return f"{index:0{-(-n_bits // 4)}X}"


def date_dir(instant: datetime) -> str:
    """Return the UTC day of an aware instant as YYYYMMDD."""
    utc = instant.astimezone(UTC)
    return f"{utc.year:04}{utc.month:02}{utc.day:02}"


def rfc3339(instant: datetime) -> str:
    """Return an instant in UTC as RFC 3339 text."""
    return instant.isoformat().replace("+00:00", "Z")


def head_key(day: str, digits: str) -> str:
    """Return the key of a shard's head object."""
    return f"{day}/{digits}.des"


def segment_prefix(day: str, digits: str) -> str:
    """Return the prefix under which a shard's segments lie."""
    return f"{day}/{digits}/"


def segment_key(day: str, digits: str, name: bytes) -> str:
    """Return the key of a segment, named by 16 random bytes."""
    return f"{day}/{digits}/{name.hex()}.des"
