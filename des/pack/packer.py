"""Packing one shard: rows in, segments and a swapped head out.

    rows → batches, encoded in worker threads, several ahead → decided and written in manifest order → segments → swap

Rules of this file:

1. What is in a segment is decided on one head, the *base*. If at the swap another head decides otherwise about any file, the shard is packed anew on
   that head, so that no catalog row ever contradicts what was decided when it became visible. A file that turned out to be there already, with the same
   content, is only left out.
2. Nothing is reported before the head that holds it is swapped in, or proven to hold it.
3. A file repeated in the manifest is packed in a later round, on the head that holds its first occurrence: then the rules for conflicts apply.
4. A large source that fails midway spoils the bytes of its segment: that segment is given up and written again without it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread

from des.errors import (
    ConflictError,
    DESError,
    ObjectNotFoundError,
    SettingsError,
    StorageError,
    UnsupportedFormatError,
)
from des.pack.commit import Change, new_name, now_microseconds, open_shard, swap
from des.pack.decisions import Candidate, OnConflict, Verdict, candidate_of, decide
from des.pack.encoding import (
    BATCH_FILES,
    Encoded,
    Existing,
    Item,
    Large,
    Unusable,
    candidate_for,
    encode_anew,
    encode_batch,
    large_encoder_for,
    record_for,
)
from des.pack.owners import Owner, Owners
from des.pack.report import Failure, Tally
from des.pack.sources import SourceError, hash_large, read_large
from des.shard.chunking import CHUNK_BYTES, LARGE_BYTES
from des.shard.layout import ENTRY_BYTES, Entry, Flag, Identity, decode_entry
from des.shard.merging import Addition, merge
from des.shard.writing import SegmentSummary, SegmentWriter
from des.store.cache import ByteLRU
from des.tasks import mapped_in_order

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from des.errors import Status
    from des.pack.plan import Plan, PlannedRow, PlannedShard
    from des.pack.remote import RemoteSources
    from des.shard.chunking import LargeEncoder
    from des.shard.codecs import Compression
    from des.storage.protocol import ObjectWriter, Storage
    from des.store.heads import WholeHead

_ATTEMPTS = 10
_TAILS_BYTES = 8 << 20
# What is encoded anew at once: those on S3 are fetched before.
_ANEW_FILES = 32

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
        threads: limits the worker threads that encode.
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
    ) -> None:
        """Set up for `threads` worker threads and `batches` batches in memory."""
        self.advance = advance
        self.storage = storage
        self.plan = plan
        self.options = options
        self.remote = remote
        self.tails = ByteLRU(_TAILS_BYTES)
        self.threads = anyio.CapacityLimiter(threads)
        self.batches = anyio.Semaphore(batches)
        self.ahead = threads + 1
        self._plan_turn = anyio.CapacityLimiter(1)

    async def ask_plan(self, question: Callable[[], Result]) -> Result:
        """Ask the plan something, off the loop and one question at a time."""
        return await anyio.to_thread.run_sync(question, limiter=self._plan_turn)

    def read_large(self, item: Large) -> AsyncGenerator[bytes, None]:
        """Read a large source, wherever it is; see `sources.read_large`."""
        if item.version is None:
            return read_large(item.row, item.size)
        return self.remote.read_large(item.row, item.size, item.version)

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Do CPU work in one of the run's worker threads."""
        return await anyio.to_thread.run_sync(work, limiter=self.threads)


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
            kept = [row for row in rows if row.number not in self.skipped]
            if kept:
                yield kept

    def _rows_after(self, plan: Plan, after: int) -> list[PlannedRow]:
        if self.numbers is None:
            return plan.rows(self.shard, after, BATCH_FILES)
        start = bisect_right(self.numbers, after)
        return plan.rows_by_number(self.numbers[start : start + BATCH_FILES])


@dataclass(frozen=True, slots=True)
class ShardOutcome:
    """What packing a shard came to."""

    tally: Tally
    segments: int
    heads: int


async def pack_shard(workshop: Workshop, identity: Identity, shard: PlannedShard) -> AsyncIterator[ShardOutcome]:
    """Pack all rows of a shard; yields what became certain, as it does. A shard that cannot be packed fails with its rows.

    Raises:
        SettingsError: n_bits of the day changed.
        UnsupportedFormatError: the shard is of a newer format.
        StorageError: the storage is unwell.
    """
    repeated = await workshop.ask_plan(lambda: workshop.plan.repeated(shard))
    rounds = [Round(shard, None, frozenset(number for number, _ in repeated))]
    for nth in sorted({nth for _, nth in repeated}):
        numbers = tuple(number for number, its_nth in repeated if its_nth == nth)
        rounds.append(Round(shard, numbers, frozenset()))
    for rows in rounds:
        try:
            outcome = await _pack_round(workshop, identity, rows)
        except (StorageError, SettingsError, UnsupportedFormatError):
            raise
        except DESError as error:
            async for batch in rows.batches(workshop, 0):
                failures = [Failure.of_row(row, error.status, str(error)) for row in batch]
                yield ShardOutcome(Tally(failures=failures), 0, 0)
        else:
            yield outcome


