"""A run of the packer: manifests → plan → shards, several at once.

Nothing is written before every manifest was read to its end. A shard that cannot be packed fails with its files and the others go on;
trouble of the storage stops the run, because it would hit every shard: what is done stays done, and the same command again skips it. Where too few
places of a zone hold a commit, only its files fail, but the run ends with that trouble.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from des.errors import SettingsError
from des.pack.encoding import BATCH_BYTES
from des.pack.intake import Intake, report_intake, roots_of
from des.pack.packer import pack_shard
from des.pack.plan import Done, Plan, PlannedShard
from des.pack.remote import RemoteSources
from des.pack.report import DictionaryUse
from des.pack.sampling import find_dictionary
from des.pack.spool import Spool
from des.pack.state import (
    Binding,
    bind,
    bind_store,
    digest_of,
    is_planned,
    is_proven,
    open_state,
    remember_dictionary,
    remembered_dictionary,
    writing,
)
from des.pack.taking import Order, SourceRoot
from des.pack.workshop import Options, Workshop
from des.shard.chunking import LARGE_BYTES
from des.shard.layout import Identity
from des.storage.descriptor import DEFAULT_N_BITS, DESCRIPTOR_KEY, Descriptor, ensure_descriptor, read_descriptor
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from des.pack.commit import NotSettledError
    from des.pack.decisions import OnConflict
    from des.pack.inputs import Input
    from des.pack.partition import Partition
    from des.pack.report import Origin, Report
    from des.pack.workers import Workers
    from des.shard.codecs import Compression
    from des.storage.opening import SourceBuckets
    from des.storage.protocol import Storage

# Most of a small shard's time is waiting for its commits to be durable: enough at once let the storage take them together. More than these cost more
# by being in each other's way, and each may hold a part of an upload.
SHARDS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class PackJob:
    """What to pack, and how.

    Attributes:
        inputs: manifests, directories, archives, read one after another; their rows are numbered on.
        compression: codec, level, dictionary.
        on_conflict: what to do where another file holds a uid and day.
        n_bits: for a new store, or None; must be the store's own otherwise.
        max_segment_bytes: segments are closed before they grow past this.
        memory: bytes the run may take for what it holds.
        threads: workers for reading and compressing, where there are no processes for it.
        single_writer: the caller vouches that nobody else writes: storage without conditional writes will do.
        partition: the share of the shards to pack; None: all of them.
        finds_dictionary: whether to look for a dictionary that pays; `compression` has none then.
        state: the file that keeps the plan and what is done of it; None: none does.
        source_root: the directory that sources must lie in; None: anywhere.
    """

    inputs: Sequence[Input]
    compression: Compression
    on_conflict: OnConflict
    n_bits: int | None
    max_segment_bytes: int
    memory: int
    threads: int
    single_writer: bool = False
    partition: Partition | None = None
    source_root: Path | None = None
    finds_dictionary: bool = False
    state: Path | None = None


class Progress:
    """Where a run stands, for whoever shows it; this one shows nothing."""

    def planned(self, rows: int) -> None:
        """`rows` rows of the manifests were read so far."""

    def begin(self, rows: int) -> None:
        """The plan is complete: `rows` files are to be packed."""

    def advance(self, files: int) -> None:
        """`files` more were read and written or found to be there."""


async def pack(
    storage: Storage,
    job: PackJob,
    report: Report,
    progress: Progress,
    buckets: SourceBuckets | None = None,
    workers: Workers | None = None,
) -> None:
    """Pack manifests into a store; the outcome is in `report`, also where this raises.

    Args:
        storage: the store's place.
        job: what to pack, and how.
        report: takes what became of each file.
        progress: is told where the run stands.
        buckets: for sources on S3; None: rows that name one fail.
        workers: processes that parse and encode; None: `job.threads` threads of this one do.

    Raises:
        ManifestError: a manifest cannot be read; nothing was written.
        SettingsError: the settings contradict the store or the storage; nothing was written.
        NotSettledError: the run came to its end, but files failed because too few places hold their commit; the same run again finishes it.
        StorageError: the storage is unwell; what was acknowledged before stays.
    """
    started = time.monotonic()
    report.store = storage.address
    unsettled: NotSettledError | None = None
    try:
        known = await read_descriptor(storage)
        expected = _expected(known, job.n_bits)
        store_id = known.store_id if known else None
        async with open_plan(job.state) as (plan, spool):
            shards = await anyio.to_thread.run_sync(
                _planned, job, plan, spool, expected, store_id, report, progress.planned, workers
            )
            if shards:
                descriptor = await _open_for_writing(storage, job, expected)
                if job.state is not None:
                    await anyio.to_thread.run_sync(bind_store, plan, descriptor.store_id)
                progress.begin(sum(shard.rows for shard in shards))
                remote = RemoteSources(buckets, job.memory // 8)
                work = [(shard, _identity(descriptor, shard)) for shard in shards]
                compression = await _compression(storage, job, plan, work, report, remote)
                unsettled = await _pack_shards(storage, job, plan, compression, work, report, progress, remote, workers)
        report.is_complete = True
        if unsettled is not None:
            raise unsettled
    finally:
        report.seconds = round(time.monotonic() - started, 3)


async def expected_descriptor(storage: Storage, n_bits: int | None) -> Descriptor:
    """Return the descriptor of a store, or one like it will get.

    Raises:
        SettingsError: `n_bits` differs from the store's.
        StorageError: the storage is unwell.
    """
    return _expected(await read_descriptor(storage), n_bits)


def _expected(known: Descriptor | None, n_bits: int | None) -> Descriptor:
    if known is not None:
        known.check_n_bits(n_bits)
    return known or Descriptor.new(DEFAULT_N_BITS if n_bits is None else n_bits)


def order_of(job: PackJob, descriptor: Descriptor, *, asks_sizes: bool = False) -> Order:
    """Return what to take in for a run.

    Raises:
        SettingsError: `source_root` is no directory.
    """
    root = None if job.source_root is None else SourceRoot.at(job.source_root)
    return Order(descriptor, job.partition, root, asks_sizes)


def _planned(
    job: PackJob,
    plan: Plan,
    spool: Spool,
    descriptor: Descriptor,
    store_id: bytes | None,
    report: Report,
    planned: Callable[[int], None],
    workers: Workers | None,
) -> list[PlannedShard]:
    """Fill the plan, or take it as an earlier run left it; return its shards. Runs in a worker thread."""
    plan.roots = roots_of(job.inputs, job.source_root)
    order = order_of(job, descriptor)
    intake = Intake(order, workers)
    if job.state is None:
        return intake.fill(plan, job.inputs, spool, report, planned)
    root = order.source_root and order.source_root.real
    digest = digest_of(job.inputs, descriptor, [job.partition, root, job.on_conflict])
    binding = Binding(digest, store_id, report.store)
    if is_planned(plan, binding, job.state):
        report_intake(plan, report)
        return plan.shards()
    with writing(job.state):
        shards = intake.fill(plan, job.inputs, spool, report, planned)
        bind(plan, binding)
    return shards


@asynccontextmanager
async def open_plan(state: Path | None = None) -> AsyncIterator[tuple[Plan, Spool]]:
    """Open an empty plan, or the one that a state file has, and a spool for what its rows need.

    Raises:
        SettingsError: the state file cannot be used.
    """
    plan = await anyio.to_thread.run_sync(Plan if state is None else partial(open_state, state))
    spool = Spool()
    try:
        yield plan, spool
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(plan.close)
            await anyio.to_thread.run_sync(spool.close)


async def _open_for_writing(storage: Storage, job: PackJob, expected: Descriptor) -> Descriptor:
    descriptor = await ensure_descriptor(storage, job.n_bits)
    if descriptor.epochs != expected.epochs or descriptor.index_range != expected.index_range:
        raise SettingsError("the store's n_bits changed while the manifest was read; run again.")
    if not job.single_writer:
        await storage.check_conditional_writes(DESCRIPTOR_KEY)
    return descriptor


def _identity(descriptor: Descriptor, shard: PlannedShard) -> Identity:
    return Identity(descriptor.store_id, shard.day, descriptor.n_bits_on(shard.day), shard.shard_index)


async def _compression(
    storage: Storage,
    job: PackJob,
    plan: Plan,
    work: Sequence[tuple[PlannedShard, Identity]],
    report: Report,
    remote: RemoteSources,
) -> Compression:
    """Return how the run compresses, with the dictionary that was found where one was to be found."""
    given = job.compression.dictionary
    if given is not None:
        report.dictionary = DictionaryUse("given", len(given))
    if not job.finds_dictionary:
        return job.compression
    known = await anyio.to_thread.run_sync(remembered_dictionary, plan)
    if known is None:
        choice = await find_dictionary(storage, plan, work, remote, job.compression, job.max_segment_bytes)
        use = DictionaryUse()
        if choice.dictionary is not None:
            origin: Origin = "reused" if choice.is_known else "trained"
            use = DictionaryUse(origin, len(choice.dictionary), choice.saved_bytes)
        known = use, choice.dictionary
        await anyio.to_thread.run_sync(remember_dictionary, plan, *known)
    report.dictionary, dictionary = known
    return replace(job.compression, dictionary=dictionary)


async def _pack_shards(
    storage: Storage,
    job: PackJob,
    plan: Plan,
    compression: Compression,
    work: Sequence[tuple[PlannedShard, Identity]],
    report: Report,
    progress: Progress,
    remote: RemoteSources,
    workers: Workers | None,
) -> NotSettledError | None:
    """Pack all shards; return why files failed that are committed, if any did."""
    options = Options(
        compression=compression,
        on_conflict=job.on_conflict,
        max_segment_bytes=job.max_segment_bytes,
        max_row_bytes=job.memory // 4 // SHARDS_AT_ONCE,
    )
    workshop = Workshop(
        storage=storage,
        plan=plan,
        options=options,
        remote=remote,
        threads=job.threads,
        batches=max(SHARDS_AT_ONCE, job.memory // 2 // (BATCH_BYTES + LARGE_BYTES)),
        advance=progress.advance,
        workers=workers,
    )

    reporting = anyio.CapacityLimiter(1)
    unsettled: list[NotSettledError] = []

    async def pack_one(item: tuple[PlannedShard, Identity]) -> None:
        shard, identity = item
        report.shards += 1
        if job.state is not None:
            done = await workshop.ask_plan(partial(plan.done, shard))
            if done is not None and await is_proven(storage, identity, done):
                report.shards_done_before += 1
                report.skipped += shard.rows
                progress.advance(shard.rows)
                return
        proof: Done | None = None
        is_whole = True
        async for outcome in pack_shard(workshop, identity, shard):
            if outcome.unsettled is not None and not unsettled:
                unsettled.append(outcome.unsettled)
            if outcome.tally.failures:
                # Off the loop, because it writes to files; shielded, because what is certain is reported.
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(report.take, outcome.tally, limiter=reporting)
            else:
                report.take(outcome.tally)
            report.segments += outcome.segments
            report.objects_written += outcome.segments + outcome.heads
            if outcome.done is None or outcome.tally.failures:
                is_whole = False
            else:
                earlier = proof.segments if proof else ()
                proof = replace(outcome.done, segments=earlier + outcome.done.segments)
        if job.state is not None and is_whole and proof is not None:
            with writing(job.state):
                await workshop.ask_plan(partial(plan.mark_done, shard, proof))

    await run_all(pack_one, work, SHARDS_AT_ONCE)
    return unsettled[0] if unsettled else None
