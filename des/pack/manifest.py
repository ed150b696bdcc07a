"""Manifests: which files to pack, one row each, streamed and checked.

A row is an object with `uid` (string or integer), `created_at` (RFC 3339 with zone, or a date), `source_path`, and optionally `size_bytes`,
`content_type` and `metadata`. Further fields are ignored. A bad row fails alone; a manifest that cannot be parsed to its end fails as a whole,
before anything is written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import ijson

from des.errors import InvalidRequestError, ManifestError
from des.routing import MAX_UID_BYTES, normalize_uid, parse_created_at
from des.shard.catalog import encode_metadata
from des.shard.layout import MAX_CONTENT_TYPE_BYTES, MAX_FILE_BYTES, to_microseconds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

# RFC 9110 section 8.3.1: type "/" subtype, then parameters, all printable ASCII.
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+(\s*;[\x20-\x7e]*)?")


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """A checked row.

    Attributes:
        number: of the row in the manifest, from 1.
        uid: the file's name.
        created_at: in UTC.
        source_path: where its content is.
        size_bytes: its size as the manifest says, or None.
        content_type: media type, or None.
        metadata: canonical JSON, b"" for none.
    """

    number: int
    uid: str
    created_at: datetime
    source_path: str
    size_bytes: int | None
    content_type: str | None
    metadata: bytes

    @property
    def created_at_microseconds(self) -> int:
        """The time as containers keep it."""
        return to_microseconds(self.created_at)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be packed, and why, in one sentence."""

    number: int
    uid: str | None
    source_path: str | None
    error: str


def read_manifest(path: Path, first: int = 1) -> Iterator[ManifestRow | BadRow]:
    """Read a JSON manifest row by row; `first` is the number of its first row.

    Raises:
        ManifestError: it cannot be opened, or is not one JSON array to its very end.
    """
    try:
        with path.open("rb") as file:
            yield from _read_json(file, str(path), first)
    except OSError as error:
        raise ManifestError(f"the manifest {path} cannot be read: {error.strerror or error}.") from error


def _read_json(file: BinaryIO, name: str, first_number: int) -> Iterator[ManifestRow | BadRow]:
    try:
        events = ijson.basic_parse(file)
        first = next(events, None)
        if first is None or first[0] != "start_array":
            raise ManifestError(f"the manifest {name} is not a JSON array of rows.")
        file.seek(0)
        for number, value in enumerate(ijson.items(file, "item"), start=first_number):
            yield check_row(number, value)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise ManifestError(f"the manifest {name} is not valid JSON: {str(error).splitlines()[0]}.") from error


def check_row(number: int, value: object) -> ManifestRow | BadRow:
    """Check one row."""
    if not isinstance(value, dict):
        return BadRow(number, None, None, "the row is not an object with uid, created_at and source_path.")
    uid, source = value.get("uid"), value.get("source_path")
    try:
        return _checked(number, value)
    except InvalidRequestError as error:
        known_uid = uid if isinstance(uid, str) else str(uid) if _is_short_number(uid) else None
        return BadRow(number, known_uid, source if isinstance(source, str) else None, str(error))


def _checked(number: int, value: dict[str, Any]) -> ManifestRow:
    for name in ("uid", "created_at", "source_path"):
        if value.get(name) is None:
            raise InvalidRequestError(f"the field {name} is missing.")
    source, size, content_type = value["source_path"], value.get("size_bytes"), value.get("content_type")
    if not isinstance(source, str) or not source or "\0" in source:
        raise InvalidRequestError("source_path is not a path.")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES):
        raise InvalidRequestError(f"size_bytes must be an integer from 0 to {MAX_FILE_BYTES}.")
    if not isinstance(value["created_at"], str):
        raise InvalidRequestError("created_at is not RFC 3339 text.")
    if content_type is not None and not _is_media_type(content_type):
        raise InvalidRequestError(f"content_type {str(content_type)[:64]!r} is no media type such as text/plain.")
    return ManifestRow(
        number=number,
        uid=normalize_uid(value["uid"]),
        created_at=parse_created_at(value["created_at"]),
        source_path=source,
        size_bytes=size,
        content_type=content_type,
        metadata=encode_metadata(value.get("metadata")),
    )


def _is_short_number(value: object) -> bool:
    """Tell whether a value is an integer that is no longer than any uid."""
    return isinstance(value, int) and value.bit_length() < 4 * MAX_UID_BYTES


def _is_media_type(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_CONTENT_TYPE_BYTES and _MEDIA_TYPE.fullmatch(value) is not None
