"""What a read costs, computed from a found file: the requests that `Store.stream`, `des get` and the HTTP service make for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from des.shard.chunking import SeekTable
from des.shard.layout import TAIL_READ_BYTES, Codec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.store import FoundFile


@dataclass(frozen=True, slots=True)
class Cost:
    """Requests for one purpose.

    Attributes:
        what: is read.
        kind: as metrics count it: `footer`, `index` or `payload`.
        requests: how many.
        bytes: that they move.
    """

    what: str
    kind: str
    requests: int
    bytes: int


def cold_read(found: FoundFile) -> Sequence[Cost]:
    """Return what the first read of a file costs in a process that knows nothing but the descriptor."""
    return (*_index(found), *_extras(found), *warm_read(found))


def warm_read(found: FoundFile) -> Sequence[Cost]:
    """Return what a later read costs, while head, page and the like are cached."""
    start, end = found.entry.offset, found.entry.offset + found.entry.stored_size
    if found.is_large:
        end, _ = SeekTable.place(found.entry)
    return (Cost("the stored content", "payload", 1 if end > start else 0, end - start),)


def _index(found: FoundFile) -> Sequence[Cost]:
    tail = found.loaded.head.tail
    ref = found.loaded.head.find_page(found.entry.file_id)
    came_along = ref is None or found.loaded.page_that_came_along(ref) is not None
    what = "the end of the head, and the index page with it" if came_along else "the end of the head"
    costs = [Cost(what, "footer", 1, min(tail.object_size, TAIL_READ_BYTES))]
    if tail.size > TAIL_READ_BYTES:
        costs.append(Cost("the rest of the head's tail", "footer", 1, tail.size - TAIL_READ_BYTES))
    if ref is not None and not came_along:
        costs.append(Cost("the index page", "index", 1, ref.length))
    return costs


def _extras(found: FoundFile) -> Sequence[Cost]:
    dictionary = found.segment.dictionary
    if found.is_large:
        start, end = SeekTable.place(found.entry)
        return (Cost("the seek table of the content", "index", 1, end - start),)
    if found.entry.codec is Codec.ZSTD_DICT and dictionary is not None:
        return (Cost("the dictionary, once a process", "index", 1, dictionary.length),)
    return ()
