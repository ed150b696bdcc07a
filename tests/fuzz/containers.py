"""The targets that read one whole head or one whole segment."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from des.errors import ConflictError, CorruptShardError, UnsupportedFormatError
from des.shard.catalog import decode_chunk
from des.shard.chunking import is_large
from des.shard.layout import ENTRY_BYTES, decode_entry
from des.shard.tables import History
from des.store.checking import CatalogCheck, Sampling, check_head
from des.store.heads import whole_head
from tests.fuzz.parts import check
from tests.fuzz.shards import SHARD
from tests.shard.samples import (
    check_segment_fully,
    lookup,
    open_head,
    open_segment,
    read_payload,
    read_rows,
    read_tail,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from des.shard.reading import Segment

Result = TypeVar("Result")


def attempt(read: Callable[[], Result]) -> Result | None:
    """Return what reading yields, None where the container is refused."""
    try:
        return read()
    except CorruptShardError:
        return None


def read_head(data: bytes) -> None:
    """Read a head in every way there is, and look every key of its pages up."""
    whole = attempt(lambda: whole_head(SHARD, data, "", for_writing=False))
    head = attempt(lambda: open_head(data, SHARD))
    if head is None:
        check(whole is None, "a head that cannot be opened, but checked")
        return
    attempt(head.check_structure)
    attempt(lambda: History.of(head.tail.tables))
    with contextlib.suppress(ConflictError):
        attempt(head.check_writable)
    keys = {bytes(16), b"\xff" * 16, *(ref.first_key for ref in head.directory.refs())}
    for ref in head.directory.refs():
        page = data[ref.offset : ref.end]
        keys |= {page[at : at + 16] for at in range(0, min(len(page), 16 * ENTRY_BYTES), ENTRY_BYTES)}
    for key in keys:
        entry = attempt(lambda key=key: lookup(head, data, key.ljust(16, b"\0")))  # type: ignore[misc]  # called at once
        check(entry is None or entry.file_id == key.ljust(16, b"\0"), "the entry of another file")
    flaws = None if whole is None else attempt(lambda: check_head(whole))
    if whole is not None and flaws == []:
        for at in range(0, len(whole.entries), ENTRY_BYTES):
            entry = decode_entry(whole.entries, at)
            check(lookup(head, data, entry.file_id) == entry, "an entry that is not found")


def read_segment(data: bytes) -> None:
    """Read a segment in every way there is, and every payload of its catalog."""
    tail = attempt(lambda: read_tail(data))
    if tail is None:
        return
    segment = attempt(lambda: open_segment(data, SHARD))
    sound = _is_sound(data)
    check(segment is not None or not sound, "a segment that cannot be opened, but checked")
    if segment is not None:
        _check_catalog(data, segment)
    rows = attempt(lambda: read_rows(data, SHARD)) or []
    check(bool(rows) or not sound or not (segment and segment.tables.rows), "a segment without rows was checked")
    for row in rows:
        attempt(row.metadata_object)
        entry = row.entry
        if segment is None or entry.deleted or (entry.raw_size > 1 << 23 and not is_large(entry.raw_size)):
            continue
        content = attempt(lambda entry=entry: read_payload(entry, data, segment.tables.dictionary))  # type: ignore[misc]  # called at once
        check(content is None or len(content) == entry.raw_size, "a content of another size")
        check(content is not None or not sound, "a payload that cannot be read of a segment that was found good")


def _is_sound(data: bytes) -> bool:
    try:
        check_segment_fully(data, SHARD)
    except CorruptShardError:
        return False
    return True


def _check_catalog(data: bytes, segment: Segment) -> None:
    """Check the catalog as verification does."""
    catalog = CatalogCheck(SHARD, segment, None, 0)
    for ref in segment.directory.refs():
        chunk = data[ref.offset : ref.end]
        try:
            catalog.take(decode_chunk(chunk, ref, segment.tables.content_types))
        except UnsupportedFormatError:
            return
        except CorruptShardError:
            catalog.skip()
    catalog.finish()
    for planned in catalog.work.plan(Sampling()):
        check(isinstance(planned, int) or planned.end >= planned.start, "a request for less than nothing")
