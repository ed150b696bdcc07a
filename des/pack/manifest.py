"""Rows of manifests: which files to pack, checked and routed.

A row is an object with `uid` (string or integer), `created_at` (RFC 3339 with zone, or a date), `source_path`, and optionally `size_bytes`,
`content_type` and `metadata`. Null means that a field is not given; further fields are ignored. A bad row fails alone.

Checking is the packer's innermost loop before anything is read: what repeats from row to row (dates, times of day, media types) is parsed
once and remembered, and what is remembered is bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from des.errors import InvalidRequestError
from des.routing import MAX_N_BITS, MAX_UID_BYTES, date_dir, normalize_uid, parse_created_at, shard_index_of
from des.shard.catalog import encode_metadata
from des.shard.layout import MAX_CONTENT_TYPE_BYTES, MAX_FILE_BYTES, from_microseconds, to_microseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.pack.partition import Partition
    from des.storage.descriptor import Descriptor

# RFC 9110 section 8.3.1: type "/" subtype, then parameters, all printable ASCII.
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+([ \t]*;[\x20-\x7e]*)?")

# A row of any manifest takes no more than this, and a manifest is read in pieces of that.
MAX_ROW_BYTES = 4 << 20
READ_BYTES = 1 << 20

# Some rows that follow each other, raw: calling it parses them, in this process or another, so it is a partial of a function of a module.
Piece = Callable[[], list[object]]

# The form of nearly all times, which is then known to be possible: whole seconds of UTC.
_UTC_SECONDS = re.compile(r"T([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])Z")

_DAY_MICROSECONDS = 86_400 * 1_000_000
_EARLIEST = to_microseconds(datetime.min.replace(tzinfo=UTC))
_LATEST = to_microseconds(datetime.max.replace(tzinfo=UTC))
# So many values of a kind are remembered before all are forgotten: every second of a day fits.
_REMEMBERED = 100_000
# So many characters are within MAX_UID_BYTES whatever they are.
_SHORT_UID = MAX_UID_BYTES // 4
# What a bad row gives back of itself, so that it can be mended and packed again.
_KEPT_FIELDS = ("created_at", "size_bytes", "content_type", "metadata")

Key = TypeVar("Key")
Value = TypeVar("Value")


class ManifestRow(NamedTuple):
    """A checked and routed row: a tuple, because it goes into the plan as it is, millions of times.

    Attributes:
        number: of the row in the run, from 1.
        shard: its day as the number YYYYMMDD, times 2**16, and its shard's index.
        uid: the file's name.
        created_at: microseconds since 1970.
        source_path: where its content is.
        size_bytes: its size as the manifest says, or None.
        content_type: media type, or None.
        metadata: canonical JSON, b"" for none.
    """

    number: int
    shard: int
    uid: str
    created_at: int
    source_path: str
    size_bytes: int | None
    content_type: str | None
    metadata: bytes


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be packed, and why, in one sentence.

    Attributes:
        number: of the row in the run, from 1.
        uid: as far as it has one.
        source_path: the same.
        error: the sentence.
        fields: further ones as they stand in the manifest.
        is_routed: whether it has a shard; one without is the partition's that owns its number.
    """

    number: int
    uid: str | None
    source_path: str | None
    error: str
    fields: dict[str, object] = field(default_factory=dict)
    is_routed: bool = True


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """Stands for what cannot even be checked: a row that is no text of its format, a file that is none to be packed. It fails alone."""

    error: str
    uid: str | None = None
    source_path: str | None = None


TOO_LONG = UnreadableRow(f"the row is longer than {MAX_ROW_BYTES:,} bytes.")


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """Rows of a manifest that follow each other, sorted into good and bad; those whose shards are of other partitions are in neither."""

    good: list[ManifestRow]
    bad: list[BadRow]


_new_row = tuple.__new__


