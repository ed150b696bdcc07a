"""A run of the packer: manifests → plan → shards, several at once.

Nothing is written before every manifest was read to its end. A shard that cannot be packed fails with its files and the others go on;
trouble of the storage stops the run, because it would hit every shard: what is done stays done, and the same command again skips it.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import anyio.to_thread

from des.errors import SettingsError
from des.pack.encoding import BATCH_BYTES
from des.pack.manifest import BadRow, ManifestRow, read_manifest
from des.pack.packer import pack_shard
from des.pack.plan import Plan, PlannedShard
from des.pack.remote import RemoteSources
from des.pack.report import Failure, Report
from des.pack.workshop import Options, Workshop
from des.shard.chunking import LARGE_BYTES
from des.shard.layout import Identity
from des.storage.descriptor import DEFAULT_N_BITS, DESCRIPTOR_KEY, Descriptor, ensure_descriptor, read_descriptor
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from des.pack.decisions import OnConflict
    from des.shard.codecs import Compression
    from des.storage.opening import SourceBuckets
    from des.storage.protocol import Storage

# Most of a small shard's time is waiting for its commits to be durable: enough at once let the storage take them together. More than these cost more
# by being in each other's way, and each may hold a part of an upload.
SHARDS_AT_ONCE = 8
_PLAN_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class PackJob:
    """What to pack, and how.

    Attributes:
        manifests: files to read, one after another; their rows are numbered on.
        compression: codec, level, dictionary.
        on_conflict: what to do where another file holds a uid and day.
        n_bits: for a new store, or None; must be the store's own otherwise.
        max_segment_bytes: segments are closed before they grow past this.
        memory: bytes the run may take for what it holds.
        threads: worker threads for reading and compressing.
        single_writer: the caller vouches that nobody else writes: storage without conditional writes will do.
    """

    manifests: Sequence[Path]
    compression: Compression
    on_conflict: OnConflict
    n_bits: int | None
    max_segment_bytes: int
    memory: int
    threads: int
    single_writer: bool = False


class Progress:
    """Where a run stands, for whoever shows it; this one shows nothing."""

    def planned(self, rows: int) -> None:
        """`rows` rows of the manifests were read so far."""

    def begin(self, rows: int) -> None:
        """The plan is complete: `rows` files are to be packed."""

    def advance(self, files: int) -> None:
        """`files` more were read and written or found to be there."""


async def pack(
    storage: Storage, job: PackJob, report: Report, progress: Progress, buckets: SourceBuckets | None = None
) -> None:
    """Pack manifests into a store; the outcome is in `report`, also where this raises.

    Args:
        storage: the store's place.
        job: what to pack, and how.
        report: takes what became of each file.
        progress: is told where the run stands.
        buckets: for sources on S3; None: rows that name one fail.

    Raises:
        ManifestError: a manifest cannot be read; nothing was written.
        SettingsError: the settings contradict the store or the storage; nothing was written.
        StorageError: the storage is unwell; what was acknowledged before stays.
    """
    started = time.monotonic()
    try:
        known = await read_descriptor(storage)
        if known is not None:
            known.check_n_bits(job.n_bits)
        expected = known or Descriptor.new(DEFAULT_N_BITS if job.n_bits is None else job.n_bits)
        async with _open_plan(expected) as plan:
            shards = await anyio.to_thread.run_sync(_fill, plan, job.manifests, report, progress)
            if shards:
                descriptor = await _open_for_writing(storage, job, expected)
                progress.begin(sum(shard.rows for shard in shards))
                remote = RemoteSources(buckets, job.memory // 8)
                await _pack_shards(storage, job, plan, descriptor, shards, report, progress, remote)
    finally:
        report.seconds = round(time.monotonic() - started, 3)


@asynccontextmanager
async def _open_plan(expected: Descriptor) -> AsyncIterator[Plan]:
    plan = await anyio.to_thread.run_sync(Plan, expected)
    try:
        yield plan
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(plan.close)


def _fill(plan: Plan, manifests: Sequence[Path], report: Report, progress: Progress) -> list[PlannedShard]:
    """Read all manifests into the plan; bad rows are reported once all are known to be readable."""
    bad: list[BadRow] = []
    first = 1
    for path in manifests:
        rows = read_manifest(path, first)
        while chunk := list(islice(rows, _PLAN_ROWS)):
            plan.add(row for row in chunk if isinstance(row, ManifestRow))
            bad += [row for row in chunk if isinstance(row, BadRow)]
            first += len(chunk)
            progress.planned(first - 1)
    report.files = first - 1
    for row in bad:
        report.fail(Failure.of_bad_row(row))
    return plan.finish()


async def _open_for_writing(storage: Storage, job: PackJob, expected: Descriptor) -> Descriptor:
    descriptor = await ensure_descriptor(storage, job.n_bits)
    if descriptor.epochs != expected.epochs or descriptor.index_range != expected.index_range:
        raise SettingsError("the store's n_bits changed while the manifest was read; run again.")
    if not job.single_writer:
        await storage.check_conditional_writes(DESCRIPTOR_KEY)
    return descriptor


async def _pack_shards(
    storage: Storage,
    job: PackJob,
    plan: Plan,
    descriptor: Descriptor,
    shards: Sequence[PlannedShard],
    report: Report,
    progress: Progress,
    remote: RemoteSources,
) -> None:
    options = Options(
        compression=job.compression,
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
    )

    reporting = anyio.CapacityLimiter(1)

    async def pack_one(shard: PlannedShard) -> None:
        identity = Identity(descriptor.store_id, shard.day, descriptor.n_bits_on(shard.day), shard.shard_index)
        report.shards += 1
        async for outcome in pack_shard(workshop, identity, shard):
            if outcome.tally.failures:
                # Off the loop, because it writes to files; shielded, because what is certain is reported.
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(report.take, outcome.tally, limiter=reporting)
            else:
                report.take(outcome.tally)
            report.segments += outcome.segments
            report.objects_written += outcome.segments + outcome.heads

    await run_all(pack_one, shards, SHARDS_AT_ONCE)
