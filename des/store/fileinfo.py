"""What the store says of a file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from des.routing import rfc3339

if TYPE_CHECKING:
    from datetime import datetime

    from des.errors import DESError


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A stored file.

    Attributes:
        uid: the caller's name for it.
        created_at: UTC. To the second of the day when it comes from the index alone, exact from a listing.
        raw_size: bytes of the content.
        stored_size: bytes it takes in its segment.
        codec: `none`, `zstd`, `lz4` or `zstd-dict`.
        content_type: media type from the manifest, else guessed from the names, else `application/octet-stream`.
        metadata: the user's JSON object, None where it was not asked for.
        etag: strong entity tag of the content, with its quotes (RFC 9110 section 8.8.3).
        content_hash: SHA-256 of the content, first 16 bytes, hex.
        shard: object key of the shard's head.
        segment: object key of the segment.
        offset: where the stored bytes begin in the segment.
    """

    uid: str
    created_at: datetime
    raw_size: int
    stored_size: int
    codec: str
    content_type: str
    metadata: dict[str, Any] | None
    etag: str
    content_hash: str
    shard: str
    segment: str
    offset: int


def file_json(info: FileInfo) -> dict[str, Any]:
    """Return the fields of a `FileInfo` as JSON has them."""
    values = {field.name: getattr(info, field.name) for field in fields(info)}
    return values | {"created_at": rfc3339(info.created_at)}


@dataclass(frozen=True, slots=True)
class GetResult:
    """One answer of `get_many`: either `data` or `error` is set. `created_at` is what the caller passed, in UTC."""

    uid: str
    created_at: datetime
    data: bytes | None
    error: DESError | None