class RowChecker:
    """Checks and routes rows."""

    def __init__(
        self,
        descriptor: Descriptor,
        partition: Partition | None = None,
        located: Callable[[str], str] | None = None,
    ) -> None:
        """Set up.

        Args:
            descriptor: of the store, says how many bits route on a day.
            partition: the share of the shards to keep; None keeps all.
            located: returns the path to read for a `source_path`, or raises InvalidRequestError; None takes paths as they are.
        """
        self._descriptor = descriptor
        self._partition = partition
        self._located = located
        self._dates: dict[str, int] = {}
        self._times: dict[str, int] = {}
        self._days: dict[int, tuple[int, int]] = {}
        self._media_types: dict[str, None] = {}
        held = descriptor.index_range
        self._holds_all = (held.start, held.end) == (0, (1 << held.n_bits) - 1)

    def check_all(self, first: int, values: Sequence[object]) -> CheckedRows:
        """Check values that follow each other, of which the first is row number `first`.

        Raises:
            SettingsError: a row belongs to another zone than the store holds.
        """
        good: list[ManifestRow] = []
        bad: list[BadRow] = []
        number = first
        for value in values:
            try:
                row = self._checked(number, value)
            except InvalidRequestError as error:
                is_ours = self._is_ours(value)
                if is_ours is not False:
                    bad.append(replace(_bad_row(number, value, str(error)), is_routed=is_ours is not None))
            else:
                if row is not None:
                    good.append(row)
            number += 1
        return CheckedRows(good, bad)

    def _checked(self, number: int, value: object) -> ManifestRow | None:
        if type(value) is not dict:
            raise InvalidRequestError(_no_object(value))
        get = value.get
        uid, created_at, source, size = get("uid"), get("created_at"), get("source_path"), get("size_bytes")
        content_type, metadata = get("content_type"), get("metadata")
        if uid is None or created_at is None or source is None:
            name = "uid" if uid is None else "created_at" if created_at is None else "source_path"
            raise InvalidRequestError(f"the field {name} is missing.")
        # Printable text has neither control characters nor lone surrogates: most uids need no closer look.
        if type(uid) is not str or not 0 < len(uid) <= _SHORT_UID or not uid.isprintable():
            uid = normalize_uid(uid)
        instant = self._instant(created_at)
        day_number = instant // _DAY_MICROSECONDS
        day, n_bits = self._days.get(day_number) or self._learn_day(day_number)
        index = shard_index_of(uid, n_bits)
        if self._partition is not None and not self._partition.owns(day_number, index):
            return None
        if not self._holds_all:
            self._descriptor.check_owned(index, n_bits)
        if type(source) is not str or not source or "\0" in source or not (source.isascii() or _is_utf8(source)):
            raise InvalidRequestError("source_path is not a path.")
        if self._located is not None:
            source = self._located(source)
        if size is not None and (type(size) is not int or not 0 <= size <= MAX_FILE_BYTES):
            raise InvalidRequestError(f"size_bytes must be an integer from 0 to {MAX_FILE_BYTES}.")
        if content_type is not None:
            self._check_content_type(content_type)
        kept = b"" if metadata is None else encode_metadata(metadata)
        # What NamedTuple's own constructor does, at half its price.
        return _new_row(ManifestRow, (number, day + index, uid, instant, source, size, content_type, kept))

    def _is_ours(self, value: object) -> bool | None:
        """Tell whether a bad row is this partition's to report, by its shard; None: it has none."""
        if self._partition is None:
            return True
        fields = value if isinstance(value, dict) else {}
        try:
            uid = normalize_uid(fields.get("uid"))  # type: ignore[arg-type]  # which is what it checks
            day_number = self._instant(fields.get("created_at")) // _DAY_MICROSECONDS
        except InvalidRequestError:
            return None
        _, n_bits = self._days.get(day_number) or self._learn_day(day_number)
        return self._partition.owns(day_number, shard_index_of(uid, n_bits))

    # ---- times ----------------------------------------------------------------------------------------------------------

    def _instant(self, created_at: object) -> int:
        """Return a time as microseconds: date and time of day apart, each parsed once."""
        if type(created_at) is not str:
            return _parsed(created_at)
        day, time = created_at[:10], created_at[10:]  # "2024-01-31", "T12:00:00Z"
        try:
            instant = self._dates[day] + self._times[time]
        except KeyError:
            plain = _UTC_SECONDS.fullmatch(time)
            if plain is not None and day in self._dates:
                hours, minutes, seconds = plain.groups()
                instant = (int(hours) * 3600 + int(minutes) * 60 + int(seconds)) * 1_000_000
                _remember(self._times, time, instant)
                return self._dates[day] + instant
            instant = _parsed(created_at)
            midnight = self._dates.get(day)
            if midnight is None:
                midnight = _parsed(day)
                _remember(self._dates, day, midnight)
            _remember(self._times, time, instant - midnight)  # of the zone as well: it does not depend on the date
            return instant
        # With a zone, the first and the last day of the calendar may lead out of it.
        return instant if _EARLIEST <= instant <= _LATEST else _parsed(created_at)

    def _learn_day(self, number: int) -> tuple[int, int]:
        """Return what a day adds to the number of its shards, and its n_bits."""
        day = date_dir(from_microseconds(number * _DAY_MICROSECONDS))
        learnt = (int(day) << MAX_N_BITS, self._descriptor.n_bits_on(day))
        _remember(self._days, number, learnt)
        return learnt

    def _check_content_type(self, value: object) -> None:
        if type(value) is str and value in self._media_types:
            return
        if type(value) is not str or len(value) > MAX_CONTENT_TYPE_BYTES or not _MEDIA_TYPE.fullmatch(value):
            raise InvalidRequestError(f"content_type {str(value)[:64]!r} is no media type such as text/plain.")
        _remember(self._media_types, value, None)


def _remember(memory: dict[Key, Value], key: Key, value: Value) -> None:
    if len(memory) >= _REMEMBERED:
        memory.clear()
    memory[key] = value


def _parsed(value: object) -> int:
    if not isinstance(value, str | date):
        raise InvalidRequestError("created_at is not RFC 3339 text.")
    return to_microseconds(parse_created_at(value))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_object(value: object) -> str:
    if isinstance(value, UnreadableRow):
        return value.error
    return "the row is not an object with uid, created_at and source_path."


def _bad_row(number: int, value: object, error: str) -> BadRow:
    if isinstance(value, UnreadableRow):
        return BadRow(number, value.uid, value.source_path, error)
    if not isinstance(value, dict):
        return BadRow(number, None, None, error)
    uid, source = value.get("uid"), value.get("source_path")
    known_uid = uid if isinstance(uid, str) else str(uid) if _is_short_number(uid) else None
    return BadRow(number, known_uid, source if isinstance(source, str) else None, error, _kept_fields(value))


def _kept_fields(value: dict[str, Any]) -> dict[str, object]:
    """Return what can be written as JSON of the further fields of a row."""
    kept: dict[str, object] = {}
    for name in _KEPT_FIELDS:
        given = value.get(name)
        if given is None:
            continue
        if isinstance(given, date):
            given = given.isoformat()
        try:
            json.dumps(given, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            continue
        kept[name] = given
    return kept


def _is_short_number(value: object) -> bool:
    """Tell whether a value is an integer that is no longer than any uid."""
    return isinstance(value, int) and value.bit_length() < 4 * MAX_UID_BYTES
