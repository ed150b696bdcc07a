"""What the shards that are packed in one process share: the storage, the ledger, the settings, and the limits on threads and memory."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread

from des.pack.encoding import BATCH_BYTES, BATCH_FILES
from des.pack.sources import read_large
from des.shard.chunking import LARGE_BYTES
from des.store.cache import ByteLRU

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from des.pack.decisions import OnConflict
    from des.pack.encoding import Large
    from des.pack.ledger import Ledger
    from des.pack.plan import PlannedRow, PlannedShard
    from des.pack.remote import RemoteSources
    from des.shard.codecs import Compression
    from des.storage.protocol import Storage

_MAX_TAILS_BYTES = 8 << 20
# Batches whose rows are asked for at once: asking takes longer than reading them.
_PAGE_BATCHES = 4
# For a process: a few batches, the rows of a shard, and what it fetched.
_MIN_SHARE_BYTES = 16 << 20

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Options:
    """How a run packs.

    Attributes:
        compression: codec, level, dictionary.
        on_conflict: what to do where another file holds the uid and day.
        max_segment_bytes: a segment is closed before it grows past this.
        max_row_bytes: or before its catalog rows, which wait in memory, do.
    """

    compression: Compression
    on_conflict: OnConflict
    max_segment_bytes: int
    max_row_bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may take, or one process' share of it.

    Attributes:
        memory: bytes for what is held.
        threads: that do CPU work.
        shards: how many at once. Most of a small shard's time is waiting for its commits to be durable: enough at once let the storage take them
            together. More than eight cost more by being in each other's way, and each may hold a part of an upload.
    """

    memory: int
    threads: int
    shards: int = 8

    @property
    def batches(self) -> int:
        """How many batches may be in memory."""
        return max(self.shards, self.memory // 2 // (BATCH_BYTES + LARGE_BYTES))

    @property
    def fetched_bytes(self) -> int:
        """How many bytes may be fetched and not encoded yet."""
        return self.memory // 8

    @property
    def tails_bytes(self) -> int:
        """How many bytes of the segments' tails are kept."""
        return min(_MAX_TAILS_BYTES, self.memory // 16)

    @property
    def row_bytes(self) -> int:
        """How many bytes of catalog rows a shard may have in memory."""
        return self.memory // 4 // self.shards

    def divided(self, count: int) -> list[Limits]:
        """Return the shares of `count` processes, or of fewer, so that each has a shard at least, and enough memory for it."""
        count = max(1, min(count, self.shards, self.memory // _MIN_SHARE_BYTES))
        return [
            Limits(self.memory // count, -(-self.threads // count), self.shards // count + (at < self.shards % count))
            for at in range(count)
        ]


class Workshop:
    """What the shards that are packed in one process share.

    Attributes:
        storage: the store's place.
        ledger: where the rows come from, and what becomes of them goes to.
        options: how to pack.
        remote: the sources on S3.
        tails: of the segments whose catalogs are read.
        threads: limits the threads that do CPU work.
        batches: limits the batches held in memory.
        ahead: how many batches of one shard may be under way.
        advance: told how many files were dealt with.
    """

    def __init__(
        self,
        storage: Storage,
        ledger: Ledger,
        options: Options,
        remote: RemoteSources,
        limits: Limits,
        advance: Callable[[int], None],
    ) -> None:
        """Set up within limits."""
        self.advance = advance
        self.storage = storage
        self.ledger = ledger
        self.options = options
        self.remote = remote
        self.tails = ByteLRU(limits.tails_bytes)
        self.threads = anyio.CapacityLimiter(limits.threads)
        self.batches = anyio.Semaphore(limits.batches)
        self.ahead = limits.threads + 1
        self._turn = anyio.CapacityLimiter(1)

    async def ask(self, question: Callable[[], Result]) -> Result:
        """Ask the ledger something, off the loop and one question at a time."""
        return await anyio.to_thread.run_sync(question, limiter=self._turn)

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Do CPU work in one of the threads for it."""
        return await anyio.to_thread.run_sync(work, limiter=self.threads)

    def read_large(self, item: Large) -> AsyncGenerator[bytes, None]:
        """Read a large source, wherever it is; see `sources.read_large`."""
        if item.version is None:
            return read_large(item.row, item.size)
        return self.remote.read_large(item.row, item.size, item.version)


@dataclass(frozen=True, slots=True)
class Round:
    """Which rows of a shard are packed together: those numbered (in rising order), or all but those to be skipped."""

    shard: PlannedShard
    numbers: tuple[int, ...] | None
    skipped: frozenset[int]

    async def batches(self, workshop: Workshop, after: int) -> AsyncIterator[Sequence[PlannedRow]]:
        """Yield the rows after row number `after` in batches."""
        while rows := await workshop.ask(partial(self._rows_after, workshop.ledger, after)):
            after = rows[-1].number
            kept = [row for row in rows if row.number not in self.skipped] if self.skipped else rows
            for start in range(0, len(kept), BATCH_FILES):
                yield kept[start : start + BATCH_FILES]
            if len(rows) < _PAGE_BATCHES * BATCH_FILES:
                return

    def _rows_after(self, ledger: Ledger, after: int) -> Sequence[PlannedRow]:
        if self.numbers is None:
            return ledger.rows(self.shard, after, _PAGE_BATCHES * BATCH_FILES)
        start = bisect_right(self.numbers, after)
        return ledger.rows_by_number(self.shard, self.numbers[start : start + _PAGE_BATCHES * BATCH_FILES])


class SlottedBatches:
    """The batches of a round, each holding one of the workshop's slots until it is released."""

    def __init__(self, workshop: Workshop, rows: Round, after: int) -> None:
        """Hold nothing yet; begin after row number `after`."""
        self._workshop = workshop
        self._batches = rows.batches(workshop, after)
        self._held = 0

    async def __aiter__(self) -> AsyncIterator[Sequence[PlannedRow]]:
        """Yield the batches, each once there is a slot for it."""
        async for rows in self._batches:
            await self._workshop.batches.acquire()
            self._held += 1
            yield rows

    def release_one(self) -> None:
        """Give back the slot of a batch that was written."""
        self._held -= 1
        self._workshop.batches.release()

    def release_all(self) -> None:
        """Give back what is still held."""
        while self._held:
            self.release_one()
