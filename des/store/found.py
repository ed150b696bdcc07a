"""A file that was found: its entry, bound to the head it was read from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from des.shard.chunking import is_large
from des.shard.codecs import guess_content_type
from des.shard.layout import Codec
from des.store.fileinfo import FileInfo

if TYPE_CHECKING:
    from des.shard.layout import Entry, Identity
    from des.shard.tables import SegmentRef
    from des.store.heads import LoadedHead

DEFAULT_CONTENT_TYPE = "application/octet-stream"


class FoundFile(NamedTuple):
    """A file the index knows, and all that the index says of it without a further read. A named tuple for the reason of `Entry`.

    Attributes:
        uid: as the caller names it.
        loaded: the head it was found in.
        entry: its entry there.
    """

    uid: str
    loaded: LoadedHead
    entry: Entry

    @property
    def identity(self) -> Identity:
        """The shard."""
        return self.loaded.head.identity

    @property
    def segment(self) -> SegmentRef:
        """The segment that holds the payload."""
        return self.loaded.head.tables.segments[self.entry.segment]

    @property
    def segment_key(self) -> str:
        """Key of that segment."""
        return self.loaded.segment_key(self.entry.segment)

    @property
    def is_large(self) -> bool:
        """Whether the content is longer than 1 MiB: chunked, and better streamed than read whole."""
        return is_large(self.entry.raw_size)

    @property
    def committed_second(self) -> int | None:
        """When its segment joined the head, in seconds since 1970; None for a file that replaced another, whose date could mislead a cache."""
        return None if self.entry.replaced else self.segment.committed_at // 1_000_000

    @property
    def etag(self) -> str:
        """Strong entity tag of the content (RFC 9110 section 8.8.3)."""
        return f'"{self.entry.content_hash.hex()}"'

    @property
    def zstd_etag(self) -> str | None:
        """Entity tag of the stored bytes where they are one zstd frame that any client decodes, else None."""
        if self.entry.codec is not Codec.ZSTD or self.is_large:
            return None
        return f'"{self.entry.content_hash.hex()}-{self.entry.checksum:08x}-zstd"'

    @property
    def content_type(self) -> str:
        """Media type: the manifest's or the source's, else guessed from the uid, else octet-stream."""
        if self.entry.content_type:
            return self.loaded.head.tables.content_types[self.entry.content_type - 1]
        return guess_content_type(self.uid) or DEFAULT_CONTENT_TYPE

    @property
    def created_at(self) -> datetime:
        """When the file was created, in whole seconds of UTC."""
        date = self.identity.date
        midnight = datetime(int(date[:4]), int(date[4:6]), int(date[6:]), tzinfo=UTC)
        return midnight + timedelta(seconds=self.entry.second)

    @property
    def info(self) -> FileInfo:
        """All of it as the public value, without user metadata."""
        entry = self.entry
        return FileInfo(
            uid=self.uid,
            created_at=self.created_at,
            raw_size=entry.raw_size,
            stored_size=entry.stored_size,
            codec=entry.codec.wire_name,
            content_type=self.content_type,
            metadata=None,
            etag=self.etag,
            content_hash=entry.content_hash.hex(),
            shard=self.identity.head_key,
            segment=self.segment_key,
            offset=entry.offset,
        )
