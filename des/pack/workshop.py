"""What the shards of a run share: the storage, the plan, the settings, the workers, and the limits on threads and memory."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import anyio.to_thread

from des.pack.encoding import BATCH_FILES
from des.pack.sources import read_large
from des.store.cache import ByteLRU

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from des.pack.decisions import OnConflict
    from des.pack.encoding import Large
    from des.pack.plan import Plan, PlannedRow, PlannedShard
    from des.pack.remote import RemoteSources
    from des.pack.workers import Workers
    from des.shard.codecs import Compression
    from des.storage.protocol import Storage

_TAILS_BYTES = 8 << 20
# Batches whose rows the plan is asked for at once: asking takes longer than reading them.
_PAGE_BATCHES = 4

Arguments = ParamSpec("Arguments")
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


class Workshop:
    """What the shards of a run share.

    Attributes:
        storage: the store's place.
        plan: the rows.
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
        plan: Plan,
        options: Options,
        remote: RemoteSources,
        *,
        threads: int,
        batches: int,
        advance: Callable[[int], None],
        workers: Workers | None = None,
    ) -> None:
        """Set up for `threads` threads, or as many processes, and `batches` batches in memory."""
        self.advance = advance
        self.storage = storage
        self.plan = plan
        self.options = options
        self.remote = remote
        self.tails = ByteLRU(_TAILS_BYTES)
        self.threads = anyio.CapacityLimiter(threads)
        self.batches = anyio.Semaphore(batches)
        self.ahead = threads + 1
        self._workers = workers
        self._worker_turn = anyio.CapacityLimiter(workers.count) if workers else self.threads
        self._plan_turn = anyio.CapacityLimiter(1)

    async def ask_plan(self, question: Callable[[], Result]) -> Result:
        """Ask the plan something, off the loop and one question at a time."""
        return await anyio.to_thread.run_sync(question, limiter=self._plan_turn)

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Do CPU work in one of the run's threads."""
        return await anyio.to_thread.run_sync(work, limiter=self.threads)

    async def in_worker(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Encode in one of the run's worker processes, or in a thread where it has none; see `Workers.call`."""
        call = partial(work if self._workers is None else partial(self._workers.call, work), *args, **kwargs)
        return await anyio.to_thread.run_sync(call, limiter=self._worker_turn)

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
        while rows := await workshop.ask_plan(partial(self._rows_after, workshop.plan, after)):
            after = rows[-1].number
            kept = [row for row in rows if row.number not in self.skipped] if self.skipped else rows
            for start in range(0, len(kept), BATCH_FILES):
                yield kept[start : start + BATCH_FILES]
            if len(rows) < _PAGE_BATCHES * BATCH_FILES:
                return

    def _rows_after(self, plan: Plan, after: int) -> list[PlannedRow]:
        if self.numbers is None:
            return plan.rows(self.shard, after, _PAGE_BATCHES * BATCH_FILES)
        start = bisect_right(self.numbers, after)
        return plan.rows_by_number(self.shard, self.numbers[start : start + _PAGE_BATCHES * BATCH_FILES])


class SlottedBatches:
    """The batches of a round, each holding one of the run's slots until it is released."""

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
