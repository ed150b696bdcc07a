"""`des compact`: rewrite what is worth rewriting; `--erase`: leave no byte of what was deleted."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import click

from des.cli.erasure import erase
from des.cli.maintenance import AgeType, conclude, microseconds, shards_argument, shown_progress
from des.cli.measuring import measured
from des.cli.options import json_option, settings_for, store_option
from des.cli.presenting import exact_size, human_size, write_fields, write_table
from des.console import say
from des.lifecycle.choosing import Rules
from des.lifecycle.clock import microseconds_now
from des.lifecycle.compacting import Compaction, compact_shard, plan_compaction
from des.lifecycle.rewriting import Rewriting
from des.lifecycle.running import Outcome, chosen_shards, maintain, open_place
from des.shard.codecs import CodecName, Compression

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.settings import Settings

_GRACE = "15m"


@click.command("compact", short_help="Rewrite shards with much garbage or many segments.")
@shards_argument
@click.option("--dry-run", is_flag=True, help="Only show what would be rewritten, and why.")
@click.option(
    "--erase",
    "erasing",
    is_flag=True,
    help="Leave no byte of deleted or replaced files, at once and without grace; prints a certificate.",
)
@click.option(
    "--grace",
    default=_GRACE,
    show_default=True,
    type=AgeType(),
    help="How long replaced segments are kept for readers that still know them.",
)
@click.option(
    "--recompress", "codec", type=click.Choice(["zstd", "lz4", "none"]), help="Encode all that is rewritten anew."
)
@click.option("--level", type=click.IntRange(1, 22), help="The level of --recompress.")
@click.option(
    "--drop-tombstones-older",
    "drop",
    type=AgeType(),
    metavar="AGE",
    help="Forget deletions older than this; such files are then not found instead of deleted.",
)
@click.option(
    "--garbage-share",
    default=0.3,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Rewrite segments from this share of garbage on.",
)
@click.option(
    "--small-segments",
    default=4,
    show_default=True,
    type=click.IntRange(2),
    help="Join segments below 64 MiB where there are this many.",
)
@json_option
@store_option
@measured("compact")
def compact(
    names: tuple[str, ...],
    dry_run: bool,
    erasing: bool,
    grace: timedelta,
    codec: CodecName | None,
    level: int | None,
    drop: timedelta | None,
    garbage_share: float,
    small_segments: int,
    as_json: bool,
    store: str | None,
) -> int:
    """Compact the store, the days DATE or the shards SHARD (20240131/C1). Packers and readers may go on meanwhile.

    Segments are rewritten when much of them is garbage, or when a shard has many small ones. The old ones are deleted by a later run, when their
    grace time is over. Running it again, also after a kill, is always safe.
    """
    if level is not None and codec is None:
        raise click.UsageError("--level goes with --recompress.")
    if erasing and (dry_run or drop is not None):
        raise click.UsageError("--erase goes with neither --dry-run nor --drop-tombstones-older.")
    settings = settings_for(store)
    compression = Compression(codec, level) if codec else None
    how = Rewriting(compression=compression, memory=settings.pack_memory // 4)
    if erasing:
        return erase(settings, names, how, as_json=as_json)
    if grace <= timedelta(seconds=settings.index_ttl):
        raise click.UsageError(
            f"--grace must be more than DES_INDEX_TTL, {settings.index_ttl:g} seconds: readers may hold a head that long."
        )
    rules = Rules(garbage_share=garbage_share, small_segments=small_segments)
    began = datetime.now(UTC)
    outcome = anyio.run(partial(_compact, settings, names, rules, how, grace, drop, dry_run=dry_run))
    done = sorted(outcome.results, key=lambda one: one.shard)
    chosen = [one for one in done if one.choice.names]
    summary = _summary(done) | {"seconds": round((datetime.now(UTC) - began).total_seconds(), 3), "dry_run": dry_run}
    if not as_json:
        _write(chosen, summary, dry_run=dry_run)
    return conclude(summary | {"compacted": [_json(one) for one in chosen]}, outcome.failed, as_json=as_json)


async def _compact(
    settings: Settings,
    names: Sequence[str],
    rules: Rules,
    how: Rewriting,
    grace: timedelta,
    drop: timedelta | None,
    *,
    dry_run: bool,
) -> Outcome[Compaction]:
    async with open_place(settings, for_writing=not dry_run) as place:
        shards = await chosen_shards(place, names)
        now = await microseconds_now(place.storage)
        before = None if drop is None else now - microseconds(drop)
        rewriting = Rewriting(how.compression, how.max_segment_bytes, how.memory, before)
        with shown_progress("compacting", len(shards)) as done:
            if dry_run:
                return await maintain(shards, partial(plan_compaction, place.storage, rules=rules), done)
            work = partial(compact_shard, place.storage, rules=rules, how=rewriting, now=now, grace=microseconds(grace))
            return await maintain(shards, work, done)


def _summary(done: Sequence[Compaction]) -> dict[str, Any]:
    totals: Counter[str] = Counter()
    for one in done:
        totals["files"] += one.files
        totals["bytes_moved"] += one.bytes_moved
        totals["garbage_bytes"] += one.choice.garbage_bytes
        totals["stored_bytes"] += one.stored_bytes
        totals["tombstones_dropped"] += one.tombstones_dropped
        totals["segments_collected"] += one.collected
    names = ("files", "bytes_moved", "garbage_bytes", "stored_bytes", "tombstones_dropped", "segments_collected")
    return {"shards": len(done)} | {name: totals[name] for name in names}


def _json(one: Compaction) -> dict[str, Any]:
    return {
        "shard": one.shard,
        "reason": one.choice.reason,
        "segments_before": one.segments_before,
        "segments_after": one.segments_after,
        "files": one.files,
        "bytes_moved": one.bytes_moved,
        "garbage_bytes": one.choice.garbage_bytes,
    }


def _write(chosen: Sequence[Compaction], summary: dict[str, Any], *, dry_run: bool) -> None:
    if chosen:
        columns = ("shard", "why", "segments", "live", "garbage")
        rows = [
            (
                one.shard,
                one.choice.reason,
                str(one.segments_before) if dry_run else f"{one.segments_before} to {one.segments_after}",
                human_size(one.choice.live_bytes),
                human_size(one.choice.garbage_bytes),
            )
            for one in chosen
        ]
        write_table(columns, rows, numbers=("segments", "live", "garbage"), folded=("why",))
    else:
        say("nothing is worth rewriting.")
    write_fields(
        [
            ("shards", f"{summary['shards']:,}"),
            ("rewritten", f"{0 if dry_run else len(chosen):,}"),
            ("files moved", f"{summary['files']:,}"),
            ("bytes moved", exact_size(summary["bytes_moved"])),
            ("garbage", exact_size(summary["garbage_bytes"])),
            ("segments deleted", f"{summary['segments_collected']:,}"),
            ("seconds", f"{summary['seconds']:.1f}"),
        ]
    )
