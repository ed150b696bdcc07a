"""One attempt to pack some rows of a shard on one base head: segments are written, then swapped in. The rules are those of `packer`."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from des.pack.commit import Change, are_usable, new_name, now_microseconds, settle, swap
from des.pack.decisions import Candidate, candidate_of
from des.pack.encoding import Base, EncodedRun, encode_batch, large_encoder_for, record_for
from des.pack.gathering import Gathered
from des.pack.plan import Done
from des.pack.report import Failure, Tally
from des.pack.settling import Decider, Settled
from des.pack.sources import SourceError
from des.pack.workshop import SlottedBatches
from des.shard.chunking import CHUNK_BYTES
from des.shard.layout import ENTRY_BYTES, decode_entry
from des.shard.merging import Addition, merge
from des.shard.writing import SegmentSummary, SegmentWriter
from des.tasks import mapped_in_order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from des.errors import Status
    from des.pack.commit import NotSettledError
    from des.pack.encoding import Item
    from des.pack.plan import PlannedRow
    from des.pack.settling import Decided, LargeFile
    from des.pack.workshop import Options, Round, Workshop
    from des.shard.chunking import LargeEncoder
    from des.shard.tables import HeadTables
    from des.store.heads import WholeHead

_Encoded = tuple["list[Item]", "Sequence[PlannedRow]", "Sequence[PlannedRow]"]


@dataclass(frozen=True, slots=True)
class ShardOutcome:
    """What packing a shard came to.

    Attributes:
        tally: what became of its files.
        segments: how many were written.
        heads: how many were written.
        done: what proves it; None where it cannot be proven.
        unsettled: why nothing is acknowledged although it is committed; None: it is acknowledged.
    """

    tally: Tally
    segments: int
    heads: int
    done: Done | None = None
    unsettled: NotSettledError | None = None


class DecidedOtherwiseError(Exception):
    """The head to swap onto decides otherwise than the base did."""


class _SourceFailedError(Exception):
    """A large source failed after some of its bytes went out."""

    def __init__(self, row: PlannedRow, sentence: str, status: Status = "invalid") -> None:
        super().__init__(sentence)
        self.failure = Failure.of_row(row, status, sentence)


class Attempt:
    """Packing some rows on one base head."""

    def __init__(
        self, workshop: Workshop, base: WholeHead, rows: Round, past: Callable[[Sequence[PlannedRow]], None]
    ) -> None:
        """Write nothing yet.

        Args:
            workshop: of the run.
            base: the head that is decided on.
            rows: what to pack.
            past: told of rows that were dealt with, in order, again where they are begun again.
        """
        self._workshop = workshop
        self._past = past
        self._base = base
        self._rows = rows
        self._decider = Decider(workshop, base)
        self._encoding_base = Base(base.find if base.entries else None, base.tables.generation)
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
        batches = SlottedBatches(self._workshop, self._rows, self._after)
        try:
            async with mapped_in_order(self._encode, aiter(batches), self._workshop.ahead) as results:
                feed = _Feed(self._decided(results, batches), self._settle)
                while await feed.peek() is not None:
                    await self._write_segment(feed)
                self._tally.add(self._pending)
                self._pending = Tally()
        finally:
            batches.release_all()

    async def _encode(self, rows: Sequence[PlannedRow]) -> _Encoded:
        """Return the items of the rows that fit into a batch, these rows, and the others."""
        compression = self._workshop.options.compression
        if self._failed:
            rows = [row for row in rows if row.number not in self._failed]
        async with self._workshop.remote.fetched(rows) as fetch:
            encode = partial(encode_batch, fetch.rows, self._encoding_base, compression, fetch.content)
            items, left = await self._workshop.in_thread(encode)
            rest = [*left, *fetch.rest]
            return items, rows[: len(rows) - len(rest)], rest

    def _settle(self, settled: Settled) -> None:
        if settled.failure is None:
            self._pending.skipped += 1
        else:
            self._pending.failures.append(settled.failure)

    async def _decided(self, results: AsyncIterator[_Encoded], batches: SlottedBatches) -> AsyncIterator[Decided]:
        async for items, rows, rest in results:
            while items:
                self._past(rows)
                if all(isinstance(item, EncodedRun) for item in items):
                    for item in items:
                        yield item  # type: ignore[misc]  # as was just seen
                else:
                    async for decided in self._decider.decided(items):
                        yield decided
                items, rows, rest = await self._encode(rest) if rest else ([], (), ())  # noqa: PLW2901 - lets go of the batch before
            batches.release_one()

    # ---- writing ------------------------------------------------------------------------------------------------------------

    async def _write_segment(self, feed: _Feed) -> None:
        """Write one segment from the feed, as much as it takes."""
        options = self._workshop.options
        name = new_name()
        writer = SegmentWriter(self._base.identity, self._base.tables.generation, options.compression.dictionary)
        async with self._workshop.storage.open_writer(self._base.identity.segment_key(name)) as out:
            joined = Gathered(out.write)
            await joined.write(writer.opening)
            while (writable := await feed.peek()) is not None:
                if isinstance(writable, EncodedRun):
                    count = _count_that_fits(writer, writable, options)
                    if not count:
                        break
                    taken, left = (writable, None) if count == len(writable.drafts) else writable.split(count)
                    await self._write_run(writer, joined, taken)
                    feed.advance(left)
                else:
                    if writer.rows and _is_full(writer, writable.item.size, options):
                        break
                    await self._write_large(writer, joined, writable)
                    feed.advance(None)
            pieces, summary = await self._workshop.in_thread(writer.finish)
            for piece in pieces:
                await joined.write(piece)
            await joined.flush()
        self._additions.append(Addition(name, summary))
        self._tally.add(self._pending)
        self._pending = Tally()
        if writable is not None:
            self._after = _number(writable) - 1

    async def _write_run(self, writer: SegmentWriter, out: Gathered, run: EncodedRun) -> None:
        writer.extend(run.drafts, run.content_types, run.stored_sizes)
        await out.write(run.stored)
        self._pending.packed += len(run.drafts)
        self._pending.bytes_in += sum(run.raw_sizes)
        self._pending.bytes_stored += len(run.stored)

    async def _write_large(self, writer: SegmentWriter, out: Gathered, large: LargeFile) -> None:
        item = large.item
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
        writer.add(record_for(item.row, large.flags), payload)
        self._pending.packed += 1
        self._pending.bytes_in += payload.raw_size
        self._pending.bytes_stored += payload.stored_size

    # ---- committing ---------------------------------------------------------------------------------------------------------

    async def commit(self) -> ShardOutcome:
        """Swap the segments into the head.

        Raises:
            DecidedOtherwiseError: pack anew.
            Errors as for `swap`.
        """
        if not self._additions:
            if self._tally.skipped:  # by this head's word
                await settle(self._workshop.storage, self._base.identity)
            return ShardOutcome(self._tally, 0, 0, _done(self._base.tables, ()))
        left_out: dict[bytes, frozenset[bytes]] = {}

        async def change(head: WholeHead) -> Change | None:
            if head.version == self._base.version:
                return merge(head.tables, head.entries, self._additions, now_microseconds())
            if not await are_usable(self._workshop.storage, head, [addition.name for addition in self._additions]):
                raise DecidedOtherwiseError
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
        names = tuple(addition.name for addition in self._additions if addition.name in listed)
        return ShardOutcome(self._tally, len(names), int(swapped.written), _done(swapped.tables, names))

    def _already_there(self, summary: SegmentSummary, head: WholeHead) -> frozenset[bytes]:
        """Return the files of a segment that another writer has brought meanwhile, content and all."""
        found = set()
        for at in range(0, len(summary.entries), ENTRY_BYTES):
            ours = decode_entry(summary.entries, at)
            theirs = head.find(ours.file_id)
            if theirs is None or self._base.placed(ours.file_id) == head.placed(ours.file_id):
                continue
            content_type = summary.content_types[ours.content_type - 1] if ours.content_type else None
            mine = Candidate(ours.content_hash, ours.raw_size, content_type, ours.second)
            if theirs.deleted or candidate_of(theirs, head.tables) != mine:
                raise DecidedOtherwiseError
            found.add(ours.file_id)
        return frozenset(found)

    def _skip(self, summary: SegmentSummary, left_out: frozenset[bytes]) -> None:
        """Count files as skipped that were packed but turned out to be there already."""
        for at in range(0, len(summary.entries) if left_out else 0, ENTRY_BYTES):
            entry = decode_entry(summary.entries, at)
            if entry.file_id in left_out:
                self._tally.packed -= 1
                self._tally.skipped += 1
                self._tally.bytes_in -= entry.raw_size
                self._tally.bytes_stored -= entry.stored_size


def _done(tables: HeadTables, names: tuple[bytes, ...]) -> Done:
    return Done(tables.lineage, tables.generation, names)


def _number(writable: EncodedRun | LargeFile) -> int:
    return writable.numbers[0] if isinstance(writable, EncodedRun) else writable.item.row.number


def _is_full(writer: SegmentWriter, size: int, options: Options) -> bool:
    """Tell whether a segment that has files already takes no more of `size` bytes."""
    return writer.size + size > options.max_segment_bytes or writer.row_bytes > options.max_row_bytes


def _count_that_fits(writer: SegmentWriter, run: EncodedRun, options: Options) -> int:
    """Return how many files of a run the segment still takes; the first file of a segment always fits."""
    size, row_bytes = writer.size + len(run.stored), writer.row_bytes + sum(map(len, run.drafts))
    if size <= options.max_segment_bytes and row_bytes <= options.max_row_bytes:
        return len(run.drafts)
    size, row_bytes = writer.size, writer.row_bytes
    for count, (draft, stored_size) in enumerate(zip(run.drafts, run.stored_sizes, strict=True)):
        size += stored_size
        if (size > options.max_segment_bytes or row_bytes > options.max_row_bytes) and writer.rows + count:
            return count
        row_bytes += len(draft)
    return len(run.drafts)


def _encode_piece(encoder: LargeEncoder, piece: bytes) -> bytes:
    return b"".join(encoder.add(piece[at : at + CHUNK_BYTES]) for at in range(0, len(piece), CHUNK_BYTES))


class _Feed:
    """What is to be written, with a look at the next one. Rows that need no writing are settled on the way to it."""

    def __init__(self, decided: AsyncIterator[Decided], settle: Callable[[Settled], None]) -> None:
        self._decided = decided
        self._settle = settle
        self._next: EncodedRun | LargeFile | None = None

    async def peek(self) -> EncodedRun | LargeFile | None:
        while self._next is None:
            one = await anext(self._decided, None)
            if one is None:
                break
            if isinstance(one, Settled):
                self._settle(one)
            else:
                self._next = one
        return self._next

    def advance(self, left: EncodedRun | None) -> None:
        """Go on to what is left of the next one, or to the one after it."""
        self._next = left