async def _pack_round(workshop: Workshop, identity: Identity, rows: Round) -> ShardOutcome:
    advance = _Advance(workshop.advance)
    for _ in range(_ATTEMPTS):
        attempt = _Attempt(workshop, await open_shard(workshop.storage, identity), rows, advance)
        try:
            await attempt.write_segments()
            return await attempt.commit()
        except _DecidedOtherwiseError:
            continue
    raise ConflictError(
        f"{identity.head_key}: other writers changed the same files {_ATTEMPTS} times in a row; run again."
    )


class _Advance:
    """Tells how many files were dealt with, each once, however often it is begun again."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._last = 0

    def past(self, items: Sequence[Item]) -> None:
        self._tell(sum(item.row.number > self._last for item in items))
        self._last = max(self._last, items[-1].row.number)


class _DecidedOtherwiseError(Exception):
    """The head to swap onto decides otherwise than the base did."""


class _SourceFailedError(Exception):
    """A large source failed after some of its bytes went out."""

    def __init__(self, row: PlannedRow, sentence: str, status: Status = "invalid") -> None:
        super().__init__(sentence)
        self.failure = Failure.of_row(row, status, sentence)


@dataclass(frozen=True, slots=True)
class _Writable:
    item: Encoded | Large
    flags: int

    @property
    def number(self) -> int:
        return self.item.row.number

    @property
    def size(self) -> int:
        """Bytes it will take, for a large one at most about."""
        return self.item.size if isinstance(self.item, Large) else self.item.payload.stored_size


@dataclass(frozen=True, slots=True)
class _Anew:
    """A small file that shall be written although the head has its file_id: not encoded yet."""

    item: Existing
    flags: int


@dataclass(frozen=True, slots=True)
class _Settled:
    """A row that needs no writing: skipped, or failed."""

    failure: Failure | None


class _Attempt:
    """Packing some rows on one base head."""

    def __init__(self, workshop: Workshop, base: WholeHead, rows: Round, advance: _Advance) -> None:
        self._workshop = workshop
        self._advance = advance
        self._base = base
        self._rows = rows
        self._owners = Owners(workshop.storage, workshop.tails, base)
        self._tally = Tally()
        self._pending = Tally()
        self._additions: list[Addition] = []
        self._after = 0
        self._failed: dict[int, Failure] = {}

    async def write_segments(self) -> None:
        """Write all segments; each that is complete stays so when a later one has to be begun again."""
        while True:
            try:
                await self._write_from_here()
            except _SourceFailedError as error:
                self._failed[error.failure.row] = error.failure
                self._pending = Tally()
            else:
                self._tally.failures += self._failed.values()
                return

    async def _write_from_here(self) -> None:
        batches = _SlottedBatches(self._workshop, self._rows, self._after)
        try:
            async with mapped_in_order(self._encode, aiter(batches), self._workshop.ahead) as results:
                feed = _Feed(self._decided_rows(results, batches), self._settle)
                while await feed.peek() is not None:
                    await self._write_segment(feed)
                self._tally.add(self._pending)
                self._pending = Tally()
        finally:
            batches.release_all()

    async def _encode(self, rows: Sequence[PlannedRow]) -> tuple[list[Item], Sequence[PlannedRow]]:
        compression = self._workshop.options.compression
        async with self._workshop.remote.fetched(rows) as fetch:
            items, left = await self._workshop.in_thread(
                lambda: encode_batch(fetch.rows, self._base.find, compression, fetch.content)
            )
            return items, [*left, *fetch.rest]

    async def _encode_anew(self, wanted: Sequence[Existing]) -> list[Encoded | Unusable]:
        """Encode some of what takes the place of something else, in order."""
        compression = self._workshop.options.compression
        async with self._workshop.remote.fetched([item.row for item in wanted]) as fetch:
            able = wanted[: len(fetch.rows)]
            return await self._workshop.in_thread(lambda: encode_anew(able, compression, fetch.content))

    def _settle(self, settled: _Settled) -> None:
        if settled.failure is None:
            self._pending.skipped += 1
        else:
            self._pending.failures.append(settled.failure)

    async def _decided_rows(
        self, results: AsyncIterator[tuple[list[Item], Sequence[PlannedRow]]], batches: _SlottedBatches
    ) -> AsyncIterator[_Writable | _Settled]:
        async for items, rest in results:
            while items:
                self._advance.past(items)
                async for decided in self._decide_all(items):
                    yield decided
                items, rest = await self._encode(rest) if rest else ([], ())  # noqa: PLW2901 - lets go of the batch before
            batches.release_one()

    # ---- deciding -----------------------------------------------------------------------------------------------------------

    async def _decide_all(self, items: list[Item]) -> AsyncIterator[_Writable | _Settled]:
        """Decide on a batch, in order; what takes the place of something else is encoded only now, little by little."""
        items = [await self._known(item) if isinstance(item, Large) else item for item in items]
        await self._owners.learn(
            [item.entry for item in items if isinstance(item, Existing) and not item.entry.deleted]
        )
        decided = [self._decide(item) for item in items if item.row.number not in self._failed]
        anew = deque(one.item for one in decided if isinstance(one, _Anew))
        encoded: deque[Encoded | Unusable] = deque()
        for one in decided:
            if not isinstance(one, _Anew):
                yield one
                continue
            if not encoded:
                encoded.extend(await self._encode_anew(tuple(islice(anew, _ANEW_FILES))))
                for _ in encoded:
                    anew.popleft()
            item = encoded.popleft()
            yield (
                _Writable(item, one.flags) if isinstance(item, Encoded) else _failed(item.row, item.status, item.error)
            )

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

    def _decide(self, item: Item) -> _Writable | _Settled | _Anew:
        if isinstance(item, Unusable):
            return _failed(item.row, item.status, item.error)
        if not isinstance(item, Existing):
            return _Writable(item, 0)
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
            return _Writable(Large(item.row, item.size, item.version, item.candidate.content_hash), flags)
        return _Anew(item, flags)

    # ---- writing ------------------------------------------------------------------------------------------------------------

    async def _write_segment(self, feed: _Feed) -> None:
        """Write one segment from the feed, as much as it takes."""
        options = self._workshop.options
        name = new_name()
        writer = SegmentWriter(self._base.identity, self._base.tables.generation, options.compression.dictionary)
        async with self._workshop.storage.open_writer(self._base.identity.segment_key(name)) as out:
            joined = _Joined(out)
            await joined.write(writer.opening)
            while (writable := await feed.peek()) is not None:
                full = (
                    writer.size + writable.size > options.max_segment_bytes or writer.row_bytes > options.max_row_bytes
                )
                if full and writer.rows:
                    break
                await self._write_file(writer, joined, writable)
                feed.advance()
            pieces, summary = await self._workshop.in_thread(writer.finish)
            for piece in pieces:
                await joined.write(piece)
            await joined.flush()
        self._additions.append(Addition(name, summary))
        self._tally.add(self._pending)
        self._pending = Tally()
        if writable is not None:
            self._after = writable.number - 1

    async def _write_file(self, writer: SegmentWriter, out: _Joined, writable: _Writable) -> None:
        item = writable.item
        record = record_for(item.row, writable.flags)
        if isinstance(item, Encoded):
            writer.add(record, item.payload)
            await out.write(item.stored)
            raw_size, stored_size = item.payload.raw_size, item.payload.stored_size
        else:
            encoder = large_encoder_for(self._workshop.options.compression, item.row)
            try:
                async with aclosing(self._workshop.read_large(item)) as pieces:
                    async for piece in pieces:
                        await out.write(await self._workshop.in_thread(partial(_encode_piece, encoder, piece)))
            except SourceError as error:
                raise _SourceFailedError(item.row, str(error), error.status) from error
            table, payload = encoder.finish()
            if item.expected not in {None, payload.content_hash}:
                raise _SourceFailedError(item.row, "the source changed while it was read.")
            await out.write(table)
            writer.add(record, payload)
            raw_size, stored_size = payload.raw_size, payload.stored_size
        self._pending.packed += 1
        self._pending.bytes_in += raw_size
        self._pending.bytes_stored += stored_size

    # ---- committing ---------------------------------------------------------------------------------------------------------

    async def commit(self) -> ShardOutcome:
        """Swap the segments into the head.

        Raises:
            _DecidedOtherwiseError: pack anew.
            Errors as for `swap`.
        """
        if not self._additions:
            return ShardOutcome(self._tally, 0, 0)
        left_out: dict[bytes, frozenset[bytes]] = {}

        async def change(head: WholeHead) -> Change | None:
            if head.version == self._base.version:
                return merge(head.tables, head.entries, self._additions, now_microseconds())
            await self._check_segments(head)
            additions = []
            for addition in self._additions:
                left_out[addition.name] = self._already_there(addition.summary, head)
                if len(left_out[addition.name]) * ENTRY_BYTES < len(addition.summary.entries):
                    additions.append(replace(addition, left_out=left_out[addition.name]))
            return merge(head.tables, head.entries, additions, now_microseconds()) if additions else None

        swapped = await swap(self._workshop.storage, self._base, change)
        listed = {ref.name for ref in swapped.tables.segments}
        for addition in self._additions:
            self._skip(addition.summary, left_out.get(addition.name, frozenset()))
        segments = sum(addition.name in listed for addition in self._additions)
        return ShardOutcome(self._tally, segments, int(swapped.written))

    async def _check_segments(self, head: WholeHead) -> None:
        condemned = {item.name for item in head.tables.condemned}
        for addition in self._additions:
            if addition.name in condemned:
                raise _DecidedOtherwiseError
            try:
                await self._workshop.storage.head(self._base.identity.segment_key(addition.name))
            except ObjectNotFoundError as error:
                raise _DecidedOtherwiseError from error

    def _already_there(self, summary: SegmentSummary, head: WholeHead) -> frozenset[bytes]:
        """Return the files of a segment that another writer has brought meanwhile, content and all."""
        found = set()
        for at in range(0, len(summary.entries), ENTRY_BYTES):
            ours = decode_entry(summary.entries, at)
            theirs = head.find(ours.file_id)
            if theirs is None or self._is_unchanged(theirs, head):
                continue
            content_type = summary.content_types[ours.content_type - 1] if ours.content_type else None
            mine = Candidate(ours.content_hash, ours.raw_size, content_type, ours.second)
            if theirs.deleted or candidate_of(theirs, head.tables) != mine:
                raise _DecidedOtherwiseError
            found.add(ours.file_id)
        return frozenset(found)

    def _is_unchanged(self, theirs: Entry, head: WholeHead) -> bool:
        """Tell whether an entry is the one the base had, which was decided on."""
        ours = self._base.find(theirs.file_id)
        if ours is None:
            return False
        same_place = self._base.tables.segments[ours.segment].name == head.tables.segments[theirs.segment].name
        return same_place and (ours.offset, ours.flags) == (theirs.offset, theirs.flags)

    def _skip(self, summary: SegmentSummary, left_out: frozenset[bytes]) -> None:
        """Count files as skipped that were packed but turned out to be there already."""
        for at in range(0, len(summary.entries) if left_out else 0, ENTRY_BYTES):
            entry = decode_entry(summary.entries, at)
            if entry.file_id in left_out:
                self._tally.packed -= 1
                self._tally.skipped += 1
                self._tally.bytes_in -= entry.raw_size
                self._tally.bytes_stored -= entry.stored_size


def _failed(row: PlannedRow, status: Status, sentence: str) -> _Settled:
    return _Settled(Failure.of_row(row, status, sentence))


_SETTLED: dict[Verdict, Callable[[PlannedRow], _Settled]] = {
    Verdict.SAME: lambda _: _Settled(None),
    Verdict.KEPT: lambda _: _Settled(None),
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


def _encode_piece(encoder: LargeEncoder, piece: bytes) -> bytes:
    return b"".join(encoder.add(piece[at : at + CHUNK_BYTES]) for at in range(0, len(piece), CHUNK_BYTES))


class _SlottedBatches:
    """The batches of a round, each holding one of the run's slots until it is released."""

    def __init__(self, workshop: Workshop, rows: Round, after: int) -> None:
        self._workshop = workshop
        self._batches = rows.batches(workshop, after)
        self._held = 0

    async def __aiter__(self) -> AsyncIterator[Sequence[PlannedRow]]:
        async for rows in self._batches:
            await self._workshop.batches.acquire()
            self._held += 1
            yield rows

    def release_one(self) -> None:
        self._held -= 1
        self._workshop.batches.release()

    def release_all(self) -> None:
        while self._held:
            self.release_one()


class _Feed:
    """What is to be written, with a look at the next one. Rows that need no writing are settled on the way to it."""

    def __init__(self, rows: AsyncIterator[_Writable | _Settled], settle: Callable[[_Settled], None]) -> None:
        self._rows = rows
        self._settle = settle
        self._next: _Writable | None = None

    async def peek(self) -> _Writable | None:
        while self._next is None:
            row = await anext(self._rows, None)
            if row is None:
                break
            if isinstance(row, _Writable):
                self._next = row
            else:
                self._settle(row)
        return self._next

    def advance(self) -> None:
        self._next = None


class _Joined:
    """Joins small writes into longer ones, which cost less each."""

    _BYTES = 1 << 20

    def __init__(self, out: ObjectWriter) -> None:
        self._out = out
        self._parts: list[bytes] = []
        self._size = 0

    async def write(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= self._BYTES:
            await self.flush()

    async def flush(self) -> None:
        if self._size:
            await self._out.write(b"".join(self._parts))
            self._parts, self._size = [], 0
