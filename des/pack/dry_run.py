"""What a run would do, and what it would cost: computed from the plan, the names of the store's heads and one table of prices. Writes nothing.

What cannot be known without reading the files is estimated on the safe side: everything is new, and nothing shrinks. Segments of a shard are taken to
be of equal size. A new shard's head is written twice: empty before its first segment, then with the files.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import anyio.to_thread
from rich.table import Table

from des.pack.intake import Intake
from des.pack.run import expected_descriptor, open_plan, order_of
from des.routing import head_key, shard_hex
from des.storage.descriptor import DESCRIPTOR_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from des.pack.plan import Plan, PlannedShard
    from des.pack.report import Report
    from des.pack.run import PackJob, Progress
    from des.pack.spool import Spool
    from des.pack.taking import Taken
    from des.pack.workers import Workers
    from des.storage.descriptor import Descriptor
    from des.storage.protocol import Storage

# Past this a shard's tail needs a second request; more n_bits make smaller shards.
_MANY_FILES = 1_000_000
# Below this a shard saves little: its head and segment are two objects for few files.
_FEW_FILES = 16


@dataclass(frozen=True, slots=True)
class Prices:
    """The assumptions behind every sum of money."""

    usd_per_1000_puts: float
    what: str
    source: str
    as_of: str


PRICES = Prices(
    0.005, "PUT, COPY, POST and LIST, S3 Standard, us-east-1", "https://aws.amazon.com/s3/pricing/", "2026-11-22"
)


@dataclass(slots=True)
class DryRun:
    """What a run would do.

    Attributes:
        store: its address.
        files: rows of the manifests.
        failed: those that could not be packed for sure.
        bytes_in: bytes of the sources, as the manifest or else the file system says.
        sized_by_stat: files whose size the manifest does not say.
        unknown_sizes: files whose size nothing says without a request: counted as empty.
        shards: to be written to.
        largest_shard: files of the largest.
        segments: objects of content.
        heads_created: of new shards.
        heads_rewritten: of shards that are there already.
        objects: new objects, all together.
        put_requests: of all, multipart parts with their beginning and end included.
        warnings: sentences.
        seconds: it took to find out.
    """

    store: str
    files: int = 0
    failed: int = 0
    bytes_in: int = 0
    sized_by_stat: int = 0
    unknown_sizes: int = 0
    shards: int = 0
    largest_shard: int = 0
    segments: int = 0
    heads_created: int = 0
    heads_rewritten: int = 0
    objects: int = 0
    put_requests: int = 0
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def packable(self) -> int:
        """How many files would be packed."""
        return self.files - self.failed

    def to_json(self) -> str:
        """Return all of it as one JSON object."""
        costs = {
            "put_usd": _usd(self.put_requests),
            "as_single_objects": {
                "objects": self.packable,
                "put_requests": self.packable,
                "put_usd": _usd(self.packable),
            },
            "prices": asdict(PRICES),
        }
        return json.dumps({"dry_run": True, **asdict(self), **costs})

    def to_table(self) -> Table:
        """Return it for people."""
        table = Table(title=f"dry run: nothing is written to {self.store}", show_header=False)
        rows = [
            ("files", f"{self.files:,}"),
            ("cannot be packed", f"{self.failed:,}"),
            ("bytes", f"{self.bytes_in:,}"),
            ("sizes asked of the file system", f"{self.sized_by_stat:,}"),
            ("sizes not known", f"{self.unknown_sizes:,}"),
            ("shards", f"{self.shards:,}"),
            ("files of the largest shard", f"{self.largest_shard:,}"),
            ("segments, at most about", f"{self.segments:,}"),
            ("heads created", f"{self.heads_created:,}"),
            ("heads rewritten", f"{self.heads_rewritten:,}"),
            ("objects created", f"{self.objects:,}"),
            ("PUT requests", f"{self.put_requests:,} ({_usd(self.put_requests):,.2f} USD)"),
            ("the same files as single objects", f"{self.packable:,} PUT requests ({_usd(self.packable):,.2f} USD)"),
        ]
        for name, figure in rows:
            table.add_row(name, figure)
        table.columns[1].justify = "right"
        table.caption = f"{PRICES.usd_per_1000_puts} USD per 1,000 {PRICES.what}, {PRICES.as_of}, {PRICES.source}; nothing is taken to shrink"
        return table


async def dry_run(
    storage: Storage, job: PackJob, report: Report, progress: Progress, workers: Workers | None = None
) -> DryRun:
    """Plan a run, and count what it would do; rows that cannot be packed are in `report`. Arguments as for `run.pack`.

    Raises:
        ManifestError: an input cannot be read.
        SettingsError: the settings contradict the store, or `source_root` is no directory.
        StorageError: the storage is unwell.
    """
    started = time.monotonic()
    found = DryRun(storage.address)
    expected = await expected_descriptor(storage, job.n_bits)

    def count_sizes(taken: Taken) -> None:
        found.sized_by_stat += taken.sized
        found.unknown_sizes += taken.unsized

    def planned(plan: Plan, spool: Spool) -> list[PlannedShard]:
        intake = Intake(order_of(job, expected, asks_sizes=True), workers)
        return intake.fill(plan, job.inputs, spool, report, progress.planned, count_sizes)

    async with open_plan() as (plan, spool):
        shards = await anyio.to_thread.run_sync(planned, plan, spool)
    found.files, found.failed = report.files, report.failed
    heads = await _keys_of(storage, sorted({shard.day for shard in shards}))
    # In a thread, because it loads what knows the parts of uploads.
    await anyio.to_thread.run_sync(_count, found, shards, expected, heads, job.max_segment_bytes)
    if shards and not await _has_descriptor(storage):
        found.objects += 1
        found.put_requests += 1
    found.seconds = round(time.monotonic() - started, 3)
    return found


async def _keys_of(storage: Storage, days: Iterable[str]) -> set[str]:
    """Return the keys of the heads of some days."""
    heads: set[str] = set()
    for day in days:
        level = await storage.list_level(f"{day}/")
        heads.update(info.key for info in level.objects)
    return heads


async def _has_descriptor(storage: Storage) -> bool:
    level = await storage.list_level("")
    return any(info.key == DESCRIPTOR_KEY for info in level.objects)


def _count(
    found: DryRun, shards: Sequence[PlannedShard], descriptor: Descriptor, heads: set[str], max_segment_bytes: int
) -> None:
    found.shards = len(shards)
    for shard in shards:
        n_bits = descriptor.n_bits_on(shard.day)
        exists = head_key(shard.day, shard_hex(shard.shard_index, n_bits)) in heads
        segments = max(1, -(-shard.size // max_segment_bytes))
        found.bytes_in += shard.size
        found.largest_shard = max(found.largest_shard, shard.rows)
        found.segments += segments
        found.heads_rewritten += exists
        found.heads_created += not exists
        found.put_requests += segments * _puts_of(-(-shard.size // segments)) + (1 if exists else 2)
    found.objects = found.segments + found.heads_created
    found.warnings += _warnings(found, shards, descriptor)


def _puts_of(size: int) -> int:
    """Return the requests that writing an object of `size` bytes takes on S3: what fits into one part is one PUT."""
    from des.storage.s3_multipart import FIRST_PART_BYTES, part_size  # noqa: PLC0415 - loads botocore

    if size <= FIRST_PART_BYTES:
        return 1
    parts = 0
    while size > 0:
        parts += 1
        size -= part_size(parts)
    return parts + 2


def _warnings(found: DryRun, shards: Sequence[PlannedShard], descriptor: Descriptor) -> list[str]:
    warnings = []
    full = [shard for shard in shards if shard.rows > _MANY_FILES]
    if full:
        n_bits = descriptor.n_bits_on(full[0].day)
        more = min(16, n_bits + (found.largest_shard // _MANY_FILES).bit_length())
        warnings.append(
            f"{len(full):,} of {len(shards):,} shards would get more than {_MANY_FILES:,} files, the largest {found.largest_shard:,}; with"
            f" n_bits {more} instead of {n_bits} they stay below."
        )
    rows = sum(shard.rows for shard in shards)
    if len(shards) > 1 and rows < _FEW_FILES * len(shards):
        warnings.append(
            f"the shards are small, {rows / len(shards):.1f} files each on average; a new store with fewer n_bits, or larger runs, would"
            " make fewer objects."
        )
    if found.unknown_sizes:
        warnings.append(f"{found.unknown_sizes:,} sources on S3 have no size_bytes; they count as empty.")
    return warnings


def _usd(puts: int) -> float:
    return round(puts * PRICES.usd_per_1000_puts / 1000, 4)
