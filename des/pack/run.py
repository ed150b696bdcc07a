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
from des.pack.intake import Intake, report_intake, roots_of
from des.pack.ledger import RunLedger
from des.pack.plan import Plan, PlannedShard
from des.pack.remote import RemoteSources
from des.pack.report import DictionaryUse
from des.pack.sampling import find_dictionary
from des.pack.shards import pack_shards
from des.pack.spool import Spool
from des.pack.state import (
    Binding,
    bind,
    bind_store,
    digest_of,
    is_planned,
    open_state,
    remember_dictionary,
    remembered_dictionary,
    writing,
)
from des.pack.taking import Order, SourceRoot
from des.pack.workshop import Limits, Options, Workshop
from des.shard.layout import Identity
from des.storage.descriptor import DEFAULT_N_BITS, DESCRIPTOR_KEY, Descriptor, ensure_descriptor, read_descriptor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from des.pack.commit import NotSettledError
    from des.pack.crew import Crew
    from des.pack.decisions import OnConflict
    from des.pack.inputs import Input
    from des.pack.partition import Partition
    from des.pack.report import Origin, Report
    from des.pack.workers import Workers
    from des.shard.codecs import Compression
    from des.storage.opening import SourceBuckets
    from des.storage.protocol import Storage


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
        threads: that read and compress, of all processes together.
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

    @property
    def limits(self) -> Limits:
        """What the run may take."""
        return Limits(self.memory, self.threads)


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
    crew: Crew | None = None,
) -> None:
    """Pack manifests into a store; the outcome is in `report`, also where this raises.

    Args:
        storage: the store's place.
        job: what to pack, and how.
        report: takes what became of each file.
        progress: is told where the run stands.
        buckets: for sources on S3; None: rows that name one fail.
        crew: processes that parse, and pack; None: `job.threads` threads of this one do.

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
                _planned, job, plan, spool, expected, store_id, report, progress.planned, crew.workers if crew else None
            )
            if shards:
                descriptor = await _open_for_writing(storage, job, expected)
                if job.state is not None:
                    await anyio.to_thread.run_sync(bind_store, plan, descriptor.store_id)
                progress.begin(sum(shard.rows for shard in shards))
                remote = RemoteSources(buckets, job.limits.fetched_bytes)
                work = [(shard, _identity(descriptor, shard)) for shard in shards]
                compression = await _compression(storage, job, plan, work, report, remote)
                options = Options(compression, job.on_conflict, job.max_segment_bytes, job.limits.row_bytes)
                ledger = RunLedger(plan, work, report, job.state, progress.advance)
                await _pack_shards(storage, ledger, options, job.limits, remote, crew)
                unsettled = ledger.unsettled
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
    storage: Storage, ledger: RunLedger, options: Options, limits: Limits, remote: RemoteSources, crew: Crew | None
) -> None:
    if crew is not None:
        await crew.pack(ledger, options, limits)
        ledger.take_back()
        if not ledger:
            return
    await pack_shards(Workshop(storage, ledger, options, remote, limits, ledger.advance), limits.shards)
