"""Deciding on the rows of a shard, batch by batch, on one base head: what is to be written, and what is settled without.

What the head does not have is written as it was encoded. What it has is compared first; only what takes the place of something else is encoded then,
little by little, so that a batch of replacements stays within its bytes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from des.pack.decisions import Verdict, decide
from des.pack.encoding import Anew, EncodedRun, Existing, Large, Unusable, candidate_for, encode_anew
from des.pack.owners import Owner, Owners
from des.pack.report import Failure
from des.pack.sources import SourceError, hash_large
from des.shard.chunking import LARGE_BYTES
from des.shard.layout import Flag

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from des.errors import Status
    from des.pack.encoding import Item
    from des.pack.plan import PlannedRow
    from des.pack.workshop import Workshop
    from des.store.heads import WholeHead

# What is encoded anew at once: those on S3 are fetched before.
_ANEW_FILES = 32


@dataclass(frozen=True, slots=True)
class LargeFile:
    """A large file to be streamed into the segment, and the flags of its entry."""

    item: Large
    flags: int


@dataclass(frozen=True, slots=True)
class Settled:
    """A row that needs no writing: skipped, or failed."""

    failure: Failure | None


Decided = EncodedRun | LargeFile | Settled


class Decider:
    """Decides on one base head."""

    def __init__(self, workshop: Workshop, base: WholeHead) -> None:
        """Know nothing yet of whose the files of `base` are."""
        self._workshop = workshop
        self._base = base
        self._owners = Owners(workshop.storage, workshop.tails, base)

    async def decided(self, items: list[Item]) -> AsyncIterator[Decided]:
        """Decide on a batch, in order.

        Raises:
            CorruptShardError: a catalog is damaged.
            StorageError: the storage is unwell.
        """
        items = [await self._known(item) if isinstance(item, Large) else item for item in items]
        await self._owners.learn(
            [item.entry for item in items if isinstance(item, Existing) and not item.entry.deleted]
        )
        decided = [self._decide(item) if isinstance(item, Existing) else _without_head(item) for item in items]
        anew = deque(one for one in decided if isinstance(one, Anew))
        encoded: deque[EncodedRun | Unusable] = deque()
        for one in decided:
            if not isinstance(one, Anew):
                yield one
                continue
            if not encoded:
                encoded.extend(await self._encode(tuple(islice(anew, _ANEW_FILES))))
                for _ in encoded:
                    anew.popleft()
            item = encoded.popleft()
            yield _failed(item.row, item.status, item.error) if isinstance(item, Unusable) else item

    async def _encode(self, wanted: Sequence[Anew]) -> list[EncodedRun | Unusable]:
        compression, generation = self._workshop.options.compression, self._base.tables.generation
        async with self._workshop.remote.fetched([anew.item.row for anew in wanted]) as fetch:
            able = wanted[: len(fetch.rows)]
            return await self._workshop.in_thread(partial(encode_anew, able, generation, compression, fetch.content))

    async def _known(self, item: Large) -> Item:
        """Look a large file up before any of it is written; where the head has it, its content must be hashed first."""
        entry = self._base.find(item.row.file_id)
        if entry is None:
            return item
        try:
            digest = await hash_large(self._workshop.read_large(item))
        except SourceError as error:
            return Unusable(item.row, str(error), error.status)
        return Existing(item.row, item.size, candidate_for(item.row, digest, item.size), entry, item.version)

    def _decide(self, item: Existing) -> Decided | Anew:
        verdict = decide(item.candidate, item.entry, self._base.tables, self._workshop.options.on_conflict)
        flags = int(Flag.REPLACED)
        owner = Owner.SAME if item.entry.deleted else self._owners.of(item.entry, item.row.uid)
        if owner in _NOT_OURS:
            return _failed(item.row, *_NOT_OURS[owner])
        if owner is Owner.GONE and verdict is Verdict.SAME:
            verdict, flags = Verdict.PACK, item.entry.flags
        if verdict in _SETTLED:
            return _SETTLED[verdict](item.row)
        if item.size > LARGE_BYTES:
            return LargeFile(Large(item.row, item.size, item.version, item.candidate.content_hash), flags)
        return Anew(item, flags)


def _without_head(item: EncodedRun | Large | Unusable) -> Decided:
    """Return what becomes of what the head does not have, or that cannot be packed anyway."""
    if isinstance(item, Unusable):
        return _failed(item.row, item.status, item.error)
    return LargeFile(item, 0) if isinstance(item, Large) else item


def _failed(row: PlannedRow, status: Status, sentence: str) -> Settled:
    return Settled(Failure.of_row(row, status, sentence))


_SETTLED: dict[Verdict, Callable[[PlannedRow], Settled]] = {
    Verdict.SAME: lambda _: Settled(None),
    Verdict.KEPT: lambda _: Settled(None),
    Verdict.DELETED: lambda row: _failed(
        row, "deleted", "the file was deleted; pack with --on-conflict replace to bring it back."
    ),
    Verdict.CONFLICT: lambda row: _failed(
        row, "conflict", "other content is stored under this uid and day; see --on-conflict."
    ),
}


_NOT_OURS: dict[Owner, tuple[Status, str]] = {
    Owner.OTHER: ("invalid", "its file_id is that of another uid; pack it under another name."),
    Owner.UNLISTED: ("corrupt", "the segment that holds it does not list it; run `des verify`."),
}
